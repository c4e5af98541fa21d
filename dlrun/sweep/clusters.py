"""Which cluster runs the jobs of a sweep, if any: `sweep.engine`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dlrun.core.errors import RequestError
from dlrun.sweep.jobs import Job
from dlrun.sweep.remote import Remote

_NAMES = ("ray", "slurm")


def is_remote(settings: Mapping[str, Any]) -> bool:
    """Whether jobs run on a cluster; settings: the sweep's. RequestError for what a cluster cannot do."""
    # Sweeps that were begun before this key existed ran on one machine.
    name = settings.get("engine", "local")
    if name not in _NAMES:
        return False
    if settings.get("stack") == "on":
        raise RequestError(
            f"sweep.stack=on trains all points in one process, and sweep.engine={name} each in its own; "
            "type sweep.stack=off or sweep.engine=local"
        )
    return True


def open_cluster(settings: Mapping[str, Any], folder: Path) -> Remote:
    """The engine that hands jobs to a cluster; RequestError if the cluster is not there.

    settings: the sweep's; folder: of the sweep.
    """
    at_once = None if settings["jobs"] == "auto" else settings["jobs"]
    # Neither library is imported unless its engine is chosen.
    if settings["engine"] == "ray":
        from dlrun.sweep.ray_engine import Ray

        return Ray(folder, settings["ray"], at_once)

    from dlrun.sweep.slurm_engine import Slurm

    return Slurm(folder, settings["slurm"], at_once)


def choose_any_device(job: Job) -> Job:
    """The job as it is checked on this machine, which may have no GPU as those of the cluster do."""
    device = {**job.request.config["device"], "name": "auto", "index": None}
    return replace(job, request=replace(job.request, config={**job.request.config, "device": device}))
