"""The jobs of a sweep: each a run with a number, a name, a folder, and an identity that it is known again by."""

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dlrun.config.request import Request
from dlrun.config.schema import config_hash
from dlrun.core.errors import RequestError
from dlrun.core.own_code import own_modules
from dlrun.core.run_names import folder_name

_PRESETS = ("lesson", "experiment", "debug")  # they may differ in what config_hash leaves out


@dataclass
class Job:
    """One run of a sweep."""

    number: int
    request: Request  # with its folder
    label: str  # what makes it differ from the others
    key: str  # equal for equal jobs, today and when the sweep is gone on with

    @property
    def folder(self) -> Path:
        """Where it leaves what it leaves."""
        assert self.request.folder is not None
        return self.request.folder

    @property
    def plain(self) -> dict[str, Any]:
        """Its config as plain Python."""
        return copy.deepcopy(self.request.config)


def compute_identity(job: Job, varying: set[str]) -> str:
    """config_hash, and what else tells two jobs apart: a preset, its line of sweep.points, a device swept over.

    varying: the words that not all jobs have.
    """
    request = job.request
    more = [f"{preset}={request.choices[preset]}" for preset in _PRESETS if preset in request.choices]
    more += [word for word in request.overrides if word in varying and parse_key(word).split(".")[0] == "device"]
    if request.group is not None:
        more.append(f"of {' '.join(word for word in request.overrides if word not in request.extra)}")
    found = config_hash(job.plain)
    return found if not more else hashlib.sha256(json.dumps([found, *more]).encode()).hexdigest()


def parse_key(word: str) -> str:
    """The key that a word of a command line is about."""
    return word.partition("=")[0].lstrip("+~")


def build_jobs(requests: Sequence[Request], sweep: Path) -> list[Job]:
    """A job for each request, numbered from 0, with a folder in `sweep` that is called after what varies."""
    asked = [_asked_for(request, sweep) for request in requests]
    requests = [replace(request, sweep=sweep) for request in requests]
    tops: dict[Path | None, list[str]] = {}
    for request in requests:
        tops.setdefault(request.group or request.folder, [w for w in request.overrides if w not in request.extra])
    common = _common(tops.values())
    places = {
        top: sweep / f"{number}_{folder_name(','.join(w for w in words if w not in common))}"
        for number, (top, words) in enumerate(tops.items())
    }
    everywhere = _common(request.overrides for request in requests)
    made = []
    for number, request in enumerate(requests):
        if request.group is not None:
            assert request.folder is not None
            group = places[request.group] if len(tops) > 1 else sweep
            request = replace(request, group=group, folder=group / request.folder.name)
        else:
            request = replace(request, folder=asked[number] or places[request.folder])
        label = " ".join(w for w in request.overrides if w not in everywhere and not w.startswith("sweep."))
        made.append(Job(number, request, label or "as it is", request.key))
    varying = {word for request in requests for word in request.overrides} - everywhere if len(requests) > 1 else set()
    for job in made:
        job.key = job.key or compute_identity(job, varying)
    return made


def _asked_for(request: Request, sweep: Path) -> Path | None:
    """The folder in `sweep` that the user named for each job by hydra.sweep.subdir; null where nothing was said."""
    if request.key or not any(word.startswith("hydra.sweep.subdir=") for word in request.words):
        return None
    assert request.folder is not None
    assert request.sweep is not None
    return sweep / os.path.relpath(request.folder, request.sweep)


def _common(lines: Iterable[Sequence[str]]) -> set[str]:
    """The words that all have; of a single line all but those that a sweep could have varied are left to `named`."""
    sets = [set(line) for line in lines]
    return set.intersection(*sets) if len(sets) > 1 else set()


def has_own_code(job: Job) -> bool:
    """Whether the job runs code of the user's own: a net, data, a loss, ..."""

    return bool(own_modules(job.plain))


def drop_duplicates(jobs: Sequence[Job]) -> tuple[list[Job], list[str]]:
    """The first of equal jobs, numbered anew, and a sentence for those that are left out."""
    first: dict[str, Job] = {}
    notes = []
    for job in jobs:
        if job.key in first and job.label != first[job.key].label:
            notes.append(f"{job.label} is the same run as {first[job.key].label}, and is made once")
        first.setdefault(job.key, job)
    places = [job.folder for job in first.values()]
    if twice := next((folder for i, folder in enumerate(places) if folder in places[:i]), None):
        raise RequestError(f"hydra.sweep.subdir gives several jobs the folder {twice}; leave it out")
    return list(first.values()), notes
