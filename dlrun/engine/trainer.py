"""The one training loop, in plain torch: no config, terminal or TensorBoard in it."""

import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dlrun.core.errors import RunError
from dlrun.data.batches import Batch, Batches
from dlrun.engine import logged_values, metrics
from dlrun.engine.best_epoch import BestEpoch
from dlrun.engine.callback import Callback, CallbackList, TrainerView
from dlrun.engine.distributed import SINGLE_PROCESS, Distributed
from dlrun.engine.objective import FLUSH_BATCHES, Objective
from dlrun.engine.optim import direct
from dlrun.engine.state import TrainState

# Outputs, targets and loss of each batch of a step, as trained on.
StepRecords = list[tuple[Tensor, Tensor, Tensor]]

# Called with the inputs, outputs and targets of a batch.
BatchHook = Callable[[tuple[Tensor, ...], Tensor, Tensor], None]

# Computes outputs and loss from the inputs and targets of a batch.
ForwardPass = Callable[[TrainState, tuple[Tensor, ...], Tensor], tuple[Tensor, Tensor]]


class Trainer(TrainerView):
    """Trains a state to its end, epoch by epoch, and notifies callbacks."""

    def __init__(
        self,
        state: TrainState,
        callbacks: Sequence[Callback],
        stop_requested: Callable[[], bool],
        user_callbacks: Sequence[Callback] = (),
    ) -> None:
        """callbacks: of dlrun itself, which are called after those of the user."""
        super().__init__(state)
        self.user_callbacks = user_callbacks
        self.stop_requested = stop_requested
        self.forward: ForwardPass = compute_outputs_and_loss
        # Callbacks of the user may change split weights: these are gathered again before they are recorded.
        gather = [GatherWeights()] if user_callbacks and state.sharded is not None else []
        self.callbacks = self.make_callback_list([*user_callbacks, *gather, BestEpoch(), *callbacks])

    def make_callback_list(self, callbacks: Sequence[Callback]) -> CallbackList:
        """The list through which this trainer calls its callbacks; a subclass may time them."""
        return CallbackList(callbacks)

    def fit(self) -> str:
        """Train until the epochs, the steps or the patience are used up, or until a stop is requested.

        Returns the status: "completed", "early_stopped" or "interrupted". Raises RunError when the loss is
        not finite.
        """
        state = self.state
        with self.report_exceptions():
            self.start()

            # An epoch under way is always ended with its row, even if no step is left to make.
            while state.progress.batch or not state.is_finished:
                epoch_start = time.perf_counter()
                first_batch = state.progress.batch
                self.row = {}

                if first_batch == 0:
                    self.callbacks.on_epoch_start(self)
                epoch_completed = self.train_epoch()

                # Wait for the device once an epoch, so that its time is counted.
                state.synchronize()
                epoch_seconds = time.perf_counter() - epoch_start
                self.timings = state.progress.add_epoch_time(epoch_seconds, state.train, first_batch)

                if state.progress.batch < len(state.train):
                    # Save first: a resumed run must not contain the row of a partial epoch.
                    self.callbacks.on_interrupt(self)
                    if not epoch_completed:
                        return "interrupted"

                self.end_epoch()
                self.callbacks.on_epoch_end(self, self.row)

                if self.stop_requested() and not state.is_finished:
                    self.callbacks.on_interrupt(self)
                    return "interrupted"

            self.end()
        return "completed" if state.is_done else "early_stopped"

    def start(self) -> None:
        """Let callbacks of the user log from now on, and call on_fit_start; a resumed training keeps its state."""
        for callback in self.user_callbacks:
            callback.log_to(self.state.logged)
        with self.state.keep_resumed_state():
            self.callbacks.on_fit_start(self)

    def end(self) -> None:
        """Call on_fit_end; a callback cannot log any more, as no row follows."""
        for callback in self.user_callbacks:
            callback.log_to(None)
        self.callbacks.on_fit_end(self)

    @contextmanager
    def report_exceptions(self) -> Iterator[None]:
        """Call on_exception for an error before it leaves the trainer: callbacks may have something to close."""
        try:
            yield
        except Exception as error:
            # Code of the user's takes part, so anything can come.
            logged_values.set_receiver(None)
            self.callbacks.on_exception(self, error)
            raise

    def train_epoch(self) -> bool:
        """Train the rest of the current epoch, or of the steps; returns False if a stop request cut it short."""
        state = self.state
        progress = state.progress
        state.release()
        state.training_model.train()
        if state.sharded is not None:
            state.sharded.check_trainable()
        _set_loss_mode(state.objective, training=True)
        needs_closure = requires_closure(state.optimizer)
        batches = self.load_epoch()

        while not state.is_done:
            group = list(islice(batches, state.stop_rules.accumulate_steps))
            if not group:
                break

            records: StepRecords = []
            self.records = records
            # The model logs in this step only: callbacks may run it too.
            logged_values.set_receiver(state.logged)
            if needs_closure:
                # LBFGS and its like evaluate the loss as often as they need.
                state.optimizer.step(partial(_compute_closure_loss, state, group, records, self.forward))  # type: ignore[arg-type]
            elif state.graph_step is not None:
                # Replays a recorded step, or makes an eager one.
                state.graph_step(state, group, records)
            else:
                backward(state, group, records, self.forward)
                if state.scaler.is_enabled():
                    state.scaler.step(state.optimizer)
                    state.scaler.update()
                else:
                    direct.get_step(state.optimizer)()

            logged_values.set_receiver(None)

            # Losses stay on the device: `check_finite` reads them in one transfer.
            for outputs, targets, loss in records:
                state.totals.add(outputs, targets, loss)
                state.recent_losses.append((progress.step + 1, loss))
            state.log_model_metrics()
            progress.step += 1
            progress.batch += len(group)

            # The only point of a step where the host waits for the device.
            if progress.step % state.stop_rules.log_every_steps == 0:
                self.callbacks.on_log(self, measure_step(state, records) | state.logged.read_newest())
            state.schedule.advance_step()
            self.callbacks.on_step_end(self)

            if self.stop_requested():
                break

        state.check_finite()
        return state.is_done or progress.batch >= len(state.train)

    def load_epoch(self) -> Iterator[Batch]:
        """The batches of the current epoch that have not been trained on."""
        state = self.state
        epoch = state.progress.epoch + 1
        first_batch = state.progress.batch
        ranks = state.ranks
        if state.mixing is None:
            return state.train.epoch(epoch, start=first_batch, pick=ranks.shard_batch)

        is_part = ranks.world_size > 1
        pick = ranks.shard_batch_for_mixing if is_part else ranks.shard_batch
        batches = state.train.epoch(epoch, start=first_batch, pick=pick)
        return state.mixing.mix(batches, state.train.order.seed, epoch, first_batch, is_part)

    def end_epoch(self) -> None:
        """Count the epoch as ended, and make its row: epoch, step, metrics, rates, parameters of a tiny model."""
        state = self.state
        self.start_row()
        self.add_metrics("train", state.totals.compute_metrics(state.ranks.gather_blocks))
        state.totals = state.objective.new_accumulator()

        # Batch norm statistics differ between ranks; all evaluate with those of rank 0.
        state.ranks.broadcast_buffers(state.training_model)
        if state.ema is not None:
            state.ranks.broadcast_buffers(state.ema.model)
        if state.objective.loss_module is not None:
            state.ranks.broadcast_buffers(state.objective.loss_module)

        state.gather()

        if state.val is not None:
            self.row |= self.evaluate(state.val, "val")
            self.callbacks.on_validation_end(self)
        self.row |= state.schedule.get_learning_rates()
        self.row |= state.get_parameter_values()
        self.add_logged_values(self.row)

    def add_logged_values(self, row: dict[str, float]) -> None:
        """Add to a row what has been logged since the last call; RunError for a name that the row has already."""
        for name, value in self.state.logged.take_means(self.state.ranks).items():
            if name in row:
                raise RunError(f"log({name!r}, ...): every epoch has a value of this name already; choose another name")
            row[name] = value

    def evaluate(self, batches: Batches, split: str) -> dict[str, float]:
        """Metrics of a split at the end of an epoch."""
        return evaluate_split(self.state, batches, split)


class GatherWeights(Callback):
    """Brings the unsplit model up to date after an epoch, under device.strategy=fsdp2."""

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        """Gather the weights once more."""
        trainer.state.gather()


def evaluate_split(
    state: TrainState,
    batches: Batches,
    split: str,
    on_batch: BatchHook | None = None,
) -> dict[str, float]:
    """Metrics of a split as <split>/loss etc., and with averaged weights as <split>/ema_loss etc.

    on_batch: as in `evaluate`, for the model's own weights.
    """
    values = evaluate(state.model, batches, state.objective, state.autocast, state.ranks, on_batch)
    row = {f"{split}/{name}": value for name, value in values.items()}

    if state.ema is not None:
        averaged = evaluate(state.ema.model, batches, state.objective, state.autocast, state.ranks)
        row |= {f"{split}/ema_{name}": value for name, value in averaged.items()}
    return row


def compute_outputs_and_loss(state: TrainState, inputs: tuple[Tensor, ...], targets: Tensor) -> tuple[Tensor, Tensor]:
    """The forward pass of training, in the precision of the run."""
    if state.mixing is not None:
        inputs, targets = state.mixing.split_inputs(inputs, targets)
    with state.autocast():
        outputs = state.forward(*inputs)
        loss = state.objective.compute_loss(outputs, targets)
        if state.compute_auxiliary_loss is not None:
            auxiliary_loss = state.compute_auxiliary_loss()
            if state.sharded is not None:
                state.sharded.refuse_shards(auxiliary_loss)
            loss = loss + auxiliary_loss
    return outputs, loss


def backward(
    state: TrainState,
    group: list[Batch],
    records: StepRecords,
    forward: ForwardPass = compute_outputs_and_loss,
) -> Tensor:
    """Compute the gradients of one optimizer step: the mean over all rows of its batches, then clipped.

    Returns the loss, a scalar on the device, and fills `records` if they are empty: an optimizer with a closure
    may call this several times a step, and its first pass is recorded.
    """
    direct.zero_grad(state.optimizer)
    is_first_pass = not records
    losses = []
    last = len(group) - 1
    shares = _compute_batch_shares(state, group)

    for i, ((inputs, targets), share) in enumerate(zip(group, shares, strict=True)):
        # Ranks exchange gradients once a step, in the backward pass of its last batch.
        state.ranks.sync_gradients(state.forward, enabled=i == last)
        outputs, loss = forward(state, inputs, targets)
        weighted_loss = _scale_loss(loss, share)
        state.scaler.scale(weighted_loss).backward()  # type: ignore[no-untyped-call]
        losses.append(weighted_loss.detach())

        if is_first_pass:
            # A rank without a row of the batch ran the model only to take part in the exchange of gradients.
            if not targets.numel():
                outputs = outputs[:0]
            batch_loss = losses[-1] if weighted_loss is loss else loss.detach()
            records.append((outputs.detach(), targets, batch_loss))

    # DDP has averaged the gradients of the model, but not those of the loss.
    if state.objective.loss_module is not None:
        state.ranks.average_gradients(state.objective.loss_module.parameters())

    if state.stop_rules.grad_clip_norm is not None:
        state.scaler.unscale_(state.optimizer)
        parameters = state.list_parameters()
        norm = nn.utils.clip_grad_norm_(parameters, state.stop_rules.grad_clip_norm)
        state.grad_norm = norm if state.sharded is None else state.sharded.gather_norm(norm)

    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _compute_closure_loss(
    state: TrainState, group: list[Batch], records: StepRecords, forward: ForwardPass = compute_outputs_and_loss
) -> Tensor:
    """Run `backward` as an optimizer's closure; returns the mean loss over all ranks."""
    loss = backward(state, group, records, forward)
    if state.ranks.world_size == 1:
        return loss
    return state.ranks.sum_over_ranks(loss) / state.ranks.world_size


def _compute_batch_shares(state: TrainState, group: list[Batch]) -> Sequence[Tensor | float | None]:
    """Weight of each batch's mean loss in the mean over the group; None where the loss is used as it is.

    The factor world_size undoes the averaging of gradients over the ranks, each of which has only a part of the rows.
    Rows are counted without communication; only tags, whose number differs from row to row, need it.
    """
    world_size = state.ranks.world_size
    if state.objective.reduction == "sum" or len(group) * world_size == 1:
        share = None if world_size == 1 else float(world_size)
        return [share] * len(group)

    counts = [state.objective.count_targets(targets) for _, targets in group]
    if isinstance(counts[0], Tensor):
        # Tags: counted on the device, so that the host does not wait.
        total = state.ranks.sum_over_ranks(torch.stack(counts).sum())  # type: ignore[arg-type]
        return [world_size * metrics.widen(count) / total for count in counts]  # type: ignore[arg-type]

    first_batch = state.progress.batch
    rows = state.train.count_rows_before(first_batch + len(group)) - state.train.count_rows_before(first_batch)
    return [world_size * len(targets) / rows for _, targets in group]


def _scale_loss(loss: Tensor, share: Tensor | float | None) -> Tensor:
    """Multiply the loss by its share, in the loss's own dtype."""
    if share is None:
        return loss
    if isinstance(share, Tensor):
        share = share.to(loss.dtype)
    return loss * share


def measure_step(state: TrainState, records: StepRecords) -> dict[str, float]:
    """Mean loss, gradient norm and learning rates of a step, for the log. Waits for the device."""
    state.check_finite()
    if state.stop_rules.grad_clip_norm is None:
        gradients = [p.grad for p in state.list_parameters() if p.grad is not None]
        total = nn.utils.get_total_norm(gradients)
        state.grad_norm = total if state.sharded is None else state.sharded.gather_norm(total)

    weights = [float(state.objective.count_targets(targets)) for _, targets, _ in records]
    losses = [float(loss) for _, _, loss in records]
    if state.objective.reduction != "sum":
        losses = [loss * weight for loss, weight in zip(losses, weights, strict=True)]

    norm = float(state.grad_norm)
    # With fp16 an infinite gradient is ordinary: the scaler skips the step.
    is_bad_gradient = not (math.isfinite(norm) or state.scaler.is_enabled())
    if is_bad_gradient and state.progress.bad_gradient_step is None:
        state.progress.bad_gradient_step = state.progress.step

    sums = torch.tensor([sum(losses), sum(weights)], dtype=torch.float64)
    loss_sum, weight_sum = state.ranks.sum_over_ranks(sums).tolist()
    values = {"train/loss_step": loss_sum / weight_sum, "train/grad_norm": norm}
    return values | state.schedule.get_learning_rates()


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Batches,
    objective: Objective,
    autocast: Callable[[], AbstractContextManager[Any]],
    ranks: Distributed = SINGLE_PROCESS,
    on_batch: BatchHook | None = None,
) -> dict[str, float]:
    """Metrics of a whole split, each sample with the same weight; equal to the bit for any number of ranks.

    on_batch: called with inputs, outputs and targets of each batch that this rank evaluates.
    """
    # `train_epoch` sets training mode again.
    model.eval()
    _set_loss_mode(objective, training=False)
    block = choose_block_size(len(batches))
    totals = objective.new_accumulator(block)

    for inputs, targets in batches.epoch(1, pick=partial(ranks.shard_evaluation, block=block)):
        with autocast():
            outputs = model(*inputs)
            loss = objective.compute_loss(outputs, targets)
        totals.add(outputs, targets, loss)
        if on_batch is not None:
            on_batch(inputs, outputs, targets)

    return totals.compute_metrics(ranks.gather_blocks)


def _set_loss_mode(objective: Objective, training: bool) -> None:
    """Put a loss that is a module into training or evaluation mode."""
    if objective.loss_module is not None:
        objective.loss_module.train(training)


def choose_block_size(batches: int) -> int:
    """Number of evaluation batches reduced together, on one rank; small enough that each rank has a few blocks."""
    return max(1, min(FLUSH_BATCHES, batches // 16))


def requires_closure(optimizer: Optimizer) -> bool:
    """Whether the optimizer evaluates the loss itself, as LBFGS does."""
    # torch's types deny that a type has a hash.
    kind: Any = type(optimizer)
    return _step_requires_closure(kind)


# Inspecting a signature takes 0.1 ms, at every start of an epoch.
@cache
def _step_requires_closure(kind: type[Optimizer]) -> bool:
    closure = inspect.signature(kind.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
