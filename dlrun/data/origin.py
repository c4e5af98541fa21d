"""Where rows come from: lines of a table, files, or positions in an array; known through every split and shuffle."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Paths(Sequence[str]):
    """File names as the bytes of the file system: Python strings would take ten times the memory."""

    def __init__(self, names: NDArray[np.bytes_]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "Paths": ...

    def __getitem__(self, index: int | slice) -> "str | Paths":
        """One path as text, or a slice of them."""
        if isinstance(index, slice):
            return Paths(self.names[index])
        return os.fsdecode(self.names[index])


@dataclass(frozen=True, eq=False)
class Origin:
    """The origin of `count` rows.

    sources: files, or the name of the part.
    source, row, line: int64 (count,).
    """

    sources: Sequence[str]
    count: int

    # Index into `sources`; None if all rows come from the first.
    source: Tensor | None = None

    # Number of a row in its source, counted from 0; None if it equals the position here.
    row: Tensor | None = None

    # Line of a text file that a row ends in, counted from 1 as editors do; None for other files.
    line: Tensor | None = None

    # Every source is a file with a single row, such as a picture.
    has_file_each: bool = False

    # What else is known of each row, such as its time, by name: texts (count,).
    columns: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)

    @classmethod
    def from_position(cls, source: str, count: int) -> "Origin":
        """All rows of one source, in its order."""
        return cls((source,), count)

    @classmethod
    def from_lines(cls, source: str, lines: Sequence[int]) -> "Origin":
        """All rows of a text file, in its order."""
        if isinstance(lines, range):
            return cls((source,), len(lines), line=torch.arange(lines.start, lines.stop, lines.step))
        return cls((source,), len(lines), line=torch.tensor(lines, dtype=torch.int64))

    @classmethod
    def from_files(cls, names: NDArray[np.bytes_]) -> "Origin":
        """One file per row."""
        return cls(Paths(names), len(names), source=torch.arange(len(names)), has_file_each=True)

    @classmethod
    def join(cls, origins: Sequence["Origin"]) -> "Origin":
        """Concatenate the rows of several origins."""
        first = origins[0]
        count = sum(origin.count for origin in origins)

        # Parts of one data set usually share the list of sources, which is then not copied.
        if all(origin.sources is first.sources for origin in origins):
            sources = first.sources
            offsets = [0] * len(origins)
        else:
            sources = []
            offsets = []
            for origin in origins:
                offsets.append(len(sources))
                sources.extend(origin.sources)

        source = torch.cat([origin._get_sources() + offset for origin, offset in zip(origins, offsets, strict=True)])
        row = torch.cat([origin._get_rows() for origin in origins])
        # Lines only if every origin has them: tables and arrays may be mixed.
        lines = [origin.line for origin in origins if origin.line is not None]
        line = torch.cat(lines) if len(lines) == len(origins) else None
        has_file_each = all(origin.has_file_each for origin in origins)
        names = first.columns if all(origin.columns.keys() == first.columns.keys() for origin in origins) else ()
        columns = {name: np.concatenate([origin.columns[name] for origin in origins]) for name in names}
        return cls(sources, count, source, row, line, has_file_each, columns)

    def take(self, index: Tensor) -> "Origin":
        """Select rows by `index` (int64), in its order."""
        # Origins stay on the host, wherever the rows are.
        index = index.cpu()
        return Origin(
            self.sources,
            len(index),
            # As fast as indexing with brackets is slow.
            None if self.source is None else self.source.index_select(0, index),
            index if self.row is None else self.row.index_select(0, index),
            None if self.line is None else self.line.index_select(0, index),
            self.has_file_each,
            {name: texts[index.numpy()] for name, texts in self.columns.items()},
        )

    def format_label(self, index: int) -> str:
        """Name a row in a sentence: "line 5 of table.csv", "row 7,001 of x.npy", "photos/cat/3.png"."""
        source = self.get_source(index)
        if self.has_file_each:
            return source

        number = f"row {self.get_row(index):,}" if self.line is None else f"line {int(self.line[index])}"
        return f"{number} of {source}" if source else number

    def format_short_label(self, index: int) -> str:
        """Name a row in the title of a picture, without folders."""
        if self.has_file_each:
            return Path(self.get_source(index)).name
        return f"row {self.get_row(index)}" if self.line is None else f"line {int(self.line[index])}"

    def get_source(self, index: int) -> str:
        """The file or part that a row comes from."""
        return self.sources[0 if self.source is None else int(self.source[index])]

    def get_row(self, index: int) -> int:
        """The number of a row in its source, counted from 0."""
        return index if self.row is None else int(self.row[index])

    def to_columns(self) -> dict[str, list[Any]]:
        """Table columns over all rows: row, source, and line for text files."""
        sources = [self.sources[i] for i in self._get_sources().tolist()]
        columns: dict[str, list[Any]] = {"row": self._get_rows().tolist(), "source": sources}
        if self.line is not None:
            columns["line"] = self.line.tolist()
        return columns | {name: texts.tolist() for name, texts in self.columns.items()}

    def _get_sources(self) -> Tensor:
        return torch.zeros(self.count, dtype=torch.int64) if self.source is None else self.source

    def _get_rows(self) -> Tensor:
        return torch.arange(self.count) if self.row is None else self.row
