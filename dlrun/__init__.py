"""dlrun trains what a choice of data, model, optimizer and device makes, from a terminal or from Python.

    import dlrun

    run = dlrun.train("model=resnet", "data=digits")  # the words of the command line
    run.metrics["test/accuracy"]
    run.predict(run.splits.test.inputs[0][:5]).labels
    run = dlrun.load("outputs/2026-11-20/14-03-07_resnet_digits")

What is wrong with a request raises RequestError, a run that fails RunError: the sentences of the command line.
"""

# Nothing is imported here: `python -m dlrun` has the working directory in front until __main__ takes it away.
TYPE_CHECKING = False
if TYPE_CHECKING:  # torch is imported when something is trained or loaded, not before
    from typing import Any

    from dlrun import runs
    from dlrun.core.errors import RequestError, RunError
    from dlrun.engine.callback import Callback
    from dlrun.engine.logged_values import log
    from dlrun.engine.stack.layers import StackedLayer, register_stacked_layer
    from dlrun.inference.api import Run, load, train
    from dlrun.inference.predictions import Predictions
    from dlrun.runs.loggers.base import LoggedRun, Logger

__all__ = [
    "Callback",
    "LoggedRun",
    "Logger",
    "Predictions",
    "RequestError",
    "Run",
    "RunError",
    "StackedLayer",
    "load",
    "log",
    "register_stacked_layer",
    "runs",
    "train",
]
_HOMES = {
    "Callback": "dlrun.engine.callback",
    "LoggedRun": "dlrun.runs.loggers.base",
    "Logger": "dlrun.runs.loggers.base",
    "log": "dlrun.engine.logged_values",
    "Predictions": "dlrun.inference.predictions",
    "RequestError": "dlrun.core.errors",
    "RunError": "dlrun.core.errors",
    "StackedLayer": "dlrun.engine.stack.layers",
    "register_stacked_layer": "dlrun.engine.stack.layers",
}


def __getattr__(name: str) -> "Any":
    if name not in __all__:
        raise AttributeError(f"module dlrun has no {name}; it has {', '.join(__all__)}")

    import sys

    from dlrun.core.search_path import put_own_last

    before = put_own_last()
    try:
        from importlib import import_module

        # The package `runs` is called as the function of that name.
        if name == "runs":
            return import_module("dlrun.runs")
        return getattr(import_module(_HOMES.get(name, "dlrun.inference.api")), name)
    finally:
        sys.path[:] = before


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
