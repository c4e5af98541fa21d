"""A net is stacked only if all its members compute what they would alone: nets of users, one by one."""

import copy
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.data.spec import DataSpec
from dlrun.engine.device import get_rng_state
from dlrun.engine.logged_values import log
from dlrun.engine.stack import layers
from dlrun.engine.stack.comparison import compare_with_alone
from dlrun.engine.stack.layers import StackedElementwise
from dlrun.engine.stack.trainer import find_obstacle
from dlrun.models.scratch import ScratchMLP


def read_nets(name: str) -> dict[str, Any]:
    """The nets of a file that other tests copy into the folder of a user."""
    module = ModuleType(name)
    path = Path(__file__).parents[2] / f"{name}.py"
    exec(compile(path.read_text(), str(path), "exec"), vars(module))
    return {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == name
    }


class Base(nn.Module):
    """A net that torch.func computes; derived classes add what it may not."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.first = nn.Linear(spec.input_size, 4)
        self.last = nn.Linear(4, spec.output_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.change(torch.tanh(self.first(x))))  # type: ignore[no-any-return]

    def change(self, hidden: Tensor) -> Tensor:
        return hidden


class FunctionalDropout(Base):
    def change(self, hidden: Tensor) -> Tensor:
        return F.dropout(hidden, 0.5, self.training)


class Noisy(Base):
    def change(self, hidden: Tensor) -> Tensor:
        return hidden + 0.1 * torch.randn_like(hidden) if self.training else hidden


class PythonNoise(Base):
    def change(self, hidden: Tensor) -> Tensor:
        return hidden * random.random() if self.training else hidden


class NumpyNoise(Base):
    def change(self, hidden: Tensor) -> Tensor:
        return hidden * float(np.random.rand()) if self.training else hidden


class Branching(Base):
    def change(self, hidden: Tensor) -> Tensor:
        return hidden if hidden.sum() > 0 else 2 * hidden


class Masked(Base):
    """Its shapes depend on the numbers."""

    def change(self, hidden: Tensor) -> Tensor:
        changed = hidden.clone()
        changed[hidden > 0] *= 2
        return changed


class Reading(Base):
    def change(self, hidden: Tensor) -> Tensor:
        return hidden * hidden.max().item()


class Logging(Base):
    def change(self, hidden: Tensor) -> Tensor:
        log("size", hidden.abs().mean())
        return hidden


class LoggingNothing(Base):
    def change(self, hidden: Tensor) -> Tensor:
        log("one", 1.0)
        return hidden


class Counting(Base):
    calls = 0

    def change(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        return hidden / self.calls


class Remembering(Base):
    def change(self, hidden: Tensor) -> Tensor:
        self.hidden = hidden
        return hidden


class ReplacedBuffer(Base):
    mean: Tensor

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.register_buffer("mean", torch.zeros(4))

    def change(self, hidden: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * hidden.detach().mean(0)
        return hidden - self.mean


class UpdatedBuffer(ReplacedBuffer):
    def change(self, hidden: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(hidden.detach().mean(0), 0.1)
        return hidden - self.mean


class DroppedTwice(Base):
    """One dropout layer in two places."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.one = nn.Dropout(0.4)
        self.other = self.one

    def change(self, hidden: Tensor) -> Tensor:
        return self.other(F.relu(self.one(hidden)))  # type: ignore[no-any-return]


class UsedTwice(Base):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.middle = nn.Linear(4, 4)

    def change(self, hidden: Tensor) -> Tensor:
        return self.middle(torch.tanh(self.middle(hidden)))  # type: ignore[no-any-return]


class Unused(Base):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.never = nn.Linear(4, 4)


class Attention(Base):
    """Attention among parts of the hidden layer, with dropout inside of torch's function."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True)

    def change(self, hidden: Tensor) -> Tensor:
        x = hidden.unsqueeze(1)
        return self.attention(x, x, x, need_weights=False)[0].squeeze(1)  # type: ignore[no-any-return]


class Square(torch.autograd.Function):
    """Without a rule for vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * ctx.saved_tensors[0] * gradient


class OwnFunction(Base):
    def change(self, hidden: Tensor) -> Tensor:
        return Square.apply(hidden)  # type: ignore[no-any-return]


class InPlaceInput(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


class Normalized(Base):
    norm: type[nn.Module] = nn.BatchNorm1d

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.between = self.norm(4)

    def change(self, hidden: Tensor) -> Tensor:
        return self.between(hidden)  # type: ignore[no-any-return]


class MeanOfAll(Normalized):
    @staticmethod
    def norm(size: int) -> nn.Module:  # type: ignore[override]
        return nn.BatchNorm1d(size, momentum=None)


class Grouped(Normalized):
    @staticmethod
    def norm(size: int) -> nn.Module:  # type: ignore[override]
        return nn.GroupNorm(2, size)


class AlphaDropped(Normalized):
    @staticmethod
    def norm(size: int) -> nn.Module:  # type: ignore[override]
        return nn.AlphaDropout(0.3)


class Dropped(Normalized):
    @staticmethod
    def norm(size: int) -> nn.Module:  # type: ignore[override]
        return nn.Dropout(0.3)


class DroppedInPlace(Normalized):
    @staticmethod
    def norm(size: int) -> nn.Module:  # type: ignore[override]
        return nn.Dropout(0.3, inplace=True)

    def change(self, hidden: Tensor) -> Tensor:
        return super().change(2 * hidden)


class RandomSlope(Normalized):
    @staticmethod
    def norm(size: int) -> nn.Module:  # type: ignore[override]
        return nn.RReLU()


class Cell(Normalized):
    @staticmethod
    def norm(size: int) -> nn.Module:  # type: ignore[override]
        return nn.GRUCell(size, size)


class Recurrent(Base):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.recurrent = nn.GRU(1, 4, batch_first=True)

    def change(self, hidden: Tensor) -> Tensor:
        return self.recurrent(hidden.unsqueeze(-1))[0][:, -1]  # type: ignore[no-any-return]


class TwoTypes(Base):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.scale = nn.Parameter(torch.ones(4, dtype=torch.float64))

    def change(self, hidden: Tensor) -> Tensor:
        return hidden * self.scale.float()


class Hooked(Base):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.first.weight.register_hook(lambda gradient: 2 * gradient)


class Frozen(Base):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.first.requires_grad_(False)


class Lazy(Base):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.first = nn.LazyLinear(4)


class Scratch(ScratchMLP):
    """Has gradients that are derived by hand."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec, [4])


# Each net with the words that say why it is not stacked, or None: it is computed as alone, and not turned away.
NETS: list[tuple[type[nn.Module], str | None]] = [
    (Base, None),
    (UsedTwice, None),
    (DroppedTwice, None),
    (Dropped, None),
    (DroppedInPlace, None),
    (Normalized, None),
    (Grouped, None),
    (FunctionalDropout, "called random operation"),
    (Noisy, "called random operation"),
    (Attention, "called random operation"),
    (PythonNoise, "Python's or NumPy's generator"),
    (NumpyNoise, "Python's or NumPy's generator"),
    (AlphaDropped, "AlphaDropout draws"),
    (RandomSlope, "RReLU draws"),
    (Branching, "data-dependent control flow"),
    (Masked, "dynamic shape"),
    (Reading, "calling .item()"),
    (MeanOfAll, "calling .item()"),
    (Logging, "logs values"),
    (LoggingNothing, "logs values"),
    (Counting, "changes its layers, buffers or settings"),
    (Remembering, "changes its layers, buffers or settings"),
    (ReplacedBuffer, "other outputs in a stack"),
    (UpdatedBuffer, "member by member"),
    (Unused, "never.weight has no gradient"),
    (OwnFunction, "setup_context"),
    (InPlaceInput, "single memory location"),
    (Recurrent, "GRU"),
    (Cell, "GRUCell"),
    (TwoTypes, "several types"),
    (Hooked, "hook"),
    (Frozen, "frozen"),
    (Lazy, "no size"),
    (Scratch, "setup_context"),
]


def find_reason(stacks: Any, net: type[nn.Module]) -> str | None:
    trainings = [stacks.Training(net=net, seed=seed) for seed in (1, 2)]
    for training in trainings:
        obstacle = find_obstacle(training.build()[0])
        if obstacle is not None:
            return obstacle
    members = [training.build_member() for training in trainings]
    before = [copy.deepcopy(member.state.state_dict()) for member in members]
    generators = get_rng_state()
    reason = compare_with_alone(members)
    # A trial leaves everything as it was.
    stacks.assert_same_values(generators, get_rng_state())
    for member, state in zip(members, before, strict=True):
        stacks.assert_same_values(state, member.state.state_dict())
    return reason


def assert_right(stacks: Any, net: type[nn.Module]) -> None:
    trainings = [stacks.Training(net=net, seed=seed) for seed in (1, 2)]
    for alone, stacked in zip(map(stacks.train_alone, trainings), stacks.train_stacked(trainings), strict=True):
        stacks.assert_equal_to_rounding(alone, stacked)


@pytest.mark.parametrize(("net", "words"), NETS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_net_is_right_in_a_stack_or_has_an_obstacle(stacks: Any, net: type[nn.Module], words: str | None) -> None:
    reason = find_reason(stacks, net)
    if words is not None:
        assert reason is not None
        assert words in reason
    else:
        assert reason is None
        assert_right(stacks, net)


STACKABLE_OF_USERS = {
    "Base",
    "ComplexBuffer",
    "NetChain",
    "WholeBuffers",
    "Lists",
    "Subclass",
    "NetNonPersistent",
    "NetBN",
}


@pytest.mark.slow
@pytest.mark.parametrize("file", ["nets_of_users", "hidden_state_nets"])
@pytest.mark.filterwarnings("ignore")
def test_nets_of_users_are_right_in_a_stack_or_have_an_obstacle(stacks: Any, file: str) -> None:
    for name, net in read_nets(file).items():
        # The layers of these nets are no nets themselves, and two nets can be built only once.
        if (file == "hidden_state_nets" and not name.startswith("Net")) or name in ("NetTwice", "NetLocking"):
            continue
        reason = find_reason(stacks, net)
        assert (reason is None) == (name in STACKABLE_OF_USERS), (name, reason)
        if reason is None:
            assert_right(stacks, net)


def test_nets_that_differ_in_a_setting_are_told_apart(stacks: Any) -> None:
    members = [
        stacks.Training(
            net=lambda spec, slope=slope: nn.Sequential(nn.Linear(5, 3), nn.LeakyReLU(slope))
        ).build_member()
        for slope in (0.1, 0.2)
    ]
    reason = compare_with_alone(members)
    assert reason is not None
    assert "differ" in reason


class Doubling(nn.ReLU):
    """A layer whose stacked class is wrong."""


class Tripling(StackedElementwise):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


class Drawing(StackedElementwise):
    def forward(self, x: Tensor) -> Tensor:
        torch.rand(1)
        return super().forward(x)


@pytest.mark.parametrize(
    ("stacked", "words"),
    [(StackedElementwise, None), (Tripling, "other outputs"), (Drawing, "for all members together")],
)
def test_a_wrong_stacked_layer_is_noticed(
    stacks: Any, monkeypatch: pytest.MonkeyPatch, stacked: type[StackedElementwise], words: str | None
) -> None:
    monkeypatch.setitem(layers.STACKED_LAYERS, Doubling, stacked)
    build = lambda spec: nn.Sequential(nn.Linear(5, 4), Doubling(), nn.Linear(4, 3))  # noqa: E731
    reason = compare_with_alone([stacks.Training(net=build, seed=seed).build_member() for seed in (1, 2)])
    assert (reason is None) if words is None else (reason is not None and words in reason)
