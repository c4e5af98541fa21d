"""`format=json` and `format=csv` of every list and table: data alone on stdout, with the same keys each time."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.cli.list_runs import RUN_COLUMNS

QUICK = ("data=blobs", "trainer.epochs=1", "tracking.graph=false", "figures=false")
LONG = "x" * 150


@pytest.fixture
def runs(dlrun: Callable[..., Any]) -> list[Path]:
    """A run with labels, and one of another learning rate."""
    one = dlrun(*QUICK, f"run.tags=[{LONG}]", "run.name='=1+1'", "hydra.run.dir=runs/one")
    two = dlrun(*QUICK, "optimizer.lr=0.5", "hydra.run.dir=runs/two")
    assert (one.code, two.code) == (0, 0)
    return [Path("runs/one"), Path("runs/two")]


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.slow
@pytest.mark.usefixtures("runs")
def test_runs(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("ls", "runs", "runs", "format=json", "sort=optimizer.lr")
    assert (outcome.code, outcome.err) == (0, "")
    one, two = json.loads(outcome.out)
    assert tuple(one) == tuple(two) == RUN_COLUMNS
    assert (one["run"], one["name"], one["tags"], one["epochs"]) == ("runs/one", "=1+1", [LONG], 1)
    assert two["tags"] == []
    result = json.loads(Path("runs/one/result.json").read_text())
    assert one["metrics"] == result["metrics"]
    assert one["best_value"] == result["best"]["value"]

    rows = read_csv(dlrun("ls", "runs", "runs", "--format", "csv", "sort=optimizer.lr").out)
    assert [float(row["train/loss"]) for row in rows] == [one["metrics"]["train/loss"], two["metrics"]["train/loss"]]
    assert (rows[0]["name"], json.loads(rows[0]["tags"])) == ("'=1+1", [LONG])


def test_no_runs_are_an_empty_list(dlrun: Callable[..., Any]) -> None:
    assert dlrun("ls", "runs", "format=json").out == "[]\n"
    assert dlrun("ls", "runs", "format=csv").out.startswith("run,name,tags,")


@pytest.mark.slow
def test_jobs_of_a_sweep_are_listed_each(dlrun: Callable[..., Any]) -> None:
    dlrun("-m", *QUICK, "seed=1,2")
    jobs = json.loads(dlrun("ls", "runs", "format=json").out)
    assert len(jobs) == 2
    assert {Path(job["run"]).parent for job in jobs} == {Path(jobs[0]["sweep"])}


def test_groups(dlrun: Callable[..., Any]) -> None:
    rows = json.loads(dlrun("ls", "model", "format=json").out)
    assert {"group": "model", "option": "mlp"}.items() <= next(row for row in rows if row["option"] == "mlp").items()
    every = read_csv(dlrun("ls", "format=csv").out)
    assert {row["group"] for row in every} >= {"model", "data", "optimizer"}
    assert [row["option"] for row in every if row["group"] == "model"] == [row["option"] for row in rows]
    assert dlrun("ls", "modle", "format=json").code == 2


@pytest.mark.slow
@pytest.mark.usefixtures("runs")
def test_differences(dlrun: Callable[..., Any]) -> None:
    data = json.loads(dlrun("diff", "runs/one", "runs/two", "format=json").out)
    assert {"key": "optimizer.lr", "a": 0.001, "b": 0.5} in data["config"]
    loss = next(row for row in data["result"] if row["key"] == "train/loss")
    assert loss["difference"] == loss["b"] - loss["a"]
    assert data["weights"]

    rows = read_csv(dlrun("diff", "runs/one", "runs/two", "format=csv").out)
    (rate,) = [row for row in rows if row["key"] == "optimizer.lr"]
    assert rate == {"section": "config", "key": "optimizer.lr", "a": "0.001", "b": "0.5", "difference": ""}


@pytest.mark.slow
@pytest.mark.usefixtures("runs")
def test_a_comparison(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("compare", "runs", "format=json")
    assert (outcome.code, outcome.err) == (0, "")
    data = json.loads(outcome.out)
    (ranking,) = data["rankings"]
    assert {setting["values"]["optimizer.lr"] for setting in ranking["settings"]} == {0.001, 0.5}
    assert {setting["n"] for setting in ranking["settings"]} == {1}
    assert {setting["std"] for setting in ranking["settings"]} == {None}

    csv_text = dlrun("compare", "runs", "--format", "csv").out
    assert not Path("outputs/comparisons").exists()
    assert dlrun("compare", "runs").code == 0
    (written,) = Path("outputs/comparisons").rglob("comparison.csv")
    assert csv_text == written.read_text()


@pytest.mark.parametrize("words", [("ls", "runs"), ("ls", "model"), ("diff", "a", "b"), ("compare", "x")])
def test_a_wrong_format_is_a_sentence(dlrun: Callable[..., Any], words: tuple[str, ...]) -> None:
    outcome = dlrun(*words, "format=jsn")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("dlrun: format=jsn is not a format; did you mean format=json")
