"""The signals that end a run: what has been trained is saved, and the exit code says which signal it was."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from dlrun.core.terminal import write_error

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # Ctrl-C, kill, a lost terminal, a cluster's warning
STOP_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))  # Windows lacks the last two
_AT_ONCE = (signal.SIGINT, signal.SIGTERM)  # sent twice, they mean it; the others come twice by themselves
_FIRST_CODE = 128  # as shells say it


class Stopped(KeyboardInterrupt):
    """Another signal than Ctrl-C while there is nothing to save: it stops dlrun as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code_of_signal(number: int) -> int:
    """The exit code of a process that a signal has ended, also after saving."""
    return _FIRST_CODE + number


def is_interruption(code: int) -> bool:
    """Whether an exit code is that of an interruption."""
    return code - _FIRST_CODE in STOP_SIGNALS


def exit_code_of_interrupt(stopped: KeyboardInterrupt) -> int:
    """The exit code for a Stopped, or for the KeyboardInterrupt that Python makes of Ctrl-C."""
    return exit_code_of_signal(stopped.number if isinstance(stopped, Stopped) else signal.SIGINT)


def _caught() -> list[int]:
    """The signals to catch: not those that whoever started this process has it ignore, as nohup does SIGHUP.

    SIGINT is caught in any case. A shell has it ignored by each process that a script starts in the background, so
    that Ctrl-C is for the script alone, and who sends it to such a process by `kill -INT` means that process.
    """
    return [number for number in STOP_SIGNALS if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
    """All of STOPPING but Ctrl-C raise Stopped while this lasts, but where a run catches them (main thread only)."""

    def stop(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM and _failure.is_near:
            return
        raise Stopped(number)

    _failure.is_near = False
    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):
        for number in _caught():
            if number != signal.SIGINT:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        _restore(before)


class _Failure:
    """Whether this process has failed, and ends as soon as it has said why."""

    is_near = False


_failure = _Failure()


def ignore_termination() -> None:
    """SIGTERM changes nothing from here on: a launcher that ends a failed run's processes must not end this one's say.

    It holds until `terminable` is entered anew.
    """
    _failure.is_near = True


class Interrupt:
    """What the first signal leaves behind: its number, or 0."""

    signal_number = 0

    def __init__(self, quiet: bool = False) -> None:
        """quiet: another process says it."""
        self.process = os.getpid()
        self.quiet = quiet
        self.is_urgent = False  # somebody has typed Ctrl-C, or killed the run

    def __call__(self) -> bool:
        return self.signal_number != 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Keep the first signal for the loop to see after its step; a second Ctrl-C or SIGTERM ends the process now.

        SIGHUP and SIGUSR1 never end it: a closing terminal sends SIGHUP by the kernel and by the shell, and a cluster
        its warning to every process, which those that lead others hand on.
        """
        if number in _AT_ONCE:
            if self.is_urgent:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self.is_urgent = True

        is_first = not self.signal_number
        if is_first:
            self.signal_number = number
        if not is_first or self.quiet or os.getpid() != self.process:
            return  # a data worker that was forked this moment leaves signals to the run
        write_error("\ninterrupted: finishing what is under way and saving (once more to stop at once)")


@contextlib.contextmanager
def catch_signals(quiet: bool = False) -> Iterator[Interrupt]:
    """STOPPING set a flag while this lasts (in the main thread; Python allows it nowhere else)."""
    interrupt = Interrupt(quiet)
    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):
        for number in _caught():
            before[number] = signal.signal(number, interrupt.handle)
    try:
        yield interrupt
    finally:
        _restore(before)


def _restore(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        if handler is not None:  # one that was not set by Python
            signal.signal(number, handler)


@contextlib.contextmanager
def block_signals(*numbers: int) -> Iterator[None]:
    """A process started inside never sees these signals, nor do its children before they ask for it."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
