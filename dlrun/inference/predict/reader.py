"""Inputs to predict, one by one: what the readers of images, tables and texts share."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from torch import Tensor

from dlrun.core.errors import DataError
from dlrun.core.suggest import did_you_mean
from dlrun.data.class_folders import list_files_below

STDIN = "-"


@dataclass(frozen=True)
class Item:
    """One input, before it is opened."""

    # Shown with its answer.
    name: str
    # Path, text or values, for the reader that yielded it.
    content: Any
    # The true value, if the input contains it.
    label: str | None = None
    # Why there is nothing to open.
    error: str = ""
    # File and line, if the name does not tell.
    where: str = ""


@dataclass(frozen=True)
class Prepared:
    """One input as the model takes it: tensors of one row, without the batch dimension."""

    inputs: tuple[Tensor, ...]
    # How the input was changed.
    note: str = ""


class Reader(Protocol):
    """Reader of one kind of input."""

    # What a word may name, for messages.
    accepted_inputs: str

    def read_items(self, word: str) -> Iterator[Item]:
        """Yield the inputs that a word of the command line names; DataError where it cannot be read any further."""
        ...

    def prepare(self, item: Item) -> Prepared:
        """Convert one item to tensors; DataError says what is wrong with it. Several threads may call it."""
        ...

    def collate(self, rows: list[Prepared]) -> tuple[Tensor, ...]:
        """Combine rows to a batch as the model takes it."""
        ...


def list_files(folder: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files at any depth that end so, by name and without hidden ones; DataError if there is none."""
    is_empty = True
    # Bytes, as a file name need not be valid text.
    for name in list_files_below(os.fsencode(folder)):
        path = Path(os.fsdecode(name))
        if path.name.lower().endswith(endings):
            is_empty = False
            yield path
    if is_empty:
        raise DataError(f"the folder holds no {', '.join(endings)}")


def explain_missing(word: str, accepted_inputs: str) -> DataError:
    """Return the error for a word that names nothing, with the most similar file name."""
    path = Path(word)
    siblings = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
    return DataError(f"there is no such file; {did_you_mean(path.name, siblings)}this model takes {accepted_inputs}")


def read_lines(word: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of each line of a text file or standard input, without empty lines."""
    with open_text(word) as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield name_line(word, number), line.rstrip("\r\n")
        # Raised by the first read that meets the byte, after other lines were yielded.
        except UnicodeDecodeError as error:
            raise DataError(f"{word} is not UTF-8 text; save it as UTF-8") from error
        except (OSError, EOFError) as error:
            raise DataError(f"{word} cannot be read: {error}") from error


def name_line(word: str, number: int) -> str:
    """Return the name of a line in answers and messages: FILE:NUMBER, or its number on standard input."""
    return f"line {number}" if word == STDIN else f"{word}:{number}"


def open_text(word: str, encoding: str = "utf-8-sig") -> IO[str]:
    """Open a text file, plain or gzipped, or standard input, to be read once; DataError if it cannot be opened."""
    import gzip

    try:
        if word == STDIN:
            # A file object of its own: bytes are decoded as UTF-8 whatever the locale, and stdin stays open.
            return os.fdopen(sys.stdin.fileno(), encoding="utf-8-sig", newline="", closefd=False)
        if word.endswith(".gz"):
            return gzip.open(word, "rt", encoding=encoding, newline="")
        return Path(word).open(encoding=encoding, newline="")
    except OSError as error:
        raise DataError(f"{word} cannot be read: {error.strerror or error}") from error
