"""Run folders: opened for a new or a resumed run, described by .hydra/ and environment.json, cleared for a restart."""

import contextlib
import dataclasses
import functools
import itertools
import json
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
from dlrun.core.bounded import LARGEST_LOG, read_bytes
from dlrun.core.errors import DamageError, RequestError, UnreadableError
from dlrun.core.files import (
    convert_write_errors,
    is_temporary,
    is_there,
    remove_temporaries,
    write_atomically,
    write_json,
)
from dlrun.core.format import format_folder_name
from dlrun.core.inside import refuse_outside
from dlrun.core.lock import Lock
from dlrun.core.yaml import dump_yaml
from dlrun.runs.record import (
    CONFIG,
    END_SUFFIX,
    ENVIRONMENT,
    FINGERPRINTS,
    HYDRA,
    METRICS,
    OVERRIDES,
    RESULT,
    RunRecord,
    parse_line,
)

if TYPE_CHECKING:
    from dlrun.engine.device import Runtime


def open_new(request: Request, runtime: "Runtime", outputs: Path, name: str, folder_lock: Lock) -> Path:
    """Make the folder of a new run, lock it and describe the run in it; what was made goes again if that fails.

    outputs, name: where the folder goes, and what it is called, if the request names none.
    """
    is_new = request.folder is None or not request.folder.exists()
    folder = claim_folder(request.folder) if request.folder is not None else create_folder(outputs, name)
    try:
        folder_lock.take(folder)
        write_description(folder, request, runtime)
    except Exception:
        # The death of a data worker comes here too: torch raises it wherever this process is.
        is_ours = folder_lock.folder == folder
        folder_lock.release()
        _remove_description(folder, is_ours, is_new)
        raise

    return folder


def reopen(folder: Path, epoch: int, labels: dict[str, Any]) -> list[str]:
    """Bring a run folder back to the state after `epoch`: later rows, half files and the result go.

    labels: the name, tags and notes that the run has from now on. Returns notes on unreadable lines. UnreadableError
    if a file exists but cannot be read.
    """
    # All is read before anything is removed.
    config = _relabel_config(folder, labels)
    lines, notes = _read_lines_until(folder, epoch)

    with convert_write_errors(folder, "make room there, or see who may write there"):
        remove_temporaries(folder, folder / "checkpoints")
        # The run is no longer finished.
        for name in (RESULT, "report.html"):
            (folder / name).unlink(missing_ok=True)
        # Events of the end are logged again at the step of the checkpoint, so no purge step would drop these.
        for events in folder.glob(f"events.out.tfevents.*{END_SUFFIX}"):
            events.unlink()
        for name, earlier in lines.items():
            write_atomically(folder / name, "".join(earlier).encode())
        if config is not None:
            write_atomically(folder / CONFIG, dump_yaml(config).encode())

    return notes


def _relabel_config(folder: Path, labels: dict[str, Any]) -> dict[str, Any] | None:
    """The config of a run with these labels; None where it has them already, or is damaged and stays as it is."""
    config = RunRecord(folder).config
    before = config.get("run") or dataclasses.asdict(RunConfig())
    return {**config, "run": labels} if config and before != labels else None


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


def _read_lines_until(folder: Path, epoch: int) -> tuple[dict[str, list[str]], list[str]]:
    """Read the lines of metrics and fingerprints up to `epoch`, by file, and notes on unreadable lines.

    By epochs, not steps: if max_steps ended a run in mid-epoch, that partial epoch has a row too.
    UnreadableError if a file exists but cannot be read.
    """
    lines: dict[str, list[str]] = {}
    notes: list[str] = []
    for name in (METRICS, FINGERPRINTS):
        try:
            content = read_bytes(folder / name, LARGEST_LOG)
        except FileNotFoundError:
            continue
        except DamageError as error:
            message = f"{folder / name} cannot be read ({error.reason}); everything is left as it was"
            raise UnreadableError(message) from error

        stored_lines = content.splitlines()
        lines[name] = []
        for number, line in enumerate(stored_lines, 1):
            try:
                row = parse_line(name, line)
            except ValueError:
                # A killed process leaves its last line cut short, which is no damage.
                if number < len(stored_lines):
                    notes.append(f"{folder / name} was damaged in line {number}, which is left out")
                continue
            if row["epoch"] <= epoch:
                # Written anew rather than copied: a last line without its newline would swallow the next row.
                lines[name].append(json.dumps(row) + "\n")

    return lines, notes


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

        names = (ENVIRONMENT, "run.log", METRICS, FINGERPRINTS, RESULT, "report.html", "loggers.json", "metrics.csv")
        for file in [*(folder / name for name in names), *folder.glob("events.out.tfevents.*")]:
            file.unlink(missing_ok=True)
        remove_temporaries(folder)


def write_description(folder: Path, request: Request, runtime: "Runtime") -> None:
    """Write .hydra/ and environment.json: the request, the machine, and a run_id that checkpoints repeat.

    RequestError if the disk refuses even these.
    """
    environment = {"run_id": uuid.uuid4().hex, **collect_environment(request, runtime)}
    records = {
        CONFIG: strip_permissions(request.config),
        OVERRIDES: strip_permission_words(request.overrides),
        # Runs that were not composed by Hydra record their choices alone.
        HYDRA: {"hydra": request.hydra or {"runtime": {"choices": request.choices}}},
    }
    with convert_write_errors(folder, "type paths.outputs=<folder>"):
        (folder / ".hydra").mkdir(exist_ok=True)
        for name, values in records.items():
            (folder / name).write_text(dump_yaml(values))
        write_json(folder / ENVIRONMENT, environment)


def _remove_description(folder: Path, is_described: bool, is_new: bool) -> None:
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
    from dlrun.engine.device import count_threads, describe_versions

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
        "threads": count_threads(),
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


def format_path(path: Path) -> str:
    """Format a path as it would be typed in the working directory."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
