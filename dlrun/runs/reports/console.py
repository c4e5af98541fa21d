"""Terminal output: Rich tables and a live bar on a terminal, plain lines elsewhere and in run.log."""

import errno
import functools
import io
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, JustifyMethod, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dlrun.core.files import DiskProblems, GrowingFile
from dlrun.core.terminal import escape_line, escape_text

# run.log does not depend on the terminal that the run was started in.
_LOG_WIDTH = 100

# Lines for the epochs of a run.
_MOST_LINES = 50


class _Escaping(RichConsole):
    """Print text literally: control characters are escaped, brackets and colons are no markup and no emoji."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escape text, but not Rich's own control codes, which move the cursor and are segments of another kind."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(escape_text(segment.text), segment.style)


class _Terminal(_Escaping):
    """A terminal that may be closed, or a pipe whose reader may end: the run continues without output."""

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            # EIO comes from a terminal whose window or connection was closed.
            if error.errno != errno.EIO:
                raise
            self.on_broken_pipe()

    def write(self, text: str) -> None:
        """Write text as it is, without Rich: to a file or a pipe."""
        if self.quiet:
            return
        try:
            self.file.write(text)
            self.file.flush()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Print nothing more; Rich would end the process."""
        self.quiet = True
        # Python flushes stdout at exit, which would fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# A stack makes hundreds of consoles, and Rich looks round in a tenth of a millisecond.
@functools.cache
def _is_in_notebook() -> bool:
    return RichConsole().is_jupyter


def _get_notebook_settings() -> dict[str, Any]:
    """Treat a notebook as a pipe: Rich would show each line, even those for a file, as an output of its own."""
    return {"force_jupyter": False, "force_terminal": False} if _is_in_notebook() else {}


class Console:
    """Print to the terminal, and as plain text to run.log once there is a run folder."""

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        """quiet: print nothing on the terminal, as for a job of a sweep."""
        self.terminal = _Terminal(file=stream, soft_wrap=False, quiet=quiet, **_get_notebook_settings())
        # A notebook gets the lines of a pipe, and may show a bar besides.
        self.is_notebook = _is_in_notebook()
        # True once run.log is open.
        self.is_logged = False
        # Output from before there was a run folder.
        self._early_output = io.StringIO()
        self.log = _Escaping(file=self._early_output, width=_LOG_WIDTH, no_color=True, **_get_notebook_settings())

    def open_log(self, path: Path, disk_problems: DiskProblems | None = None) -> None:
        """Write run.log from here on, starting with the output so far."""
        file: Any = GrowingFile(path, "run.log", disk_problems or DiskProblems())
        file.write(self._early_output.getvalue())
        self.log = _Escaping(file=file, width=_LOG_WIDTH, no_color=True, **_get_notebook_settings())
        self.is_logged = True

    def hold_log(self) -> AbstractContextManager[None]:
        """Let lines for run.log wait for the end of the block, where all come at once."""
        file: GrowingFile = self.log.file  # type: ignore[assignment]
        return file.hold()

    def close(self) -> None:
        """Write the log to the disk."""
        self.log.file.flush()

    def say(self, content: RenderableType = "") -> None:
        """Print a line or a table; square brackets in strings are text, not markup."""
        if isinstance(content, str):
            content = escape_line(content)

        # Sentences are left to the terminal to wrap, so that paths and commands can be copied; tables need columns.
        is_text = isinstance(content, str | Text)
        plain_text = self._format_plain(content)
        if self.terminal.is_terminal or not (is_text or _fits(plain_text, self.terminal.width)):
            self.terminal.print(content, markup=False, soft_wrap=is_text)
        else:
            self.terminal.write(plain_text)

        self.log.file.write(plain_text)
        # A run that is killed leaves a log up to its last line.
        self.log.file.flush()

    def _format_plain(self, content: RenderableType) -> str:
        """Format a line or a table for run.log, as Rich prints it, but for most of them in a hundredth of the time."""
        if isinstance(content, str):
            return f"{content}\n"
        if isinstance(content, Text):
            return f"{escape_text(content.plain)}\n"
        if isinstance(content, PlainTable) and content.is_as_built:
            return _format_table(content.cells)
        with self.log.capture() as captured:
            self.log.print(content, markup=False)
        return captured.get()

    def say_line(self, text: str, shorter: str) -> None:
        """Print a line that keeps to one line of a terminal: `shorter` where `text` is too wide, cut if that is too.

        A pipe and run.log have the whole text.
        """
        terminal = self.terminal
        if not terminal.is_terminal or len(escape_line(text)) <= terminal.width:
            self.say(text)
            return

        if not terminal.quiet:
            terminal.print(Text(escape_line(shorter)), no_wrap=True, overflow="ellipsis")
        self.log_only(text)

    def log_only(self, text: str) -> None:
        """Print to run.log alone: a traceback, for instance."""
        self.log.print(escape_text(text), markup=False, soft_wrap=True)
        self.log.file.flush()


def _fits(text: str, width: int) -> bool:
    """Whether a table is as wide on a terminal of `width` columns as it is in run.log."""
    return all(cell_len(line) <= width for line in text.splitlines())


def _format_metrics(row: dict[str, float]) -> str:
    """Format the losses and the first other metric, which fit on a line of 80 columns."""
    others = [key for key in row if "/" in key and not key.endswith("/loss") and not key.startswith("lr/")]
    has_validation = any(key.startswith("val/") for key in others)
    prefix = "val/" if has_validation else "train/"

    keys = ["train/loss", "val/loss"]
    keys += [key for key in others if key.startswith(prefix)][:1]
    return "  ".join(f"{key} {format_number(row[key])}" for key in keys if key in row)


def format_epoch(row: dict[str, float], epochs: int | None, rate: str, is_best: bool) -> str:
    """Format the line of an epoch. epochs: how many there will be, if that is known; rate: "" if it is not known."""
    total = f"/{epochs}" if epochs else ""
    width = len(str(epochs)) if epochs else 1
    parts = [f"epoch {int(row['epoch']):>{width}}{total}", _format_metrics(row), rate, "best" if is_best else ""]
    return "  ".join(part for part in parts if part)


def is_printed_epoch(epoch: float, epochs: int | None) -> bool:
    """Whether an epoch has a line of its own: a thousand lines would hide the tables before and after them."""
    return epoch % -(-(epochs or 1) // _MOST_LINES) == 0


def describe_end(result: dict[str, Any]) -> str:
    """Return the status, and how much was trained how fast. Results of older versions lack some keys."""
    status = result["status"].replace("_", " ")
    duration = f"{result.get('epochs', 0)} epochs, {result.get('steps', 0):,} steps"
    seconds = f"{result.get('train_seconds') or 0:.1f} s of training"
    # None if nothing was trained.
    rate = result.get("samples_per_second")
    speed = f", {rate:,.0f} samples/s" if rate else ""
    return f"{status} after {duration}, {seconds}{speed}"


def format_number(value: Any) -> str:
    """Format a float with four decimals or an exponent, an int with thousands separators."""
    if isinstance(value, float):
        is_readable = 1e-3 <= abs(value) < 1e4 or value == 0
        return f"{value:.4f}" if is_readable else f"{value:.3e}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def format_clock(seconds: float) -> str:
    """Format a duration as minutes:seconds, with hours if there are any."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def format_facts(rows: Sequence[tuple[str, str]]) -> Text:
    """Format names and values, a line each; long values do not wrap, so that commands can be copied."""
    width = max(len(name) for name, _ in rows)
    lines = []
    for name, value in rows:
        lines.append(Text.assemble((f"{name:<{width}}", "cyan"), f"  {escape_line(value)}"))
    return Text("\n").join(lines)


# Headers, rows, and the number of columns that are text.
_Cells = tuple[tuple[str, ...], tuple[tuple[str, ...], ...], int]


class PlainTable(Table):
    """A table of text and numbers, which knows its cells."""

    cells: _Cells

    @property
    def is_as_built(self) -> bool:
        """Whether nobody has added a title or changed its margins since."""
        return self.title is None and self.pad_edge


@functools.lru_cache(maxsize=16)
def _format_table(cells: _Cells) -> str:
    """A table as run.log has it. Jobs of a sweep have the same layers, and Rich takes milliseconds for a table."""
    text = _format_simple_table(cells)
    if text is not None:
        return text

    output = io.StringIO()
    console = _Escaping(file=output, width=_LOG_WIDTH, no_color=True, **_get_notebook_settings())
    console.print(build_table(*cells), markup=False)
    return output.getvalue()


def _format_simple_table(cells: _Cells) -> str | None:
    """Format a table whose cells need no folding and no escaping, as Rich prints it; None for any other."""
    headers, rows, left = cells
    lines = [headers, *rows]
    if not all(cell.isprintable() and cell == cell.strip() for line in lines for cell in line):
        return None
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    # A space on each side of a cell, and one between two columns.
    total = sum(widths) + 3 * len(widths) - 1
    if total > _LOG_WIDTH:
        return None

    texts = []
    for line in lines:
        padded = []
        for i, (cell, width) in enumerate(zip(line, widths, strict=True)):
            space = " " * (width - cell_len(cell))
            padded.append(cell + space if i < left else space + cell)
        texts.append(f" {'   '.join(padded)} \n")
    texts.insert(1, f"{'─' * total}\n")
    return "".join(texts)


def build_table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> PlainTable:
    """Build a plain table: the first `left` columns are text, aligned left, the others numbers, aligned right."""
    table = PlainTable(box=SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    table.cells = (tuple(headers), tuple(map(tuple, rows)), left)
    for i, header in enumerate(headers):
        # Names may be folded over two lines, numbers never.
        is_number = i >= left
        justify: JustifyMethod = "right" if is_number else "left"
        table.add_column(escape_text(header), justify=justify, overflow="fold", no_wrap=is_number)

    for row in rows:
        table.add_row(*(Text(escape_line(cell)) for cell in row))
    return table
