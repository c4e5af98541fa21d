"""Small files of plain data, read within bounds: no file makes a read wait, grow or recurse without end.

Each is a regular file of a bounded size, in UTF-8. JSON is as the standard has it: a key once, numbers that a float
holds, no NaN. FileNotFoundError says that there is no file; DamageError says what is wrong with one.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from dlrun.core.errors import DamageError
from dlrun.core.yaml import read_yaml

MEGABYTE = 1_000_000

# Limit of a file with a line an epoch.
LARGEST_LOG = 256 * MEGABYTE

# Levels of lists and objects.
_DEEPEST = 100
_MOST_VALUES = 5_000_000
_LONGEST_LINE = 4 * MEGABYTE

# Larger integers are no counts, and do not fit where counts go.
_LARGEST = 2**63

# Without O_NONBLOCK, opening a pipe that nobody writes waits for ever.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_bytes(path: Path, most: int) -> bytes:
    """Read a regular file of at most `most` bytes. Raises FileNotFoundError or DamageError."""
    try:
        # Check before opening too, since opening a device can have an effect.
        _refuse_other_kinds(path, path.stat().st_mode)
        handle = os.open(path, _OPEN_FLAGS)
        try:
            # The file may have become a pipe meanwhile.
            status = os.fstat(handle)
            _refuse_other_kinds(path, status.st_mode)
            if status.st_size > most:
                raise DamageError(path, f"it has {status.st_size:,} bytes, and {most:,} are the most")
            return _read_all(handle, status.st_size)
        finally:
            os.close(handle)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        # ValueError: the name holds a zero byte.
        raise DamageError(path, f"it cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _read_all(handle: int, size: int) -> bytes:
    """Read `size` bytes, or fewer if the file has become shorter. One call reads at most two gigabytes."""
    content = os.read(handle, size)
    while len(content) < size:
        more = os.read(handle, size - len(content))
        if not more:
            break
        content += more
    return content


def _refuse_other_kinds(path: Path, mode: int) -> None:
    """DamageError for anything but a regular file."""
    if stat.S_ISREG(mode):
        return
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
    raise DamageError(path, f"it is {kind}, not a file")


def read_text(path: Path, most: int) -> str:
    """Read a text file of at most `most` bytes in UTF-8, with or without a byte order mark."""
    return _decode(path, read_bytes(path, most))


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DamageError(path, f"byte {error.start:,} is no UTF-8") from error


def read_json(path: Path, most: int = 16 * MEGABYTE) -> dict[str, Any]:
    """Read a file of one JSON object and at most `most` bytes."""
    try:
        return _parse_object(read_text(path, most))
    except ValueError as error:
        raise DamageError(path, str(error)) from error


def parse_line(line: bytes) -> dict[str, Any]:
    """Parse a line of JSON into an object; ValueError says what is wrong with it."""
    if len(line) > _LONGEST_LINE:
        raise ValueError(f"it has {len(line):,} bytes")

    try:
        return _parse_object(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start:,} is no UTF-8") from error


def _parse_object(text: str) -> dict[str, Any]:
    """Parse a JSON text into an object; ValueError says what is wrong with it."""
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error.msg} in line {error.lineno}, column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error

    if not isinstance(value, dict):
        raise ValueError(f"it holds {describe(value)}, not an object with names")

    # Only these can make the value something else than plain: the walk through it is the expensive part.
    if text.count("[") + text.count("{") > _DEEPEST or "\\ud" in text.lower():
        check_plain(value)
    return value


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        # Of two values for one key no reader knows which one counts.
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it holds {describe(twice)} twice")
    return values


def _parse_int(text: str) -> int:
    # By its length first: Python refuses to convert a very long one, with a message of its own.
    if len(text) > 20 or not -_LARGEST <= int(text) < 2 * _LARGEST:
        raise ValueError(f"it holds a number of {len(text):,} digits")
    return int(text)


def _parse_float(text: str) -> float:
    value = float(text)
    # Infinite after rounding, as 1e999.
    if value - value != 0:
        raise ValueError(f"it holds a number beyond every float, {text[:20]}")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"it holds {text}, which is no JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_build_object, parse_int=_parse_int, parse_float=_parse_float, parse_constant=_refuse_constant
)


def read_yaml_file(path: Path, most: int = 4 * MEGABYTE) -> Any:
    """Read a YAML file of plain values: mappings and lists of text, numbers, booleans and null."""
    try:
        value = read_yaml(read_text(path, most))

        # YAML has more types than these, such as dates.
        check_plain(value)
    except ValueError as error:
        raise DamageError(path, str(error)) from error
    return value


def check_plain(value: Any) -> None:
    """ValueError for anything but dictionaries and lists of text, numbers, booleans and None, or nested too deeply.

    The keys of a dictionary are text, or all of them numbers.
    """
    # Level by level: recursion would have a limit of its own. Inline: a log has millions of values.
    level = [value]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is str:
                if not item.isascii():
                    _refuse_surrogates(item)
            elif kind is dict:
                _refuse_keys(item)
                below += item
                below += item.values()
            elif kind is list:
                below += item
            elif kind is int:
                if not -_LARGEST <= item < 2 * _LARGEST:
                    raise ValueError(f"it holds {describe(item)}")
            elif kind not in (float, bool, type(None)):
                raise ValueError(f"it holds {describe(item)}")

        if not below:
            return
        if len(below) > _MOST_VALUES:
            raise ValueError(f"it holds more than {_MOST_VALUES:,} values")
        level = below
    raise ValueError(f"it is nested more than {_DEEPEST} levels deep")


def _refuse_keys(values: dict[Any, Any]) -> None:
    kinds = {type(key) for key in values}

    # All text or all numbers: nothing else, and no mix.
    if kinds - {str} and kinds - {int, float}:
        raise ValueError("it holds keys that are not text")


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"it holds text that is no Unicode ({error.object[error.start]!a})") from error


def is_number(value: Any) -> bool:
    """Whether a value is an integer or a float; a boolean is not a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def describe(value: Any) -> str:
    """Describe a value in a few words, however large it is."""
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return f"the text {value[:40]!r}" + ("…" if len(value) > 40 else "")

    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**20):
        return f"the number {value}"
    if isinstance(value, int):
        # Python refuses to print very long ones.
        return "a number of more than 20 digits"

    if isinstance(value, dict):
        return f"a mapping of {len(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"a {type(value).__name__}"
