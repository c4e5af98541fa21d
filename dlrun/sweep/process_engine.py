"""The engine that runs several jobs at a time, each in a fresh process that shares no state with the others."""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from dlrun.config.request import Request
from dlrun.core import signals
from dlrun.core.search_path import SAFE, SAFE_FOR_CHILD
from dlrun.engine.device import count_cores
from dlrun.sweep.engines import Outcome, Watcher
from dlrun.sweep.jobs import Job

_ALWAYS_BLOCKED = tuple(n for n in signals.STOP_SIGNALS if n not in (signal.SIGINT, signal.SIGTERM))
# The longest that a Ctrl-C waits before the jobs receive it.
_POLL_SECONDS = 0.2


@dataclass
class _Child:
    job: Job
    process: BaseProcess
    results: Connection
    gpu: int | None


class Parallel:
    """Runs `count` processes at a time, forked from a server that has imported torch; they share cores and GPUs."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.threads = max(1, count_cores() // count)
        gpus = torch.cuda.device_count()
        # A slot per process; several share a GPU if there are more processes than GPUs.
        self._gpus: list[int | None] = [None] * count
        if gpus:
            # Reversed, as slots are taken from the end: the first job gets GPU 0.
            self._gpus = [i % gpus for i in reversed(range(count))]
        start_method = "spawn" if sys.platform == "win32" else "forkserver"
        self._context: Any = multiprocessing.get_context(start_method)

    def warm_up(self) -> None:
        """Start the fork server, which imports what jobs need while this process checks them."""
        if sys.platform != "win32":
            from multiprocessing import forkserver, resource_tracker

            self._context.set_forkserver_preload(["dlrun.sweep.worker"])

            # The server's start would start the tracker too, and unblock Ctrl-C and SIGTERM afterwards.
            with hide_working_directory(), signals.block_signals(*_ALWAYS_BLOCKED):
                resource_tracker.ensure_running()

            # A signal to the whole process group must not end the server: it alone can wait for the jobs.
            with self._limit_threads(), hide_working_directory(), signals.block_signals(*signals.STOP_SIGNALS):
                forkserver.ensure_running()

    def start_process(self, target: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
        """Start a daemon that runs `target(*arguments, connection)`; returns it and the reading end."""
        reader, writer = self._context.Pipe(duplex=False)
        with self._limit_threads():
            process = self._context.Process(target=target, args=(*arguments, writer), daemon=True)
            process.start()
        # With the writing end open here too, a dead process would never read as end of file.
        writer.close()
        return process, reader

    def run(self, jobs: Sequence[Job], watcher: Watcher) -> int:
        """Run the jobs, `count` at a time; returns 0, or the exit code of an interruption."""
        waiting = list(reversed(jobs))
        running = list[_Child]()
        sent_signal = 0
        with signals.catch_signals() as stop:
            try:
                while running or (waiting and not stop()):
                    while waiting and len(running) < self.count and not stop():
                        job = waiting.pop()
                        watcher.on_job_start(job)
                        running.append(self._start(job))

                    # Wake up when a process ends, or to look for a Ctrl-C.
                    sentinels = [child.process.sentinel for child in running]
                    connection.wait(sentinels, timeout=_POLL_SECONDS)

                    # Signal each job once, so that it saves its state: a second signal would end it at once.
                    if stop() and not sent_signal:
                        sent_signal = stop.signal_number
                        for child in running:
                            _send_signal(child, sent_signal)

                    for child in [child for child in running if not child.process.is_alive()]:
                        running.remove(child)
                        self._gpus.append(child.gpu)
                        is_continuing = watcher.on_job_end(child.job, _receive_outcome(child, sent_signal))
                        if not is_continuing and not sent_signal:
                            waiting.clear()
            finally:
                # Only an error of the sweep itself leaves jobs running here.
                for child in running:
                    child.process.kill()
                    child.process.join()
        return signals.get_signal_exit_code(sent_signal) if sent_signal else 0

    def _start(self, job: Job) -> _Child:
        gpu = self._gpus.pop()
        reader, writer = self._context.Pipe(duplex=False)
        request = _assign_gpu(job.request, gpu)
        num_threads = job.request.config["device"]["num_threads"]
        threads = num_threads if isinstance(num_threads, int) else self.threads

        with self._limit_threads():
            # Imported with the first job: the module builds an optimizer, which takes a second.
            from dlrun.sweep.worker import run_job

            arguments = (request, writer, threads)
            process = self._context.Process(target=run_job, args=arguments, name=f"job {job.number}")
            process.start()
        writer.close()
        return _Child(job, process, reader, gpu)

    @contextlib.contextmanager
    def _limit_threads(self) -> Iterator[None]:
        """Give processes started inside their share of the cores: torch reads this on import."""
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        try:
            yield
        finally:
            if before is None:
                os.environ.pop("OMP_NUM_THREADS")
            else:
                os.environ["OMP_NUM_THREADS"] = before


def resolve_job_count(jobs: Any) -> int:
    """`sweep.jobs` as a number; auto is one a GPU, or one a core without GPUs."""
    if jobs != "auto":
        return int(jobs)
    return torch.cuda.device_count() or count_cores()


def _assign_gpu(request: Request, gpu: int | None) -> Request:
    """The request on the GPU, unless its config names a GPU by number or another device."""
    device = request.config["device"]
    if gpu is None or device["index"] is not None or device["name"] not in ("auto", "cuda"):
        return request
    return replace(request, config={**request.config, "device": {**device, "index": gpu}})


def _send_signal(child: _Child, number: int) -> None:
    if child.process.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.process.pid, number)


@contextlib.contextmanager
def hide_working_directory() -> Iterator[None]:
    """Keep processes started inside from importing their first modules from the working directory."""
    before = os.environ.get(SAFE)
    os.environ[SAFE] = before or SAFE_FOR_CHILD
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(SAFE)


def _receive_outcome(child: _Child, sent_signal: int) -> Outcome:
    """The outcome that an ended process sent, or one that explains its death.

    sent_signal: the signal that the sweep sent to it, or 0.
    """
    child.process.join()
    # A killed process may have sent half a message, or none.
    with child.results, contextlib.suppress(EOFError, OSError):
        if child.results.poll():
            outcome = child.results.recv()
            assert isinstance(outcome, Outcome)
            return outcome

    if sent_signal:
        # The signal came before the job had begun, or twice.
        return Outcome(signals.get_signal_exit_code(sent_signal))

    code = child.process.exitcode or 0
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; perhaps memory ran out: try fewer sweep.jobs" if name == "SIGKILL" else ""
        return Outcome(1, f"its process was killed by {name}{hint}")
    return Outcome(1, f"its process ended with exit code {code} and without a word")
