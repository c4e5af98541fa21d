"""Run folders: created, claimed, described by .hydra/ and environment.json, and cleared for a restart."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import shlex
import shutil
import subprocess
import uuid
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.config.request import Request
from dlrun.config.schema import RunConfig, strip_permission_words, strip_permissions
from dlrun.core.errors import RequestError, UnreadableError
from dlrun.core.files import convert_write_errors, is_temporary, is_there, write_atomically
from dlrun.core.format import format_folder_name
from dlrun.core.inside import refuse_outside
from dlrun.core.lock import Lock
from dlrun.core.yaml import dump_yaml
from dlrun.runs.record import CONFIG, ENVIRONMENT, FINGERPRINTS, METRICS, RESULT, RunRecord

if TYPE_CHECKING:
    from dlrun.engine.device import Runtime


def create_folder(outputs: Path, name: str) -> Path:
    """Create outputs/<date>/<time>_<name>, with a number for further runs of the same second."""
    now = datetime.now()
    parent = outputs / now.strftime("%Y-%m-%d")
    suffixes = ["", *(f"_{i}" for i in range(2, 1000))]
    for suffix in suffixes:
        folder = parent / f"{now.strftime('%H-%M-%S')}_{format_folder_name(name)}{suffix}"
        with convert_write_errors(outputs, "type paths.outputs=<folder>"):
            try:
                parent.mkdir(parents=True, exist_ok=True)
                folder.mkdir()
            except FileExistsError:
                # Raised by the parent too, if a file has its name.
                if not parent.is_dir():
                    raise
                continue
        return folder
    raise RequestError(f"{parent} holds a thousand runs of this second; type paths.outputs=<folder>")


def find_free_folder(folder: Path) -> Path:
    """Return `folder`, with the first free number appended to its name if it exists already."""
    if not folder.exists():
        return folder
    candidates = (folder.with_name(f"{folder.name}_{i}") for i in itertools.count(2))
    return next(path for path in candidates if not path.exists())


def claim_folder(folder: Path) -> Path:
    """Make a folder chosen by a sweep or by hydra.run.dir. It may exist; RequestError if it holds a run."""
    try:
        # A folder that cannot be looked into may hold a run, and is not taken for an empty one.
        has_records = is_there(folder / METRICS) or is_there(folder / RESULT)
    except OSError as error:
        raise RequestError(f"{folder} cannot be read ({error.strerror}); choose another folder") from error
    if has_records or list_saved_files(folder):
        raise RequestError(
            f"{folder} already holds a run; choose another folder, or {RunRecord(folder).advise_resume()}"
        )

    with convert_write_errors(folder, "choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
    # An existing folder may hold links, through which the run would write elsewhere.
    refuse_outside(folder)
    return folder


def list_saved_files(folder: Path) -> list[Path]:
    """List the files in a run's checkpoints/, sorted by name, without those that a kill left half-written.

    UnreadableError if the folder exists but cannot be read: unreadable is not empty.
    """
    return list_finished_files(folder / "checkpoints")


def list_finished_files(checkpoints: Path) -> list[Path]:
    """List the files of a checkpoints/ folder, as `list_saved_files` does."""
    try:
        # Path.glob takes an unreadable folder for an empty one.
        names = sorted(os.listdir(checkpoints))  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        reason = error.strerror or error
        raise UnreadableError(f"{checkpoints} cannot be read ({reason}), and everything is left as it was") from error
    return [checkpoints / name for name in names if not is_temporary(name)]


def clear_for_restart(folder: Path) -> None:
    """Delete the files of a run without checkpoints, and nothing else, so that it can start again.

    The folder is locked meanwhile. UnreadableError if it holds checkpoints: dlrun never deletes those.
    """
    # Locked before looking: another process may be about to save its first checkpoint.
    with Lock() as lock:
        lock.take(folder)
        checkpoints = list_saved_files(folder)
        if checkpoints:
            raise UnreadableError(
                f"{folder} holds checkpoints ({checkpoints[0].name}), and everything is left as it was"
            )

        # By name, so that other files survive; checkpoints/ holds temporaries at most, as was just checked.
        for name in (".hydra", "checkpoints", "figures"):
            shutil.rmtree(folder / name, ignore_errors=True)

        own = (ENVIRONMENT, "run.log", METRICS, FINGERPRINTS, RESULT, "report.html", "loggers.json", "metrics.csv")
        for file in [*(folder / name for name in own), *folder.glob("events.out.tfevents.*")]:
            file.unlink(missing_ok=True)


def write_description(folder: Path, request: Request, runtime: "Runtime") -> None:
    """Write .hydra/ and environment.json: the request, the machine, and a run_id that checkpoints repeat.

    RequestError if the disk refuses even these.
    """
    hidden = folder / ".hydra"
    environment = {"run_id": uuid.uuid4().hex, **collect_environment(request, runtime)}
    # Hydra's own record; runs that were not composed by Hydra record their choices alone.
    hydra = request.hydra or {"runtime": {"choices": request.choices}}
    with convert_write_errors(folder, "type paths.outputs=<folder>"):
        hidden.mkdir(exist_ok=True)
        (hidden / "config.yaml").write_text(dump_yaml(strip_permissions(request.config)))
        (hidden / "overrides.yaml").write_text(dump_yaml(strip_permission_words(request.overrides)))
        (hidden / "hydra.yaml").write_text(dump_yaml({"hydra": hydra}))
        write_json(folder / ENVIRONMENT, environment)


def update_labels(folder: Path, labels: dict[str, Any]) -> None:
    """Record another name, other tags or notes of a resumed run in its config; a damaged config stays as it is."""
    config = RunRecord(folder).config
    before = config.get("run") or dataclasses.asdict(RunConfig())
    if config and before != labels:
        write_atomically(folder / CONFIG, dump_yaml({**config, "run": labels}).encode())


def remove_description(folder: Path, is_described: bool, is_new: bool) -> None:
    """Remove the description of a run that does not start after all, and its folder if it is new."""
    with contextlib.suppress(OSError):
        if is_described:
            shutil.rmtree(folder / ".hydra", ignore_errors=True)
            (folder / ENVIRONMENT).unlink(missing_ok=True)
        if is_new:
            # Only if empty: whatever else has appeared in it is not this run's.
            folder.rmdir()


def collect_environment(request: Request, runtime: "Runtime") -> dict[str, Any]:
    """Collect the content of environment.json: command line, choices, versions, git commit, device and threads."""
    # A local import: runs are listed without torch.
    import torch

    from dlrun.engine.device import describe_versions

    return {
        "command": shlex.join(["dlrun", *strip_permission_words(request.words)]),
        "parent": request.parent,
        "working_directory": str(Path.cwd()),
        "choices": request.choices,
        "keys_in_files": request.keys_in_files,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git_commit": _git(Path.cwd(), "rev-parse", "HEAD"),
        # Without untracked files: the outputs of earlier runs often lie in the repository.
        "git_dirty": bool(_git(Path.cwd(), "status", "--porcelain", "--untracked-files=no")),
        "device": str(runtime.device),
        "precision": runtime.precision,
        "threads": torch.get_num_threads(),
        "processes": runtime.ranks.world_size,
        "cpu_count": os.cpu_count(),
        "versions": describe_versions(),
    }


# Cached, as each job of a sweep asks for it and git takes 10 ms.
@functools.cache
def _git(place: Path, *words: str) -> str | None:
    """Return git's output in `place`; None without git or without a repository."""
    try:
        # A repository on a network disk may hang, and a run does not wait for its commit.
        process = subprocess.run(["git", *words], cwd=place, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() if process.returncode == 0 else None


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write indented JSON atomically: NumPy values and tensors as plain numbers, NaN and infinities as null."""
    text = json.dumps(_to_json_value(values), indent=2) + "\n"
    write_atomically(path, text.encode())


def _to_json_value(value: Any) -> Any:
    # NumPy scalars, arrays and tensors.
    if hasattr(value, "tolist"):
        value = value.tolist()

    if isinstance(value, dict):
        items: dict[Any, Any] = {}
        for key, item in value.items():
            plain_key = key.tolist() if hasattr(key, "tolist") else key
            items[plain_key] = _to_json_value(item)
        return items
    if isinstance(value, list | tuple):
        return [_to_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def format_path(path: Path) -> str:
    """Format a path as it would be typed in the working directory."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
