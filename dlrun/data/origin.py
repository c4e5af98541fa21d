"""Where rows come from: lines of a table, files, or positions in an array; known through every split and shuffle."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Paths(Sequence[str]):
    """File names as the file system has them: Python strings would take ten times the memory."""

    def __init__(self, names: NDArray[np.bytes_]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "Paths": ...

    def __getitem__(self, index: int | slice) -> "str | Paths":
        """One path as text, or some of them."""
        return Paths(self.names[index]) if isinstance(index, slice) else os.fsdecode(self.names[index])


@dataclass(frozen=True, eq=False)
class Origin:
    """The origin of `count` rows.

    sources: files, or what the rows' part is called.
    source: int64 (count,), which of the sources a row is of; None if all are of the first.
    row: int64 (count,), a row's number in its source, from 0 on; None if it is its position here.
    line: int64 (count,), the line of a text file that a row ends in, from 1 on as an editor counts; None if there is
    none. has_file_each: the sources are files that hold one row each, such as pictures.
    """

    sources: Sequence[str]
    count: int
    source: Tensor | None = None
    row: Tensor | None = None
    line: Tensor | None = None
    has_file_each: bool = False

    @classmethod
    def from_position(cls, source: str, count: int) -> "Origin":
        """All rows of one source, in its order."""
        return cls((source,), count)

    @classmethod
    def from_lines(cls, source: str, lines: Sequence[int]) -> "Origin":
        """All rows of a text file, in its order."""
        return cls((source,), len(lines), line=torch.tensor(lines, dtype=torch.int64))

    @classmethod
    def from_files(cls, names: NDArray[np.bytes_]) -> "Origin":
        """A file a row."""
        return cls(Paths(names), len(names), source=torch.arange(len(names)), has_file_each=True)

    @classmethod
    def join(cls, origins: Sequence["Origin"]) -> "Origin":
        """The rows of several, one after the other."""
        first = origins[0]
        count = sum(origin.count for origin in origins)
        sources: Sequence[str] = first.sources
        starts = [0] * len(origins)
        if any(origin.sources is not first.sources for origin in origins):
            ends = np.cumsum([len(origin.sources) for origin in origins])
            starts = [0, *ends[:-1].tolist()]
            sources = [name for origin in origins for name in origin.sources]
        source = torch.cat([origin._sources() + start for origin, start in zip(origins, starts, strict=True)])
        row = torch.cat([origin._rows() for origin in origins])
        lines = [origin.line for origin in origins if origin.line is not None]
        line = torch.cat(lines) if len(lines) == len(origins) else None
        return cls(sources, count, source, row, line, all(origin.has_file_each for origin in origins))

    def take(self, index: Tensor) -> "Origin":
        """The rows that `index` (int64) selects, in its order."""
        index = index.cpu()
        return Origin(
            self.sources,
            len(index),
            None if self.source is None else self.source[index],
            index if self.row is None else self.row[index],
            None if self.line is None else self.line[index],
            self.has_file_each,
        )

    def format_label(self, index: int) -> str:
        """How a sentence calls a row: "line 5 of table.csv", "row 7,001 of x.npy", "photos/cat/3.png"."""
        source = self.get_source(index)
        if self.has_file_each:
            return source
        number = f"row {self.get_row(index):,}" if self.line is None else f"line {int(self.line[index])}"
        return f"{number} of {source}" if source else number

    def format_short_label(self, index: int) -> str:
        """The same for the title of a picture, without folders."""
        if self.has_file_each:
            return Path(self.get_source(index)).name
        return f"row {self.get_row(index)}" if self.line is None else f"line {int(self.line[index])}"

    def get_source(self, index: int) -> str:
        """The file or part of a row."""
        return self.sources[0 if self.source is None else int(self.source[index])]

    def get_row(self, index: int) -> int:
        """The number of a row in its source, from 0 on."""
        return index if self.row is None else int(self.row[index])

    def to_columns(self) -> dict[str, list[Any]]:
        """Of all rows, for a table: row, source, and line where there are lines."""
        names = [self.sources[i] for i in self._sources().tolist()]
        columns: dict[str, list[Any]] = {"row": self._rows().tolist(), "source": names}
        if self.line is not None:
            columns["line"] = self.line.tolist()
        return columns

    def _sources(self) -> Tensor:
        return torch.zeros(self.count, dtype=torch.int64) if self.source is None else self.source

    def _rows(self) -> Tensor:
        return torch.arange(self.count) if self.row is None else self.row
