"""The training loop of a stack: every member trains as `trainer.Trainer` would train it alone, up to rounding."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from dlrun.data.batches import Batch, MemoryBatches
from dlrun.engine.forward_buffers import get_extra_states
from dlrun.engine.stack import objective as stacked_objective
from dlrun.engine.stack import optimizers
from dlrun.engine.stack.member import Member
from dlrun.engine.stack.model import StackedModel
from dlrun.engine.stack.objective import StackedObjective, concatenate
from dlrun.engine.stack.snapshot import find_parts, take_snapshot

# Batches of all members that are gathered together take about this much memory.
GATHER_BYTES = 2**22


class StackTrainer:
    """Trains members that share data, model class, batch size, length and loss, until the last one has ended."""

    def __init__(
        self,
        members: Sequence[Member],
        stop_requested: Callable[[], bool] = lambda: False,
        on_members_end: Callable[[list[Member]], None] = lambda _: None,
        on_epoch_end: Callable[["StackTrainer"], None] = lambda _: None,
        on_validation_end: Callable[["StackTrainer"], None] = lambda _: None,
        on_rows_complete: Callable[["StackTrainer"], None] = lambda _: None,
    ) -> None:
        """The hooks of an epoch, in the order of their calls.

        on_validation_end: before the members end their epoch. on_rows_complete: when all have ended it, before any
        leaves the stack. on_members_end: with the members that have left. on_epoch_end: between two epochs.
        """
        # Members whose optimizers are of one kind are neighbours, so that these are stepped together.
        self.members = sorted(members, key=lambda member: optimizers.describe_kind(member.optimizer))
        self.stop_requested = stop_requested
        self.on_members_end = on_members_end
        self.on_epoch_end = on_epoch_end
        self.on_validation_end = on_validation_end
        self.on_rows_complete = on_rows_complete

        first = self.members[0].state
        assert isinstance(first.train, MemoryBatches)
        self.objective = StackedObjective(first.objective)
        self.rules = first.stop_rules
        self.train_data: MemoryBatches = first.train
        self.val_data = first.val

        # Counters of the run and of the epoch under way, and what the metrics of the epoch need.
        self.step = first.progress.step
        self.batch = first.progress.batch
        self.outputs: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.losses: list[Tensor] = []
        # Losses (M,) of optimizer steps that have not been looked at.
        self.unchecked_losses: list[Tensor] = []
        self.build()

    def build(self) -> None:
        """Stack the models and optimizers of all members as they are now."""
        self.model = StackedModel(
            [member.model for member in self.members], [member.generator for member in self.members]
        )
        self.optimizers = optimizers.stack_optimizers([member.optimizer for member in self.members], self.model.weights)
        for _, optimizer in self.optimizers:
            optimizer.read_states(self.step)
        self.parts = find_parts(self.model)

        limits = [member.state.stop_rules.grad_clip_norm for member in self.members]
        self.clips = any(limit is not None for limit in limits)
        largest = [math.inf if limit is None else limit for limit in limits]
        self.largest_norms = torch.tensor(largest, device=self.model.weights.device, dtype=self.model.weights.dtype)
        self.schedules_by_step = [
            member.state.schedule
            for member in self.members
            if member.state.schedule.warmup_steps or member.state.schedule.interval == "step"
        ]

    def fit(self) -> bool:
        """Train until all members have ended; returns False if a stop request came before."""
        while self.members:
            begin = time.perf_counter()
            first_batch = self.batch
            is_epoch_complete = self.train_epoch()
            # Wait for the device once an epoch, so that its time is counted.
            self.members[0].state.synchronize()
            self.count_progress((time.perf_counter() - begin) / len(self.members), first_batch)
            if not is_epoch_complete:
                return False

            self.end_epoch()
            self.on_rows_complete(self)
            self.retire_members()
            if self.members and self.stop_requested():
                return False
            if self.members:
                self.on_epoch_end(self)

        return True

    def count_progress(self, seconds: float, first_batch: int) -> None:
        """Bring the counters of each member up to date, and charge it with its share of the time."""
        for member in self.members:
            progress = member.state.progress
            # Members count for themselves, as each is saved and resumed alone.
            progress.step = self.step
            progress.batch = self.batch
            member.state.schedule.steps = self.step
            member.timings = progress.add_epoch_time(seconds, self.train_data, first_batch)

    def train_epoch(self) -> bool:
        """Train the rest of the epoch; returns False if a stop request cut it short."""
        self.model.train()
        batches = self.load_epoch()
        for group in iter(lambda: list(islice(batches, self.rules.accumulate_steps)), []):
            self.make_step(group)
            if self.stop_requested():
                break

        self.check_losses()
        return self.batch >= len(self.train_data)

    def make_step(self, group: list[Batch]) -> None:
        """Make one optimizer step of all members, on the batches of a group."""
        # All members have batches of the same sizes, so one count serves all.
        weights = self.count_targets([targets for _, targets in group])
        is_weighted = len(group) > 1 and self.objective.objective.reduction != "sum"
        total = sum(weights)

        step_losses: list[Tensor] = []
        for (inputs, targets), weight in zip(group, weights, strict=True):
            outputs = self.model(*inputs)
            losses = self.objective.compute_losses(outputs, targets)
            # The mean over all rows of the step.
            shares = losses * (weight / total) if is_weighted else losses
            self.model.compute_gradient(shares, is_first=not step_losses)

            self.outputs.append(outputs.detach())
            self.targets.append(targets)
            self.losses.append(losses.detach())
            step_losses.append(shares.detach())

        norms = self.clip_gradients() if self.clips else None
        # An optimizer steps its neighbouring members at once.
        with torch.no_grad():
            for part, optimizer in self.optimizers:
                optimizer.step(self.model.gradient[part])

        self.step += 1
        self.batch += len(group)
        loss = step_losses[0] if len(step_losses) == 1 else torch.stack(step_losses).sum(0)
        # On the device: reading it here would wait for every step.
        self.unchecked_losses.append(loss)
        if self.step % self.rules.log_every_steps == 0:
            self.log_step(loss / total if self.objective.objective.reduction == "sum" else loss, norms)
        for schedule in self.schedules_by_step:
            schedule.advance_step()

    def count_targets(self, batches: Sequence[Tensor]) -> list[int]:
        """Weight of each batch (M, B, ...) in a mean over batches: that of one member's targets."""
        return [targets[0].numel() for targets in batches]

    def clip_gradients(self) -> Tensor:
        """Scale each member's gradient down to its largest norm; returns the norms before, (M,)."""
        norms: Tensor = torch.linalg.vector_norm(self.model.gradient, dim=1)
        # As clip_grad_norm_ does, with the same small number against a norm of 0.
        factors = (self.largest_norms / (norms + 1e-6)).clamp(max=1.0)
        self.model.gradient.mul_(factors.unsqueeze(1))
        return norms

    def log_step(self, losses: Tensor, norms: Tensor | None) -> None:
        """Call on_log of each member's callbacks with loss, gradient norm and learning rates of the last step."""
        self.check_losses()
        norms = torch.linalg.vector_norm(self.model.gradient, dim=1) if norms is None else norms
        # One transfer for all members.
        table = torch.stack([losses, norms]).T.tolist()
        for member, (loss, norm) in zip(self.members, table, strict=True):
            if member.error is not None:
                continue
            progress = member.state.progress
            progress.step = self.step
            if not math.isfinite(norm) and progress.bad_gradient_step is None:
                progress.bad_gradient_step = self.step
            values = {"train/loss_step": loss, "train/grad_norm": norm}
            member.callbacks.on_log(member, values | member.state.schedule.get_learning_rates())

    def check_losses(self) -> None:
        """Read the losses since the last call, in one transfer."""
        if not self.unchecked_losses:
            return
        # (steps, M)
        table = torch.stack(self.unchecked_losses).T.tolist()
        first_step = self.step - len(self.unchecked_losses) + 1
        self.unchecked_losses = []
        for member, losses in zip(self.members, table, strict=True):
            if member.error is not None:
                continue
            if all(map(math.isfinite, losses)):
                progress = member.state.progress
                progress.last_finite_loss = losses[-1]
                progress.first_loss = losses[0] if progress.first_loss is None else progress.first_loss
            else:
                member.check_losses(first_step, losses)

    def load_epoch(self) -> Iterator[Batch]:
        """Batches of the current epoch that have not been trained on: inputs (M, B, ...) and targets (M, B, ...)."""
        data = self.train_data
        epoch = self.members[0].state.progress.epoch + 1
        # (M, rows), each member in its own order.
        orders = torch.stack([member.state.train.order.permutation(epoch) for member in self.members])
        orders = orders.to(data.targets.device)

        # Several batches a gather: each call costs as much as a step of a small net.
        size = data.order.batch_size
        row_bytes = sum(column[:1].nbytes for column in (*data.inputs, data.targets))
        per_gather = max(1, GATHER_BYTES // (row_bytes * size * len(self.members)))
        for begin in range(self.batch, len(data), per_gather):
            end = min(begin + per_gather, len(data))
            rows = orders[:, begin * size : end * size]
            inputs, targets = gather(data, rows)
            for offset in range(0, (end - begin) * size, size):
                part = slice(offset, offset + size)
                if targets[:, part].shape[1]:
                    yield tuple(column[:, part] for column in inputs), targets[:, part]

    def end_epoch(self) -> None:
        """Compute the metrics of all members, and let each end its epoch."""
        weights = torch.tensor(self.count_targets(self.targets))
        train_metrics = self.objective.compute_metrics(
            concatenate(self.outputs), concatenate(self.targets), torch.stack(self.losses, 1), weights
        )
        self.outputs, self.targets, self.losses = [], [], []
        self.batch = 0

        val_metrics: Sequence[dict[str, float] | None] = [None] * len(self.members)
        if self.val_data is not None:
            val_metrics = self.evaluate(self.val_data)
        if self.parts is not None:
            # Callbacks read this copy: reading hundreds of nets one by one takes longer than the epoch.
            snapshot = take_snapshot(self.model, self.parts)
            for member, member_weights in zip(self.members, snapshot, strict=True):
                member.weights = member_weights
        self.on_validation_end(self)

        for member, train_values, val_values in zip(self.members, train_metrics, val_metrics, strict=True):
            if member.error is None:
                member.end_epoch(train_values, val_values)

    @torch.inference_mode()
    def evaluate(self, data: Any) -> list[dict[str, float]]:
        """Metrics of each member on a split."""
        self.model.train(False)
        count = len(self.members)
        all_outputs, all_targets, all_losses = [], [], []
        for inputs, targets in data.epoch(1):
            # A view for all members: nothing is copied.
            expanded = [column.expand(count, *column.shape) for column in inputs]
            outputs = self.model(*expanded)
            all_losses.append(self.objective.compute_losses(outputs, targets.expand(count, *targets.shape)))
            all_outputs.append(outputs)
            all_targets.append(targets.unsqueeze(0))

        weights = torch.tensor(self.count_targets(all_targets))
        return self.objective.compute_metrics(
            concatenate(all_outputs), concatenate(all_targets), torch.stack(all_losses, 1), weights
        )

    def retire_members(self) -> None:
        """Let the members that have ended leave, each with tensors of its own, and stack the others anew."""
        # Most epochs nobody leaves, and nothing is built anew.
        leaving = [member for member in self.members if member.is_finished]
        if not leaving:
            return

        self.write_states()
        self.model.release()
        self.members = [member for member in self.members if not member.is_finished]
        if self.members:
            self.build()
        self.on_members_end(leaving)

    def write_states(self) -> None:
        """Give all members' optimizers their state, from which they could continue alone."""
        for _, optimizer in self.optimizers:
            optimizer.write_states()

    def state_dict(self) -> dict[str, Any]:
        """State of the stack as plain values and tensors: of each member, and of the epoch under way."""
        self.write_states()
        state: dict[str, Any] = {"batch": self.batch}
        state["members"] = [{"rng": member.get_rng_state()} | member.state.state_dict() for member in self.members]
        if self.batch:
            state["outputs"] = concatenate(self.outputs)
            state["targets"] = concatenate(self.targets)
            state["losses"] = torch.stack(self.losses, 1)
            state["rows"] = [targets.shape[1] for targets in self.targets]

        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, for a stack of the same members in the same order."""
        self.model.release()
        device = self.model.weights.device
        for member, values in zip(self.members, state["members"], strict=True):
            member.state.load_state_dict(values, device)
            member.set_rng_state(values["rng"])

        first = self.members[0].state
        self.step = first.progress.step
        self.batch = int(state["batch"])
        if self.batch:
            self.outputs = list(state["outputs"].to(device).split(state["rows"], 1))
            self.targets = list(state["targets"].to(device).split(state["rows"], 1))
            self.losses = list(state["losses"].to(device).unbind(1))
        self.build()


def gather(data: MemoryBatches, rows: Tensor) -> Batch:
    """Inputs and targets (M, N, ...) of rows (M, N) of data in memory."""
    flat = rows.flatten()
    inputs = data.place.view_channels_first(tuple(column.index_select(0, flat) for column in data.inputs))
    targets = data.place.choose_targets(inputs, data.targets.index_select(0, flat))
    split = tuple(column.view(*rows.shape, *column.shape[1:]) for column in inputs)
    return split, targets.view(*rows.shape, *targets.shape[1:])


def find_obstacle(state: Any) -> str | None:
    """Why a training cannot be part of a stack, or None."""
    if not isinstance(state.train, MemoryBatches):
        return "its data are read from the disk as it trains"
    if state.train.place.spec.kind in ("tokens", "multi"):
        return f"its inputs are {state.train.place.spec.kind}"
    if state.ema is not None:
        return "trainer.ema_decay"
    if state.mixing is not None:
        return "data.augment mixes rows"
    if state.callbacks:
        return "callbacks of your own"
    if state.scaler.is_enabled():
        return "fp16"
    if state.compute_model_metrics is not None or state.compute_auxiliary_loss is not None:
        return "its net logs values or adds to the loss"
    # An epoch that is cut short would have a row of its own, at another step than the others'.
    rules = state.stop_rules
    steps_per_epoch = math.ceil(len(state.train) / rules.accumulate_steps)
    if rules.max_steps is not None and rules.max_steps % steps_per_epoch:
        return "trainer.max_steps ends in the middle of an epoch"
    if not isinstance(state.autocast(), contextlib.nullcontext):
        return "device.precision narrows its forward pass"
    if state.ranks.world_size > 1:
        return "several processes train it"
    obstacle = _find_obstacle_of_net(state.model)
    if obstacle is not None:
        return obstacle

    trained: list[nn.Parameter] = []
    for group in state.optimizer.param_groups:
        trained += group["params"]
    # By identity: equality would compare the numbers of the tensors.
    if list(map(id, trained)) != list(map(id, state.model.parameters())):
        return "its optimizer moves other parameters than those of its net"
    return optimizers.find_obstacle(state.optimizer) or stacked_objective.find_obstacle(state.objective)


def _find_obstacle_of_net(model: nn.Module) -> str | None:
    """Why a net cannot be stacked, as far as its parts tell; `compare_with_alone` sees what its forward pass does."""
    parameters = list(model.parameters())
    if any(map(is_lazy, (*parameters, *model.buffers()))):
        return "a layer of its net has no size before it meets data"
    if not all(parameter.requires_grad for parameter in parameters):
        return "a part of its net is frozen"
    if len({parameter.dtype for parameter in parameters}) > 1:
        return "its net has parameters of several types"
    if _has_shared_tensors(model):
        return "layers of its net share parameters or buffers"
    if any(parameter._backward_hooks or parameter._post_accumulate_grad_hooks for parameter in parameters):
        return "a parameter of its net has a hook"
    if get_extra_states(model):
        return "its net has a state besides its parameters and buffers"

    for module in model.modules():
        name = type(module).__name__
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            return f"torch.func does not compute {name}"
        if isinstance(module, _DropoutNd | nn.RReLU) and type(module) is not nn.Dropout:
            return f"{name} draws random numbers in a way that members cannot share"

    return None


def _has_shared_tensors(model: nn.Module) -> bool:
    """Whether a parameter or a buffer has several names."""
    # torch leaves out further names of a tensor unless it is asked for them.
    for list_tensors in (model.named_parameters, model.named_buffers):
        if len(list(list_tensors(remove_duplicate=False))) != len(list(list_tensors())):
            return True
    return False
