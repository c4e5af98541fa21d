"""What is learned: loss, predictions and metrics for regression, binary, multiclass and tagging.

Metrics are sums on the device, reduced once at the end: a short last batch weighs what it holds.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.core.errors import RequestError, RunError
from dlrun.core.suggest import did_you_mean
from dlrun.data.spec import PADDING, DataSpec
from dlrun.engine import metrics
from dlrun.engine.losses import LOSSES
from dlrun.engine.metrics import MetricSums

_ON_PROBABILITIES = ("bce", "scratch_bce")  # the other binary losses take a logit
FLUSH_BATCHES = 64  # outputs are kept as they come and reduced in one go: 64 small reductions cost more


def _called(function: Callable[..., Tensor], name: str, reduction: str) -> Callable[..., Tensor]:
    """A loss of the user's as torch's are called; RequestError for a class, and where it cannot do the reduction."""
    if inspect.isclass(function):
        raise RequestError(f"task.loss={name} is a class; name a function of outputs and targets")
    if "reduction" in inspect.signature(function).parameters:
        return function
    if reduction != "mean":
        raise RequestError(f"task.loss={name} has no parameter reduction; give it one, or leave out task.reduction")
    return lambda outputs, targets, reduction: function(outputs, targets)


@dataclass(frozen=True)
class Objective:
    """Loss and metrics for one kind of target.

    loss_name: null for the task's own (mse, bce_with_logits, cross_entropy); `bce` and `scratch_bce` take
    probabilities, `nll` log-probabilities as the model's output; `scratch_*` have a hand-written backward.
    reduction: `mean` or `sum` over a batch is minimized; the metric `loss` is the mean over samples either way.
    own_loss: a function of the user's that loss_name names, of outputs and targets as torch's losses take them (logits,
    (N,) for binary), and of `reduction` if it has it; it returns the mean over the batch, or what reduction says.
    """

    spec: DataSpec
    loss_name: str | None = None
    reduction: str = "mean"
    own_loss: Callable[..., Tensor] | None = None
    loss_function: Callable[..., Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        known = LOSSES[self.spec.task]
        name = self.loss_name or next(iter(known))
        if self.own_loss is not None:
            known = {name: _called(self.own_loss, name, self.reduction)}
        if name not in known:
            hint = did_you_mean(name, known)
            raise RequestError(
                f"task.loss={name} is no loss for {self.spec.task}; {hint}type one of {', '.join(known)}, "
                "or module.function for one of yours"
            )
        object.__setattr__(self, "loss_name", name)
        object.__setattr__(self, "loss_function", known[name])

    @property
    def loss_module(self) -> nn.Module | None:
        """The module that the user's own loss is, or is a method of: checkpoints hold its state."""
        owner = getattr(self.own_loss, "__self__", self.own_loss)
        return owner if isinstance(owner, nn.Module) else None

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Without the split's name in front; top-5 accuracy says something from 10 classes on."""
        names = metrics.METRIC_NAMES[self.spec.task]
        few = self.spec.output_size < 10
        return tuple(n for n in names if not (few and n == "top5_accuracy"))

    def compute_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The scalar to minimize over one batch: outputs as the model gives them, targets as in DataSpec.

        Without any targets it is 0: see MemoryBatches.
        """
        if not targets.numel():
            return 0.0 * outputs.sum()
        if self.spec.task == "binary":
            outputs, targets = outputs.squeeze(-1), targets.to(outputs.dtype)
        if self.spec.task in ("binary", "regression") and outputs.shape != targets.shape:
            # torch would stretch one to the other, and compare every number with every other.
            raise RunError(
                f"the model's outputs {tuple(outputs.shape)} and the targets {tuple(targets.shape)} of a batch differ "
                f"in shape; return spec.output_size={self.spec.output_size} numbers a row"
            )
        if self.spec.task == "tagging":
            outputs, targets = outputs.flatten(0, 1), targets.flatten()
        return self.loss_function(outputs, targets, reduction=self.reduction)

    def count_targets(self, targets: Tensor) -> Tensor | int:
        """What a batch counts in a mean: its values, or its tags that are not padding (a tensor: no sync)."""
        return (targets != PADDING).sum() if self.spec.task == "tagging" else targets.numel()

    def count_targets_of_each(self, batches: Sequence[Tensor]) -> Tensor:
        """The weight of each of several batches' targets."""
        if self.spec.task == "tagging":
            return torch.stack([(targets != PADDING).sum() for targets in batches])
        return torch.tensor([targets.numel() for targets in batches])

    def compute_probabilities(self, outputs: Tensor) -> Tensor:
        """Class probabilities (N, ..., classes); for binary (N,) of class 1."""
        if self.spec.task == "binary":
            outputs = outputs.squeeze(-1)
            return outputs if self.loss_name in _ON_PROBABILITIES else outputs.sigmoid()
        return outputs.exp() if self.loss_name == "nll" else outputs.softmax(-1)

    def predict(self, outputs: Tensor) -> Tensor:
        """Values for regression, class numbers otherwise."""
        if self.spec.task == "regression":
            return outputs
        if self.spec.task == "binary":
            return (outputs.squeeze(-1) > (0.5 if self.loss_name in _ON_PROBABILITIES else 0.0)).long()
        return outputs.argmax(-1)

    def compute_sums(self, outputs: Tensor, targets: Tensor) -> MetricSums:
        """What the metrics need of some rows; adds up over batches (keys in `all_*` are concatenated)."""
        if self.spec.task == "binary":
            return metrics.binary_sums(outputs, self.predict(outputs), targets)
        return metrics.SUMS[self.spec.task](outputs, targets)

    def compute_metrics(self, sums: MetricSums) -> dict[str, float]:
        """The metrics of everything that was summed."""
        host = {k: v.cpu() for k, v in sums.items()}  # the one sync
        return {"loss": metrics.divide(host["loss"], host["weight"])} | metrics.METRICS[self.spec.task](host)

    def new_accumulator(self, flush_batches: int = FLUSH_BATCHES) -> "MetricAccumulator":
        """A fresh sum, reduced every so many batches."""
        return MetricAccumulator(self, flush_batches)

    def fit_constant_outputs(self, targets: Tensor) -> Tensor:
        """The trivial baseline, learnt from training targets: outputs (1, ...) that ignore the input.

        The mean for regression; the classes' frequencies otherwise, so that the majority class is
        predicted and the loss is the entropy of guessing by frequency.
        """
        if self.spec.task == "regression":
            return metrics.widen(targets).mean(0, keepdim=True)
        flat = targets[targets != PADDING].flatten()
        counts = torch.bincount(flat, minlength=max(self.spec.output_size, 2)).double() + 1e-9
        shares = counts / counts.sum()
        if self.spec.task == "binary":
            return shares[1:] if self.loss_name in _ON_PROBABILITIES else shares[1:].logit()
        return shares.log().unsqueeze(0)

    def compute_baseline(self, train_targets: Tensor, targets: Tensor) -> dict[str, float]:
        """The metrics on `targets` of the constant learnt from `train_targets`."""
        outputs = self.fit_constant_outputs(train_targets).expand(*targets.shape[:2], -1)
        if self.spec.task != "tagging":
            outputs = self.fit_constant_outputs(train_targets).expand(len(targets), -1)
        wide = targets.double() if targets.is_floating_point() else targets
        loss = self.compute_loss(outputs, wide)
        if not isinstance(loss, Tensor):  # of a function of the user's, which is called here first
            raise RequestError(f"task.loss={self.loss_name} must return a tensor, not {type(loss).__name__}")
        totals = self.new_accumulator()
        totals.add(outputs, wide, loss)
        return totals.compute_metrics()


class MetricAccumulator:
    """Loss and metric sums of an epoch so far.

    Outputs are kept by reference and reduced every so many batches, a block, so a step costs a list append. The
    state holds the unreduced ones too: a resumed epoch adds up in the same order, to the same bits.
    """

    def __init__(self, task: Objective, flush_batches: int = FLUSH_BATCHES) -> None:
        self.task, self.flush_batches = task, flush_batches
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self.blocks: list[MetricSums] = []

    def add(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> None:
        """One batch: detached outputs, targets, and the scalar that `Task.loss` gave."""
        # A net may answer with a tensor of a class of its own, which checkpoints do not hold.
        self.waiting.append((_plain(outputs), targets, _plain(loss)))
        if len(self.waiting) >= self.flush_batches:
            self._flush()

    def _flush(self) -> None:
        outputs, targets, losses = zip(*self.waiting, strict=True)
        self.waiting = []
        loss = metrics.widen(torch.stack(losses))
        weights = self.task.count_targets_of_each(targets).to(loss)
        loss = loss if self.task.reduction == "sum" else loss * weights
        new = self.task.compute_sums(_joined(outputs), _joined(targets))
        self.blocks.append(new | {"loss": loss.sum(), "weight": weights.sum()})

    def compute_metrics(self, gathered: Callable[[list[MetricSums]], list[MetricSums]] = list) -> dict[str, float]:
        """Every metric of the task over all that was added; gathered: the blocks of all processes for one's own."""
        if self.waiting:
            self._flush()
        return self.task.compute_metrics(_folded(gathered(self.blocks)))

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, for a checkpoint in the middle of an epoch."""
        self.blocks = [_folded(self.blocks)] if self.blocks else []
        return {"waiting": [list(entry) for entry in self.waiting], "sums": dict(*self.blocks)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Add what `state_dict` of this or another process gave."""
        self.waiting += [(o.to(device), t.to(device), x.to(device)) for o, t, x in state["waiting"]]
        self.blocks += [{k: v.to(device) for k, v in state["sums"].items()}] if state["sums"] else []


def _plain(tensor: Tensor) -> Tensor:
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


def _folded(blocks: list[MetricSums]) -> MetricSums:
    """Blocks added up in their order; what `all_*` names is put one behind the other."""
    return {
        key: torch.cat([b[key] for b in blocks]) if key.startswith("all_") else sum((b[key] for b in blocks[1:]), first)
        for key, first in blocks[0].items()
    }


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    """Batches one after the other; sequences of another length are padded to the longest."""
    if len({p.shape[1:] for p in parts}) == 1:
        return torch.cat(parts)
    length = max(p.shape[1] for p in parts)
    fill = 0.0 if parts[0].is_floating_point() else PADDING
    grown = [F.pad(p, (*[0, 0] * (p.dim() - 2), 0, length - p.shape[1]), value=fill) for p in parts]
    return torch.cat(grown)
