"""The optimizer and its learning rate over time, as the templates write them."""

import inspect
import math
from typing import Any

from torch import optim
from torch.optim import Optimizer

from dlrun.core.errors import RequestError
from dlrun.eject.refusal import cannot
from dlrun.eject.source import Code, write_arguments, write_call
from dlrun.eject.training_run import TrainingRun
from dlrun.engine.optim.exhaustive import Exhaustive
from dlrun.engine.optim.manual_sgd import ManualSGD
from dlrun.engine.optim.numeric_gradient import NumericGradient
from dlrun.experiment.builder import build


def describe_optimizer(run: TrainingRun) -> dict[str, Any]:
    """Kind, the call that makes it, and parameter groups; RequestError for an optimizer that cannot be written.

    kind: how a step is made: "torch" (a gradient, then its optimizer), "closure", "manual", "numeric" or "grid".
    """
    optimizer = build.build_optimizer(run.settings, run.model, run.trusted_modules)
    kind = _find_kind(run, optimizer)
    _refuse_steps(run, kind)

    details: dict[str, Any] = {"kind": kind, "lr": run.settings.optimizer.arguments.get("lr")}
    details["groups"] = {}
    for group in run.settings.optimizer.keys.groups or []:
        details["groups"][group["match"]] = {name: value for name, value in group.items() if name != "match"}
    details["has_rest"] = len(optimizer.param_groups) > len(details["groups"])

    name = type(optimizer).__name__
    own = _find_arguments(run, optimizer)
    if isinstance(optimizer, ManualSGD):
        # Its own step, p -= lr * p.grad, is that of torch without its faster kernels.
        name = "SGD"
        own = {"foreach": False, "fused": False}
    arguments = [Code("groups" if details["groups"] else "net.parameters()")]
    if details["lr"] is not None:
        arguments.append(Code("lr=LR"))
    details["call"] = write_call(f"optimizer = torch.optim.{name}", [*arguments, *write_arguments(own)])

    details["epsilon"] = optimizer.defaults.get("epsilon")
    details["grid"] = _describe_grid(run, optimizer) if kind == "grid" else None
    return details


def _find_kind(run: TrainingRun, optimizer: Optimizer) -> str:
    settings = run.settings
    if isinstance(optimizer, Exhaustive):
        return "grid"
    if isinstance(optimizer, NumericGradient):
        return "numeric"
    if isinstance(optimizer, ManualSGD):
        # A scaler, a schedule and groups act on an optimizer of torch.
        has_schedule = settings.scheduler.target is not None or settings.scheduler.keys.warmup_steps > 0
        return "torch" if settings.optimizer.keys.groups or has_schedule or run.has_scaler else "manual"

    if getattr(optim, type(optimizer).__name__, None) is not type(optimizer):
        raise cannot(f"optimizer={settings.optimizer.choice} ({settings.optimizer.target})")
    return "closure" if isinstance(optimizer, optim.LBFGS) else "torch"


def _refuse_steps(run: TrainingRun, kind: str) -> None:
    """RequestError for settings that a step of this kind is not written for."""
    choice = run.settings.optimizer.choice
    if kind == "numeric" and run.autocast:
        raise cannot(f"device.precision with optimizer={choice}")
    if kind in ("closure", "numeric") and run.trainer.accumulate_steps > 1:
        raise cannot(f"trainer.accumulate_steps with optimizer={choice}")
    if kind == "grid" and not run.is_full_batch:
        raise RequestError(
            "format=python writes optimizer=exhaustive for all rows in one batch in their order, without validation "
            "and test part; eject a run with data.shuffle=false and a data.batch_size as large as the data"
        )


def _find_arguments(run: TrainingRun, optimizer: Optimizer) -> dict[str, Any]:
    """The settings other than the learning rate, where torch would take another value by itself."""
    parameters = inspect.signature(type(optimizer)).parameters
    arguments: dict[str, Any] = {}
    for name, value in run.settings.optimizer.arguments.items():
        plain = tuple(value) if isinstance(value, list) else value
        if name != "lr" and plain != parameters[name].default:
            arguments[name] = plain

    # dlrun chooses the fused step where there is one.
    if optimizer.defaults.get("fused"):
        arguments["fused"] = True
    return arguments


def _describe_grid(run: TrainingRun, optimizer: Optimizer) -> dict[str, Any]:
    group = optimizer.param_groups[0]
    parameters = list(run.model.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    grid: dict[str, Any] = {"has_two": count > 1}
    grid["is_joint"] = any(parameter.numel() > 1 for parameter in parameters)
    grid["count"] = _count_grids(run, group)

    # As text, because the script counts in decimals.
    grid["step"] = str(group["step"])
    grid["refine"] = str(group["refine"])
    for suffix, (low, high) in zip(("", "_2"), group["ranges"], strict=False):
        grid[f"low{suffix}"] = str(low)
        grid[f"high{suffix}"] = str(high)
    return grid


def _count_grids(run: TrainingRun, group: dict[str, Any]) -> int:
    """How many grids there were: one a step, until the spacing is fine enough."""
    if group["refine"] <= 1:
        return 1

    # All rows are in one batch, so an epoch is a step.
    epochs = run.trainer.limit_epochs(1)
    steps = min(epochs, run.trainer.max_steps or epochs)
    spacing = group["step"]
    grids = 1
    while grids < steps and spacing > group["finest"] and not math.isclose(spacing, group["finest"]):
        spacing /= group["refine"]
        grids += 1
    return grids


def describe_scheduler(run: TrainingRun) -> dict[str, Any] | None:
    """The call that makes it; None without a scheduler. RequestError for one that cannot be written."""
    component = run.settings.scheduler
    schedule = run.build_schedule()
    scheduler = schedule.scheduler
    if scheduler is None:
        return None

    kind = type(scheduler)
    is_nested = any(_holds_settings(value) for value in component.arguments.values())
    if getattr(optim.lr_scheduler, kind.__name__, None) is not kind or is_nested:
        raise cannot(f"scheduler={component.choice} ({component.target})")

    # What the run filled in, such as the length of the training, stands in the scheduler.
    lengths = {"max_lr": schedule.optimizer.param_groups[0].get("max_lr")}
    values = dict(component.arguments)
    for name, value in values.items():
        if value is None:
            values[name] = lengths.get(name, getattr(scheduler, name, None))
    # dlrun sets the mode by the metric, torch would take min.
    if run.has_plateau:
        values.setdefault("mode", run.mode)

    parameters = inspect.signature(kind).parameters
    own = {k: v for k, v in values.items() if v != parameters[k].default or isinstance(v, bool)}
    arguments = [Code("optimizer"), *write_arguments(own)]
    return {"call": write_call(f"scheduler = torch.optim.lr_scheduler.{kind.__name__}", arguments)}


def _holds_settings(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value))
