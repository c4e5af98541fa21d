"""`dlrun predict` as users type it."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.core.errors import RequestError
from dlrun.inference.predict import forward
from dlrun.inference.predict.command import is_override, parse_words
from dlrun.inference.predict.predictor import predict_inputs
from dlrun.inference.saved_model import open_saved_model
from dlrun.runs import checkpoint

HOUSES = ("data=csv", "data.target=price", "data.batch_size=8", "model=linear", "optimizer.lr=0.1", "trainer.epochs=3")
DIGITS = ("data=digits", "data.limit_batches=10", "model=cnn", "optimizer.lr=0.01", "trainer.epochs=3")
GROUPS = ("data=csv", "data.target=kind", "model=linear", "trainer.epochs=1")


@pytest.fixture
def houses(trained: Callable[..., Path], shelf: Path) -> Path:
    """A regression on a table with a header."""
    path = shelf / "houses.csv"
    path.write_text("rooms,price,area\n" + "".join(f"{i % 5},{3 * (i % 5) + i},{i}\n" for i in range(40)))
    return trained("houses", *HOUSES, f"data.path={path}")


@pytest.fixture
def groups(trained: Callable[..., Path], shelf: Path) -> Path:
    """Three classes with names, on a table without a header."""
    path = shelf / "groups.csv"
    path.write_text("x,y,kind\n" + "".join(f"{i},{-i},{'abc'[i // 10]}\n" for i in range(30)))
    return trained("groups", *GROUPS, f"data.path={path}")


@pytest.mark.slow
def test_rows_are_normalized_as_in_training(dlrun: Callable, houses: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("area,rooms\n12,3\n30,1\n")
    outcome = dlrun("predict", "houses", "new.csv", "--format", "csv")
    assert outcome.code == 0, outcome.err
    state = checkpoint.load(houses / "checkpoints" / "best.pt")
    weight, bias = (v.double().numpy() for v in state["model"].values())
    x = (np.array([[3, 12], [1, 30]]) - state["spec"]["mean"]) / state["spec"]["std"]  # rooms, area: as trained
    rows = list(csv.DictReader(outcome.out.splitlines()))
    assert [row["input"] for row in rows] == ["new.csv:2", "new.csv:3"]
    # The model gives standard deviations of the target.
    values = (x @ weight.T + bias)[:, 0] * state["spec"]["target_std"] + state["spec"]["target_mean"]
    assert np.allclose([float(row["prediction"]) for row in rows], values, rtol=1e-5)
    assert list(rows[0]) == ["input", "prediction", "label", "note", "error"]


@pytest.mark.slow
def test_predict_says_what_eval_wrote_down(dlrun: Callable, groups: Path, shelf: Path) -> None:
    assert dlrun("eval", "groups", "split=all", "figures=false").code == 0
    (written,) = (groups / "eval").iterdir()
    evaluated = list(csv.DictReader((written / "predictions.csv").read_text().splitlines()))
    outcome = dlrun("predict", "groups", str(shelf / "groups.csv"), "--format=jsonl", "--top=3")
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert sorted((r["true"], r["predicted"], float(r["probability"])) for r in evaluated) == [
        (true, answer, pytest.approx(p, abs=1e-5))
        for true, answer, p in sorted((r["label"], r["prediction"], r["probability"]) for r in rows)
    ]
    for row in rows:
        assert sum(entry["probability"] for entry in row["top"]) == pytest.approx(1, abs=1e-5)
        assert [entry["probability"] for entry in row["top"]] == sorted(e["probability"] for e in row["top"])[::-1]
        assert (row["top"][0]["class"], row["top"][0]["probability"]) == (row["prediction"], row["probability"])


@pytest.mark.slow
def test_a_bad_row_is_said_and_the_others_answered(dlrun: Callable, groups: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("x,y\n1,2\n1\n3,z\n4,5\n")
    outcome = dlrun("predict", "groups", "new.csv", "neww.csv", "--format", "jsonl")
    assert outcome.code == 1
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert [row.get("error") for row in rows] == [
        None,
        "1 field, where the table has 2",
        "column 'y' holds 'z', which is no finite number",
        None,
        f"there is no such file; did you mean new.csv? this model takes {rows[-1]['error'].rpartition('takes ')[2]}",
    ]
    assert outcome.err == "dlrun: 3 of 5 inputs have no answer; their rows say why\n"
    table = dlrun("predict", "groups", "new.csv")
    assert table.code == 1
    assert "1 field" in table.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["groups"], "what is to be predicted? type dlrun predict groups INPUT"),
        (["groups", "short.csv"], "short.csv: 1 column, where the model takes 2 (x, y)"),
        (["groups", "none.csv", "nowhere/"], "none of the 2 inputs could be read"),
        (["groups", "1,2", "--format", "cvs"], "did you mean format=csv?"),
        (["groups", "1,2", "--top", "0"], "top=0 must be a whole number above 0"),
        (["groups", "1,2", "--top"], "--top has no value"),
        (["groups", "1,2", "--tpo=3"], "did you mean --top?"),
        (["houses", "1,2", "--top=2"], "--top 2 is for classes"),
        (["groups", "1,2", "devise=cpu"], "device"),
        (["nowhere", "1,2"], "there is no run or checkpoint nowhere"),
        ([".", "1,2"], "holds no checkpoint"),
        ([], "which run? type dlrun predict"),
        (["groups", "1,2", "model.hidden_sizes=[3]"], "model.hidden_sizes"),
    ],
)
def test_a_wrong_request_is_a_sentence(
    dlrun: Callable, groups: Path, houses: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    (tmp_path / "short.csv").write_text("1\n2\n")
    before = sorted(tmp_path.rglob("*"))
    outcome = dlrun("predict", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_images_of_any_kind_beside_what_is_none(
    dlrun: Callable, trained: Callable, draw: Callable, tmp_path: Path
) -> None:
    trained("digits", *DIGITS)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    draw("1").save(tmp_path / "photos" / "b.png")
    draw("1", side=300, points=200).convert("RGBA").save(tmp_path / "photos" / "more" / "a=b.png")
    draw("1", dark=False).save(tmp_path / "light=1.png")
    (tmp_path / "photos" / "c.png").write_bytes(b"no image")
    outcome = dlrun("predict", "digits", "photos", "light=1.png", "device=cpu", "--format", "jsonl")
    assert outcome.code == 1
    rows_by_name = {Path(row["input"]).name: row for row in map(json.loads, outcome.out.splitlines())}
    assert list(rows_by_name) == ["b.png", "c.png", "a=b.png", "light=1.png"]
    assert rows_by_name["c.png"]["error"].endswith("replace it or remove it")
    assert rows_by_name["b.png"]["note"].startswith("inverted, ")
    assert "inverted" not in rows_by_name["light=1.png"]["note"]
    assert len({row["prediction"] for row in rows_by_name.values() if "error" not in row}) == 1


@pytest.mark.slow
def test_an_image_of_the_data_is_answered_as_eval_does(dlrun: Callable, trained: Callable, tmp_path: Path) -> None:
    trained("digits", *DIGITS)
    with open_saved_model("digits") as saved:
        test = saved.splits.test
        pixels = (test.inputs[0][:40] * saved.spec.std[0] + saved.spec.mean[0]).mul(255).round().to(torch.uint8)  # type: ignore[union-attr]
        for i, image in enumerate(pixels[:, 0].numpy()):
            Image.fromarray(image).save(tmp_path / f"{i:02}.png")
        exact = (pixels / 255 - saved.spec.mean[0]) / saved.spec.std[0]
        truth = saved.objective.compute_probabilities(forward.compute_outputs(saved, (exact,))).max(1)
        answers = list(predict_inputs(saved, sorted(str(p) for p in tmp_path.glob("*.png"))))
    untouched = [not a.note for a in answers]
    assert sum(untouched) >= 36
    for answer, p, label in zip(answers, truth.values, truth.indices, strict=True):
        if not answer.note:
            assert answer.choices[0] == (str(int(label)), pytest.approx(float(p), abs=1e-5))


@pytest.mark.slow
def test_texts_come_from_words_files_and_standard_input(command: Callable, trained: Callable, tmp_path: Path) -> None:
    trained("letters", "data=hello", "model=rnn", "optimizer.lr=0.05", "trainer.epochs=30")
    (tmp_path / "words.txt").write_text("hello\nhelp\n")
    outcome = command("predict", "letters", "words.txt", "olleh", "-", "--format", "csv", input="hell\nhello\n")
    assert outcome.code == 1, outcome.err
    rows = list(csv.DictReader(outcome.out.splitlines()))
    assert [row["input"] for row in rows] == ["hello", "help", "olleh", "hell", "hello"]
    assert [row["where"] for row in rows] == ["words.txt:1", "words.txt:2", "", "line 1", "line 2"]
    assert rows[0]["prediction"] == rows[-1]["prediction"] == "ohlol"
    assert len(rows[3]["prediction"]) == 4
    assert "have no 'p'" in rows[1]["error"]


def test_the_users_own_data_are_said_to_be_unknown(dlrun: Callable, tmp_path: Path) -> None:
    (tmp_path / "mydata.py").write_text(
        "import torch\n"
        "from dlrun.data.spec import DataSpec, Split, Splits\n"
        "def waves() -> Splits:\n"
        "    x = torch.linspace(-3, 3, 40).view(20, 2)\n"
        "    train = Split((x,), x.sum(1, keepdim=True))\n"
        "    return Splits(train, None, None, DataSpec('vector', (2,), 'regression', 1))\n"
    )
    quick = ("trainer.epochs=1", "tracking.graph=false", "figures=false", "hydra.run.dir=run")
    assert dlrun("data._target_=mydata.waves", "model=linear", *quick).code == 0
    np.save(tmp_path / "x.npy", np.ones((2, 2), np.float32))
    outcome = dlrun("predict", "run", "x.npy", "1,1", "--format", "jsonl")
    assert outcome.code == 0, outcome.err
    predictions = [json.loads(line)["prediction"] for line in outcome.out.splitlines()]
    assert len(predictions) == 3
    assert len(set(predictions)) == 1
    assert "what else mydata.waves does to its data is not done to them" in outcome.err


def test_a_model_that_takes_no_such_row_costs_that_row_only(trained: Callable, groups: Path) -> None:
    with open_saved_model("groups") as saved:
        original_forward = saved.model.forward

        def refuse_large(x: torch.Tensor) -> torch.Tensor:
            if bool((x > 10).any()):
                raise ValueError("too large for me")
            return original_forward(x)  # type: ignore[no-any-return]

        saved.model.forward = refuse_large  # type: ignore[method-assign]
        answers = list(predict_inputs(saved, ["1,2", "9999,1", "3,4"]))
    first, refused, last = (answer.error for answer in answers)
    assert (first, last) == ("", "")
    assert refused.startswith("the model does not take it: too large for me (")  # and where it was raised


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("device=cpu", True),
        ("trusted_modules=[mynet]", True),
        ("data.path=x.csv", True),
        ("devise=cpu", True),
        ("a=b.png", False),
        ("photos/a=b", False),
        ("=x", False),
        ("Kim", False),
    ],
)
def test_what_is_a_key_and_what_a_file(word: str, expected: bool) -> None:
    assert is_override(word) == expected


def test_a_file_with_an_equals_sign_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed=1").touch()
    options = parse_words(["run", "seed=1", "seed=2", "-", "--", "seed=3", "--top"])
    assert (options.inputs, options.overrides) == (["seed=1", "-", "seed=3", "--top"], ["seed=2"])
    with pytest.raises(RequestError, match="no flag -x"):
        parse_words(["run", "-x"])
    assert parse_words(["run", "-1.5,2"]).inputs == ["-1.5,2"]
