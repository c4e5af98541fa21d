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
from dlrun.engine.device import cores
from dlrun.sweep.engines import Outcome, Watcher
from dlrun.sweep.jobs import Job

_ALWAYS_BLOCKED = tuple(n for n in signals.STOPPING if n not in (signal.SIGINT, signal.SIGTERM))
_LOOK_SECONDS = 0.2  # how soon a Ctrl-C is passed on


@dataclass
class _Running:
    job: Job
    process: BaseProcess
    answers: Connection
    gpu: int | None


class Parallel:
    """`count` processes at a time, forked from a server that has imported torch; cores and GPUs are shared out."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.threads = max(1, cores() // count)
        gpus = torch.cuda.device_count()
        self._gpus: list[int | None] = [i % gpus if gpus else None for i in reversed(range(count))]
        self._context: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")

    def warm_up(self) -> None:
        """Begin to import what the jobs need; it goes on beside what this process does meanwhile."""
        if sys.platform != "win32":
            from multiprocessing import forkserver, resource_tracker

            self._context.set_forkserver_preload(["dlrun.sweep.worker"])
            with hide_working_directory(), signals.held_back(*_ALWAYS_BLOCKED):
                resource_tracker.ensure_running()  # the server's start would, and let Ctrl-C and SIGTERM through again
            with self._few_threads(), hide_working_directory(), signals.held_back(*signals.STOPPING):
                # a signal to the whole group would end the server, and with it all that is known of the jobs
                forkserver.ensure_running()

    def start_process(self, target: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
        """Start a process that runs `target(*arguments, connection)`, and the end of the connection to read from."""
        mine, theirs = self._context.Pipe(duplex=False)
        with self._few_threads():
            process = self._context.Process(target=target, args=(*arguments, theirs), daemon=True)
            process.start()
        theirs.close()
        return process, mine

    def run(self, jobs: Sequence[Job], watcher: Watcher) -> int:
        """See engines.Engine."""
        waiting, running = list(reversed(jobs)), list[_Running]()
        told = 0
        with signals.interruptible() as stop:
            try:
                while running or (waiting and not stop()):
                    while waiting and len(running) < self.count and not stop():
                        job = waiting.pop()
                        watcher.started(job)
                        running.append(self._start(job))
                    connection.wait([one.process.sentinel for one in running], timeout=_LOOK_SECONDS)
                    if stop() and not told:
                        told = stop.signal_number
                        for one in running:
                            _send_signal(one, told)
                    for one in [one for one in running if not one.process.is_alive()]:
                        running.remove(one)
                        self._gpus.append(one.gpu)
                        if not watcher.ended(one.job, _receive_outcome(one, told)) and not told:
                            waiting.clear()
            finally:
                for one in running:
                    one.process.kill()
                    one.process.join()
        return signals.exit_code(told) if told else 0

    def _start(self, job: Job) -> _Running:
        gpu = self._gpus.pop()
        mine, theirs = self._context.Pipe(duplex=False)
        request = _assign_gpu(job.request, gpu)
        asked = job.request.config["device"]["num_threads"]
        threads = asked if isinstance(asked, int) else self.threads
        with self._few_threads():
            from dlrun.sweep.worker import run_job

            process = self._context.Process(target=run_job, args=(request, theirs, threads), name=f"job {job.number}")
            process.start()
        theirs.close()
        return _Running(job, process, mine, gpu)

    @contextlib.contextmanager
    def _few_threads(self) -> Iterator[None]:
        """What is started inside takes its share of the cores: torch reads this when it is imported."""
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
    """`sweep.jobs` as a number: auto is one a GPU, or one a core where there is none."""
    return int(jobs) if jobs != "auto" else torch.cuda.device_count() or cores()


def _assign_gpu(request: Request, gpu: int | None) -> Request:
    """The request on a GPU of its own, where it did not ask for one by number."""
    device = request.config["device"]
    if gpu is None or device["index"] is not None or device["name"] not in ("auto", "cuda"):
        return request
    return replace(request, config={**request.config, "device": {**device, "index": gpu}})


def _send_signal(one: _Running, number: int) -> None:
    if one.process.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.process.pid, number)


@contextlib.contextmanager
def hide_working_directory() -> Iterator[None]:
    """A process started inside does not look for its first modules in the working directory."""
    before = os.environ.get(SAFE)
    os.environ[SAFE] = before or SAFE_FOR_CHILD
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(SAFE)


def _receive_outcome(one: _Running, told: int) -> Outcome:
    """What a process that has ended sent, or what its death says; told: the signal that it was sent, or 0."""
    one.process.join()
    with one.answers, contextlib.suppress(EOFError, OSError):
        if one.answers.poll():
            found = one.answers.recv()
            assert isinstance(found, Outcome)
            return found
    if told:  # it had not begun, or was signalled twice
        return Outcome(signals.exit_code(told))
    code = one.process.exitcode or 0
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; perhaps memory ran out: try fewer sweep.jobs" if name == "SIGKILL" else ""
        return Outcome(1, f"its process was killed by {name}{hint}")
    return Outcome(1, f"its process ended with exit code {code} and without a word")
