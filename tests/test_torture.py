"""A short torture, and that it would see a difference. The whole one is `make torture`."""

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parent / "torture"


@pytest.fixture(scope="module")
def comparison() -> ModuleType:
    spec = importlib.util.spec_from_file_location("comparison", FOLDER / "comparison.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_runs_killed_at_any_moment_end_in_the_bits_of_those_left_alone(python: Callable[..., Any]) -> None:
    """A run of each model; tests/commands/test_resume.py kills runs of every other kind."""
    words = ["--runs", "3", "--commands", "0", "--seed", "1"]
    outcome = python(str(FOLDER / "torture.py"), *words, timeout=900)
    assert outcome.code == 0, outcome.out + outcome.err
    assert " 0 differences" in outcome.out
    match = re.search(r"(\d+) kills, (\d+) or more a run", outcome.out)
    assert match is not None, outcome.out
    assert int(match[1]) >= 9
    assert int(match[2]) >= 3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_sweeps_killed_at_any_moment_end_in_the_same_table_and_leave_no_process(python: Callable[..., Any]) -> None:
    words = ["--rounds", "2", "--seed", "3", "--epochs", "10", "--commands", "0"]
    outcome = python(str(FOLDER / "sweep_torture.py"), *words, timeout=900)
    assert outcome.code == 0, outcome.out + outcome.err
    match = re.findall(r"sweep.jobs=(\d): 2 sweeps, Counts\(kills=(\d).*orphans=0, differences=0\)", outcome.out)
    assert [jobs for jobs, _ in match] == ["1", "2"], outcome.out
    assert all(int(kills) >= 2 for _, kills in match)


@pytest.mark.slow
def test_the_comparison_sees_what_differs(dlrun: Callable[..., Any], comparison: ModuleType) -> None:
    words = ("data=blobs", "data.val_fraction=0.2", "trainer.epochs=2", "trainer.log_every_steps=1", "figures=false")
    one, two = Path("one"), Path("two")
    assert dlrun(*words, "hydra.run.dir=one", "tracking.graph=false").code == 0
    shutil.copytree(one, two)
    assert comparison.differences(one, two) == []
    rows = (two / "metrics.jsonl").read_text()
    (two / "metrics.jsonl").write_text(rows.replace("1", "2", 1))
    assert comparison.differences(one, two) == ["metrics.jsonl"]
    (two / "metrics.jsonl").write_text(rows)
    result = json.loads((two / "result.json").read_text())
    (two / "result.json").write_text(json.dumps(result | {"weights_sha256": "0", "train_seconds": 0.0}))
    assert len(comparison.differences(one, two)) == 1
    (two / "result.json").write_text(json.dumps(result))
    for events in two.glob("events.out.tfevents.*.end"):
        events.unlink()
    assert all(line.startswith("scalars of") for line in comparison.differences(one, two))
    assert comparison.differences(one, two)
    shutil.rmtree(two)
    shutil.copytree(one, two)
    state = torch.load(two / "checkpoints" / "last.pt", weights_only=True)
    next(iter(state["model"].values())).view(-1)[0] += 1e-7
    (two / "checkpoints" / "last.pt").unlink()
    torch.save(state, two / "checkpoints" / "last.pt")
    assert comparison.differences(one, two) == ["last.pt: weights"]
