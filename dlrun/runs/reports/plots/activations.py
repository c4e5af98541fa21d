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
_LIMIT = 5.0  # the functions are shown over [-5, 5]


def activations_of(model: nn.Module) -> dict[str, nn.Module]:
    """Every distinct element-wise activation of a net by name, as copies in evaluation mode."""
    found: dict[str, nn.Module] = {}
    for module in model.modules():
        bare = not [*module.parameters(), *module.children()]
        name = re.sub(r"(, )?(inplace=True|approximate='none')", "", repr(module)).removesuffix("()")
        if bare and type(module).__module__ in _MODULES and name not in found:
            own = copy.deepcopy(module).eval()
            if _is_elementwise(own):
                found[name] = own
    return found


def _is_elementwise(module: nn.Module) -> bool:
    """Whether each value is mapped by itself: softmax mixes them, and others take no plain vector."""
    probe = torch.tensor([-1.5, 0.3, 2.0])
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # softmax without a dimension
            whole = module(probe.clone())
            single = torch.cat([module(value.clone()) for value in torch.split(probe, 1)])
    except Exception:  # whatever a module says to an input that is not for it
        return False
    return isinstance(whole, Tensor) and whole.shape == probe.shape and torch.allclose(whole, single)


def curve(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The function and its derivative at x (N,), by autograd."""
    x = x.clone().requires_grad_()
    y = module(x * 1)  # a copy: some work in place, which a leaf refuses
    (slope,) = torch.autograd.grad(y.sum(), x)
    return y.detach(), slope


def activation_curves(activations: dict[str, nn.Module]) -> "Figure":
    """A panel for each: the function and its derivative over [-5, 5]."""
    columns = min(3, len(activations))
    lines = -(-len(activations) // columns)
    figure = canvas.sheet(max(5.2, 4.2 * columns), 3.9 * lines)
    places: Any = figure.subplots(lines, columns, squeeze=False)
    x = torch.linspace(-_LIMIT, _LIMIT, 1001, dtype=torch.float64)
    for place in places.flat[len(activations) :]:
        place.axis("off")
    for place, (name, module) in zip(places.flat, activations.items(), strict=False):
        y, slope = curve(module, x)
        place.plot(x, y, "-", color="tab:blue", linewidth=2, label="value")
        place.plot(x, slope, "--", color="tab:orange", linewidth=2, label="derivative")
        place.set(xlabel="input", ylabel="output", title=canvas.plain(name))
        place.grid(alpha=0.3)
        place.legend()
    return figure
