"""What a run has not imported when it makes its first step, as it does not need it then."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from dlrun.cli import main

SPY = """
import gc, sys, torch

class Spy(torch.optim.SGD):
    def step(self, closure=None):
        if not getattr(Spy, "told", False):
            Spy.told = True
            print("modules", *sorted(sys.modules))
            print("collector", gc.isenabled(), gc.get_freeze_count() > 100_000)
        return super().step(closure)
"""


@pytest.mark.slow
def test_the_first_step_comes_before_what_is_needed_later(tmp_path: Path) -> None:
    (tmp_path / "spy.py").write_text(SPY)
    words = ["data=regression", "model=linear", "optimizer=sgd", "optimizer._target_=spy.Spy", "trainer.epochs=1"]
    start = [sys.executable, "-m", "dlrun", *words, "tracking.graph=false", "figures=false"]
    outcome = subprocess.run(start, capture_output=True, text=True, cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    line = next(line for line in outcome.stdout.splitlines() if line.startswith("modules "))
    there = set(line.split()[1:])
    assert {"torch", "dlrun.engine.trainer", "sklearn.datasets"} <= there
    # Not pandas: scikit-learn imports it wherever it is installed. That dlrun does not, import-linter tells.
    later = {
        "matplotlib",
        "PIL",
        "torchvision",
        "pooch",
        "sklearn.metrics",
        "dlrun.engine.acceleration.cuda_graph",
    }
    later |= {"dlrun.experiment.follower", "dlrun.sweep.runner", "onnx", "safetensors", "lightning"}
    assert there & later == set()
    assert "collector True True" in outcome.stdout.splitlines()  # it looks for garbage, not among what was imported
    assert outcome.stderr == ""  # at its end too, where libraries look for what is left of theirs


@pytest.mark.slow
def test_a_process_that_has_more_in_memory_keeps_its_collector_as_it_is() -> None:
    import torch  # noqa: F401

    before = gc.get_freeze_count()
    with main.skip_garbage_collection():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before
