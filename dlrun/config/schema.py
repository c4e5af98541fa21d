"""The typed schema: every key of ours has a type, a default, a range, and its unit in its name.

A block (`data`, `model`, `optimizer`, `scheduler`) is open: it names a `_target_` and holds that target's
arguments besides the few keys of ours, which the `*Keys` classes type. `read` turns the composed config
into plain objects; nothing after it knows OmegaConf.
"""

import copy
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from dlrun.config.validation import validate
from dlrun.core.errors import ErrorList, RequestError

_PACKAGE = Path(__file__).resolve().parent.parent
CONFIG_DIR = next(p for p in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if p.is_dir())

DATA_FOLDER = "data"  # below the working directory, where $DLRUN_DATA_DIR names no other

T = TypeVar("T")


def _positive(default: Any) -> Any:
    return field(default=default, metadata={"above": 0})


def _not_negative(default: Any) -> Any:
    return field(default=default, metadata={"at_least": 0})


def _fraction(default: float) -> Any:
    return field(default=default, metadata={"at_least": 0, "below": 1})


def _choice(default: Any, *choices: Any) -> Any:
    return field(default=default, metadata={"choices": choices})


@dataclass
class DataKeys:
    """Keys of ours in every data block: how its rows are split, grouped and fetched."""

    batch_size: int = _positive(64)
    eval_batch_size: int | None = _positive(None)  # null: the larger of batch_size and 256
    val_fraction: float = _fraction(0.1)  # of the training split, where the data has no validation part
    shuffle: bool = True
    drop_last: bool = False  # the last training batch, when it is smaller than the others
    loader: str = _choice("auto", "auto", "memory", "workers")
    num_workers: int | None = _not_negative(None)  # null: all cores but one, 1 to 4
    memory_share: float = field(default=0.5, metadata={"above": 0, "at_most": 1})  # of the device, for auto
    train_rows: int | None = _positive(None)  # train on this many rows only, spread over the training part
    limit_batches: int | None = _positive(None)  # use only the first so many batches of each split


@dataclass
class ModelKeys:
    """Keys of ours in every model block."""

    init: dict[str, Any] | None = None  # start values by parameter name, {w: 1.0}


@dataclass
class OptimizerKeys:
    """Keys of ours in every optimizer block."""

    groups: list[Any] | None = None  # [{match: <pattern on parameter names>, lr: ...}, ...]


@dataclass
class SchedulerKeys:
    """Keys of ours in every scheduler block."""

    interval: str = _choice("epoch", "epoch", "step")
    warmup_steps: int = _not_negative(0)  # the learning rate climbs in a straight line over these steps


@dataclass
class TaskConfig:
    """What is minimized."""

    loss: str | None = None  # null: mse, bce_with_logits or cross_entropy, as the task asks; or module.function
    reduction: str = _choice("mean", "mean", "sum")


@dataclass
class EarlyStoppingConfig:
    """When to stop before the last epoch."""

    patience: int | None = _positive(None)  # epochs without improvement; null: never
    min_delta: float = _not_negative(0.0)


@dataclass
class TrainerConfig:
    """How long, and how a step is made."""

    epochs: int | None = _positive(20)  # null: until max_steps, as where that alone is typed
    max_steps: int | None = _positive(None)  # optimizer steps
    accumulate_steps: int = _positive(1)  # batches an optimizer step
    grad_clip_norm: float | None = _positive(None)
    log_every_steps: int = _positive(50)
    profile: bool = False  # a trace of a few steps, and a table of where the time went
    ema_decay: float | None = field(default=None, metadata={"above": 0, "below": 1})  # average the weights, by step
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)

    def limit_epochs(self, steps_per_epoch: int) -> int:
        """How many epochs may begin: those asked for, or as many as max_steps takes."""
        if self.epochs is not None:
            return self.epochs
        return math.ceil((self.max_steps or 1) / steps_per_epoch)


@dataclass
class CheckpointConfig:
    """What is saved, when, and which epoch is the best."""

    format: str = _choice("state_dict", "state_dict", "full")
    monitor: str | None = None  # null: val/loss, or train/loss where there is no validation part
    mode: str | None = _choice(None, "min", "max")  # null: as the metric asks
    every_epochs: int = _positive(1)
    every_steps: int | None = _positive(None)
    keep: int = _positive(2)  # newest step_*.pt files; the best one stays besides


@dataclass
class DeviceConfig:
    """Where and in which precision."""

    name: str = _choice("auto", "auto", "cpu", "cuda", "mps")
    index: int | None = _not_negative(None)
    precision: str = _choice("fp32", "fp32", "bf16", "fp16", "fp64")
    tf32: bool | None = None  # fp32 sums on CUDA with 10 bits of mantissa; null: as torch, for convolutions only
    compile: bool = False
    cuda_graph: str = _choice("auto", "auto", "off")  # a step started as one on CUDA, where its shapes allow it
    channels_last: bool | None = None  # null: for nets with 2-d convolutions
    deterministic: bool = False
    timeout_seconds: float = _positive(600.0)  # so long may one of several processes keep the others waiting
    num_threads: Any = field(default=None, metadata={"number_or": "auto"})  # CPU threads; null: as torch finds best


@dataclass
class TrackingConfig:
    """What TensorBoard shows besides scalars, and what is said besides."""

    diagnose: bool = True  # learning trouble is said, at the epoch where it shows
    graph: bool = True
    samples: bool = True
    weight_histograms: bool = False
    evolution_every_epochs: int | None = _positive(None)  # a picture of the fit that often, and all as figures/*.gif


@dataclass
class SweepConfig:
    """Several runs from one request."""

    points: list[str] = field(default_factory=list)  # a line of overrides a run; a line may itself be a sweep
    dir: str | None = None  # the sweep's folder: a new one, or one to go on with; null: always a new one
    jobs: Any = 1  # runs at a time, each in a process of its own from 2 on; auto: as many as there are cores or GPUs
    fail_fast: bool = False  # the first failure ends the sweep
    dry_run: bool = False  # say what would be run, how long it would take, and stop
    max_jobs: int = _positive(1000)  # more points are taken for a mistake


@dataclass
class PathsConfig:
    """Where data are looked for and runs are written."""

    data: str = f"${{oc.env:DLRUN_DATA_DIR,{DATA_FOLDER}}}"
    outputs: str = "outputs"


KEYS: dict[str, type] = {"data": DataKeys, "model": ModelKeys, "optimizer": OptimizerKeys, "scheduler": SchedulerKeys}


def _defaults(keys: type) -> Any:
    return field(default_factory=lambda: dataclasses.asdict(keys()))


@dataclass
class Config:
    """The whole experiment."""

    seed: int = field(default=0, metadata={"at_least": 0, "at_most": 2**63 - 1})
    resume: str | None = None  # a run folder: the same as `dlrun resume RUN`; auto: this very run, if it was cut off
    init_from: str | None = None  # a run or checkpoint whose weights to start from
    trust: bool = False  # open a pickled full model: it can run code
    trusted_modules: list[str] = field(default_factory=list)  # own modules that a loaded run may use
    probes: list[Any] = field(default_factory=list)  # inputs to ask the model before and after training
    expect: list[str] = field(default_factory=list)  # what the run should come to: see runs/expectations.py
    strict: bool = False  # exit code 1 when that is missed
    preflight: bool = True  # look at shapes, memory and disk before the first step
    data: dict[str, Any] = _defaults(DataKeys)
    model: dict[str, Any] = _defaults(ModelKeys)
    optimizer: dict[str, Any] = _defaults(OptimizerKeys)
    scheduler: dict[str, Any] = _defaults(SchedulerKeys)
    task: TaskConfig = field(default_factory=TaskConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    figures: bool = True
    paths: PathsConfig = field(default_factory=PathsConfig)


def register() -> None:
    """Make the schema known to Hydra under the name that config.yaml's defaults list uses."""
    # Looking at every key takes 10 ms, and another program may have a schema of this name.
    store = ConfigStore.instance()
    entry = store.repo.get("schema.yaml")
    if entry is None or OmegaConf.get_type(entry.node) is not Config:
        store.store(name="schema", node=Config)


@dataclass(frozen=True)
class Block:
    """An open block: the target's name and arguments, as plain Python values."""

    group: str
    choice: str  # the option's name: mnist, resnet, adam, ...
    target: str | None  # null: nothing to build (scheduler=none)
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """The composed config, checked, as plain objects."""

    data: Block
    data_keys: DataKeys
    model: Block
    model_keys: ModelKeys
    optimizer: Block
    optimizer_keys: OptimizerKeys
    scheduler: Block
    scheduler_keys: SchedulerKeys
    rest: Config  # every other key
    plain: dict[str, Any]  # the whole config as plain Python


def read_settings(plain: dict[str, Any], choices: dict[str, str], problems: ErrorList | None = None) -> Settings:
    """Check types and ranges of a composed config and return plain objects.

    What is off is noted in `problems`, with the default in its place; raised where that is left out.
    """
    found = ErrorList() if problems is None else problems
    plain = copy.deepcopy(plain)
    for key in sorted(find_missing(plain)):
        found.add(RequestError(f"{key} has no value yet; type {key}=..."))
    blocks = ("data", "model", "optimizer", "scheduler")
    data, data_keys = _block("data", choices, plain, DataKeys, found)
    model, model_keys = _block("model", choices, plain, ModelKeys, found)
    optimizer, optimizer_keys = _block("optimizer", choices, plain, OptimizerKeys, found)
    scheduler, scheduler_keys = _block("scheduler", choices, plain, SchedulerKeys, found)
    rest: Config = validate(Config, drop_missing({k: v for k, v in plain.items() if k not in blocks}), "", found)
    if rest.trainer.epochs is None and rest.trainer.max_steps is None:
        found.add(
            RequestError("trainer.epochs=null never ends; type trainer.max_steps=<steps> too, or trainer.epochs=20")
        )
        rest.trainer.epochs = 1
    if problems is None:
        found.raise_if_any()
    return Settings(
        data, data_keys, model, model_keys, optimizer, optimizer_keys, scheduler, scheduler_keys, rest, plain
    )


def _block(
    group: str, choices: dict[str, str], plain: dict[str, Any], keys: type[T], problems: ErrorList
) -> tuple[Block, T]:
    values = plain[group]
    ours = {f.name for f in dataclasses.fields(cast(Any, keys))}
    arguments = {k: v for k, v in values.items() if k not in ours and k != "_target_"}
    block = Block(group, choices.get(group, "?"), values.get("_target_"), arguments)
    return block, validate(keys, drop_missing({k: v for k, v in values.items() if k in ours}), group, problems)


def find_missing(values: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of all that still has no value (`???`)."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from find_missing(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(values, list):
        for number, value in enumerate(values):
            yield from find_missing(value, f"{prefix}[{number}]")
    elif values == "???":
        yield prefix


def drop_missing(values: Any) -> Any:
    """Without what still has no value (`???`)."""
    if not isinstance(values, dict):
        return values
    return {k: drop_missing(v) for k, v in values.items() if v != "???"}


PERMISSIONS = ("trust", "trusted_modules")  # of one command line or call: never written into a run, never read from it


def strip_permissions(plain: dict[str, Any]) -> dict[str, Any]:
    """The config as files hold it: without permissions, which nothing that is loaded can give itself."""
    return {key: value for key, value in plain.items() if key not in PERMISSIONS}


def strip_permission_words(words: Sequence[str]) -> list[str]:
    """The words of a command line as files hold them: without permissions."""
    return [word for word in words if word.partition("=")[0].lstrip("+~") not in PERMISSIONS]


NOT_IDENTITY = (
    "paths", "device", "tracking", "figures", "hydra", "sweep",
    "resume", "trust", "trusted_modules", "probes", "expect", "strict", "preflight",
)  # fmt: skip


def hash_config(plain: dict[str, Any]) -> str:
    """sha256 of the config that makes a run what it is: without paths, device and logging, as sorted JSON."""
    kept = {k: v for k, v in plain.items() if k not in NOT_IDENTITY}
    kept["data"] = {k: v for k, v in kept["data"].items() if k != "root"}
    kept["trainer"] = {k: v for k, v in kept["trainer"].items() if k not in ("log_every_steps", "profile")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
