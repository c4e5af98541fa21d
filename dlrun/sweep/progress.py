"""How a sweep gets on: one live table on a terminal, a line when a job ends elsewhere."""

import contextlib
import heapq
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dlrun.runs.record import METRICS, RunRecord, parse_line
from dlrun.runs.reports.console import Console, clock, number, table
from dlrun.sweep.engines import Outcome
from dlrun.sweep.jobs import Job

_LINES = 12  # of ended and running jobs that the live table shows
_TAIL = 4096  # bytes at the end of metrics.jsonl, which hold its last row


class Display:
    """Says what started and ended; between that it looks into the folders of the running jobs twice a second."""

    def __init__(self, console: Console, jobs: Sequence[Job], at_once: int) -> None:
        """jobs: those to be run; at_once: how many run at a time."""
        self.console, self.jobs, self.at_once = console, jobs, at_once
        self.running: dict[str, tuple[Job, float]] = {}
        self.ended: list[tuple[Job, Outcome, float]] = []
        self.failed = 0
        self._began = time.perf_counter()

    def started(self, job: Job) -> None:
        """A job begins."""
        self.running[job.key] = (job, time.perf_counter())

    def finished(self, job: Job, outcome: Outcome) -> float:
        """A job has ended: a line where there is no live table, and always when it failed; returns its seconds."""
        _, began = self.running.pop(job.key)
        seconds = time.perf_counter() - began
        self.ended.append((job, outcome, seconds))
        position = f"{len(self.ended):>{len(str(len(self.jobs)))}}/{len(self.jobs)}"
        if outcome.error is not None:
            self.failed += 1
            said = outcome.error.removeprefix(f"the run {job.folder} failed: ")
            self.console.say(f"{position}  {job.label}: FAILED: {said}")
            if (log := job.folder / "run.log").exists() and str(log) not in outcome.error:
                self.console.say(f"{'':>{len(position)}}  log: {log}")
        elif outcome.stopped:
            self.console.say(f"{position}  {job.label}: interrupted, {seconds:.1f} s")
        elif not self.console.terminal.is_terminal:
            status, metric = _describe_result(job.folder)
            self.console.say(f"{position}  {job.label}: {status}{metric}, {seconds:.1f} s, {self._left()}".rstrip(", "))
        return seconds

    def _left(self) -> str:
        """How long the rest will take, by the jobs that have finished so far."""
        seconds = [took for _, outcome, took in self.ended if outcome.error is None and not outcome.stopped]
        if not seconds:
            return ""
        now = time.perf_counter()
        running = [now - began for _, began in self.running.values()]
        waiting = len(self.jobs) - len(self.ended) - len(running)
        return f"{clock(estimate_seconds_left(sum(seconds) / len(seconds), running, waiting, self.at_once))} left"

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """The live table while this lasts, on a terminal."""
        if not self.console.terminal.is_terminal:
            yield
            return
        with Live(get_renderable=self._table, console=self.console.terminal, refresh_per_second=2, transient=True):
            yield

    def _table(self) -> RenderableType:
        now = time.perf_counter()
        rows = [self._row(job, "failed" if o.error else _describe_result(job.folder)[0], s) for job, o, s in self.ended]
        rows += [self._row(job, "running", now - began) for job, began in list(self.running.values())]
        done = len(self.ended)
        head = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(len(self.jobs), 1), completed=done, width=24)
        failed = f", {self.failed} failed" if self.failed else ""
        head.add_row(Text("sweep", style="bold"), bar, Text(f"{done}/{len(self.jobs)}{failed}"), Text(self._left()))
        return Group(head, table(("job", "what varies", "status", "epoch", "metric", "time"), rows[-_LINES:], left=3))

    def _row(self, job: Job, status: str, seconds: float) -> tuple[str, ...]:
        row = read_last_row(job.folder)
        epochs = job.request.config["trainer"]["epochs"]
        epoch = f"{int(row['epoch'])}{'' if epochs is None else f'/{epochs}'}" if row else ""
        monitor = job.request.config["checkpoint"]["monitor"] or ("val/loss" if "val/loss" in row else "train/loss")
        metric = f"{monitor} {number(row[monitor])}" if monitor in row else ""
        short = " ".join(re.sub(r"^[\w.]*\.(?=\w+=)", "", word) for word in job.label.split(" "))
        return str(job.number), short, status, epoch, metric, clock(seconds)


def estimate_seconds_left(mean: float, running: Sequence[float], waiting: int, at_once: int) -> float:
    """How long jobs of `mean` seconds still take, of which some are running and each begins when a place is free.

    running: for how many seconds each has run already.
    """
    ends = [max(0.0, mean - elapsed) for elapsed in running]
    ends += [0.0] * (at_once - len(ends))
    heapq.heapify(ends)
    for _ in range(waiting):
        heapq.heapreplace(ends, ends[0] + mean)
    return max(ends)


def read_last_row(folder: Path) -> dict[str, Any]:
    """The newest whole row of the metrics of a run under way; empty when there is none."""
    try:
        with (folder / METRICS).open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL))
            lines = file.read().split(b"\n")[:-1]
        return parse_line(METRICS, lines[-1]) if lines else {}
    except (OSError, ValueError):
        return {}


def _describe_result(folder: Path) -> tuple[str, str]:
    """Status and best value of a run that has ended, for people."""
    run = RunRecord(folder)
    if not run.result:
        return "ended", ""
    value = f", {run.best[0]} {number(run.best[1])} (epoch {run.best_epoch})" if run.best else ""
    return str(run.result["status"]).replace("_", " "), value
