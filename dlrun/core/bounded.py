"""Small files of plain data, read within bounds: whatever lies there, no read waits, grows or recurses without end.

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
LARGEST_LOG = 256 * MEGABYTE  # of a file with a line an epoch
_DEEPEST = 100  # levels of lists and objects
_MOST_VALUES = 5_000_000
_LONGEST_LINE = 4 * MEGABYTE
_LARGEST = 2**63  # whole numbers beyond it are no counts, and do not fit where counts go
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most so many bytes."""
    try:
        # Before it is opened, as opening a device can do something.
        _refuse_other_kinds(path, path.stat().st_mode)
        handle = os.open(path, _READ)
        try:
            status = os.fstat(handle)
            # It may have become a pipe meanwhile.
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
    """So many bytes, or fewer where the file has become shorter. A read gives at most two gigabytes."""
    content = os.read(handle, size)
    while len(content) < size:
        more = os.read(handle, size - len(content))
        if not more:
            break
        content += more
    return content


def _refuse_other_kinds(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
    raise DamageError(path, f"it is {kind}, not a file")


def read_text(path: Path, most: int) -> str:
    """A text file in UTF-8, with or without a byte order mark."""
    return _decode(path, read_bytes(path, most))


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DamageError(path, f"byte {error.start:,} is no UTF-8") from error


def read_json(path: Path, most: int = 16 * MEGABYTE) -> dict[str, Any]:
    """A file of one JSON object."""
    try:
        return parse_object(read_text(path, most))
    except ValueError as error:
        raise DamageError(path, str(error)) from error


def parse_line(line: bytes) -> dict[str, Any]:
    """The object that a line of JSON is; ValueError says why it is none."""
    if len(line) > _LONGEST_LINE:
        raise ValueError(f"it has {len(line):,} bytes")
    try:
        return parse_object(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start:,} is no UTF-8") from error


def parse_object(text: str) -> dict[str, Any]:
    """The object that a JSON text is; ValueError says why it is none."""
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error.msg} in line {error.lineno}, column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"it holds {describe(value)}, not an object with names")
    if text.count("[") + text.count("{") > _DEEPEST or "\\ud" in text.lower():
        check_plain(value)
    return value


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it holds {describe(twice)} twice")
    return values


def _parse_int(text: str) -> int:
    if len(text) > 20 or not -_LARGEST <= int(text) < 2 * _LARGEST:
        raise ValueError(f"it holds a number of {len(text):,} digits")
    return int(text)


def _parse_float(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError(f"it holds a number beyond every float, {text[:20]}")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"it holds {text}, which is no JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_build_object, parse_int=_parse_int, parse_float=_parse_float, parse_constant=_refuse_constant
)


def read_yaml_file(path: Path, most: int = 4 * MEGABYTE) -> Any:
    """A YAML file of plain values: mappings and lists of text, numbers, booleans and null."""
    try:
        value = read_yaml(read_text(path, most))
        check_plain(value)
    except ValueError as error:
        raise DamageError(path, str(error)) from error
    return value


def check_plain(value: Any) -> None:
    """ValueError for anything but dictionaries and lists of text, numbers, booleans and None, or nested too deeply.

    Keys are text, or all of one dictionary numbers.
    """
    level = [value]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for part in level:
            kind = type(part)
            if kind is str:
                if not part.isascii():
                    _refuse_surrogates(part)
            elif kind is dict:
                _refuse_keys(part)
                below += part
                below += part.values()
            elif kind is list:
                below += part
            elif kind is int:
                if not -_LARGEST <= part < 2 * _LARGEST:
                    raise ValueError(f"it holds {describe(part)}")
            elif kind not in (float, bool, type(None)):
                raise ValueError(f"it holds {describe(part)}")
        if not below:
            return
        if len(below) > _MOST_VALUES:
            raise ValueError(f"it holds more than {_MOST_VALUES:,} values")
        level = below
    raise ValueError(f"it is nested more than {_DEEPEST} levels deep")


def _refuse_keys(values: dict[Any, Any]) -> None:
    kinds = {type(key) for key in values}
    if kinds - {str} and kinds - {int, float}:
        raise ValueError("it holds keys that are not text")


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"it holds text that is no Unicode ({error.object[error.start]!a})") from error


def is_number(value: Any) -> bool:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def describe(value: Any) -> str:
    """A value in a few words, however large it is."""
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return f"the text {value[:40]!r}" + ("…" if len(value) > 40 else "")
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**20):
        return f"the number {value}"
    if isinstance(value, int):
        return "a number of more than 20 digits"
    if isinstance(value, dict):
        return f"a mapping of {len(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"a {type(value).__name__}"
