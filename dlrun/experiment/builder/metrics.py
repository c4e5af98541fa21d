"""From `task.metrics` to metrics: dlrun's own by name, scikit-learn's, torchmetrics', and the user's."""

import functools
import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dlrun.config.settings import Settings
from dlrun.core import user_code
from dlrun.core.errors import DlrunError, RequestError, join_names
from dlrun.core.own_code import PURE_METRICS
from dlrun.core.suggest import build_unknown_argument_error, did_you_mean, refuse_other_names
from dlrun.data.spec import DataSpec
from dlrun.engine.chosen_metrics import EXTRA_METRICS, ChosenMetric, MetricInput
from dlrun.engine.metric_names import DIRECTIONS
from dlrun.engine.objective import list_task_metrics
from dlrun.experiment.builder import targets

_KEY = "task.metrics"

# Keys of an entry that are no arguments of its target.
_TARGET = "_target_"
_NAME = "_name_"
_INPUT = "_input_"
_INPUTS: dict[str, MetricInput] = {
    "predictions": "predictions",
    "probabilities": "probabilities",
    "outputs": "outputs",
}

# Input of a user's function by the name of its first parameter; any other name stands for predictions.
_PARAMETERS: dict[str, MetricInput] = {
    "probabilities": "probabilities",
    "probs": "probabilities",
    "scores": "probabilities",
    "outputs": "outputs",
    "logits": "outputs",
}
# The same of scikit-learn's functions, by their second parameter, and of one that calls probabilities otherwise.
_SKLEARN_PARAMETERS: dict[str, MetricInput] = {
    "y_score": "probabilities",
    "y_prob": "probabilities",
    "y_proba": "probabilities",
    "pred_decision": "outputs",
}
_SKLEARN_PROBABILITIES = ("log_loss", "d2_log_loss_score")
_SKLEARN_ENDS = ("", "_score", "_error", "_loss")

# A picture, and no number.
_CONFUSION = "confusion"


def build_metrics(
    settings: Settings, spec: DataSpec, trusted_modules: Sequence[str] | None
) -> list[str | ChosenMetric] | None:
    """Build the metrics of `task.metrics`: names of the task's own, and others; None for all of the task's own.

    RequestError for an entry that cannot be a metric, and for two of one name.
    """
    entries = settings.task.metrics
    if entries is None:
        return None
    if isinstance(entries, dict):
        raise RequestError(f"{_KEY} has a list for each of several outputs, and these data have one; type one list")
    return _build_list(entries, _KEY, settings, spec, trusted_modules)


def build_metrics_of_outputs(
    settings: Settings, specs: Mapping[str, DataSpec], trusted_modules: Sequence[str] | None
) -> dict[str, list[str | ChosenMetric]]:
    """Build the metrics of `task.metrics` for several outputs, by name; outputs that it leaves out keep their own.

    specs: of each output alone. RequestError for an output that is not there, and for entries as `build_metrics` does.
    """
    entries = settings.task.metrics
    if entries is None:
        return {}
    names = list(specs)
    if not isinstance(entries, dict):
        raise RequestError(
            f"{_KEY}={entries} is for one output, and these data have {join_names(names)}; type "
            f"{_KEY}='{{{names[0]}: [...]}}'"
        )
    refuse_other_names(entries, names, _KEY)
    metrics = {}
    for name, part in entries.items():
        metrics[name] = _build_list(part, f"{_KEY}.{name}", settings, specs[name], trusted_modules)
    return metrics


def _build_list(
    entries: Any, key: str, settings: Settings, spec: DataSpec, trusted_modules: Sequence[str] | None
) -> list[str | ChosenMetric]:
    if not isinstance(entries, list):
        raise RequestError(f"{key}={entries} must be a list, as in {key}='[{entries}]'")

    metrics: list[str | ChosenMetric] = []
    names: set[str] = set()
    for number, entry in enumerate(entries):
        where = f"{key}[{number}]"
        target, arguments = _read_entry(entry, where)
        if target == _CONFUSION:
            _check_confusion(settings, spec)
            continue
        if target == "loss":
            # The loss is always there, and first.
            continue

        metric = _build_metric(target, arguments, spec, trusted_modules)
        name = metric if isinstance(metric, str) else metric.name
        if name in names or name == "loss":
            raise RequestError(
                f"{where}: there are two metrics of the name {name}; "
                f"give one of them another, {{_target_: {target}, _name_: ...}}"
            )
        names.add(name)
        metrics.append(metric)
    return metrics


def _read_entry(entry: Any, where: str) -> tuple[str, dict[str, Any]]:
    """The target of an entry, and its other keys."""
    if isinstance(entry, str):
        return entry, {}
    if not isinstance(entry, dict) or not isinstance(entry.get(_TARGET), str):
        raise RequestError(f"{where}={entry} is no metric; type a name, or {{_target_: <name>, <argument>: ...}}")

    arguments = {str(key): value for key, value in entry.items() if key != _TARGET}
    name = arguments.get(_NAME)
    if name is not None and not (isinstance(name, str) and re.fullmatch(r"[A-Za-z]\w*", name)):
        raise RequestError(f"{where}: _name_={name} must be a word of letters, digits and _")
    takes = arguments.get(_INPUT)
    if takes is not None and takes not in _INPUTS:
        raise RequestError(f"{where}: _input_={takes} must be one of {', '.join(_INPUTS)}")
    return entry[_TARGET], arguments


def _check_confusion(settings: Settings, spec: DataSpec) -> None:
    """RequestError where no picture of the confusion matrix is drawn."""
    if spec.task not in ("binary", "multiclass"):
        raise RequestError(f"{_KEY}: confusion is a picture for one class a row, and this is {spec.task}; leave it out")
    if not settings.figures:
        raise RequestError(
            f"{_KEY}: confusion is the picture figures/confusion.png, and figures=false draws none; "
            "leave out one of the two"
        )


def _build_metric(
    target: str, arguments: Mapping[str, Any], spec: DataSpec, trusted_modules: Sequence[str] | None
) -> str | ChosenMetric:
    """The metric that a name and its arguments stand for."""
    own_names = list_task_metrics(spec)
    if target in own_names and not arguments:
        return target
    if target in EXTRA_METRICS.get(spec.task, {}) and not set(arguments) - {_NAME}:
        function, takes = EXTRA_METRICS[spec.task][target]
        return ChosenMetric(arguments.get(_NAME) or target, function, takes)

    if "." not in target or target.startswith(PURE_METRICS):
        return _build_sklearn(target, arguments, spec)
    if target.split(".")[0] == "torchmetrics" and importlib.util.find_spec("torchmetrics") is None:
        raise RequestError(
            f"{_KEY}: {target} needs torchmetrics, which is not installed; type pip install torchmetrics"
        )
    return _build_own(target, arguments, spec, trusted_modules)


def _build_sklearn(target: str, arguments: Mapping[str, Any], spec: DataSpec) -> ChosenMetric:
    """A function of sklearn.metrics, by its full name or without the end that says its kind."""
    import sklearn.metrics

    bare = target.removeprefix(PURE_METRICS)
    all_names = set[str]()
    for names_by_task in (DIRECTIONS, EXTRA_METRICS):
        all_names.update(*names_by_task.values())
    own_names = [*list_task_metrics(spec), *EXTRA_METRICS.get(spec.task, {})]
    if target in all_names:
        hint = did_you_mean(target, own_names)
        instead = f"{hint}type one of {', '.join(own_names)}, or sklearn.metrics.<function>"
        raise RequestError(f"{_KEY}: {target} is no metric for {spec.task}; {instead}")

    candidates = [bare + end for end in _SKLEARN_ENDS] if bare == target else [bare]
    matches = [name for name in candidates if name in sklearn.metrics.__all__]
    if len(matches) != 1:
        hint = did_you_mean(bare, [*own_names, *sklearn.metrics.__all__])
        problem = f"names {' and '.join(matches)}" if matches else "is no metric of dlrun or scikit-learn"
        raise RequestError(
            f"{_KEY}: {target} {problem}; {hint}type one of {', '.join(own_names)}, sklearn.metrics.<function>, "
            "or module.function for one of yours"
        )

    name = matches[0]
    function = getattr(sklearn.metrics, name)
    parameters = inspect.signature(function).parameters if inspect.isfunction(function) else {}
    first, second = [*parameters, "", ""][:2]
    if first not in ("y_true", "y1"):
        raise RequestError(f"{_KEY}: sklearn.metrics.{name} is no function of targets and predictions")

    keywords = _select_arguments(target, arguments, list(parameters)[2:])
    takes = "probabilities" if name in _SKLEARN_PROBABILITIES else _SKLEARN_PARAMETERS.get(second, "predictions")
    takes = arguments.get(_INPUT) or takes
    # A split may lack a class that the probabilities have a column for.
    if takes != "predictions" and spec.task == "multiclass" and "labels" in parameters:
        keywords = {"labels": list(range(spec.output_size)), **keywords}

    def compute(inputs: Tensor, expected: Tensor) -> Any:
        return function(expected.numpy(), inputs.numpy(), **keywords)

    # dlrun knows the direction of a short name, or else by the end of the full one.
    return ChosenMetric(arguments.get(_NAME) or bare, compute, takes, is_quiet=True)


def _build_own(
    target: str, arguments: Mapping[str, Any], spec: DataSpec, trusted_modules: Sequence[str] | None
) -> ChosenMetric:
    """A function of predictions and targets, or a class with `update` and `compute`, as torchmetrics has them."""
    resolved: Any = targets.resolve(target, _KEY, trusted_modules)
    is_torchmetrics = target.startswith("torchmetrics.")
    is_class = isinstance(resolved, type)
    if is_class and not (callable(getattr(resolved, "update", None)) and callable(getattr(resolved, "compute", None))):
        raise RequestError(
            f"{_KEY}: the class {target} has no update and compute; give it update(predictions, targets) and compute()"
        )

    parameters = _list_parameters(resolved)
    known = list(parameters) if is_class else list(parameters)[2:]
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    keywords = _select_arguments(target, arguments, None if takes_any else known)
    if is_torchmetrics:
        keywords = {**_complete_arguments(spec, known), **keywords}

    takes: MetricInput = arguments.get(_INPUT) or _choose_input(resolved, is_class, is_torchmetrics)
    compute: Callable[[Tensor, Tensor], Any]
    if is_class:
        _try_to_build(target, functools.partial(resolved, **keywords))
        compute = functools.partial(_compute_by_class, functools.partial(resolved, **keywords))
    else:
        compute = functools.partial(resolved, **keywords)
    return ChosenMetric(arguments.get(_NAME) or target.rpartition(".")[2], compute, takes, is_quiet=is_torchmetrics)


def _compute_by_class(build: Callable[[], Any], inputs: Tensor, expected: Tensor) -> Any:
    """The metric of an object made for this one split, so that nothing is carried from one to the next."""
    metric = build()
    if isinstance(metric, nn.Module):
        # One of torchmetrics would add up what the processes have, and every process has all rows already.
        for part in metric.modules():
            for switch in ("sync_on_compute", "_to_sync"):
                if hasattr(part, switch):
                    setattr(part, switch, False)
    metric.update(inputs, expected)
    return metric.compute()


def _list_parameters(resolved: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(resolved).parameters
    except (ValueError, TypeError):
        # A C function has none.
        return {}


def _choose_input(resolved: Any, is_class: bool, is_torchmetrics: bool) -> MetricInput:
    """The input of a function, or of the `update` of a class, by the name of its first parameter."""
    if is_torchmetrics:
        return "probabilities"
    names = [name for name in _list_parameters(resolved.update if is_class else resolved) if name != "self"]
    return _PARAMETERS.get(names[0] if names else "", "predictions")


def _complete_arguments(spec: DataSpec, known: Sequence[str]) -> dict[str, Any]:
    """Arguments of torchmetrics that the data decide."""
    if spec.task == "regression":
        return {}
    task = spec.task if spec.task in ("binary", "multilabel") else "multiclass"
    decided = {"task": task, "num_classes": max(spec.output_size, 2), "num_labels": spec.output_size}
    return {name: value for name, value in decided.items() if name in known}


def _select_arguments(target: str, arguments: Mapping[str, Any], known: Sequence[str] | None) -> dict[str, Any]:
    """The arguments for the target itself; RequestError for one that is not among `known`, None for any."""
    keywords = {key: value for key, value in arguments.items() if key not in (_NAME, _INPUT)}
    for key in keywords:
        if known is not None and key not in known:
            raise build_unknown_argument_error(f"{_KEY}: {key}", key, target, known)
    return keywords


def _try_to_build(target: str, build: Callable[[], Any]) -> None:
    """RequestError where a metric's class cannot be built."""
    try:
        build()
    except Exception as error:
        # It may be the user's own, so anything can come.
        if isinstance(error, DlrunError):
            raise
        message = f"{_KEY}: {target}: {type(error).__name__}: {user_code.get_first_clause(error)}"
        raise RequestError(user_code.add_user_line(message, error)) from error
