"""How long the jobs of a sweep will take and how much room, from a few steps of each distinct model."""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dlrun import cli, experiment
from dlrun.console import Console
from dlrun.sweep.jobs import Job

_FEW_ROWS = 4096  # up to here a trial makes whole epochs, whose cost is not in the steps alone
_EPOCHS, _STEPS = 3, 4
_TRIES = 3  # jobs of a kind, as one may fail
_PATIENCE = 5.0  # seconds for trials, and 5 % of what is forecast


@dataclass(frozen=True)
class Timing:
    """What a trial of a model showed."""

    fixed_seconds: float  # of a job, whatever its epochs: building, testing, drawing
    epoch_seconds: float
    checkpoint_bytes: int  # of one file
    other_bytes: int


@dataclass(frozen=True)
class Forecast:
    """For a whole sweep, one job after the other."""

    seconds: dict[str, float]  # of each job, by key
    size: int  # bytes
    timed: int  # of so many
    models: int


def with_processes(found: Forecast, each: float) -> Forecast:
    """The same for jobs that each begin with a process of their own."""
    return replace(found, seconds={key: seconds + each for key, seconds in found.seconds.items()})


class _Stopwatch(Console):
    """Notes when epochs end and how fast steps were; says nothing."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.ends: list[float] = []
        self.samples_per_second = 0.0

    def epoch(self, row: dict[str, float], timings: dict[str, float], is_best: bool) -> None:
        """See loop.Display."""
        self.ends.append(time.perf_counter())
        self.samples_per_second = timings["samples_per_second"]


def forecast(jobs: Sequence[Job], rows: dict[str, tuple[int, int]]) -> Forecast | None:
    """Null when no trial worked. rows: (training, validation) rows by job key."""
    kinds: dict[str, list[Job]] = {}
    for job in jobs:
        kinds.setdefault(kind(job.plain), []).append(job)
    timings: dict[str, Timing] = {}
    began, expected = time.perf_counter(), 0.0
    for name, alike in kinds.items():
        if time.perf_counter() - began > _PATIENCE + 0.05 * expected:
            break
        timing = next(filter(None, (_tried(job, *rows[job.key]) for job in alike[:_TRIES])), None)
        if timing is not None:
            timings[name] = timing
            expected += sum(_seconds(job, timing) for job in alike)
    if not timings:
        return None
    mean = _mean(list(timings.values()))
    found = [(job, timings.get(kind(job.plain), mean)) for job in jobs]
    return Forecast(
        {job.key: _seconds(job, timing) for job, timing in found},
        sum(_bytes(job, timing) for job, timing in found),
        len(timings),
        len(kinds),
    )


def _tried(job: Job, train_rows: int, val_rows: int) -> Timing | None:
    """A trial's timing; null when it fails, as the job itself will: that says so then."""
    try:
        return trial(job, train_rows, val_rows)
    except Exception:
        return None


def kind(plain: dict[str, Any]) -> str:
    """Equal for jobs whose steps cost the same, about: learning rates and seeds do not matter."""
    parts = {k: plain[k] for k in ("data", "model", "device", "task", "figures", "tracking")}
    keys = ("accumulate_steps", "log_every_steps", "grad_clip_norm")
    return json.dumps([parts, plain["optimizer"].get("_target_"), [plain["trainer"][k] for k in keys]], sort_keys=True)


def trial(job: Job, train_rows: int, val_rows: int) -> Timing:
    """A short run of the job in a folder that is thrown away."""
    plain = job.plain
    trainer, few = plain["trainer"], train_rows <= _FEW_ROWS
    trainer["epochs"] = min(trainer["epochs"], _EPOCHS if few else 1)
    trainer["max_steps"] = trainer["max_steps"] if few else min(trainer["max_steps"] or _STEPS, _STEPS)
    plain["strict"], plain["expect"], plain["probes"] = False, [], []
    watch, began = _Stopwatch(), time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "trial"
        code = experiment.run(replace(job.request, config=plain, folder=folder, sweep=None), watch)
        if code in cli.INTERRUPTED.values():
            raise KeyboardInterrupt if code == cli.INTERRUPTED["SIGINT"] else cli.Terminated
        took = time.perf_counter() - began
        sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    saved = [size for path, size in sizes.items() if path.parent.name == "checkpoints"]
    gaps = [b - a for a, b in zip(watch.ends, watch.ends[1:], strict=False)]
    if few:
        epoch = min(gaps) if gaps else 0.0
        fixed = took - epoch * len(watch.ends)
    else:
        epoch = (train_rows + val_rows / 3) / watch.samples_per_second  # without a backward pass: a third
        fixed = took
    return Timing(max(fixed, 0.0), epoch, max(saved, default=0), sum(sizes.values()) - sum(saved))


def _seconds(job: Job, timing: Timing) -> float:
    return timing.fixed_seconds + timing.epoch_seconds * int(job.request.config["trainer"]["epochs"])


def _bytes(job: Job, timing: Timing) -> int:
    keys, epochs = job.request.config["checkpoint"], int(job.request.config["trainer"]["epochs"])
    files = min(int(keys["keep"]), -(-epochs // int(keys["every_epochs"]))) + 1  # the best
    return timing.other_bytes + files * timing.checkpoint_bytes


def _mean(timings: Sequence[Timing]) -> Timing:
    n = len(timings)
    return Timing(
        sum(t.fixed_seconds for t in timings) / n,
        sum(t.epoch_seconds for t in timings) / n,
        sum(t.checkpoint_bytes for t in timings) // n,
        sum(t.other_bytes for t in timings) // n,
    )
