"""What a sweep is going to do: every job checked, and said before the first one trains."""

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from dlrun import config
from dlrun.console import Console, clock, facts
from dlrun.errors import RequestError, UnavailableError
from dlrun.parts import prepare, session
from dlrun.problems import Problems
from dlrun.runtime import cores
from dlrun.sweep.forecast import Forecast
from dlrun.sweep.jobs import Job, key_of


def check(jobs: Sequence[Job]) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Build every job once: (training, validation) rows by key, and why data cannot be had, by key.

    RequestError with all that is wrong. Data that are not there cost their jobs only, unless nothing else is left.
    """
    found, rows, lacking = Problems(), dict[str, tuple[int, int]](), dict[str, str]()
    wrong: dict[str, list[str]] = {}  # the labels of the jobs by what is wrong with them
    for job in jobs:
        one = Problems()
        settings = config.read(job.request.config, job.request.choices, one)
        try:
            with contextlib.ExitStack() as held:
                parts = prepare(settings, session(held, settings, one), job.request.trusted_modules, one)
                rows[job.key] = (parts.training.train.rows, parts.training.val.rows if parts.training.val else 0)
        except UnavailableError as error:
            lacking[job.key] = str(error)
        except RequestError as error:
            for each in getattr(error, "found", [error]):
                wrong.setdefault(str(each), []).append(job.label)
    for said, labels in wrong.items():
        more = f" (and {len(labels) - 1} more like it)" if len(labels) > 1 else ""
        found.add(
            RequestError(
                said if len(jobs) == len(labels) or said.startswith(labels[0]) else f"{labels[0]}{more}: {said}"
            )
        )
    found.settle()
    if lacking and not rows:
        raise RequestError(next(iter(lacking.values())))
    return rows, lacking


def say_plan(
    console: Console,
    folder: Path,
    jobs: Sequence[Job],
    waiting: Sequence[Job],
    foreseen: Forecast | None,
    at_once: int,
    notes: Sequence[str],
) -> None:
    """What will be run, how long that takes, and where it lies."""
    settings = {tuple(w for w in job.request.overrides if _tells_settings_apart(w)) for job in jobs}
    each, rest = divmod(len(jobs), len(settings))
    of_each = f" × {each} seeds" if not rest else ""
    seeds = f": {len(settings)} setting{'s' * (len(settings) > 1)}{of_each}" if each > 1 else ""
    done = len(jobs) - len(waiting)
    kept = f", {done} of them finished before" if done else ""
    threads = max(1, cores() // at_once)
    how = "one at a time" if at_once == 1 else f"{at_once} at a time, {threads} thread{'s' * (threads > 1)} each"
    expected = "not known: no trial worked"
    if not waiting:
        expected = "nothing is left to do"
    elif foreseen is not None:
        some = "" if foreseen.timed == foreseen.models else f" of {foreseen.models}"
        kinds = f"{foreseen.timed}{some} model{'s' * (foreseen.models > 1)}"
        duration = spelled(sum(foreseen.seconds.values()) / at_once)
        expected = f"about {duration} and {size(foreseen.size)} (by a trial of {kinds})"
    named_folder = [("sweep folder", str(folder))]
    console.say(facts([("sweep", f"{len(jobs)} runs{seeds}{kept}; {how}"), ("forecast", expected), *named_folder]))
    for note in [*notes, *_room(folder, foreseen)]:
        console.say(f"note: {note}")
    console.say()


def _room(folder: Path, foreseen: Forecast | None) -> list[str]:
    """A note when the disk may not take the whole sweep."""
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if foreseen is None or foreseen.size < free:
        return []
    return [f"{place} has {size(free)} free, and the sweep needs about {size(foreseen.size)}; type sweep.dir=<folder>"]


def _tells_settings_apart(word: str) -> bool:
    """Whether a word is part of a setting, which seeds and what config_hash leaves out are not."""
    key = key_of(word)
    return key != "seed" and (key.split(".")[0] not in config.NOT_IDENTITY or key.startswith("device"))


def spelled(seconds: float) -> str:
    """A duration for people."""
    return f"{seconds:.1f} s" if seconds < 60 else clock(seconds)


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"
