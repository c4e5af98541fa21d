"""The jobs of a sweep: each a run with a number, a name, a folder, and a key that identifies it on resume."""

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.config.compose import PRESETS
from dlrun.config.overrides import get_key
from dlrun.config.request import Request
from dlrun.config.schema import hash_config
from dlrun.core.errors import RequestError
from dlrun.core.format import count_digits, format_folder_name
from dlrun.core.own_code import find_own_modules

if TYPE_CHECKING:
    # It imports torch, which lists of sweeps do not need.
    from dlrun.experiment.callbacks.pruning import Pruner


@dataclass
class Job:
    """One run of a sweep."""

    number: int
    # Always with a folder.
    request: Request
    # The overrides that distinguish it from the other jobs.
    label: str
    # Equal for equal jobs, now and when the sweep is resumed.
    key: str
    # Of a search, may end the run between two epochs.
    pruner: "Pruner | None" = None

    @property
    def folder(self) -> Path:
        """Run folder of the job."""
        assert self.request.folder is not None
        return self.request.folder

    @property
    def plain(self) -> dict[str, Any]:
        """Copy of the config as plain Python."""
        return copy.deepcopy(self.request.config)


def compute_identity(job: Job, varying: set[str]) -> str:
    """Hash the config with all else that tells jobs apart: presets, a swept device, a line of sweep.points.

    varying: the overrides that not all jobs have.
    """
    request = job.request
    # Jobs with different presets may differ in keys that config_hash leaves out.
    extras = [f"{preset}={request.choices[preset]}" for preset in PRESETS if preset in request.choices]
    for word in request.overrides:
        if word in varying and get_key(word).split(".")[0] == "device":
            extras.append(word)
    if request.group is not None:
        extras.append(f"of {' '.join(_drop_extra(request))}")

    digest = hash_config(job.plain)
    if not extras:
        return digest
    return hashlib.sha256(json.dumps([digest, *extras]).encode()).hexdigest()


def build_jobs(requests: Sequence[Request], sweep: Path) -> list[Job]:
    """A job for each request, numbered from 0, in a subfolder of `sweep` named after what varies."""
    chosen_folders = [_find_chosen_folder(request, sweep) for request in requests]
    requests = [replace(request, sweep=sweep) for request in requests]

    # The points of sweep.points share a group folder, which is named without the words that they add.
    words_by_top: dict[Path | None, list[str]] = {}
    for request in requests:
        words_by_top.setdefault(request.group or request.folder, _drop_extra(request))
    shared_by_tops = _intersect(words_by_top.values())
    digits = count_digits(len(words_by_top))
    places = {}
    for number, (top, words) in enumerate(words_by_top.items()):
        varying_words = [word for word in words if word not in shared_by_tops]
        places[top] = sweep / f"{number:0{digits}}_{format_folder_name(','.join(varying_words))}"

    # Labels and keys tell jobs apart by all overrides, with the words of sweep.points.
    common_words = _intersect(request.overrides for request in requests)
    jobs = []
    for number, request in enumerate(requests):
        if request.group is not None:
            assert request.folder is not None
            group = places[request.group] if len(words_by_top) > 1 else sweep
            request = replace(request, group=group, folder=group / request.folder.name)
        else:
            request = replace(request, folder=chosen_folders[number] or places[request.folder])

        own_words = [word for word in request.overrides if word not in common_words]
        label = " ".join(word for word in own_words if not word.startswith("sweep."))
        jobs.append(Job(number, request, label or "as it is", request.key))

    varying = set[str]()
    if len(requests) > 1:
        varying = varying.union(*(request.overrides for request in requests)) - common_words
    varied_keys = sorted({get_key(word) for word in varying})
    for job in jobs:
        job.request = replace(job.request, varied=varied_keys)
        job.key = job.key or compute_identity(job, varying)
    return jobs


def _drop_extra(request: Request) -> list[str]:
    """The overrides without those that sweep.points added."""
    return [word for word in request.overrides if word not in request.extra]


def _find_chosen_folder(request: Request, sweep: Path) -> Path | None:
    """The job's folder in `sweep` by the user's hydra.sweep.subdir; None if it is not set."""
    if request.key or not any(word.startswith("hydra.sweep.subdir=") for word in request.words):
        return None

    assert request.folder is not None
    assert request.sweep is not None
    return sweep / os.path.relpath(request.folder, request.sweep)


def _intersect(lines: Iterable[Sequence[str]]) -> set[str]:
    """The overrides common to all jobs; none for a single job, whose overrides could all have been swept."""
    sets = [set(line) for line in lines]
    return set.intersection(*sets) if len(sets) > 1 else set()


def has_own_code(job: Job) -> bool:
    """Whether the job runs the user's own code: a net, data, a loss, ..."""
    return bool(find_own_modules(job.plain))


def drop_duplicates(jobs: Sequence[Job]) -> tuple[list[Job], list[str]]:
    """The first job of each key, and a note for each other one; RequestError if two share a folder."""
    jobs_by_key: dict[str, Job] = {}
    notes = []
    for job in jobs:
        first = jobs_by_key.setdefault(job.key, job)
        if job.label != first.label:
            notes.append(f"{job.label} is the same run as {first.label}, and runs once")

    # Two jobs in one folder would overwrite each other.
    folders = set[Path]()
    for job in jobs_by_key.values():
        if job.folder in folders:
            raise RequestError(f"hydra.sweep.subdir gives several jobs the folder {job.folder}; leave it out")
        folders.add(job.folder)
    return list(jobs_by_key.values()), notes
