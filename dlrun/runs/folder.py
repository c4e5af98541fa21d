"""The run folder: where everything that a run leaves behind lies."""

import contextlib
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
from dlrun.config.schema import strip_permission_words, strip_permissions
from dlrun.core.errors import RequestError, UnreadableError
from dlrun.core.files import convert_write_errors, is_temporary, is_there, write_atomically
from dlrun.core.format import format_folder_name
from dlrun.core.inside import refuse_outside
from dlrun.core.lock import Lock
from dlrun.core.yaml import dump_yaml
from dlrun.runs.record import ENVIRONMENT, FINGERPRINTS, METRICS, RESULT, RunRecord

if TYPE_CHECKING:
    from dlrun.engine.device import Runtime


def create(outputs: Path, name: str) -> Path:
    """A new folder outputs/<date>/<time>_<name>; two runs of the same second get two folders."""
    now = datetime.now()
    parent = outputs / now.strftime("%Y-%m-%d")
    for suffix in ("", *(f"_{i}" for i in range(2, 1000))):
        folder = parent / f"{now.strftime('%H-%M-%S')}_{format_folder_name(name)}{suffix}"
        with convert_write_errors(outputs, "type paths.outputs=<folder>"):
            try:
                parent.mkdir(parents=True, exist_ok=True)
                folder.mkdir()
            except FileExistsError:
                if not parent.is_dir():
                    raise
                continue
        return folder
    raise RequestError(f"{parent} holds a thousand runs of this second; type paths.outputs=<folder>")


def free(folder: Path) -> Path:
    """`folder`, or with a number behind its name where there is one already."""
    numbered = (folder.with_name(f"{folder.name}_{i}") for i in itertools.count(2))
    return folder if not folder.exists() else next(path for path in numbered if not path.exists())


def claim(folder: Path) -> Path:
    """A folder that somebody else chose (a sweep, or hydra.run.dir): it may exist, but hold no run."""
    try:
        recorded = is_there(folder / METRICS) or is_there(folder / RESULT)
    except OSError as error:
        raise RequestError(f"{folder} cannot be read ({error.strerror}); choose another folder") from error
    if recorded or saved_files(folder):
        raise RequestError(
            f"{folder} already holds a run; choose another folder, or {RunRecord(folder).how_to_resume()}"
        )
    with convert_write_errors(folder, "choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
    refuse_outside(folder)
    return folder


def saved_files(folder: Path) -> list[Path]:
    """What a run has saved in checkpoints/, by name, without files that a killed process left half-written.

    UnreadableError where the folder is there but cannot be read: unreadable is not empty.
    """
    return finished_files(folder / "checkpoints")


def finished_files(checkpoints: Path) -> list[Path]:
    """The same for the folder of the checkpoints itself."""
    try:
        names = sorted(os.listdir(checkpoints))  # noqa: PTH208  (Path.glob takes an unreadable folder for an empty one)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        reason = error.strerror or error
        raise UnreadableError(f"{checkpoints} cannot be read ({reason}), and everything is left as it was") from error
    return [checkpoints / name for name in names if not is_temporary(name)]


def begin_again(folder: Path) -> None:
    """Remove what a run without checkpoints has left in its folder, so that it can be made again, and nothing else.

    The folder is locked meanwhile. UnreadableError where it holds checkpoints: no run deletes those.
    """
    with Lock() as lock:
        lock.take(folder)
        saved = saved_files(folder)
        if saved:
            raise UnreadableError(f"{folder} holds checkpoints ({saved[0].name}), and everything is left as it was")

        for name in (".hydra", "checkpoints", "figures"):
            shutil.rmtree(folder / name, ignore_errors=True)

        own = (ENVIRONMENT, "run.log", METRICS, FINGERPRINTS, RESULT, "report.html")
        for file in [*(folder / name for name in own), *folder.glob("events.out.tfevents.*")]:
            file.unlink(missing_ok=True)


def describe(folder: Path, request: Request, runtime: "Runtime") -> None:
    """Write .hydra/ and environment.json: what was asked for, where it ran, and a run_id that checkpoints repeat.

    RequestError when the disk does not take even these.
    """
    hidden = folder / ".hydra"
    about = {"run_id": uuid.uuid4().hex, **environment(request, runtime)}
    known = request.hydra or {"runtime": {"choices": request.choices}}
    with convert_write_errors(folder, "type paths.outputs=<folder>"):
        hidden.mkdir(exist_ok=True)
        (hidden / "config.yaml").write_text(dump_yaml(strip_permissions(request.config)))
        (hidden / "overrides.yaml").write_text(dump_yaml(strip_permission_words(request.overrides)))
        (hidden / "hydra.yaml").write_text(dump_yaml({"hydra": known}))
        write_json(folder / ENVIRONMENT, about)


def abandon(folder: Path, is_described: bool, is_new: bool) -> None:
    """Remove what `describe` has written for a run that does not begin after all, and the folder if it is new."""
    with contextlib.suppress(OSError):
        if is_described:
            shutil.rmtree(folder / ".hydra", ignore_errors=True)
            (folder / ENVIRONMENT).unlink(missing_ok=True)
        if is_new:
            folder.rmdir()


def environment(request: Request, runtime: "Runtime") -> dict[str, Any]:
    """Choices, versions, git commit, device, threads and the command line."""
    import torch  # here, as runs are listed without it

    from dlrun.engine.device import describe_versions

    return {
        "command": shlex.join(["dlrun", *strip_permission_words(request.words)]),
        "working_directory": str(Path.cwd()),
        "choices": request.choices,
        "keys_in_files": request.keys_in_files,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git_commit": _git(Path.cwd(), "rev-parse", "HEAD"),
        "git_dirty": bool(_git(Path.cwd(), "status", "--porcelain", "--untracked-files=no")),
        "device": str(runtime.device),
        "precision": runtime.precision,
        "threads": torch.get_num_threads(),
        "processes": runtime.ranks.world_size,
        "cpu_count": os.cpu_count(),
        "versions": describe_versions(),
    }


@functools.cache  # not once a job of a sweep: it costs 10 ms
def _git(place: Path, *words: str) -> str | None:
    """What git says of the working directory; null where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *words], cwd=place, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Indented JSON, written atomically; NumPy's values and tensors as plain ones, NaN and infinities as null."""
    write_atomically(path, (json.dumps(_finite(values), indent=2) + "\n").encode())


def _finite(value: Any) -> Any:
    if hasattr(value, "tolist"):  # a NumPy scalar or array, or a tensor
        value = value.tolist()
    if isinstance(value, dict):
        return {key.tolist() if hasattr(key, "tolist") else key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_here(path: Path) -> str:
    """The path as it would be typed in the working directory."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
