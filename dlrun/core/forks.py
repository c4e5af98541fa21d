"""Calls in forked processes: they see all that this one holds, and only what they return comes back."""

import contextlib
import ctypes
import gc
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from dlrun.core.errors import RunError
from dlrun.core.signals import STOP_SIGNALS

# An option of prctl(2).
PR_SET_PDEATHSIG = 1

# Elsewhere a forked process outlives its parent, and system libraries of macOS crash in it.
HAS_FORKS = sys.platform == "linux"


class ForkDeath(RunError):
    """A forked process has ended before it returned anything."""


class Forks:
    """Processes that share the calls of a function among them; those that are left are killed at the block's end.

    They write no terminal and ignore the stop signals: the process that has forked them decides when they end, and
    takes them with it when it is killed. What they change is their own copy.
    """

    def __init__(self, function: Callable[[int], Any], numbers: Sequence[int], processes: int) -> None:
        """numbers: arguments of the calls, dealt to the processes in turn."""
        self._pipes: list[Connection] = []
        self._pids: list[int] = []
        self._numbers = numbers
        count = min(processes, len(numbers))
        # What is buffered would be written by each process.
        sys.stdout.flush()
        sys.stderr.flush()
        for rank in range(count):
            self._fork(function, numbers[rank::count])

    def _fork(self, function: Callable[[int], Any], numbers: Sequence[int]) -> None:
        receiver, sender = Pipe(duplex=False)
        parent = os.getpid()
        pid = os.fork()
        if pid:
            sender.close()
            self._pipes.append(receiver)
            self._pids.append(pid)
            return

        # os._exit, whatever comes: what this process was about to do is done by the one it was forked from.
        try:
            for pipe in (receiver, *self._pipes):
                pipe.close()
            _enter_fork(parent)
            for number in numbers:
                _send(sender, _call(function, number))
        finally:
            os._exit(0)

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *error: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for pid in self._pids:
            # All have ended by themselves unless the block was left early.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def __iter__(self) -> Iterator[tuple[Any, BaseException | None]]:
        """Yield what each call has returned, or raised, in the order of the numbers; waits for it."""
        for position in range(len(self._numbers)):
            try:
                yield self._pipes[position % len(self._pipes)].recv()
            except EOFError:
                yield None, ForkDeath("the process that should have recorded this ended before its time")


def _enter_fork(parent: int) -> None:
    """Make this process one that ends with its parent, and says nothing."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # A collection would copy the pages of every object that both processes have.
    gc.freeze()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have been killed before the call above.
    if os.getppid() != parent:
        os._exit(1)


def _call(function: Callable[[int], Any], number: int) -> tuple[Any, BaseException | None]:
    try:
        return function(number), None
    except (Exception, SystemExit) as error:
        # The user's own code may raise anything; the caller decides what it means.
        return None, error


def _send(pipe: Connection, result: tuple[Any, BaseException | None]) -> None:
    try:
        # An error may pickle, and fail to be made again from that.
        content = pickle.dumps(result)
        pickle.loads(content)
    except Exception:
        # An exception of the user's own may do anything while it is pickled.
        error = result[1]
        content = pickle.dumps((None, RunError(f"{type(error).__name__}: {error}")))
    pipe.send_bytes(content)
