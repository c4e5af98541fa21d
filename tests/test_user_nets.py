"""Nets that are not like dlrun's own: extra state, lazy layers, and parameters made in `forward`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

QUIET = ("data=blobs", "trainer.epochs=2", "data.limit_batches=3", "tracking.graph=false", "figures=false")
SOURCE = """
import torch
from torch import nn

class Late(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.layer = nn.Linear(spec.input_size, spec.output_size)

    def forward(self, x):
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones(1))
        return self.layer(x) * self.scale

class Counting(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.layer = nn.Linear(spec.input_size, spec.output_size)
        self.steps = 0

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.steps += 1
        return self.layer(x) / (1 + 0.01 * self.steps)

    def get_extra_state(self):
        return {"steps": self.steps}

    def set_extra_state(self, state):
        self.steps = state["steps"]

class Lazy(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.first = nn.LazyLinear(5)
        self.norm = nn.LazyBatchNorm1d()
        self.last = nn.LazyLinear(spec.output_size)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x))))

class Unknowable(Lazy):
    def forward(self, x, y):
        return super().forward(x)
"""


@pytest.fixture
def nets(tmp_path: Path, dlrun: Callable[..., Any]) -> Path:
    """The module that the command lines name, in the working directory."""
    (tmp_path / "user_nets.py").write_text(SOURCE)
    return tmp_path


def test_parameters_made_in_forward_are_refused(nets: Path, dlrun: Callable[..., Any]) -> None:
    done = dlrun(*QUIET, "model._target_=user_nets.Late")
    assert done.code == 2
    assert "the model makes scale in forward" in done.err
    assert "__init__" in done.err


def test_extra_state_is_saved_and_comes_back(nets: Path, dlrun: Callable[..., Any]) -> None:
    net = "model._target_=user_nets.Counting"
    own = "trusted_modules=[user_nets]"
    whole = dlrun(*QUIET, net, "trainer.epochs=4", "hydra.run.dir=whole")
    assert whole.code == 0, whole.err
    assert dlrun(*QUIET, net, "hydra.run.dir=half").code == 0
    resumed = dlrun("resume", "half", own, "trainer.epochs=4")
    assert resumed.code == 0, resumed.err

    results = [json.loads(Path(name, "result.json").read_text()) for name in ("whole", "half")]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
    assert Path("whole/metrics.jsonl").read_text() == Path("half/metrics.jsonl").read_text()
    assert dlrun("eval", "half", own, "figures=false").code == 0
    assert dlrun("init_from=half", *QUIET, net).code == 0


def test_lazy_layers_train_as_those_whose_sizes_are_given(nets: Path, dlrun: Callable[..., Any]) -> None:
    net = "model._target_=user_nets.Lazy"
    own = "trusted_modules=[user_nets]"
    words = (*QUIET, net, "trainer.ema_decay=0.9", "hydra.run.dir=lazy")
    trained = dlrun(*words)
    assert trained.code == 0, trained.err
    assert trained.rows[-1]["train/loss"] < trained.rows[0]["train/loss"]
    assert dlrun("resume", "lazy", own, "trainer.epochs=3").code == 0
    evaluation = dlrun("eval", "lazy", own, "figures=false")
    assert evaluation.code == 0, evaluation.err


def test_lazy_layers_that_cannot_be_known_are_a_sentence(nets: Path, dlrun: Callable[..., Any]) -> None:
    done = dlrun(*QUIET, "model._target_=user_nets.Unknowable")
    assert done.code == 2
    assert "the sizes of first.weight" in done.err
    assert "missing 1 required positional argument" in done.err


@pytest.mark.slow
def test_the_rates_of_a_net_with_extra_state_are_tried(nets: Path, dlrun: Callable[..., Any]) -> None:
    done = dlrun("check", "lr", "data=blobs", "model._target_=user_nets.Counting")
    assert done.code == 0, done.err
