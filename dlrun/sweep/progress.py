"""Progress of a sweep: a line for each job that ends, and on a terminal a live table of those that run."""

import contextlib
import heapq
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dlrun.runs.record import RunRecord, read_last_row
from dlrun.runs.reports.console import Console, build_table, format_clock, format_number
from dlrun.sweep.engines import Outcome
from dlrun.sweep.jobs import Job

# Rows of the live table, which must fit on a screen.
_MOST_ROWS = 12
_COLUMNS = ("job", "running", "epoch", "metric", "time")


class Display:
    """Shows which jobs run and how they ended; twice a second it reads the folders of those that run."""

    def __init__(self, console: Console, jobs: Sequence[Job], at_once: int) -> None:
        """jobs: all that are to be run; at_once: how many run at a time."""
        self.console = console
        # A search adds its jobs one by one.
        self.total = len(jobs)
        self.at_once = at_once
        # By job key, with the start time.
        self.running: dict[str, tuple[Job, float]] = {}
        # With the seconds that each took.
        self.results: list[tuple[Job, Outcome, float]] = []
        self.failure_count = 0

    def add_running(self, job: Job) -> None:
        """Start the clock of a job."""
        self.running[job.key] = (job, time.perf_counter())

    def finish(self, job: Job, outcome: Outcome) -> float:
        """Print how a job ended; returns its seconds."""
        _, start_time = self.running.pop(job.key)
        seconds = time.perf_counter() - start_time
        self.results.append((job, outcome, seconds))

        total = self.total
        position = f"{len(self.results):>{len(str(total))}}/{total}"
        if outcome.error is not None:
            self.failure_count += 1
            # The label names the run already.
            message = outcome.error.removeprefix(f"the run {job.folder} failed: ")
            self.console.say(f"{position}  {job.label}: FAILED: {message}")
            log = job.folder / "run.log"
            if log.exists() and str(log) not in outcome.error:
                self.console.say(f"{'':>{len(position)}}  log: {log}")
        elif outcome.is_interrupted:
            self.console.say(f"{position}  {job.label}: interrupted, {seconds:.1f} s")
        else:
            status, metric = _describe_result(job.folder)
            time_left = self._estimate_time_left()
            line = f"{position}  {job.label}: {status}{metric}, {seconds:.1f} s, {time_left}".rstrip(", ")
            # The table below has the time left, and the number of the job.
            value = metric.removeprefix(", ") or status
            self.console.say_line(line, f"{position}  {_shorten_label(job)}: {value}, {seconds:.1f} s")
        return seconds

    def _estimate_time_left(self) -> str:
        """The time that the rest will take, by the mean of the jobs that have finished; "" before the first."""
        # Failed and interrupted jobs end early, so they say nothing of the rest.
        durations = []
        for _, outcome, seconds in self.results:
            if outcome.error is None and not outcome.is_interrupted:
                durations.append(seconds)
        if not durations:
            return ""

        now = time.perf_counter()
        elapsed = [now - start_time for _, start_time in self.running.values()]
        waiting = self.total - len(self.results) - len(elapsed)
        mean = sum(durations) / len(durations)
        return f"{format_clock(estimate_seconds_left(mean, elapsed, waiting, self.at_once))} left"

    @contextlib.contextmanager
    def show_live(self) -> Iterator[None]:
        """Show the live table while the block runs, on a terminal only."""
        terminal = self.console.terminal
        if not terminal.is_terminal:
            yield
            return
        with Live(get_renderable=self._render, console=terminal, refresh_per_second=2, transient=True):
            yield

    def _render(self) -> RenderableType:
        now = time.perf_counter()
        # Rich renders in a thread of its own: iterate over a copy.
        rows = [self._make_row(job, now - start_time) for job, start_time in list(self.running.values())]

        done_count = len(self.results)
        count = f"{done_count}/{self.total}"
        if self.failure_count:
            count += f", {self.failure_count} failed"
        bar = ProgressBar(total=max(self.total, 1), completed=done_count, width=24)

        head = Table.grid(padding=(0, 1))
        head.add_row(Text("sweep", style="bold"), bar, Text(count), Text(self._estimate_time_left()))
        return Group(head, build_table(_COLUMNS, rows[:_MOST_ROWS], left=2))

    def _make_row(self, job: Job, seconds: float) -> tuple[str, ...]:
        row = read_last_row(job.folder)

        epoch = ""
        if row:
            epochs = job.request.config["trainer"]["epochs"]
            epoch = f"{int(row['epoch'])}" if epochs is None else f"{int(row['epoch'])}/{epochs}"

        monitor = job.request.config["checkpoint"]["monitor"]
        if not monitor:
            monitor = "val/loss" if "val/loss" in row else "train/loss"
        metric = f"{monitor} {format_number(row[monitor])}" if monitor in row else ""

        return str(job.number), _shorten_label(job), epoch, metric, format_clock(seconds)


def _shorten_label(job: Job) -> str:
    """What varies in a job, without the sections of keys: lr=0.1 for optimizer.lr=0.1."""
    words = [re.sub(r"^[\w.]*\.(?=\w+=)", "", word) for word in job.label.split(" ")]
    return " ".join(words)


def estimate_seconds_left(mean: float, elapsed: Sequence[float], waiting: int, at_once: int) -> float:
    """Seconds until all jobs have ended, if each takes `mean` and starts as soon as a slot is free.

    elapsed: for each running job the seconds since its start.
    """
    # A running job that is overdue is expected to end right now.
    slot_ends = [max(0.0, mean - seconds) for seconds in elapsed]
    slot_ends += [0.0] * (at_once - len(slot_ends))
    heapq.heapify(slot_ends)
    # Each waiting job goes to the slot that is free first.
    for _ in range(waiting):
        heapq.heapreplace(slot_ends, slot_ends[0] + mean)
    return max(slot_ends)


def _describe_result(folder: Path) -> tuple[str, str]:
    """Status and best value of a run that has ended."""
    run = RunRecord(folder)
    if not run.result:
        return "ended", ""

    value = ""
    if run.best:
        value = f", {run.best[0]} {format_number(run.best[1])} (epoch {run.best_epoch})"
    return str(run.result["status"]).replace("_", " "), value
