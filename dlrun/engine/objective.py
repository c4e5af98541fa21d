"""Objectives: loss, predictions and metrics for regression, binary, multiclass, multilabel and tagging.

Metrics are sums on the device, reduced once at the end: a short last batch counts by its rows.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.core.errors import RequestError, RunError
from dlrun.core.suggest import build_unknown_argument_error, did_you_mean
from dlrun.data.spec import PADDING, DataSpec
from dlrun.engine import metrics
from dlrun.engine.chosen_metrics import ChosenMetric
from dlrun.engine.losses import (
    ALIASES,
    GIVES_ROWS,
    LOSSES,
    RECONSTRUCTION_LOSSES,
    TAKES_WEIGHT,
    LossArgument,
    list_arguments,
    make_tensor,
)
from dlrun.engine.metric_names import DIRECTIONS
from dlrun.engine.metrics import MetricSums

# These take probabilities; the other binary losses take a logit.
_PROBABILITY_LOSSES = ("bce", "scratch_bce")

# Outputs are kept as they come and reduced together: 64 small reductions cost more than one large.
FLUSH_BATCHES = 64

# Rows of a baseline that an autoencoder's metrics take at once.
_BASELINE_ROWS = 4096


@dataclass(frozen=True)
class Objective:
    """Loss and metrics for one kind of target.

    loss_name: None for the task's own (mse, bce_with_logits, cross_entropy); `bce` and `scratch_bce` take
        probabilities, `nll` log-probabilities as the model's output; `scratch_*` have a hand-written backward. Names
        of torch.nn's classes name the same losses.
    reduction: `mean` or `sum` over a batch is minimized; the metric `loss` is the mean over samples either way.
    own_loss: the user's function or module that loss_name names, of outputs and targets as torch's losses take them
        (logits, (N,) for binary), and of `reduction` if it has it; it returns the mean over the batch, or what
        reduction says.
    loss_args: arguments of the loss: plain numbers for one of dlrun's own, keywords of each call of own_loss.
    class_weights: a positive number for each class, of which there are two for binary. The mean of a batch is then
        sum(w l) / sum(w), with the weight w of each row's or tag's class: that of torch's cross_entropy, and of
        scikit-learn's sample weights. For multilabel they are the weights of the labels.
    metrics: names of the task's own metrics, and others; None for all of the task's own and no others. The loss is
        always there.
    """

    spec: DataSpec
    loss_name: str | None = None
    reduction: str = "mean"
    own_loss: Callable[..., Tensor] | None = None
    loss_args: Mapping[str, Any] = field(default_factory=dict)
    class_weights: Sequence[float] | None = None
    metrics: Sequence[str | ChosenMetric] | None = None
    loss_function: Callable[..., Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        losses = LOSSES[self.spec.task] | (RECONSTRUCTION_LOSSES if self.spec.reconstructs else {})
        name = self.loss_name or next(iter(losses))
        if self.own_loss is not None:
            loss_function = _adapt_loss(self.own_loss, name, self.reduction, self.loss_args)
        else:
            name = ALIASES.get(name.removeprefix("torch.nn."), name)
            loss_function = self._bind_arguments(name, losses)

        # The dataclass is frozen, so its own assignments would be refused.
        object.__setattr__(self, "loss_name", name)
        object.__setattr__(self, "loss_function", loss_function)
        self._refuse_weights()

    def _bind_arguments(self, name: str, losses: Mapping[str, Callable[..., Tensor]]) -> Callable[..., Tensor]:
        """One of dlrun's losses with its `loss_args`; RequestError if the task has no such loss, or they do not fit."""
        if name not in losses:
            hint = did_you_mean(name, losses)
            raise RequestError(
                f"task.loss={name} is no loss for {self.spec.task}; {hint}type one of {', '.join(losses)}, "
                "or module.function for one of yours"
            )

        arguments = _check_loss_args(name, list_arguments(self.spec.task, name), self.loss_args, self.class_count)
        # torch's name for the class weights. They also weigh the batches of an epoch, so all have one home.
        if "weight" in arguments:
            if self.class_weights is not None:
                raise RequestError("task.class_weights and task.loss_args.weight are the same; leave out one of them")
            object.__setattr__(self, "class_weights", tuple(arguments.pop("weight")))
        # Without arguments there is no partial: it would cost time in every step.
        return functools.partial(losses[name], **arguments) if arguments else losses[name]

    def _refuse_weights(self) -> None:
        """RequestError for class weights that this loss cannot take, or that are not one for each class."""
        if self.class_weights is None:
            return

        what = "task.class_weights"
        if self.spec.task == "regression":
            raise RequestError(f"{what} is for classes, and these targets are numbers; leave it out")
        if self.own_loss is not None:
            raise RequestError(
                f"{what} weights dlrun's and torch's own losses; give task.loss={self.loss_name} its weights "
                "by task.loss_args"
            )

        weightable = [name for name in LOSSES[self.spec.task] if name in (*TAKES_WEIGHT, *GIVES_ROWS)]
        if self.loss_name not in weightable:
            raise RequestError(f"task.loss={self.loss_name} takes no {what}; type task.loss={' or '.join(weightable)}")
        _check_weights(what, self.class_weights, self.class_count)

    @property
    def class_count(self) -> int:
        """Number of classes, two for binary, whose models have one output; for multilabel that of labels."""
        return self.spec.output_size if self.spec.task == "multilabel" else max(self.spec.output_size, 2)

    @property
    def is_exponential(self) -> bool:
        """Whether outputs are logarithms of the predicted values, as torch's Poisson loss takes them by default."""
        return self.loss_name == "poisson_nll" and self.loss_args.get("log_input", True) is True

    @property
    def is_logistic(self) -> bool:
        """Whether outputs are logits of the values that an autoencoder gives back."""
        return self.spec.reconstructs and self.loss_name == "bce_with_logits"

    # Asked for in every step.
    @functools.cached_property
    def scales_targets(self) -> bool:
        """Whether outputs and the loss are in standard deviations of the target; logarithms need its own unit."""
        return bool(self.spec.target_std) and not (self.is_exponential or self.spec.reconstructs)

    @property
    def loss_module(self) -> nn.Module | None:
        """The module that the user's own loss is, or is a method of: checkpoints hold its state."""
        # A bound method has its module as __self__.
        owner = getattr(self.own_loss, "__self__", self.own_loss)
        return owner if isinstance(owner, nn.Module) else None

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Metric names without the split's prefix."""
        if self.metrics is not None:
            return ("loss", *(metric if isinstance(metric, str) else metric.name for metric in self.metrics))
        return list_task_metrics(self.spec)

    @property
    def chosen_metrics(self) -> list[ChosenMetric]:
        """The metrics that are not the task's own."""
        return [metric for metric in self.metrics or () if isinstance(metric, ChosenMetric)]

    @property
    def computes_task_metrics(self) -> bool:
        """Whether any of the task's own metrics is wanted."""
        return self.metrics is None or any(isinstance(metric, str) for metric in self.metrics)

    def compute_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Scalar to minimize over one batch: outputs as the model returns them, targets as in DataSpec.

        It is 0 for a batch without targets, which a rank trains on when a batch has fewer rows than there are ranks.
        RunError where the shapes of outputs and targets differ.
        """
        if not targets.numel():
            return 0.0 * outputs.sum()

        if self.spec.task == "binary":
            outputs = outputs.squeeze(-1)
            targets = targets.to(outputs.dtype)
        if self.spec.task in ("binary", "regression", "multilabel") and outputs.shape != targets.shape:
            # torch would broadcast, and compare every number with every other.
            raise RunError(
                f"the model's outputs {tuple(outputs.shape)} and the targets {tuple(targets.shape)} of a batch differ "
                f"in shape; return spec.output_size={self.spec.output_size} numbers a row"
            )

        if self.scales_targets:
            mean, std = self._get_target_scale(targets)
            targets = (targets - mean) / std
        if self.spec.task == "tagging":
            # (N, length, tags) and (N, length)
            outputs = outputs.flatten(0, 1)
            targets = targets.flatten()

        if self.class_weights is not None:
            return self._compute_weighted_loss(outputs, targets)
        return self.loss_function(outputs, targets, reduction=self.reduction)

    def _compute_weighted_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sum of the weighted losses, divided by the sum of the weights unless `reduction` is `sum`."""
        if self.loss_name in TAKES_WEIGHT:
            # torch computes these losses in single precision if the outputs are in half precision.
            class_weights = self._get_class_weights(torch.promote_types(outputs.dtype, torch.float32), outputs.device)
            loss = self.loss_function(outputs, targets, weight=class_weights, reduction="sum")
        else:
            losses = self.loss_function(outputs, targets, reduction="none")
            loss = (losses * self._weigh(targets, losses.dtype)).sum()

        if self.reduction == "sum":
            return loss
        return loss / self._weigh(targets, loss.dtype).sum()

    def _get_target_scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each target column, (columns,), with the dtype and device of `like`."""
        mean = make_tensor(self.spec.target_mean, like.dtype, like.device)
        return mean, make_tensor(self.spec.target_std, like.dtype, like.device)

    def _get_class_weights(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The class weights as a tensor (classes,), which is made once for each dtype and device."""
        assert self.class_weights is not None
        return make_tensor(tuple(self.class_weights), dtype, device)

    def _weigh(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight of each target, 0 for padding; the shape of the targets."""
        class_weights = self._get_class_weights(dtype, targets.device)
        if self.spec.task == "multilabel":
            return class_weights.expand_as(targets)
        numbers = targets.long()
        if self.spec.task != "tagging":
            return class_weights[numbers]
        # PADDING is negative: it would index from the end, so it is clamped here and set to 0 by the mask.
        return class_weights[numbers.clamp(min=0)] * (numbers != PADDING)

    def count_targets(self, targets: Tensor) -> Tensor | int:
        """Weight of a batch in a mean: its number of values, or of tags that are not padding.

        With class weights the sum of those of its targets. Tags and weights are added up on the device, without
        waiting for it.
        """
        if self.class_weights is not None:
            return self._weigh(targets, metrics.get_wide_dtype(targets.device)).sum()
        if self.spec.task == "tagging":
            return (targets != PADDING).sum()
        return targets.numel()

    def count_targets_of_each(self, batches: Sequence[Tensor], like: Tensor) -> Tensor:
        """`count_targets` of several batches, shape (batches,), with the dtype and device of `like`."""
        if self.class_weights is not None:
            return torch.stack([torch.as_tensor(self.count_targets(targets)) for targets in batches]).to(like)
        if self.spec.task == "tagging":
            return torch.stack([(targets != PADDING).sum() for targets in batches]).to(like)
        counts = [targets.numel() for targets in batches]
        # All epochs have the same batches.
        return make_tensor(tuple(counts), like.dtype, like.device)

    def compute_probabilities(self, outputs: Tensor) -> Tensor:
        """Class probabilities (N, ..., classes); for binary (N,) of class 1; for multilabel (N, labels)."""
        if self.spec.task == "binary":
            outputs = outputs.squeeze(-1)
            return outputs if self.loss_name in _PROBABILITY_LOSSES else outputs.sigmoid()
        if self.spec.task == "multilabel":
            return outputs if self.loss_name in _PROBABILITY_LOSSES else outputs.sigmoid()
        return outputs.exp() if self.loss_name == "nll" else outputs.softmax(-1)

    def predict(self, outputs: Tensor) -> Tensor:
        """Values for regression, 0 or 1 a label (N, labels) for multilabel, class numbers otherwise."""
        if self.spec.task == "regression":
            if self.is_logistic:
                return outputs.sigmoid()
            if self.scales_targets:
                # Half precision holds three digits, which is too few for a price of 123,456.
                values = outputs.float() if outputs.dtype.itemsize < 4 else outputs
                mean, std = self._get_target_scale(values)
                return values * std + mean
            return outputs.exp() if self.is_exponential else outputs

        if self.spec.task in ("binary", "multilabel"):
            # A logit of 0 is a probability of 0.5.
            threshold = 0.5 if self.loss_name in _PROBABILITY_LOSSES else 0.0
            is_positive = (outputs > threshold).long()
            return is_positive.squeeze(-1) if self.spec.task == "binary" else is_positive

        return outputs.argmax(-1)

    def compute_sums(self, outputs: Tensor, targets: Tensor) -> MetricSums:
        """Sums that the metrics need; they add up over batches, except that `all_*` are concatenated."""
        sums: MetricSums = {}
        if self.computes_task_metrics:
            sums |= self._compute_task_sums(outputs, targets)
        if self.chosen_metrics:
            sums |= self._select_rows(outputs, targets)
        return sums

    def _select_rows(self, outputs: Tensor, targets: Tensor) -> MetricSums:
        """The rows, or tags, that metrics besides the task's own are computed on; padding is left out later."""
        if self.spec.task == "tagging":
            outputs = outputs.flatten(0, 1)
            targets = targets.flatten()

        rows = {"all_metric_targets": targets}
        # A class number a row takes less memory than the scores of all classes.
        if all(metric.takes == "predictions" for metric in self.chosen_metrics):
            return rows | {"all_metric_predictions": self.predict(outputs)}
        return rows | {"all_metric_outputs": outputs}

    def _compute_task_sums(self, outputs: Tensor, targets: Tensor) -> MetricSums:
        if self.spec.task == "binary":
            return metrics.compute_binary_sums(outputs, self.predict(outputs), targets)
        if self.spec.reconstructs:
            return metrics.compute_reconstruction_sums(self.predict(outputs), targets)
        if self.spec.task == "regression":
            return metrics.compute_regression_sums(self.predict(outputs), targets)
        if self.spec.task == "multilabel":
            return metrics.compute_multilabel_sums(self.predict(outputs), targets)
        # Metrics such as top-5 accuracy need the scores, not the predictions alone.
        return metrics.SUMS[self.spec.task](outputs, targets)

    def compute_metrics(self, sums: MetricSums) -> dict[str, float]:
        """Metrics, the loss first, from sums over all batches; waits for the device."""
        # One transfer in place of one for each number.
        host = {name: value.cpu() for name, value in sums.items()}
        loss = metrics.divide(host["loss"], host["weight"])
        compute = metrics.compute_reconstruction_metrics if self.spec.reconstructs else metrics.METRICS[self.spec.task]
        if self.metrics is None:
            return {"loss": loss} | compute(host)

        values = compute(host) if self.computes_task_metrics else {}
        if self.chosen_metrics:
            values |= self._compute_chosen_metrics(host)
        return {"loss": loss} | {name: values[name] for name in self.metric_names[1:]}

    def _compute_chosen_metrics(self, host: MetricSums) -> dict[str, float]:
        """Metrics besides the task's own, of the rows that `_select_rows` has kept."""
        targets = host["all_metric_targets"]
        rows = host.get("all_metric_outputs", host.get("all_metric_predictions"))
        assert rows is not None
        if self.spec.task == "tagging":
            rows = rows[targets != PADDING]
            targets = targets[targets != PADDING]

        inputs: dict[str, Tensor] = {"predictions": rows}
        if "all_metric_outputs" in host:
            # NumPy knows no bfloat16.
            rows = rows.float() if rows.itemsize < 4 else rows
            inputs = {"outputs": rows, "predictions": self.predict(rows)}
            # A metric compares with targets in their own unit.
            if self.scales_targets:
                inputs["outputs"] = inputs["predictions"]
            # In double precision they add up to 1 as closely as libraries want.
            inputs["probabilities"] = inputs["predictions"]
            if self.spec.task != "regression":
                inputs["probabilities"] = self.compute_probabilities(rows.double())

        values = {}
        for metric in self.chosen_metrics:
            x = inputs[metric.takes]
            # One number a row.
            if self.spec.output_size == 1 and x.dim() == 2:
                x = x.squeeze(-1)
            y = targets.squeeze(-1) if targets.dim() == 2 and targets.shape[1] == 1 else targets
            # Libraries take labels for classes only if they are whole numbers.
            y = y.long() if self.spec.task == "multilabel" else y
            values[metric.name] = metric.compute(x, y)

        return values

    def new_accumulator(self, flush_batches: int = FLUSH_BATCHES) -> "MetricAccumulator":
        """An empty accumulator that reduces every `flush_batches` batches."""
        return MetricAccumulator(self, flush_batches)

    def fit_constant_outputs(self, targets: Tensor) -> Tensor:
        """Trivial baseline fitted to training targets: outputs (1, ...) that ignore the input.

        The mean for regression; the frequencies of the labels or classes otherwise, so that the majority is predicted
        and the loss is the entropy of guessing by frequency.
        """
        if self.is_logistic:
            return targets.mean(0, keepdim=True, dtype=torch.float64).clamp(1e-9, 1 - 1e-9).logit()
        if self.spec.reconstructs:
            return targets.mean(0, keepdim=True, dtype=torch.float64)
        if self.spec.task == "regression":
            mean = metrics.widen(targets).mean(0, keepdim=True)
            if self.scales_targets:
                center, std = self._get_target_scale(mean)
                return (mean - center) / std
            # The outputs of a Poisson model are logarithms, and a mean of 0 has none.
            return mean.clamp(min=1e-9).log() if self.is_exponential else mean

        if self.spec.task == "multilabel":
            # A label that every row has, or none, gets no infinite logit.
            frequencies = metrics.widen(targets).mean(0, keepdim=True).clamp(1e-9, 1 - 1e-9)
            return frequencies if self.loss_name in _PROBABILITY_LOSSES else frequencies.logit()

        # A class that never occurs gets a tiny share in place of log 0.
        flat = targets[targets != PADDING].flatten()
        counts = torch.bincount(flat, minlength=max(self.spec.output_size, 2)).double() + 1e-9
        shares = counts / counts.sum()
        if self.spec.task == "binary":
            return shares[1:] if self.loss_name in _PROBABILITY_LOSSES else shares[1:].logit()
        return shares.log().unsqueeze(0)

    def compute_baseline(self, train_targets: Tensor, targets: Tensor) -> dict[str, float]:
        """Metrics on `targets` of the constant outputs fitted to `train_targets`."""
        outputs = self.fit_constant_outputs(train_targets)
        totals = self.new_accumulator()
        # All values of all inputs, in double precision, may be more than the memory holds.
        blocks = torch.split(targets, _BASELINE_ROWS) if self.spec.reconstructs else (targets,)
        for block in blocks:
            self._add_constant(totals, outputs, block)
        try:
            return totals.compute_metrics()
        except RunError as error:
            # Nothing is trained yet: a metric that cannot be computed is a wrong request.
            raise RequestError(str(error)) from error

    def score_outputs(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Metrics of an answer to each row, outputs (N, ...), without a model."""
        totals = self.new_accumulator()
        with torch.no_grad():
            totals.add(outputs, targets, self.compute_loss(outputs, targets))
        return totals.compute_metrics()

    def scale_values(self, values: Tensor) -> Tensor:
        """The outputs that stand for values of a regression in the unit of the data."""
        if not self.scales_targets:
            return values
        mean, std = self._get_target_scale(values)
        return (values - mean) / std

    def _add_constant(self, totals: "MetricAccumulator", outputs: Tensor, targets: Tensor) -> None:
        """Add rows that are all answered by the same outputs (1, ...)."""
        if self.spec.task == "tagging":
            outputs = outputs.expand(*targets.shape[:2], -1)
        else:
            outputs = outputs.expand(len(targets), -1)

        # Sums over a whole split lose digits in single precision; class numbers stay integers.
        values = targets.double() if targets.is_floating_point() else targets

        # A loss may have parameters of its own.
        with torch.no_grad():
            loss = self.compute_loss(outputs, values)
        if not isinstance(loss, Tensor):
            # The user's own function is called here for the first time.
            raise RequestError(f"task.loss={self.loss_name} must return a tensor, not {type(loss).__name__}")
        totals.add(outputs, values, loss)


def list_task_metrics(spec: DataSpec) -> tuple[str, ...]:
    """Names of a task's own metrics, the loss first."""
    names = tuple(DIRECTIONS[spec.task])
    if spec.output_size >= 10:
        return names
    # Top-5 accuracy says nothing about fewer than 10 classes.
    return tuple(name for name in names if name != "top5_accuracy")


class MetricAccumulator:
    """Loss and metric sums of an epoch so far.

    Outputs are held by reference and reduced every `flush_batches` batches, a block, so a step costs a list append.
    The state contains unreduced outputs too: a resumed epoch adds up in the same order, to the same bits.
    """

    def __init__(self, objective: Objective, flush_batches: int = FLUSH_BATCHES) -> None:
        self.objective = objective
        self.flush_batches = flush_batches
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self.blocks: list[MetricSums] = []

    def add(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> None:
        """Add one batch: detached outputs, targets, and the scalar that `compute_loss` returned."""
        # A model may return a tensor of a class of its own, which checkpoints do not hold.
        self.waiting.append((_strip_subclass(outputs), targets, _strip_subclass(loss)))
        if len(self.waiting) >= self.flush_batches:
            self._flush()

    def _flush(self) -> None:
        outputs, targets, losses = zip(*self.waiting, strict=True)
        self.waiting = []

        loss = metrics.widen(torch.stack(losses))
        weights = self.objective.count_targets_of_each(targets, loss)
        # A mean over the batch becomes its sum.
        if self.objective.reduction != "sum":
            loss = loss * weights
        sums = self.objective.compute_sums(_concatenate(outputs), _concatenate(targets))
        self.blocks.append(sums | {"loss": loss.sum(), "weight": weights.sum()})

    def compute_metrics(self, gather_blocks: Callable[[list[MetricSums]], list[MetricSums]] = list) -> dict[str, float]:
        """Metrics over all batches added; gather_blocks: returns the blocks of all ranks for those of this one."""
        if self.waiting:
            self._flush()
        return self.objective.compute_metrics(_add_blocks(gather_blocks(self.blocks)))

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, for a checkpoint in the middle of an epoch."""
        # A checkpoint holds the sum of all blocks, however many there are.
        sums = {}
        if self.blocks:
            sums = _add_blocks(self.blocks)
            self.blocks = [sums]
        return {"waiting": [list(entry) for entry in self.waiting], "sums": dict(sums)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Add the batches of a `state_dict` of this or another process."""
        for outputs, targets, loss in state["waiting"]:
            self.waiting.append((outputs.to(device), targets.to(device), loss.to(device)))
        if state["sums"]:
            self.blocks.append({name: value.to(device) for name, value in state["sums"].items()})


def _check_weights(where: str, weights: Any, classes: int) -> list[float]:
    """Return class weights as floats; RequestError unless they are one positive number for each class."""
    are_numbers = isinstance(weights, list | tuple) and all(_is_number(weight) and weight > 0 for weight in weights)
    if not are_numbers or len(weights) != classes:
        example = ", ".join(["1.0"] * min(classes, 3)) + (", ..." if classes > 3 else "")
        raise RequestError(f"{where}={weights} must be a positive number for each of {classes} classes, [{example}]")
    return [float(weight) for weight in weights]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_loss_args(
    name: str, known: Mapping[str, LossArgument], arguments: Mapping[str, Any], classes: int
) -> dict[str, Any]:
    """Return the arguments of one of dlrun's losses; RequestError for one that it lacks, or for a wrong value."""
    checked: dict[str, Any] = {}
    for key, value in arguments.items():
        where = f"task.loss_args.{key}"
        if key not in known:
            raise build_unknown_argument_error(where, key, f"task.loss={name}", list(known), "task.loss_args.")

        kind = known[key]
        if kind == "weights":
            checked[key] = _check_weights(where, value, classes)
            continue
        if kind == "bool":
            if not isinstance(value, bool):
                raise RequestError(f"{where}={value} must be true or false")
        else:
            least, most = float(kind[0]), float(kind[1])
            if not _is_number(value) or not least <= value <= most:
                limits = f"from {least:g} to {most:g}" if math.isfinite(most) else f"of at least {least:g}"
                raise RequestError(f"{where}={value} must be a number {limits}")

        checked[key] = value

    return checked


def _adapt_loss(
    function: Callable[..., Tensor], name: str, reduction: str, arguments: Mapping[str, Any]
) -> Callable[..., Tensor]:
    """Give the user's loss the signature of torch's; RequestError for a class, or if it lacks the reduction."""
    if inspect.isclass(function):
        raise RequestError(
            f"task.loss={name} is a class; name a function of outputs and targets, or a class that is an nn.Module"
        )

    # A module's own signature takes anything.
    called = function.forward if isinstance(function, nn.Module) else function
    if "reduction" in inspect.signature(called).parameters:
        return functools.partial(function, **arguments) if arguments else function
    # Torch's losses are modules that have been built with their reduction.
    if reduction != "mean" and getattr(function, "reduction", None) != reduction:
        raise RequestError(f"task.loss={name} has no parameter reduction; give it one, or leave out task.reduction")
    return lambda outputs, targets, reduction: function(outputs, targets, **arguments)


def _strip_subclass(tensor: Tensor) -> Tensor:
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


def _add_blocks(blocks: list[MetricSums]) -> MetricSums:
    """Add blocks up in their order; values named `all_*` are concatenated."""
    if len(blocks) == 1:
        return dict(blocks[0])

    sums: MetricSums = {}
    for name, value in blocks[0].items():
        if name.startswith("all_"):
            sums[name] = torch.cat([block[name] for block in blocks])
            continue
        for block in blocks[1:]:
            value = value + block[name]
        sums[name] = value

    return sums


def _concatenate(parts: tuple[Tensor, ...]) -> Tensor:
    """Concatenate batches; sequences are padded to the longest of all."""
    # All of one shape, except perhaps for the number of rows.
    if parts[0].dim() == 1 or len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(parts)

    length = max(part.shape[1] for part in parts)
    fill = 0.0 if parts[0].is_floating_point() else PADDING
    padded = []
    for part in parts:
        # Pairs of (before, after) from the last dimension to dimension 1, which is the sequence.
        padding = [0, 0] * (part.dim() - 2) + [0, length - part.shape[1]]
        padded.append(F.pad(part, padding, value=fill))
    return torch.cat(padded)
