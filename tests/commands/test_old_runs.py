"""Run folders of an earlier dlrun (tests/golden/write_old_runs.py) are read, resumed and used as before."""

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrun.runs.checkpoint import load

pytestmark = pytest.mark.usefixtures("comparison_without_pictures")
ARCHIVE = Path(__file__).parents[1] / "golden" / "old_runs.tar.xz"
NAMES = ("mlp", "cosine", "gru", "scratch", "exhaustive", "average", "full", "table")
IN_FAST_SUITE = ("gru", "scratch", "full")
SOME = [name if name in IN_FAST_SUITE else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
INPUTS = {"gru": ("Kenda",), "table": ("data/rows.csv",)}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, unpacked once."""
    folder = tmp_path_factory.mktemp("old_runs")
    with tarfile.open(ARCHIVE) as file:
        file.extractall(folder, filter="data")
    return folder


@pytest.fixture
def runs(archive: Path, tmp_path: Path, dlrun: Callable[..., Any]) -> Path:
    """A copy of it as the working directory."""
    shutil.copytree(archive, tmp_path, dirs_exist_ok=True)
    return tmp_path


def read_result(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_a_killed_run_is_resumed_to_the_end_it_had_then(runs: Path, name: str, dlrun: Callable[..., Any]) -> None:
    assert dlrun("resume", f"killed/{name}").code == 0

    reference, resumed = runs / "whole" / name, runs / "killed" / name
    assert (resumed / "metrics.jsonl").read_text().count("\n") == (reference / "metrics.jsonl").read_text().count("\n")
    expected = read_result(reference)
    result = read_result(resumed)
    assert result["config_hash"] == expected["config_hash"]
    assert result["metrics"] == pytest.approx(expected["metrics"], rel=1e-9)

    # Another processor may round otherwise, so the weights are compared as numbers.
    weights = load(resumed / "checkpoints" / "last.pt")["model"]
    for key, value in load(reference / "checkpoints" / "last.pt")["model"].items():
        torch.testing.assert_close(weights[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SOME)
def test_a_finished_run_is_evaluated_as_it_was_tested(runs: Path, name: str, dlrun: Callable[..., Any]) -> None:
    expected = read_result(runs / "whole" / name)["metrics"]
    test_metrics = {key: value for key, value in expected.items() if key.startswith("test/")}

    evaluation = dlrun("eval", f"whole/{name}", "figures=false")
    assert evaluation.code == 0
    if test_metrics:
        metrics = json.loads(next((runs / "whole" / name / "eval").rglob("*.json")).read_text())["metrics"]
        assert {k: v for k, v in metrics.items() if k in test_metrics} == pytest.approx(test_metrics, rel=1e-9)


def test_a_finished_run_has_nothing_left_to_do(runs: Path, dlrun: Callable[..., Any]) -> None:
    assert "is completed; to train longer type" in dlrun("resume", "whole/mlp").out
    assert dlrun("resume", "whole/mlp", "trainer.epochs=5").code == 0
    assert (runs / "whole" / "mlp" / "metrics.jsonl").read_text().count("\n") == 5


@pytest.mark.parametrize("name", INPUTS)
def test_a_finished_run_predicts(runs: Path, name: str, dlrun: Callable[..., Any]) -> None:
    assert dlrun("predict", f"whole/{name}", *INPUTS[name]).code == 0


@pytest.mark.slow
def test_finished_runs_are_listed_compared_and_exported(runs: Path, dlrun: Callable[..., Any]) -> None:
    assert dlrun("compare", "whole").code == 0
    assert dlrun("diff", "whole/mlp", "whole/cosine").code == 0
    assert "damaged" not in dlrun("ls", "runs", "whole").out
    assert dlrun("export", "whole/mlp", "format=python").code == 0


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_the_jobs_that_are_left(runs: Path, dlrun: Callable[..., Any]) -> None:
    finished = read_result(runs / "sweep" / "0_optimizer.lr=0.01")["weights_sha256"]
    assert dlrun("resume", "sweep").code == 0

    folders = sorted(path for path in (runs / "sweep").iterdir() if (path / "result.json").is_file())
    results = [read_result(folder) for folder in folders]
    assert [result["status"] for result in results] == ["completed"] * 4
    assert results[0]["weights_sha256"] == finished
