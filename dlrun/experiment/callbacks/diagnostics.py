"""Learning trouble, said aloud at the epoch where it shows."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.data.batches import Batches, LoaderBatches
from dlrun.data.spec import DataSpec
from dlrun.engine import device
from dlrun.engine.callback import Callback, EpochSummary
from dlrun.engine.evaluation import evaluating, rows_of
from dlrun.engine.state import TrainState
from dlrun.experiment.callbacks import diagnose
from dlrun.experiment.callbacks.diagnose import Rows, Said
from dlrun.experiment.context import RunContext

# Enough that a unit which 2 % of the rows wake is seen awake; fewer for a net that would need a second for them.
_ROWS, _FEWEST_ROWS, _MULTIPLY_ADDS = 256, 32, 2e9
# Every epoch is looked at up to this one, then ever fewer: a look takes a millisecond, and so may an epoch.
_EVERY_UP_TO = 50
# So long must learning have come to nothing: three epochs may be three steps of gradient descent.
_IDLE_EPOCHS, _IDLE_STEPS = 3, 200
# A sigmoid at least quarters a gradient: this is what five of them leave of it.
_VANISHED = 1e-3
# Small layers learn well with two ReLUs of four dead; healthy wide ones were seen with a fifth dead.
_DEAD_SHARE = 0.8
# Normalized inputs have mean 0 and standard deviation 1; ten to thirty times that is no matter of taste.
_FAR_MEAN, _FAR_STD = 10.0, 30.0
_OWN_SOFTMAX = ("cross_entropy", "scratch_cross_entropy")
_OWN_SIGMOID = ("bce_with_logits", "scratch_bce_with_logits")
_RESHAPING = ("View", "Reshape", "Squeeze", "Unsqueeze", "ToCopy")


class Diagnostics(Callback):
    """For every epoch of a run: looks at the curves, the gradients of the last step and what some training rows come
    to, and says each kind of trouble once, through `say` and among the run's notes.

    rows: of the epochs that have ended. What was said is part of the training's progress, so that a resumed run says
    what the uninterrupted one does. Model, modes and generators stay as they were.
    """

    phase = "evaluation"  # in the table of where the time went

    def __init__(self, parts: RunContext, rows: list[dict[str, float]], say: Callable[[str], None]) -> None:
        self.parts, self.rows, self.say = parts, rows, say
        self.lr = float(parts.settings.optimizer.arguments.get("lr") or 0.0)
        work = max(sum(layer.multiply_adds for layer in parts.layers), 1)  # for one row
        rng = device.rng_state()
        rows_to_ask = min(max(int(_MULTIPLY_ADDS / work), _FEWEST_ROWS), _ROWS)
        self.inputs, self.targets = _some_rows(parts.training.train, rows_to_ask)
        device.set_rng_state(rng)
        parts.notes += [said for said in parts.training.progress.troubles.values() if said not in parts.notes]

    def on_epoch_end(self, training: TrainState, summary: EpochSummary) -> None:
        """Look at an epoch, when it is one of those to look at."""
        row = summary.row
        self.rows.append({k: v if math.isfinite(v) else math.nan for k, v in row.items()})  # as they are read again
        epoch = int(row["epoch"])
        if epoch % (1 + epoch // _EVERY_UP_TO):
            return
        said = self.parts.training.progress.troubles
        for kind, sentence in self.troubles().items():
            if kind not in said:
                said[kind] = f"epoch {epoch}: {sentence}"
                self.parts.notes.append(said[kind])
                self.say(f"note: {said[kind]}")

    def troubles(self) -> Said:
        """All that shows now, said before or not."""
        parts = self.parts
        progress, scaler = parts.training.progress, parts.training.scaler
        # Under a loss scaler gradients that overflow are ordinary: the step is skipped, and the scale halved.
        model = None if scaler.is_enabled() else parts.model
        found = not_finite(self.rows[-1], progress.bad_gradient_step, model)
        found |= diagnose.overflowing(scaler.get_scale(), progress.step) if scaler.is_enabled() else {}
        rng = device.rng_state()
        outputs, awake = self.look(self.inputs)
        if len(self.rows) == 1:
            found |= far_inputs(self.inputs[0], parts.splits.spec, "normalize" in parts.settings.data.arguments)
            found |= self.squashed(outputs)
        device.set_rng_state(rng)
        found |= dead(awake) | diagnose.at_epoch(self.rows, self.lr, parts.baseline)
        idle = _idle(self.rows)
        if idle and diagnose.flat(idle, parts.baseline):
            found |= {} if {"dead", "stuck"} & found.keys() else vanishing(parts.model)
            found |= self.one_class(outputs, idle)
        return found

    @torch.no_grad()
    def look(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs for some rows, and for each layer of ReLUs which units any of the rows wakes: bool (units,)."""
        model, spec, keys = self.parts.model, self.parts.splits.spec, self.parts.settings.data_keys
        seen: dict[str, list[Tensor]] = defaultdict(list)

        def record(name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
            last = spec.kind == "tokens" or output.dim() == 2
            units = output if last else output.movedim(1, -1)  # (B, C, H, W) -> (B, H, W, C)
            seen[name].append((units > 0).flatten(0, -2).any(0))

        layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.ReLU | nn.ReLU6)]
        handles = [layer.register_forward_hook(partial(record, name)) for name, layer in layers]
        pieces = zip(*(torch.split(x, keys.eval_batch_size or _ROWS) for x in inputs), strict=True)
        try:
            with evaluating(model), self.parts.runtime.autocast():
                outputs = [model.forward(*rows).float() for rows in pieces]  # what compile has made knows no hooks
        finally:
            for handle in handles:
                handle.remove()
        # A layer used twice with as many units is awake where one of its uses is; with others it is not judged.
        same = {name: uses for name, uses in seen.items() if len({len(units) for units in uses}) == 1}
        return torch.cat(outputs), {name: torch.stack(uses).any(0) for name, uses in same.items()}

    def squashed(self, outputs: Tensor) -> Said:
        """A softmax or a sigmoid at the end, though the loss has its own."""
        loss = self.parts.task.loss_name
        inside = bool(((outputs >= 0) & (outputs <= 1)).all())
        if loss in _OWN_SOFTMAX and inside and torch.allclose(outputs.sum(-1), torch.ones(()).to(outputs), atol=1e-2):
            return _squashed("a softmax", loss, "LogSoftmax", "nll")
        if loss in _OWN_SIGMOID and inside and self.last_operation().startswith("Sigmoid"):
            return _squashed("a sigmoid", loss, "Sigmoid", "bce")
        return {}

    @torch.enable_grad()
    def last_operation(self) -> str:
        """What autograd calls the last thing that the model does to its numbers, reshaping aside."""
        model = self.parts.model
        with evaluating(model), self.parts.runtime.autocast():
            node = model.forward(*(x[:2] for x in self.inputs)).grad_fn
        while node is not None and node.name().startswith(_RESHAPING):
            node = node.next_functions[0][0]
        return "" if node is None else str(node.name())

    def one_class(self, outputs: Tensor, idle: Rows) -> Said:
        """The same answer to every row, for as long as the accuracy has not moved."""
        parts = self.parts
        split = "train" if parts.training.val is None else "val"
        code = diagnose.only_answer(parts.task.predictions(outputs), self.targets, parts.splits.spec)
        if code is None or len({row[f"{split}/accuracy"] for row in idle}) > 1:
            return {}
        share = idle[-1][f"{split}/accuracy"]
        since = next(row for row in self.rows if row[f"{split}/accuracy"] == share)
        where = f"all {split} rows since epoch {int(since['epoch'])}"
        return diagnose.one_class(code, where, share, parts.baseline.get(f"{split}/accuracy"), parts.splits.spec)


def _some_rows(train: Batches, most: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Training rows where they lie; from files the fewest, which are read here before workers would have started."""
    if isinstance(train, LoaderBatches):
        return rows_of(
            LoaderBatches(train.dataset, train.order, train.place, workers=0, check=train.check), _FEWEST_ROWS
        )
    return rows_of(train, most)


def _idle(rows: Rows) -> Rows:
    """The last rows that span _IDLE_EPOCHS and _IDLE_STEPS; none where the run is too young."""
    for i in range(len(rows) - 1 - _IDLE_EPOCHS, -1, -1):
        if rows[-1]["step"] - rows[i]["step"] >= _IDLE_STEPS:
            return rows[i:]
    return []


def not_finite(row: Mapping[str, float], gradient_step: int | None, model: nn.Module | None) -> Said:
    """A gradient or a validation loss of nan or inf, where the training loss did not tell.

    gradient_step: the first log point at which the gradient was not finite. model: None leaves the gradients of the
    last step alone.
    """
    step, what = gradient_step, "gradient"
    parameters = [] if model is None else list(model.parameters())
    gradients = [p.grad for p in parameters if p.grad is not None]
    if step is None and gradients and not nn.utils.get_total_norm(gradients).isfinite():
        step = int(row["step"])
    if step is None and not math.isfinite(row.get("val/loss", 0.0)):
        step, what = int(row["step"]), "validation loss"
    if step is None:
        return {}
    return {
        "not finite": f"the {what} is not finite since step {step}; "
        "try a smaller optimizer.lr, trainer.grad_clip_norm=1, or inputs of a size around 1"
    }


def far_inputs(x: Tensor, spec: DataSpec, can_normalize: bool) -> Said:
    """Inputs (N, features) or (N, C, H, W) of which a feature or channel is far from mean 0 and deviation 1."""
    if spec.kind == "tokens":
        return {}
    values = x.float().movedim(1, -1).flatten(0, -2)  # (rows, features or channels)
    mean, std = values.mean(0), values.std(0, correction=0)
    far = (mean.abs() / _FAR_MEAN).maximum(std / _FAR_STD)
    worst, count = int(far.argmax()), int((far > 1).sum())
    if count == 0:
        return {}
    things = "channel" if spec.kind == "image" else "feature"
    name = f"{things} {spec.feature_names[worst] if worst < len(spec.feature_names) else worst}"
    all_of_them = f"{count} of {len(far)} {things}s are" if count > 1 else f"{name} is"
    what = "type data.normalize=true" if can_normalize else "subtract its mean and divide by its deviation in the data"
    return {
        "inputs": f"{all_of_them} far from normalized: {name} has mean {mean[worst]:.4g} and standard deviation "
        f"{std[worst]:.4g}, and optimizers expect about 0 and 1; {what}"
    }


def dead(awake: Mapping[str, Tensor]) -> Said:
    """The layer with the largest share of ReLUs that no row wakes, when that is a large one."""
    silent = {name: int((~units).sum()) for name, units in awake.items()}
    worst = max(silent, key=lambda name: silent[name] / len(awake[name]), default=None)
    if worst is None or silent[worst] < _DEAD_SHARE * len(awake[worst]):
        return {}
    return {
        "dead": f"dead ReLUs: {silent[worst]} of {len(awake[worst])} in layer {worst} give 0 for every row looked "
        "at, so they learn no more; try a smaller optimizer.lr, another seed, or leaky_relu in place of relu"
    }


def vanishing(model: nn.Module) -> Said:
    """The weights with the smallest gradients (root mean square), when the largest are a thousand times theirs."""
    weights = {n: p.grad for n, p in model.named_parameters() if p.grad is not None and p.dim() > 1}
    if len(weights) < 3:  # what passes one activation cannot vanish on its way: that is a saddle
        return {}
    sizes = torch.stack([nn.utils.get_total_norm([g]) / math.sqrt(g.numel()) for g in weights.values()]).tolist()
    least, most = min(sizes), max(sizes)
    if not math.isfinite(most):  # of a step that the loss scaler skipped
        return {}
    if not 0 < least < _VANISHED * most:  # none at all is a saddle, or dead units
        return {}
    names = list(weights)
    where, beside = names[sizes.index(least)], names[sizes.index(most)]
    return {
        "vanishing": f"vanishing gradients: the training loss stands still, and {where} gets gradients of {least:.2g} "
        f"where {beside} gets {most:.2g}; try relu in place of sigmoid, fewer layers, or model=resnet"
    }


def _squashed(what: str, loss: str, layer: str, other: str) -> Said:
    return {
        "squashed": f"the model ends in {what}, but task.loss={loss} takes logits and has its own; "
        f"leave it out, or end in {layer} and type task.loss={other}"
    }
