"""What libraries warn of goes to run.log, not to the terminal; what the user's own code warns of is counted besides."""

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
    """Where warnings go while dlrun works: into a log, or where there is none yet into `pending`."""

    def __init__(self, write: Write | None, is_shown: bool) -> None:
        """is_shown: libraries' warnings are shown as they would be without dlrun, as -v asks for."""
        self.write = write
        self.is_shown = is_shown
        self.pending: list[str] = []
        self.own: list[str] = []  # those of the user's code, each once
        self._texts: set[str] = set()
        self._process = os.getpid()

    def take(self, text: str, is_own: bool) -> bool:
        """Write one warning, each text once; False for what is to be shown on the terminal as well."""
        has_log = self.write is not None and os.getpid() == self._process  # a forked child must not write to it
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
        """A sentence about the warnings of the user's code, if there were any."""
        if not self.own:
            return []
        count = len(self.own)
        several = "1 warning of code of yours is" if count == 1 else f"{count} warnings of code of yours are"
        first = self.own[0].splitlines()[0]
        return [f"{several} in run.log: {first}{' ...' if count > 1 else ''}"]


_current: Diversion | None = None


@contextlib.contextmanager
def divert_warnings(write: Write | None = None) -> Iterator[Diversion]:
    """Take what Python's warnings and the loggers of libraries would print, while this lasts.

    No filter is changed: what a filter hides stays hidden, and what it turns into an error is raised. Without `write`
    the warnings of the user's own code are shown as ever, and those of libraries wait for an inner diversion's log.
    """
    global _current
    outer = _current
    diversion = Diversion(write, is_shown=outer is not None and outer.is_shown)
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
        text = f"{Path(filename).name}, line {lineno}: {category.__name__}: {message}" if is_own else ""
        text = text or warnings.formatwarning(message, category, filename, lineno, line).rstrip()
        if file is not None or not diversion.take(text, is_own):
            show_before(message, category, filename, lineno, file, line)

    def emit(handler: logging.StreamHandler[Any], record: logging.LogRecord) -> None:
        is_warning = record.levelno >= logging.WARNING  # Hydra answers --info by a logger
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
    """The same until this process ends, for one that reads data: it has no log."""
    _forever.enter_context(divert_warnings())


_forever = contextlib.ExitStack()


def show_warnings(is_shown: bool) -> None:
    """Whether what libraries warn of is shown from here on as it would be without dlrun."""
    if _current is not None:
        _current.is_shown = is_shown


def _writes_to_terminal(handler: logging.StreamHandler[Any]) -> bool:
    """Whether a handler writes to stdout or stderr, as that of last resort does; not to a file."""
    stream = getattr(handler, "stream", None)
    if stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        return True
    with contextlib.suppress(Exception):  # a stream without a number
        return stream is not None and stream.fileno() in (1, 2)
    return False
