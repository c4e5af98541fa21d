"""What the terminal says: Rich tables and a live bar on a terminal, plain lines elsewhere and in run.log."""

import errno
import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dlrun.core.files import DiskProblems, GrowingFile
from dlrun.core.terminal import escape_line, escape_text

if TYPE_CHECKING:
    pass

_LOG_WIDTH = 100


class _Escaping(RichConsole):
    """Shows text as it stands: control characters are escaped, brackets and colons are no markup and no emoji."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As Rich does; its own control codes, which move the cursor, are segments of another kind."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(escape_text(segment.text), segment.style)


class _Terminal(_Escaping):
    """A terminal that may be lost, or a pipe whose reader may go away: the run goes on without it."""

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            if error.errno != errno.EIO:  # of a terminal whose window or connection was closed
                raise
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Say nothing more; rich would end the process."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _plain() -> dict[str, Any]:
    """In a notebook, as in a pipe: Rich would show each line, and what is for a file, as an output of its own."""
    return {"force_jupyter": False, "force_terminal": False} if RichConsole().is_jupyter else {}


class Console:
    """Says everything twice: to the terminal, and as plain text to run.log once there is a run folder."""

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        """quiet: nothing on the terminal, as for a job of a sweep."""
        self.terminal = _Terminal(file=stream, soft_wrap=False, quiet=quiet, **_plain())
        self.is_logged = False  # there is a run.log
        self._held = io.StringIO()  # what was said before there was a run folder
        self.log = _Escaping(file=self._held, width=_LOG_WIDTH, no_color=True, **_plain())

    def open_log(self, path: Path, unsaved: DiskProblems | None = None) -> None:
        """Write run.log from here on, beginning with what was said already."""
        file: Any = GrowingFile(path, "run.log", unsaved or DiskProblems())
        file.write(self._held.getvalue())
        self.log = _Escaping(file=file, width=_LOG_WIDTH, no_color=True, **_plain())
        self.is_logged = True

    def close(self) -> None:
        """The log is on the disk after this."""
        self.log.file.flush()

    def say(self, thing: RenderableType = "") -> None:
        """A line or a table; square brackets in strings are text, not markup."""
        if isinstance(thing, str):
            thing = escape_line(thing)
        for console in (self.log,) if self.terminal.quiet else (self.terminal, self.log):
            console.print(thing, markup=False, soft_wrap=isinstance(thing, str | Text))
        self.log.file.flush()

    def log_only(self, text: str) -> None:
        """For run.log alone: a traceback, say."""
        self.log.print(escape_text(text), markup=False, soft_wrap=True)
        self.log.file.flush()


def format_metrics(row: dict[str, float]) -> str:
    """The losses and the first other metric: what fits on a line of 80 columns."""
    wanted = ["train/loss", "val/loss"]
    other = [k for k in row if "/" in k and not k.endswith("/loss") and not k.startswith("lr/")]
    prefix = "val/" if any(k.startswith("val/") for k in other) else "train/"
    wanted += [k for k in other if k.startswith(prefix)][:1]
    return "  ".join(f"{k} {format_number(row[k])}" for k in wanted if k in row)


def format_number(value: Any) -> str:
    """A float with four significant places, an int with thousands separators."""
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3e}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def format_clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def format_facts(rows: Sequence[tuple[str, str]]) -> Text:
    """Names and values, a line each; long values run on, so that a command can be copied from them."""
    width = max(len(name) for name, _ in rows)
    lines = [Text.assemble((f"{name:<{width}}", "cyan"), f"  {escape_line(value)}") for name, value in rows]
    return Text("\n").join(lines)


def build_table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Table:
    """A plain table: the first `left` columns to the left, the others, which are numbers, to the right."""
    made = Table(box=SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for i, header in enumerate(headers):
        right = i >= left  # a number is never broken over two lines: names are
        made.add_column(escape_text(header), justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        made.add_row(*(Text(escape_line(cell)) for cell in row))
    return made
