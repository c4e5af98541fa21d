"""All that dlrun uses of Hydra's private API, for Hydra 1.3: an upgrade has to look here and nowhere else."""

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

__all__ = [
    "Hydra",
    "apply_overrides",
    "copy_without_hydra",
    "create_parser",
    "enter_hydra",
    "format_override_dirname",
    "replace_methods",
    "replace_run_job",
    "set_hydra_config",
]


def create_parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """Parser of Hydra's command line, and the names of its flags."""
    parser = get_args_parser()
    names: list[str] = []
    for action in parser._actions:
        names.extend(action.option_strings)
    return parser, names


def apply_overrides(overrides: list[Override], config: DictConfig) -> None:
    """Set the values of parsed overrides in a config, with Hydra's checks."""
    ConfigLoaderImpl._apply_overrides_to_config(overrides, config)


def format_override_dirname(overrides: Sequence[Override], naming: Any) -> str:
    """Value of hydra.job.override_dirname; naming: hydra.job.config.override_dirname."""
    return get_overrides_dirname(list(overrides), naming["exclude_keys"], naming["item_sep"], naming["kv_sep"])


def set_hydra_config(settings: DictConfig | None) -> None:
    """Make `settings` what HydraConfig.get() returns, without the copy that HydraConfig.set_config makes of it."""
    instance: Any = HydraConfig.instance()
    instance.cfg = settings


def set_value(section: DictConfig, key: str, value: Any) -> None:
    """Set a value of a section of Hydra's own, in a hundredth of the time that it takes with OmegaConf's checks."""
    node: Any = section._get_node(key)
    node._set_value(value)


@contextlib.contextmanager
def enter_hydra(hydra_itself: Hydra | None) -> Iterator[None]:
    """Have `hydra_itself` be the one that Hydra's globals name during the block."""
    global_hydra: Any = GlobalHydra.instance()
    hydra_config: Any = HydraConfig.instance()
    outer_hydra = global_hydra.hydra
    outer_config = hydra_config.cfg
    global_hydra.hydra = hydra_itself
    try:
        yield
    finally:
        global_hydra.hydra = outer_hydra
        hydra_config.cfg = outer_config


def copy_without_hydra(config: DictConfig) -> DictConfig:
    """The config without Hydra's part; both share the values, as copying all of them takes longer than a training step.

    `config` itself stays whole: interpolations of Hydra's part are still evaluated in it.
    """
    without_hydra = DictConfig({})
    # Not copy.copy, which copies the values as well.
    content: dict[str, Any] = dict(config._content)  # type: ignore[arg-type]
    del content["hydra"]
    vars(without_hydra).update(vars(config), _content=content)
    # Interpolations are evaluated in the parent.
    without_hydra._re_parent()
    return without_hydra


@contextlib.contextmanager
def replace_methods(**methods: Callable[..., Any]) -> Iterator[None]:
    """Replace methods of the Hydra class by name for the duration of the block."""
    before = {name: getattr(Hydra, name) for name in methods}
    for name, method in methods.items():
        setattr(Hydra, name, method)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Hydra, name, method)


@contextlib.contextmanager
def replace_run_job(run_job: Callable[..., Any]) -> Iterator[None]:
    """Have Hydra call `run_job` in place of its own for the duration of the block."""
    module: Any = hydra._internal.hydra
    before = module.run_job
    module.run_job = run_job
    try:
        yield
    finally:
        module.run_job = before
