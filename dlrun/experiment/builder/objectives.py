"""Build the objective from settings: dlrun's, torch's or the user's loss, and its class weights."""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dlrun.config.settings import Settings
from dlrun.core import user_code
from dlrun.core.errors import DlrunError, RequestError, join_names
from dlrun.core.suggest import build_unknown_argument_error, did_you_mean, refuse_other_names
from dlrun.data.datasets import Part
from dlrun.data.inspection import get_valid_targets
from dlrun.data.spec import PADDING, DataSpec, Output
from dlrun.engine.device import Runtime, is_out_of_memory, preserve_rng_state, seed_everything
from dlrun.engine.losses import ALIASES
from dlrun.engine.multitask import MultitaskObjective, make_spec_of_output
from dlrun.engine.objective import Objective
from dlrun.experiment.builder import targets
from dlrun.experiment.builder.build import set_precision
from dlrun.experiment.builder.metrics import build_metrics, build_metrics_of_outputs

_TORCH = "torch.nn."

# Arguments that dlrun passes to the constructor of a loss, if it has them.
_DLRUN_ARGUMENTS = ("spec", "reduction")


def build_objective(
    settings: Settings,
    spec: DataSpec,
    runtime: Runtime,
    trusted_modules: Sequence[str] | None,
    class_weights: Sequence[float] | None = None,
) -> Objective:
    """Build loss and metrics. A loss with a dot in its name is the user's own, or a class of torch.nn.

    class_weights: as `compute_class_weights` returns them.
    """
    keys = settings.task
    if spec.task == "multitask":
        return _build_multitask(settings, spec, trusted_modules, class_weights)
    for name in ("losses", "weights"):
        if getattr(keys, name) is not None:
            raise RequestError(f"task.{name} is for data of several outputs, and these have one; type task.loss=...")

    own_loss, arguments = _build_own_loss(settings, spec, runtime, trusted_modules)
    metrics = build_metrics(settings, spec, trusted_modules)
    return Objective(spec, keys.loss, keys.reduction, own_loss, arguments, class_weights, metrics)


def _build_multitask(
    settings: Settings,
    spec: DataSpec,
    trusted_modules: Sequence[str] | None,
    class_weights: Sequence[float] | None,
) -> MultitaskObjective:
    """The objective of several outputs, each with a loss of dlrun's; RequestError for keys that are for one output."""
    keys = settings.task
    names = [output.name for output in spec.outputs]
    if keys.loss is not None:
        raise RequestError(f"task.loss is for one output; type task.losses={{{names[0]}: {keys.loss}}}")
    if keys.loss_args is not None:
        raise RequestError(f"task.loss_args is for one output, and these data have {join_names(names)}; leave it out")

    # All keys are checked before a loss is built, so that a typo is named as one.
    losses = keys.losses or {}
    weights = keys.weights or {}
    refuse_other_names(losses, names, "task.losses")
    for name, loss in losses.items():
        if not isinstance(loss, str):
            raise RequestError(f"task.losses.{name}={loss} must be the name of a loss")
    refuse_other_names(weights, names, "task.weights")
    for name, weight in weights.items():
        if not _is_weight(weight):
            raise RequestError(f"task.weights.{name}={weight} must be a number of at least 0")
    if weights and all(weights.get(name, 1.0) == 0 for name in names):
        raise RequestError("task.weights are all 0, so that there is nothing to learn; give one output a larger one")
    specs = {output.name: make_spec_of_output(spec, output) for output in spec.outputs}
    metrics = build_metrics_of_outputs(settings, specs, trusted_modules)
    output_class_weights = dict(_split_class_weights(settings, spec, class_weights or ()))
    return MultitaskObjective(
        spec,
        reduction=keys.reduction,
        class_weights=class_weights,
        losses=losses,
        weights=weights,
        output_metrics=metrics,
        output_class_weights=output_class_weights,
    )


def _split_class_weights(
    settings: Settings, spec: DataSpec, class_weights: Sequence[float]
) -> Iterator[tuple[str, list[float]]]:
    """Split the concatenated class weights by output; outputs without weights are left out."""
    start = 0
    for output in _list_weighted(settings.task.class_weights, spec):
        numbers = list(class_weights[start : start + output.class_count])
        start += output.class_count
        yield output.name, numbers


def _list_weighted(setting: Any, spec: DataSpec) -> list[Output]:
    """The outputs whose classes have weights, in the order of the spec; RequestError for a setting that cannot be."""
    if setting is None:
        return []
    class_outputs = [output for output in spec.outputs if output.class_count]
    names = [output.name for output in class_outputs]
    if not names:
        raise RequestError("task.class_weights is for classes, and all outputs are numbers; leave it out")
    if setting == "balanced":
        return class_outputs
    if not isinstance(setting, dict):
        raise RequestError(
            f"task.class_weights={setting} is for one output; type balanced, or "
            f"task.class_weights='{{{names[0]}: balanced}}'"
        )
    refuse_other_names(setting, names, "task.class_weights", "output of classes")
    return [output for output in class_outputs if output.name in setting]


def has_balanced_weights(settings: Settings) -> bool:
    """Whether `task.class_weights` counts training rows, of any output."""
    setting = settings.task.class_weights
    return setting == "balanced" or (isinstance(setting, dict) and "balanced" in setting.values())


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
    if spec.task == "multitask":
        return _compute_weights_of_outputs(setting, spec, train)
    if spec.task == "regression":
        raise RequestError("task.class_weights is for classes, and these targets are numbers; leave it out")
    if isinstance(setting, list):
        return list(setting)
    if setting != "balanced":
        hint = did_you_mean(str(setting), ["balanced"])
        raise RequestError(
            f"task.class_weights={setting} is no choice; {hint}type balanced, or a number for each class"
        )

    if spec.task == "multilabel":
        raise RequestError(
            "task.class_weights=balanced is for one class a row; type a number for each label, or "
            "task.loss_args='{pos_weight: <weight of a label that a row has>}'"
        )

    known = _get_known_targets(spec, train)
    return _balance(known[known != PADDING], max(spec.output_size, 2), spec.class_names, "task.class_weights")


def _compute_weights_of_outputs(setting: Any, spec: DataSpec, train: Part | None) -> list[float]:
    """The class weights of all outputs that have some, concatenated in the order of the spec."""
    weights: list[float] = []
    for output in _list_weighted(setting, spec):
        key = f"task.class_weights.{output.name}"
        own = setting if setting == "balanced" else setting[output.name]
        if own == "balanced":
            # Columns of the targets are in the order of the outputs.
            before = spec.outputs[: spec.outputs.index(output)]
            column = _get_known_targets(spec, train)[:, sum(other.columns for other in before)]
            weights += _balance(column, output.class_count, output.class_names, key)
            continue
        if not isinstance(own, list) or len(own) != output.class_count:
            raise RequestError(f"{key}={own} must be balanced, or a number for each of {output.class_count} classes")
        weights += own
    return weights


def _get_known_targets(spec: DataSpec, train: Part | None) -> Tensor:
    """The targets of all training rows; RequestError for a dataset that states none."""
    # Every row would have to be read.
    known = get_valid_targets(train, spec)
    if known is None:
        raise RequestError(
            "task.class_weights=balanced counts the training rows, and this dataset has no `targets` of all of them; "
            "type a number for each class"
        )
    return known


def _balance(targets: Tensor, classes: int, class_names: Sequence[str], key: str) -> list[float]:
    counts = torch.bincount(targets.flatten().long(), minlength=classes)
    for number, count in enumerate(counts.tolist()):
        if count == 0:
            name = class_names[number] if class_names else number
            raise RequestError(f"{key}=balanced: no training row is of class {name}; type a number for each class")

    weights: list[float] = (counts.sum() / (classes * counts.double())).tolist()
    return weights


def _build_own_loss(
    settings: Settings, spec: DataSpec, runtime: Runtime, trusted_modules: Sequence[str] | None
) -> tuple[Callable[..., Tensor] | None, dict[str, Any]]:
    """The function or module that `task.loss` names, None for one of dlrun's own; and arguments for its calls."""
    name = settings.task.loss
    arguments = dict(settings.task.loss_args or {})
    if name is None or name.removeprefix(_TORCH) in ALIASES:
        return None, arguments

    torch_class = getattr(nn, name.removeprefix(_TORCH), None)
    # torch's own classes need no trust.
    if inspect.isclass(torch_class) and issubclass(torch_class, nn.modules.loss._Loss):
        return _build_torch_loss(torch_class, settings, spec, runtime), {}
    if "." not in name:
        return None, arguments

    resolved: Any = targets.resolve(name, "task.loss", trusted_modules)
    if isinstance(resolved, type) and issubclass(resolved, nn.Module):
        return _build_module(resolved, settings, spec, runtime), {}
    # Objective refuses any other class.
    if arguments and not inspect.isclass(resolved):
        function = resolved.forward if isinstance(resolved, nn.Module) else resolved
        parameters = inspect.signature(function).parameters
        _check_arguments(settings, list(parameters)[2:], _takes_any(parameters.values()))
    return resolved, arguments


def _build_torch_loss(kind: type[nn.Module], settings: Settings, spec: DataSpec, runtime: Runtime) -> nn.Module:
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

    return _build_module(kind, settings, spec, runtime)


def _build_module(kind: type[nn.Module], settings: Settings, spec: DataSpec, runtime: Runtime) -> nn.Module:
    """Build a loss that is a module, on the device; its parameters depend on the seed alone, not on the model's."""
    keys = settings.task
    parameters = inspect.signature(kind).parameters
    arguments = dict(keys.loss_args or {})
    open_names = [name for name in parameters if name not in _DLRUN_ARGUMENTS]
    _check_arguments(settings, open_names, _takes_any(parameters.values()))
    if "spec" in parameters:
        arguments["spec"] = spec
    if "reduction" in parameters:
        arguments["reduction"] = keys.reduction

    # A loss with random parameters must not change what the model draws after it.
    with preserve_rng_state():
        try:
            seed_everything(settings.seed)
            module = kind(**arguments)
            lazy = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if is_lazy(tensor)]
            if lazy:
                raise RequestError(
                    f"task.loss={keys.loss}: the size of {join_names(lazy)} is not known; give it in __init__"
                )
            return set_precision(module, runtime.dtype).to(runtime.device)
        except Exception as error:
            # The class is the user's own, so anything can come.
            if isinstance(error, DlrunError) or is_out_of_memory(error):
                raise
            message = f"task.loss={keys.loss}: {type(error).__name__}: {user_code.get_first_clause(error)}"
            raise RequestError(user_code.add_user_line(message, error)) from error


def _takes_any(parameters: Any) -> bool:
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _check_arguments(settings: Settings, known: Sequence[str], takes_any: bool) -> None:
    """RequestError for an argument that the user's loss does not have."""
    keys = settings.task
    names = [name for name in known if name not in _DLRUN_ARGUMENTS]
    for key in keys.loss_args or {}:
        if key in _DLRUN_ARGUMENTS:
            raise RequestError(f"task.loss_args.{key} is set by dlrun; leave it out, or type task.reduction=sum")
        if key not in names and not takes_any:
            where = f"task.loss_args.{key}"
            raise build_unknown_argument_error(where, key, f"task.loss={keys.loss}", names, "task.loss_args.")
