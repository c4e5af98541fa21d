"""Finished runs, as their folders tell of them: plain data, nothing that is read can run code."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrun.config import schema
from dlrun.core.errors import RequestError
from dlrun.runs.record import CONFIG, HYDRA, OVERRIDES, RESULT, RunRecord

_WHOLE = ("status", "metrics", "baseline", "best", "config_hash")

Lost = list[tuple[str, str]]  # what could not be used: its name, and why


def read_run(folder: Path, damaged: Lost | None = None) -> RunRecord | None:
    """The run in `folder`; None where a file of it is missing or damaged, with the reason added to `damaged`."""
    run = RunRecord(folder)
    reason = find_problem(run)
    if not reason:
        return run
    if damaged is not None:
        damaged.append((str(folder), reason))
    return None


def find_problem(run: RunRecord) -> str:
    """What is missing or damaged of all that a comparison looks at; "" where nothing is."""
    for name in ("result", "config", "choices", "overrides"):
        getattr(run, name)
    damage = run.damage_of((RESULT, CONFIG, OVERRIDES, HYDRA))
    if damage:
        return damage
    if not run.result:
        return f"{run.folder} has no {RESULT}"
    lacking = [key for key in _WHOLE if key not in run.result]
    if lacking:
        return f"{run.folder / RESULT} has no {lacking[0]}"
    if not run.metric:
        return f"{run.folder / RESULT} names no metric"
    if "seed" not in run.config:
        return f"{run.folder / CONFIG} is missing, or names no seed"
    if not run.choices or not (run.folder / OVERRIDES).exists():
        return f"{run.folder}/.hydra lacks what was chosen"
    return ""


def make_failed_run(
    plain: dict[str, Any], choices: dict[str, str], overrides: list[str], folder: Path, other: RunRecord
) -> RunRecord:
    """A run that left no result, beside `other`, one of the same data: it monitored the same metric."""
    result = other.result | {
        "status": "failed",
        "metrics": {},
        "best": {"metric": other.metric, "value": None, "epoch": None},
        "config_hash": schema.config_hash(plain),
        "train_seconds": None,
    }
    return RunRecord.of_parts(folder, overrides, plain, choices, result)


def find_runs(places: Sequence[Path], damaged: Lost | None = None) -> list[RunRecord]:
    """Every run folder (one with a result) at or below the places, each once, in the order of their names.

    RequestError where a place is none, or holds no run that can be read.
    """
    lost: Lost = [] if damaged is None else damaged
    found = [run for folder in _folders(places) if (run := read_run(folder, lost)) is not None]
    if not found:
        where = ", ".join(map(str, places)) or "nowhere"
        if lost:
            raise RequestError(f"no run below {where} can be read ({lost[0][0]}: {lost[0][1]}); type another folder")
        raise RequestError(
            f"no finished run (a folder with {RESULT}) below {where}; type a run, a sweep, or a folder of them: "
            "dlrun compare outputs"
        )
    return found


def _folders(places: Sequence[Path]) -> list[Path]:
    """The run folders; what lies inside one is its own business."""
    found: dict[Path, Path] = {}
    for place in places:
        if not place.is_dir():
            raise RequestError(f"there is no folder {place}; type a run, a sweep, or a folder of them")
        for name, below, files in os.walk(place):
            if RESULT in (*files, *below):
                below.clear()
                found.setdefault(Path(name).resolve(), Path(name))
    return sorted(found.values())
