"""Learning trouble, said aloud: what the numbers of a finished run say about how it learnt, and what to try."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor

from dlrun.data.spec import DataSpec
from dlrun.metrics import PADDING, regression_metrics, regression_sums

# A loss within this share of the trivial answer's is 0 for all purposes: below it there is rounding alone.
_NEGLIGIBLE = 1e-6
# Noise of mini-batches makes a loss wander by some percent; twice the first one is another thing.
_GREW = 2.0
# Still growing is judged over this many epochs, so that one bad epoch at the end is not a trend.
_TREND_EPOCHS = 3
# Ten epochs of any gradient at all move a fp32 loss (24 bits, 6e-8) by more than this share.
_STUCK_EPOCHS, _STUCK_CHANGE = 10, 1e-6
# The validation loss must stay this share of its best above it, over more epochs than the patience that is proposed,
# so that a run which that patience has ended is not told again; and a rise by 1 % of the trivial answer's loss can
# be seen in the other metrics, a smaller one not.
_OVERFIT_RISE, _OVERFIT_VISIBLE, _PATIENCE = 0.1, 0.01, 3


def trouble(
    rows: Sequence[Mapping[str, float]],
    split: str,
    predicted: Tensor | None,
    targets: Tensor | None,
    spec: DataSpec,
    lr: float,
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
) -> list[str]:
    """A sentence for each trouble that a run shows, with what to try; empty when all looks well.

    rows: those of metrics.jsonl. predicted and targets: of `split`, the one that is shown, by the best weights;
    class numbers (N,), for tagging (N, T), and for regression values (N, columns). metrics and baseline: of the model
    and of the trivial answer, with keys such as "test/accuracy"; metrics count where predicted is null, for those of
    the training part were taken while it learnt.
    """
    said = [*_diverging(rows, lr, baseline), *_stuck(rows, baseline)]
    said += _one_class(split, predicted, targets, spec, baseline)
    said += [] if said else _trivial(split, predicted, targets, spec, metrics, baseline)
    return said + _overfitting(rows, baseline)


def _smallest(baseline: Mapping[str, float]) -> float:
    """A training loss up to this is 0."""
    return _NEGLIGIBLE * abs(baseline.get("train/loss", 1.0))


def _diverging(rows: Sequence[Mapping[str, float]], lr: float, baseline: Mapping[str, float]) -> list[str]:
    losses = [row["train/loss"] for row in rows]
    if len(losses) < 2 or not losses[-1] > max(_GREW * losses[0], _smallest(baseline)):
        return []
    end = losses[-1 - _TREND_EPOCHS :]
    if not all(a < b for a, b in pairwise(end)):
        return []
    return [
        f"diverging: the training loss grew from {losses[0]:.4g} to {losses[-1]:.4g} in {len(rows)} epochs, so "
        f"optimizer.lr={lr:g} is too large; try a tenth of it, optimizer.lr={lr / 10:g}"
    ]


def _stuck(rows: Sequence[Mapping[str, float]], baseline: Mapping[str, float]) -> list[str]:
    losses = [row["train/loss"] for row in rows]
    if len(losses) < _STUCK_EPOCHS or abs(losses[-1]) <= _smallest(baseline):
        return []
    if not max(losses) - min(losses) < _STUCK_CHANGE * abs(losses[-1]):
        return []
    return [
        f"stuck: the training loss stayed at {losses[-1]:.4g} for all {len(rows)} epochs, as on a saddle or with dead "
        "units; try another seed, a smaller data.batch_size (its noise leaves a saddle), or a larger optimizer.lr"
    ]


def _one_class(
    split: str, predicted: Tensor | None, targets: Tensor | None, spec: DataSpec, baseline: Mapping[str, float]
) -> list[str]:
    """One answer to every row, where more than one would be right."""
    if spec.task == "regression" or predicted is None or targets is None:
        return []
    real = targets != PADDING
    answers, wanted = predicted[real], targets[real]
    if len(wanted) == 0 or (answers != answers[0]).any() or (wanted == wanted[0]).all():
        return []
    code, share = int(answers[0]), float((answers == wanted).double().mean())
    name = repr(spec.class_names[code]) if code < len(spec.class_names) else f"class {code}"
    things = "positions" if spec.task == "tagging" else "rows"
    majority = baseline.get(f"{split}/accuracy")
    beside = "" if majority is None else f", and the majority class gives {100 * majority:.1f} %"
    if majority is not None and math.isclose(share, majority, abs_tol=1e-9):
        beside = ", what the majority class gives"
    return [
        f"predicts {name} for all {len(wanted):,} {split} {things}: {100 * share:.1f} % are right{beside}; "
        "try optimizer=adam, a larger optimizer.lr, more trainer.epochs, or relu in place of sigmoid"
    ]


def _trivial(
    split: str,
    predicted: Tensor | None,
    targets: Tensor | None,
    spec: DataSpec,
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
) -> list[str]:
    """No better than an answer that never looks at the input."""
    name, who = ("r2", "the mean") if spec.task == "regression" else ("accuracy", "the majority class")
    value, trivial = metrics.get(f"{split}/{name}"), baseline.get(f"{split}/{name}")
    if predicted is not None and targets is not None:
        value = _score(predicted, targets, spec)
    if value is None or trivial is None or targets is None or (targets == targets[:1]).all():
        return []  # where all targets are the same the trivial answer is right, and r2 says nothing
    if value > (0.0 if spec.task == "regression" else trivial):
        return []
    return [
        f"no better than the trivial answer: {split}/{name} is {value:.4f}, and {who} gives {trivial:.4f}; "
        "try more trainer.epochs, another optimizer.lr, or another model"
    ]


def _score(predicted: Tensor, targets: Tensor, spec: DataSpec) -> float:
    """R² for regression, accuracy otherwise."""
    if spec.task == "regression":
        return regression_metrics(regression_sums(predicted, targets))["r2"]
    real = targets != PADDING
    return float((predicted[real] == targets[real]).double().mean())


def _overfitting(rows: Sequence[Mapping[str, float]], baseline: Mapping[str, float]) -> list[str]:
    losses = [row["val/loss"] for row in rows if "val/loss" in row]
    if len(losses) != len(rows) or len(losses) <= _PATIENCE + 1:
        return []
    lowest = min(losses)
    best = losses.index(lowest)
    rise = max(_OVERFIT_RISE * lowest, _OVERFIT_VISIBLE * abs(baseline.get("val/loss", 0.0)))
    fell = rows[-1]["train/loss"] < rows[best]["train/loss"]
    if not fell or min(losses[-_PATIENCE - 1 :]) <= lowest + rise:
        return []
    return [
        f"overfitting after epoch {int(rows[best]['epoch'])}: the validation loss rose from {lowest:.4g} to "
        f"{losses[-1]:.4g} while the training loss kept falling; the best weights are kept, and "
        f"trainer.early_stopping.patience={_PATIENCE} stops there"
    ]
