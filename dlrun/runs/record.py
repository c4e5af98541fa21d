"""The one reader of a run folder. What is read is plain data of known types; a damaged file is said once, as such."""

import codecs
import contextlib
import math
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from dlrun.config.compose import GROUPS
from dlrun.config.schema import NOT_IDENTITY
from dlrun.core import bounded, lock
from dlrun.core.bounded import LARGEST_LOG, describe, is_number, read_bytes, read_json, read_yaml_file
from dlrun.core.errors import DamageError
from dlrun.core.inside import is_within
from dlrun.core.own_code import find_own_modules
from dlrun.core.shell import suggest_command
from dlrun.core.yaml import flatten

ENDED = ("completed", "early_stopped", "interrupted", "failed")  # what result.json can say
STATUSES = ("running", *ENDED, "empty", "damaged")
RESULT = "result.json"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
CONFIG = ".hydra/config.yaml"
OVERRIDES = ".hydra/overrides.yaml"
HYDRA = ".hydra/hydra.yaml"
FINGERPRINTS = "fingerprints.jsonl"
MARKS = {ENVIRONMENT, RESULT, METRICS}  # a folder with one of them is a run's

T = TypeVar("T")
Check = tuple[Callable[[Any], bool], str]  # whether a value will do, and what would


def or_none(check: Check) -> Check:
    """The same, or null."""
    accepts, wanted = check
    return lambda value: value is None or accepts(value), f"{wanted} or null"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    is_whole = value.is_integer() if isinstance(value, float) else is_number(value)
    return bool(is_whole and value >= 0)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(number is None or is_number(number) for number in value.values())


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _are_named_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _are_expectations(value: Any) -> bool:
    keys = {"expected", "measured", "ok"}
    return isinstance(value, list) and all(isinstance(line, dict) and keys <= line.keys() for line in value)


TEXT: Check = (_is_text, "text")
NUMBER: Check = (is_number, "a number")
COUNT: Check = (_is_count, "a whole number from 0 on")
NUMBERS: Check = (_are_numbers, "numbers by name")
TEXTS: Check = (_are_texts, "a list of texts")
NAMED_TEXTS: Check = (_are_named_texts, "texts by name")
MAPPING: Check = (lambda value: isinstance(value, dict), "a mapping")
PLACE: Check = (lambda value: _is_text(value) and bool(value) and "\0" not in value, "the name of a folder")
FLAG: Check = (lambda value: isinstance(value, bool), "true or false")

# What each key holds where it is there; an older dlrun wrote fewer.
RESULT_KEYS: dict[str, Check] = {
    "status": (lambda value: value in ENDED, f"one of {', '.join(ENDED)}"),
    "metrics": NUMBERS,
    "baseline": NUMBERS,
    "best": MAPPING,
    "epochs": COUNT,
    "steps": COUNT,
    "train_seconds": or_none(NUMBER),
    "compile_seconds": or_none(NUMBER),
    "samples_per_second": or_none(NUMBER),
    "parameters": COUNT,
    "config_hash": TEXT,
    "code_hash": TEXT,
    "weights_sha256": TEXT,
    "warnings": TEXTS,
    "error": or_none(TEXT),
    "measured": MAPPING,
    "expected": (_are_expectations, "a list of expectations"),
}
BEST_KEYS: dict[str, Check] = {"metric": or_none(TEXT), "value": or_none(NUMBER), "epoch": or_none(COUNT)}
ENVIRONMENT_KEYS: dict[str, Check] = {
    "run_id": TEXT,
    "command": TEXT,
    "working_directory": TEXT,
    "choices": NAMED_TEXTS,
    "keys_in_files": NAMED_TEXTS,
    "started": TEXT,
    "git_commit": or_none(TEXT),
    "git_dirty": FLAG,
    "device": TEXT,
    "precision": TEXT,
    "threads": COUNT,
    "processes": COUNT,
    "cpu_count": or_none(COUNT),
    "versions": NAMED_TEXTS,
}
_OF_TARGETS = ("data", "model", "optimizer", "scheduler")  # blocks of one object each, with its _target_
_BLOCKS = (*_OF_TARGETS, "task", "trainer", "checkpoint", "device", "tracking", "paths")
CONFIG_KEYS: dict[str, Check] = {"seed": COUNT, **dict.fromkeys(_BLOCKS, or_none(MAPPING))}
BLOCK_KEYS: dict[str, dict[str, Check]] = {  # what is looked at before the whole config is checked by its schema
    **{group: {"_target_": or_none(TEXT)} for group in _OF_TARGETS},
    "trainer": {"epochs": or_none(COUNT), "max_steps": or_none(COUNT), "early_stopping": or_none(MAPPING)},
    "checkpoint": {"monitor": or_none(TEXT), "mode": or_none(TEXT)},
    "paths": {"data": or_none(TEXT), "outputs": or_none(TEXT)},
}


def wrong_in_config(values: dict[str, Any]) -> str:
    """What is not as the config of a run has it; "" where nothing is."""
    wrong = wrong_value(values, CONFIG_KEYS)
    for block, keys in BLOCK_KEYS.items():
        wrong = wrong or wrong_value(values.get(block) or {}, keys, f"{block}.")
    stopping = (values.get("trainer") or {}).get("early_stopping") if not wrong else None
    return wrong or wrong_value(stopping or {}, {"patience": or_none(COUNT)}, "trainer.early_stopping.")


def wrong_value(values: dict[str, Any], keys: dict[str, Check], place: str = "") -> str:
    """The first value that is not what its key holds, in words; "" where all are."""
    for key, (accepts, wanted) in keys.items():
        if key in values and not accepts(values[key]):
            return f"{place}{key} is {describe(values[key])}, not {wanted}"
    return ""


CONFIG_MAPPING: Check = (lambda value: isinstance(value, dict) and not wrong_in_config(value), "the config of a run")
FINGERPRINT_KEYS: dict[str, Check] = {"epoch": COUNT, "step": COUNT, "weights_sha256": TEXT}


def refuse_wrong_types(path: Path, values: dict[str, Any], keys: dict[str, Check], place: str = "") -> None:
    """DamageError for the first value that is not what its key holds."""
    wrong = wrong_value(values, keys, place)
    if wrong:
        raise DamageError(path, wrong)


def read_result(path: Path) -> dict[str, Any]:
    """A result.json; DamageError for one that says no status, or whose values have other types."""
    values = read_json(path)
    if "status" not in values:
        raise DamageError(path, "it has no status")
    refuse_wrong_types(path, values, RESULT_KEYS)
    refuse_wrong_types(path, values.get("best", {}), BEST_KEYS, "best.")
    return values


def read_environment(path: Path) -> dict[str, Any]:
    """An environment.json."""
    values = read_json(path)
    refuse_wrong_types(path, values, ENVIRONMENT_KEYS)
    return values


def read_config(path: Path) -> dict[str, Any]:
    """A composed config, nested."""
    values = read_yaml_file(path)
    if not isinstance(values, dict):
        raise DamageError(path, f"it holds {describe(values)}, not a config")
    wrong = wrong_in_config(values)
    if wrong:
        raise DamageError(path, wrong)
    return values


def read_overrides(path: Path) -> list[str]:
    """The words of a command line that a run keeps."""
    values = read_yaml_file(path)
    if not _are_texts(values):
        raise DamageError(path, f"it holds {describe(values)}, not a list of texts")
    return list(values)


def read_choices(path: Path) -> dict[str, str]:
    """Group -> option, as Hydra's own record in .hydra/hydra.yaml has it."""
    values = read_yaml_file(path)
    for key in ("hydra", "runtime", "choices"):
        values = values.get(key) if isinstance(values, dict) else None
    if not isinstance(values, dict):
        raise DamageError(path, "it holds no hydra.runtime.choices")
    known = {str(key): value for key, value in values.items() if not str(key).startswith("hydra")}
    return {key: str(value) for key, value in known.items() if value is not None}


def read_log(path: Path) -> bytes:
    """A file with a line an epoch."""
    return read_bytes(path, LARGEST_LOG)


def parse_line(name: str, line: bytes) -> dict[str, Any]:
    """One line of metrics.jsonl or of fingerprints.jsonl; ValueError says why it is none."""
    values = bounded.parse_line(line)
    if name == METRICS and not (_are_numbers(values) and _is_count(values.get("epoch"))):
        raise ValueError("it is no row of numbers with an epoch")
    if name == FINGERPRINTS:
        for key, (accepts, wanted) in FINGERPRINT_KEYS.items():
            if not accepts(values.get(key)):
                raise ValueError(f"{key} is not {wanted}")
    return values


def with_nan(rows: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Rows with NaN for null, which stands for what is not finite in JSON."""
    return [{key: math.nan if value is None else value for key, value in row.items()} for row in rows]


def to_number(value: Any) -> float:
    """A number of a JSON file; NaN for null, which stands for what is not finite."""
    return float(value) if is_number(value) else math.nan


def refuse_link_out(folder: Path, path: Path) -> None:
    """DamageError for a file of a run that lies elsewhere: nothing of the machine's is taken for a run's."""
    if not is_within(os.path.realpath(path), os.path.realpath(folder)):
        raise DamageError(path, f"it is a link to {os.path.realpath(path)}, outside of the folder")


@dataclass(frozen=True)
class RunRecord:
    """What one run folder tells of its run; each file is read when it is first asked about.

    A file that is missing says nothing, and a damaged one neither: `damage` names it.
    """

    folder: Path
    sweep: Path | None = None  # the sweep that it is a job of

    @classmethod
    def of_parts(
        cls,
        folder: Path,
        overrides: list[str],
        config: dict[str, Any],
        choices: dict[str, str],
        result: dict[str, Any],
    ) -> "RunRecord":
        """A record that was put together, not read."""
        record = cls(folder)
        vars(record).update(overrides=overrides, config=config, choices=choices, result=result)
        return record

    @cached_property
    def _damage(self) -> dict[str, str]:
        """By name, what is wrong with the files that were read so far."""
        return {}

    @property
    def damage(self) -> list[str]:
        """What is wrong with the files that were read so far, "damaged: <file>: <what>" each."""
        return list(self._damage.values())

    def damage_of(self, names: Collection[str]) -> str:
        """The first damage of some of the files; "" where there is none."""
        return next((message for name, message in self._damage.items() if name in names), "")

    def _read(self, name: str, read: Callable[[Path], T], otherwise: T) -> T:
        try:
            path = self.folder / name
            # Of a thousand runs Path.is_symlink would take a tenth of the time.
            if any(os.path.islink(place) for place in (path, path.parent) if place != self.folder):  # noqa: PTH114
                refuse_link_out(self.folder, path)
            return read(path)
        except FileNotFoundError:
            return otherwise
        except DamageError as error:
            self._damage[name] = str(error)
            return otherwise

    def _read_lines(self, name: str) -> list[dict[str, Any]]:
        """The lines of a file up to a damaged one. A last line without its end was cut short by a kill."""
        content = self._read(name, read_log, b"")
        *lines, rest = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
        values: list[dict[str, Any]] = []
        for number, line in enumerate(lines, 1):
            try:
                values.append(parse_line(name, line))
            except ValueError as error:
                self._damage[name] = str(DamageError(self.folder / name, f"line {number}: {error}"))
                return values
        with contextlib.suppress(ValueError):
            values.append(parse_line(name, rest))
        return values

    @cached_property
    def environment(self) -> dict[str, Any]:
        """environment.json."""
        return self._read(ENVIRONMENT, read_environment, {})

    @cached_property
    def result(self) -> dict[str, Any]:
        """result.json; empty where there is none yet."""
        return self._read(RESULT, read_result, {})

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config, nested; reading it takes milliseconds."""
        return self._read(CONFIG, read_config, {})

    @cached_property
    def flat_config(self) -> dict[str, Any]:
        """The config with dotted keys."""
        return flatten(self.config)

    @cached_property
    def overrides(self) -> list[str]:
        """What was typed about keys."""
        return self._read(OVERRIDES, read_overrides, [])

    @cached_property
    def choices(self) -> dict[str, str]:
        """Group -> option; runs of before environment.json said so have them in .hydra/."""
        if "choices" in self.environment:
            return dict(self.environment["choices"])
        return self._read(HYDRA, read_choices, {})

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """metrics.jsonl, a row an epoch; None for what was not finite."""
        return self._read_lines(METRICS)

    @property
    def history(self) -> list[dict[str, float]]:
        """The same with NaN for what was not finite."""
        return with_nan(self.rows)

    @cached_property
    def fingerprints(self) -> list[dict[str, Any]]:
        """fingerprints.jsonl: the hash of the weights after each epoch."""
        return self._read_lines(FINGERPRINTS)

    @cached_property
    def has_checkpoints(self) -> bool:
        """Whether checkpoints lie in it, whole or not; true where that cannot be found out."""
        try:
            with os.scandir(self.folder / "checkpoints") as entries:
                return any(entry.name.endswith(".pt") for entry in entries)
        except FileNotFoundError:
            return False
        except OSError as error:
            what = f"it cannot be listed ({error.strerror})"
            self._damage["checkpoints"] = str(DamageError(self.folder / "checkpoints", what))
            return True

    @property
    def status(self) -> str:
        """One of STATUSES."""
        return "running" if lock.is_locked(self.folder) else self.left

    @cached_property
    def left(self) -> str:
        """The status that its files tell of; interrupted for a run that was killed after it had begun."""
        for name in ("result", "environment", "choices"):
            getattr(self, name)
        if "status" in self.result and not self.damage:
            return str(self.result["status"])
        has_begun = self.has_checkpoints or bool(self.rows)
        # What cannot be read must not pass for what is not there.
        if self.damage:
            return "damaged"
        return "interrupted" if has_begun else "empty"

    @property
    def is_done(self) -> bool:
        """Whether it has ended as it should."""
        return self.result.get("status") in ("completed", "early_stopped")

    @property
    def epochs(self) -> int:
        """Epochs that have ended."""
        if "epochs" in self.result:
            return int(self.result["epochs"])
        return int(self.rows[-1]["epoch"]) if self.rows else 0

    @property
    def metrics(self) -> dict[str, Any]:
        """Those of its end, else train/* and val/* of its last epoch."""
        last = self.rows[-1] if not self.result.get("metrics") and self.rows else {}
        return self.result.get("metrics") or {k: v for k, v in last.items() if k.startswith(("train/", "val/"))}

    @property
    def best(self) -> tuple[str, float] | None:
        """The monitored metric and its best value; None where there is none."""
        best = self.result.get("best", {})
        if best.get("metric") is None or best.get("value") is None:
            return None
        return str(best["metric"]), float(best["value"])

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the best value; None where there is none."""
        epoch = self.result.get("best", {}).get("epoch")
        return None if epoch is None else int(epoch)

    @property
    def seed(self) -> int:
        """What a setting is repeated over; 0 where the config does not say."""
        return int(self.config.get("seed", 0))

    @property
    def metric(self) -> str:
        """The monitored metric, "val/loss"; "" where it is not known."""
        return str(self.result.get("best", {}).get("metric") or "")

    @property
    def value(self) -> float:
        """The monitored metric at its best epoch; NaN where there is none."""
        return to_number(self.result.get("best", {}).get("value"))

    def metric_value(self, name: str) -> float:
        """A metric of the last epoch, or of the test split; NaN where there is none."""
        return to_number(self.result.get("metrics", {}).get(name))

    @property
    def trouble(self) -> str:
        """Why the run does not count in a comparison; "" for one that does."""
        status = self.result.get("status")
        if status == "failed":
            return f"failed: {self.result.get('error') or 'no message'}"
        if status == "interrupted":
            return f"interrupted: {self.how_to_resume()} ends it"
        return "" if math.isfinite(self.value) else f"{self.metric} is not finite"

    def how_to_resume(self, *words: str) -> str:
        """What to type, or to call, to go on with the run; words: key=value."""
        return suggest_command("resume", self.folder, *words, modules=find_own_modules(self.config))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The config with dotted keys, without what is no part of the experiment (see config.config_hash)."""
        flat = flatten({key: value for key, value in self.config.items() if key not in NOT_IDENTITY})
        apart = ("data.root", "trainer.log_every_steps", "trainer.profile")
        return {key: value for key, value in flat.items() if key not in apart}

    def target(self, group: str) -> str:
        """The class or function behind a choice, "dlrun.models.mlp.MLP"."""
        return str((self.config.get(group) or {}).get("_target_"))

    @cached_property
    def machine(self) -> dict[str, str]:
        """What environment.json says of machine, versions and commit, in words; empty where it does not say."""
        noted = self.environment
        if not {"versions", "device", "precision", "threads", "cpu_count"} <= noted.keys():
            return {}
        versions = noted["versions"]
        listed = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "platform")
        machine = f"{noted['device']}, {noted['precision']}, {noted['threads']} of {noted['cpu_count']} threads"
        commit = {"commit": noted["git_commit"]} if noted.get("git_commit") else {}
        return {"machine": f"{versions.get('platform', '?')}; {machine}", "versions": listed} | commit

    def filter_value(self, key: str) -> Any:
        """What a filter asks about: status, a group's choice, or any key of the config. KeyError where it has none."""
        if key == "status":
            return self.status
        return self.choices[key] if key in GROUPS else self.flat_config[key]
