"""`logger=`: what each choice writes, a logger of the user's own, and that none of them makes another run."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.config.schema import hash_config
from dlrun.core.yaml import dump_yaml, read_yaml

QUICK = ("data=blobs", "trainer.epochs=2", "tracking.graph=false", "figures=false")
HERE = "hydra.run.dir=run"

MINE = """
import json
from pathlib import Path

import dlrun


class Lines(dlrun.Logger):
    def __init__(self, path="lines.txt", fails_at=""):
        self.path = path
        self.fails_at = fails_at

    def write(self, *values):
        if values[0] == self.fails_at:
            raise RuntimeError("no paper left")
        with open(self.path, "a") as file:
            file.write(json.dumps(values) + "\\n")

    def start(self, run):
        # Resumed runs count on.
        self.state = {"starts": (self.state or {"starts": 0})["starts"] + 1}
        self.write("start", self.state["starts"], run.name, run.resumed_step)

    def log_hyperparameters(self, values):
        self.write("hyperparameters", values["model"], values["optimizer.lr"])

    def log_metrics(self, values, step):
        self.write("metrics", step, values.get("epoch"), sorted(values))

    def finish(self, status):
        self.write("finish", status, Path("run/result.json").exists())
"""


@pytest.fixture(autouse=True)
def forget_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test imports its own mine.py, and leaves none behind."""
    monkeypatch.setitem(sys.modules, "mine", sys)
    del sys.modules["mine"]


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def list_events(folder: Path) -> list[Path]:
    return list(folder.glob("events.out.tfevents.*"))


@pytest.mark.slow
def test_without_a_logger_a_run_is_the_same_and_all_else_works(dlrun: Callable[..., Any]) -> None:
    words = ("data=blobs", "trainer.epochs=2")
    # Pictures take most of the time: once with and once without a logger.
    runs = [dlrun(*words), dlrun(*words, "logger=none"), dlrun(*words, "~logger.tensorboard", "figures=false")]
    with_board, *without = runs

    assert list_events(with_board.folder)
    assert "tensorboard --logdir outputs" in with_board.out
    for outcome in without:
        assert outcome.code == 0
        assert not list_events(outcome.folder)
        assert "tensorboard" not in outcome.out
        for key in ("config_hash", "weights_sha256", "warnings", "metrics"):
            assert outcome.result[key] == with_board.result[key], key
        assert outcome.rows == with_board.rows
        if outcome is without[1]:
            continue
        pictures = {path.name for path in (with_board.folder / "figures").iterdir()}
        assert {path.name for path in (outcome.folder / "figures").iterdir()} == pictures
        assert (outcome.folder / "report.html").is_file()

    folders = [str(outcome.folder) for outcome in runs]
    compared = dlrun("compare", *folders)
    assert compared.code == 0, compared.err
    assert "logger" not in compared.out
    resumed = dlrun("resume", folders[1], "trainer.epochs=3", "figures=false")
    assert resumed.code == 0, resumed.err
    assert not list_events(without[0].folder)


@pytest.mark.slow
def test_a_table_of_a_resumed_run_is_that_of_an_undisturbed_one(dlrun: Callable[..., Any]) -> None:
    reference = dlrun(*QUICK, "trainer.epochs=4", "logger=csv", "hydra.run.dir=whole").folder
    short = dlrun(*QUICK, "logger=csv", HERE).folder
    # What a killed process has written after its checkpoint.
    with (short / "metrics.csv").open("a") as file:
        file.write("3,63,0.5")
    assert dlrun("resume", "run", "trainer.epochs=4").code == 0

    assert (short / "metrics.csv").read_bytes() == (reference / "metrics.csv").read_bytes()
    with (reference / "metrics.csv").open() as file:
        table = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert table == read_rows(reference)
    assert not list_events(reference)


@pytest.mark.slow
def test_a_logger_is_for_training(dlrun: Callable[..., Any]) -> None:
    dlrun(*QUICK, HERE, "logger=csv")
    for words in (("eval", "run", "logger=none"), ("export", "run", "logger.csv.x=1")):
        outcome = dlrun(*words)
        assert outcome.code == 2
        assert f"{words[2]} is for training" in outcome.err
    assert dlrun("export", "run", "format=python").code == 0


@pytest.mark.slow
def test_a_resumed_run_may_have_other_loggers(dlrun: Callable[..., Any]) -> None:
    dlrun(*QUICK, HERE, "logger=none")
    outcome = dlrun("resume", "run", "trainer.epochs=3", "logger=[tensorboard,csv]")
    assert outcome.code == 0, outcome.err
    with Path("run/metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    assert list_events(Path("run"))


@pytest.mark.slow
def test_a_logger_of_the_users_own_is_told_all_and_goes_on(dlrun: Callable[..., Any]) -> None:
    Path("mine.py").write_text(MINE)
    words = (*QUICK, HERE, "logger=csv", "+logger.mine._target_=mine.Lines")
    outcome = dlrun(*words, "data=digits", "data.limit_batches=2")
    assert outcome.code == 0, outcome.err
    calls = [json.loads(line) for line in Path("lines.txt").read_text().splitlines()]
    assert calls[0] == ["start", 1, "run", None]
    assert calls[1] == ["hyperparameters", "mlp", 0.001]
    epochs = [call[2] for call in calls if call[0] == "metrics" and call[2] is not None]
    assert epochs == [1, 2]
    assert "test/loss" in calls[-2][3]
    assert calls[-1] == ["finish", "completed", True]
    assert json.loads(Path("run/loggers.json").read_text()) == {"mine": {"starts": 1}}

    # It is code that the run names, so this command line has to permit it.
    refused = dlrun("resume", "run", "trainer.epochs=3")
    assert refused.code == 2
    assert "trusted_modules='[mine]'" in refused.err
    assert len(read_rows(Path("run"))) == 2
    Path("lines.txt").unlink()
    resumed = dlrun("resume", "run", "trainer.epochs=3", "trusted_modules=[mine]")
    assert resumed.code == 0, resumed.err
    calls = [json.loads(line) for line in Path("lines.txt").read_text().splitlines()]
    assert calls[0] == ["start", 2, "run", read_rows(Path("run"))[1]["step"]]
    assert [call[2] for call in calls if call[0] == "metrics" and call[2] is not None] == [3]


@pytest.mark.parametrize("fails_at", ["start", "hyperparameters", "metrics", "finish"])
@pytest.mark.parametrize("background", [False, True])
def test_a_logger_that_fails_costs_a_note(dlrun: Callable[..., Any], fails_at: str, background: bool) -> None:
    Path("mine.py").write_text(MINE + f"\n\nclass Other(Lines):\n    in_background = {background}\n")
    outcome = dlrun(
        *QUICK, HERE, "logger=none", "+logger.mine._target_=mine.Other", f"+logger.mine.fails_at={fails_at}"
    )
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    assert outcome.result["status"] == "completed"

    lines = [line for line in outcome.out.splitlines() if "no paper left" in line]
    told_live = [line for line in lines if not line.startswith("note:")]
    assert len(told_live) <= 1
    assert all("mine.py, line" in line for line in lines)
    noted = [note for note in outcome.result["warnings"] if note.startswith("logger mine:")]
    # After result.json only the terminal and run.log can tell.
    assert len(noted) == (fails_at != "finish")
    assert len(lines) == len(noted) + len(told_live)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["logger=tensorbord"], "did you mean logger=tensorboard?"),
        (["logger=[csv,nothing]"], "logger=nothing is not a choice; type one of"),
        (["logger=null"], "type logger=none"),
        (["logger.csv.x=1"], "there is no key logger.csv.x"),
        (["+logger.x=3"], "logger.x names no logger"),
        (["+logger.x._target_=torch.nn.Linear"], "derive a class from dlrun.Logger"),
        (["logger=csv", "+logger.csv.colour=1"], "has no setting logger.csv.colour"),
        (["logger=mlflow"], "which is not installed; type pip install 'dlrun[mlflow]'"),
        (["logger.mlflow.tracking_uri=http://x"], "mlflow (type logger=mlflow) has it"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_written(
    dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    outcome = dlrun(*QUICK, *words)
    assert outcome.code == 2
    assert sentence in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not Path("outputs").exists()


@pytest.mark.slow
def test_a_run_of_an_older_dlrun_is_resumed_with_tensorboard(dlrun: Callable[..., Any]) -> None:
    from dlrun.runs import checkpoint

    folder = dlrun(*QUICK, HERE, "logger=none").folder
    config_file = folder / ".hydra" / "config.yaml"
    config = read_yaml(config_file.read_text())
    before = hash_config(config)
    del config["logger"]
    assert hash_config(config) == before == json.loads((folder / "result.json").read_text())["config_hash"]
    config_file.write_text(dump_yaml(config))
    for path in sorted({path.resolve() for path in (folder / "checkpoints").glob("*.pt")}):
        state = checkpoint.load(path)
        del state["config"]["logger"]
        checkpoint.save(path, state)

    assert dlrun("show", "run").code == 0
    assert dlrun("eval", "run").code == 0
    resumed = dlrun("resume", "run", "trainer.epochs=3")
    assert resumed.code == 0, resumed.err
    assert list_events(folder)


@pytest.mark.slow
def test_a_damaged_state_of_loggers_is_told_and_begins_anew(dlrun: Callable[..., Any]) -> None:
    Path("mine.py").write_text(MINE)
    dlrun(*QUICK, HERE, "+logger.mine._target_=mine.Lines")
    Path("run/loggers.json").write_text('{"mine": 3}')
    resumed = dlrun("resume", "run", "trainer.epochs=3", "trusted_modules=[mine]")
    assert resumed.code == 0, resumed.err
    assert "loggers.json: mine is the number 3, not a mapping; each logger begins anew" in resumed.out
    assert json.loads(Path("run/loggers.json").read_text()) == {"mine": {"starts": 1}}
