"""What a notebook shows of a run: its rows, metrics and predictions as tables, its curves as a picture."""

import io
import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from dlrun.core.errors import RequestError
from dlrun.runs.reports import page
from dlrun.runs.reports.plots.canvas import render_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, float]

# Rows of a table at its beginning and at its end, with a gap between them.
_FIRST_ROWS = 5
_LAST_ROWS = 5


class History(list[Row]):
    """Rows of metrics.jsonl, one an epoch, as a list; `history["val/loss"]` is a column."""

    @overload
    def __getitem__(self, key: SupportsIndex) -> Row: ...

    @overload
    def __getitem__(self, key: slice) -> "History": ...

    @overload
    def __getitem__(self, key: str) -> list[float]: ...

    def __getitem__(self, key: SupportsIndex | slice | str) -> "Row | History | list[float]":
        """A row by its number, some rows by a slice, or a column by its name, with NaN where a row lacks it."""
        if isinstance(key, str):
            if key not in self.columns:
                raise KeyError(f"no row has {key!r}; there are {', '.join(self.columns)}")
            return [row.get(key, math.nan) for row in self]
        if isinstance(key, slice):
            return History(super().__getitem__(key))
        return super().__getitem__(key)

    @property
    def columns(self) -> list[str]:
        """Names of all values, in the order of their first appearance."""
        return list(dict.fromkeys(chain.from_iterable(self)))

    def to_pandas(self) -> Any:
        """The rows as a pandas.DataFrame, indexed by epoch; RequestError where pandas is not installed."""
        try:
            import pandas as pd
        except ImportError as error:
            raise RequestError("pandas is not installed; type pip install pandas") from error
        return pd.DataFrame(list(self), columns=self.columns).set_index("epoch")

    def _repr_html_(self) -> str:
        """The rows as a table; of a long training its first and its last epochs."""
        numbered = list(self)
        if len(numbered) <= _FIRST_ROWS + _LAST_ROWS:
            return _render_rows(self.columns, numbered)

        hidden = len(numbered) - _FIRST_ROWS - _LAST_ROWS
        first = _render_rows(self.columns, numbered[:_FIRST_ROWS])
        last = _render_rows(self.columns, numbered[-_LAST_ROWS:])
        return f"{first}<p>{hidden} more epochs</p>\n{last}"


class Picture:
    """A figure that a notebook shows by itself, with or without a plotting backend."""

    def __init__(self, figure: "Figure") -> None:
        self.figure = figure

    def save(self, path: str | Path) -> Path:
        """Write the figure as PNG; returns the path."""
        path = Path(path)
        path.write_bytes(self._repr_png_())
        return path

    def _repr_png_(self) -> bytes:
        """The figure as the bytes of a PNG."""
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(render_pixels(self.figure)).save(buffer, "PNG")
        return buffer.getvalue()


def render_metrics(metrics: dict[str, float]) -> str:
    """Render metrics as a table: a row a metric, a column a split."""
    splits = list(dict.fromkeys(name.partition("/")[0] for name in metrics))
    names = list(dict.fromkeys(name.partition("/")[2] for name in metrics))
    rows = []
    for name in names:
        values = [metrics.get(f"{split}/{name}") for split in splits]
        rows.append([name, *("" if value is None else f"{value:.4g}" for value in values)])
    return page.render_text_table(("metric", *splits), rows, left=1)


def render_predictions(values: Sequence[str], probabilities: Sequence[float] | None) -> str:
    """Render predictions, a row for each input, with the probability of the answer where there is one."""
    if probabilities is None:
        rows = [[str(i), value] for i, value in enumerate(values)]
        return page.render_text_table(("row", "prediction"), rows, left=0)

    rows = [[str(i), value, f"{p:.3f}"] for i, (value, p) in enumerate(zip(values, probabilities, strict=True))]
    return page.render_text_table(("row", "prediction", "probability"), rows, left=0)


def _render_rows(columns: Sequence[str], rows: Sequence[Row]) -> str:
    cells = [[f"{row[name]:.4g}" if name in row else "" for name in columns] for row in rows]
    return page.render_text_table(columns, cells, left=0)
