"""Steps without torch's wrapper are torch's steps, and whatever is hooked in is called."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dlrun.engine.optim import direct

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1),
}


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def train(make: Callable[[Any], Any], zero_grad: Callable[[Any], None], step: Callable[[Any], None]) -> list[float]:
    net = make_net()
    optimizer = make(net.parameters())
    draw = torch.Generator().manual_seed(1)
    for _ in range(5):
        zero_grad(optimizer)
        net(torch.randn(8, 3, generator=draw)).square().mean().backward()
        step(optimizer)
    return [number for parameter in net.parameters() for number in parameter.flatten().tolist()]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_torch_to_the_bit(name: str) -> None:
    make = OPTIMIZERS[name]
    torchs = train(make, lambda optimizer: optimizer.zero_grad(), lambda optimizer: optimizer.step())
    assert train(make, direct.zero_grad, lambda optimizer: direct.get_step(optimizer)()) == torchs


def test_the_wrapper_is_left_out_where_nothing_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = torch.optim.SGD(make_net().parameters(), lr=0.1)
    monkeypatch.setattr(torch.autograd.profiler, "record_function", lambda name: pytest.fail(name))
    direct.zero_grad(optimizer)
    direct.get_step(optimizer)()


@pytest.mark.parametrize("where", ["before", "after", "all"])
def test_hooks_are_called(where: str) -> None:
    optimizer = torch.optim.SGD(make_net().parameters(), lr=0.1)
    calls: list[str] = []
    register: Callable[..., Any] = {
        "before": optimizer.register_step_pre_hook,
        "after": optimizer.register_step_post_hook,
        "all": register_optimizer_step_pre_hook,
    }[where]
    handle = register(lambda *_: calls.append(where))
    try:
        direct.get_step(optimizer)()
        assert calls == [where]
    finally:
        handle.remove()
    direct.get_step(optimizer)()
    assert calls == [where]


def test_what_a_user_overrides_is_called() -> None:
    calls: list[str] = []

    class Own(torch.optim.SGD):
        def zero_grad(self, set_to_none: bool = True) -> None:
            calls.append("zero_grad")

        def step(self, closure: Any = None) -> Any:
            calls.append("step")
            return super().step(closure)

    optimizer = Own(make_net().parameters(), lr=0.1)
    direct.zero_grad(optimizer)
    direct.get_step(optimizer)()
    assert calls == ["zero_grad", "step"]

    plain = torch.optim.SGD(make_net().parameters(), lr=0.1)
    plain.step = lambda: calls.append("attribute")  # type: ignore[method-assign, assignment]
    direct.get_step(plain)()
    assert calls[2:] == ["attribute"]


def test_a_scheduler_of_torch_sees_the_steps(recwarn: pytest.WarningsRecorder) -> None:
    optimizer = torch.optim.SGD(make_net().parameters(), lr=0.1)
    scheduler = StepLR(optimizer, 1)
    direct.get_step(optimizer)()
    # It warns where no step was made before.
    scheduler.step()
    assert not recwarn.list


def test_a_profiler_sees_both() -> None:
    optimizer = torch.optim.SGD(make_net().parameters(), lr=0.1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        direct.zero_grad(optimizer)
        direct.get_step(optimizer)()
    names = {event.key for event in profile.key_averages()}
    assert {"Optimizer.zero_grad#SGD.zero_grad", "Optimizer.step#SGD.step"} <= names


@pytest.mark.slow
def test_a_training_that_compiles_nothing_does_not_import_the_compiler(tmp_path: Path) -> None:
    words = ["data=blobs", "optimizer=adam", "scheduler=step", "trainer.epochs=1", f"run.name={tmp_path.name}"]
    code = "import sys; from dlrun.cli.main import main; print(main(), 'torch._dynamo' in sys.modules)"
    end = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
    assert end.stdout.splitlines()[-1] == "0 False", end.stderr


def test_methods_hidden_from_the_compiler_do_the_same() -> None:
    direct.spare_compiler_import()
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    other = torch.optim.SGD(make_net().parameters(), lr=0.2)
    other.load_state_dict(optimizer.state_dict())
    assert str(other.state_dict()) == str(optimizer.state_dict())
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in net.parameters())
