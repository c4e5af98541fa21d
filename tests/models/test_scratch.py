from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.core.errors import RequestError
from dlrun.data.spec import DataSpec
from dlrun.models.mlp import MLP
from dlrun.models.scratch import ACTIVATIONS, ScratchELU, ScratchLinear, ScratchMLP, ScratchSigmoid

Make = Callable[..., DataSpec]


def pair(spec: DataSpec, **settings: Any) -> tuple[ScratchMLP, MLP]:
    """The hand-written net and torch's, from the same seed."""
    torch.manual_seed(7)
    ours = ScratchMLP(spec, **settings)
    torch.manual_seed(7)
    return ours, MLP(spec, **settings)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hidden_sizes", [[], [5], [6, 4, 3]])
def test_names_and_start_are_the_mlps(hidden_sizes: list[int], bias: bool, image_spec: Make, vector_spec: Make) -> None:
    for spec in (vector_spec(), image_spec(3, 4, 4)):
        ours, torchs = pair(spec, hidden_sizes=hidden_sizes, bias=bias, activation="tanh")
        wanted = torchs.state_dict()
        assert list(ours.state_dict()) == list(wanted)
        assert all(torch.equal(value, wanted[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_trains_step_by_step_as_torchs(activation: str, vector_spec: Make) -> None:
    torch.manual_seed(1)
    x, y = torch.randn(12, 8, dtype=torch.float64), torch.arange(12) % 3
    losses = []
    for net in pair(vector_spec(), hidden_sizes=[6, 4], activation=activation):
        optimizer = torch.optim.SGD(net.double().parameters(), lr=0.5)
        losses.append([])
        for _ in range(20):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            losses[-1].append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-11)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize("layer", [ScratchLinear(3, 2), *(make() for make in ACTIVATIONS.values()), ScratchELU(0.3)])
def test_every_layer_has_a_reference_without_hand_written_parts(layer: nn.Module) -> None:
    x = torch.randn(4, 3, requires_grad=True)
    wanted: Tensor = layer.reference(x)
    torch.testing.assert_close(layer(x), wanted)
    assert "torch.autograd.function" not in str(type(wanted.grad_fn).__mro__)
    assert "torch.autograd.function" in str(type(layer(x).grad_fn).__mro__)


def test_start_by_a_spread(vector_spec: Make) -> None:
    torch.manual_seed(7)
    net = ScratchMLP(vector_spec(200), hidden_sizes=[100], init_std=0.01)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.15)
    assert not any(p.any() for p in ScratchMLP(vector_spec(), init_std=0.0).parameters())


def test_sigmoid_at_the_end_gives_probabilities(vector_spec: Make) -> None:
    torch.manual_seed(0)
    net = ScratchMLP(vector_spec(8, 1, "binary"), output_activation="sigmoid")
    x = torch.randn(5, 8)
    assert isinstance(net.layers[-1], ScratchSigmoid)
    torch.testing.assert_close(net(x), net.layers[:-1](x).sigmoid())
    assert list(net.state_dict()) == list(MLP(vector_spec(8, 1, "binary"), [4]).state_dict())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"hidden_sizes": [4, 0]}, r"model\.hidden_sizes holds 0"),
        ({"activation": "tanhh"}, r"model\.activation=tanhh .*did you mean tanh.*sigmoid, relu, elu"),
        ({"init_std": -1.0}, r"model\.init_std=-1\.0 .*type model\.init_std=0\.01"),
        ({"output_activation": "sigmoid"}, r"one of two classes, and this data is for multiclass: type .*=null"),
        ({"output_activation": "softmax"}, r"model\.output_activation=softmax is unknown.*type one of sigmoid, null"),
    ],
)
def test_bad_settings_end_in_a_sentence(settings: dict[str, Any], sentence: str, vector_spec: Make) -> None:
    with pytest.raises(RequestError, match=sentence):
        ScratchMLP(vector_spec(), **settings)


@pytest.mark.slow
def test_a_run_equals_the_run_of_torchs_net(dlrun: Callable[..., Any]) -> None:
    same = ("data=blobs", "model.hidden_sizes=[4]", "model.activation=tanh", "device.precision=fp64", "figures=false")
    ours, torchs = (
        dlrun(*same, "trainer.epochs=5", *extra)
        for extra in (
            ("model=scratch_mlp", "task.loss=scratch_cross_entropy", "tracking.graph=true"),
            ("model=mlp", "tracking.graph=false"),
        )
    )
    assert ours.code == torchs.code == 0, ours.err
    one, other = ([row["train/loss"] for row in outcome.rows] for outcome in (ours, torchs))
    assert one == pytest.approx(other, rel=1e-9)
