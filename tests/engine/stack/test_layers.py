"""Stacked layers against torch's own: outputs, gradients and buffers of each member, in both modes."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlrun.data.spec import DataSpec
from dlrun.engine.stack import layers
from dlrun.engine.stack.layers import STACKED_LAYERS, StackedLayer, list_chain, register_stacked_layer
from dlrun.engine.stack.model import StackedModel

MEMBERS = 3

# A layer of each class, and shapes of a member's inputs.
LAYERS: list[tuple[Any, tuple[int, ...]]] = [
    (lambda: nn.Linear(4, 3), (6, 4)),
    (lambda: nn.Linear(4, 1, bias=False), (6, 4)),
    (lambda: nn.Linear(4, 3), (6, 5, 4)),
    (lambda: nn.Linear(4, 3), (6, 2, 5, 4)),
    (lambda: nn.Flatten(), (6, 2, 3, 4)),
    (lambda: nn.Flatten(2), (6, 2, 3, 4)),
    (lambda: nn.Flatten(-2, -1), (6, 2, 3, 4)),
    (lambda: nn.Dropout(0.4), (6, 4)),
    (lambda: nn.Dropout(0.0), (6, 4)),
    (lambda: nn.Dropout(1.0), (6, 4)),
    (lambda: nn.LayerNorm(4), (6, 4)),
    (lambda: nn.LayerNorm((3, 4), bias=False), (6, 2, 3, 4)),
    (lambda: nn.LayerNorm(4, elementwise_affine=False), (6, 4)),
    (lambda: nn.BatchNorm1d(4), (6, 4)),
    (lambda: nn.BatchNorm1d(4, momentum=0.7, eps=0.1), (6, 4, 5)),
    (lambda: nn.BatchNorm1d(4, affine=False), (6, 4)),
    (lambda: nn.BatchNorm1d(4, track_running_stats=False), (6, 4)),
    (lambda: nn.BatchNorm2d(4), (6, 4, 3, 2)),
    (lambda: nn.GroupNorm(2, 4), (6, 4, 3)),
    (lambda: nn.GroupNorm(1, 4, affine=False), (6, 4)),
    (lambda: nn.Conv1d(2, 4, 3, padding=1), (6, 2, 7)),
    (lambda: nn.Conv2d(2, 4, 3), (6, 2, 7, 6)),
    (lambda: nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, dilation=(1, 2), groups=2, bias=False), (6, 4, 7, 6)),
    (lambda: nn.Conv2d(2, 4, 3, padding="same"), (6, 2, 7, 6)),
    (lambda: nn.MaxPool1d(2), (6, 2, 7)),
    (lambda: nn.MaxPool2d(2, padding=1), (6, 2, 7, 6)),
    (lambda: nn.AvgPool1d(2), (6, 2, 7)),
    (lambda: nn.AvgPool2d(3, 2), (6, 2, 7, 6)),
    (lambda: nn.AdaptiveAvgPool1d(2), (6, 2, 7)),
    (lambda: nn.AdaptiveAvgPool2d(1), (6, 2, 7, 6)),
    (lambda: nn.AdaptiveMaxPool1d(2), (6, 2, 7)),
    (lambda: nn.AdaptiveMaxPool2d((2, 1)), (6, 2, 7, 6)),
    (lambda: nn.ZeroPad2d(1), (6, 2, 7, 6)),
    (lambda: nn.Softmax(-1), (6, 4)),
    (lambda: nn.Softmax(1), (6, 4, 3)),
    (lambda: nn.LogSoftmax(1), (6, 4)),
    (lambda: nn.ReLU(inplace=True), (6, 4)),
    (lambda: nn.LeakyReLU(0.3), (6, 4)),
    *(
        (kind, (6, 4))
        for kind, stacked in STACKED_LAYERS.items()
        if stacked is layers.StackedElementwise and kind not in (nn.LeakyReLU,)
    ),
]


@pytest.fixture(autouse=True)
def registered_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of this test's, registered for its length."""
    monkeypatch.setattr(layers, "STACKED_LAYERS", dict(STACKED_LAYERS))
    monkeypatch.setattr("dlrun.engine.stack.model.STACKED_LAYERS", layers.STACKED_LAYERS)
    register_stacked_layer(Gain, StackedGain)


class Gain(nn.Module):
    """A parameter for nets whose other layers have none."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class StackedGain(StackedLayer):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.tensors["gain"].view(-1, *(1,) * (x.dim() - 1))


def build_members(build: Any) -> list[nn.Module]:
    """Layers with numbers of their own in all parameters and buffers."""
    generator = torch.Generator().manual_seed(5)
    members = [nn.Sequential(build(), Gain()) for _ in range(MEMBERS)]
    for member in members:
        for tensor in (*member.parameters(), *member.buffers()):
            if tensor.is_floating_point():
                tensor.data = torch.rand(tensor.shape, generator=generator) + 0.1
    return members


def make_generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(MEMBERS)]


@pytest.mark.parametrize("is_inside", [False, True], ids=["members first", "members inside"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("build", "shape"), LAYERS)
def test_a_stacked_layer_computes_what_each_layer_does(
    build: Any, shape: tuple[int, ...], training: bool, is_inside: bool
) -> None:
    members = build_members(build)
    alone = copy.deepcopy(members)
    generators = make_generators()
    model = StackedModel(members, generators)
    assert model.chain is not None
    model.train(training)

    x = torch.randn(MEMBERS, *shape, generator=torch.Generator().manual_seed(1))
    x = x.transpose(0, 1).contiguous().transpose(0, 1) if is_inside else x
    before = x.clone()
    x.requires_grad_()
    outputs = [model(x), model(x)][-1]
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2))
    has_gradient = outputs.requires_grad
    inputs = (x, *model.parameters.values())
    gradients = torch.autograd.grad((outputs * weights).sum(), inputs, allow_unused=True)
    assert torch.equal(x, before)

    for number, layer in enumerate(alone):
        layer.train(training)
        own = x[number].detach().clone().requires_grad_()
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(make_generators()[number].get_state())
            output = [layer(own * 1.0), layer(own * 1.0)][-1]
            assert torch.equal(torch.get_rng_state(), generators[number].get_state())
        torch.testing.assert_close(outputs[number], output, rtol=1e-5, atol=1e-6)
        right = torch.autograd.grad((output * weights[number]).sum(), (own, *layer.parameters()), allow_unused=True)
        for actual, wanted in zip(gradients, right, strict=True):
            torch.testing.assert_close(actual[number], wanted, rtol=1e-4, atol=1e-5)
        for (name, buffer), wanted in zip(model.buffers.items(), layer.buffers(), strict=True):
            assert buffer.dtype == wanted.dtype
            torch.testing.assert_close(buffer[number], wanted, rtol=1e-5, atol=1e-6, msg=name)
    assert has_gradient


def test_inputs_that_all_members_share_are_not_changed() -> None:
    model = StackedModel(build_members(lambda: nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True))), make_generators())
    x = torch.randn(4, 2, 2)
    before = x.clone()
    with torch.inference_mode():
        model(x.expand(MEMBERS, *x.shape))
    assert torch.equal(x, before)


class Scale(nn.Module):
    """A layer of a user."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.rand(size))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.factors


class StackedScale(StackedLayer):
    def forward(self, x: Tensor) -> Tensor:
        self.tensors["calls"].add_(1)
        return x * self.tensors["factors"].unsqueeze(1)


class Net(nn.Module):
    """A net of a user, with a layer in a list and one that has no parameters outside of it."""

    def __init__(self, spec: DataSpec, rate: float = 0.2) -> None:
        super().__init__()
        self.scale = Scale(spec.input_size)
        self.hidden = nn.ModuleList([nn.Linear(spec.input_size, 4), nn.Dropout(rate)])
        self.last = nn.Linear(4, spec.output_size)

    def list_layers(self) -> list[nn.Module]:
        return [self.scale, *self.hidden, nn.Tanh(), self.last]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.list_layers():
            x = layer(x)
        return x


def test_a_net_of_a_user_with_a_layer_of_a_user_is_a_chain(stacks: SimpleNamespace) -> None:
    assert list_chain(Net(stacks.VECTOR)) is None
    register_stacked_layer(Scale, StackedScale)
    assert list_chain(Net(stacks.VECTOR)) is not None
    trainings = [
        stacks.Training(net=lambda spec, rate=rate: Net(spec, rate), seed=seed) for seed, rate in ((1, 0.2), (2, 0.6))
    ]
    alone = [stacks.train_alone(training) for training in trainings]
    for one, other in zip(alone, stacks.train_stacked(trainings), strict=True):
        stacks.assert_equal_to_rounding(one, other)


def test_a_class_derived_from_a_layer_is_another_layer() -> None:
    class Own(nn.Linear):
        pass

    assert list_chain(Own(2, 2)) is None


@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_round_on_a_cpu_as_those_of_the_net_alone(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    alone = [nn.Conv2d(3, 8, 3, padding=1, bias=bias) for _ in range(MEMBERS)]
    x = torch.randn(MEMBERS, 16, 3, 12, 12, generator=generator)
    tensors = {
        name: torch.stack([getattr(layer, name).detach() for layer in alone]) for name in ("weight", "bias")[: 1 + bias]
    }
    outputs = STACKED_LAYERS[nn.Conv2d](alone, tensors, []).forward(x)
    for layer, inputs, output in zip(alone, x, outputs, strict=True):
        assert torch.equal(layer(inputs), output)
