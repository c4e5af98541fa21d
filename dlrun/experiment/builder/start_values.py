"""`model.init`: start values of parameters by name."""

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.core.errors import RequestError, join_names
from dlrun.core.suggest import did_you_mean

_SHORT = {"w": "weight", "b": "bias"}


@torch.no_grad()
def set_start_values(model: nn.Module, init: dict[str, Any]) -> None:
    """Fill parameters by name or pattern with a number, or with nested lists of their shape.

    Where no parameter is called `w` or `b`, these stand for `weight` and `bias`, or for the only parameter whose
    name ends so (`layers.0.weight`). RequestError for a key that names no parameter, or a value of another shape.
    """
    parameters = dict(model.named_parameters())
    for key, value in init.items():
        names = find_parameters(key, list(parameters))
        if not names:
            hint = did_you_mean(key, parameters)
            raise RequestError(
                f"model.init.{key}: there is no such parameter; {hint}there are {join_names(parameters)}"
            )
        for name in names:
            _fill(parameters[name], name, value)


def find_replaced(model: nn.Module, init: dict[str, Any]) -> list[str]:
    """The keys of `model.init` whose parameters have other values by now."""
    parameters = dict(model.named_parameters())
    replaced = []
    for key, value in init.items():
        for name in find_parameters(key, list(parameters)):
            start = parameters[name].detach().clone()
            _fill(start, name, value)
            if key not in replaced and not torch.equal(start, parameters[name]):
                replaced.append(key)
    return replaced


def find_parameters(key: str, names: list[str]) -> list[str]:
    """The parameters that a key names: all that match it, or the one that `w` or `b` stands for; maybe none."""
    matching = [name for name in names if fnmatchcase(name, key)]
    if matching:
        return matching

    word = _SHORT.get(key)
    ending = [name for name in names if name.rpartition(".")[2] == word]
    if len(ending) == 1:
        return ending
    return [name for name in ending if name == word]


def _fill(parameter: Tensor, name: str, value: Any) -> None:
    try:
        start = torch.as_tensor(value, dtype=parameter.dtype)
        start = start.expand_as(parameter) if start.dim() == 0 else start.reshape(parameter.shape)
        parameter.copy_(start)
    except (RuntimeError, ValueError, TypeError) as error:
        shape = tuple(parameter.shape)
        raise RequestError(f"model.init.{name} must be a number or nested lists of shape {shape}") from error
