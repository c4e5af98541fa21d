"""The optimizer and its learning rate over time: how they are made, and how a step is."""

import inspect
from typing import Any

from torch import optim

from dlrun.eject.plain.refusal import cannot
from dlrun.eject.plain.source import Constant, Piece, call, literal, named
from dlrun.eject.plain.training_run import TrainingRun
from dlrun.engine.optim.exhaustive import Exhaustive
from dlrun.engine.optim.manual_sgd import ManualSGD
from dlrun.engine.optim.numeric_gradient import NumericGradient

_GROUPED = """\
left, groups = dict(net.named_parameters()), []
for pattern, settings in GROUPS.items():  # the first pattern that a name matches counts
    groups.append({"params": [left.pop(name) for name in list(left) if fnmatchcase(name, pattern)], **settings})
"""
_REST = 'groups.append({"params": list(left.values())})\n'


def kind(run: TrainingRun) -> str:
    """What a step is made by: `torch` (a gradient, then its optimizer), `closure`, `manual`, `numeric`, `grid`."""
    optimizer = run.optimizer
    if isinstance(optimizer, Exhaustive):
        return "grid"
    if isinstance(optimizer, NumericGradient):
        return "numeric"
    if isinstance(optimizer, ManualSGD):
        return "manual" if _is_plain(run) else "torch"
    if getattr(optim, type(optimizer).__name__, None) is not type(optimizer):
        raise cannot(f"optimizer={run.settings.optimizer.choice} ({run.settings.optimizer.target})")
    return "closure" if isinstance(optimizer, optim.LBFGS) else "torch"


def _is_plain(run: TrainingRun) -> bool:
    """Whether all parameters have one learning rate that stays as it is."""
    return not run.settings.optimizer.keys.groups and run.settings.scheduler.target is None and not warmup(run)


def warmup(run: TrainingRun) -> int:
    """Steps over which the learning rate climbs."""
    return run.settings.scheduler.keys.warmup_steps


def optimizer(run: TrainingRun) -> Piece:
    """Source that makes `optimizer`."""
    made, groups = run.optimizer, run.settings.optimizer.keys.groups or []
    given = _given(run)
    constants = {"LR": Constant(run.settings.optimizer.arguments.get("lr")), "GROUPS": Constant(None)}
    name, code, first = type(made).__name__, "", "net.parameters()"
    if isinstance(made, ManualSGD):
        name, given = "SGD", {"foreach": False, "fused": False}
    if groups:
        constants["GROUPS"] = Constant({g["match"]: {k: v for k, v in g.items() if k != "match"} for g in groups})
        code, first = _GROUPED + (_REST if len(made.param_groups) > len(groups) else ""), "groups"
    lr = ["lr=LR"] if constants["LR"].value is not None else []
    arguments = [first, *lr, *(named(key, literal(value)) for key, value in given.items())]
    return Piece(code + call(f"optimizer = torch.optim.{name}", arguments) + "\n", constants)


def _given(run: TrainingRun) -> dict[str, Any]:
    """The settings but the learning rate, where they are not what torch takes by itself."""
    parameters = inspect.signature(type(run.optimizer)).parameters
    found = {}
    for name, value in run.settings.optimizer.arguments.items():
        plain = tuple(value) if isinstance(value, list) else value
        if name != "lr" and plain != parameters[name].default:
            found[name] = plain
    return found | ({"fused": True} if run.optimizer.defaults.get("fused") else {})


def scheduler(run: TrainingRun) -> Piece:
    """Source that makes `scheduler`; empty where there is none."""
    block, made = run.settings.scheduler, run.schedule.scheduler
    if made is None:
        return Piece("")
    name = type(made).__name__
    if getattr(optim.lr_scheduler, name, None) is not type(made) or _nested(block.arguments):
        raise cannot(f"scheduler={block.choice} ({block.target})")
    whole = {"max_lr": run.schedule.optimizer.param_groups[0].get("max_lr")}
    filled = {k: whole.get(k, getattr(made, k, None)) if v is None else v for k, v in block.arguments.items()}
    if "plateau" in str(block.target).lower():
        filled.setdefault("mode", run.mode)
    parameters = inspect.signature(type(made)).parameters
    own = {k: v for k, v in filled.items() if v != parameters[k].default or isinstance(v, bool)}
    arguments = ["optimizer", *(named(key, literal(value)) for key, value in own.items())]
    return Piece(call(f"scheduler = torch.optim.lr_scheduler.{name}", arguments) + "\n")


def _nested(arguments: dict[str, Any]) -> bool:
    return any(
        isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value))
        for value in arguments.values()
    )
