"""From settings to an objective: the loss, whoever wrote it, and its class weights."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dlrun.config.settings import Settings
from dlrun.core import user_code
from dlrun.core.errors import DlrunError, RequestError, join_names
from dlrun.core.suggest import did_you_mean
from dlrun.data.datasets import Part
from dlrun.data.inspection import get_valid_targets
from dlrun.data.spec import PADDING, DataSpec
from dlrun.engine.device import Runtime, get_rng_state, is_out_of_memory, seed_everything, set_rng_state
from dlrun.engine.losses import ALIASES
from dlrun.engine.multitask import MultitaskObjective
from dlrun.engine.objective import Objective
from dlrun.experiment.builder import targets
from dlrun.experiment.builder.build import set_precision
from dlrun.experiment.builder.metrics import build_metrics

_TORCH = "torch.nn."

# What the constructor of a loss may take besides `task.loss_args`.
_GIVEN_ARGUMENTS = ("spec", "reduction")


def build_objective(
    settings: Settings,
    spec: DataSpec,
    process: Runtime,
    trusted_modules: Sequence[str] | None,
    class_weights: Sequence[float] | None = None,
) -> Objective:
    """Build loss and metrics. A loss with a dot in its name is the user's own, or a class of torch.nn.

    class_weights: as `compute_class_weights` returns them.
    """
    keys = settings.task
    if spec.task == "multitask":
        return _build_multitask(settings, spec)
    for name in ("losses", "weights"):
        if getattr(keys, name) is not None:
            raise RequestError(f"task.{name} is for data of several outputs, and these have one; type task.loss=...")

    own_loss, arguments = _build_own_loss(settings, spec, process, trusted_modules)
    metrics = build_metrics(settings, spec, trusted_modules)
    return Objective(spec, keys.loss, keys.reduction, own_loss, arguments, class_weights, metrics)


def _build_multitask(settings: Settings, spec: DataSpec) -> MultitaskObjective:
    """The objective of several outputs, each with a loss of dlrun's; RequestError for keys that are for one output."""
    keys = settings.task
    names = [output.name for output in spec.outputs]
    if keys.loss is not None:
        raise RequestError(f"task.loss is for one output; type task.losses={{{names[0]}: {keys.loss}}}")
    for name in ("loss_args", "metrics"):
        if getattr(keys, name) is not None:
            raise RequestError(f"task.{name} is for one output, and these data have {join_names(names)}; leave it out")

    # All keys are checked before a loss is built, so that a typo is named as one.
    losses = keys.losses or {}
    weights = keys.weights or {}
    for key, values in (("losses", losses), ("weights", weights)):
        for name, value in values.items():
            if name not in names:
                hint = did_you_mean(str(name), names, f"task.{key}.")
                raise RequestError(f"task.{key}.{name} is no output; {hint}there are {join_names(names)}")
            if key == "weights" and not _is_weight(value):
                raise RequestError(f"task.weights.{name}={value} must be a number of at least 0")
            if key == "losses" and not isinstance(value, str):
                raise RequestError(f"task.losses.{name}={value} must be the name of a loss")

    if weights and all(weights.get(name, 1.0) == 0 for name in names):
        raise RequestError("task.weights are all 0, so that there is nothing to learn; give one output a larger one")
    return MultitaskObjective(spec, reduction=keys.reduction, losses=losses, weights=weights)


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def compute_class_weights(settings: Settings, spec: DataSpec, train: Part | None) -> list[float] | None:
    """The weight of each class that `task.class_weights` asks for; None for none.

    `balanced`: rows / (classes · rows of the class) over the training rows, or tags, as scikit-learn's
    compute_class_weight. RequestError where a class has no row there.
    """
    setting = settings.task.class_weights
    if setting is None:
        return None
    if spec.task == "regression":
        raise RequestError("task.class_weights is for classes, and these targets are numbers; leave it out")
    if isinstance(setting, list) and spec.task != "multitask":
        return list(setting)
    if setting != "balanced" and spec.task != "multitask":
        hint = did_you_mean(str(setting), ["balanced"])
        raise RequestError(
            f"task.class_weights={setting} is no choice; {hint}type balanced, or a number for each class"
        )

    if spec.task == "multitask":
        raise RequestError("task.class_weights is for one output; weight the losses of several by task.weights")
    if spec.task == "multilabel":
        raise RequestError(
            "task.class_weights=balanced is for one class a row; type a number for each label, or "
            "task.loss_args='{pos_weight: <weight of a label that a row has>}'"
        )

    # Of a dataset that states no targets, every row would have to be read.
    known = get_valid_targets(train, spec)
    if known is None:
        raise RequestError(
            "task.class_weights=balanced counts the training rows, and this dataset has no `targets` of all of them; "
            "type a number for each class"
        )

    classes = max(spec.output_size, 2)
    counts = torch.bincount(known[known != PADDING].flatten().long(), minlength=classes)
    for number, count in enumerate(counts.tolist()):
        if count == 0:
            name = spec.class_names[number] if spec.class_names else number
            raise RequestError(
                f"task.class_weights=balanced: no training row is of class {name}; type a number for each class"
            )

    weights: list[float] = (counts.sum() / (classes * counts.double())).tolist()
    return weights


def _build_own_loss(
    settings: Settings, spec: DataSpec, process: Runtime, trusted_modules: Sequence[str] | None
) -> tuple[Callable[..., Tensor] | None, dict[str, Any]]:
    """The function or module that `task.loss` names, None for one of dlrun's own; and arguments for its calls."""
    name = settings.task.loss
    arguments = dict(settings.task.loss_args or {})
    if name is None or name.removeprefix(_TORCH) in ALIASES:
        return None, arguments

    torch_class = getattr(nn, name.removeprefix(_TORCH), None)
    # torch's own classes need no trust.
    if inspect.isclass(torch_class) and issubclass(torch_class, nn.modules.loss._Loss):
        return _build_torch_loss(torch_class, settings, spec, process), {}
    if "." not in name:
        return None, arguments

    resolved: Any = targets.resolve(name, "task.loss", trusted_modules)
    if isinstance(resolved, type) and issubclass(resolved, nn.Module):
        return _build_module(resolved, settings, spec, process), {}
    # Objective refuses any other class.
    if arguments and not inspect.isclass(resolved):
        function = resolved.forward if isinstance(resolved, nn.Module) else resolved
        parameters = inspect.signature(function).parameters
        _check_arguments(settings, list(parameters)[2:], _takes_any(parameters.values()))
    return resolved, arguments


def _build_torch_loss(kind: type[nn.Module], settings: Settings, spec: DataSpec, process: Runtime) -> nn.Module:
    """A loss of torch.nn that has no name in dlrun; RequestError unless it takes outputs and targets as they are."""
    name = settings.task.loss
    # Some losses take three tensors (triplets), and no batch has a third.
    parameters = inspect.signature(kind.forward).parameters
    required = [p for p in parameters.values() if p.default is p.empty and p.name != "self"]
    if len(required) != 2:
        raise RequestError(
            f"task.loss={name} takes {join_names([p.name for p in required])}, and a model gives outputs alone; "
            "write a function of outputs and targets, and type task.loss=module.function"
        )

    # The others expect classes of -1 and 1, or several of them a row.
    takes_labels = kind is nn.MultiLabelSoftMarginLoss and spec.task == "multilabel"
    if spec.task != "regression" and not takes_labels:
        default = "BCEWithLogitsLoss" if spec.task in ("binary", "multilabel") else "CrossEntropyLoss"
        raise RequestError(
            f"task.loss={name} is no loss for the targets of {spec.task}; type task.loss={default}, or null"
        )

    return _build_module(kind, settings, spec, process)


def _build_module(kind: type[nn.Module], settings: Settings, spec: DataSpec, process: Runtime) -> nn.Module:
    """Build a loss that is a module, on the device; its parameters depend on the seed alone, not on the model's."""
    keys = settings.task
    parameters = inspect.signature(kind).parameters
    arguments = dict(keys.loss_args or {})
    open_names = [name for name in parameters if name not in _GIVEN_ARGUMENTS]
    _check_arguments(settings, open_names, _takes_any(parameters.values()))
    if "spec" in parameters:
        arguments["spec"] = spec
    if "reduction" in parameters:
        arguments["reduction"] = keys.reduction

    # A loss with random parameters must not change what the model draws after it.
    generators = get_rng_state()
    try:
        seed_everything(settings.seed)
        module = kind(**arguments)
        lazy = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if is_lazy(tensor)]
        if lazy:
            raise RequestError(
                f"task.loss={keys.loss}: the size of {join_names(lazy)} is not known; give it in __init__"
            )
        return set_precision(module, process.dtype).to(process.device)
    except Exception as error:
        # The class is the user's own, so anything can come.
        if isinstance(error, DlrunError) or is_out_of_memory(error):
            raise
        message = f"task.loss={keys.loss}: {type(error).__name__}: {user_code.get_first_clause(error)}"
        raise RequestError(user_code.add_user_line(message, error)) from error
    finally:
        set_rng_state(generators)


def _takes_any(parameters: Any) -> bool:
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _check_arguments(settings: Settings, known: Sequence[str], takes_any: bool) -> None:
    """RequestError for an argument that the user's loss does not have."""
    keys = settings.task
    names = [name for name in known if name not in _GIVEN_ARGUMENTS]
    for key in keys.loss_args or {}:
        if key in _GIVEN_ARGUMENTS:
            raise RequestError(f"task.loss_args.{key} is set by dlrun; leave it out, or type task.reduction=sum")
        if key not in names and not takes_any:
            hint = did_you_mean(str(key), names, "task.loss_args.")
            others = f"{hint}it takes {join_names(names)}" if names else "it takes none; leave it out"
            raise RequestError(f"task.loss_args.{key} is no argument of task.loss={keys.loss}; {others}")
