"""Activations and their derivatives."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from dlrun.models.scratch import ScratchELU, ScratchReLU, ScratchSigmoid, ScratchTanh
from dlrun.runs.reports.plots.activations import draw_activations, evaluate_curve, find_activations

X = torch.linspace(-5, 5, 1001, dtype=torch.float64)


def test_every_distinct_element_wise_activation_is_found_once() -> None:
    net = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.ReLU(inplace=True), nn.LeakyReLU(0.2)), nn.LeakyReLU(0.1),
        nn.Dropout(0.5), nn.PReLU(), nn.Softmax(dim=-1), nn.LogSoftmax(), nn.GLU(), nn.GELU(), nn.RReLU(),
        nn.MultiheadAttention(4, 2), nn.Softmax2d(), nn.Identity(),
    )  # fmt: skip
    before = torch.get_rng_state()
    names = list(find_activations(net))
    assert names == [
        "ReLU", "LeakyReLU(negative_slope=0.2)", "LeakyReLU(negative_slope=0.1)", "GELU",
        "RReLU(lower=0.125, upper=0.3333333333333333)",
    ]  # fmt: skip
    assert torch.equal(before, torch.get_rng_state())
    assert net.training
    assert net[10].training
    assert find_activations(nn.LSTM(2, 2)) == {}


@pytest.mark.parametrize(
    ("module", "value", "slope"),
    [
        (nn.ReLU(inplace=True), lambda x: np.maximum(x, 0), lambda x: (x > 0) * 1.0),
        (nn.Sigmoid(), lambda x: 1 / (1 + np.exp(-x)), lambda x: np.exp(-x) / (1 + np.exp(-x)) ** 2),
        (nn.Tanh(), np.tanh, lambda x: 1 - np.tanh(x) ** 2),
        (ScratchReLU(), lambda x: np.maximum(x, 0), lambda x: (x > 0) * 1.0),
        (ScratchSigmoid(), lambda x: 1 / (1 + np.exp(-x)), lambda x: np.exp(-x) / (1 + np.exp(-x)) ** 2),
        (ScratchTanh(), np.tanh, lambda x: 1 - np.tanh(x) ** 2),
        (ScratchELU(), lambda x: np.where(x > 0, x, np.expm1(x)), lambda x: np.where(x > 0, 1, np.exp(x))),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_a_curve_and_its_derivative_are_those_of_the_formula(module: nn.Module, value: object, slope: object) -> None:
    (name,) = find_activations(nn.Sequential(module))
    assert name.startswith(type(module).__name__)
    assert callable(value)
    assert callable(slope)
    y, derivative = evaluate_curve(copy.deepcopy(module), X)
    x = X.numpy()
    off = np.abs(x) > 1e-9  # at a kink the derivative is a choice
    assert np.allclose(y, value(x))
    assert np.allclose(derivative[off], slope(x)[off])


def test_each_has_a_panel_with_both_lines() -> None:
    figure = draw_activations(find_activations(nn.Sequential(nn.Tanh(), nn.ReLU(), nn.ELU(), nn.Sigmoid())))
    shown = [axes for axes in figure.axes if axes.lines]
    assert [axes.get_title() for axes in shown] == ["Tanh", "ReLU", "ELU(alpha=1.0)", "Sigmoid"]
    labels = [[str(line.get_label()) for line in axes.lines] for axes in shown]
    assert labels == [["value", "derivative"]] * 4
    x, slope = np.asarray(shown[0].lines[1].get_xydata()).T
    assert (x[0], x[-1]) == (-5, 5)
    assert np.allclose(slope, 1 - np.tanh(x) ** 2)
