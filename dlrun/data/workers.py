"""Worker processes that read data: a failure in one is a sentence of the run, and none outlives the run."""

import atexit
import contextlib
import ctypes
import multiprocessing.util  # registers its exit handler first, so that `end_workers` runs before it
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, cast
from weakref import WeakSet

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from dlrun.core.errors import DataError, DlrunError, RunError, find_own_line, iter_causes
from dlrun.core.forks import PR_SET_PDEATHSIG
from dlrun.core.library_warnings import divert_until_exit
from dlrun.core.signals import STOP_SIGNALS, block_signals
from dlrun.data.datasets import Rows, SeededDataset, is_list_of_samples

# Time that the signal with the reason may take after a broken pipe.
SIGNAL_SECONDS = 1.0

# All worker processes of this process, to be ended with it.
_workers: WeakSet[BaseProcess] = WeakSet()


@dataclass(frozen=True)
class Failure:
    """An error in a worker as plain text: many exceptions cannot be sent to another process."""

    message: str
    traceback: str
    is_run_error: bool = False

    def raise_error(self) -> None:
        """Raise it as an error of this process, with the worker's traceback for the log."""
        error: DlrunError = RunError(self.message) if self.is_run_error else DataError(self.message)
        error.add_note(f"In the worker process:\n{self.traceback}")
        raise error


class GuardedDataset(Dataset[Any]):
    """A dataset whose batches are tensors ready to be sent, or a Failure in place of rows that cannot be read.

    No exception leaves a worker process: torch would print a page of its own, and would wait for ever for a
    batch that its thread cannot pickle.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset
        self.bytes_a_row = getattr(dataset, "bytes_a_row", None)

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitems__(self, keys: list[Any]) -> Any:
        """Read and collate a batch; errors are a Failure in a worker, an exception in the run's own process."""
        in_worker = get_worker_info() is not None
        try:
            batch = self._read(keys)
            if in_worker:
                # Sharing may fail too (no room in /dev/shm): in torch's thread the error would get lost.
                for tensor in batch:
                    tensor.share_memory_()  # type: ignore[no-untyped-call]
            return batch
        except BaseException as error:
            # sys.exit in a worker is a failure like any other.
            if in_worker:
                message = self._explain(error, keys)
                return Failure(message, format_traceback(error).rstrip(), is_run_error=isinstance(error, RunError))
            if isinstance(error, DlrunError) or not isinstance(error, Exception):
                raise
            raise DataError(self._explain(error, keys)) from error

    def _read(self, keys: list[Any]) -> tuple[Tensor, ...]:
        dataset: Any = self.dataset
        if hasattr(dataset, "__getitems__"):
            batch = dataset.__getitems__(keys)
            if is_list_of_samples(batch):
                batch = collate(batch)
        else:
            batch = collate([dataset[key] for key in keys])

        is_sequence = isinstance(batch, tuple | list)
        if not is_sequence or not all(isinstance(column, Tensor) for column in batch):
            raise TypeError(f"a row must be a tuple of tensors (input, target), and not {describe_shapes(batch)}")
        return tuple(batch)

    def _explain(self, error: BaseException, keys: list[Any]) -> str:
        if isinstance(error, DlrunError):
            return str(error)

        # Read the rows one by one to find the one that fails.
        shape_of_row: dict[int, str] = {}
        for key in keys:
            dataset, row = find_source_row(self.dataset, key)
            try:
                shape_of_row[row] = describe_shapes(self._read([key]))
            except BaseException:
                # The error of the batch is the one to report.
                return f"row {row} of the data ({type(dataset).__qualname__}) cannot be read: {describe_error(error)}"

        # Each row can be read alone, so together they do not make a batch.
        dataset, _ = find_source_row(self.dataset, keys[0])
        name = type(dataset).__qualname__
        first = next(iter(shape_of_row))
        other = next((row for row in shape_of_row if shape_of_row[row] != shape_of_row[first]), None)
        if other is None:
            return f"a batch of {len(keys)} rows of the data ({name}) cannot be read: {describe_error(error)}"
        return (
            f"row {first} of the data ({name}) is {shape_of_row[first]} and row {other} is {shape_of_row[other]}: "
            "rows of one shape make a batch; pad or cut them to one shape"
        )


def collate(samples: list[Any]) -> Any:
    """Collate samples to a batch; TypeError for a sample that holds something other than tensors and numbers."""
    try:
        return default_collate(samples)
    except Exception as error:
        # torch reports it in many ways.
        for sample in samples:
            columns = sample if isinstance(sample, tuple | list) else [sample]
            if not all(isinstance(x, Tensor | np.ndarray | np.generic | int | float) for x in columns):
                raise TypeError(
                    f"a row must be a tuple of tensors (input, target), and not {describe_shapes(sample)}"
                ) from error
        raise


def find_source_row(dataset: Any, key: Any) -> tuple[Any, int]:
    """Unwrap dlrun's own wrappers: the dataset below them, and its row that `key` stands for."""
    row = int(key[1]) if isinstance(key, tuple) else int(key)
    while isinstance(dataset, SeededDataset | Rows):
        if isinstance(dataset, Rows):
            row = int(dataset.index[row])
        dataset = dataset.dataset
    return dataset, row


def describe_shapes(batch: Any) -> str:
    """Describe a batch in a word or two: the shape of each tensor without its rows, or another type."""
    if not isinstance(batch, tuple | list):
        return type(batch).__name__

    shapes = []
    for column in batch:
        is_tensor = isinstance(column, Tensor)
        shapes.append(str(tuple(column.shape[1:])) if is_tensor else type(column).__name__)
    return f"({', '.join(shapes)})"


def describe_error(error: BaseException) -> str:
    """Describe an exception: its type, the first line of its message, and the line of code that raised it."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        # An exception of the user's own may fail to format itself.
        text = ""

    message = f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
    if isinstance(error, MemoryError):
        return f"{message}; there is no memory left, try fewer data.num_workers or a smaller data.batch_size"
    place = find_own_line(error)
    return f"{message} ({place})" if place else message


def format_traceback(error: BaseException) -> str:
    """Format the traceback as text."""
    return "".join(traceback.format_exception(error))


def fetch(loader: DataLoader[Any]) -> Iterator[tuple[Tensor, ...]]:
    """Yield the loader's batches as read by `GuardedDataset`; DataError for rows that a worker could not read."""
    children_before = set(multiprocessing.active_children())
    try:
        # A new worker holds signals back until `prepare_worker` ignores them: before that, they would end it.
        with block_signals(*STOP_SIGNALS):
            batches = iter(loader)
    except Exception as error:
        # A dataset that cannot be pickled where processes are spawned, or no memory to fork.
        raise DataError(
            f"worker processes cannot be started: {describe_error(error)}; "
            "type data.num_workers=0 to read in this process"
        ) from error
    _workers.update(set(multiprocessing.active_children()) - children_before)

    try:
        for batch in batches:
            if isinstance(batch, Failure):
                batch.raise_error()
            yield batch
    except (ConnectionError, EOFError):
        # A worker that is killed while it sends a batch shows up as a broken pipe only. torch's handler of
        # SIGCHLD raises in this sleep, and names the worker.
        time.sleep(SIGNAL_SECONDS)
        raise
    finally:
        # A traceback keeps this frame, and would keep the workers with it.
        del batches


def explain_death(error: BaseException) -> DataError | None:
    """The sentence for torch's exception about a dead worker; None for all other exceptions."""
    messages = [str(cause) for cause in iter_causes(error) if isinstance(cause, RuntimeError)]
    text = " ".join(message for message in messages if message.startswith("DataLoader worker (pid"))
    if not text:
        return None

    killed = re.search(r"killed by signal: ([^.]+)\.", text)
    if killed and "Bus error" in killed[1]:
        return DataError(
            "a worker process that reads data was killed (Bus error): there is no room in shared memory, /dev/shm; "
            "type a smaller data.batch_size, fewer data.num_workers, or data.num_workers=0"
        )
    if killed and "Segmentation fault" in killed[1]:
        return DataError(
            "a worker process that reads data crashed (Segmentation fault); type data.num_workers=0 to see where"
        )
    if killed:
        return DataError(
            f"a worker process that reads data was killed ({killed[1]}); perhaps memory ran out: try fewer "
            "data.num_workers, or data.num_workers=0 to read in this process"
        )

    exit_code = re.search(r"with exit code (\d+)", text)
    detail = f" with exit code {exit_code[1]}" if exit_code else ""
    return DataError(
        f"a worker process that reads data ended by itself{detail}; code of the data ended it: type "
        "data.num_workers=0 to see where"
    )


def prepare_worker(number: int) -> None:
    """Set up a new worker process: it ends when the run tells it to, or with the run, and on no signal of its own.

    Ctrl-C reaches all processes of a terminal, and SIGTERM often all processes of a job: the run that then finishes
    its step and saves still needs its workers.
    """
    for stop_signal in STOP_SIGNALS:
        signal.signal(stop_signal, signal.SIG_IGN)
    sys.excepthook = ignore_exception
    divert_until_exit()
    if sys.platform == "linux":
        # Elsewhere torch checks every five seconds whether the run is still there.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def ignore_exception(*exception: Any) -> None:
    """Replace `sys.excepthook` in a worker.

    Only the thread that sends tensors reaches it, with a traceback when the run goes away: errors that
    `GuardedDataset` catches reach the run as a Failure.
    """


def end_workers() -> None:
    """Kill the remaining workers, such as those of a run that failed in the middle of an epoch."""
    alive = [worker for worker in _workers if worker.is_alive()]
    if not alive:
        return

    with suspend_child_watch():
        for worker in alive:
            worker.kill()
        for worker in alive:
            worker.join()


@contextlib.contextmanager
def suspend_child_watch() -> Iterator[None]:
    """Allow child processes to be killed inside: torch's handler of SIGCHLD would raise an exception for each."""
    # Only the main thread may set handlers, and Windows has no SIGCHLD.
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return

    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


atexit.register(end_workers)
