"""The composed config as plain, typed objects."""

import dataclasses

import pytest

from dlrun.config import compose
from dlrun.config.schema import Config
from dlrun.config.settings import Settings, read_settings
from dlrun.core.errors import RequestError


def test_every_key_of_the_schema_has_its_place() -> None:
    names = {field.name for field in dataclasses.fields(Settings)}
    assert names == {field.name for field in dataclasses.fields(Config)} | {"plain"}


def test_a_key_without_a_value_is_asked_for() -> None:
    with pytest.raises(RequestError, match=r"^data\.path has no value yet; type data\.path=\.\.\.$"):
        read_settings(compose.resolve(compose.compose_config(["data=csv"])), {})


def test_a_block_is_split_into_the_targets_arguments_and_our_keys() -> None:
    words = ["data=blobs", "data.batch_size=5", "data.rows_per_class=7", "scheduler=none"]
    settings = read_settings(compose.resolve(compose.compose_config(words)), {"data": "blobs"})
    assert (settings.data.group, settings.data.choice) == ("data", "blobs")
    assert settings.data.target == "dlrun.data.synthetic.blobs"
    assert settings.data.arguments == {"rows_per_class": 7, "spread": 1.0, "task": "multiclass", "seed": 0}
    assert (settings.data.keys.batch_size, settings.data.keys.val_fraction) == (5, 0.0)
    assert (settings.scheduler.target, settings.scheduler.arguments) == (None, {})
    assert type(settings.model.arguments["hidden_sizes"]) is list
    assert type(settings.plain["model"]["hidden_sizes"]) is list


def test_hyperparameters_are_choices_and_values_without_targets_and_none() -> None:
    words = ["data=blobs", "data.batch_size=5", "optimizer=sgd", "optimizer.lr=0.5", "seed=3", "device.precision=bf16"]
    choices = {"data": "blobs", "model": "mlp", "optimizer": "sgd", "scheduler": "none"}
    hyperparameters = read_settings(compose.resolve(compose.compose_config(words)), choices).hyperparameters
    assert hyperparameters.items() >= choices.items()
    assert hyperparameters["data.batch_size"] == 5
    assert hyperparameters["optimizer.lr"] == 0.5
    assert hyperparameters["trainer.early_stopping.min_delta"] == 0.0
    assert hyperparameters["seed"] == 3
    assert "data.eval_batch_size" not in hyperparameters
    assert not any(key.endswith("_target_") or key.startswith("device") for key in hyperparameters)


def test_configs_that_differ_in_their_seed_keep_it() -> None:
    for seed in (3, 4, 2**40):
        assert read_settings(compose.resolve(compose.compose_config([f"seed={seed}"])), {}).seed == seed
    with pytest.raises(RequestError, match=r"seed=-1 must be"):
        read_settings(compose.resolve(compose.compose_config(["seed=-1"])), {})
