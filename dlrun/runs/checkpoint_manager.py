"""When checkpoints are written, which of them are kept, and what last.pt and best.pt point to."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dlrun.core.background import BackgroundCall
from dlrun.core.errors import CheckpointError, RunError
from dlrun.core.files import DiskProblems, link
from dlrun.engine import plain
from dlrun.engine.callback import Callback, TrainerView
from dlrun.engine.device import get_rng_state
from dlrun.engine.state import TrainState
from dlrun.runs.checkpoint import FORMAT_VERSION, load, save_encoded

# Suffix of a checkpoint that is newer than the one the run resumes from.
_ASIDE = ".newer"

# With every_epochs=1 and this many files kept, or fewer, a user has asked for no epoch's file in particular.
_DEFAULT_KEEP = 2

# After a save no epoch is saved for so many times the processor time that it took, ...
_REST = 200
# ... but at most for so many seconds.
_LONGEST_REST = 5.0

# Weights of at most so many bytes are kept in memory when they are written.
_SMALL_BYTES = 1_000_000


# Called with the content of a checkpoint.
Examination = Callable[[dict[str, Any]], None]


@dataclass
class _Pending:
    """One checkpoint on its way to the disk, which shares no tensor with the training."""

    file: Path
    # What the file holds.
    content: dict[str, Any]
    # The best weights that best.pt did not have when the copy was taken.
    best: dict[str, Any] | None
    # Whether it is read back, and what that gave.
    is_to_verify: bool
    stored_state: dict[str, Any] | None = None
    # How far it came.
    is_best_saved: bool = False
    is_complete: bool = False


class CheckpointManager(Callback):
    """Keep a run's checkpoints: the newest `keep` step_*.pt files, with last.pt and best.pt as links to them.

    A thread writes them, one at a time, from a copy that is taken between two steps; what it raises is raised, or
    recorded, by the next hook. Whatever ends the training waits for it: the last epoch, an interruption, an error.

    The best weights are held in memory from one save to the next, so a save costs one file an epoch. By default epochs
    that end too soon after a save for it to be worth its while are not saved.
    """

    phase = "checkpoint"

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        every_epochs: int,
        every_steps: int | None,
        keep: int,
        disk_problems: DiskProblems | None = None,
        every_seconds: float | None = None,
        examine: Examination | None = None,
    ) -> None:
        """identity: keys repeated in each checkpoint; disk_problems: where failed saves are recorded.

        every_seconds: saves come by the clock, in the place of every_epochs. examine: called with checkpoints that
        were read back, to compare them with the live state.
        """
        self.folder = folder
        self.identity = identity
        self.disk_problems = disk_problems or DiskProblems()
        self.every_epochs = every_epochs
        self.every_steps = every_steps
        self.every_seconds = every_seconds
        self.keep = keep
        self.examine = examine

        # The best weights that best.pt does not have yet.
        self.best: dict[str, Any] | None = None
        # Those that best.pt has, if they are small: reading them back would take longer than an epoch of such a net.
        self._written_best: dict[str, Any] | None = None
        # Step of the best epoch, if that was one of this process.
        self.best_step: int | None = None
        # Metrics of the last complete epoch.
        self.row: dict[str, float] = {}
        # True once a checkpoint of this process was read back successfully.
        self.is_verified = False
        # Writes what must be on the disk before a checkpoint is, and waits for it in the thread that writes that.
        self.flush_records: Callable[[], None] = _wait_for_nothing
        self.wait_for_records: Callable[[], None] = _wait_for_nothing
        # How often a checkpoint was due, written or not.
        self.due_count = 0
        # True if the newest checkpoint resumes in the middle of an epoch.
        self.saved_mid_epoch = False
        # Time that the training has waited for checkpoints.
        self.seconds = 0.0

        # `identity` as a file holds it, as soon as one is written.
        self._identity: dict[str, Any] | None = None
        self._call: BackgroundCall | None = None
        self._pending: _Pending | None = None
        # Step of the newest checkpoint that is complete.
        self._saved_step: int | None = None
        # Processor time of taking the copy that is written now.
        self._copy_seconds = 0.0
        # When the last save began, and until when epochs need not be saved.
        self._last_begin = time.monotonic()
        self._rest_end = 0.0

    def restore(self, earlier: dict[str, Any]) -> None:
        """Continue after the checkpoint `earlier`: set newer files aside and repair the links, as the disk allows."""
        with self.disk_problems.tolerate("what follows on the earlier checkpoints", again=False):
            self._restore(earlier)

    def _restore(self, earlier: dict[str, Any]) -> None:
        self.row = dict(earlier["metrics"])
        best = self.folder / "best.pt"
        previous_best = self.folder / "best_before.pt"
        resumed_file = self._step_file(earlier["step"])
        best_epoch = earlier["early_stopping"]["best_epoch"]

        if previous_best.exists():
            # best.pt is of a partial epoch, which the resumed run trains to its end and judges anew.
            previous_best.replace(best)
            # POSIX: renaming one hard link onto another of the same file does nothing.
            previous_best.unlink(missing_ok=True)
        elif best_epoch is None:
            # best.pt comes from after the checkpoint, by whose account no epoch was best yet.
            best.unlink(missing_ok=True)
        elif best_epoch == earlier["epoch"] and resumed_file.exists() and not best.exists():
            # The process was killed in its first save, before it made the links.
            link(resumed_file, best)

        for file in self.folder.glob("step_*.pt"):
            if file > resumed_file:
                # It may only be unreadable for the moment, so keep it until it has been written again.
                file.replace(file.with_suffix(_ASIDE))
        self._delete_old()

    def on_step_end(self, trainer: TrainerView) -> None:
        """Save in the middle of an epoch if `every_steps` or `every_seconds` asks for it."""
        if self._call is not None and self._call.has_ended:
            self.wait()

        state = trainer.state
        is_due = self._is_step_due(state.progress.step)
        if self.every_seconds is not None:
            is_due = self._is_time_due(state) or is_due
        # The last batch is left to `on_epoch_end`, which has the epoch's row.
        if is_due and state.progress.batch < len(state.train):
            self.begin_save(state, self.row)

    def _is_step_due(self, step: int) -> bool:
        return self.every_steps is not None and step % self.every_steps == 0

    def _is_time_due(self, state: TrainState) -> bool:
        """Whether `every_seconds` have passed, by the clock of rank 0. A collective call."""
        has_passed = self.every_seconds is not None and time.monotonic() - self._last_begin >= self.every_seconds
        return state.ranks.broadcast(has_passed)

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        """Save at the end of the run, every `every_epochs` epochs or `every_seconds`, and at steps of `every_steps`."""
        state = trainer.state
        self.row = row
        if trainer.is_best:
            # A copy: the next epoch changes these tensors in place, and the save may come epochs later.
            weights = plain.take_copy(state.get_weights())
            self.best_step = int(row["step"])
            self.best = weights | {"epoch": row["epoch"], "step": row["step"], "metrics": dict(row)}

        # `on_interrupt` has saved what a resumed run needs; a save from here would skip the rest of the epoch.
        if self.saved_mid_epoch:
            with self.disk_problems.tolerate("the checkpoint"):
                self.save_partial_best()
        elif self._is_epoch_due(state) or self._is_step_due(state.progress.step) or state.is_finished:
            if self._can_skip(state):
                self.due_count += 1
            else:
                self.begin_save(state, row)

    def _is_epoch_due(self, state: TrainState) -> bool:
        if self.every_seconds is not None:
            return self._is_time_due(state)
        return state.progress.epoch % self.every_epochs == 0

    def _can_skip(self, state: TrainState) -> bool:
        """Whether a checkpoint that is due may be left out, as it would cost much of the time that training takes.

        The first one never, nor those that a run has at its end, nor those that the user has asked for one by one:
        by `every_epochs`, `every_steps`, `every_seconds`, or a larger `keep`.
        """
        is_default = self.every_epochs == 1 and self.every_seconds is None and self.keep <= _DEFAULT_KEEP
        is_lasting = state.is_finished or _count_epochs_left(state) < self.keep
        if not is_default or is_lasting or self._is_step_due(state.progress.step):
            return False
        # Several processes save together, and none knows whether rank 0 would skip.
        if state.ranks.world_size > 1 or self._is_examined(state, self.due_count + 1):
            return False

        if self._call is not None and not self._call.has_ended:
            return True
        self.wait()
        return time.monotonic() < self._rest_end

    def take_best(self, best: dict[str, Any] | None) -> None:
        """Take the best weights from elsewhere: with epoch, step and metrics of that epoch, as best.pt holds them."""
        self.best = best
        self.best_step = None if best is None else int(best["step"])

    def on_interrupt(self, trainer: TrainerView) -> None:
        """Save the state of an interrupted epoch; a following `on_epoch_end` only saves its best weights."""
        state = trainer.state
        self.wait()
        self._complete_records()
        # After an epoch, `on_epoch_end` may have saved it already, which other ranks do not know.
        is_saved = not state.progress.batch and self._saved_step == state.progress.step
        if not is_saved or state.ranks.world_size > 1:
            self.begin_save(state, self.row)
            self.wait()
        self.saved_mid_epoch = True

    def on_fit_end(self, trainer: TrainerView) -> None:
        """Wait until the last checkpoint is on the disk."""
        self.wait()
        self._complete_records()

    def close(self) -> None:
        """Wait for a checkpoint that is being written; where an error ends the training, it is that one that counts."""
        with contextlib.suppress(Exception):
            # Whatever the thread met, the training ends by an error of its own.
            self._complete_records()
            self.wait()

    def _complete_records(self) -> None:
        self.flush_records()
        self.wait_for_records()

    def save_partial_best(self) -> None:
        """Make the partial epoch best.pt if it is the best; best_before.pt is restored on resume."""
        if self.best is None:
            return
        best = self.folder / "best.pt"
        if best.exists():
            # A link first: a kill between the two steps leaves best.pt as it was.
            link(best, self.folder / "best_before.pt")
        self._write_best(self.best)
        self._forget_best()

    def _forget_best(self) -> None:
        """Leave the best weights to best.pt, which has them by now."""
        weights = {} if self.best is None else self.best["model"]
        size = sum(value.nbytes for value in weights.values() if isinstance(value, Tensor))
        self._written_best = self.best if size <= _SMALL_BYTES else None
        self.best = None

    def begin_save(self, state: TrainState, row: dict[str, float]) -> None:
        """Begin to save a checkpoint; if the disk refuses it, the earlier files stay intact.

        RunError for a state that no checkpoint can hold.
        """
        start = time.perf_counter()
        cpu_start = time.thread_time()
        self.due_count += 1
        # A collective call: each rank takes part, whether or not the disk accepts the file.
        with state.summon_full_weights():
            self._begin_save(state, row, cpu_start)
        self.seconds += time.perf_counter() - start

    def _begin_save(self, state: TrainState, row: dict[str, float], cpu_start: float) -> None:
        rank_states = gather_rank_states(state)
        # Never a second one in flight.
        self._collect()

        self.flush_records()
        self._last_begin = time.monotonic()
        pending = self._take_copy(state, row, rank_states)
        self._copy_seconds = time.thread_time() - cpu_start
        self._pending = pending
        self._call = BackgroundCall(lambda: self._write(pending), "checkpoint")

        is_examined = self._is_examined(state, self.due_count)
        # Workers are forked as an epoch begins, which should find no other thread at work.
        workers: int = getattr(state.train, "workers", 0)
        if is_examined or workers:
            self._collect()
        if is_examined and self.examine is not None and pending.is_complete:
            with self.disk_problems.tolerate("the checkpoint"):
                self.examine(pending.stored_state or load(pending.file))

    def _take_copy(self, state: TrainState, row: dict[str, float], rank_states: list[dict[str, Any]]) -> _Pending:
        progress = state.progress
        file = self._step_file(progress.step)
        checkpoint = state.state_dict() | rank_states[0]
        if len(rank_states) > 1:
            checkpoint["others"] = rank_states[1:]
        checkpoint |= {"epoch": progress.epoch, "step": progress.step, "metrics": dict(row)}
        content = self._encode(file, checkpoint, is_to_copy=True)
        return _Pending(file, content, self.best, is_to_verify=not self.is_verified)

    def _encode(self, file: Path, state: dict[str, Any], is_to_copy: bool) -> dict[str, Any]:
        """Encode the content of a file: the state, copied if the training goes on changing it, and `identity`.

        RunError if no file can hold it.
        """
        try:
            if self._identity is None:
                # Once: the config in it has more parts than the state of a small net.
                self._identity = plain.encode(self.identity | {"format_version": FORMAT_VERSION})
            # What cannot be encoded may not be copied either, and this names it.
            encoded = plain.encode(state)
            return plain.join(self._identity, plain.take_copy(encoded) if is_to_copy else encoded)
        except plain.NotPlainError as error:
            raise RunError(f"{file} cannot be written: {error}") from error

    def wait(self) -> None:
        """Wait until no checkpoint is being written; an error of the disk is recorded, any other one raised."""
        start = time.perf_counter()
        try:
            self._collect()
        finally:
            self.seconds += time.perf_counter() - start

    def _collect(self) -> None:
        """Wait for the thread, and record its outcome."""
        call = self._call
        pending = self._pending
        if call is None or pending is None:
            return
        self._call = None
        self._pending = None
        try:
            with self.disk_problems.tolerate("the checkpoint"):
                call.wait()
        finally:
            # A newer best epoch may have come meanwhile.
            if pending.is_best_saved and self.best is pending.best:
                self._forget_best()
            if pending.stored_state is not None:
                self.is_verified = True
            if pending.is_complete:
                self._saved_step = pending.content["step"]
            rest = _REST * (call.cpu_seconds + self._copy_seconds)
            self._rest_end = time.monotonic() + min(rest, _LONGEST_REST)

    def _write(self, pending: _Pending) -> None:
        """Write step_*.pt, then update the links, then delete files that are no longer kept. In the thread."""
        self.wait_for_records()
        self.folder.mkdir(exist_ok=True)
        if _is_best_older(pending) and not (self.folder / "last.pt").exists():
            # Nothing from before the best epoch is there to resume from, so write best.pt first.
            self._save_best(pending)
        save_encoded(pending.file, pending.content)
        # Before the links: a file that cannot be read back must not become last.pt.
        if pending.is_to_verify:
            pending.stored_state = self._verify(pending.file)

        try:
            self._update_links(pending)
        except OSError:
            # Otherwise each retry would leave one more file.
            pending.file.unlink()
            raise

        self._delete_old()
        pending.is_complete = True

    def _is_examined(self, state: TrainState, due_count: int) -> bool:
        """Whether to examine a save: numbers 1, 2, 4, 8 ... and the last, as hidden state may act late."""
        is_power_of_two = due_count & (due_count - 1) == 0
        return self.examine is not None and (is_power_of_two or state.is_finished)

    def _verify(self, newest: Path) -> dict[str, Any]:
        """Read the first checkpoint of this process back; RunError if that fails.

        Costs about as much as writing it, once.
        """
        try:
            return load(newest)
        except CheckpointError as error:
            newest.unlink(missing_ok=True)
            if isinstance(error.__cause__, OSError):
                # A disk error, which `wait` tolerates: the run continues without this save.
                raise error.__cause__ from error
            raise RunError(f"the first checkpoint was written, and cannot be read back: {error}") from error

    def _update_links(self, pending: _Pending) -> None:
        """Update best.pt before last.pt, so that a crash in between resumes before the missing best."""
        if pending.best is not None and not pending.is_best_saved:
            if _is_best_older(pending):
                self._save_best(pending)
            else:
                link(pending.file, self.folder / "best.pt")
                pending.is_best_saved = True
        link(pending.file, self.folder / "last.pt")

    def _save_best(self, pending: _Pending) -> None:
        assert pending.best is not None
        self._write_best(pending.best)
        pending.is_best_saved = True

    def _write_best(self, best: dict[str, Any]) -> None:
        """Write best.pt as a file of its own, with the weights alone."""
        file = self.folder / "best.pt"
        save_encoded(file, self._encode(file, best, is_to_copy=False))

    def load_best_weights(self, state: TrainState) -> dict[str, Any] | None:
        """Return `model` (and `ema` if weights are averaged) of the best epoch, even if it was never saved.

        None if no epoch was best, or if best.pt cannot be read, which is reported.
        """
        if self.best is not None:
            # The disk has refused it, or it is newer than the last save.
            return self.best
        if state.progress.best_epoch is None:
            return None
        written = self._written_best
        if written is not None and written["epoch"] == state.progress.best_epoch:
            return written

        try:
            return load(self.folder / "best.pt")
        except CheckpointError as error:
            self.disk_problems.say(
                f"{error}; what is measured and drawn at the end is of the last weights, not the best"
            )
            return None

    def _step_file(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}.pt"

    def _delete_old(self) -> None:
        files = sorted(self.folder.glob("step_*.pt"))
        best = self.folder / "best.pt"

        # The file behind best.pt is never deleted, and counts only if it is the newest.
        candidates = [file for file in files[:-1] if not (best.exists() and file.samefile(best))]
        candidates += files[-1:]
        for file in candidates[: -self.keep]:
            file.unlink()

        # The resumed run has passed these steps again, so that its own files replace them.
        for file in self.folder.glob(f"step_*{_ASIDE}"):
            if files and file.stem <= files[-1].stem:
                file.unlink()


def _wait_for_nothing() -> None:
    """Every record is on the disk as soon as it is made."""


def _is_best_older(pending: _Pending) -> bool:
    """Whether the unsaved best epoch is older than the state to be saved."""
    return pending.best is not None and pending.best["step"] != pending.content["step"]


def _count_epochs_left(state: TrainState) -> int:
    """Epochs still to be trained, also a last one that max_steps cuts short, unless the patience ends first."""
    progress = state.progress
    rules = state.stop_rules
    left = rules.epochs - progress.epoch
    if rules.max_steps is None:
        return left
    steps_per_epoch = math.ceil(len(state.train) / rules.accumulate_steps)
    return min(left, math.ceil((rules.max_steps - progress.step) / steps_per_epoch))


def gather_rank_states(state: TrainState) -> list[dict[str, Any]]:
    """Gather the state that each rank has of its own: RNG state, sums of the current epoch, users' callbacks."""
    return state.ranks.gather({"rng": get_rng_state()} | state.get_local_state())
