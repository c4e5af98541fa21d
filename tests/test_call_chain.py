"""How many frames of dlrun a training step runs in, seen from an optimizer."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dlrun as package

SPY = """
import traceback
import torch

class Spy(torch.optim.SGD):
    stacks = []
    def step(self, closure=None):
        self.stacks.append([(f.filename, f.name) for f in traceback.extract_stack()])
        return super().step(closure)
"""


def test_four_frames_lead_from_the_command_to_the_step(
    dlrun: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stack_spy.py").write_text(SPY)
    words = ("data=blobs", "optimizer=sgd", "optimizer._target_=stack_spy.Spy", "trainer.epochs=1")
    assert dlrun(*words, "tracking.graph=false", "figures=false").code == 0
    spy = sys.modules["stack_spy"]
    monkeypatch.delitem(sys.modules, "stack_spy")
    folder = str(Path(str(package.__file__)).parent)
    chains = {tuple(name for file, name in stack if file.startswith(folder)) for stack in spy.Spy.stacks}
    chains = {chain for chain in chains if "fit" in chain}  # the look before training makes a step of its own
    assert chains == {("main", "run", "fit", "train_epoch")}
