"""The engine that runs several jobs at a time, each in a fresh process that shares no state with the others."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
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
from dlrun.runs.reports.plots import canvas
from dlrun.sweep.engines import Outcome, Serial, Watcher
from dlrun.sweep.jobs import Job
from dlrun.sweep.stacks import PreparedJobs, Unit

_ALWAYS_BLOCKED = tuple(n for n in signals.STOP_SIGNALS if n not in (signal.SIGINT, signal.SIGTERM))
# A run of this length is worth a process of its own.
_LONG_SECONDS = 5.0
# The longest that a Ctrl-C waits before the jobs receive it.
_POLL_SECONDS = 0.2


@dataclass
class _Child:
    unit: Unit
    # The jobs whose outcome has not come.
    waiting: dict[str, Job]
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
        # What the processes find built already.
        self._prepared: PreparedJobs | None = None
        # False once the watcher wants no further job.
        self.is_continuing = True

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

    def run(self, units: Sequence[Unit], watcher: Watcher) -> int:
        """Run the units, `count` at a time; returns 0, or the exit code of an interruption."""
        waiting = list(reversed(units))
        running = list[_Child]()
        sent_signal = 0
        with signals.catch_signals() as stop:
            try:
                while running or (waiting and not stop()):
                    while waiting and len(running) < self.count and not stop():
                        unit = waiting.pop()
                        for job in unit.open_jobs:
                            watcher.on_job_start(job)
                        running.append(self._start(unit))
                        if not waiting:
                            self.on_last_start()

                    # Wake up when a process ends or has something to say, or to look for a Ctrl-C.
                    sources: list[Any] = [child.process.sentinel for child in running]
                    sources += [child.results for child in running if not child.results.closed]
                    connection.wait(sources, timeout=_POLL_SECONDS)
                    for child in running:
                        self.is_continuing &= _receive(child, watcher)

                    # Signal each job once, so that it saves its state: a second signal would end it at once.
                    if stop() and not sent_signal:
                        sent_signal = stop.signal_number
                        for child in running:
                            _send_signal(child, sent_signal)

                    for child in [child for child in running if not child.process.is_alive()]:
                        running.remove(child)
                        self._gpus.append(child.gpu)
                        child.process.join()
                        self.is_continuing &= _receive(child, watcher)
                        child.results.close()
                        for job in child.waiting.values():
                            self.is_continuing &= watcher.on_job_end(job, _explain_death(child, sent_signal))

                    if not self.is_continuing and not sent_signal:
                        waiting.clear()
            finally:
                # Only an error of the sweep itself leaves jobs running here.
                for child in running:
                    child.process.kill()
                    child.process.join()
        return signals.get_signal_exit_code(sent_signal) if sent_signal else 0

    def on_last_start(self) -> None:
        """Called when no unit waits any longer, while the last ones run."""

    def _start(self, unit: Unit) -> _Child:
        gpu = self._gpus.pop()
        reader, writer = self._context.Pipe(duplex=False)
        jobs = tuple(replace(job, request=_assign_gpu(job.request, gpu)) for job in unit.jobs)
        num_threads = unit.jobs[0].request.config["device"]["num_threads"]
        threads = num_threads if isinstance(num_threads, int) else self.threads

        with self._limit_threads():
            # Imported with the first job: the module builds an optimizer, which takes a second.
            from dlrun.sweep.worker import run_in_process

            arguments = (replace(unit, jobs=jobs), writer, threads, self._prepared)
            name = f"job {unit.jobs[0].number}"
            process = self._context.Process(target=run_in_process, args=arguments, name=name)
            process.start()
        writer.close()
        return _Child(unit, {job.key: job for job in unit.open_jobs}, process, reader, gpu)

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


class Forking(Parallel):
    """Runs `count` stacks at a time in processes forked from this one, which need not import or build anything again.

    Each computes in one thread: a fork leaves behind the threads that torch has made.
    """

    def __init__(self, count: int, prepared: PreparedJobs) -> None:
        super().__init__(count)
        self.threads = 1
        self._context = multiprocessing.get_context("fork")
        self._prepared = prepared

    def _start(self, unit: Unit) -> _Child:
        # As the fork server does: until the run handles signals itself, none may end it halfway.
        with signals.block_signals(*signals.STOP_SIGNALS):
            return super()._start(unit)

    def on_last_start(self) -> None:
        """Import what the pictures of the sweep need, as this process would only wait."""
        canvas.load()


class Adaptive:
    """Runs long stacks in forked processes, `count` at a time, and other units in this process until one took long.

    Those that follow run in processes of their own: one takes longer to start than a short run to train, and the cores
    are shared out among several.
    """

    def __init__(self, serial: Serial, count: int) -> None:
        self.serial = serial
        self.count = count

    def run(self, units: Sequence[Unit], watcher: Watcher) -> int:
        """Run the units; returns 0, or the exit code of an interruption."""
        forks = [unit for unit in units if unit.forks]
        if len(forks) > 1:
            engine = Forking(min(self.count, len(forks)), self.serial.prepared)
            watcher.on_pace_change(engine.count)
            code = engine.run(forks, watcher)
            if code or not engine.is_continuing:
                return code
            watcher.on_pace_change(1)
            units = [unit for unit in units if not unit.forks]

        for number, unit in enumerate(units, 1):
            # Processor time: on a busy machine even a short run takes long.
            begin = time.process_time()
            code = self.serial.run([unit], watcher)
            seconds = (time.process_time() - begin) / torch.get_num_threads()
            if code or not self.serial.is_continuing:
                return code

            rest = units[number:]
            if seconds >= _LONG_SECONDS and len(rest) > 1:
                at_once = min(self.count, len(rest))
                watcher.note(
                    f"that took {seconds:.0f} s, so the others run {at_once} at a time, with "
                    f"{max(1, count_cores() // at_once)} of {count_cores()} threads each "
                    "(sweep.jobs=1: one after the other)"
                )
                watcher.on_pace_change(at_once)
                parallel = Parallel(at_once)
                parallel.warm_up()
                return parallel.run(rest, watcher)
        return 0


def resolve_job_count(jobs: Any) -> int:
    """`sweep.jobs` as a number; auto is one a GPU, or 1 without GPUs, where the time of a run decides."""
    if jobs != "auto":
        return int(jobs)
    return max(1, torch.cuda.device_count())


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


def _receive(child: _Child, watcher: Watcher) -> bool:
    """Pass on what a process has sent: notes, and outcomes of its jobs; returns False to start no further job."""
    is_continuing = True
    # A killed process may have sent half a message, or none.
    with contextlib.suppress(EOFError, OSError):
        while not child.results.closed and child.results.poll():
            try:
                message = child.results.recv()
            except EOFError:
                child.results.close()
                break
            if isinstance(message, str):
                watcher.note(message)
                continue
            key, outcome = message
            assert isinstance(outcome, Outcome)
            is_continuing &= watcher.on_job_end(child.waiting.pop(key), outcome)
    return is_continuing


def _explain_death(child: _Child, sent_signal: int) -> Outcome:
    """The outcome of a job of which an ended process sent none.

    sent_signal: the signal that the sweep sent to the process, or 0.
    """
    if sent_signal:
        # The signal came before the job had begun, or twice.
        return Outcome(signals.get_signal_exit_code(sent_signal))

    code = child.process.exitcode or 0
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; perhaps memory ran out: try fewer sweep.jobs" if name == "SIGKILL" else ""
        return Outcome(1, f"its process was killed by {name}{hint}")
    return Outcome(1, f"its process ended with exit code {code} and without a word")
