"""`model.init`: start values of parameters by name."""

import difflib
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from dlrun.errors import RequestError

_SHORT = {"w": "weight", "b": "bias"}


@torch.no_grad()
def start_values(model: nn.Module, init: dict[str, Any]) -> None:
    """Fill parameters by name or pattern with a number, or with nested lists of their shape.

    `w` and `b` stand for `weight` and `bias` where no parameter has that name.
    """
    named = dict(model.named_parameters())
    for key, value in init.items():
        wanted = [n for n in named if fnmatchcase(n, key)] or [n for n in named if fnmatchcase(n, _SHORT.get(key, key))]
        if not wanted:
            close = difflib.get_close_matches(key, named, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise RequestError(f"model.init.{key}: there is no such parameter; {hint}there are {', '.join(named)}")
        for name in wanted:
            _fill(named[name], name, value)


def _fill(parameter: nn.Parameter, name: str, value: Any) -> None:
    try:
        wanted = torch.as_tensor(value, dtype=parameter.dtype)
        parameter.copy_(wanted.expand_as(parameter) if wanted.dim() == 0 else wanted.reshape(parameter.shape))
    except (RuntimeError, ValueError, TypeError) as error:
        shape = tuple(parameter.shape)
        raise RequestError(f"model.init.{name} must be a number or nested lists of shape {shape}") from error
