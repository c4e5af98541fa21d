"""Finished runs, as their folders tell of them: plain data, nothing that is read can run code."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dlrun import config, run_folder, tracking
from dlrun.errors import RequestError
from dlrun.shell import quote
from dlrun.yaml_text import flatten, read_yaml

_WHOLE = {"status": str, "metrics": dict, "baseline": dict, "best": dict, "config_hash": str}

Lost = list[tuple[str, str]]  # what could not be used: its name, and why


@dataclass(frozen=True)
class Finished:
    """One run that has left a result."""

    folder: Path
    overrides: list[str]
    config: dict[str, Any]
    choices: dict[str, str]  # group -> option
    result: dict[str, Any]

    @cached_property
    def rows(self) -> list[dict[str, float]]:
        """metrics.jsonl; empty where it is missing or damaged: the run has no curve then, but a result."""
        try:
            return tracking.read_rows(self.folder)
        except (OSError, ValueError, AttributeError):
            return []

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The config with dotted keys, without what is no part of the experiment (see config.config_hash)."""
        kept = {k: v for k, v in self.config.items() if k not in config.NOT_IDENTITY}
        flat = flatten(kept)
        return {k: v for k, v in flat.items() if k not in ("data.root", "trainer.log_every_steps", "trainer.profile")}

    @property
    def seed(self) -> int:
        """What a setting is repeated over."""
        return int(self.config["seed"])

    @property
    def metric(self) -> str:
        """The monitored metric, "val/loss"."""
        return str(self.result["best"]["metric"])

    @property
    def value(self) -> float:
        """The monitored metric at its best epoch; NaN where there is none."""
        return number(self.result["best"].get("value"))

    @property
    def trouble(self) -> str:
        """Why the run does not count; "" for one that does."""
        status = self.result["status"]
        if status == "failed":
            return f"failed: {self.result.get('error') or 'no message'}"
        if status == "interrupted":
            return f"interrupted: dlrun resume {quote(self.folder)} ends it"
        return "" if math.isfinite(self.value) else f"{self.metric} is not finite"

    def metric_value(self, name: str) -> float:
        """A metric of the last epoch, or of the test split; NaN where there is none."""
        return number(self.result["metrics"].get(name))

    def target(self, group: str) -> str:
        """The class or function behind a choice, "dlrun.models.mlp.MLP"."""
        return str((self.config.get(group) or {}).get("_target_"))


def number(value: Any) -> float:
    """A number of a JSON file, which has null for what is not finite."""
    return float(value) if isinstance(value, int | float) else math.nan


def read(folder: Path, damaged: Lost | None = None) -> Finished | None:
    """The run in `folder`; None where a file of it is missing or damaged, with the reason added to `damaged`."""
    try:
        result = run_folder.read_json(folder / "result.json")
        hidden = folder / ".hydra"
        plain, overrides = _yaml(hidden / "config.yaml", dict), _yaml(hidden / "overrides.yaml", list)
        chosen = _yaml(hidden / "hydra.yaml", dict)["hydra"]["runtime"]["choices"]
        lacking = [key for key, kind in _WHOLE.items() if not isinstance(result.get(key), kind)]
        if lacking or not isinstance(result["best"].get("metric"), str) or not isinstance(plain.get("seed"), int):
            raise ValueError(f"result.json has no {lacking[0]}" if lacking else "it names no seed or no metric")
        choices = {str(k): str(v) for k, v in chosen.items() if v is not None and not str(k).startswith("hydra")}
    except (RequestError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if damaged is not None:
            said = str(error).splitlines() or ["no message"]
            damaged.append((str(folder), f"{type(error).__name__}: {said[0]}"))
        return None
    return Finished(folder, [str(word) for word in overrides], plain, choices, result)


def failed(
    plain: dict[str, Any], choices: dict[str, str], overrides: list[str], folder: Path, other: Finished
) -> Finished:
    """A run that left no result, beside `other`, one of the same data: it monitored the same metric."""
    result = other.result | {
        "status": "failed",
        "metrics": {},
        "best": {"metric": other.metric, "value": None, "epoch": None},
        "config_hash": config.config_hash(plain),
        "train_seconds": None,
    }
    return Finished(folder, overrides, plain, choices, result)


def _yaml(path: Path, kind: type) -> Any:
    """A YAML file as plain data: the loader knows no Python objects."""
    found = read_yaml(path.read_text())
    if not isinstance(found, kind):
        raise ValueError(f"{path.name} holds no {kind.__name__}")
    return found


def find(places: Sequence[Path], damaged: Lost | None = None) -> list[Finished]:
    """Every run folder (one with a result.json) at or below the places, each once, in the order of their names.

    RequestError where a place is none, or holds no run that can be read.
    """
    lost: Lost = [] if damaged is None else damaged
    found = [run for folder in _folders(places) if (run := read(folder, lost)) is not None]
    if not found:
        where = ", ".join(map(str, places)) or "nowhere"
        if lost:
            raise RequestError(f"no run below {where} can be read ({lost[0][0]}: {lost[0][1]}); type another folder")
        raise RequestError(
            f"no finished run (a folder with result.json) below {where}; type a run, a sweep, or a folder of them: "
            "dlrun compare outputs"
        )
    return found


def _folders(places: Sequence[Path]) -> list[Path]:
    """The run folders; what lies inside one is its own business."""
    found: dict[Path, Path] = {}
    for place in places:
        if not place.is_dir():
            raise RequestError(f"there is no folder {place}; type a run, a sweep, or a folder of them")
        for name, below, files in os.walk(place):
            if "result.json" in files:
                below.clear()
                found.setdefault(Path(name).resolve(), Path(name))
    return sorted(found.values())
