"""A model as a graph of torch's operations, for any number of rows."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dlrun.core.errors import RequestError, listed

Shape = list[int | str]


def trace(
    model: nn.Module, inputs: Sequence[Tensor], names: Sequence[str], any_length: bool = False
) -> ExportedProgram:
    """The graph, with the first dimension of all inputs free, and with any_length the second of `codes`.

    RequestError for a model whose Python depends on the values or the number of rows.
    """
    free: list[dict[int, Any]] = [{0: Dim.DYNAMIC} for _ in inputs]
    if any_length:
        free[0][1] = Dim.DYNAMIC
    try:
        with torch.no_grad(), silence():
            return torch.export.export(model, tuple(inputs), dynamic_shapes=tuple(free))
    except Exception as error:  # whatever the user's own model does not allow
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise RequestError(
            f"{type(model).__name__} cannot be written as a graph of torch's operations ({said}); what its forward "
            f"does may not depend on the values of {listed(names)}, nor on the number of rows"
        ) from error


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """torch's remarks on its own insides, and the graphs that it prints when it fails, are not for the terminal."""
    heard = io.StringIO()
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def describe_shapes(inputs: Sequence[Tensor], any_length: bool = False) -> list[Shape]:
    """Of the inputs, with a name where any number will do."""
    found: list[Shape] = [["batch", *x.shape[1:]] for x in inputs]
    if any_length:
        found[0][1] = "length"
    return found
