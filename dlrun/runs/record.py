"""The one reader of run folders: plain data of checked types, and a message for each damaged file."""

import codecs
import contextlib
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from dlrun.config.schema import NOT_IDENTITY
from dlrun.core import bounded, lock
from dlrun.core.bounded import LARGEST_LOG, describe, is_number, read_bytes, read_json, read_yaml_file
from dlrun.core.errors import DamageError
from dlrun.core.inside import is_within
from dlrun.core.own_code import find_own_modules
from dlrun.core.shell import suggest_command
from dlrun.core.yaml import flatten
from dlrun.engine.metric_names import get_direction, select_metrics

# Statuses in result.json of runs that can be resumed as they are; a search prunes those that do worse than others.
CUT_SHORT = ("interrupted", "pruned")
# Statuses in result.json.
ENDED = ("completed", "early_stopped", *CUT_SHORT, "failed")
STATUSES = ("running", *ENDED, "empty", "damaged")
RESULT = "result.json"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
# A folder with this file is that of a sweep.
LEDGER = "sweep.jsonl"
CONFIG = ".hydra/config.yaml"
OVERRIDES = ".hydra/overrides.yaml"
HYDRA = ".hydra/hydra.yaml"
FINGERPRINTS = "fingerprints.jsonl"
# Suffix of the event file that holds the run's end.
END_SUFFIX = ".end"
# A folder with one of these files is a run folder.
MARKS = {ENVIRONMENT, RESULT, METRICS}
# Bytes at the end of metrics.jsonl that surely hold its last row.
_TAIL = 4096

T = TypeVar("T")
# A predicate on values, and what it accepts in words.
Check = tuple[Callable[[Any], bool], str]


def allow_none(check: Check) -> Check:
    """Return the same check, which also accepts None."""
    accepts, description = check
    return lambda value: value is None or accepts(value), f"{description} or null"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    is_integer = value.is_integer() if isinstance(value, float) else is_number(value)
    return bool(is_integer and value >= 0)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(number is None or is_number(number) for number in value.values())


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _are_named_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _are_metrics_by_model(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_are_numbers, value.values()))


def _are_expectations(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    keys = {"expected", "measured", "ok"}
    return all(isinstance(line, dict) and keys <= line.keys() for line in value)


TEXT: Check = (_is_text, "text")
NUMBER: Check = (is_number, "a number")
COUNT: Check = (_is_count, "a whole number from 0 on")
NUMBERS: Check = (_are_numbers, "numbers by name")
TEXTS: Check = (_are_texts, "a list of texts")
NAMED_TEXTS: Check = (_are_named_texts, "texts by name")
MAPPING: Check = (lambda value: isinstance(value, dict), "a mapping")
PLACE: Check = (lambda value: _is_text(value) and bool(value) and "\0" not in value, "the name of a folder")
FLAG: Check = (lambda value: isinstance(value, bool), "true or false")

# The type of each key, if it is there: older versions of dlrun wrote fewer keys.
_RESULT_KEYS: dict[str, Check] = {
    "name": allow_none(TEXT),
    "parent": allow_none(NAMED_TEXTS),
    "status": (lambda value: value in ENDED, f"one of {', '.join(ENDED)}"),
    "metrics": NUMBERS,
    "baseline": NUMBERS,
    "best": MAPPING,
    "epochs": COUNT,
    "steps": COUNT,
    "train_seconds": allow_none(NUMBER),
    "compile_seconds": allow_none(NUMBER),
    "samples_per_second": allow_none(NUMBER),
    "parameters": COUNT,
    "config_hash": TEXT,
    "code_hash": TEXT,
    "weights_sha256": TEXT,
    "warnings": TEXTS,
    "error": allow_none(TEXT),
    "measured": MAPPING,
    # Metrics of scikit-learn's models, where they were fitted.
    "simple_models": (_are_metrics_by_model, "metrics by the name of a model"),
    # Number of runs that trained as one net with this one, itself included; only where they did.
    "stacked": COUNT,
    "expected": (_are_expectations, "a list of expectations"),
}
_BEST_KEYS: dict[str, Check] = {"metric": allow_none(TEXT), "value": allow_none(NUMBER), "epoch": allow_none(COUNT)}
_ENVIRONMENT_KEYS: dict[str, Check] = {
    "run_id": TEXT,
    "command": TEXT,
    "parent": allow_none(NAMED_TEXTS),
    "working_directory": TEXT,
    "choices": NAMED_TEXTS,
    "keys_in_files": NAMED_TEXTS,
    "started": TEXT,
    "git_commit": allow_none(TEXT),
    "git_dirty": FLAG,
    "device": TEXT,
    "precision": TEXT,
    "threads": COUNT,
    "processes": COUNT,
    "cpu_count": allow_none(COUNT),
    "versions": NAMED_TEXTS,
}
# Blocks that build one object, named by _target_.
_TARGET_BLOCKS = ("data", "model", "optimizer", "scheduler")
_BLOCKS = (*_TARGET_BLOCKS, "task", "trainer", "checkpoint", "device", "tracking", "run", "paths")
_CONFIG_KEYS: dict[str, Check] = {"seed": COUNT, **dict.fromkeys(_BLOCKS, allow_none(MAPPING))}
# What is read from a saved config before its schema validates the rest.
_BLOCK_KEYS: dict[str, dict[str, Check]] = {
    **{group: {"_target_": allow_none(TEXT)} for group in _TARGET_BLOCKS},
    "trainer": {"epochs": allow_none(COUNT), "max_steps": allow_none(COUNT), "early_stopping": allow_none(MAPPING)},
    "checkpoint": {"monitor": allow_none(TEXT), "mode": allow_none(TEXT)},
    "run": {"name": allow_none(TEXT), "tags": TEXTS, "notes": allow_none(TEXT)},
    "paths": {"data": allow_none(TEXT), "outputs": allow_none(TEXT)},
}


def find_config_error(values: dict[str, Any]) -> str:
    """Describe the first value of a saved config that has a wrong type; "" if there is none."""
    error = find_type_error(values, _CONFIG_KEYS)
    if error:
        return error

    for block, keys in _BLOCK_KEYS.items():
        error = find_type_error(values.get(block) or {}, keys, f"{block}.")
        if error:
            return error

    stopping = (values.get("trainer") or {}).get("early_stopping")
    return find_type_error(stopping or {}, {"patience": allow_none(COUNT)}, "trainer.early_stopping.")


def find_type_error(values: dict[str, Any], keys: dict[str, Check], place: str = "") -> str:
    """Describe the first value that its check rejects; "" if there is none. Missing keys pass."""
    for key, (accepts, description) in keys.items():
        if key in values and not accepts(values[key]):
            return f"{place}{key} is {describe(values[key])}, not {description}"
    return ""


CONFIG_MAPPING: Check = (lambda value: isinstance(value, dict) and not find_config_error(value), "the config of a run")
_FINGERPRINT_KEYS: dict[str, Check] = {"epoch": COUNT, "step": COUNT, "weights_sha256": TEXT}


def refuse_wrong_types(path: Path, values: dict[str, Any], keys: dict[str, Check], place: str = "") -> None:
    """Raise DamageError for the first value that its check rejects."""
    error = find_type_error(values, keys, place)
    if error:
        raise DamageError(path, error)


def read_result(path: Path) -> dict[str, Any]:
    """Read a result.json; DamageError if it has no status, or values of wrong types."""
    values = read_json(path)
    if "status" not in values:
        raise DamageError(path, "it has no status")
    refuse_wrong_types(path, values, _RESULT_KEYS)
    refuse_wrong_types(path, values.get("best", {}), _BEST_KEYS, "best.")
    return values


def _read_environment(path: Path) -> dict[str, Any]:
    """Read an environment.json; DamageError if it has values of wrong types."""
    values = read_json(path)
    refuse_wrong_types(path, values, _ENVIRONMENT_KEYS)
    return values


def read_config(path: Path) -> dict[str, Any]:
    """Read a composed config, nested; DamageError if it is none."""
    values = read_yaml_file(path)
    if not isinstance(values, dict):
        raise DamageError(path, f"it holds {describe(values)}, not a config")
    error = find_config_error(values)
    if error:
        raise DamageError(path, error)
    return values


def read_overrides(path: Path) -> list[str]:
    """Read the overrides of a command line; DamageError if they are no list of texts."""
    values = read_yaml_file(path)
    if not _are_texts(values):
        raise DamageError(path, f"it holds {describe(values)}, not a list of texts")
    return list(values)


def read_choices(path: Path) -> dict[str, str]:
    """Read group -> option from Hydra's own record, .hydra/hydra.yaml."""
    values = read_yaml_file(path)
    for key in ("hydra", "runtime", "choices"):
        values = values.get(key) if isinstance(values, dict) else None
    if not isinstance(values, dict):
        raise DamageError(path, "it holds no hydra.runtime.choices")

    choices: dict[str, str] = {}
    for group, option in values.items():
        if option is not None and not str(group).startswith("hydra"):
            choices[str(group)] = str(option)
    return choices


def _read_log(path: Path) -> bytes:
    """Read a file with a line an epoch."""
    return read_bytes(path, LARGEST_LOG)


def parse_line(name: str, line: bytes) -> dict[str, Any]:
    """Parse a line of metrics.jsonl or fingerprints.jsonl; ValueError says what is wrong with it."""
    values = bounded.parse_line(line)
    if name == METRICS and not (_are_numbers(values) and _is_count(values.get("epoch"))):
        raise ValueError("it is no row of numbers with an epoch")
    if name == FINGERPRINTS:
        for key, (accepts, description) in _FINGERPRINT_KEYS.items():
            if not accepts(values.get(key)):
                raise ValueError(f"{key} is not {description}")
    return values


def read_last_row(folder: Path) -> dict[str, Any]:
    """Read the last whole row of a run that may be training, without the others; empty if there is none yet."""
    try:
        with (folder / METRICS).open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL))
            # What follows the last newline is a row that is just being written.
            lines = file.read().split(b"\n")[:-1]
        return parse_line(METRICS, lines[-1]) if lines else {}
    # A display must not fail: the run itself reports damaged files.
    except (OSError, ValueError):
        return {}


def replace_none_with_nan(rows: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Return rows with NaN for None: JSON has null for values that are not finite."""
    return [_replace_none(row) for row in rows]


def _replace_none(row: dict[str, Any]) -> dict[str, float]:
    values: dict[str, float] = {}
    for key, value in row.items():
        values[key] = math.nan if value is None else value
    return values


def to_number(value: Any) -> float:
    """Convert a number of a JSON file; NaN for null, which stands for values that are not finite."""
    return float(value) if is_number(value) else math.nan


def _refuse_link_out(folder: Path, path: Path) -> None:
    """Raise DamageError for a link out of the run folder: a record never shows other files of the machine."""
    if not is_within(os.path.realpath(path), os.path.realpath(folder)):
        raise DamageError(path, f"it is a link to {os.path.realpath(path)}, outside of the folder")


@dataclass(frozen=True)
class RunRecord:
    """The content of a run folder; each file is read at its first use.

    A missing or damaged file counts as empty; `damage` names the damaged ones.
    """

    folder: Path
    # Folder of the sweep that the run is a job of.
    sweep: Path | None = None

    @classmethod
    def from_parts(
        cls,
        folder: Path,
        overrides: list[str],
        config: dict[str, Any],
        choices: dict[str, str],
        result: dict[str, Any],
    ) -> "RunRecord":
        """Build a record from its parts, without reading files."""
        record = cls(folder)
        # A cached property is read from the instance's dictionary, even of a frozen one.
        vars(record).update(overrides=overrides, config=config, choices=choices, result=result)
        return record

    @cached_property
    def _damage(self) -> dict[str, str]:
        """Messages about damaged files among those read so far, by file name."""
        return {}

    @property
    def damage(self) -> list[str]:
        """Messages "damaged: <file>: <reason>" about the files read so far."""
        return list(self._damage.values())

    def find_damage(self, names: Collection[str]) -> str:
        """Return the first message about one of the files; "" if there is none."""
        for name, message in self._damage.items():
            if name in names:
                return message
        return ""

    def read_files(self, *names: str) -> None:
        """Read these properties now, so that `damage` names their files if they are damaged."""
        for name in names:
            getattr(self, name)

    def _read(self, name: str, read: Callable[[Path], T], otherwise: T) -> T:
        try:
            path = self.folder / name
            # The run folder itself may be a link, but neither the file nor its subfolder may lead out of it.
            # os.path.islink is faster than Path.is_symlink, which takes a tenth of the time of `dlrun ls runs`.
            places = [place for place in (path, path.parent) if place != self.folder]
            if any(os.path.islink(place) for place in places):  # noqa: PTH114
                _refuse_link_out(self.folder, path)
            return read(path)
        except FileNotFoundError:
            return otherwise
        except DamageError as error:
            self._damage[name] = str(error)
            return otherwise

    def _read_lines(self, name: str) -> list[dict[str, Any]]:
        """Read the lines of a file up to the first damaged one."""
        content = self._read(name, _read_log, b"")
        *lines, rest = content.removeprefix(codecs.BOM_UTF8).split(b"\n")

        values: list[dict[str, Any]] = []
        for number, line in enumerate(lines, 1):
            try:
                values.append(parse_line(name, line))
            except ValueError as error:
                self._damage[name] = str(DamageError(self.folder / name, f"line {number}: {error}"))
                return values

        # A last line without its newline was cut short by a kill, unless it happens to be complete.
        with contextlib.suppress(ValueError):
            values.append(parse_line(name, rest))
        return values

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Content of environment.json."""
        return self._read(ENVIRONMENT, _read_environment, {})

    @cached_property
    def result(self) -> dict[str, Any]:
        """Content of result.json; empty if there is none yet."""
        return self._read(RESULT, read_result, {})

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config, nested. Reading it takes milliseconds."""
        return self._read(CONFIG, read_config, {})

    @cached_property
    def flat_config(self) -> dict[str, Any]:
        """The config with dotted keys."""
        return flatten(self.config)

    @cached_property
    def overrides(self) -> list[str]:
        """Overrides from the command line."""
        return self._read(OVERRIDES, read_overrides, [])

    @cached_property
    def choices(self) -> dict[str, str]:
        """Group -> option; older runs have it in .hydra/ only."""
        if "choices" in self.environment:
            return dict(self.environment["choices"])
        return self._read(HYDRA, read_choices, {})

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl, one an epoch; None for values that are not finite."""
        return self._read_lines(METRICS)

    @property
    def history(self) -> list[dict[str, float]]:
        """Rows of metrics.jsonl, one an epoch; NaN for values that are not finite."""
        return replace_none_with_nan(self.rows)

    @cached_property
    def fingerprints(self) -> list[dict[str, Any]]:
        """Rows of fingerprints.jsonl: the hash of the weights after each epoch."""
        return self._read_lines(FINGERPRINTS)

    @cached_property
    def has_checkpoints(self) -> bool:
        """Whether the run has checkpoint files, intact or not; True if the folder cannot be listed."""
        # In doubt True, as `dlrun clean` may remove a damaged run without checkpoints.
        try:
            with os.scandir(self.folder / "checkpoints") as entries:
                return any(entry.name.endswith(".pt") for entry in entries)
        except FileNotFoundError:
            return False
        except OSError as error:
            reason = f"it cannot be listed ({error.strerror})"
            self._damage["checkpoints"] = str(DamageError(self.folder / "checkpoints", reason))
            return True

    @property
    def status(self) -> str:
        """One of STATUSES."""
        # The lock comes first: the files of a run under way are those of an interrupted one.
        return "running" if lock.is_locked(self.folder) else self.recorded_status

    @cached_property
    def recorded_status(self) -> str:
        """The status according to the files; "interrupted" if the run was killed after it had started."""
        self.read_files("result", "environment", "choices")
        if "status" in self.result and not self.damage:
            return str(self.result["status"])
        has_started = self.has_checkpoints or bool(self.rows)
        # Looked at after the files above were read: unreadable must not pass for missing.
        if self.damage:
            return "damaged"
        return "interrupted" if has_started else "empty"

    @property
    def is_done(self) -> bool:
        """Whether the run has ended normally."""
        return self.result.get("status") in ("completed", "early_stopped")

    @property
    def epochs(self) -> int:
        """Number of completed epochs."""
        if "epochs" in self.result:
            return int(self.result["epochs"])
        return int(self.rows[-1]["epoch"]) if self.rows else 0

    @property
    def metrics(self) -> dict[str, Any]:
        """Final metrics, or train/* and val/* of the last epoch if there are none yet."""
        final: dict[str, Any] | None = self.result.get("metrics")
        if final:
            return final
        if not self.rows:
            return {}
        return select_metrics(self.rows[-1])

    @property
    def best(self) -> tuple[str, float] | None:
        """The monitored metric and its best value; None if no epoch was best."""
        best = self.result.get("best", {})
        if best.get("metric") is None or best.get("value") is None:
            return None
        return str(best["metric"]), float(best["value"])

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the best value; None if no epoch was best."""
        epoch = self.result.get("best", {}).get("epoch")
        return None if epoch is None else int(epoch)

    @property
    def seed(self) -> int:
        """The seed; 0 if the config has none."""
        return int(self.config.get("seed", 0))

    @property
    def name(self) -> str:
        """The name that the user gave to the run; "" without one."""
        # The result of a finished run spares reading its config, which takes milliseconds.
        return str(self.result.get("name") or "") if self.result else str(self._get_label("name") or "")

    @property
    def tags(self) -> list[str]:
        """The tags that the user gave to the run."""
        return list(self._get_label("tags") or [])

    @property
    def notes(self) -> str:
        """The user's text on the run; "" without one."""
        return str(self._get_label("notes") or "")

    def _get_label(self, key: str) -> Any:
        # Runs of older versions have no such section.
        return (self.config.get("run") or {}).get(key)

    @property
    def metric(self) -> str:
        """The monitored metric, such as "val/loss"; "" if it is not known."""
        return str(self.result.get("best", {}).get("metric") or "")

    @property
    def best_value(self) -> float:
        """The monitored metric at the best epoch; NaN if there is none."""
        return to_number(self.result.get("best", {}).get("value"))

    def get_monitor(self, row: Mapping[str, Any]) -> str:
        """Return the metric that decides which epoch is best; row: one of `rows`, which tells the splits."""
        monitor = (self.config.get("checkpoint") or {}).get("monitor")
        return str(monitor or ("val/loss" if "val/loss" in row else "train/loss"))

    def get_mode(self, metric: str) -> str:
        """Return whether smaller ("min") or larger ("max") values of the monitored metric are better."""
        mode = (self.config.get("checkpoint") or {}).get("mode")
        if mode:
            return str(mode)
        return get_direction(metric)

    def get_metric(self, name: str) -> float:
        """Return a final metric, such as "test/accuracy"; NaN if there is none."""
        return to_number(self.result.get("metrics", {}).get(name))

    @property
    def reason_unusable(self) -> str:
        """Why a comparison does not count the run; "" if it does."""
        status = self.result.get("status")
        if status == "failed":
            return f"failed: {self.result.get('error') or 'no message'}"
        if status in CUT_SHORT:
            return f"{status}: {self.advise_resume()} ends it"
        return "" if math.isfinite(self.best_value) else f"{self.metric} is not finite"

    def advise_resume(self, *words: str) -> str:
        """Return the command, or call, that resumes the run with the overrides `words`."""
        return suggest_command("resume", self.folder, *words, modules=find_own_modules(self.config))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The config with dotted keys, without keys that do not define the experiment (see config.config_hash)."""
        flat = flatten({key: value for key, value in self.config.items() if key not in NOT_IDENTITY})
        # Where data lies and how often something is logged does not change a weight.
        ignored_keys = ("data.root", "trainer.log_every_steps", "trainer.profile")
        return {key: value for key, value in flat.items() if key not in ignored_keys}

    def get_target(self, group: str) -> str:
        """Return the class or function of a group, such as "dlrun.models.mlp.MLP"."""
        return str((self.config.get(group) or {}).get("_target_"))

    @cached_property
    def machine(self) -> dict[str, str]:
        """Machine, versions and commit in words, for reports; empty if environment.json lacks them."""
        environment = self.environment
        # Runs of older versions, and folders that were put together by hand.
        if not {"versions", "device", "precision", "threads", "cpu_count"} <= environment.keys():
            return {}

        versions = environment["versions"]
        platform = versions.get("platform", "?")
        threads = f"{environment['threads']} of {environment['cpu_count']} threads"
        packages = [f"{name} {version}" for name, version in versions.items() if name != "platform"]
        facts = {
            "machine": f"{platform}; {environment['device']}, {environment['precision']}, {threads}",
            "versions": ", ".join(packages),
        }
        if environment.get("git_commit"):
            facts["commit"] = environment["git_commit"]
        return facts
