"""Find and check the finished runs that a comparison reads; nothing that is read can run code."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrun.config import schema
from dlrun.core.errors import RequestError
from dlrun.runs.record import CONFIG, HYDRA, OVERRIDES, RESULT, RunRecord

_NEEDED = ("status", "metrics", "baseline", "best", "config_hash")

# Names of runs that cannot be used, each with the reason.
Failures = list[tuple[str, str]]


def check_run(run: RunRecord, failures: Failures) -> bool:
    """Whether nothing of a run is missing or damaged; the reason is appended to `failures` otherwise."""
    reason = _find_problem(run)
    if reason:
        failures.append((str(run.folder), reason))
    return not reason


def _find_problem(run: RunRecord) -> str:
    """What is missing or damaged of the files that a comparison reads; "" if nothing is."""
    run.read_files("result", "config", "choices", "overrides")
    damage = run.find_damage((RESULT, CONFIG, OVERRIDES, HYDRA))
    if damage:
        return damage
    if not run.result:
        return f"{run.folder} has no {RESULT}"
    for key in _NEEDED:
        if key not in run.result:
            return f"{run.folder / RESULT} has no {key}"

    # Ranking needs a metric and a seed, and the columns of the table come from choices and overrides.
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
    """The record of a run that left no result; `other`, a run of the same data, gives the metric it monitored."""
    # Only what a ranking needs: the data, the metric, and that there is no value.
    result = other.result | {
        "status": "failed",
        "metrics": {},
        "best": {"metric": other.metric, "value": None, "epoch": None},
        "config_hash": schema.hash_config(plain),
        "train_seconds": None,
    }
    return RunRecord.from_parts(folder, overrides, plain, choices, result)


def find_finished_runs(places: Sequence[Path], failures: Failures | None = None) -> list[RunRecord]:
    """Every run folder (one with a result) at or below the places, each once, sorted by path.

    RequestError if a place is no folder, or if no run can be read. Runs that cannot be read are appended to `failures`.
    """
    unreadable: Failures = [] if failures is None else failures
    runs = []
    for folder in _find_folders(places):
        run = RunRecord(folder)
        if check_run(run, unreadable):
            runs.append(run)

    if not runs:
        where = ", ".join(map(str, places)) or "nowhere"
        if unreadable:
            name, reason = unreadable[0]
            raise RequestError(f"no run below {where} can be read ({name}: {reason}); type another folder")
        raise RequestError(
            f"no finished run (a folder with {RESULT}) below {where}; type a run, a sweep, or a folder of them: "
            "dlrun compare outputs"
        )

    return runs


def _find_folders(places: Sequence[Path]) -> list[Path]:
    """The run folders, by resolved path once each; folders inside a run are not searched."""
    folders: dict[Path, Path] = {}
    for place in places:
        if not place.is_dir():
            raise RequestError(f"there is no folder {place}; type a run, a sweep, or a folder of them")
        for name, subfolders, files in os.walk(place):
            # Clearing the list keeps os.walk out of the subfolders.
            if RESULT in (*files, *subfolders):
                subfolders.clear()
                # The same run may be named twice, or reached by a symbolic link.
                folders.setdefault(Path(name).resolve(), Path(name))

    return sorted(folders.values())
