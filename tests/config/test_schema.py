"""The typed schema: names, types, ranges, and what makes two runs the same run."""

import copy
import functools
import math
import re
from typing import Any

import pytest

from dlrun.config import compose
from dlrun.config import schema as config
from dlrun.config.schema import hash_config
from dlrun.config.settings import read_settings
from dlrun.config.validation import validate
from dlrun.core.errors import RequestError

NAN = math.nan
SECTIONS: dict[str, type] = {
    "": config.Config,
    "data": config.DataKeys,
    "model": config.ModelKeys,
    "optimizer": config.OptimizerKeys,
    "scheduler": config.SchedulerKeys,
    "task": config.TaskConfig,
    "trainer": config.TrainerConfig,
    "trainer.early_stopping": config.EarlyStoppingConfig,
    "checkpoint": config.CheckpointConfig,
    "device": config.DeviceConfig,
    "tracking": config.TrackingConfig,
    "run": config.RunConfig,
    "paths": config.PathsConfig,
}
KEYS = {
    "": "seed resume init_from init_map trust trusted_modules figures preflight user",
    "data": "batch_size val_fraction shuffle drop_last loader num_workers",
    "model": "init freeze",
    "task": "loss reduction",
    "optimizer": "groups",
    "trainer": "epochs max_steps log_every_steps accumulate_steps grad_clip_norm",
    "trainer.early_stopping": "patience",
    "checkpoint": "format monitor mode every_epochs every_steps every_seconds keep",
    "device": "name index precision compile channels_last deterministic num_threads",
    "tracking": "graph",
    "run": "name tags notes",
    "paths": "data outputs",
}
PUBLIC = [f"{group}.{name}".lstrip(".") for group, names in KEYS.items() for name in names.split()]
TARGETS_OWN = {
    "digits": ["data.image_size", "optimizer.lr"],
    "csv": ["data.path", "data.target", "data.task", "data.header", "data.delimiter"],
}
ABSENT = object()


def parts(key: str) -> tuple[type, str, str]:
    """The schema, section and name of a dotted key."""
    section, _, name = key.rpartition(".")
    return SECTIONS[section], section, name


def read_value(key: str, value: Any) -> Any:
    """What `value` becomes under `key`."""
    schema, section, name = parts(key)
    return getattr(validate(schema, {name: value}, section), name)


def get_value(plain: dict[str, Any], key: str) -> Any:
    value: Any = plain
    for name in key.split("."):
        value = value.get(name, ABSENT) if isinstance(value, dict) else ABSENT
    return value


@functools.cache
def compose_plain(*words: str) -> dict[str, Any]:
    return read_settings(compose.resolve(compose.compose_config([*words])), {}).plain


@pytest.mark.parametrize("key", PUBLIC)
def test_public_keys_keep_their_names(key: str) -> None:
    schema, _, name = parts(key)
    assert name in {f.name for f in schema.__dataclass_fields__.values()}  # type: ignore[attr-defined]
    assert get_value(compose_plain(), key) is not ABSENT


@pytest.mark.parametrize("data", TARGETS_OWN)
def test_public_keys_of_shipped_targets_keep_their_names(data: str) -> None:
    plain = compose_plain(f"data={data}", *(["data.path=x.csv"] if data == "csv" else []))
    assert [key for key in TARGETS_OWN[data] if get_value(plain, key) is ABSENT] == []


def test_defaults_are_those_of_the_design() -> None:
    plain = compose_plain()
    wanted = {
        "seed": 0,
        "data.batch_size": 64,
        "data.val_fraction": 0.1,
        "data.shuffle": True,
        "data.drop_last": False,
        "data.loader": "auto",
        "task.reduction": "mean",
        "trainer.epochs": 20,
        "optimizer.lr": 1e-3,
        "optimizer._target_": "torch.optim.Adam",
        "model._target_": "dlrun.models.mlp.MLP",
        "data._target_": "dlrun.data.images.digits",
        "checkpoint.format": "state_dict",
        "checkpoint.mode": None,
        "device.name": "auto",
        "device.precision": "fp32",
        "paths.outputs": "outputs",
    }
    assert {key: get_value(plain, key) for key in wanted} == wanted


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, 0) for key in ("data.batch_size", "data.eval_batch_size", "data.limit_batches")),
        *((f"trainer.{key}", 0) for key in ("epochs", "max_steps", "accumulate_steps", "log_every_steps")),
        *(("trainer.grad_clip_norm", value) for value in (0.0, -1.0, NAN)),
        ("trainer.early_stopping.patience", 0),
        ("trainer.early_stopping.min_delta", -0.1),
        ("trainer.early_stopping.min_delta", NAN),
        *((f"checkpoint.{key}", 0) for key in ("every_epochs", "every_steps", "keep")),
        *(("checkpoint.every_seconds", value) for value in (0.0, -1.0, NAN)),
        *(("data.val_fraction", value) for value in (-0.1, 1.0, NAN)),
        *(("data.memory_share", value) for value in (0.0, 1.1, NAN)),
        ("data.num_workers", -1),
        ("scheduler.warmup_steps", -1),
        ("device.num_threads", 0),
        ("device.index", -1),
        ("seed", -1),
        ("data.loader", "disk"),
        ("scheduler.interval", "batch"),
        ("task.reduction", "none"),
        ("checkpoint.format", "onnx"),
        ("checkpoint.mode", "least"),
        ("device.name", "gpu"),
        ("device.precision", "fp8"),
    ],
)
def test_a_value_out_of_range_names_its_key(key: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        read_value(key, value)
    message = str(caught.value)
    assert message.startswith(f"{key}={value} ")
    assert " must be " in message or " is not a choice; " in message
    assert f"; type {key}=" in message or "type one of " in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.val_fraction", 0.0),
        ("data.memory_share", 1.0),
        ("data.num_workers", 0),
        ("device.index", 0),
        ("seed", 0),
        ("trainer.early_stopping.min_delta", 0.0),
        ("scheduler.warmup_steps", 0),
        ("data.eval_batch_size", None),
        ("trainer.max_steps", None),
        ("device.channels_last", None),
    ],
)
def test_the_edge_of_a_range_is_allowed(key: str, value: Any) -> None:
    assert read_value(key, value) == value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.epochs", "abc"),
        ("trainer.epochs", 2.5),
        ("trainer.epochs", True),
        ("trainer.epochs", [1]),
        ("trainer.grad_clip_norm", "much"),
        ("trainer.early_stopping", 3),
        ("data.shuffle", "maybe"),
        ("data.shuffle", None),
        ("data.batch_size", {"a": 1}),
        ("data.val_fraction", "half"),
        ("model.init", 3),
        ("model.init", [3]),
        ("optimizer.groups", "weight"),
        ("optimizer.groups", {"match": "weight"}),
        ("device.num_threads", "all"),
        ("device.deterministic", "sometimes"),
        ("checkpoint.every_steps", "often"),
        ("checkpoint.monitor", ["val/loss"]),
        ("seed", "now"),
        ("trust", "yes, please"),
        ("trusted_modules", "mynet"),
        ("figures", "few"),
        ("tracking.graph", 2.5),
    ],
)
def test_a_value_of_another_type_names_its_key(key: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        read_value(key, value)
    message = str(caught.value)
    assert re.fullmatch(
        rf"{re.escape(key)}=.* (must be .*|names none of its keys); type {re.escape(key)}.*=.*", message
    )


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("trainer.epoch", "did you mean trainer.epochs?"),
        ("trainer.early_stopping.patienc", "did you mean trainer.early_stopping.patience?"),
        ("device.presicion", "did you mean device.precision?"),
        ("sed", "did you mean seed or user?"),
        ("checkpoint.xyzzy", "dlrun --cfg job shows all keys"),
    ],
)
def test_an_unknown_key_is_answered_by_the_nearest(key: str, hint: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_value(key, 1)
    assert str(caught.value) == f"there is no key {key}; {hint}"


SAME = [
    "paths.data=elsewhere",
    "paths.outputs=elsewhere",
    "device.name=cpu",
    "device.precision=bf16",
    "device.num_threads=7",
    "tracking.graph=false",
    "tracking.weight_histograms=true",
    "figures=false",
    "trainer.log_every_steps=3",
    "trust=true",
    "preflight=false",
    "trusted_modules=[mynet]",
    "hydra.verbose=true",
    "data.root=elsewhere",
    "run.name=baseline",
    "run.tags=[a, b]",
    "run.notes=as in the paper",
]
OTHER = [
    "optimizer.lr=0.1001",
    "seed=1",
    "data.batch_size=63",
    "data.shuffle=false",
    "model.rate=3",
    "trainer.epochs=21",
    "trainer.grad_clip_norm=1.0",
    "task.reduction=sum",
    "checkpoint.monitor=train/loss",
    "scheduler.warmup_steps=1",
    "optimizer.groups=[{match: a}]",
    "user.width=3",
]


def plain() -> dict[str, Any]:
    """A small config in plain Python."""
    return copy.deepcopy(compose_plain("data=blobs", "optimizer=sgd")) | {"hydra": {"verbose": False}}


def change(assignment: str) -> dict[str, Any]:
    key, _, value = assignment.partition("=")
    config = plain()
    *above, last = key.split(".")
    inner = config
    for name in above:
        inner = inner[name]
    inner[last] = value
    return config


@pytest.mark.parametrize("assignment", SAME)
def test_where_and_how_it_runs_is_not_what_a_run_is(assignment: str) -> None:
    assert hash_config(change(assignment)) == hash_config(plain())


@pytest.mark.parametrize("assignment", OTHER)
def test_what_changes_the_result_changes_the_hash(assignment: str) -> None:
    assert hash_config(change(assignment)) != hash_config(plain())


@pytest.mark.parametrize(
    ("words", "beginning"),
    [
        (("data=image_folder", "data.path=photos"), "2b3f10d76f139d1f"),
        (("data=arrays", "data.path=scans"), "3f65db1ecc308d96"),
    ],
)
def test_keys_of_data_that_came_later_leave_the_hash_as_it_was(words: tuple[str, ...], beginning: str) -> None:
    config = compose_plain(*words)
    assert hash_config(config).startswith(beginning)
    for key, value in (("sampler", "balanced"), ("background", "black"), ("layout", "channels_last")):
        other = copy.deepcopy(config)
        other["data"][key] = value
        assert hash_config(other) != hash_config(config)


def test_the_hash_does_not_depend_on_the_order_of_keys() -> None:
    def reverse(values: dict[str, Any]) -> dict[str, Any]:
        return {k: reverse(v) if isinstance(v, dict) else v for k, v in reversed(values.items())}

    assert list(reverse(plain())) != list(plain())
    assert hash_config(reverse(plain())) == hash_config(plain())
    assert len(hash_config(plain())) == 64
