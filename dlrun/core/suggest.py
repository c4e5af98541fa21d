"""The part of an error message that says what was probably meant."""

from collections.abc import Iterable
from pathlib import Path

from dlrun.core.errors import DataError, nearest


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """ ", did you mean 'x'?" with the closest option, or "" when none is close."""
    close = nearest(word, options, 1)
    return f", did you mean '{close[0]}'?" if close else ""


def missing(path: Path, key: str) -> DataError:
    """The error for a `path` that does not exist and was given by the config key `key`."""
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, siblings) or f": type {key}=<an existing path>"
    return DataError(f"{key}={path} does not exist{hint}")
