"""Warnings of libraries go to run.log, not to the terminal; those of the user's own code are counted besides."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dlrun.core.errors import is_own_code

Write = Callable[[str], None]


class Diversion:
    """Takes warnings while dlrun works: writes them to a log, or keeps them in `pending` if there is no log yet."""

    def __init__(self, write: Write | None, is_shown: bool) -> None:
        """is_shown: libraries' warnings are shown as they would be without dlrun, as -v asks for."""
        self.write = write
        self.is_shown = is_shown
        self.pending: list[str] = []

        # Warnings of the user's own code, each once.
        self.own: list[str] = []
        self._texts: set[str] = set()
        self._process = os.getpid()

    def take(self, text: str, is_own: bool) -> bool:
        """Write one warning, each text once. Returns False if it is to be shown on the terminal as well."""
        # A forked child must not write to the log.
        has_log = self.write is not None and os.getpid() == self._process

        if text not in self._texts:
            self._texts.add(text)
            if has_log and self.write is not None:
                self.write(text)
                if is_own:
                    self.own.append(text)
            elif not is_own:
                self.pending.append(text)

        return has_log if is_own else not self.is_shown

    def note(self) -> list[str]:
        """One sentence about the warnings of the user's code; an empty list if there were none."""
        if not self.own:
            return []

        count = len(self.own)
        subject = "1 warning of code of yours is" if count == 1 else f"{count} warnings of code of yours are"
        first = self.own[0].splitlines()[0]
        more = " ..." if count > 1 else ""
        return [f"{subject} in run.log: {first}{more}"]


_current: Diversion | None = None
_until_exit = contextlib.ExitStack()


@contextlib.contextmanager
def divert_warnings(write: Write | None = None) -> Iterator[Diversion]:
    """Take what Python's warnings and the loggers of libraries would print during the block.

    No filter is changed: what a filter hides stays hidden, and what it turns into an error is raised. Without `write`
    the warnings of the user's own code are shown as usual, and those of libraries wait for an inner diversion's log.
    """
    global _current
    outer = _current
    diversion = Diversion(write, is_shown=outer is not None and outer.is_shown)

    # What has waited for a log is written to this one.
    if outer is not None and write is not None:
        for text in outer.pending:
            diversion.take(text, is_own=False)
        outer.pending.clear()

    show_before = warnings.showwarning
    emit_before = logging.StreamHandler.emit

    def show_warning(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        is_own = is_own_code(filename)
        if is_own:
            text = f"{Path(filename).name}, line {lineno}: {category.__name__}: {message}"
        else:
            text = warnings.formatwarning(message, category, filename, lineno, line).rstrip()
        if file is not None or not diversion.take(text, is_own):
            show_before(message, category, filename, lineno, file, line)

    def emit(handler: logging.StreamHandler[Any], record: logging.LogRecord) -> None:
        # Below a warning nothing is diverted: Hydra answers --info by a logger.
        is_warning = record.levelno >= logging.WARNING
        is_diverted = is_warning and _writes_to_terminal(handler) and not is_own_code(record.pathname)
        if not is_diverted or not diversion.take(f"{record.name}: {record.getMessage()}", is_own=False):
            emit_before(handler, record)

    warnings.showwarning = show_warning
    logging.StreamHandler.emit = emit  # type: ignore[method-assign, assignment]
    _current = diversion

    try:
        yield diversion
    finally:
        _current = outer
        logging.StreamHandler.emit = emit_before  # type: ignore[method-assign]
        warnings.showwarning = show_before


def divert_until_exit() -> None:
    """Divert warnings until this process ends: for a data worker, which has no log."""
    _until_exit.enter_context(divert_warnings())


def show_warnings(is_shown: bool) -> None:
    """Set whether warnings of libraries are shown from here on as they would be without dlrun."""
    if _current is not None:
        _current.is_shown = is_shown


def _writes_to_terminal(handler: logging.StreamHandler[Any]) -> bool:
    """Whether a handler writes to stdout or stderr, as logging's handler of last resort does."""
    stream = getattr(handler, "stream", None)
    if stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        return True

    with contextlib.suppress(Exception):
        # A stream need not have a file number.
        return stream is not None and stream.fileno() in (1, 2)
    return False
