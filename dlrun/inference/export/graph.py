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

from dlrun.core.errors import RequestError, join_names

Shape = list[int | str]


def trace(
    model: nn.Module, inputs: Sequence[Tensor], names: Sequence[str], any_length: bool = False
) -> ExportedProgram:
    """Trace the graph with a free first dimension of all inputs, and with any_length a free second one of `codes`.

    RequestError for a model whose Python depends on values or on the number of rows.
    """
    # One entry per input: dimension -> free.
    dynamic_shapes: list[dict[int, Any]] = [{0: Dim.DYNAMIC} for _ in inputs]
    if any_length:
        dynamic_shapes[0][1] = Dim.DYNAMIC

    try:
        with torch.no_grad(), silence():
            return torch.export.export(model, tuple(inputs), dynamic_shapes=tuple(dynamic_shapes))
    except Exception as error:
        # A user's model can fail in any way.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RequestError(
            f"{type(model).__name__} cannot be written as a graph of torch's operations ({lines[0][:160]}); what its "
            f"forward does may not depend on the values of {join_names(names)}, nor on the number of rows"
        ) from error


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep torch's warnings about its internals, and the graphs that it prints when it fails, off the terminal."""
    output = io.StringIO()
    # All of logging: the names of torch's loggers change from version to version.
    disabled_level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled_level)


def describe_shapes(inputs: Sequence[Tensor], any_length: bool = False) -> list[Shape]:
    """Return the shapes of the inputs, with a name for each free dimension."""
    shapes: list[Shape] = [["batch", *x.shape[1:]] for x in inputs]
    if any_length:
        shapes[0][1] = "length"
    return shapes
