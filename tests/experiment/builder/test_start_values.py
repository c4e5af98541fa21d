"""Start values by name, on nets whose parameters lie deeper than `weight` and `bias`."""

import pytest
import torch
from torch import nn

from dlrun.core.errors import RequestError
from dlrun.data.spec import DataSpec
from dlrun.experiment.builder.start_values import set_start_values
from dlrun.models.linear import Linear
from dlrun.models.scratch import ScratchMLP

SPEC = DataSpec("vector", (1,), "regression", 1)


@pytest.mark.parametrize("net", [ScratchMLP(SPEC, hidden_sizes=[]), Linear(SPEC)])
def test_w_and_b_mean_the_only_weight_and_bias(net: nn.Module) -> None:
    set_start_values(net, {"w": 1.0, "b": -2.0})
    assert net(torch.tensor([[4.0]])).item() == 2.0


def test_w_means_nothing_where_there_are_several_weights() -> None:
    net = ScratchMLP(SPEC, hidden_sizes=[2])
    with pytest.raises(RequestError, match=r"model\.init\.w: there is no such parameter.*layers\.0\.weight"):
        set_start_values(net, {"w": 1.0})


def test_a_parameter_called_weight_comes_before_deeper_ones() -> None:
    class Net(Linear):
        def __init__(self) -> None:
            super().__init__(SPEC)
            self.inner = nn.Linear(1, 1)

    net = Net()
    before = net.inner.weight.item()
    set_start_values(net, {"w": 3.0})
    assert (net.weight.item(), net.inner.weight.item()) == (3.0, before)
