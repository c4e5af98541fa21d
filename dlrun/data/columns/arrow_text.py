"""Large text files by PyArrow: columns as it holds them, looked at as text where that is needed."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from dlrun.data.columns.cells import GAPS, Cells, is_gap
from dlrun.data.files.table import parse_numbers

# Smaller files are read before PyArrow is imported.
FEWEST_BYTES = 1_000_000
_CHUNK = 1000


class ArrowCells(Cells):
    """A column of text of PyArrow."""

    def __init__(self, column: Any) -> None:
        super().__init__(())
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            texts: Sequence[str] = tuple(self)[index]
            return texts
        text: str = self._column[int(index) % len(self)].as_py()
        return text

    def __iter__(self) -> Iterator[str]:
        # Most readers stop after the first few.
        for start in range(0, len(self), _CHUNK):
            yield from self._column.slice(start, _CHUNK).to_pylist()

    def contains(self, mark: str) -> bool:
        """Whether any text holds a mark."""
        import pyarrow.compute as compute

        return bool(compute.any(compute.match_substring(self._column, mark)).as_py())

    @cached_property
    def plain_numbers(self) -> NDArray[np.float64] | None:
        """float64 (rows,) of a column of finite numbers, NaN for gaps; None for another one."""
        import pyarrow
        import pyarrow.compute as compute

        # Text is told by its first rows.
        head = [text for text in self._column.slice(0, _CHUNK).to_pylist() if not is_gap(text)]
        if parse_numbers(head) is None:
            return None
        spellings = sorted({"NaN", *chain.from_iterable((gap, gap.upper(), gap.title()) for gap in GAPS)})
        # The first of these that does is the fastest.
        for gaps in ([], [""], spellings):
            column = self._column
            if gaps:
                column = compute.if_else(compute.is_in(column, pyarrow.array(gaps)), None, column)
            try:
                values: NDArray[np.float64] = column.cast(pyarrow.float64()).to_numpy()
            except pyarrow.ArrowInvalid:
                continue
            return None if np.isinf(values).any() else values
        return None

    @cached_property
    def encoded(self) -> tuple[list[str], NDArray[np.int64]]:
        """The distinct texts in the order of the rows, and for each row which of them it is, (rows,)."""
        encoded = self._column.combine_chunks().dictionary_encode()
        return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def read_columns(content: bytes, separator: str, has_header: bool, width: int) -> list[ArrowCells] | None:
    """The columns of UTF-8 text whose rows are lines of `width` cells, quoted or not.

    None for text that is not of this kind, and where PyArrow is not there.
    """
    try:
        import pyarrow
        from pyarrow import csv
    except ImportError:
        return None

    names = [str(number) for number in range(width)]
    types = dict.fromkeys(names, pyarrow.string())
    try:
        table = csv.read_csv(
            pyarrow.BufferReader(content),
            csv.ReadOptions(column_names=names, skip_rows=int(has_header)),
            csv.ParseOptions(delimiter=separator, newlines_in_values=False),
            csv.ConvertOptions(column_types=types, strings_can_be_null=False, quoted_strings_can_be_null=False),
        )
    except pyarrow.ArrowInvalid:
        return None
    return [ArrowCells(column) for column in table.columns]
