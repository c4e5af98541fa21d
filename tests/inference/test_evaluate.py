"""`dlrun eval`: the recorded test metrics again, in a new process, from weights and from a full model."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

QUICK = ("tracking.graph=false", "figures=false", "trainer.epochs=2")


def table(out: str) -> dict[str, list[str]]:
    """Metric -> cells, from the printed table."""
    lines = [line.split() for line in out.splitlines() if re.match(r" (test|val|train)/", line)]
    return {cells[0]: cells[1:] for cells in lines}


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run that all tests here look at is kept."""
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def trained_run(dlrun: Callable, tmp_path: Path, shared_folder: Path) -> Path:
    """A run with a full model beside its checkpoints, whose last epoch is not its best: a copy to do anything with."""
    if not shared_folder.exists():
        train(dlrun, shared_folder)
    shutil.copytree(shared_folder, tmp_path / "run")
    return tmp_path / "run"


def train(dlrun: Callable, folder: Path) -> None:
    outcome = dlrun(
        "data=digits",
        "data.limit_batches=8",
        "model=cnn",
        "checkpoint.format=full",
        "checkpoint.monitor=train/loss",
        "checkpoint.mode=max",
        *QUICK,
    )
    assert outcome.result["best"]["epoch"] == 1
    shutil.copytree(outcome.folder, folder)


@pytest.mark.slow
def test_a_new_process_opens_the_full_model_without_dlrun_and_eval_reproduces_the_recorded_metrics(
    trained_run: Path, python: Callable[..., Any]
) -> None:
    opening = (
        "import sys\n"
        "for name in [name for name in sys.modules if name.partition('.')[0] in ('dlrun', 'hydra', 'omegaconf')]:\n"
        "    del sys.modules[name]\n"
        "import torch\n"
        "model = torch.load(sys.argv[1] + '/checkpoints/model.pt', weights_only=False)\n"
        "assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)\n"
        "best = torch.load(sys.argv[1] + '/checkpoints/best.pt', weights_only=True)['model']\n"
        "assert all(torch.equal(v, best[k]) for k, v in model.state_dict().items())\n"
        "assert 'hydra' not in sys.modules and 'omegaconf' not in sys.modules\n"
    )
    evaluating = (
        "import json, sys\n"
        "from dlrun.inference import evaluate as evaluation\n"
        "found = evaluation.evaluate([*sys.argv[1:], 'figures=false'])\n"
        "recorded = json.load(open(sys.argv[1] + '/result.json'))['metrics']\n"
        "assert len(found) == 4 and all(recorded[k] == v for k, v in found.items()), (found, recorded)\n"
    )
    opened = python("-c", opening, str(trained_run))
    assert opened.code == 0, opened.err
    outcome = python("-c", evaluating, str(trained_run))
    assert outcome.code == 0, outcome.err
    cells = table(outcome.out)
    assert all(now == recorded for now, recorded, _ in cells.values())


@pytest.mark.slow
def test_eval_of_the_full_model_needs_trust_and_gives_the_same(dlrun: Callable, trained_run: Path) -> None:
    model = str(trained_run / "checkpoints" / "model.pt")
    refused = dlrun("eval", model)
    assert refused.code == 2
    assert "trust=true" in refused.err
    trusted = dlrun("eval", model, "trust=true", "figures=false")
    assert trusted.code == 0, trusted.err
    assert table(trusted.out) == table(dlrun("eval", str(trained_run), "figures=false").out)


@pytest.mark.slow
def test_eval_of_one_checkpoint_file(dlrun: Callable, trained_run: Path) -> None:
    best, last = (
        table(dlrun("eval", str(trained_run / "checkpoints" / f"{n}.pt"), "figures=false").out)
        for n in ("best", "last")
    )
    assert best["test/accuracy"] != last["test/accuracy"]


@pytest.mark.slow
def test_eval_on_other_data_of_the_same_kind(dlrun: Callable, trained_run: Path) -> None:
    outcome = dlrun("eval", str(trained_run), "data.seed=3", "figures=false")
    assert outcome.code == 0, outcome.err
    refused = dlrun("eval", str(trained_run), "data=blobs")
    assert refused.code == 2
    assert "does not take data=blobs" in refused.err or "was trained for" in refused.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "there is no run or checkpoint nowhere"),
        ([], "which run?"),
        (["."], "holds no checkpoint"),
        (["junk.pt"], "junk.pt"),
    ],
)
def test_eval_of_what_is_no_run(dlrun: Callable, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "junk.pt").write_bytes(b"junk")
    outcome = dlrun("eval", *words)
    assert outcome.code == 2
    assert message in outcome.err


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.batchsize=3", "data.batch_size"),
        ("data=mnst", "did you mean data=mnist"),
        ("data.batch_size=abc", "data.batch_size"),
        ("data.batch_size=1,2", "several values"),
        ("data.batch_size=[1", "cannot be read"),
        ("nonsense", "neither a command nor key=value"),
        ("lesson=resnet_mnist", "makes a new run"),
    ],
)
@pytest.mark.parametrize("verb", ["eval", "resume"])
def test_a_wrong_word_behind_a_run_is_a_sentence(
    dlrun: Callable, trained_run: Path, verb: str, word: str, message: str
) -> None:
    outcome = dlrun(verb, str(trained_run), word)
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert len(outcome.err.splitlines()) == 1


@pytest.mark.slow
def test_the_device_can_be_chosen_anew_and_its_precision_stays(dlrun: Callable, trained_run: Path) -> None:
    outcome = dlrun("eval", str(trained_run), "device=cpu", "device.precision=fp64", "figures=false")
    assert outcome.code == 0, outcome.err
    assert "fp64" in outcome.out
    refused = dlrun("eval", str(trained_run), "device.index=99")
    assert refused.code == 2
    assert "99" in refused.err


@pytest.mark.slow
def test_data_that_have_moved_are_found(dlrun: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"{i % 7},{i % 3},1,1,1,1,1,1,{i % 2}\n" for i in range(40))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "diabetes.csv").write_text(rows)
    outcome = dlrun("data=diabetes", "paths.data=old", "hydra.run.dir=run", *QUICK)
    assert outcome.code == 0, outcome.err
    (tmp_path / "old").rename(tmp_path / "new")
    assert dlrun("eval", "run", "paths.data=new", "figures=false").code == 0
    monkeypatch.setenv("DLRUN_DATA_DIR", "new")
    assert dlrun("eval", "run", "figures=false").code == 0


def test_a_damaged_checkpoint_is_named(dlrun: Callable, trained_run: Path) -> None:
    best = trained_run / "checkpoints" / "best.pt"
    content = bytearray(best.read_bytes())
    content[len(content) // 2] ^= 1
    best.write_bytes(content)
    outcome = dlrun("eval", str(trained_run))
    assert outcome.code == 2
    assert "best.pt is damaged" in outcome.err


CSV = ("data=csv", "data.batch_size=8", "model=mlp", *QUICK)


def read_tables(folder: Path) -> dict[str, Any]:
    """metrics.json of the only evaluation of a run."""
    (only,) = (folder / "eval").iterdir()
    return dict(json.loads((only / "metrics.json").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_every_task_is_evaluated_as_in_training(dlrun: Callable, tmp_path: Path, task: str) -> None:
    last = {"binary": "i % 2", "multiclass": "i % 3", "regression": "i * 0.7"}[task]
    rows = "".join(f"{i},{i % 7},{eval(last, {'i': i})}\n" for i in range(60))
    (tmp_path / "t.csv").write_text(rows)
    training = dlrun(*CSV, "data.path=t.csv", f"data.task={task}", "hydra.run.dir=run", "trainer.ema_decay=0.9")
    outcome = dlrun("eval", "run")
    assert outcome.code == 0, outcome.err
    recorded = {k: v for k, v in training.result["metrics"].items() if k.startswith("test/")}
    tables = read_tables(tmp_path / "run")
    assert tables["metrics"] == recorded == tables["recorded"]
    assert {k for k in recorded if "ema_" in k}
    assert tables["baseline"] == {k: v for k, v in training.result["baseline"].items() if k.startswith("test/")}
    assert "the same as recorded in training, to the last bit" in outcome.out
    (folder,) = (tmp_path / "run" / "eval").iterdir()
    pictures = {path.stem for path in (folder / "figures").iterdir()}
    assert pictures == ({"residuals"} if task == "regression" else {"confusion", "reliability"})
    lines = list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))
    assert len(lines) == 12
    if task == "regression":
        error = sum((float(row["true"]) - float(row["predicted"])) ** 2 for row in lines) / 12
        assert error == pytest.approx(recorded["test/mse"], rel=1e-4)
        return
    right = [row["true"] == row["predicted"] for row in lines]
    assert sum(right) / 12 == pytest.approx(recorded["test/accuracy"])
    classes = list(csv.DictReader((folder / "per_class.csv").read_text().splitlines()))
    assert sum(int(row["support"]) for row in classes) == 12
    assert tables["calibration"]["ece"] >= 0


@pytest.mark.slow
def test_an_evaluation_is_never_written_over_another(dlrun: Callable, trained_run: Path) -> None:
    for _ in range(3):
        assert dlrun("eval", str(trained_run), "figures=false").code == 0
    names = sorted((trained_run / "eval").iterdir())
    assert len(names) == 3
    assert all({path.name for path in folder.iterdir()} == FILES for folder in names)


FILES = {"metrics.json", "per_class.csv", "predictions.csv"}


def test_what_cannot_be_written_leaves_nothing(
    dlrun: Callable, trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dlrun.inference.eval_folder.write_json", full)
    outcome = dlrun("eval", str(trained_run), "figures=false")
    assert outcome.code == 1
    assert "test/accuracy" in outcome.out
    assert "eval cannot be written (No space left on device); the metrics above are complete" in outcome.err
    assert not (trained_run / "eval").exists()


@pytest.mark.slow
def test_every_row_of_another_table_counts_with_the_constants_of_the_training(dlrun: Callable, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,y,kind\n" + "".join(f"{i},{i % 7},{'abc'[i // 20]}\n" for i in range(60)))
    other = [
        (1000 + i, i % 5, "ac"[i % 2]) for i in range(30)
    ]  # far from the training: its own constants would hide it
    (tmp_path / "other.csv").write_text("y,kind,x\n" + "".join(f"{y},{kind},{x}\n" for x, y, kind in other))
    assert dlrun(*CSV, "data.path=t.csv", "data.target=kind", "hydra.run.dir=run", "device.precision=fp64").code == 0
    outcome = dlrun("eval", "run", "data.path=other.csv", "figures=false")
    assert outcome.code == 0, outcome.err
    assert "all, as the run has not seen them, 30 rows" in outcome.out
    predicted = dlrun("predict", "run", "other.csv", "--format", "jsonl")
    answers = [json.loads(line) for line in predicted.out.splitlines()]
    assert [a["label"] for a in answers] == [kind for *_, kind in other]
    right = sum(a["label"] == a["prediction"] for a in answers) / 30
    assert read_tables(tmp_path / "run")["metrics"]["all/accuracy"] == pytest.approx(right)
    (tmp_path / "wrong.csv").write_text("y,kind,x\n1,a,2\n1,d,2\n2,a,1\n2,d,1\n")
    refused = dlrun("eval", "run", "data.path=wrong.csv")
    assert (refused.code, refused.out) == (2, "")
    assert "has d besides" in refused.err
    assert len(list((tmp_path / "run" / "eval").iterdir())) == 1


@pytest.mark.slow
def test_any_part_can_be_asked_for(dlrun: Callable, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("".join(f"{i},{i % 7},{i % 2}\n" for i in range(60)))
    training = dlrun(*CSV, "data.path=t.csv", "hydra.run.dir=run")
    rows = {}
    for split in ("train", "val", "test", "all"):
        outcome = dlrun("eval", "run", f"split={split}", "figures=false")
        assert outcome.code == 0, outcome.err
        rows[split] = table(outcome.out)[f"{split}/loss"] if split != "all" else None
        assert f"{split}, " in outcome.out
    assert training.result["best"]["metric"] == "val/loss"
    best = float(rows["val"][0])  # type: ignore[index]
    assert best == pytest.approx(training.result["best"]["value"], abs=1e-4)
    refused = dlrun("eval", "run", "split=tets")
    assert refused.code == 2
    assert "did you mean split=test?" in refused.err
    assert dlrun("data=blobs", "model=linear", "data.val_fraction=0", "hydra.run.dir=two", *QUICK).code == 0
    assert "there is no test part; type split=train or split=all" in dlrun("eval", "two", "split=test").err


@pytest.mark.slow
def test_tags_are_evaluated_by_the_letter(dlrun: Callable, tmp_path: Path) -> None:
    assert dlrun("data=hello", "model=rnn", "hydra.run.dir=run", *QUICK).code == 0
    outcome = dlrun("eval", "run")
    assert outcome.code == 0, outcome.err
    (folder,) = (tmp_path / "run" / "eval").iterdir()
    rows = csv.DictReader((folder / "per_class.csv").read_text().splitlines())
    support = {row["class"]: int(row["support"]) for row in rows}
    assert support == {"e": 0, "h": 1, "l": 2, "o": 2}
    assert {path.name for path in (folder / "figures").iterdir()} == {"confusion.png", "reliability.png"}


def test_a_checkpoint_away_from_its_run_is_only_printed(dlrun: Callable, trained_run: Path, tmp_path: Path) -> None:
    shutil.copy(trained_run / "checkpoints" / "best.pt", tmp_path / "away.pt")
    outcome = dlrun("eval", "away.pt", "figures=false")
    assert outcome.code == 0, outcome.err
    assert "nothing was written" in outcome.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["away.pt", "run"]
