"""Errors of the models, each one sentence: settings out of range, unknown names, images too small."""

from collections.abc import Collection, Sequence

from dlrun.core.errors import MisfitError, RequestError, join_names
from dlrun.core.suggest import find_nearest
from dlrun.data.spec import DataSpec


def build_unknown_error(key: str, value: str, choices: Collection[str], advice: str = "") -> RequestError:
    """Build the error for a `key=value` whose value is none of the choices, with a did-you-mean.

    advice: what to type instead; by default it lists the choices.
    """
    close = find_nearest(value, choices)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    advice = advice or f"type one of {join_names(choices)}"
    return RequestError(f"{key}={value} is unknown{hint}: {advice}.")


def check_counts(key: str, counts: Sequence[int], example: str) -> None:
    """Raise RequestError unless all counts (sizes, channels, layers) are whole numbers of at least 1."""
    for count in counts:
        # bool is an int in Python.
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise RequestError(f"{key} holds {count!r}, but takes whole numbers of at least 1: type {example}.")


def check_dropout(dropout: float) -> None:
    """Raise RequestError unless dropout is a probability below 1."""
    if not 0 <= dropout < 1:
        raise RequestError(f"model.dropout={dropout} is no share from 0 to below 1: type model.dropout=0.5.")


def check_image(spec: DataSpec, model: str, smallest: int) -> None:
    """Raise MisfitError if the images are lower or narrower than `smallest` pixels."""
    _, height, width = spec.input_shape
    if min(height, width) < smallest:
        # Advise the sizes of MNIST and CIFAR where they are enough.
        advised = next((side for side in (28, 32) if side >= smallest), smallest)
        raise MisfitError(
            f"model={model} needs images of at least {smallest}x{smallest} pixels, but these are "
            f"{height}x{width}: type data.image_size={advised} for data that have this key, or model=mlp."
        )
