"""Work beside the training, in a thread that lives as long as one call."""

import threading
import time
from collections.abc import Callable


class BackgroundCall:
    """One call in a thread of its own, begun when this is made. `wait` raises what it raised.

    No thread is left between two calls: a process that forks, as data workers are started, should have no other.
    """

    def __init__(self, function: Callable[[], None], name: str) -> None:
        """name: of the thread, for debuggers."""
        # Processor time that the call took, once it has ended.
        self.cpu_seconds = 0.0
        self._function = function
        self._error: BaseException | None = None
        self._has_ended = False
        self._thread: threading.Thread | None = threading.Thread(target=self._run, name=name)
        try:
            self._thread.start()
        except RuntimeError:
            # No thread can be had, as under a limit of processes: the call is made here.
            self._thread = None
            self._run()

    def _run(self) -> None:
        began = time.thread_time()
        try:
            self._function()
        except BaseException as error:  # raised again by `wait`
            self._error = error
        finally:
            self.cpu_seconds = time.thread_time() - began
            self._has_ended = True

    @property
    def has_ended(self) -> bool:
        """Whether `wait` would return, or raise, at once."""
        return self._has_ended

    def wait(self) -> None:
        """Wait for the end of the call. Signals are handled meanwhile."""
        # Another thread may wait for the same call.
        thread = self._thread
        if thread is not None:
            thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error
