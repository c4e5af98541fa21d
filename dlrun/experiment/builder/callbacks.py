"""Callbacks of the user's own, built from section `callbacks` of the config."""

import inspect
from collections.abc import Sequence

from dlrun.config.callbacks import SECTION
from dlrun.config.schema import CallbackKeys
from dlrun.config.settings import Component, Settings
from dlrun.core.errors import RequestError, join_names
from dlrun.core.suggest import did_you_mean
from dlrun.engine.callback import HOOKS, Callback
from dlrun.experiment.builder import build


def build_callbacks(settings: Settings, trusted_modules: Sequence[str] | None) -> dict[str, Callback]:
    """Build the callbacks by name, in the order of the config; RequestError for one that could not be called."""
    callbacks = {}
    for name, values in settings.callbacks.items():
        where = f"{SECTION}.{name}"
        target = str(values["_target_"])
        arguments = {key: value for key, value in values.items() if key != "_target_"}
        component = Component(where, target, target, arguments, CallbackKeys())

        callback = build.instantiate(component, trusted_modules)
        if not isinstance(callback, Callback):
            raise RequestError(f"{where}._target_={target} must be a dlrun.Callback, not {type(callback).__name__}")
        _check_hooks(callback, where)
        callbacks[name] = callback
    return callbacks


def _check_hooks(callback: Callback, where: str) -> None:
    """RequestError for a hook that does not exist, or that does not take what it is called with."""
    kind = type(callback)
    for name in dir(kind):
        if name.startswith("on_") and name not in HOOKS and callable(getattr(kind, name)):
            hint = did_you_mean(name, HOOKS)
            raise RequestError(
                f"{where}: {kind.__name__}.{name} is no hook; {hint}there are {join_names(list(HOOKS))}; give a method "
                "of yours a name without on_"
            )

    for name in HOOKS:
        expected = list(inspect.signature(getattr(Callback, name)).parameters)[1:]
        try:
            inspect.signature(getattr(callback, name)).bind(*expected)
        except TypeError as error:
            raise RequestError(
                f"{where}: {kind.__name__}.{name} is called with {' and '.join(expected)} ({error}); "
                f"type def {name}(self, {', '.join(expected)})"
            ) from error
