"""The typed schema: every key of ours has a type, a default, a range, and its unit in its name.

A block (`data`, `model`, `optimizer`, `scheduler`) is open: it names a `_target_` and holds that target's
arguments besides the few keys of ours, which the `*Keys` classes type. In the comments on keys, null is the value that
is typed.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from dlrun.config.overrides import get_key

_PACKAGE = Path(__file__).resolve().parent.parent

# In a wheel the configs lie in the package, in a checkout beside it.
CONFIG_DIR = next(path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir())

# Below the working directory, where $DLRUN_DATA_DIR names no other.
DATA_FOLDER = "data"

# Permissions of one command line or call: never written into a run, never read from it.
PERMISSIONS = ("trust", "trusted_modules")

# The logger of runs that an older dlrun has saved.
TENSORBOARD = "dlrun.runs.loggers.tensorboard.TensorBoardLogger"

# Keys that may differ between two runs that are the same run.
NOT_IDENTITY = (
    "paths", "device", "tracking", "figures", "hydra", "sweep",
    "resume", "trust", "trusted_modules", "probes", "expect", "strict", "preflight", "run",
    "logger",
)  # fmt: skip


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
    """dlrun's own keys in every data block: how its rows are split, batched and loaded."""

    batch_size: int = _positive(64)
    eval_batch_size: int | None = _positive(None)  # null: the larger of batch_size and 256
    val_fraction: float = _fraction(0.1)  # of the training split, where the data has no validation part
    shuffle: bool = True
    # balanced: every epoch draws its rows with replacement, each class with the same probability.
    sampler: str | None = _choice(None, "balanced")
    drop_last: bool = False  # the last training batch, when it is smaller than the others
    loader: str = _choice("auto", "auto", "memory", "workers")
    num_workers: int | None = _not_negative(None)  # null: all cores but one, 1 to 4
    memory_share: float = field(default=0.5, metadata={"above": 0, "at_most": 1})  # of the device, for auto
    train_rows: int | None = _positive(None)  # train on this many rows only, spread over the training part
    limit_batches: int | None = _positive(None)  # use only the first so many batches of each split


@dataclass
class ModelKeys:
    """dlrun's own keys in every model block."""

    init: dict[str, Any] | None = None  # start values by parameter name, {w: 1.0}
    freeze: Any = None  # patterns on names of parameters or modules that are not trained, [features.*]


@dataclass
class OptimizerKeys:
    """dlrun's own keys in every optimizer block."""

    groups: list[Any] | None = None  # [{match: <pattern on parameter names>, lr: ...}, ...]


@dataclass
class SchedulerKeys:
    """dlrun's own keys in every scheduler block."""

    interval: str = _choice("epoch", "epoch", "step")
    warmup_steps: int = _not_negative(0)  # the learning rate climbs in a straight line over these steps


@dataclass
class CallbackKeys:
    """A callback of the user's own has no keys of dlrun's."""


@dataclass
class TaskConfig:
    """What is predicted, the loss that is minimized, and what is measured besides."""

    # null: one answer a row, as the data ask
    kind: str | None = _choice(None, "multilabel", "autoencoder")
    # null: mse, bce_with_logits or cross_entropy, as the task asks; or another name, a class of torch.nn,
    # module.function or module.Class
    loss: str | None = None
    # Of several outputs, by their names: a loss each, and its weight in the sum; {angle: huber}, {angle: 0.1}
    losses: Any = field(default=None, metadata={"mapping": True})
    weights: Any = field(default=None, metadata={"mapping": True})
    loss_args: Any = field(default=None, metadata={"mapping": True})  # arguments of the loss, {label_smoothing: 0.1}
    # balanced, or a number for each class; of several outputs {output: balanced or numbers}
    class_weights: Any = None
    reduction: str = _choice("mean", "mean", "sum")
    # null: those of the task; names of dlrun's, scikit-learn's or torchmetrics', module.function, module.Class
    # Of several outputs {output: [names]}.
    metrics: Any = None


@dataclass
class EarlyStoppingConfig:
    """When to stop before the last epoch."""

    patience: int | None = _positive(None)  # epochs without improvement; null: never
    min_delta: float = _not_negative(0.0)


@dataclass
class TrainerConfig:
    """The length of a training, and how a step is made."""

    epochs: int | None = _positive(20)  # null: until max_steps, as where that alone is typed
    max_steps: int | None = _positive(None)  # optimizer steps
    accumulate_steps: int = _positive(1)  # batches an optimizer step
    grad_clip_norm: float | None = _positive(None)
    log_every_steps: int = _positive(50)
    progress: str = _choice("bar", "bar", "line", "off")  # bar: where there is a terminal or a notebook
    profile: bool = False  # a trace of a few steps, and a table of where the time went
    ema_decay: float | None = field(default=None, metadata={"above": 0, "below": 1})  # average the weights, by step
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)

    def limit_epochs(self, steps_per_epoch: int) -> int:
        """Largest number of epochs: those asked for, or as many as max_steps takes."""
        if self.epochs is not None:
            return self.epochs
        return math.ceil((self.max_steps or 1) / steps_per_epoch)


@dataclass
class CheckpointConfig:
    """What is saved and when, and which epoch is the best."""

    format: str = _choice("state_dict", "state_dict", "full")
    monitor: str | None = None  # null: val/loss, or train/loss where there is no validation part
    mode: str | None = _choice(None, "min", "max")  # null: as the metric asks
    every_epochs: int = _positive(1)
    every_steps: int | None = _positive(None)
    every_seconds: float | None = _positive(None)  # by the clock, in the place of every_epochs
    keep: int = _positive(2)  # newest step_*.pt files; the best one stays besides


@dataclass
class DeviceConfig:
    """Device and precision of a run."""

    name: str = _choice("auto", "auto", "cpu", "cuda", "mps")
    index: int | None = _not_negative(None)
    precision: str = _choice("fp32", "fp32", "bf16", "fp16", "fp64")
    tf32: bool | None = None  # fp32 sums on CUDA with 10 bits of mantissa; null: as torch, for convolutions only
    compile: bool = False
    cuda_graph: str = _choice("auto", "auto", "off")  # a step started as one on CUDA, where its shapes allow it
    channels_last: bool | None = None  # null: for nets with 2-d convolutions
    deterministic: bool = False
    strategy: str = _choice("ddp", "ddp", "fsdp2")  # what each of several processes holds: the whole net, or a share
    timeout_seconds: float = _positive(600.0)  # so long may one of several processes keep the others waiting
    num_threads: Any = field(default=None, metadata={"number_or": "auto"})  # CPU threads; null: as torch finds best


@dataclass
class TrackingConfig:
    """What TensorBoard shows besides scalars, and diagnostics."""

    diagnose: bool = True  # report learning trouble at the epoch where it shows
    graph: bool | None = None  # null: for the runs that figures=null draws
    samples: bool = True
    activations: bool = False  # the activation functions of the model, which are the same in every run
    weight_histograms: bool = False

    # scikit-learn's simple models on the rows of a table; null: for a run alone, but for figures=false
    simple_models: bool | None = None

    # A picture of the fit after so many epochs, and all of them as figures/*.gif.
    evolution_every_epochs: int | None = _positive(None)


@dataclass
class RayConfig:
    """The jobs of a sweep on Ray."""

    # A cluster that runs, auto or host:port; null: one is started on this machine, and ends with the sweep.
    address: str | None = None
    cpus: int = _positive(1)  # a job
    gpus: float | None = _not_negative(None)  # a job, also 0.5; null: one where the cluster has any


@dataclass
class SlurmConfig:
    """The jobs of a sweep as a job array of Slurm."""

    cluster: str = _choice("auto", "auto", "local")  # local: processes on this machine, as a rehearsal
    partition: str | None = None
    time: int = _positive(60)  # minutes, after which a job is saved and queued again
    signal_seconds: int = _positive(90)  # before its time is over a job is told to save
    gpus: int = _not_negative(0)  # a job
    cpus: int = _positive(1)  # a job
    memory_gb: float | None = _positive(None)  # a job
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: list[str] = field(default_factory=list)  # lines of shell before a job
    options: Any = field(default=None, metadata={"mapping": True})  # further options of sbatch, {mail-type: FAIL}


@dataclass
class SweepConfig:
    """Several runs from one request."""

    points: list[str] = field(default_factory=list)  # overrides of one run a line; a line may itself be a sweep
    dir: str | None = None  # the sweep's folder: a new one, or one to resume; null: always a new one

    # Runs at a time, each in a process of its own from 2 on; auto: one a GPU, or a core where they train for long.
    jobs: Any = "auto"
    # Points that differ in seed, rates, optimizer ... train as one net; auto: where that is faster.
    stack: str = _choice("auto", "auto", "on", "off")
    # Where the jobs run: on this machine, on a Ray cluster, or as jobs of Slurm.
    engine: str = _choice("local", "local", "ray", "slurm")
    ray: RayConfig = field(default_factory=RayConfig)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    fail_fast: bool = False  # the first failure ends the sweep
    dry_run: bool = False  # print what would be run, how long it would take, and stop
    max_jobs: int = _positive(1000)  # more points are taken for a mistake

    # Instead of all combinations, trials that Optuna proposes one after the other, by what the earlier ones gave.
    search: str | None = _choice(None, "tpe", "random", "grid", "cmaes", "qmc")
    trials: int | None = _positive(None)  # null: 20, and of a grid all points
    seeds: int = _positive(1)  # runs a trial, from `seed` on; their mean counts
    objectives: list[str] | None = None  # [min val/loss, min parameters]; null: the monitored metric
    pruner: str = _choice("none", "none", "median", "hyperband", "halving")  # ends bad trials between two epochs
    round: int | None = _positive(None)  # trials proposed at once; null: as many as run at a time


@dataclass
class RunConfig:
    """What a run is called: for people who look for it, without an effect on its training."""

    name: str | None = None  # part of the name of its folder, in place of model and data
    tags: list[str] = field(default_factory=list)
    notes: str | None = None


@dataclass
class PathsConfig:
    """Folders of data and of runs."""

    data: str = f"${{oc.env:DLRUN_DATA_DIR,{DATA_FOLDER}}}"
    outputs: str = "outputs"


# Keys that were added to data sets later, by target, with their defaults: older runs keep their hash.
_LATER_DATA_KEYS: dict[str, dict[str, Any]] = {
    "dlrun.data.arrays.arrays": {"layout": None, "infer_classes": True},
    "dlrun.data.folders.image_folder": {
        "labels": None,
        "file_column": None,
        "label_column": None,
        "background": "white",
        "pixel_range": None,
        "normalization": "auto",
    },
    "dlrun.data.hub_sets.huggingface": {
        "modality": None,
        "tokens": "words",
        "lower_case": None,
        "vocabulary_size": 20000,
        "min_count": 2,
        "max_length": 256,
        "drop": None,
        "categorical": None,
        "kinds": None,
        "missing": "impute",
        "normalize": True,
    },
    "dlrun.data.series.series": {
        "time_zone": None,
        "calendar": None,
        "folds": None,
        "fold": 0,
        "val_path": None,
        "test_path": None,
    },
}

KEYS: dict[str, type] = {"data": DataKeys, "model": ModelKeys, "optimizer": OptimizerKeys, "scheduler": SchedulerKeys}


def _defaults(keys: type) -> Any:
    return field(default_factory=lambda: dataclasses.asdict(keys()))


@dataclass
class Config:
    """The whole experiment."""

    seed: int = field(default=0, metadata={"at_least": 0, "at_most": 2**63 - 1})
    resume: str | None = None  # a run folder: the same as `dlrun resume RUN`; auto: this very run, if it was cut off
    init_from: str | None = None  # a run, checkpoint or file of weights to start from
    # Other prefixes for the names in init_from; null leaves out what has the prefix.
    init_map: Any = field(default=None, metadata={"mapping": True})
    trust: bool = False  # open a pickled full model: it can run code
    trusted_modules: list[str] = field(default_factory=list)  # own modules that a loaded run may use
    probes: list[Any] = field(default_factory=list)  # inputs to ask the model before and after training
    expect: list[str] = field(default_factory=list)  # results that the run should reach: see runs/expectations.py
    strict: bool = False  # exit code 1 when an expectation is missed
    preflight: bool = True  # check shapes, memory and disk before the first step
    data: dict[str, Any] = _defaults(DataKeys)
    model: dict[str, Any] = _defaults(ModelKeys)
    optimizer: dict[str, Any] = _defaults(OptimizerKeys)
    scheduler: dict[str, Any] = _defaults(SchedulerKeys)
    task: TaskConfig = field(default_factory=TaskConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    logger: dict[str, Any] = field(default_factory=dict)  # loggers by name: a _target_ with its arguments each
    sweep: SweepConfig = field(default_factory=SweepConfig)
    figures: bool | None = None  # null: for a run alone, and in a sweep for the best one
    # Of the user's own, by name, each with its _target_; for dlrun's see config/callbacks.py.
    callbacks: dict[str, Any] = field(default_factory=dict)
    # Values of the user's own, which other keys refer to: ${user.width}.
    user: dict[str, Any] = field(default_factory=dict)
    run: RunConfig = field(default_factory=RunConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)


def register() -> None:
    """Make the schema known to Hydra under the name that config.yaml's defaults list uses."""
    # Looking at every key takes 10 ms, and another program may have a schema of this name.
    store = ConfigStore.instance()
    entry = store.repo.get("schema.yaml")
    if entry is None or OmegaConf.get_type(entry.node) is not Config:
        store.store(name="schema", node=Config)


def strip_permissions(plain: dict[str, Any]) -> dict[str, Any]:
    """The config as files hold it: without permissions, which nothing that is loaded can give itself."""
    return {key: value for key, value in plain.items() if key not in PERMISSIONS}


def strip_permission_words(words: Sequence[str]) -> list[str]:
    """The words of a command line as files hold them: without permissions."""
    return [word for word in words if get_key(word) not in PERMISSIONS]


def hash_config(plain: dict[str, Any]) -> str:
    """sha256 of the config that makes a run what it is: without paths, device and logging, as sorted JSON."""
    identity = {key: value for key, value in plain.items() if key not in NOT_IDENTITY}
    identity["data"] = _strip_later_data_keys(identity["data"])
    identity["model"] = _strip_later_keys(identity["model"])

    not_identity = ("log_every_steps", "profile", "progress")
    # Runs saved before these keys existed are the same runs.
    identity["task"] = {key: value for key, value in identity["task"].items() if key == "loss" or value is not None}
    identity["trainer"] = {key: value for key, value in identity["trainer"].items() if key not in not_identity}
    # Runs saved before this key existed keep their hash.
    checkpoint = identity.get("checkpoint", {})
    if "every_seconds" in checkpoint and checkpoint["every_seconds"] is None:
        identity["checkpoint"] = {key: value for key, value in checkpoint.items() if key != "every_seconds"}
    for key in ("user", "init_map"):
        if not identity.get(key):
            identity.pop(key, None)

    # Sorted, as the order of words on a command line is no part of a run.
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _strip_later_data_keys(data: dict[str, Any]) -> dict[str, Any]:
    """The data's block without its folder, and without keys at their default that came later."""
    later = {"sampler": None} | _LATER_DATA_KEYS.get(str(data.get("_target_")), {})
    kept_keys = [key for key, value in data.items() if key != "root" and not (key in later and later[key] == value)]
    return {key: data[key] for key in kept_keys}


def _strip_later_keys(model: dict[str, Any]) -> dict[str, Any]:
    """The model's block without keys at their default that came later, so that older runs keep their hash."""
    # These nets had the key from the beginning.
    if model.get("freeze") is None and model.get("_target_") != "dlrun.models.pretrained.Torchvision":
        return {key: value for key, value in model.items() if key != "freeze"}
    return model
