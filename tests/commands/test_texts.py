"""Texts of the user's own through the whole command line: train, evaluate, predict, export, sweep, kill."""

import csv
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.cli.main import main

QUIET = ("tracking.graph=false", "figures=false", "trainer.progress=off")
REVIEWS = ("data=text", "data.path=reviews.csv", "data.text=review", "data.target=label", *QUIET)
SMALL = ("model=gru", "model.embedding_size=8", "model.hidden_size=8", "model.layers=1")
GOOD = ["great", "lovely", "wunderbar", "很好", "رائع", "👍🏽"]
BAD = ["awful", "dull", "furchtbar", "很差", "سيئ", "👎"]
FILLING = ["the", "film", "plot", "was", "is", "电影", "فيلم", "yesterday,", "I", "saw"]


def write_reviews(path: Path, count: int = 240, seed: int = 0) -> None:
    """Reviews in several scripts, which words of either list decide."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "review", "label"])
        for number in range(count):
            words = [draw.choice(FILLING) for _ in range(draw.randint(2, 9))]
            words.insert(draw.randint(0, len(words)), draw.choice(GOOD if number % 2 else BAD))
            writer.writerow([number, " ".join(words), "pos" if number % 2 else "neg"])


@pytest.fixture(scope="module")
def folder_with_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with reviews.csv and a run that has learnt them."""
    folder = tmp_path_factory.mktemp("texts")
    write_reviews(folder / "reviews.csv")
    words = (*REVIEWS, *SMALL, "trainer.epochs=12", "optimizer.lr=0.03", "hydra.run.dir=run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["dlrun", *words])
        assert main() == 0
    return folder


@pytest.fixture
def run(folder_with_run: Path, tmp_path: Path) -> Path:
    """A copy of them in the working directory."""
    shutil.copytree(folder_with_run, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


@pytest.mark.slow
def test_reviews_are_learnt_and_evaluated_to_the_same_bits(dlrun: Callable[..., Any], run: Path) -> None:
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert metrics["test/accuracy"] > 0.95
    outcome = dlrun("eval", "run", "figures=false")
    assert "the same as recorded in training, to the last bit" in outcome.out
    (path,) = run.glob("eval/*/predictions.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == 48
    reviews = list(csv.DictReader((run.parent / "reviews.csv").read_text(encoding="utf-8").splitlines()))
    # line counts from 1 with the header.
    assert all(reviews[int(row["line"]) - 2]["label"] == row["true"] for row in rows)


@pytest.mark.slow
def test_other_tables_are_evaluated_whole(dlrun: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    (tmp_path / "more.tsv").write_text("label\treview\npos\tgreat film\nneg\tdull plot is dull\n", encoding="utf-8")
    outcome = dlrun("eval", "run", "data.path=more.tsv", "figures=false")
    assert outcome.code == 0, outcome.err
    assert "all, as the run has not seen them, 2 rows" in outcome.out
    (tmp_path / "more.tsv").write_text("label\treview\npos\tgreat\nmaybe\tdull\n", encoding="utf-8")
    outcome = dlrun("eval", "run", "data.path=more.tsv")
    assert outcome.code == 2
    assert "maybe" in outcome.err


def test_predict_takes_texts_tables_files_and_lines(dlrun: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("wunderbar!\n\nfurchtbar film\n", encoding="utf-8")
    (tmp_path / "new.csv").write_text('label,review\npos,"great, great"\nneg,\n', encoding="utf-8")
    words = ("很好 电影", "👎 Film", "zzz qqq", "lines.txt", "new.csv")
    outcome = dlrun("predict", "run", *words, "--format", "csv")
    rows = list(csv.DictReader(outcome.out.splitlines()))
    assert [row["prediction"] for row in rows] == ["pos", "neg", rows[2]["prediction"], "pos", "neg", "pos", ""]
    assert [row["input"] for row in rows[:2]] == ["很好 电影", "👎 Film"]
    assert rows[2]["note"] == "2 of 2 words unknown"
    assert rows[3]["where"] == "lines.txt:1"
    assert rows[5]["label"] == "pos"
    assert rows[6]["error"] == "it is empty"
    assert all(float(row["probability"]) > 0.5 for row in rows[:6])
    outcome = dlrun("predict", "run", "nothing.csv")
    assert outcome.code == 2
    assert "no such file" in outcome.err


def test_python_predicts_texts(run: Path) -> None:
    import dlrun

    predictions = dlrun.load(run).predict(["great film", "awful"])
    assert predictions.labels == ["pos", "neg"]


@pytest.mark.slow
def test_exports_cut_texts_as_the_run_does(dlrun: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    assert dlrun("export", "run", "format=onnx").code == 0
    (tmp_path / "texts.txt").write_text("Great film 👍🏽\n很差 电影\nwunderbar,\nqqq\n", encoding="utf-8")
    loader = run / "export" / "onnx" / "load_onnx.py"
    printed = subprocess.run(
        [sys.executable, str(loader), "texts.txt"], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout.splitlines()
    outcome = dlrun("predict", "run", "texts.txt", "--format", "csv")
    for line, row in zip(printed, csv.DictReader(outcome.out.splitlines()), strict=True):
        name, probability = line.split()
        assert name == row["prediction"]
        assert float(probability) == pytest.approx(float(row["probability"]), abs=1e-3)
    assert dlrun("export", "run", "format=safetensors").code == 0
    description = json.loads((run / "export" / "safetensors" / "model.json").read_text())
    assert description["preprocessing"]["unit"] == "words"
    outcome = dlrun("export", "run", "format=python")
    assert outcome.code == 2
    assert "format=python cannot write data=text" in outcome.err


@pytest.mark.slow
def test_a_sweep_compares_recurrent_nets_and_a_transformer(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    write_reviews(tmp_path / "reviews.csv", 60)
    models = ("model=gru,lstm,rnn,transformer", "trainer.max_steps=2", "data.tokens=characters")
    outcome = dlrun("-m", *REVIEWS, *models, "sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    assert len(list((tmp_path / "sweep").glob("*/result.json"))) == 4
    checked = dlrun("check", *REVIEWS, "model=transformer")
    assert checked.code == 0
    assert "ready" in checked.out


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lstm", "transformer"])
def test_a_killed_run_goes_on_to_the_same_bits(
    model: str, dlrun: Callable[..., Any], kill_at_save: Callable[..., None], tmp_path: Path
) -> None:
    write_reviews(tmp_path / "reviews.csv", 120)
    words = [*REVIEWS, f"model={model}", "trainer.epochs=4", "checkpoint.every_steps=1", "model.dropout=0.2"]
    assert dlrun(*words, "hydra.run.dir=whole").code == 0
    kill_at_save(4, *words, "hydra.run.dir=killed")
    assert not (tmp_path / "killed" / "result.json").exists()
    assert dlrun("resume", "killed").code == 0
    reference, killed = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "killed"))
    assert reference["weights_sha256"] == killed["weights_sha256"]
    rows = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "killed")]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("review,label\ngood,a\n ,b\nbad,a\n", (), "t.csv, line 3: column 'review' is empty; write a text"),
        ("review,label\ngood,a\nbad,a\nx,a\n", (), "only one class"),
        ("review,label\ngood,a\nbad,b\n", ("data.tokns=words",), "data.tokns"),
        ("review,label\ngood,a\nbad,b\n", ("model=mlp",), "models that do: gru, lstm, rnn, transformer"),
        ("review,label\ngood,a\nbad,b\n", ("data.path=t.cvs",), "did you mean 't.csv'"),
    ],
)
def test_what_cannot_be_used_is_a_sentence_before_anything_is_written(
    dlrun: Callable[..., Any], tmp_path: Path, text: str, words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "t.csv").write_text(text)
    outcome = dlrun("data=text", "data.path=t.csv", "data.text=review", "data.target=label", "model=gru", *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "outputs").exists()


def answer_alone(model: str, net: Any, codes: Any) -> Any:
    """The answer to one text without padding and packing, by torch's own layers."""
    import torch

    x = net.embedding(codes[None])
    if model == "transformer":
        from dlrun.models.transformer import encode_positions

        hidden = net.encoder(x + encode_positions(len(codes), x)).mean(1)
    else:
        _, state = net.recurrent(x)
        hidden = torch.cat(list((state[0] if model == "lstm" else state)[-2:]), dim=-1)
    return net.classifier(hidden)[0]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gru", "lstm", "rnn", "transformer"])
def test_training_on_padded_batches_is_that_of_single_texts(
    model: str, dlrun: Callable[..., Any], tmp_path: Path
) -> None:
    import torch

    from dlrun.data.text import text
    from dlrun.models.recurrent import GRU, LSTM, RNN
    from dlrun.models.transformer import Transformer

    write_reviews(tmp_path / "reviews.csv", 40)
    sizes: dict[str, Any] = {"hidden_size": 8, "layers": 1} | ({"heads": 2} if model == "transformer" else {})
    splits = text("reviews.csv", "review", "label")
    torch.manual_seed(3)
    classes: dict[str, Any] = {"gru": GRU, "lstm": LSTM, "rnn": RNN, "transformer": Transformer}
    net = classes[model](splits.spec, dropout=0.0, **sizes)
    torch.save(net.state_dict(), "start.pt")
    words = [f"model.{key}={value}" for key, value in (sizes | {"dropout": 0.0}).items()]
    fixed = ("data.shuffle=false", "data.batch_size=8", "data.val_fraction=0", "trainer.max_steps=3")
    optimizer = ("optimizer=sgd", "optimizer.lr=0.5", "optimizer.momentum=0")
    outcome = dlrun(
        *REVIEWS, f"model={model}", *words, *fixed, *optimizer, "init_from=start.pt", "hydra.run.dir=run", "seed=1"
    )
    assert outcome.code == 0, outcome.err

    assert isinstance(splits.train.targets, torch.Tensor)  # type: ignore[union-attr]
    (codes, lengths), targets = splits.train.inputs, splits.train.targets  # type: ignore[union-attr]
    by_hand = torch.optim.SGD(net.parameters(), lr=0.5)
    for step in range(3):
        rows = range(8 * step, 8 * step + 8)
        outputs = torch.stack([answer_alone(model, net, codes[row, : lengths[row]]) for row in rows])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], targets[list(rows)].float())
        by_hand.zero_grad()
        loss.backward()
        by_hand.step()
    trained = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)["model"]
    for name, value in net.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-4, atol=1e-5)
