"""Learning trouble: what a run's curves and answers say about how it learns, and what to try.

Each trouble has a kind, such as `diverging`, and one sentence. Curves are judged at every epoch that
diagnostics.py looks at, and once more at the end, with the answers on the split that is shown.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from torch import Tensor

from dlrun.data.spec import PADDING, DataSpec
from dlrun.engine.device import START_SCALE
from dlrun.engine.metrics import regression_metrics, regression_sums

Rows = Sequence[Mapping[str, float]]  # those of metrics.jsonl, from epoch 1 on
Said = dict[str, str]  # a sentence by its kind

# A loss within this share of the trivial answer's is 0 for all purposes: below it there is rounding alone.
_NEGLIGIBLE = 1e-6
# Noise of mini-batches makes a loss wander by some percent; twice the first one is another thing.
_GREW = 2.0
# Still growing is judged over this many epochs, so that one bad epoch at the end is not a trend.
_TREND_EPOCHS = 3
# Ten epochs of any gradient at all move a fp32 loss (24 bits, 6e-8) by more than this share.
_STUCK_EPOCHS, _STUCK_CHANGE = 10, 1e-6
# The validation loss must stay this share of its best above it, over more epochs than the patience that is proposed,
# so that a run which that patience has ended is not told again; and a change by 1 % of the trivial answer's loss can
# be seen in the other metrics, a smaller one not.
_OVERFIT_RISE, _VISIBLE, _PATIENCE = 0.1, 0.01, 3
# Training is far above validation where a loss is four times the other, and a twelfth of the trivial answer's apart:
# an MLP on all digits ends a fortieth apart and on 200 of them a tenth, a GRU on names a tenth too but 1.5 times.
_FAR_TIMES, _FAR_SHARE = 4.0, 1 / 12
# A healthy loss scale stays within 2^0 and 2^16; this one was halved 26 times from its start.
_LOWEST_SCALE = 2.0**-10
# Why nothing was learnt: after these, that the result is no better than the trivial answer is no news.
_REASONS = {"diverging", "stuck", "one class", "vanishing", "dead", "overflowing"}


def at_end(
    rows: Rows,
    split: str,
    predicted: Tensor | None,
    targets: Tensor | None,
    spec: DataSpec,
    lr: float,
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
    said: Collection[str] = (),
) -> Said:
    """The troubles that a whole run shows, without the kinds `said` while it learnt; empty when all looks well.

    predicted and targets: of `split`, the one that is shown, by the best weights; class numbers (N,), for tagging
    (N, T), and for regression values (N, columns). metrics and baseline: of the model and of the trivial answer,
    with keys such as "test/accuracy"; metrics count where predicted is null, for those of the training part were
    taken while it learnt.
    """
    found = diverging(rows, lr, baseline) | stuck(rows, baseline)
    found |= _one_class(split, predicted, targets, spec, baseline)
    if not _REASONS & {*found, *said}:
        found |= _trivial(split, predicted, targets, spec, metrics, baseline)
    found |= overfitting(rows, baseline)
    return {kind: sentence for kind, sentence in found.items() if kind not in said}


def at_epoch(rows: Rows, lr: float, baseline: Mapping[str, float]) -> Said:
    """The troubles that the curves show in the middle of a run, where two rising epochs are no trend yet."""
    growing = diverging(rows, lr, baseline) if len(rows) > _TREND_EPOCHS else {}
    return growing | stuck(rows, baseline) | overfitting(rows, baseline)


def _smallest(baseline: Mapping[str, float]) -> float:
    """A training loss up to this is 0."""
    return _NEGLIGIBLE * abs(baseline.get("train/loss", 1.0))


def diverging(rows: Rows, lr: float, baseline: Mapping[str, float]) -> Said:
    """The training loss is twice the first and has grown in each of the last epochs."""
    losses = [row["train/loss"] for row in (*rows[:1], *rows[1:][-1 - _TREND_EPOCHS :])]
    if len(losses) < 2 or not losses[-1] > max(_GREW * losses[0], _smallest(baseline)):
        return {}
    if not all(a < b for a, b in pairwise(losses[-1 - _TREND_EPOCHS :])):
        return {}
    return {
        "diverging": f"diverging: the training loss grew from {losses[0]:.4g} to {losses[-1]:.4g} in {len(rows)} "
        f"epochs, so optimizer.lr={lr:g} is too large; try a tenth of it, optimizer.lr={lr / 10:g}"
    }


def stuck(rows: Rows, baseline: Mapping[str, float]) -> Said:
    """The training loss has not moved since the first epoch."""
    losses = [row["train/loss"] for row in rows]
    if len(losses) < _STUCK_EPOCHS or abs(losses[-1]) <= _smallest(baseline):
        return {}
    if not max(losses) - min(losses) < _STUCK_CHANGE * abs(losses[-1]):
        return {}
    return {
        "stuck": f"stuck: the training loss stayed at {losses[-1]:.4g} for all {len(rows)} epochs, as on a saddle or "
        "with dead units; try another seed, a smaller data.batch_size (its noise leaves a saddle), or a larger "
        "optimizer.lr"
    }


def overflowing(scale: float, steps: int, at_end: bool = False) -> Said:
    """fp16 gradients that overflow however small the loss is scaled, so that no step is made.

    scale: of the loss, after `steps` tries to make a step. at_end: that all were skipped is said of few steps too.
    """
    all_skipped = scale <= START_SCALE * 0.5**steps
    if not (scale < _LOWEST_SCALE or (at_end and steps and all_skipped)):
        return {}
    skipped = f"all {steps} steps were skipped" if all_skipped else "most steps are skipped"
    return {
        "overflowing": f"the gradients overflow in fp16 even with a loss scale of {scale:.2g}, so {skipped}; "
        "try device.precision=bf16, or a smaller loss"
    }


def flat(rows: Rows, baseline: Mapping[str, float]) -> bool:
    """Whether the training loss of `rows` hardly moves, and is no better than the trivial answer (if that is known)."""
    losses = [row["train/loss"] for row in rows]
    trivial = baseline.get("train/loss", losses[0])
    visible = _VISIBLE * abs(trivial)
    return max(losses) - min(losses) < visible and min(losses) > trivial - visible


def _one_class(
    split: str, predicted: Tensor | None, targets: Tensor | None, spec: DataSpec, baseline: Mapping[str, float]
) -> Said:
    """One answer to every row, where more than one would be right."""
    code = None if predicted is None or targets is None else only_answer(predicted, targets, spec)
    if code is None or targets is None:
        return {}
    wanted = targets[targets != PADDING]
    things = "positions" if spec.task == "tagging" else "rows"
    share = float((wanted == code).double().mean())
    return one_class(code, f"all {len(wanted):,} {split} {things}", share, baseline.get(f"{split}/accuracy"), spec)


def only_answer(predicted: Tensor, targets: Tensor, spec: DataSpec) -> int | None:
    """The one class that all rows get, where more than one would be right; null where answers differ."""
    if spec.task == "regression":
        return None
    real = targets != PADDING
    answers, wanted = predicted[real], targets[real]
    if len(wanted) == 0 or (answers != answers[0]).any() or (wanted == wanted[0]).all():
        return None
    return int(answers[0])


def one_class(code: int, where: str, share: float, majority: float | None, spec: DataSpec) -> Said:
    """The sentence; share: of right answers, majority: of the most frequent class, if that is known."""
    name = repr(spec.class_names[code]) if code < len(spec.class_names) else f"class {code}"
    beside = "" if majority is None else f", and the majority class gives {100 * majority:.1f} %"
    if majority is not None and math.isclose(share, majority, abs_tol=1e-9):
        beside = ", what the majority class gives"
    return {
        "one class": f"predicts {name} for {where}: {100 * share:.1f} % are right{beside}; "
        "try optimizer=adam, a larger optimizer.lr, more trainer.epochs, or relu in place of sigmoid"
    }


def _trivial(
    split: str,
    predicted: Tensor | None,
    targets: Tensor | None,
    spec: DataSpec,
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
) -> Said:
    """No better than an answer that never looks at the input."""
    name, who = ("r2", "the mean") if spec.task == "regression" else ("accuracy", "the majority class")
    value, trivial = metrics.get(f"{split}/{name}"), baseline.get(f"{split}/{name}")
    if predicted is not None and targets is not None:
        value = _score(predicted, targets, spec)
    if value is None or trivial is None or targets is None or (targets == targets[:1]).all():
        return {}  # where all targets are the same the trivial answer is right, and r2 says nothing
    if value > (0.0 if spec.task == "regression" else trivial):
        return {}
    return {
        "trivial": f"no better than the trivial answer: {split}/{name} is {value:.4f}, and {who} gives {trivial:.4f}; "
        "try more trainer.epochs, another optimizer.lr, or another model"
    }


def _score(predicted: Tensor, targets: Tensor, spec: DataSpec) -> float:
    """R² for regression, accuracy otherwise."""
    if spec.task == "regression":
        return regression_metrics(regression_sums(predicted, targets))["r2"]
    real = targets != PADDING
    return float((predicted[real] == targets[real]).double().mean())


def overfitting(rows: Rows, baseline: Mapping[str, float]) -> Said:
    """The validation loss rises, or stands still far above the training loss, while the training loss falls."""
    losses = [row["val/loss"] for row in rows if "val/loss" in row]
    if len(losses) != len(rows) or len(losses) <= _PATIENCE + 1:
        return {}
    lowest, visible = min(losses), _VISIBLE * abs(baseline.get("val/loss", 0.0))
    best = losses.index(lowest)
    fell = rows[-1]["train/loss"] < rows[best]["train/loss"]
    if fell and min(losses[-_PATIENCE - 1 :]) > lowest + max(_OVERFIT_RISE * lowest, visible):
        how = f"the validation loss rose from {lowest:.4g} to {losses[-1]:.4g} while the training loss kept falling"
        return _overfitting(int(rows[best]["epoch"]), how)
    since = next((i for i, loss in enumerate(losses) if loss <= lowest + visible), best)
    before, now = rows[since]["train/loss"], rows[-1]["train/loss"]
    apart = max(_FAR_SHARE * abs(baseline.get("val/loss", math.inf)), (_FAR_TIMES - 1) * now)
    if len(losses) - 1 - since <= _PATIENCE or not (before - now > visible and losses[-1] - now > apart):
        return {}
    how = f"the validation loss stays at {losses[-1]:.4g} while the training loss fell from {before:.4g} to {now:.4g}"
    return _overfitting(int(rows[since]["epoch"]), how)


def _overfitting(epoch: int, how: str) -> Said:
    return {
        "overfitting": f"overfitting since epoch {epoch}: {how}; the best weights are kept; try "
        f"trainer.early_stopping.patience={_PATIENCE}, more data, a smaller model, or dropout"
    }
