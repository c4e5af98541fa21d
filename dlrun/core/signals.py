"""The signals that end a run: the training is saved first, and the exit code says which signal it was."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from dlrun.core.terminal import write_error

# Ctrl-C, kill, a lost terminal, a cluster's warning. Windows lacks the last two.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
STOP_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))

# Sent twice, these end the process at once. The others come twice by themselves.
_URGENT = (signal.SIGINT, signal.SIGTERM)

# Shells report a signal as an exit code above this one.
_FIRST_CODE = 128


class Stopped(KeyboardInterrupt):
    """A stop signal other than Ctrl-C while there is nothing to save: it stops dlrun as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def get_signal_exit_code(number: int) -> int:
    """Exit code of a process that a signal has ended, also after saving."""
    return _FIRST_CODE + number


def is_interruption(code: int) -> bool:
    """Whether an exit code is that of an interruption."""
    return code - _FIRST_CODE in STOP_SIGNALS


def get_interrupt_exit_code(interrupt: KeyboardInterrupt) -> int:
    """Exit code for a Stopped, or for the KeyboardInterrupt that Python raises on Ctrl-C."""
    number = interrupt.number if isinstance(interrupt, Stopped) else signal.SIGINT
    return get_signal_exit_code(number)


def _list_signals_to_catch() -> list[int]:
    """Stop signals except those that the parent process has set to be ignored, as nohup does with SIGHUP.

    SIGINT is caught in any case. A shell has it ignored by each process that a script starts in the background, so
    that Ctrl-C is for the script alone, and who sends it to such a process by `kill -INT` means that process.
    """
    numbers = []
    for number in STOP_SIGNALS:
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            numbers.append(number)
    return numbers


class _Failure:
    """Whether this process has failed, and ends as soon as it has reported why."""

    is_near = False


_failure = _Failure()


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
    """Raise Stopped on all STOP_SIGNALS but Ctrl-C during the block, except where a run catches them.

    Main thread only.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM and _failure.is_near:
            return

        raise Stopped(number)

    _failure.is_near = False
    before: dict[int, Any] = {}

    # ValueError: this is not the main thread.
    with contextlib.suppress(ValueError):
        for number in _list_signals_to_catch():
            if number != signal.SIGINT:
                before[number] = signal.signal(number, stop)

    try:
        yield
    finally:
        _restore(before)


def ignore_termination() -> None:
    """Ignore SIGTERM from here on, so that a launcher that ends a failed run's processes does not cut off its report.

    It holds until `raise_on_signals` is entered anew.
    """
    _failure.is_near = True


class Interrupt:
    """The first stop signal: its number, or 0. Calling it tells whether there was one."""

    signal_number = 0

    def __init__(self, quiet: bool = False) -> None:
        """quiet: another process tells the user."""
        self.process = os.getpid()
        self.quiet = quiet

        # Somebody has typed Ctrl-C, or killed the run.
        self.is_urgent = False

    def __call__(self) -> bool:
        return self.signal_number != 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Keep the first signal for the loop to see after its step; a second Ctrl-C or SIGTERM ends the process now.

        SIGHUP and SIGUSR1 never end it: a closing terminal sends SIGHUP by the kernel and by the shell, and a cluster
        its warning to every process, and launchers pass it on to their children.
        """
        if number in _URGENT:
            if self.is_urgent:
                # As if dlrun caught nothing, so that the exit status is the signal's own.
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self.is_urgent = True

        is_first = not self.signal_number
        if is_first:
            self.signal_number = number

        # A data worker that was forked this moment leaves signals to the run.
        if not is_first or self.quiet or os.getpid() != self.process:
            return
        write_error("\ninterrupted: finishing what is under way and saving (once more to stop at once)")


@contextlib.contextmanager
def catch_signals(quiet: bool = False) -> Iterator[Interrupt]:
    """Have STOP_SIGNALS set a flag during the block (in the main thread; Python allows it nowhere else)."""
    interrupt = Interrupt(quiet)
    before: dict[int, Any] = {}

    # ValueError: this is not the main thread.
    with contextlib.suppress(ValueError):
        for number in _list_signals_to_catch():
            before[number] = signal.signal(number, interrupt.handle)

    try:
        yield interrupt
    finally:
        _restore(before)


def _restore(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        # None: a handler that was not set by Python, and that Python cannot set again.
        if handler is not None:
            signal.signal(number, handler)


@contextlib.contextmanager
def block_signals(*numbers: int) -> Iterator[None]:
    """Start processes inside the block that never see these signals, nor do their children until they unblock them."""
    if sys.platform == "win32":
        yield
        return

    # A child inherits the mask of blocked signals.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
