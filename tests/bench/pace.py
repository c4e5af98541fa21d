"""How a training in a process of its own is stopped and let go, a chunk of steps at a time."""

import json
import os
import sys
import time
from typing import IO, Any

_WARM_SECONDS = 2.0


class Pace:
    """`step()` after each optimizer step: at a chunk's end it says how long it took, and waits for the next word.

    The words on `commands` are lines: "go" trains one more chunk, "go 20" so many steps; an end of file, or anything
    else, ends the process. The first chunk is for warming up: `warm_up` steps, fewer where they take long.
    """

    def __init__(
        self, steps: int, commands: IO[str], answers: IO[str], warm_up: int = 100, device: str = "cpu"
    ) -> None:
        self.steps, self.commands, self.answers = steps, commands, answers
        self.device = device
        self.left = min(warm_up, steps)
        self.started = time.perf_counter()
        self.cpu_started = time.process_time()
        self.warming = True
        self.warm_until: float | None = None

    def step(self) -> None:
        """Count one."""
        self.left -= 1
        if self.warming and self._is_warm():
            self.left = 0
        if self.left == 0:
            self._wait_for_device()
            self._say(
                seconds=time.perf_counter() - self.started,
                cpu_seconds=time.process_time() - self.cpu_started,
            )
            word, *steps = self.commands.readline().split() or [""]
            if word != "go":
                self._end()
            self.warming = False
            self.left = int(steps[0]) if steps else self.steps
            self.started = time.perf_counter()
            self.cpu_started = time.process_time()

    def _is_warm(self) -> bool:
        """Whether the first chunk has taken long enough; its time counts from its first step."""
        if self.warm_until is None:
            self.warm_until = time.perf_counter() + _WARM_SECONDS
        return time.perf_counter() > self.warm_until

    def _wait_for_device(self) -> None:
        """Let a GPU finish what it was given: its steps end later than Python's."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def _say(self, **values: Any) -> None:
        self.answers.write(json.dumps(values) + "\n")
        self.answers.flush()

    def _end(self) -> None:
        self._say(peak_mb=peak_mb())
        os._exit(0)  # no framework's farewell


def peak_mb() -> float | None:
    """The most memory that this process had resident, in MB; null where the system does not say."""
    try:
        with open("/proc/self/status") as status:  # noqa: PTH123
            line = next(line for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) / 1024


def own_stdout() -> IO[str]:
    """The stdout that the parent reads; what else is printed goes where stderr goes, and is not a terminal."""
    answers = os.fdopen(os.dup(1), "w")
    sys.stdout.flush()
    os.dup2(2, 1)
    return answers
