"""An exception of the user's own code is one sentence with its file and line: before training, and in it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dlrun.core import user_code

QUIET = ("data=blobs", "trainer.max_steps=2", "tracking.graph=false", "figures=false")
SOURCE = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.layer = nn.Linear(spec.input_size, spec.output_size)
    def forward(self, x):
        return self.layer(x.flatten(1))

class Constructor(Net):
    def __init__(self, spec):
        super().__init__(spec)
        {}["constructor"]

class Forward(Net):
    def forward(self, x):
        {}["forward"]

class Training(Net):
    def forward(self, x):
        if torch.is_grad_enabled():
            {}["training"]
        return super().forward(x)

class Grown(Net):
    def __init__(self, spec):
        super().__init__(spec)
        self.register_buffer("seen", torch.zeros(0))
    def forward(self, x):
        if self.training:
            self.seen = torch.cat([self.seen, x.detach().mean().reshape(1)])
        return super().forward(x)

def loss(outputs, targets):
    {}["loss"]

def number(outputs, targets):
    return 1.0

class Optimizer(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        {}["optimizer"]

class Scheduler(torch.optim.lr_scheduler.LRScheduler):
    def get_lr(self):
        {}["scheduler"]

class Later(torch.optim.lr_scheduler.LRScheduler):
    def get_lr(self):
        return [0.1] if self.last_epoch == 0 else {}["later"]

def data():
    {}["data"]
"""
LINES = SOURCE.splitlines()


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path) -> None:
    (tmp_path / "ownnet.py").write_text(SOURCE)


def line_of(key: str) -> int:
    return next(i for i, line in enumerate(LINES, 1) if f'["{key}"]' in line)


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("constructor", "model._target_=ownnet.Constructor"),
        ("forward", "model._target_=ownnet.Forward"),
        ("loss", "task.loss=ownnet.loss"),
        ("optimizer", "optimizer._target_=ownnet.Optimizer"),
        ("scheduler", "scheduler._target_=ownnet.Scheduler"),
        ("later", "scheduler._target_=ownnet.Later"),
        ("data", "data._target_=ownnet.data"),
    ],
)
def test_an_exception_before_training_names_its_line(dlrun: Callable, key: str, word: str) -> None:
    outcome = dlrun(*QUIET, word)
    assert outcome.code == 2
    assert f"ownnet.py, line {line_of(key)}" in outcome.err
    assert f"'{key}'" in outcome.err
    assert "Traceback" not in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_v_shows_the_traceback(dlrun: Callable) -> None:
    assert "Traceback" in dlrun(*QUIET, "model._target_=ownnet.Forward", "-v").err


def test_without_the_preflight_the_failing_run_names_the_line(dlrun: Callable) -> None:
    outcome = dlrun(*QUIET, "model._target_=ownnet.Training")
    assert outcome.code == 1
    assert f"ownnet.py, line {line_of('training')}: KeyError: 'training'" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_loss_that_is_no_tensor_is_a_sentence(dlrun: Callable) -> None:
    outcome = dlrun(*QUIET, "task.loss=ownnet.number")
    assert outcome.code == 2
    assert "task.loss=ownnet.number must return a tensor, not float" in outcome.err


def test_a_module_that_cannot_be_imported_names_the_line(dlrun: Callable, tmp_path: Path) -> None:
    (tmp_path / "ownbroken.py").write_text("x = 1\ny = {}['gone']\n")
    outcome = dlrun(*QUIET, "model._target_=ownbroken.Net")
    assert outcome.code == 2
    assert "ownbroken.py, line 2" in outcome.err


def test_a_buffer_that_grows_in_training_passes_the_preflight(dlrun: Callable) -> None:
    assert dlrun(*QUIET, "model._target_=ownnet.Grown").code == 0


def test_what_no_line_of_the_users_raised_is_not_explained() -> None:
    assert user_code.explain(KeyError("x")) is None
    with pytest.raises(ValueError, match="no number") as caught:
        int("no number")
    explained = user_code.explain(caught.value)
    assert explained is not None
    assert f"test_user_code.py, line {caught.tb.tb_lineno}: ValueError: " in explained


@pytest.mark.parametrize(
    ("error", "quoted"),
    [
        (ValueError("too big.\nat line 3"), "too big"),
        (ValueError("sizes:"), "sizes"),
        (AssertionError(), "no message"),
    ],
)
def test_the_first_clause_can_stand_within_a_sentence(error: Exception, quoted: str) -> None:
    assert user_code.get_first_clause(error) == quoted
