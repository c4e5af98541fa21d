"""Data-parallel training of one run by several processes, as torchrun starts them.

The only code that talks to other ranks. Rank 0 decides, records and reports; the others follow it.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from dlrun.core.errors import DlrunError, RequestError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dlrun.engine.sharding import ShardedModel

T = TypeVar("T")

# Longest time that rank 0 may read or download data before the others begin.
_START_SECONDS = 1800
# Longest time that a rank may take to report its own failure.
_ANSWER_SECONDS = 3.0
# Longest time that a rank that failed waits for rank 0 to fail, too.
_NOTICE_SECONDS = 5.0
# Longest time that it waits for rank 0, which has failed, to report it.
_REPORT_SECONDS = 30.0

# Key in the store.
_REPORTED = "rank 0 has reported"

# Modules whose layers all take part in every forward pass.
_FULLY_USED_MODULES = ("torch.nn.", "dlrun.")

# Texts of errors of the transport, which mean that another rank has failed.
_TRANSPORT_TEXTS = ("/gloo/", "Application timeout", "NCCL", "nccl")


class Stop(Protocol):
    """Whether a stop is requested; signal_number is that of the signal that requests it, or 0."""

    signal_number: int

    def __call__(self) -> bool: ...


class Distributed:
    """This process among those that train one run. The base class is a single process, and does nothing."""

    rank = 0
    world_size = 1
    # On this machine.
    local_rank = 0
    local_world_size = 1
    is_first_local = True

    def set_timeout(self, seconds: float) -> None:
        """From here on a rank that keeps the others waiting for longer ends the run."""

    def shard_batch(self, batches: "list[Tensor]") -> "list[Tensor]":
        """This rank's rows of every training batch; none of a batch that has fewer rows than there are ranks."""
        if self.world_size == 1:
            return batches
        return [rows.tensor_split(self.world_size)[self.rank] for rows in batches]

    def shard_batch_for_mixing(self, batches: "list[Tensor]") -> "list[Tensor]":
        """This rank's rows as in `shard_batch`, after the row that precedes them; the last row precedes the first."""
        import torch

        shards = []
        for rows, part in zip(batches, self.shard_batch(batches), strict=True):
            first = sum(map(len, rows.tensor_split(self.world_size)[: self.rank]))
            shards.append(torch.cat([rows[first - 1].view(1), part]) if len(part) else part)
        return shards

    def shard_evaluation(self, batches: "list[Tensor]", block: int) -> "list[Tensor]":
        """This rank's batches of an evaluation: every world_size-th block of whole batches.

        A block is summed up on one rank, to the bit as a single process does.
        """
        # Block 0 to rank 0, block 1 to rank 1, ... and around again.
        return [rows for i, rows in enumerate(batches) if i // block % self.world_size == self.rank]

    def gather_blocks(self, blocks: list[T]) -> list[T]:
        """Gather the blocks of all ranks, interleaved in the order of a single process."""
        return blocks

    def sum_over_ranks(self, value: "Tensor") -> "Tensor":
        """Sum a tensor over all ranks."""
        return value

    def broadcast(self, value: T) -> T:
        """Return rank 0's value on every rank."""
        return value

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, on every rank."""
        return [value]

    def broadcast_buffers(self, model: "nn.Module") -> None:
        """Give every rank the buffers of rank 0, such as batch norm statistics."""

    def wrap_model(self, model: "nn.Module") -> "Callable[..., Tensor]":
        """Return a forward pass whose gradients are averaged over the ranks."""
        return model

    def shard_model(self, model: "nn.Module", has_blocks: bool = True) -> "ShardedModel":
        """Split a copy of the model over the ranks; `ShardedModel` has the arguments."""
        raise RuntimeError("one process has nobody to share a model with")

    def average_gradients(self, parameters: "Iterable[nn.Parameter]") -> None:
        """Average gradients over the ranks, of parameters outside the model; those that no rank has stay None."""

    def sync_gradients(self, forward: Any, enabled: bool) -> None:
        """Set whether the next backward pass averages its gradients over the ranks."""

    def any_rank(self, stop: Stop) -> Callable[[], bool]:
        """Return a stop request that is true in the same step on every rank, if it is on any."""
        return stop

    def rank_zero_first(self, function: Callable[[], T]) -> T:
        """Call `function` in one process of each machine, then in the others; in none of them if it fails."""
        return function()

    def explain_failure(self, error: BaseException, message: str) -> str:
        """Explain which rank failed first, and how. message: the explanation of `error`, in which this rank ended."""
        return message


SINGLE_PROCESS = Distributed()

# The store of the run that this process takes part in; it outlives the group.
_stores: list[Any] = []


class ProcessGroup(Distributed):
    """One of several processes."""

    def __init__(self) -> None:
        """Join the other ranks; blocks until all are there."""
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        self.rank = int(os.environ["RANK"])
        self.world_size = int(os.environ["WORLD_SIZE"])
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        self.local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        self.is_first_local = self.local_rank == 0

        # A store of our own, rather than init_process_group's, to exchange failures after the group has broken.
        self.store, *_ = next(rendezvous("env://", self.rank, self.world_size))
        _stores.append(self.store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if _can_use_nccl(self.local_world_size) else "gloo",
            store=self.store,
            rank=self.rank,
            world_size=self.world_size,
            timeout=timedelta(seconds=_START_SECONDS),
        )
        # Setup uses the first group with its long timeout, training the one of `set_timeout`.
        self.setup_group: Any = dist.group.WORLD
        self.group: Any = self.setup_group

    def set_timeout(self, seconds: float) -> None:
        """Use a group with this timeout for all that follows."""
        import torch.distributed as dist

        self.group = dist.new_group(timeout=timedelta(seconds=seconds))

    def gather_blocks(self, blocks: list[T]) -> list[T]:
        """Interleave the blocks of all ranks: the first of each, the second of each, ..."""
        blocks_of_ranks = self.gather(blocks)
        longest = max(map(len, blocks_of_ranks))

        interleaved = []
        for i in range(longest):
            for rank_blocks in blocks_of_ranks:
                if i < len(rank_blocks):
                    interleaved.append(rank_blocks[i])
        return interleaved

    def sum_over_ranks(self, value: "Tensor") -> "Tensor":
        """All-reduce a copy of the tensor."""
        import torch.distributed as dist

        # all_reduce works in place.
        value = value.detach().clone()
        dist.all_reduce(value, group=self.group)
        return value

    def broadcast(self, value: T) -> T:
        """Broadcast a picklable object from rank 0."""
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """All-gather a picklable object."""
        return self._gather_in(self.group, value)

    def _gather_in(self, group: Any, value: T) -> list[T]:
        import torch.distributed as dist

        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=group)
        return values

    def broadcast_buffers(self, model: "nn.Module") -> None:
        """Broadcast buffers and extra state; buffers are created or reshaped first where rank 0 has others."""
        import torch
        import torch.distributed as dist

        from dlrun.engine import forward_buffers

        # Forward passes may have created other buffers there than here, or have given them other shapes.
        layout, extra_states = self.broadcast(
            (forward_buffers.get_layout(model), forward_buffers.get_extra_states(model))
        )
        if self.rank != 0:
            forward_buffers.apply_layout(model, layout)
            for name, state in extra_states.items():
                model.get_submodule(name).set_extra_state(state)

        for buffer in model.buffers():
            # Backends know neither complex numbers nor strides.
            numbers = torch.view_as_real(buffer) if buffer.is_complex() else buffer
            contiguous = numbers.contiguous()
            dist.broadcast(contiguous, src=0, group=self.group)
            # Otherwise the buffer itself has received the values.
            if contiguous is not numbers:
                numbers.copy_(contiguous)

    def wrap_model(self, model: "nn.Module") -> "Callable[..., Tensor]":
        """Wrap the model in torch's DistributedDataParallel; without trainable parameters it stays as it is.

        A user's model may leave layers out of its loss, different ones on each rank: DDP then looks for unused
        parameters at every step. Gradients that no rank has stay None.
        """
        from torch.nn.parallel import DistributedDataParallel

        if not any(p.requires_grad for p in model.parameters()):
            return model
        is_fully_used = all(type(module).__module__.startswith(_FULLY_USED_MODULES) for module in model.modules())
        return DistributedDataParallel(model, process_group=self.group, find_unused_parameters=not is_fully_used)

    def shard_model(self, model: "nn.Module", has_blocks: bool = True) -> "ShardedModel":
        """Split a copy of the model, with the weights of rank 0, as DistributedDataParallel begins with them."""
        import torch.distributed as dist

        from dlrun.engine.sharding import ShardedModel

        for parameter in model.parameters():
            contiguous = parameter.detach().contiguous()
            dist.broadcast(contiguous, src=0, group=self.group)
            parameter.data.copy_(contiguous)
        self.broadcast_buffers(model)
        return ShardedModel(model, self.group, has_blocks)

    def average_gradients(self, parameters: "Iterable[nn.Parameter]") -> None:
        """All-reduce the gradients as one tensor, with the number of ranks that have each in front."""
        import torch
        import torch.distributed as dist

        trainable = [p for p in parameters if p.requires_grad]
        if not trainable:
            return

        # A rank without a row of the batch has none.
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainable]
        present = gradients[0].new_tensor([p.grad is not None for p in trainable])
        flat = torch.cat([present, *(gradient.flatten() for gradient in gradients)])
        dist.all_reduce(flat, group=self.group)

        counts, *averages = torch.split(flat, [len(trainable), *(p.numel() for p in trainable)])
        for p, count, average in zip(trainable, counts.tolist(), averages, strict=True):
            if count:
                p.grad = (average / self.world_size).view_as(p)

    def sync_gradients(self, forward: Any, enabled: bool) -> None:
        """Set what DistributedDataParallel.no_sync sets, without a context around both passes.

        A net of fully_shard ignores it, and reduces its gradients after every batch: full ones would take memory.
        """
        forward.require_backward_grad_sync = enabled

    def any_rank(self, stop: Stop) -> Callable[[], bool]:
        """Return a stop request that exchanges signals between the ranks."""
        return _SharedStop(stop, self.group)

    def rank_zero_first(self, function: Callable[[], T]) -> T:
        """Call `function` on the first rank of each machine, then on the others.

        Raises what `function` raised here, or a RequestError that names the rank where it failed.
        """
        result: Any = None
        for is_turn_of_first in (True, False):
            error: Exception | None = None
            if self.is_first_local == is_turn_of_first:
                try:
                    result = function()
                except Exception as raised:
                    # Tell the other ranks before raising it.
                    error = raised

            # Every rank takes part in both exchanges, whether it was its turn or not.
            messages = self._gather_in(self.setup_group, None if error is None else str(error))
            if error is not None:
                raise error
            for rank, message in enumerate(messages):
                if message is not None:
                    raise RequestError(f"process {rank} of {self.world_size} cannot begin: {message}")
        return result  # type: ignore[no-any-return]

    def explain_failure(self, error: BaseException, message: str) -> str:
        """Ask the other ranks what happened.

        The first rank that failed by itself says so in the store. A rank that does not answer was killed, or hangs.
        """
        is_transport_error = not isinstance(error, DlrunError) and any(text in str(error) for text in _TRANSPORT_TEXTS)
        # compare_set writes only if the key is absent: the first failure is the cause of the others.
        if not is_transport_error:
            failure = f"process {self.rank} of {self.world_size} failed: {message}"
            self.store.compare_set("failed", "", failure)
        self.store.set(f"answered/{self.rank}", "yes")

        # A rank that failed by itself needs a moment to say so.
        deadline = time.monotonic() + _ANSWER_SECONDS
        silent = self._find_silent_ranks()
        while silent and time.monotonic() < deadline and not self.store.check(["failed"]):
            time.sleep(0.05)
            silent = self._find_silent_ranks()

        if self.store.check(["failed"]):
            return str(self.store.get("failed").decode())
        if silent:
            numbers = ", ".join(map(str, silent))
            return f"process {numbers} of {self.world_size} does not answer: it was killed, or hangs"
        return message

    def _find_silent_ranks(self) -> list[int]:
        return [rank for rank in range(self.world_size) if not self.store.check([f"answered/{rank}"])]


class _SharedStop:
    """A stop request that all ranks see in the same step: signals are exchanged while the next step is made."""

    def __init__(self, stop: Stop, group: Any) -> None:
        self.stop = stop
        self.group = group
        self.signal: Any = None
        self.work: Any = None

    def __call__(self) -> bool:
        import torch
        import torch.distributed as dist

        # The exchange that the call before this one has started.
        signal_number = 0
        if self.work is not None:
            self.work.wait()
            signal_number = int(self.signal)
        if signal_number and not self.stop.signal_number:
            self.stop.signal_number = signal_number

        self.signal = torch.tensor(self.stop.signal_number, dtype=torch.int32)
        self.work = dist.all_reduce(self.signal, op=dist.ReduceOp.MAX, group=self.group, async_op=True)
        return signal_number != 0


def _can_use_nccl(local_world_size: int) -> bool:
    import torch

    # NCCL refuses processes that share a GPU.
    has_gpu_each = torch.cuda.is_available() and torch.cuda.device_count() >= local_world_size
    return has_gpu_each and torch.distributed.is_nccl_available()


def is_distributed() -> bool:
    """Whether this is one of several processes that train one run."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_follower() -> bool:
    """Whether this process is one of several, and not rank 0."""
    return is_distributed() and int(os.environ.get("RANK", "0")) > 0


@contextlib.contextmanager
def join_processes() -> Iterator[Distributed]:
    """Join all processes of the run, and leave them on exit; SINGLE_PROCESS if this is the only one."""
    if not is_distributed():
        yield SINGLE_PROCESS
        return

    import torch.distributed as dist

    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise RequestError(f"WORLD_SIZE is set but {', '.join(missing)} is not; type torchrun -m dlrun ...")
    try:
        yield ProcessGroup()
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def release_ranks_after_report() -> Iterator[None]:
    """On exit, rank 0 tells the others that it has reported the failure, so that they stop waiting."""
    try:
        yield
    finally:
        while _stores:
            store = _stores.pop()
            if not is_follower():
                with contextlib.suppress(Exception):
                    # The launcher that holds the store may be gone already.
                    store.set(_REPORTED, "yes")


def wait_for_report_of_rank_zero() -> None:
    """Block until rank 0 has reported the failure: torchrun kills every rank as soon as one of them exits.

    A rank 0 that knows of no failure may be waiting for this process's gradients: only its end releases it.
    """
    start = time.monotonic()
    with contextlib.suppress(Exception):
        # Rank 0 may hold the store, and is gone then.
        while _stores and not _stores[-1].check([_REPORTED]):
            has_failed = _stores[-1].check(["answered/0"])
            limit = _REPORT_SECONDS if has_failed else _NOTICE_SECONDS
            if time.monotonic() - start > limit:
                return
            time.sleep(0.05)


def dismiss_followers() -> None:
    """Tell the other ranks that there is nothing to train."""
    if is_distributed() and not is_follower():
        with contextlib.suppress(RequestError), join_processes() as ranks:
            ranks.broadcast(None)


def require_single_process(action: str) -> None:
    """RequestError under torchrun; action: what one process does alone, as the message's subject."""
    if is_distributed():
        raise RequestError(f"{action} is done by one process; start it without torchrun")
