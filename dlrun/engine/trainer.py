"""The one loop that trains everything: plain torch; no config, terminal or TensorBoard in it."""

import inspect
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dlrun.data.batches import Batch, Batches
from dlrun.engine import metrics
from dlrun.engine.callback import Callback, EpochSummary, collect_hooks
from dlrun.engine.distributed import SINGLE_PROCESS, Distributed
from dlrun.engine.objective import FLUSH_BATCHES, Objective
from dlrun.engine.state import TrainState

StepRecords = list[tuple[Tensor, Tensor, Tensor]]

# Called with the inputs, outputs and targets of a batch.
BatchHook = Callable[[tuple[Tensor, ...], Tensor, Tensor], None]


class Trainer:
    """Trains a state to its end, an epoch at a time, and tells callbacks what happened."""

    def __init__(self, state: TrainState, callbacks: Sequence[Callback], stop_requested: Callable[[], bool]) -> None:
        self.state = state
        self.callbacks = callbacks
        self.stop_requested = stop_requested
        self.hooks = collect_hooks(callbacks)

    def fit(self) -> str:
        """Train until the epochs, the steps or the patience are used up, or until a stop is requested.

        Returns the status: "completed", "early_stopped" or "interrupted". RunError when the loss is not finite.
        """
        state = self.state
        while state.progress.batch or not (state.is_done or state.is_out_of_patience):
            started = time.perf_counter()
            first_batch = state.progress.batch
            is_complete = self.train_epoch()

            # Once an epoch, so that the device's time is counted.
            state.synchronize()
            timings = state.progress.count(time.perf_counter() - started, state.train, first_batch)

            if state.progress.batch < len(state.train):
                # Save first: a resumed run must not contain the row of a partial epoch.
                self.call("on_interrupt", state)
                if not is_complete:
                    return "interrupted"
                self.call("on_partial_epoch")

            row = end_epoch(state)
            is_best = state.update_best(row[state.monitor])
            state.schedule.epoch_end(row[state.monitor])
            self.call("on_epoch_end", state, EpochSummary(row, timings, is_best))

            if self.stop_requested() and not (state.is_done or state.is_out_of_patience):
                self.call("on_interrupt", state)
                return "interrupted"

        return "completed" if state.is_done else "early_stopped"

    def train_epoch(self) -> bool:
        """Train the rest of the epoch under way, or of the steps; False when a stop ended it before.

        Nothing in a step waits for the device but the report at log points.
        """
        state = self.state
        state.model.train()
        needs_closure = requires_closure(state.optimizer)
        batches = state.train.epoch(state.progress.epoch + 1, start=state.progress.batch, pick=state.ranks.shard_batch)

        while not state.is_done:
            group = list(islice(batches, state.stop_rules.accumulate_steps))
            if not group:
                break

            # Outputs, targets and loss of each batch, as trained on.
            seen: StepRecords = []
            if needs_closure:
                state.optimizer.step(partial(compute_closure_loss, state, group, seen))  # type: ignore[arg-type]
            else:
                is_stepped_by_graph = state.graph_step is not None and state.graph_step(state, group, seen)
                if not is_stepped_by_graph:
                    backward(state, group, seen)
                    state.scaler.step(state.optimizer)
                    state.scaler.update()

            for outputs, targets, loss in seen:
                state.totals.add(outputs, targets, loss)
                state.recent_losses.append((state.progress.step + 1, loss))
            state.progress.step += 1
            state.progress.batch += len(group)
            if state.progress.step % state.stop_rules.log_every_steps == 0:
                self.call("on_log", state.progress.step, measure_step(state, seen))
            state.schedule.step_end()

            for on_step_end in self.hooks["on_step_end"]:
                on_step_end(state)
            if self.stop_requested():
                break

        state.check_finite()
        return state.is_done or state.progress.batch >= len(state.train)

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of all callbacks that have it, in their order."""
        for function in self.hooks[hook]:
            function(*arguments)


def end_epoch(t: TrainState) -> dict[str, float]:
    """Count the epoch under way as ended; returns its row: what training summed up, and the validation part."""
    t.progress.epoch, t.progress.batch = t.progress.epoch + 1, 0
    row: dict[str, float] = {"epoch": t.progress.epoch, "step": t.progress.step}
    row |= {f"train/{k}": v for k, v in t.totals.compute_metrics(t.ranks.gather_blocks).items()}
    t.totals = t.objective.new_accumulator()
    t.ranks.broadcast_buffers(t.model)
    if t.ema is not None:
        t.ranks.broadcast_buffers(t.ema.model)
    if t.val is not None:
        row |= evaluate_split(t, t.val, "val")
    return row | t.schedule.learning_rates() | t.get_parameter_values()


def evaluate_split(t: TrainState, batches: Batches, split: str, on_batch: BatchHook | None = None) -> dict[str, float]:
    """Metrics of a split, <split>/loss and so on, and <split>/ema_loss and so on with the averaged weights.

    on_batch: called with the batches of the model's own weights, see `evaluate`.
    """
    own = evaluate(t.model, batches, t.objective, t.autocast, t.ranks, on_batch)
    found = {f"{split}/{k}": v for k, v in own.items()}
    if t.ema is not None:
        averaged = evaluate(t.ema.model, batches, t.objective, t.autocast, t.ranks)
        found |= {f"{split}/ema_{k}": v for k, v in averaged.items()}
    return found


def backward(t: TrainState, group: list[Batch], seen: StepRecords) -> Tensor:
    """Gradients of one optimizer step: the mean over all rows of its batches, ragged or not, then clipped.

    Returns the loss (a scalar on the device). An optimizer with a closure may call this several times: the
    first pass is what `seen` keeps.
    """
    t.optimizer.zero_grad()
    record, losses = not seen, []
    for left, (inputs, targets), share in zip(
        range(len(group))[::-1], group, compute_batch_shares(t, group), strict=True
    ):
        t.ranks.sync_gradients(t.forward, until_last=left > 0)
        with t.autocast():
            outputs = t.forward(*inputs)
            loss = t.objective.compute_loss(outputs, targets)
        part = scale_loss(loss, share)
        t.scaler.scale(part).backward()  # type: ignore[no-untyped-call]
        losses.append(part.detach())
        if record:
            outputs = outputs if targets.numel() else outputs[:0]  # this process has no row of the batch
            seen.append((outputs.detach(), targets, losses[-1] if part is loss else loss.detach()))
    if t.stop_rules.grad_clip_norm is not None:
        t.scaler.unscale_(t.optimizer)
        t.grad_norm = nn.utils.clip_grad_norm_(t.model.parameters(), t.stop_rules.grad_clip_norm)
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def compute_closure_loss(t: TrainState, group: list[Batch], seen: StepRecords) -> Tensor:
    """`backward` as a closure for an optimizer that looks at the loss: it is that of all processes."""
    loss = backward(t, group, seen)
    return t.ranks.sum_over_ranks(loss) / t.ranks.world_size if t.ranks.world_size > 1 else loss


def compute_batch_shares(t: TrainState, group: list[Batch]) -> Sequence[Tensor | float | None]:
    """What each batch's mean loss counts in the mean over the group; None where the loss is taken as it is.

    Of several processes each has its rows of the batches, and gradients are averaged over the processes: hence the
    factor. Rows are counted without asking the others, but for tags, of which each row has its own number.
    """
    count = t.ranks.world_size
    if t.objective.reduction == "sum" or len(group) * count == 1:
        return [None if count == 1 else float(count)] * len(group)
    weights = [t.objective.count_targets(targets) for _, targets in group]
    if isinstance(weights[0], Tensor):
        whole = t.ranks.sum_over_ranks(torch.stack(weights).sum())  # type: ignore[arg-type]
        return [count * metrics.widen(w) / whole for w in weights]  # type: ignore[arg-type]
    rows = t.train.count_rows_before(t.progress.batch + len(group)) - t.train.count_rows_before(t.progress.batch)
    return [count * len(targets) / rows for _, targets in group]


def scale_loss(loss: Tensor, share: Tensor | float | None) -> Tensor:
    """The loss times its share, in the loss's own type."""
    if share is None:
        return loss
    return loss * (share.to(loss.dtype) if isinstance(share, Tensor) else share)


def measure_step(t: TrainState, seen: StepRecords) -> dict[str, float]:
    """What is logged of a step: this waits for the device, once every log_every_steps."""
    t.check_finite()
    if t.stop_rules.grad_clip_norm is None:
        gradients = [p.grad for p in t.model.parameters() if p.grad is not None]
        t.grad_norm = nn.utils.get_total_norm(gradients)
    weights = [float(t.objective.count_targets(targets)) for _, targets, _ in seen]
    parts = [
        float(loss) * (1.0 if t.objective.reduction == "sum" else w)
        for (*_, loss), w in zip(seen, weights, strict=True)
    ]
    norm = float(t.grad_norm)
    if t.progress.bad_gradient_step is None and not (math.isfinite(norm) or t.scaler.is_enabled()):
        t.progress.bad_gradient_step = t.progress.step  # with fp16 inf is ordinary: the scaler skips the step
    whole = t.ranks.sum_over_ranks(torch.tensor([sum(parts), sum(weights)], dtype=torch.float64)).tolist()
    values = {"train/loss_step": whole[0] / whole[1], "train/grad_norm": norm}
    return values | t.schedule.learning_rates()


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Batches,
    task: Objective,
    autocast: Callable[[], AbstractContextManager[Any]],
    ranks: Distributed = SINGLE_PROCESS,
    on_batch: BatchHook | None = None,
) -> dict[str, float]:
    """Metrics of the whole split, each sample weighing the same; to the bit, however many processes share it.

    on_batch: called with inputs, outputs and targets of each batch that this process evaluates.
    """
    model.eval()
    block = choose_block_size(len(batches))
    totals = task.new_accumulator(block)
    for inputs, targets in batches.epoch(1, pick=partial(ranks.shard_evaluation, block=block)):
        with autocast():
            outputs = model(*inputs)
            loss = task.compute_loss(outputs, targets)
        totals.add(outputs, targets, loss)
        if on_batch is not None:
            on_batch(inputs, outputs, targets)
    return totals.compute_metrics(ranks.gather_blocks)


def choose_block_size(batches: int) -> int:
    """How many batches of an evaluation are summed up at a time, and dealt to one process: a few blocks for each."""
    return max(1, min(FLUSH_BATCHES, batches // 16))


def requires_closure(optimizer: Optimizer) -> bool:
    """Whether the optimizer evaluates the loss itself, as LBFGS does."""
    kind: Any = type(optimizer)  # torch's types deny that it has a hash
    return _step_requires_closure(kind)


@cache  # reading a signature takes 0.1 ms, at each start of an epoch
def _step_requires_closure(kind: type[Optimizer]) -> bool:
    closure = inspect.signature(kind.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
