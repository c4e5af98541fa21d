"""The composed config as plain, typed objects; nothing after this knows OmegaConf."""

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from dlrun.config.schema import (
    KEYS,
    CheckpointConfig,
    Config,
    DataKeys,
    DeviceConfig,
    ModelKeys,
    OptimizerKeys,
    PathsConfig,
    RunConfig,
    SchedulerKeys,
    SweepConfig,
    TaskConfig,
    TrackingConfig,
    TrainerConfig,
)
from dlrun.config.validation import validate
from dlrun.core.errors import ErrorList, RequestError
from dlrun.core.yaml import flatten

KeysT = TypeVar("KeysT")

# Blocks of the config whose values describe an experiment.
_HYPERPARAMETER_BLOCKS = ("seed", "data", "model", "optimizer", "scheduler", "task", "trainer")


@dataclass(frozen=True)
class Component(Generic[KeysT]):
    """What a group chose: a target to build, its arguments, and dlrun's own keys of that group."""

    group: str

    # The option's name: mnist, resnet, adam, ...
    choice: str

    # None: nothing to build (scheduler=none).
    target: str | None

    arguments: dict[str, Any]
    keys: KeysT

    def describe(self) -> str:
        """The choice with its arguments: "sgd: lr 0.1, momentum 0.9"."""
        arguments = ", ".join(f"{key} {value}" for key, value in self.arguments.items())
        return f"{self.choice}: {arguments}"


@dataclass(frozen=True)
class Settings:
    """The composed config, checked."""

    data: Component[DataKeys]
    model: Component[ModelKeys]
    optimizer: Component[OptimizerKeys]
    scheduler: Component[SchedulerKeys]

    task: TaskConfig
    trainer: TrainerConfig
    checkpoint: CheckpointConfig
    device: DeviceConfig
    tracking: TrackingConfig
    # Target and arguments of each logger, by its name.
    logger: dict[str, Any]
    sweep: SweepConfig
    run: RunConfig
    paths: PathsConfig

    # The keys at the top of the config, as schema.Config describes them.
    seed: int
    resume: str | None
    init_from: str | None
    init_map: dict[str, Any] | None
    trust: bool
    trusted_modules: list[str]
    probes: list[Any]
    callbacks: dict[str, Any]
    expect: list[str]
    strict: bool
    preflight: bool
    # None: as `decide_pictures` says.
    figures: bool | None
    user: dict[str, Any]

    # The whole config as plain Python, for the record of the run.
    plain: dict[str, Any]

    def decide_pictures(self, is_alone: bool) -> "Settings":
        """The same settings, with figures, graph and simple models decided where the config leaves them open.

        is_alone: False for a job of a sweep, which is to cost no more than its training.
        """
        figures = is_alone if self.figures is None else self.figures
        graph = is_alone if self.tracking.graph is None else self.tracking.graph
        simple_models = self.tracking.simple_models
        # They are for the report, of which a run without figures has none.
        simple_models = is_alone and figures if simple_models is None else simple_models
        tracking = dataclasses.replace(self.tracking, graph=graph, simple_models=simple_models)
        return dataclasses.replace(self, figures=figures, tracking=tracking)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Values by dotted key ("optimizer.lr", "data.batch_size", ...) and choices by group, for reports and advice.

        Without targets, and without keys that are None.
        """
        values: dict[str, Any] = {group: getattr(self, group).choice for group in KEYS}
        for key, value in flatten({block: self.plain[block] for block in _HYPERPARAMETER_BLOCKS}).items():
            if not key.endswith("_target_") and value is not None:
                values[key] = value
        return values


def read_settings(plain: dict[str, Any], choices: dict[str, str], problems: ErrorList | None = None) -> Settings:
    """Check types and ranges of a composed config and return plain objects.

    choices: option by group. A wrong value is added to `problems`, and the default taken in its place; without
    `problems`, all of them are raised as one RequestError.
    """
    errors = ErrorList() if problems is None else problems
    # A copy, so that nothing that is done with the settings changes the request.
    plain = copy.deepcopy(plain)
    for key in sorted(_find_missing(plain)):
        errors.add(RequestError(f"{key} has no value yet; type {key}=..."))

    components: dict[str, Any] = {
        group: _read_component(group, choices.get(group, "?"), plain[group], keys, errors)
        for group, keys in KEYS.items()
    }

    other_values = {key: value for key, value in plain.items() if key not in KEYS}
    seed: Any = plain.get("seed")
    # The runs of a sweep differ in the seed, and values that were checked before are checked in a fifth of the time.
    is_ordinary_seed = type(seed) is int and 0 <= seed < 2**31
    if is_ordinary_seed:
        other_values["seed"] = 0
    config: Config = validate(Config, _drop_missing(other_values), "", errors)
    if is_ordinary_seed:
        config.seed = seed
    sections = {name: value for name, value in vars(config).items() if name not in KEYS}
    trainer = config.trainer
    if trainer.epochs is None and trainer.max_steps is None:
        message = "trainer.epochs=null never ends; type trainer.max_steps=<steps> too, or trainer.epochs=20"
        errors.add(RequestError(message))
        # Checks that follow in the same request need a length.
        trainer.epochs = 1

    if problems is None:
        errors.raise_if_any()
    return Settings(**components, **sections, plain=plain)


def _read_component(
    group: str, choice: str, values: dict[str, Any], keys: type[KeysT], errors: ErrorList
) -> Component[KeysT]:
    """Split an open block of the config into the target with its arguments, and dlrun's own keys."""
    names = {field.name for field in dataclasses.fields(cast(Any, keys))}
    own_values: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key in names:
            own_values[key] = value
        elif key != "_target_":
            arguments[key] = value

    own_keys = validate(keys, _drop_missing(own_values), group, errors)
    return Component(group, choice, values.get("_target_"), arguments, own_keys)


def _find_missing(values: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of mandatory values that are still missing (`???`)."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _find_missing(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(values, list):
        for number, value in enumerate(values):
            yield from _find_missing(value, f"{prefix}[{number}]")
    elif values == "???":
        yield prefix


def _drop_missing(values: Any) -> Any:
    """Copy nested dictionaries without mandatory values that are still missing (`???`)."""
    if not isinstance(values, dict):
        return values
    return {key: _drop_missing(value) for key, value in values.items() if value != "???"}
