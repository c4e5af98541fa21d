"""How a run calls a logger: at once, or from a thread that the run does not wait for."""

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from dlrun.core.errors import iter_causes
from dlrun.core.user_code import add_user_line, get_first_clause
from dlrun.runs.loggers.base import LoggedRun, Logger, Record

# Records that wait to be sent; later ones are dropped and counted.
_MOST_WAITING = 10_000
# Records that are sent together.
_MOST_TOGETHER = 200
# Seconds between two attempts to reach a server: the first pause, doubled up to the longest.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0


class Channel:
    """Calls a logger at once. An exception is reported once and what was lost is counted; the run continues."""

    def __init__(self, name: str, logger: Logger, say: Callable[[str], None]) -> None:
        """name: that of the logger in the config; say: shows a line at once."""
        self.name = name
        self.logger = logger
        self.say = say

        # Calls that failed for good, and why the last one did.
        self.lost = 0
        self.reason = ""
        self._is_reported = False
        # A logger that could not start is not called again.
        self._is_started = False

    @property
    def state(self) -> dict[str, Any] | None:
        """A copy of what the logger wants to keep."""
        return self._copy_state()

    def _copy_state(self) -> dict[str, Any] | None:
        """A copy of the logger's state; None where it has none, or none that JSON holds."""
        if self.logger.state is None:
            return None
        try:
            state = json.loads(json.dumps(self.logger.state, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            self.reason = f"its state is no plain data ({get_first_clause(error)})"
            return None

        return state if isinstance(state, dict) else None

    def start(self, run: LoggedRun) -> None:
        """Start the logger."""
        self._is_started = self._try(self.logger.start, run)

    def log_hyperparameters(self, values: dict[str, Any]) -> None:
        """Log settings by dotted key."""
        self._call(self.logger.log_hyperparameters, values)

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        """Log metrics by name."""
        self._call(self.logger.log_metrics, values, step)

    def log_text(self, tag: str, text: str, step: int) -> None:
        """Log Markdown."""
        self._call(self.logger.log_text, tag, text, step)

    def report(self) -> None:
        """Show the first failure, if it has not been shown yet."""
        if self.reason and not self._is_reported:
            self._is_reported = True
            self.say(f"logger {self.name}: {self.reason}; the run continues")

    def settle(self, deadline: float) -> list[str]:
        """Wait until all is logged, but not after `deadline` (time.monotonic); returns a note on what is lost."""
        return self._note_loss(self.lost)

    def begin_finish(self, status: str) -> None:
        """Finish the logger, or begin to."""
        if self._is_started:
            self._try(self.logger.finish, status)

    def wait_for_finish(self, deadline: float) -> None:
        """Wait for the logger to finish, but not after `deadline`."""
        self.report()

    def _call(self, method: Callable[..., None], *arguments: Any) -> None:
        if not self._is_started:
            self.lost += 1
        else:
            self._try(method, *arguments)

    def _try(self, method: Callable[..., None], *arguments: Any) -> bool:
        """Call a method of the logger; returns whether it succeeded."""
        try:
            method(*arguments)
        except Exception as error:
            # A logger is the user's own or a library's: anything can come.
            self.lost += 1
            self.reason = _describe_failure(error)
            self.report()
            return False

        return True

    def _note_loss(self, count: int) -> list[str]:
        if not count:
            return []
        # The note says all that a line before it would.
        self._is_reported = True
        records = "1 record is" if count == 1 else f"{count:,} records are"
        return [f"logger {self.name}: {records} not logged there ({self.reason or 'it is too slow'})"]


class BackgroundChannel(Channel):
    """Calls a logger from a thread, in order. While its server does not answer, records wait in a bounded queue."""

    def __init__(self, name: str, logger: Logger, say: Callable[[str], None]) -> None:
        super().__init__(name, logger, say)
        self._condition = threading.Condition()
        # Pairs of method and arguments; records of metrics stand alone, so that they can be sent together.
        self._queue: deque[Record | tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._is_busy = False
        self._is_failing = False
        # Attempt at once and for the last time, as the run is at its end.
        self._is_hurried = False
        self._is_abandoned = False
        self._state: dict[str, Any] | None = None
        # A daemon: the process ends although the thread may wait for a server.
        self._thread = threading.Thread(target=self._work, name=f"dlrun logger {name}", daemon=True)

    @property
    def state(self) -> dict[str, Any] | None:
        """A copy of what the logger wanted to keep after its latest call."""
        with self._condition:
            return self._state

    def start(self, run: LoggedRun) -> None:
        """Have the logger started by its thread."""
        self._state = self._copy_state()
        self._is_started = True
        self._thread.start()
        self._put((self.logger.start, (run,)))
        with self._condition:
            self._wait(time.monotonic() + self.logger.start_seconds)

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        """Put metrics into the queue, or drop them where it is full."""
        self._put(Record(values, step, time.time()))

    def _call(self, method: Callable[..., None], *arguments: Any) -> None:
        self._put((method, arguments))

    def _put(self, item: Record | tuple[Callable[..., None], tuple[Any, ...]]) -> None:
        with self._condition:
            if len(self._queue) >= _MOST_WAITING or self._is_abandoned:
                self.lost += 1
                return
            self._queue.append(item)
            self._condition.notify_all()
        self.report()

    def settle(self, deadline: float) -> list[str]:
        """Wait until the queue is empty, but not after `deadline`, and not for a server that does not answer."""
        with self._condition:
            self._hurry()
            self._wait(deadline)
            # What still waits is given up, except that it may be sent before the run has ended.
            waiting = len(self._queue) + self._is_busy
            if waiting:
                self.reason = self.reason or f"it does not answer within {self.logger.wait_seconds:g} s"
                self._give_up()
            return self._note_loss(self.lost + waiting)

    def begin_finish(self, status: str) -> None:
        """Put the end into the queue, if the logger answers."""
        with self._condition:
            if self._is_abandoned:
                return
            self._hurry()
            self._queue.append((self.logger.finish, (status,)))
            self._condition.notify_all()

    def wait_for_finish(self, deadline: float) -> None:
        """Wait for the logger to finish, but not after `deadline`; then the thread is left to itself."""
        with self._condition:
            if not self._is_abandoned:
                self._wait(deadline)
                if self._queue or self._is_busy:
                    self.reason = self.reason or f"it does not answer within {self.logger.wait_seconds:g} s"
            self._give_up()
        self.report()

    def _hurry(self) -> None:
        self._is_hurried = True
        self._condition.notify_all()

    def _wait(self, deadline: float) -> None:
        while (self._queue or self._is_busy) and not self._is_abandoned:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            self._condition.wait(remaining)

    def _give_up(self) -> None:
        """End the thread after its current call."""
        self._is_abandoned = True
        self._condition.notify_all()

    # In the thread

    def _work(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            batch = self._take()
            if batch is None:
                return

            error = self._send(batch)
            with self._condition:
                self._is_busy = False
                self._state = self._copy_state()
                if error is None:
                    self._is_failing = False
                    pause = _FIRST_PAUSE
                elif not self._recover(batch, error, pause):
                    return
                else:
                    pause = min(2 * pause, _LONGEST_PAUSE)
                self._condition.notify_all()

    def _take(self) -> list[Any] | None:
        """Take the next call, or several records; None where the thread is to end."""
        with self._condition:
            while not self._queue and not self._is_abandoned:
                self._condition.wait()
            if self._is_abandoned:
                return None

            self._is_busy = True
            batch: list[Any] = [self._queue.popleft()]
            while isinstance(batch[0], Record) and self._queue and len(batch) < _MOST_TOGETHER:
                if not isinstance(self._queue[0], Record):
                    break
                batch.append(self._queue.popleft())
            return batch

    def _send(self, batch: list[Any]) -> Exception | None:
        try:
            if isinstance(batch[0], Record):
                self.logger.log_records(batch)
            else:
                method, arguments = batch[0]
                method(*arguments)
        except Exception as error:
            # A library's or the user's own: anything can come.
            return error

        return None

    def _recover(self, batch: list[Any], error: Exception, pause: float) -> bool:
        """Queue the batch again where the server may answer later, else count it as lost; False ends the thread."""
        self.reason = _describe_failure(error)
        is_start = not isinstance(batch[0], Record) and batch[0][0] == self.logger.start
        if not self.logger.is_outage(error):
            self.lost += len(batch)
            if is_start:
                self.lost += len(self._queue)
                self._queue.clear()
                self._give_up()
            return not is_start

        self._queue.extendleft(reversed(batch))
        if self._is_hurried and self._is_failing:
            # It did not answer before, and does not now that the run ends.
            self._give_up()
            return False

        self._is_failing = True
        self._condition.notify_all()
        deadline = time.monotonic() + pause
        while not self._is_hurried and not self._is_abandoned and time.monotonic() < deadline:
            self._condition.wait(deadline - time.monotonic())
        return not self._is_abandoned


def _describe_failure(error: Exception) -> str:
    """Describe an exception of a logger in one line, by its first cause in the system where there is one."""
    causes = list(iter_causes(error))
    for cause in reversed(causes):
        if isinstance(cause, OSError) and cause.strerror:
            return add_user_line(cause.strerror, error)
    return add_user_line(f"{type(error).__name__}: {get_first_clause(error)[:200]}", error)


def make_channel(name: str, logger: Logger, say: Callable[[str], None]) -> Channel:
    """The channel that a logger asks for."""
    kind = BackgroundChannel if logger.in_background else Channel
    return kind(name, logger, say)
