"""Learning trouble: what curves, gradients and predictions say about how a run learns, and what to try.

Each trouble has a kind, such as `diverging`, and one sentence. `Diagnostics` looks at the epochs of a run;
`diagnose_run` judges the curves once more at the end, with the predictions on the split that is shown.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.data.batches import Batches, LoaderBatches
from dlrun.data.spec import PADDING, DataSpec
from dlrun.data.windows import is_series, name_naive_forecast
from dlrun.engine import device
from dlrun.engine.callback import Callback, TrainerView
from dlrun.engine.device import START_SCALE
from dlrun.engine.evaluation import collect_rows, evaluation_mode
from dlrun.engine.metrics import (
    compute_reconstruction_metrics,
    compute_reconstruction_sums,
    compute_regression_metrics,
    compute_regression_sums,
)
from dlrun.experiment.context import RunContext
from dlrun.experiment.preflight import final_activation
from dlrun.runs.logger import replace_infinite

# Rows of metrics.jsonl, from epoch 1 on.
Rows = Sequence[Mapping[str, float]]
# A sentence by its kind.
Troubles = dict[str, str]

# Why nothing was learnt: after these, that the result is no better than the trivial answer is no news.
_REASONS = {"diverging", "stuck", "one class", "vanishing", "dead", "overflowing"}

# --- Which epochs and rows the callback looks at ---

# Enough that a unit which 2 % of the rows wake is seen awake; fewer for a net that would need a second for them.
_ROWS = 256
_FEWEST_ROWS = 32
_MULTIPLY_ADDS = 2e9
# Every epoch is looked at up to this one, then ever fewer: a look takes a millisecond, and so may an epoch.
_EVERY_UP_TO = 50
# An epoch in which the steps do not pass a multiple of this is as a rule not looked at: a tiny net makes a few steps in
# the time of a look.
_STEPS_BETWEEN = 400
# Learning must have stood still for this long: three epochs may be three steps of gradient descent.
_IDLE_EPOCHS = 3
_IDLE_STEPS = 200

# --- Thresholds of the curves ---

# A loss within this share of the trivial answer's is 0 for all purposes: below it there is rounding alone.
_NEGLIGIBLE = 1e-6
# Noise of mini-batches makes a loss wander by some percent; twice the first one is another thing.
_GREW = 2.0
# Still growing is judged over this many epochs, so that one bad epoch at the end is not a trend.
_TREND_EPOCHS = 3
# Ten epochs of any gradient at all move a fp32 loss (24 bits, 6e-8) by more than this share.
_STUCK_EPOCHS = 10
_STUCK_CHANGE = 1e-6
# The validation loss must stay this share of its best above it, over more epochs than the patience that is proposed,
# so that it is not proposed to a run which that patience has ended.
_OVERFIT_RISE = 0.1
_PATIENCE = 3
# A change by 1 % of the trivial answer's loss can be seen in the other metrics, a smaller one not.
_VISIBLE = 0.01
# Training is far above validation where a loss is four times the other, and a twelfth of the trivial answer's apart:
# an MLP on all digits ends a fortieth apart and on 200 of them a tenth, a GRU on names a tenth too but 1.5 times.
_FAR_TIMES = 4.0
_FAR_SHARE = 1 / 12
# Still falling is judged by a line through the last third of the epochs, and never through fewer than this many.
_FALL_EPOCHS = 4
# It must have fallen by this share of the trivial answer's loss there, which other metrics show: an MLP on digits falls
# by 1 % in the last third of its 20 epochs, and with a hundredth of its rate by 10 %.
_FALL_SHARE = 0.03
# And by this many times the standard deviation around the line, since losses of small validation parts wander.
_FALL_TO_NOISE = 4.0
# A healthy loss scale stays within 2^0 and 2^16; this one was halved 26 times from its start.
_LOWEST_SCALE = 2.0**-10

# --- Thresholds of inputs, activations and gradients ---

# A sigmoid at least quarters a gradient: this is what five of them leave of it.
_VANISHED = 1e-3
# Small layers learn well with two ReLUs of four dead; healthy wide ones were seen with a fifth dead.
_DEAD_SHARE = 0.8
# Normalized inputs have mean 0 and standard deviation 1; ten to thirty times that is no matter of taste.
_FAR_MEAN = 10.0
_FAR_STD = 30.0
# Autograd's names of operations that only reshape or copy.
_RESHAPING = ("View", "Reshape", "Squeeze", "Unsqueeze", "ToCopy")


# Layers whose units may all be dead.
RELUS = (nn.ReLU, nn.ReLU6)


class Diagnostics(Callback):
    """Examines curves, gradients and some training rows after an epoch, and reports each kind of trouble once.

    A trouble is printed by `say` and added to the run's notes. Reported troubles are part of the training's progress,
    so that a resumed run reports what the uninterrupted one does. Model, modes and generators stay as they were.

    rows: rows of the epochs that have ended, to which this appends.
    """

    # In the table of trainer.profile.
    phase = "evaluation"

    def __init__(self, context: RunContext, rows: list[dict[str, float]], say: Callable[[str], None]) -> None:
        self.context = context
        self.rows = rows
        self.say = say
        hyperparameters = context.settings.hyperparameters
        self.lr: float | None = hyperparameters.get("optimizer.lr")
        self.batch_size: int = hyperparameters.get("data.eval_batch_size") or _ROWS
        self.can_normalize = "data.normalize" in hyperparameters

        work_per_row = max(context.preflight.multiply_adds, 1)
        row_count = min(max(int(_MULTIPLY_ADDS / work_per_row), _FEWEST_ROWS), _ROWS)
        # Reading rows may draw numbers (augmentation), which the training must not notice.
        with device.preserve_rng_state():
            self.inputs, self.targets = _read_rows(context.state.train, row_count)
        # Without ReLUs only the outputs are examined, and only in some epochs.
        self.has_relus = any(isinstance(layer, RELUS) for layer in context.state.model.modules())

        troubles = context.state.progress.troubles
        context.notes.extend([note for note in troubles.values() if note not in context.notes])

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        """Examine the epoch, if it is one of those to examine."""
        # Without infinite values, as metrics.jsonl has none when it is read again.
        self.rows.append(replace_infinite(row))
        number = int(row["epoch"])
        if not self.is_examined(number):
            return

        reported = self.context.state.progress.troubles
        for kind, sentence in self.find_troubles().items():
            if kind not in reported:
                note = f"epoch {number}: {sentence}"
                reported[kind] = note
                self.context.notes.append(note)
                self.say(f"note: {note}")

    def is_examined(self, number: int) -> bool:
        """Whether to examine the epoch of this number, which has just ended."""
        # A short run of few steps an epoch is looked at as often as it doubles its length.
        is_power_of_two = number & (number - 1) == 0
        earlier_step = self.rows[-2]["step"] if len(self.rows) > 1 else 0
        has_steps = self.rows[-1]["step"] // _STEPS_BETWEEN > earlier_step // _STEPS_BETWEEN
        return is_power_of_two or (has_steps and number % (1 + number // _EVERY_UP_TO) == 0)

    def find_troubles(self) -> Troubles:
        """All troubles that show now, reported before or not."""
        context = self.context
        progress = context.state.progress
        scaler = context.state.scaler

        troubles: Troubles = {}
        if scaler.is_enabled():
            # Under a loss scaler gradients that overflow are ordinary: the step is skipped, and the scale halved.
            troubles |= find_nonfinite(self.rows[-1], progress.bad_gradient_step, None)
            troubles |= find_overflow(scaler.get_scale(), progress.step)
        else:
            troubles |= find_nonfinite(self.rows[-1], progress.bad_gradient_step, context.state.model)

        idle = _take_idle_rows(self.rows)
        stands_still = bool(idle) and is_flat(idle, context.baseline)
        is_first = len(self.rows) == 1
        outputs = torch.empty(0)
        if self.has_relus or is_first or stands_still:
            outputs, awake = self.probe(self.inputs)
            if is_first:
                troubles |= find_far_inputs(self.inputs[0], context.splits.spec, self.can_normalize)
                loss = context.objective.loss_name
                with device.preserve_rng_state():
                    note = final_activation.find_redundant_function(outputs, loss, self.name_last_operation)
                if note is not None:
                    troubles[final_activation.TROUBLE] = note
            troubles |= find_dead_units(awake)

        troubles |= diagnose_epoch(self.rows, self.lr, context.baseline)
        if stands_still:
            if not {"dead", "stuck"} & troubles.keys():
                troubles |= find_vanishing_gradients(context.state.model)
            troubles |= self.find_single_class(outputs, idle)
        return troubles

    @torch.no_grad()
    def probe(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Send rows through the model in evaluation mode.

        Returns its outputs, and for each ReLU layer by name which units any of the rows wakes: bool (units,).
        """
        model = self.context.state.model
        spec = self.context.splits.spec
        uses: dict[str, list[Tensor]] = defaultdict(list)

        def record(name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
            units_are_last = spec.kind in ("tokens", "series") or output.dim() == 2
            # (B, C, H, W) -> (B, H, W, C)
            units = output if units_are_last else output.movedim(1, -1)
            # Over rows and positions: a unit is dead only where nothing wakes it.
            uses[name].append((units > 0).flatten(0, -2).any(0))

        layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, RELUS)]
        handles = [layer.register_forward_hook(partial(record, name)) for name, layer in layers]
        batches = zip(*(torch.split(x, self.batch_size) for x in inputs), strict=True)
        try:
            with device.preserve_rng_state(), evaluation_mode(model), self.context.runtime.autocast():
                # In this mode it is not compiled: a compiled model would not know these hooks.
                outputs = [model(*batch).float() for batch in batches]
        finally:
            for handle in handles:
                handle.remove()

        return torch.cat(outputs), merge_uses(uses)

    @torch.enable_grad()
    def name_last_operation(self) -> str:
        """Autograd's name of the model's last operation, reshaping aside; empty if no gradient flows."""
        model = self.context.state.model
        with evaluation_mode(model), self.context.runtime.autocast():
            node = model(*(x[:2] for x in self.inputs)).grad_fn
        while node is not None and node.name().startswith(_RESHAPING):
            node = node.next_functions[0][0]
        return "" if node is None else str(node.name())

    def find_single_class(self, outputs: Tensor, idle: Rows) -> Troubles:
        """Find one class predicted for every row while the accuracy of the `idle` epochs has not moved."""
        context = self.context
        spec = context.splits.spec
        split = "train" if context.state.val is None else "val"
        accuracy = f"{split}/accuracy"

        code = _find_only_class(context.objective.predict(outputs), self.targets, spec)
        # task.metrics may leave the accuracy out.
        if code is None or accuracy not in idle[-1] or len({row[accuracy] for row in idle}) > 1:
            return {}

        share = idle[-1][accuracy]
        first = next(row for row in self.rows if row[accuracy] == share)
        where = f"all {split} rows since epoch {int(first['epoch'])}"
        return _describe_single_class(code, where, share, context.baseline.get(accuracy), spec)


def _read_rows(train: Batches, most: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Up to `most` training rows; of a data set read from files the fewest, in this process, without workers."""
    if isinstance(train, LoaderBatches):
        batches = LoaderBatches(train.dataset, train.order, train.place, workers=0, check=train.check)
        return collect_rows(batches, _FEWEST_ROWS)
    return collect_rows(train, most)


def merge_uses(uses: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """The units of each layer that one of its uses wakes, bool (..., units).

    A layer used twice with other numbers of units is not judged.
    """
    awake: dict[str, Tensor] = {}
    for name, masks in uses.items():
        if len({mask.shape[-1] for mask in masks}) == 1:
            awake[name] = torch.stack(list(masks)).any(0)
    return awake


def _take_idle_rows(rows: Rows) -> Rows:
    """The last rows that span _IDLE_EPOCHS and _IDLE_STEPS; empty if the run is too young."""
    for i in range(len(rows) - 1 - _IDLE_EPOCHS, -1, -1):
        if rows[-1]["step"] - rows[i]["step"] >= _IDLE_STEPS:
            return rows[i:]
    return []


def diagnose_run(
    rows: Rows,
    split: str,
    predicted: Tensor | None,
    targets: Tensor | None,
    spec: DataSpec,
    lr: float | None,
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
    reported: Collection[str] = (),
) -> Troubles:
    """The troubles that a whole run shows, without the kinds `reported` while it learnt; empty if all looks well.

    predicted and targets: of `split`, by the best weights; class numbers (N,), for tagging (N, T), and for regression
    values (N, columns). lr: optimizer.lr, None without one. metrics and baseline: of the model and of the trivial
    answer, with keys such as "test/accuracy"; metrics count only where `predicted` is None, since those of the training
    split were measured during training.
    """
    troubles = find_divergence(rows, lr, baseline) | _find_stuck_loss(rows, baseline)
    troubles |= _find_single_class(split, predicted, targets, spec, baseline)
    if not _REASONS & {*troubles, *reported}:
        troubles |= _find_trivial_result(split, predicted, targets, spec, metrics, baseline)
    troubles |= find_overfitting(rows, baseline)
    return {kind: sentence for kind, sentence in troubles.items() if kind not in reported}


def diagnose_epoch(rows: Rows, lr: float | None, baseline: Mapping[str, float]) -> Troubles:
    """The troubles that the curves show in the middle of a run."""
    troubles: Troubles = {}
    # Two rising epochs are no trend yet.
    if len(rows) > _TREND_EPOCHS:
        troubles |= find_divergence(rows, lr, baseline)
    return troubles | _find_stuck_loss(rows, baseline) | find_overfitting(rows, baseline)


def find_divergence(rows: Rows, lr: float | None, baseline: Mapping[str, float]) -> Troubles:
    """Find a training loss that is twice the first one and has grown in each of the last epochs.

    lr: optimizer.lr, None where the optimizer has no such setting.
    """
    losses = [row["train/loss"] for row in (*rows[:1], *rows[1:][-1 - _TREND_EPOCHS :])]
    if len(losses) < 2 or not losses[-1] > max(_GREW * losses[0], _compute_negligible_loss(baseline)):
        return {}
    if not all(before < after for before, after in pairwise(losses[-1 - _TREND_EPOCHS :])):
        return {}

    advice = "so its steps are too large; try smaller ones, or optimizer=adam"
    if lr:
        advice = f"so optimizer.lr={lr:g} is too large; try a tenth of it, optimizer.lr={lr / 10:g}"
    return {
        "diverging": f"diverging: the training loss grew from {losses[0]:.4g} to {losses[-1]:.4g} in {len(rows)} "
        f"epochs, {advice}"
    }


def _find_stuck_loss(rows: Rows, baseline: Mapping[str, float]) -> Troubles:
    """Find a training loss that has not moved since the first epoch."""
    losses = [row["train/loss"] for row in rows]
    if len(losses) < _STUCK_EPOCHS or abs(losses[-1]) <= _compute_negligible_loss(baseline):
        return {}
    if not max(losses) - min(losses) < _STUCK_CHANGE * abs(losses[-1]):
        return {}
    return {
        "stuck": f"stuck: the training loss stayed at {losses[-1]:.4g} for all {len(rows)} epochs, as on a saddle or "
        "with dead units; try another seed, a smaller data.batch_size (its noise leaves a saddle), or a larger "
        "optimizer.lr"
    }


def _compute_negligible_loss(baseline: Mapping[str, float]) -> float:
    return _NEGLIGIBLE * abs(baseline.get("train/loss", 1.0))


def find_overflow(scale: float, steps: int, at_end: bool = False) -> Troubles:
    """Find fp16 gradients that overflow however small the loss is scaled, so that no step is made.

    scale: of the loss, after `steps` attempts to make a step. at_end: report it of a few steps too, if all were
    skipped.
    """
    all_skipped = scale <= START_SCALE * 0.5**steps
    is_hopeless = scale < _LOWEST_SCALE or (at_end and steps and all_skipped)
    if not is_hopeless:
        return {}

    skipped = f"all {steps} steps were skipped" if all_skipped else "most steps are skipped"
    return {
        "overflowing": f"the gradients overflow in fp16 even with a loss scale of {scale:.2g}, so {skipped}; "
        "try device.precision=bf16, or a smaller loss"
    }


def find_overfitting(rows: Rows, baseline: Mapping[str, float]) -> Troubles:
    """Find a validation loss that rises, or stands still far above the training loss, while the latter falls."""
    losses = [row["val/loss"] for row in rows if "val/loss" in row]
    if len(losses) != len(rows) or len(losses) <= _PATIENCE + 1:
        return {}
    lowest = min(losses)
    visible = _VISIBLE * abs(baseline.get("val/loss", 0.0))

    # It rises: for longer than the patience it has been well above its best.
    best = losses.index(lowest)
    fell = rows[-1]["train/loss"] < rows[best]["train/loss"]
    if fell and min(losses[-_PATIENCE - 1 :]) > lowest + max(_OVERFIT_RISE * lowest, visible):
        cause = f"the validation loss rose from {lowest:.4g} to {losses[-1]:.4g} while the training loss kept falling"
        return _describe_overfitting(int(rows[best]["epoch"]), cause)

    # It stands still: since it came near its best, training alone has improved.
    start = next((i for i, loss in enumerate(losses) if loss <= lowest + visible), best)
    first_loss = rows[start]["train/loss"]
    last_loss = rows[-1]["train/loss"]
    least_gap = max(_FAR_SHARE * abs(baseline.get("val/loss", math.inf)), (_FAR_TIMES - 1) * last_loss)
    is_long = len(losses) - 1 - start > _PATIENCE
    if is_long and first_loss - last_loss > visible and losses[-1] - last_loss > least_gap:
        cause = (
            f"the validation loss stays at {losses[-1]:.4g} while the training loss fell from {first_loss:.4g} to "
            f"{last_loss:.4g}"
        )
        return _describe_overfitting(int(rows[start]["epoch"]), cause)
    return {}


def find_unfinished_fall(rows: Rows, baseline: Mapping[str, float]) -> Troubles:
    """Find a validation loss that fell to the last epoch, clearly and by more than noise."""
    losses = [row["val/loss"] for row in rows if "val/loss" in row]
    count = max(len(losses) // 3, _FALL_EPOCHS)
    if len(losses) != len(rows) or len(losses) < 2 * count or "val/loss" not in baseline:
        return {}
    last = losses[-count:]
    if not all(map(math.isfinite, last)):
        return {}

    epochs = range(count)
    slope, start = statistics.linear_regression(epochs, last)
    fall = -slope * (count - 1)
    noise = statistics.pstdev(loss - start - slope * epoch for epoch, loss in zip(epochs, last, strict=True))
    # One of the last epochs is the best of all: a loss may also fall back from a peak.
    is_lowest = min(last[-_FALL_EPOCHS // 2 :]) <= min(losses)
    if not is_lowest or fall < max(_FALL_SHARE * abs(baseline["val/loss"]), _FALL_TO_NOISE * noise):
        return {}
    first = int(rows[-count]["epoch"])
    return {
        "unfinished": f"the validation loss was still falling at the end, from {last[0]:.4g} in epoch {first} to "
        f"{last[-1]:.4g} in epoch {first + count - 1}; go on by dlrun resume, or try a new run, with "
        f"trainer.epochs={2 * len(rows)}"
    }


def _describe_overfitting(epoch: int, cause: str) -> Troubles:
    return {
        "overfitting": f"overfitting since epoch {epoch}: {cause}; the best weights are kept; try "
        f"trainer.early_stopping.patience={_PATIENCE}, more data, a smaller model, or dropout"
    }


def is_flat(rows: Rows, baseline: Mapping[str, float]) -> bool:
    """Whether the training loss hardly moves, and is no better than the trivial answer's (if that is known)."""
    losses = [row["train/loss"] for row in rows]
    trivial = baseline.get("train/loss", losses[0])
    visible = _VISIBLE * abs(trivial)
    return max(losses) - min(losses) < visible and min(losses) > trivial - visible


def _find_single_class(
    split: str, predicted: Tensor | None, targets: Tensor | None, spec: DataSpec, baseline: Mapping[str, float]
) -> Troubles:
    """Find one class predicted for every row, where more than one would be right."""
    if predicted is None or targets is None:
        return {}
    code = _find_only_class(predicted, targets, spec)
    if code is None:
        return {}

    real_targets = targets[targets != PADDING]
    things = "positions" if spec.task == "tagging" else "rows"
    where = f"all {len(real_targets):,} {split} {things}"
    share = float((real_targets == code).double().mean())
    return _describe_single_class(code, where, share, baseline.get(f"{split}/accuracy"), spec)


def _find_only_class(predicted: Tensor, targets: Tensor, spec: DataSpec) -> int | None:
    """The one class that is predicted for all rows, where more than one would be right; None if they differ.

    predicted and targets: class numbers (N,), for tagging (N, T) with padding.
    """
    if spec.task in ("regression", "multilabel", "multitask"):
        return None
    is_real = targets != PADDING
    classes = predicted[is_real]
    real_targets = targets[is_real]
    if len(real_targets) == 0 or (classes != classes[0]).any() or (real_targets == real_targets[0]).all():
        return None
    return int(classes[0])


def _describe_single_class(code: int, where: str, share: float, majority: float | None, spec: DataSpec) -> Troubles:
    """The trouble of one predicted class.

    share: of right predictions. majority: of the most frequent class, if that is known.
    """
    name = repr(spec.class_names[code]) if code < len(spec.class_names) else f"class {code}"
    comparison = ""
    if majority is not None:
        comparison = f", and the majority class gives {100 * majority:.1f} %"
        if math.isclose(share, majority, abs_tol=1e-9):
            comparison = ", what the majority class gives"
    return {
        "one class": f"predicts {name} for {where}: {100 * share:.1f} % are right{comparison}; "
        "try optimizer=adam, a larger optimizer.lr, more trainer.epochs, or relu in place of sigmoid"
    }


def _find_trivial_result(
    split: str,
    predicted: Tensor | None,
    targets: Tensor | None,
    spec: DataSpec,
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
) -> Troubles:
    """Find a result no better than that of an answer which never looks at the input."""
    if spec.task == "regression":
        name = "r2"
        who = f"the {name_naive_forecast(spec)}" if is_series(spec) else "the mean"
    else:
        name = "accuracy"
        who = "how often each label occurs" if spec.task == "multilabel" else "the majority class"

    value = metrics.get(f"{split}/{name}")
    trivial = baseline.get(f"{split}/{name}")
    if predicted is not None and targets is not None:
        value = _score(predicted, targets, spec)
    if value is None or trivial is None or targets is None:
        return {}
    # Where all targets are the same the trivial answer is right, and r2 says nothing.
    if (targets == targets[:1]).all():
        return {}
    if value > (0.0 if spec.task == "regression" and not is_series(spec) else trivial):
        return {}
    return {
        "trivial": f"no better than the trivial answer: {split}/{name} is {value:.4f}, and {who} gives {trivial:.4f}; "
        "try more trainer.epochs, another optimizer.lr, or another model"
    }


def _score(predicted: Tensor, targets: Tensor, spec: DataSpec) -> float:
    """R² for regression, accuracy otherwise."""
    if spec.reconstructs:
        return compute_reconstruction_metrics(compute_reconstruction_sums(predicted, targets))["r2"]
    if spec.task == "regression":
        return compute_regression_metrics(compute_regression_sums(predicted, targets))["r2"]
    is_real = targets != PADDING
    return float((predicted[is_real] == targets[is_real]).double().mean())


def find_nonfinite(row: Mapping[str, float], gradient_step: int | None, model: nn.Module | None) -> Troubles:
    """Find a gradient or a validation loss of nan or inf, where the training loss did not tell.

    row: of the epoch that has ended. gradient_step: the first log point at which the gradient was not finite.
    model: None leaves the gradients of the last step alone.
    """
    quantity = "gradient"
    step = gradient_step
    if step is None and model is not None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if gradients and not nn.utils.get_total_norm(gradients).isfinite():
            step = int(row["step"])
    if step is None and not math.isfinite(row.get("val/loss", 0.0)):
        quantity = "validation loss"
        step = int(row["step"])
    if step is None:
        return {}
    return {
        "not finite": f"the {quantity} is not finite since step {step}; "
        "try a smaller optimizer.lr, trainer.grad_clip_norm=1, or inputs of a size around 1"
    }


def find_far_inputs(x: Tensor, spec: DataSpec, can_normalize: bool) -> Troubles:
    """Find inputs of which a feature or channel is far from mean 0 and standard deviation 1.

    x: (N, features), (N, C, H, W) or (N, T, features). can_normalize: whether the data set has a key `normalize`.
    """
    if spec.kind == "tokens":
        return {}

    # (rows, features or channels)
    x = x if spec.kind == "series" else x.movedim(1, -1)
    values = x.float().flatten(0, -2)
    mean = values.mean(0)
    std = values.std(0, correction=0)
    # Above 1 is far.
    distance = (mean.abs() / _FAR_MEAN).maximum(std / _FAR_STD)
    worst = int(distance.argmax())
    count = int((distance > 1).sum())
    if count == 0:
        return {}

    unit = "channel" if spec.kind == "image" else "feature"
    name = f"{unit} {spec.feature_names[worst] if worst < len(spec.feature_names) else worst}"
    subject = f"{count} of {len(distance)} {unit}s are" if count > 1 else f"{name} is"
    advice = "type data.normalize=true"
    if not can_normalize:
        advice = "subtract its mean and divide by its deviation in the data"
    return {
        "inputs": f"{subject} far from normalized: {name} has mean {mean[worst]:.4g} and standard deviation "
        f"{std[worst]:.4g}, and optimizers expect about 0 and 1; {advice}"
    }


def find_dead_units(awake: Mapping[str, Tensor]) -> Troubles:
    """Find the layer with the largest share of ReLUs that no row wakes, if that share is large.

    awake: by layer, which units any row wakes, bool (units,).
    """
    silent = {name: int((~units).sum()) for name, units in awake.items()}
    worst = max(silent, key=lambda name: silent[name] / len(awake[name]), default=None)
    if worst is None or silent[worst] < _DEAD_SHARE * len(awake[worst]):
        return {}
    return {
        "dead": f"dead ReLUs: {silent[worst]} of {len(awake[worst])} in layer {worst} give 0 for every row looked "
        "at, so they learn no more; try a smaller optimizer.lr, another seed, or leaky_relu in place of relu"
    }


def find_vanishing_gradients(model: nn.Module) -> Troubles:
    """Find weights whose gradients (root mean square) are a thousandth of the largest ones."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.dim() > 1}
    # Behind a single activation gradients do not vanish: small ones mean a saddle.
    if len(gradients) < 3:
        return {}

    norms = torch.stack(torch._foreach_norm(list(gradients.values()))).tolist()
    sizes = [norm / math.sqrt(grad.numel()) for norm, grad in zip(norms, gradients.values(), strict=True)]
    least = min(sizes)
    most = max(sizes)
    # Not finite: the loss scaler skipped the step. 0: a saddle, or dead units.
    if not math.isfinite(most) or not 0 < least < _VANISHED * most:
        return {}

    names = list(gradients)
    smallest = names[sizes.index(least)]
    largest = names[sizes.index(most)]
    return {
        "vanishing": f"vanishing gradients: the training loss stands still, and {smallest} gets gradients of "
        f"{least:.2g} where {largest} gets {most:.2g}; try relu in place of sigmoid, fewer layers, or model=resnet"
    }
