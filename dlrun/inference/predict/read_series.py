"""Tables of values over time: what follows the last rows of each series is forecast."""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dlrun.core.errors import DataError, RequestError
from dlrun.core.format import format_count
from dlrun.core.terminal import write_error
from dlrun.data.columns.reading import EXCEL, FEATHER, PARQUET, TextFormat, unescape_separator
from dlrun.data.series import read_columns, read_timeline
from dlrun.data.spec import DataSpec
from dlrun.data.windows import SeriesPreprocessing, fill_gaps, find_gaps
from dlrun.inference.predict.answer import Answer
from dlrun.inference.predict.reader import STDIN, Item, Prepared, explain_missing, list_files

_ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", *EXCEL, *PARQUET, *FEATHER)


@dataclass(frozen=True)
class Window:
    """The last rows of a series, (window, features) as the model takes them, and the times that are forecast."""

    values: Tensor
    times: tuple[str, ...]


class SeriesReader:
    """A reader of tables with the columns of training: a window for each series."""

    accepted_inputs = "a table of values over time (.csv, .tsv, .gz, .xlsx, .parquet, .feather), or - for one on stdin"

    def __init__(self, spec: DataSpec, separator: str | None = None, encoding: str | None = None) -> None:
        """separator, encoding: of text files; None to judge them by the file."""
        self.preprocessing = SeriesPreprocessing.from_plain(spec.preprocessing)
        self.text_format = TextFormat(unescape_separator(separator), encoding=encoding)

    def read_items(self, word: str) -> Iterator[Item]:
        """Yield the last window of each series of a table, or of each table of a folder."""
        path = Path(word)
        if word == STDIN:
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / "stdin.csv"
                copy.write_bytes(sys.stdin.buffer.read())
                yield from self._read_table(copy, "standard input")
        elif path.is_dir():
            for file in list_files(path, _ENDINGS):
                yield from self._read_table(file, str(file))
        elif path.is_file():
            yield from self._read_table(path, word)
        else:
            raise explain_missing(word, self.accepted_inputs)

    def _read_table(self, path: Path, name: str) -> Iterator[Item]:
        fitted = self.preprocessing
        try:
            file, columns = read_columns(path, self.text_format, [], None, None, None, fitted)
            timeline = read_timeline(file, columns, fitted.missing, fitted)
        except RequestError as error:
            raise DataError(str(error)) from error
        for note in (*columns.notes, *timeline.notes):
            write_error(f"dlrun: note: {name}: {note}")

        values = fill_gaps(timeline.values, timeline.breaks)
        # The step of training says what follows: a few rows tell little.
        steps = replace(fitted.steps, has_clock=fitted.steps.has_clock or timeline.steps.has_clock)
        gaps = find_gaps(timeline.times, timeline.breaks, steps)
        for number, series in enumerate(timeline.groups):
            rows = np.flatnonzero(timeline.group == number)[-fitted.window :]
            title = f"{name}: {series}" if series else name
            if len(rows) < fitted.window:
                yield Item(
                    title, None, error=f"{format_count(len(rows), 'row')}, and the model looks at {fitted.window}"
                )
            elif np.isnan(values[rows]).any():
                yield Item(title, None, error=f"a column has no value in the first of the last {fitted.window} rows")
            elif gaps[rows[1:]].any():
                place = timeline.describe_place(int(rows[1:][gaps[rows[1:]]][-1]))
                yield Item(title, None, error=f"there is a gap in time before {place}, within the window")
            else:
                times = steps.list_next(float(timeline.times[rows[-1]]), fitted.horizon)
                named = tuple(f"{series} {time}" if series else time for time in times)
                yield Item(
                    title, Window(torch.from_numpy(fitted.make_inputs(values[rows], timeline.times[rows])), named)
                )

    def prepare(self, item: Item) -> Prepared:
        """The window of an item."""
        window: Window = item.content
        return Prepared((window.values,))

    def collate(self, rows: list[Prepared]) -> tuple[Tensor, ...]:
        """Stack windows to (N, window, features)."""
        return (torch.stack([row.inputs[0] for row in rows]),)


def list_steps(item: Item, answer: Answer) -> Iterator[Answer]:
    """The answers of each step of a forecast, named by their times; one that is no forecast as it is."""
    if not isinstance(item.content, Window) or answer.error:
        yield answer
        return
    times = item.content.times
    count = len(answer.values) // len(times)
    for step, time in enumerate(times):
        values = answer.values[step * count : (step + 1) * count]
        yield replace(answer, input=time, values=values)
