"""Nets and losses with state that a checkpoint holds, and with state that it does not."""

import itertools
import random
import threading

import numpy as np
import torch
from torch import nn

from dlrun.data.spec import DataSpec, Splits


class Base(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.layer = nn.Linear(spec.input_size, 8)
        self.gate = self.make_gate()
        self.out = nn.Linear(8, spec.output_size)

    def make_gate(self):
        return nn.Identity()

    def forward(self, x):
        return self.out(torch.relu(self.gate(self.layer(x))))


class G(nn.Module):
    pass


class Count(G):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * (1 + 0.01 * self.calls)


class ClassDefault(G):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * (1 + 0.01 * self.calls)


class TrainCount(G):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        if not self.training:
            return x
        if torch.is_grad_enabled():
            self.calls += 1
        return x * (1 + 0.01 * self.calls)


class Running(G):
    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(8)

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return x - self.mean.detach()


class RunningGraph(G):
    def __init__(self):
        super().__init__()
        self.last = torch.zeros(8)

    def forward(self, x):
        y = x - self.last.detach()
        self.last = x.mean(0)
        return y


class NonPersistent(G):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8), persistent=False)

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x - self.mean


class Listed(G):
    def __init__(self):
        super().__init__()
        self.memory = []

    def forward(self, x):
        if self.training:
            self.memory.append(float(x.detach().mean()))
            self.memory = self.memory[-5:]
        return x + sum(self.memory)


class Dicted(G):
    def __init__(self):
        super().__init__()
        self.memory = {"n": 0, "label": "x"}

    def forward(self, x):
        self.memory["n"] += 1
        return x * (1 + 0.01 * self.memory["n"])


class ListOfModules(G):
    def __init__(self):
        super().__init__()
        self.gates = [Count(), Count()]

    def forward(self, x):
        for g in self.gates:
            x = g(x)
        return x


class OwnGen(G):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, x):
        if self.training:
            x = x * (torch.rand(x.shape, generator=self.generator) > 0.2)
        return x


class NpGen(G):
    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(1)

    def forward(self, x):
        if self.training:
            x = x * torch.tensor(self.rng.random(x.shape[1]) > 0.2)
        return x


class PyGen(G):
    def __init__(self):
        super().__init__()
        self.rng = random.Random(1)

    def forward(self, x):
        return x * self.rng.random()


class Memory:
    def __init__(self):
        self.count = 0


class ObjectState(G):
    def __init__(self):
        super().__init__()
        self.memory = Memory()

    def forward(self, x):
        self.memory.count += 1
        return x * (1 + 0.01 * self.memory.count)


class GradOnly(G):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        k = 1 + 0.01 * self.calls
        return x * k - (x * (k - 1)).detach()


CALLS = 0


class Global(G):
    def forward(self, x):
        global CALLS
        CALLS += 1
        return x * (1 + 0.01 * CALLS)


class ClassState(G):
    total = 0

    def forward(self, x):
        ClassState.total += 1
        return x * (1 + 0.01 * ClassState.total)


def closure():
    n = 0

    def f(x):
        nonlocal n
        n += 1
        return x * (1 + 0.01 * n)

    return f


class Closure(G):
    def __init__(self):
        super().__init__()
        self.f = closure()

    def forward(self, x):
        return self.f(x)


class Frozen(G):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(8))
        self.calls = 0

    def forward(self, x):
        if self.training:
            self.calls += 1
        if self.calls > 4:
            self.w.requires_grad_(False)
        return x * self.w


class Iter(G):
    def __init__(self):
        super().__init__()
        self.n = itertools.count()

    def forward(self, x):
        return x * (1 + 0.01 * next(self.n))


class EveryTenth(G):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.calls += 1
        return x * 2 if self.training and self.calls % 10 == 0 else x


class FromLater(G):
    """Its count acts in a part of the run that no look at the first checkpoint reaches."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.calls += 1
        return x * 2 if self.calls > 60 else x


class HalfCache(G):
    """Works in the precision of the training only."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.scale = nn.Parameter(torch.eye(8))

    def forward(self, x):
        self.calls += 1
        assert torch.is_autocast_enabled("cpu")
        return (x @ self.scale) * (1 + 0.1 * self.calls)


class PosCache(G):
    def __init__(self):
        super().__init__()
        self.cache = None
        self.calls = 0
        self.hist = []
        self.lock = threading.Lock()

    def forward(self, x):
        self.calls += 1
        self.hist.append(x.mean().item())
        if self.cache is None or self.cache.shape != x.shape:
            self.cache = torch.linspace(0, 1, x.numel()).reshape(x.shape)
        return x + self.cache


class Noise(G):
    def forward(self, x):
        return x + torch.randn_like(x) * 0.1 + float(np.random.rand()) + random.random()


class BN(G):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(8)
        self.d = nn.Dropout(0.3)

    def forward(self, x):
        return self.d(self.bn(x))


class Spec(G):
    def __init__(self):
        super().__init__()
        self.a = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
        self.b = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.c = nn.utils.weight_norm(nn.Linear(8, 8))
        self.d = nn.utils.spectral_norm(nn.Linear(8, 8))

    def forward(self, x):
        return self.d(self.c(self.b(self.a(x))))


class RandomInit(G):
    def __init__(self):
        super().__init__()
        self.mask = torch.rand(8)

    def forward(self, x):
        return x * self.mask


class Extra(G):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * (1 + 0.01 * self.calls)

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, s):
        self.calls = s["calls"]


class Recurrent(G):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 4, 2, batch_first=True, dropout=0.2, bidirectional=True)

    def forward(self, x):
        return self.rnn(x.reshape(-1, 2, 4))[0].flatten(1)[:, :8]


class Checkpointed(G):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2))

    def forward(self, x):
        return (
            torch.utils.checkpoint.checkpoint(self.a, x, use_reentrant=True)
            if self.training and x.requires_grad
            else self.a(x)
        )


class Reseeded(G):
    def __init__(self):
        super().__init__()
        self.g = torch.Generator()

    def forward(self, x):
        self.g.manual_seed(3)
        return x * torch.rand(8, generator=self.g)


class Hooked(G):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.seen = {}
        self.a.register_forward_hook(self.hook)

    def hook(self, m, i, o):
        self.seen["a"] = o

    def forward(self, x):
        return self.a(x)


class Lazy(G):
    def __init__(self):
        super().__init__()
        self.a = nn.LazyLinear(8)
        self.b = nn.LazyBatchNorm1d()

    def forward(self, x):
        return self.b(self.a(x))


built = 0


class Twice(G):
    def __init__(self):
        super().__init__()
        global built
        built += 1
        if built > 1:
            raise RuntimeError("a second one")

    def forward(self, x):
        return x


LOCK = threading.Lock()


class Enclosed(G):
    def __init__(self):
        super().__init__()
        self.calls = 0
        self.scaled = lambda x: x * self.count()

    def count(self):
        self.calls += 1
        return 1 + 0.01 * self.calls

    def forward(self, x):
        return self.scaled(x)


class Locking(G):
    def __init__(self):
        super().__init__()
        LOCK.acquire()

    def forward(self, x):
        return x


class Chain(G):
    kinds = ()

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(kind() for kind in self.kinds)

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x


class Everything(Chain):
    kinds = (Count, Running, OwnGen, NpGen, Global, ClassState, Closure, Listed, BN)


class Harmless(Chain):
    kinds = (PosCache, Noise, BN, Spec, RandomInit, Extra, Checkpointed, Reseeded, Hooked)


class Loss:
    def __init__(self):
        self.calls = 0

    def __call__(self, outputs, targets):
        if torch.is_grad_enabled():
            self.calls += 1
        return nn.functional.cross_entropy(outputs, targets) * (1 + 0.01 * self.calls)


class Smoothed(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(())

    def forward(self, outputs, targets):
        loss = nn.functional.cross_entropy(outputs, targets)
        if torch.is_grad_enabled():
            self.mean = 0.9 * self.mean + 0.1 * loss.detach()
        return loss * (1 + self.mean)


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, outputs, targets):
        loss = nn.functional.cross_entropy(outputs, targets)
        if torch.is_grad_enabled():
            self.mean.mul_(0.9).add_(0.1 * loss.detach())
        return loss * (1 + self.mean)


object_loss = Loss()
buffered_loss = Buffered()
module_loss = Smoothed()
method_loss = Loss().__call__


def plain_loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)


class CountingSGD(torch.optim.SGD):
    def __init__(self, params, lr=0.01):
        super().__init__(params, lr=lr)
        self.steps = 0

    def step(self, closure=None):
        self.steps += 1
        if self.steps % 5 == 0:
            return None
        return super().step(closure)


class SavingSGD(CountingSGD):
    def state_dict(self):
        return super().state_dict() | {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]
        super().load_state_dict({key: value for key, value in state.items() if key != "steps"})


class CountingSchedule(torch.optim.lr_scheduler.LRScheduler):
    """Halves the rate after the third epoch; its own state is not saved."""

    def __init__(self, optimizer):
        self.seen = []
        super().__init__(optimizer)

    def get_lr(self):
        self.seen.append(0)
        return [group["lr"] * (0.5 if len(self.seen) % 3 == 0 else 1.0) for group in self.optimizer.param_groups]

    def state_dict(self):
        return {"last_epoch": self.last_epoch}


class Rows(torch.utils.data.Dataset):
    """Noise that is of no generator of this data set, or of its own."""

    def __init__(self, own):
        self.generator = torch.Generator() if own else None

    def __len__(self):
        return 40

    def __getitem__(self, i):
        x = torch.tensor([float(i), 1.0])
        return x + torch.randn(2, generator=self.generator), i % 2


def rows(own=True):
    spec = DataSpec("vector", (2,), "multiclass", 2)
    return Splits(Rows(own), None, None, spec)


def add_gate(kind):
    return type("Net" + kind.__name__, (Base,), {"make_gate": lambda self: kind(), "__module__": __name__})


for kind in [value for value in globals().values() if isinstance(value, type) and issubclass(value, G)]:
    globals()["Net" + kind.__name__] = add_gate(kind)
