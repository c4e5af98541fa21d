"""The element-wise functions between a net's layers."""

import copy
import re
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dlrun.runs.reports.plots import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MODULES = ("torch.nn.modules.activation", "dlrun.models.scratch")
# The functions are shown over [-5, 5].
_LIMIT = 5.0


def find_activations(model: nn.Module) -> dict[str, nn.Module]:
    """Find the distinct element-wise activations of a net by name, as copies in evaluation mode."""
    activations: dict[str, nn.Module] = {}
    for module in model.modules():
        # Others change during training, as PReLU does, or consist of modules that are visited themselves.
        is_bare = not [*module.parameters(), *module.children()]
        name = re.sub(r"(, )?(inplace=True|approximate='none')", "", repr(module)).removesuffix("()")
        if is_bare and type(module).__module__ in _MODULES and name not in activations:
            module_copy = copy.deepcopy(module).eval()
            if _is_elementwise(module_copy):
                activations[name] = module_copy
    return activations


def _is_elementwise(module: nn.Module) -> bool:
    """Whether a module maps each value by itself: softmax mixes them, and others reject a plain vector."""
    probe = torch.tensor([-1.5, 0.3, 2.0])
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # softmax without a dimension warns.
            warnings.simplefilter("ignore")
            outputs = module(probe.clone())
            single_outputs = torch.cat([module(value.clone()) for value in torch.split(probe, 1)])
    except Exception:
        # A module can raise anything at an input that is not meant for it.
        return False
    if not isinstance(outputs, Tensor) or outputs.shape != probe.shape:
        return False
    return torch.allclose(outputs, single_outputs)


def evaluate_curve(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the function and its derivative at x (N,), by autograd."""
    x = x.clone().requires_grad_()
    # A product, as some modules work in place, which a leaf refuses.
    y = module(x * 1)
    # The gradient of the sum: y_i depends on x_i alone, so that each entry is the derivative of its own y_i.
    (slope,) = torch.autograd.grad(y.sum(), x)
    return y.detach(), slope


def draw_activations(activations: dict[str, nn.Module]) -> "Figure":
    """Draw a panel for each activation: the function and its derivative over [-5, 5]."""
    columns = min(3, len(activations))
    lines = -(-len(activations) // columns)
    figure = canvas.create_figure(max(5.2, 4.2 * columns), 3.9 * lines)
    grid: Any = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(activations) :]:
        axes.axis("off")

    x = torch.linspace(-_LIMIT, _LIMIT, 1001, dtype=torch.float64)
    for axes, (name, module) in zip(grid.flat, activations.items(), strict=False):
        y, slope = evaluate_curve(module, x)
        axes.plot(x, y, "-", color="tab:blue", linewidth=2, label="value")
        axes.plot(x, slope, "--", color="tab:orange", linewidth=2, label="derivative")
        axes.set(xlabel="input", ylabel="output", title=canvas.escape_label(name))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
