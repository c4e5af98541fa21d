"""fp16 under the loss scaler: its ordinary skipped steps are no alarm, a run that makes no step is said."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dlrun.experiment.callbacks.diagnostics import find_overflow, find_vanishing_gradients
from dlrun.runs.tensorboard import read_scalars

FEW = ("data=blobs", "device.precision=fp16", "tracking.graph=false", "figures=false", "data.val_fraction=0")
NET = """
import math
from torch import nn

class Net(nn.Module):
    def __init__(self, spec, factor: float = 1.0):
        super().__init__()
        self.layer = nn.Linear(spec.input_size, spec.output_size)
        self.factor = factor

    def forward(self, x):
        y = self.layer(x.flatten(1))
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient * (math.inf if self.factor < 0 else self.factor))
        return y
"""


def warnings_of(outcome: Any) -> str:
    assert outcome.code == 0, outcome.err
    return "\n".join(outcome.result["warnings"])


@pytest.mark.slow
def test_the_first_steps_that_the_scaler_skips_are_no_alarm(dlrun: Callable, tmp_path: Path) -> None:
    (tmp_path / "mynet.py").write_text(NET)
    # Gradients a hundred times as large overflow in the only step of each of the first epochs.
    words = ("model._target_=mynet.Net", "+model.factor=100", "data.batch_size=4096", "trainer.epochs=3")
    outcome = dlrun(*FEW, *words, "trainer.log_every_steps=1", "hydra.run.dir=run")
    assert "inf" in str(read_scalars(tmp_path / "run")["train/grad_norm"][0])
    assert "not finite" not in warnings_of(outcome)
    assert "vanishing" not in warnings_of(outcome)


def test_a_run_whose_steps_are_all_skipped_is_told(dlrun: Callable, tmp_path: Path) -> None:
    (tmp_path / "mynet.py").write_text(NET)
    words = ("model._target_=mynet.Net", "+model.factor=-1", "data.batch_size=64", "trainer.max_steps=5")
    outcome = dlrun(*FEW, *words)
    assert "the gradients overflow in fp16" in warnings_of(outcome)
    assert "all 5 steps were skipped" in warnings_of(outcome)
    assert "device.precision=bf16" in outcome.out


def test_a_scale_that_falls_to_nothing_is_told_in_the_middle_of_a_run() -> None:
    assert find_overflow(2.0**16, 0, at_end=True) == {}
    assert find_overflow(2.0**14, 40) == {}
    assert find_overflow(2.0**14, 2) == {}
    assert "all 2 steps" in find_overflow(2.0**14, 2, at_end=True)["overflowing"]
    assert "all 27 steps" in find_overflow(2.0**-11, 27)["overflowing"]
    assert "most steps are skipped" in find_overflow(2.0**-11, 500)["overflowing"]
    assert "all 400 steps" in find_overflow(0.0, 400)["overflowing"]


@pytest.mark.slow
@pytest.mark.parametrize("clip", ["null", "1000"])
@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_the_logged_norm_is_of_the_unscaled_gradient(
    dlrun: Callable, tmp_path: Path, optimizer: str, clip: str
) -> None:
    (tmp_path / "mynet.py").write_text(NET)
    words = ("model._target_=mynet.Net", f"optimizer={optimizer}", "trainer.max_steps=1", "trainer.log_every_steps=1")
    more = (f"trainer.grad_clip_norm={clip}", "data.batch_size=64")
    norms = []
    for precision in ("fp16", "fp32"):
        folder = f"run_{precision}"
        outcome = dlrun(*FEW, *words, *more, f"device.precision={precision}", f"hydra.run.dir={folder}")
        assert outcome.code == 0, outcome.err
        norms.append(float(read_scalars(tmp_path / folder)["train/grad_norm"][0][1]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)


def test_a_gradient_of_a_skipped_step_is_no_sign_of_vanishing() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    for weight in net.parameters():
        weight.grad = torch.ones_like(weight)
    net[2].weight.grad = torch.full((2, 2), math.inf)
    assert find_vanishing_gradients(net) == {}
