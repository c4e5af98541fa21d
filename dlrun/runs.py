"""Runs as their folders tell of them, without torch: where they lie, how they ended, which of them are asked for."""

import contextlib
import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from dlrun import lock, run_folder
from dlrun.errors import RequestError, UnreadableError, did_you_mean
from dlrun.request import GROUPS
from dlrun.yaml_text import flatten, read_yaml

STATUSES = ("running", "completed", "early_stopped", "interrupted", "failed", "empty", "damaged")
_OUTPUTS = "paths.outputs="
_MARKS = {"environment.json", "result.json", "metrics.jsonl"}  # a folder with one of them is a run's
_STAMP = re.compile(r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d_")  # how run_folder.create calls one


@dataclass(frozen=True)
class Found:
    """One run folder; a file that is missing or damaged counts as saying nothing."""

    folder: Path
    sweep: Path | None = None  # the sweep that it is a job of

    @cached_property
    def environment(self) -> dict[str, Any]:
        """environment.json."""
        return _read(self.folder / "environment.json") or {}

    @cached_property
    def result(self) -> dict[str, Any]:
        """result.json; empty where there is none yet."""
        return _read(self.folder / "result.json") or {}

    @cached_property
    def status(self) -> str:
        """One of STATUSES."""
        return "running" if lock.is_held(self.folder) else self.left

    @property
    def left(self) -> str:
        """The status that its files tell of; interrupted for a run that was killed after it had begun."""
        if (self.folder / "result.json").exists():
            return self.result["status"] if self.result.get("status") in STATUSES else "damaged"
        try:
            saved = any(file.suffix == ".pt" for file in run_folder.saved_files(self.folder))
            if saved or self.rows:
                return "interrupted"
            os.close(os.open(self.folder / "metrics.jsonl", os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)))
        except FileNotFoundError:
            return "empty"
        except (UnreadableError, OSError):  # which is not empty, and so not for `dlrun clean`
            return "damaged"
        return "empty"

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """metrics.jsonl."""
        return run_folder.json_lines(self.folder / "metrics.jsonl")

    @cached_property
    def choices(self) -> dict[str, str]:
        """Group -> option; runs of before environment.json said so have them in .hydra/."""
        known = self.environment.get("choices")
        if known is None:
            told = _yaml(self.folder / ".hydra" / "hydra.yaml")
            known = {k: told.get(f"hydra.runtime.choices.{k}") for k in GROUPS}
        return {str(k): str(v) for k, v in known.items() if v is not None}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config with dotted keys; reading it takes milliseconds."""
        return _yaml(self.folder / ".hydra" / "config.yaml")

    @cached_property
    def started(self) -> tuple[float, float]:
        """Seconds since 1970, and what tells runs of one second apart."""
        file = self.folder / "environment.json"
        written = next((path.stat().st_mtime for path in (file, self.folder) if path.exists()), 0.0)
        try:
            return datetime.fromisoformat(self.environment["started"]).timestamp(), written
        except (KeyError, ValueError, TypeError):
            return written, written

    @property
    def is_stamped(self) -> bool:
        """Whether its place says when it was begun."""
        return bool(_STAMP.match(f"{self.folder.parent.name}/{self.folder.name}"))

    @property
    def epochs(self) -> int:
        """Epochs that have ended."""
        made = self.result.get("epochs", self.rows[-1].get("epoch") if self.rows else 0)
        return made if isinstance(made, int) else 0

    @property
    def best(self) -> tuple[str, float] | None:
        """The monitored metric and its best value."""
        found = self.result.get("best")
        named = isinstance(found, dict) and isinstance(found.get("value"), float | int)
        return (str(found["metric"]), float(found["value"])) if named and found else None

    @property
    def asked(self) -> list[str]:
        """What was typed about keys, besides groups and places."""
        command = str(self.environment.get("command", ""))
        words = shlex.split(command) if "'" in command else command.split()  # shlex takes 0.1 ms
        return [w for w in words if "=" in w and not w.startswith(("hydra.", "paths.", *(f"{g}=" for g in GROUPS)))]

    def value(self, key: str) -> Any:
        """What a filter asks about: status, a group's choice, or any key of the config. KeyError where it has none."""
        if key == "status":
            return self.status
        return self.choices[key] if key in GROUPS else self.config[key]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return run_folder.read_json(path)
    except RequestError:
        return None


def _yaml(path: Path) -> dict[str, Any]:
    try:
        return flatten(read_yaml(path.read_text()))
    except (OSError, ValueError, AttributeError):
        return {}


def bytes_of(folder: Path) -> int:
    """What the files below a folder hold; one with several names counts once, and one that is going away not."""
    sizes, left = dict[tuple[int, int], int](), [str(folder)]
    while left:
        with contextlib.suppress(OSError), os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
                else:
                    found = entry.stat(follow_symlinks=False)
                    sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())


def find(places: Sequence[Path]) -> list[Found]:
    """The runs at or below some folders, newest first."""
    return sorted(folders(places), key=lambda run: run.started, reverse=True)


def folders(places: Sequence[Path]) -> list[Found]:
    """The same in no order, with nothing of them read. Symbolic links below the folders are not followed."""
    found: dict[Path, Found] = {}
    sweeps: dict[Path, Path | None] = {}
    for root in places:
        for name, below, files in os.walk(root):
            place = Path(name)
            sweeps[place] = place if "sweep.jsonl" in files else sweeps.get(place.parent)
            if _is_run(place, below, files, sweeps[place]):
                found.setdefault(place.resolve(), Found(place, sweeps[place]))
                below.clear()
    return list(found.values())


def _is_run(place: Path, below: list[str], files: list[str], sweep: Path | None) -> bool:
    """Whether a run lies here, or was to lie here when its process ended."""
    if _MARKS & set(files) or ".hydra" in below:
        return True
    return not below and set(files) <= {".lock"} and (sweep is not None or Found(place).is_stamped)


@dataclass
class Query:
    """Which runs are asked for."""

    outputs: Path = Path("outputs")
    places: list[Path] = field(default_factory=list)  # folders; none: all of `outputs`
    filters: dict[str, list[str]] = field(default_factory=dict)  # key -> patterns, one of which is to match
    last: int | None = None

    def runs(self) -> list[Found]:
        """Those that match, newest first. RequestError for a key that none of the runs has."""
        found = find(self.places or [self.outputs])
        for key, patterns in self.filters.items():
            if found and key != "status" and not any(key in run.choices or key in run.config for run in found):
                known = {"status": 0, **dict.fromkeys(GROUPS), **found[0].config}
                raise RequestError(
                    f"no run has a key {key}; {did_you_mean(key, known)}type status=, model=, seed=, ..."
                )
            found = [run for run in found if _matches(run, key, patterns)]
        return found


def _matches(run: Found, key: str, patterns: list[str]) -> bool:
    try:
        value = run.value(key)
    except KeyError:
        return False
    text = value if isinstance(value, str) else json.dumps(value)
    return any(fnmatchcase(text, pattern) or _same_number(text, pattern) for pattern in patterns)


def _same_number(a: str, b: str) -> bool:
    try:
        return float(a) == float(b)
    except ValueError:
        return False


def query(words: Sequence[str], command: str) -> Query:
    """FOLDER..., key=value[,value] filters, --last N and paths.outputs=X. RequestError for anything else."""
    asked, left = Query(), list(words)
    while left:
        word = left.pop(0)
        if word == "--last":
            word = f"last={left.pop(0) if left else ''}"
        key, _, value = word.removeprefix("--").partition("=")
        if word.startswith(_OUTPUTS):
            asked.outputs = Path(value)
        elif "=" not in word and Path(word).is_dir():
            asked.places.append(Path(word))
        elif key == "last":
            asked.last = _count(value)
        elif "=" not in word or not value:
            raise RequestError(f"{command} takes folders and filters, as in status=failed or model=resnet; not {word}")
        else:
            asked.filters[key] = value.split(",")
    unknown = [s for s in asked.filters.get("status", []) if not any(fnmatchcase(known, s) for known in STATUSES)]
    if unknown:
        hint = did_you_mean(unknown[0], STATUSES, "status=")
        raise RequestError(f"status={unknown[0]} is none; {hint}type one of {', '.join(STATUSES)}")
    return asked


def _count(value: str) -> int:
    if not value.isdecimal() or int(value) == 0:
        raise RequestError(f"last={value} must be a whole number above 0; type --last 10")
    return int(value)
