"""The loggers that a config names, built and checked before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dlrun.config.settings import Component, Settings
from dlrun.core.errors import ErrorList, RequestError
from dlrun.experiment.builder import build, targets
from dlrun.runs.loggers.base import Logger


@dataclass
class _NoKeys:
    """dlrun has no keys of its own in the block of a logger."""


def build_loggers(settings: Settings, trusted_modules: Sequence[str] | None, problems: ErrorList) -> dict[str, Logger]:
    """The loggers by name, in the order of the config; what is wrong with one is added to `problems`."""
    loggers: dict[str, Logger] = {}
    for name, block in settings.logger.items():
        # logger.tensorboard=null leaves it out, as ~logger.tensorboard does.
        if block is None:
            continue
        logger = problems.collect(_build_logger, name, block, trusted_modules)
        if logger is not None:
            loggers[name] = logger
    return loggers


def _build_logger(name: str, block: Any, trusted_modules: Sequence[str] | None) -> Logger:
    """Build one logger; RequestError for what names none, or whose arguments do not fit."""
    group = f"logger.{name}"
    target = block.get("_target_") if isinstance(block, dict) else None
    if not isinstance(target, str):
        raise RequestError(
            f"{group} names no logger; type logger=[tensorboard,<one of `dlrun ls logger`>], or "
            f"+{group}._target_=mine.MyLogger for one of your own"
        )

    arguments = {key: value for key, value in block.items() if key != "_target_"}
    component = Component(group, target.rpartition(".")[2], target, arguments, _NoKeys())
    logger_class = targets.resolve(target, f"{group}._target_", trusted_modules)
    if not (isinstance(logger_class, type) and issubclass(logger_class, Logger)):
        raise RequestError(f"{group}._target_={target} is no logger; derive a class from dlrun.Logger and name that")

    logger: Logger = build.instantiate(component, trusted_modules)
    if trusted_modules is not None:
        logger.refuse_saved(trusted_modules)
    return logger
