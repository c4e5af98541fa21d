"""Large text files by PyArrow: columns as it holds them, looked at as text where that is needed."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from itertools import chain
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from dlrun.data.columns.cells import GAPS, Cells, is_gap
from dlrun.data.files.table import parse_numbers

# Smaller files are read before PyArrow is imported.
FEWEST_BYTES = 1_000_000
_CHUNK = 1000

# As which a cell of PyArrow is no value.
_GAP_SPELLINGS = sorted({"NaN", *chain.from_iterable((gap, gap.upper(), gap.title()) for gap in GAPS)})


class ArrowCells(Cells):
    """A column of text of PyArrow.

    head: its first texts. column: all of them, a pyarrow.ChunkedArray; or its numbers, where it was read so. read:
    gets the texts of such a column, once one behind the first is looked at.
    """

    def __init__(self, head: Sequence[str], column: Any, read: Callable[[], Any]) -> None:
        super().__init__(())
        self._head = head
        self._values = column
        self._read = read

    @cached_property
    def _column(self) -> Any:
        return self._read() if self._is_number else self._values

    @property
    def _is_number(self) -> bool:
        return str(self._values.type) != "string"

    def __len__(self) -> int:
        return len(self._values)

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
        yield from self._head
        for start in range(len(self._head), len(self), _CHUNK):
            yield from self._column.slice(start, _CHUNK).to_pylist()

    def contains(self, mark: str) -> bool:
        """Whether any text holds a mark."""
        import pyarrow.compute as compute

        if any(mark in text for text in self._head):
            return True
        # Whole numbers have digits only.
        if str(self._values.type) == "int64":
            return False
        # Numbers are seldom the same, and texts often, so of texts the different ones are searched.
        texts = self._column if self.plain_numbers is not None else self._dictionary.dictionary
        return bool(compute.any(compute.match_substring(texts, mark)).as_py())

    @cached_property
    def plain_numbers(self) -> NDArray[np.float64] | None:
        """float64 (rows,) of a column of finite numbers, NaN for gaps; None for another one."""
        if self._is_number:
            numbers: NDArray[np.float64] = self._values.to_numpy().astype(np.float64, copy=False)
            return None if np.isinf(numbers).any() else numbers
        # Text is told by its first rows.
        if parse_numbers([text for text in self._head if not is_gap(text)]) is None:
            return None

        import pyarrow
        import pyarrow.compute as compute

        # The first of these that does is the fastest.
        for gaps in ([], [""], _GAP_SPELLINGS):
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
        return self._dictionary.dictionary.to_pylist(), self._dictionary.indices.to_numpy().astype(np.int64)

    @cached_property
    def _dictionary(self) -> Any:
        """The distinct texts and their numbers, a pyarrow.DictionaryArray."""
        return self._column.combine_chunks().dictionary_encode()


def read_columns(
    content: bytes, separator: str, has_header: bool, first_rows: Sequence[Sequence[str]]
) -> list[ArrowCells] | None:
    """The columns of UTF-8 text whose rows are lines of equally many cells, quoted or not.

    None for text that is not of this kind, and where PyArrow is not there.
    """
    try:
        import pyarrow
        from pyarrow import csv
    except ImportError:
        return None

    # A line of names alone.
    if not first_rows:
        return None
    heads = list(zip(*first_rows, strict=True))
    names = [str(number) for number in range(len(heads))]
    texts = dict.fromkeys(names, "string")

    def read(types: dict[str, str], chosen: Sequence[str] = ()) -> Any:
        return csv.read_csv(
            pyarrow.BufferReader(content),
            csv.ReadOptions(column_names=names, skip_rows=int(has_header)),
            csv.ParseOptions(delimiter=separator, newlines_in_values=False),
            csv.ConvertOptions(
                column_types=types,
                null_values=_GAP_SPELLINGS,
                strings_can_be_null=False,
                quoted_strings_can_be_null=False,
                include_columns=chosen,
            ),
        )

    try:
        table = read({name: _guess_type(head) for name, head in zip(names, heads, strict=True)})
    except pyarrow.ArrowInvalid:
        # Somewhere among the numbers stands a text.
        try:
            table = read(texts)
        except pyarrow.ArrowInvalid:
            return None

    return [
        ArrowCells(head, column, partial(lambda name: read(texts, [name]).column(name), name))
        for head, name, column in zip(heads, names, table.columns, strict=True)
    ]


def _guess_type(cells: Sequence[str]) -> str:
    """The type of PyArrow that the first cells of a column have, gaps aside."""
    present = [cell for cell in cells if not is_gap(cell)]
    if not present or parse_numbers(present) is None:
        return "string"
    return "int64" if all(cell.strip().lstrip("-").isdigit() for cell in present) else "double"
