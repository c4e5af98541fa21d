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
from pathlib import Path

from dlrun.config.compose import GROUPS
from dlrun.core.errors import RequestError
from dlrun.core.suggest import did_you_mean
from dlrun.runs.record import ENVIRONMENT, MARKS, STATUSES, RunRecord

_OUTPUTS = "paths.outputs="
_STAMP = re.compile(r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d_")  # how run_folder.create calls one


def started(run: RunRecord) -> tuple[float, float]:
    """Seconds since 1970, and what tells runs of one second apart."""
    written = _written(run.folder / ENVIRONMENT) or _written(run.folder) or 0.0
    try:
        return datetime.fromisoformat(run.environment["started"]).timestamp(), written
    except (KeyError, ValueError, OverflowError, OSError):
        return written, written


def _written(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def is_stamped(folder: Path) -> bool:
    """Whether the place of a run says when it was begun."""
    return bool(_STAMP.match(f"{folder.parent.name}/{folder.name}"))


def typed_words(run: RunRecord) -> list[str]:
    """What was typed about keys, besides groups and places."""
    command = run.environment.get("command", "")
    words = command.split()
    # shlex takes 0.1 ms, and raises at a quote that is not closed.
    if "'" in command:
        with contextlib.suppress(ValueError):
            words = shlex.split(command)
    return [w for w in words if "=" in w and not w.startswith(("hydra.", "paths.", *(f"{g}=" for g in GROUPS)))]


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


def find(places: Sequence[Path]) -> list[RunRecord]:
    """The runs at or below some folders, newest first."""
    return sorted(folders(places), key=started, reverse=True)


def folders(places: Sequence[Path]) -> list[RunRecord]:
    """The same in no order, with nothing of them read. Symbolic links below the folders are not followed."""
    found: dict[Path, RunRecord] = {}
    sweeps: dict[Path, Path | None] = {}
    for root in places:
        for name, below, files in os.walk(root):
            place = Path(name)
            sweeps[place] = place if "sweep.jsonl" in files else sweeps.get(place.parent)
            if _is_run(place, below, files, sweeps[place]):
                found.setdefault(place.resolve(), RunRecord(place, sweeps[place]))
                below.clear()
    return list(found.values())


def _is_run(place: Path, below: list[str], files: list[str], sweep: Path | None) -> bool:
    """Whether a run lies here, or was to lie here when its process ended."""
    if MARKS & {*files, *below} or ".hydra" in below:
        return True
    return not below and set(files) <= {".lock"} and (sweep is not None or is_stamped(place))


@dataclass
class Query:
    """Which runs are asked for."""

    outputs: Path = Path("outputs")
    places: list[Path] = field(default_factory=list)  # folders; none: all of `outputs`
    filters: dict[str, list[str]] = field(default_factory=dict)  # key -> patterns, one of which is to match
    last: int | None = None
    unreadable: list[str] = field(default_factory=list)  # damage that kept a filter from asking

    def runs(self) -> list[RunRecord]:
        """Those that match, newest first. RequestError for a key that none of the runs has."""
        found = find(self.places or [self.outputs])
        for key, patterns in self.filters.items():
            if found and key != "status" and not any(key in run.choices or key in run.flat_config for run in found):
                known = {"status": 0, **dict.fromkeys(GROUPS), **found[0].flat_config}
                raise RequestError(
                    f"no run has a key {key}; {did_you_mean(key, known)}type status=, model=, seed=, ..."
                )
            matching = list[RunRecord]()
            for run in found:
                if _matches(run, key, patterns):
                    matching.append(run)
                elif key != "status":
                    self.unreadable += run.damage
            found = matching
        return found


def _matches(run: RunRecord, key: str, patterns: list[str]) -> bool:
    try:
        value = run.filter_value(key)
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
        elif "=" not in word and word[:1] != "-":
            raise RequestError(f"there is no folder {word}; {command} takes folders and filters, as in status=failed")
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
