"""`dlrun show RUN`: one run in words and as data."""

import csv
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.cli.list_runs import RUN_COLUMNS

QUICK = ("data=blobs", "model=mlp", "trainer.epochs=2", "tracking.graph=false", "figures=false")
LABELS = ("run.name=base line", "run.tags=[a, b]", "run.notes='why not'")


@pytest.fixture
def run(dlrun: Callable[..., Any]) -> Path:
    outcome = dlrun(*QUICK, *LABELS, "optimizer=sgd", "optimizer.lr=0.5", "hydra.run.dir=runs/my run")
    assert outcome.code == 0, outcome.err
    return Path("runs/my run")


def read_lines(text: str) -> dict[str, str]:
    """The lines of names and values."""
    return {line.partition("  ")[0].strip(): line.partition("  ")[2].strip() for line in text.splitlines()}


@pytest.mark.slow
def test_a_run_in_words(run: Path, dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("show", str(run))
    assert (outcome.code, outcome.err) == (0, "")
    lines = read_lines(outcome.out)
    assert (lines["name"], lines["tags"], lines["notes"]) == ("base line", "a, b", "why not")
    assert lines["status"].startswith("completed, 2 epochs, ")
    assert lines["choices"].startswith("data=blobs model=mlp optimizer=sgd")
    assert shlex.split(lines["typed"])[-1] == "optimizer.lr=0.5"

    rows = [line.split() for line in outcome.out.splitlines()]
    assert ["optimizer.lr", "0.5", "0.001", "typed"] in rows
    assert ["data.spread", "1.0", "-", "data=blobs"] in rows
    assert not any(row[:1] == ["optimizer.momentum.x"] for row in rows)
    assert any(row[:1] == ["train/loss"] and len(row) == 4 for row in rows)
    assert any(line.startswith(" checkpoints/best.pt = last.pt = step_") for line in outcome.out.splitlines())


@pytest.mark.slow
def test_the_commands_can_be_pasted(run: Path, dlrun: Callable[..., Any]) -> None:
    lines = read_lines(dlrun("show", str(run)).out)
    for name in ("evaluate", "continue", "repeat"):
        words = shlex.split(lines[name])[1:]
        assert str(run) in words
        outcome = dlrun(*words)
        assert outcome.code == 0, (name, outcome.err)
    predict = shlex.split(lines["predict"].replace("INPUT", "0.5,0.5"))[1:]
    assert dlrun(*predict).code == 0


def test_a_run_as_data(run: Path, dlrun: Callable[..., Any]) -> None:
    result = json.loads((run / "result.json").read_text())
    data = json.loads(dlrun("show", str(run), "--format", "json").out)
    assert set(RUN_COLUMNS) <= set(data)
    assert data["last_epoch_metrics"]["train/loss"] == result["metrics"]["train/loss"]
    assert {"key": "optimizer.lr", "value": 0.5, "default": 0.001, "set_by": "typed"} in data["settings"]
    sizes = {file["name"]: file["bytes"] for file in data["files"]}
    assert sizes["result.json"] == (run / "result.json").stat().st_size

    rows = csv.reader(io.StringIO(dlrun("show", str(run), "format=csv").out))
    values = dict(rows)
    assert float(values["metrics.train/loss"]) == result["metrics"]["train/loss"]


def test_an_interrupted_run_is_resumed_by_what_is_shown(run: Path, dlrun: Callable[..., Any]) -> None:
    (run / "result.json").unlink()
    (run / "checkpoints" / "last.pt").unlink()
    lines = read_lines(dlrun("show", str(run)).out)
    assert lines["status"].startswith("interrupted, 2 epochs")
    assert shlex.split(lines["resume"]) == ["dlrun", "resume", str(run)]
    assert "continue" not in lines


def test_a_damaged_run_is_shown_as_damaged(run: Path, dlrun: Callable[..., Any]) -> None:
    (run / "result.json").write_text("{")
    outcome = dlrun("show", str(run))
    assert outcome.code == 0
    assert read_lines(outcome.out)["status"].startswith("damaged")
    assert f"damaged: {run}/result.json: " in outcome.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "dlrun show takes one run folder; type dlrun show outputs/"),
        (["a", "b"], "dlrun show takes one run folder; leave out b"),
        (["nowhere"], "nowhere does not exist; dlrun show takes a run folder"),
        (["."], ". holds no run"),
        (["file"], "file is a file"),
        (["sweep"], "sweep is a sweep, and dlrun show takes one run; dlrun ls runs sweep lists its runs"),
    ],
)
def test_what_is_no_run(dlrun: Callable[..., Any], tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.jsonl").touch()
    outcome = dlrun("show", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err


@pytest.mark.slow
def test_it_fits_80_columns_and_imports_no_torch(run: Path, tmp_path: Path) -> None:
    code = "import sys; from dlrun.cli.main import main; c = main(); assert 'torch' not in sys.modules; sys.exit(c)"
    words = [sys.executable, "-c", code, "show", str(run)]
    outcome = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "COLUMNS": "80"})
    assert outcome.returncode == 0, outcome.stderr
    tables = [line for line in outcome.stdout.splitlines() if line.startswith((" ", "─"))]
    assert max(map(len, tables)) <= 80
