"""`model.init`: start values of parameters by name."""

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.core.errors import RequestError, did_you_mean, listed

_SHORT = {"w": "weight", "b": "bias"}


@torch.no_grad()
def set_start_values(model: nn.Module, init: dict[str, Any]) -> None:
    """Fill parameters by name or pattern with a number, or with nested lists of their shape.

    `w` and `b`, where no parameter has that name, stand for `weight` and `bias`, or for the only parameter whose
    name ends so (`layers.0.weight`).
    """
    named = dict(model.named_parameters())
    for key, value in init.items():
        wanted = find_parameters(key, list(named))
        if not wanted:
            hint = did_you_mean(key, named)
            raise RequestError(f"model.init.{key}: there is no such parameter; {hint}there are {listed(named)}")
        for name in wanted:
            _fill(named[name], name, value)


def find_replaced(model: nn.Module, init: dict[str, Any]) -> list[str]:
    """The keys of `model.init` whose parameters have other values by now."""
    named = dict(model.named_parameters())
    replaced = []
    for key, value in init.items():
        for name in find_parameters(key, list(named)):
            wanted = named[name].detach().clone()
            _fill(wanted, name, value)
            if key not in replaced and not torch.equal(wanted, named[name]):
                replaced.append(key)
    return replaced


def find_parameters(key: str, names: list[str]) -> list[str]:
    """The parameters that a key names: those that match it, or the one that `w` or `b` can mean, if there is one."""
    matching = [n for n in names if fnmatchcase(n, key)]
    if matching:
        return matching
    word = _SHORT.get(key)
    ending = [n for n in names if n.rpartition(".")[2] == word]
    return ending if len(ending) == 1 else [n for n in ending if n == word]


def _fill(parameter: Tensor, name: str, value: Any) -> None:
    try:
        wanted = torch.as_tensor(value, dtype=parameter.dtype)
        parameter.copy_(wanted.expand_as(parameter) if wanted.dim() == 0 else wanted.reshape(parameter.shape))
    except (RuntimeError, ValueError, TypeError) as error:
        shape = tuple(parameter.shape)
        raise RequestError(f"model.init.{name} must be a number or nested lists of shape {shape}") from error
