"""Several processes that train one run, as torchrun starts them: they share batches, gradients and evaluation.

The only code that knows a rank. Process 0 decides, records and speaks; the others follow it.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from dlrun.core.errors import DlrunError, RequestError

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")
_START_SECONDS = 1800  # so long may process 0 read or download data before the others begin
_ANSWER_SECONDS = 3.0  # so long a process may take to say what has befallen it
_NOTICE_SECONDS = 5.0  # longest time that a rank that failed waits for rank 0 to fail, too
_REPORT_SECONDS = 30.0  # longest time that it waits for rank 0, which has failed, to report it
_REPORTED = "rank 0 has reported"  # key in the store
_USING_ALL = ("torch.nn.", "dlrun.")  # modules whose layers all take part in every forward pass
_OF_THE_TRANSPORT = (
    "/gloo/",
    "Application timeout",
    "NCCL",
    "nccl",
)  # in the text of an error about another one


class Stop(Protocol):
    """The number of the signal that asks the run to end, or 0."""

    signal_number: int

    def __call__(self) -> bool: ...


class Distributed:
    """This process among those that train one run; here it is alone, and everything is as it is."""

    rank = 0  # of this process
    world_size = 1  # processes
    is_first_local = True  # on its machine
    local_rank = 0
    local_world_size = 1

    def set_timeout(self, seconds: float) -> None:
        """From here on a process that keeps the others waiting for longer ends the run."""

    def shard_batch(self, batches: "list[Tensor]") -> "list[Tensor]":
        """This process's rows of every training batch; none where a batch has fewer rows than there are processes."""
        if self.world_size == 1:
            return batches
        return [rows.tensor_split(self.world_size)[self.rank] for rows in batches]

    def shard_evaluation(self, batches: "list[Tensor]", block: int) -> "list[Tensor]":
        """This process's batches of an evaluation: whole ones, by blocks, so that each sums what one alone would."""
        return [rows for i, rows in enumerate(batches) if i // block % self.world_size == self.rank]

    def gather_blocks(self, blocks: list[T]) -> list[T]:
        """What the blocks of all processes came to, in the order that one process alone has them."""
        return blocks

    def sum_over_ranks(self, value: "Tensor") -> "Tensor":
        """The sum over all processes."""
        return value

    def broadcast(self, thing: T) -> T:
        """What process 0 has."""
        return thing

    def gather(self, thing: T) -> list[T]:
        """What every process has."""
        return [thing]

    def broadcast_buffers(self, model: "nn.Module") -> None:
        """Process 0's statistics (of batch norm, say), which are no parameters, in all of them."""

    def wrap_model(self, model: "nn.Module") -> "Callable[..., Tensor]":
        """The forward pass whose gradients are the mean over the processes."""
        return model

    def sync_gradients(self, forward: Any, until_last: bool) -> None:
        """Whether the next backward pass keeps its gradients here: they are summed up once for a step."""

    def any_rank(self, stop: Stop) -> Callable[[], bool]:
        """`stop` for all: true in the same step everywhere, though signals arrive when they like."""
        return stop

    def rank_zero_first(self, make: Callable[[], T]) -> T:
        """`make()`: on each machine first in one process, then in the others; in none of them when it fails."""
        return make()

    def explain_failure(self, error: BaseException, said: str) -> str:
        """Which process failed, and how, when this one has ended in `error`, of which `said` tells."""
        return said


SINGLE_PROCESS = Distributed()
_stores: list[Any] = []  # of the run that this process takes part in; it outlives the group


class ProcessGroup(Distributed):
    """One of several processes."""

    def __init__(self) -> None:
        """Joins the others, or waits for them."""
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        at = {name: int(os.environ[name]) for name in ("RANK", "WORLD_SIZE")}
        self.rank, self.world_size = at["RANK"], at["WORLD_SIZE"]
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        self.local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        self.is_first_local = self.local_rank == 0
        self.store, *_ = next(rendezvous("env://", self.rank, self.world_size))
        _stores.append(self.store)
        backend = "cpu:gloo,cuda:nccl" if _has_cuda() else "gloo"
        wait = timedelta(seconds=_START_SECONDS)
        dist.init_process_group(backend, store=self.store, rank=self.rank, world_size=self.world_size, timeout=wait)
        self.everyone: Any = dist.group.WORLD
        self.group: Any = self.everyone

    def set_timeout(self, seconds: float) -> None:
        """See Ranks."""
        import torch.distributed as dist

        self.group = dist.new_group(timeout=timedelta(seconds=seconds))

    def gather_blocks(self, blocks: list[T]) -> list[T]:
        """See Ranks."""
        everyone = self.gather(blocks)
        most = max(map(len, everyone))
        return [mine[i] for i in range(most) for mine in everyone if i < len(mine)]

    def sum_over_ranks(self, value: "Tensor") -> "Tensor":
        """See Ranks."""
        import torch.distributed as dist

        value = value.detach().clone()
        dist.all_reduce(value, group=self.group)
        return value

    def broadcast(self, thing: T) -> T:
        """See Ranks."""
        import torch.distributed as dist

        held = [thing]
        dist.broadcast_object_list(held, src=0, group=self.group)
        return held[0]

    def gather(self, thing: T) -> list[T]:
        """See Ranks."""
        return self._gathered(thing, self.group)

    def _gathered(self, thing: T, group: Any) -> list[T]:
        import torch.distributed as dist

        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, thing, group=group)
        return found

    def broadcast_buffers(self, model: "nn.Module") -> None:
        """See Ranks."""
        import torch
        import torch.distributed as dist

        from dlrun.engine import made_buffers

        # The forward passes may have made other buffers there than here, or have given them other shapes.
        layout, extra = self.broadcast((made_buffers.get_layout(model), made_buffers.get_extra_states(model)))
        if self.rank:
            made_buffers.apply_layout(model, layout)
            for name, state in extra.items():
                model.get_submodule(name).set_extra_state(state)
        for buffer in model.buffers():
            numbers = torch.view_as_real(buffer) if buffer.is_complex() else buffer
            sent = numbers.contiguous()
            dist.broadcast(sent, src=0, group=self.group)
            if sent is not numbers:
                numbers.copy_(sent)

    def wrap_model(self, model: "nn.Module") -> "Callable[..., Tensor]":
        """torch's DistributedDataParallel; a model without anything to train is as it is.

        A net of the user's own may leave layers out of its loss, now these and now those in each process: it is
        looked through at every step. Gradients that no process has stay None.
        """
        from torch.nn.parallel import DistributedDataParallel

        if not any(p.requires_grad for p in model.parameters()):
            return model
        may_leave_out = not all(type(module).__module__.startswith(_USING_ALL) for module in model.modules())
        return DistributedDataParallel(model, process_group=self.group, find_unused_parameters=may_leave_out)

    def sync_gradients(self, forward: Any, until_last: bool) -> None:
        """See Ranks; what DistributedDataParallel.no_sync sets, without a context around both passes."""
        forward.require_backward_grad_sync = not until_last

    def any_rank(self, stop: Stop) -> Callable[[], bool]:
        """See Ranks."""
        return _Agreed(stop, self.group)

    def rank_zero_first(self, make: Callable[[], T]) -> T:
        """See Ranks. Raises what `make` did here, or a RequestError that names the process where it failed."""
        made: Any = None
        for first in (True, False):
            error: Exception | None = None
            if self.is_first_local == first:
                try:
                    made = make()
                except Exception as failed:  # it is told to the other processes, and raised again
                    error = failed
            said = self._gathered(None if error is None else str(error), self.everyone)
            if error is not None:
                raise error
            for number, text in enumerate(said):
                if text is not None:
                    raise RequestError(f"process {number} of {self.world_size} cannot begin: {text}")
        return made  # type: ignore[no-any-return]

    def explain_failure(self, error: BaseException, said: str) -> str:
        """See Ranks. The first process that fails by itself says so; one that says nothing was killed, or hangs."""
        lost = not isinstance(error, DlrunError) and any(word in str(error) for word in _OF_THE_TRANSPORT)
        if not lost:
            self.store.compare_set("failed", "", f"process {self.rank} of {self.world_size} failed: {said}")
        self.store.set(f"answered/{self.rank}", "yes")
        until = time.monotonic() + _ANSWER_SECONDS
        while (silent := self._silent()) and time.monotonic() < until and not self.store.check(["failed"]):
            time.sleep(0.05)
        if self.store.check(["failed"]):
            return str(self.store.get("failed").decode())
        names = ", ".join(map(str, silent))
        return f"process {names} of {self.world_size} does not answer: it was killed, or hangs" if names else said

    def _silent(self) -> list[int]:
        return [i for i in range(self.world_size) if not self.store.check([f"answered/{i}"])]


class _Agreed:
    """A stop that all processes see in the same step: what one has caught goes round while the next is made."""

    def __init__(self, stop: Stop, group: Any) -> None:
        self.stop, self.group = stop, group
        self.flag: Any = None
        self.work: Any = None

    def __call__(self) -> bool:
        import torch
        import torch.distributed as dist

        agreed = 0
        if self.work is not None:
            self.work.wait()
            agreed = int(self.flag)
        if agreed and not self.stop.signal_number:
            self.stop.signal_number = agreed
        self.flag = torch.tensor(self.stop.signal_number, dtype=torch.int32)
        self.work = dist.all_reduce(self.flag, op=dist.ReduceOp.MAX, group=self.group, async_op=True)
        return agreed != 0


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available() and torch.distributed.is_nccl_available()


def is_distributed() -> bool:
    """Whether this is one of several processes that train one run."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_follower() -> bool:
    """Whether this process follows another one's lead."""
    return is_distributed() and int(os.environ.get("RANK", "0")) > 0


@contextlib.contextmanager
def join_processes() -> Iterator[Distributed]:
    """All the processes of the run, until this ends; alone where there is one."""
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
                with contextlib.suppress(Exception):  # of a launcher that is gone already
                    store.set(_REPORTED, "yes")


def wait_for_report_of_rank_zero() -> None:
    """Block until rank 0 has reported the failure: torchrun kills every rank as soon as one of them exits.

    A rank 0 that knows of no failure may be waiting for this process's gradients: only its end releases it.
    """
    start = time.monotonic()
    with contextlib.suppress(Exception):  # process 0 may hold the store, and is gone then
        while _stores and not _stores[-1].check([_REPORTED]):
            knows = _stores[-1].check(["answered/0"])
            if time.monotonic() - start > (_REPORT_SECONDS if knows else _NOTICE_SECONDS):
                return
            time.sleep(0.05)


def dismiss_followers() -> None:
    """Tell the others that there is nothing to train."""
    if is_distributed() and not is_follower():
        with contextlib.suppress(RequestError), join_processes() as ranks:
            ranks.broadcast(None)


def require_single_process(what: str) -> None:
    """RequestError under torchrun for what one process does."""
    if is_distributed():
        raise RequestError(f"{what} is done by one process; start it without torchrun")
