"""What is to be predicted, one by one: what every kind of input has in common."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from torch import Tensor

from dlrun.core.errors import DataError, did_you_mean
from dlrun.data.folders import files_below

STDIN = "-"


@dataclass(frozen=True)
class Item:
    """One input, not looked at yet."""

    name: str  # how the answer calls it
    content: Any  # what the reader that made it takes
    label: str | None = None  # what the input itself says is true
    error: str = ""  # why there is nothing to look at
    where: str = ""  # its file and line, where the name does not say it


@dataclass(frozen=True)
class Prepared:
    """One input as the model takes it: tensors of one row, without the batch dimension."""

    inputs: tuple[Tensor, ...]
    note: str = ""  # what was done to it


class Reader(Protocol):
    """One kind of input."""

    takes: str  # what can be named, for sentences

    def read_items(self, word: str) -> Iterator[Item]:
        """What a word of the command line names; DataError ends it where it cannot be read on."""
        ...

    def prepare(self, item: Item) -> Prepared:
        """One item; DataError says what is wrong with it."""
        ...

    def collate(self, rows: list[Prepared]) -> tuple[Tensor, ...]:
        """Several as the model takes them."""
        ...


def list_files(folder: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    """The files with one of the endings, at any depth, by name; hidden ones left out. DataError where there is none."""
    none = True
    for path in (Path(os.fsdecode(name)) for name in files_below(os.fsencode(folder))):
        if path.name.lower().endswith(endings):
            none = False
            yield path
    if none:
        raise DataError(f"the folder holds no {', '.join(endings)}")


def explain_missing(word: str, takes: str) -> DataError:
    """The error for a word that names nothing."""
    path = Path(word)
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return DataError(f"there is no such file; {did_you_mean(path.name, siblings)}this model takes {takes}")


def read_lines(word: str) -> Iterator[tuple[str, str]]:
    """The lines of a text file, or of standard input, with a name each; empty ones left out."""
    with open_text(word) as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{line_prefix(word)}{number}", line.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{word} is not UTF-8 text; save it as UTF-8") from error
        except (OSError, EOFError) as error:
            raise DataError(f"{word} cannot be read: {error}") from error


def line_prefix(word: str) -> str:
    """What stands in front of a line's number."""
    return "line " if word == STDIN else f"{word}:"


def open_text(word: str) -> IO[str]:
    """A text file, plain or gzipped, or standard input, opened to be read once; DataError where it cannot be."""
    import gzip

    try:
        if word == STDIN:
            return os.fdopen(sys.stdin.fileno(), encoding="utf-8-sig", newline="", closefd=False)
        if word.endswith(".gz"):
            return gzip.open(word, "rt", encoding="utf-8-sig", newline="")
        return Path(word).open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise DataError(f"{word} cannot be read: {error.strerror or error}") from error
