"""When checkpoints are written, which of them are kept, and what last.pt and best.pt point to."""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from dlrun.core.errors import CheckpointError, RunError
from dlrun.core.files import DiskProblems, link
from dlrun.engine.callback import Callback, TrainerView
from dlrun.engine.device import get_rng_state
from dlrun.engine.state import TrainState
from dlrun.runs.checkpoint import FORMAT_VERSION, load, save

# Suffix of a checkpoint that is newer than the one the run resumes from.
_ASIDE = ".newer"


class CheckpointManager(Callback):
    """Keep a run's checkpoints: the newest `keep` step_*.pt files, with last.pt and best.pt as links to them.

    The best weights are held in memory from one save to the next, so a save costs one file an epoch.
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
    ) -> None:
        """identity: keys repeated in each checkpoint; disk_problems: where failed saves are recorded."""
        self.folder = folder
        self.identity = identity
        self.disk_problems = disk_problems or DiskProblems()
        self.every_epochs = every_epochs
        self.every_steps = every_steps
        self.keep = keep

        # The best weights that best.pt does not have yet.
        self.best: dict[str, Any] | None = None
        # Step of the best epoch, if that was one of this process.
        self.best_step: int | None = None
        # Metrics of the last complete epoch.
        self.row: dict[str, float] = {}
        # True once a checkpoint of this process was read back successfully.
        self.is_verified = False
        # Called with checkpoints that were read back, to compare them with the live state.
        self.examine: Callable[[dict[str, Any]], None] | None = None
        self.saves = 0
        # True if the newest checkpoint resumes in the middle of an epoch.
        self.saved_mid_epoch = False
        self.seconds = 0.0

    def restore(self, earlier: dict[str, Any]) -> None:
        """Continue after the checkpoint `earlier`: set newer files aside and repair the links."""
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
        """Save in the middle of an epoch if `every_steps` asks for it."""
        state = trainer.state
        # The last batch is left to `on_epoch_end`, which has the epoch's row.
        if self._is_due(state.progress.step) and state.progress.batch < len(state.train):
            self.write(state, self.row)

    def _is_due(self, step: int) -> bool:
        return self.every_steps is not None and step % self.every_steps == 0

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        """Save at the end of the run, every `every_epochs` epochs and at steps that `every_steps` hits."""
        state = trainer.state
        self.row = row
        if trainer.is_best:
            # A copy: the next epoch changes these tensors in place, and the save may come epochs later.
            weights = _copy_state(state.get_weights())
            self.best_step = int(row["step"])
            self.best = weights | {"epoch": row["epoch"], "step": row["step"], "metrics": dict(row)}

        is_epoch_due = state.progress.epoch % self.every_epochs == 0
        # `on_interrupt` has saved what a resumed run needs; a save from here would skip the rest of the epoch.
        if self.saved_mid_epoch:
            with self.disk_problems.tolerate("the checkpoint"):
                self.save_partial_best()
        elif state.is_finished or is_epoch_due or self._is_due(state.progress.step):
            self.write(state, row)

    def on_interrupt(self, trainer: TrainerView) -> None:
        """Save the state of an interrupted epoch; a following `on_epoch_end` only saves its best weights."""
        self.write(trainer.state, self.row)
        self.saved_mid_epoch = True

    def save_partial_best(self) -> None:
        """Make the partial epoch best.pt if it is the best; best_before.pt is restored on resume."""
        if self.best is None:
            return
        best = self.folder / "best.pt"
        if best.exists():
            # A link first: a kill between the two steps leaves best.pt as it was.
            link(best, self.folder / "best_before.pt")
        self._save_best()

    def write(self, state: TrainState, row: dict[str, float]) -> None:
        """Save a checkpoint; if the disk refuses it, the earlier files stay intact."""
        start = time.perf_counter()
        # A collective call: each rank takes part, whether or not the disk accepts the file.
        states = gather_rank_states(state)
        with self.disk_problems.tolerate("the checkpoint"):
            self._write(state, row, states)
        self.seconds += time.perf_counter() - start

    def _write(self, state: TrainState, row: dict[str, float], rank_states: list[dict[str, Any]]) -> None:
        """Write step_*.pt, then update the links, then delete files that are no longer kept."""
        progress = state.progress
        self.folder.mkdir(exist_ok=True)

        checkpoint = state.state_dict() | rank_states[0]
        if len(rank_states) > 1:
            checkpoint["others"] = rank_states[1:]
        checkpoint |= {"epoch": progress.epoch, "step": progress.step, "metrics": dict(row)}

        newest = self._step_file(progress.step)
        if self._is_best_older(newest) and not (self.folder / "last.pt").exists():
            # Nothing from before the best epoch is there to resume from, so write best.pt first.
            self._save_best()
        save(newest, self.identity | checkpoint | {"format_version": FORMAT_VERSION})
        # Before the links: a file that cannot be read back must not become last.pt.
        stored_state = None if self.is_verified else self._verify(newest)

        try:
            self._update_links(newest)
        except OSError:
            # Otherwise each retry would leave one more file.
            newest.unlink()
            raise
        self._delete_old()
        self.saves += 1
        if self.examine is not None and self._is_examined(state):
            self.examine(load(newest) if stored_state is None else stored_state)

    def _is_examined(self, state: TrainState) -> bool:
        """Whether to examine this save: saves 1, 2, 4, 8 ... and the last, as hidden state may act late."""
        is_power_of_two = self.saves & (self.saves - 1) == 0
        return is_power_of_two or state.is_finished

    def _verify(self, newest: Path) -> dict[str, Any]:
        """Read the first checkpoint of this process back; RunError if that fails.

        Costs about as much as writing it, once.
        """
        try:
            state = load(newest)
        except CheckpointError as error:
            newest.unlink(missing_ok=True)
            if isinstance(error.__cause__, OSError):
                # A disk error, which `write` tolerates: the run continues without this save.
                raise error.__cause__ from error
            raise RunError(f"the first checkpoint was written, and cannot be read back: {error}") from error
        self.is_verified = True
        return state

    def _update_links(self, newest: Path) -> None:
        """Update best.pt before last.pt, so that a crash in between resumes before the missing best."""
        if self._is_best_older(newest):
            self._save_best()
        elif self.best is not None:
            link(newest, self.folder / "best.pt")
            self.best = None
        link(newest, self.folder / "last.pt")

    def _is_best_older(self, newest: Path) -> bool:
        """Whether the unsaved best epoch is older than the state in `newest`."""
        return self.best is not None and self._step_file(self.best["step"]) != newest

    def _save_best(self) -> None:
        """Write best.pt as a file of its own, with the weights alone."""
        assert self.best is not None
        save(self.folder / "best.pt", self.identity | self.best | {"format_version": FORMAT_VERSION})
        self.best = None

    def load_best_weights(self, state: TrainState) -> dict[str, Any] | None:
        """Return `model` (and `ema` if weights are averaged) of the best epoch, even if it was never saved.

        None if no epoch was best, or if best.pt cannot be read, which is reported.
        """
        if self.best is not None:
            # The disk has refused it, or it is newer than the last save.
            return self.best
        if state.progress.best_epoch is None:
            return None

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


def gather_rank_states(state: TrainState) -> list[dict[str, Any]]:
    """Gather the state that each rank has of its own: RNG state, sums of the current epoch, users' callbacks."""
    return state.ranks.gather({"rng": get_rng_state()} | state.get_local_state())


def _copy_state(state: dict[str, Any]) -> dict[str, Any]:
    """Copy a nested state, so that later steps do not change it."""
    copies: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, dict):
            copies[key] = _copy_state(value)
        elif isinstance(value, Tensor):
            copies[key] = value.detach().clone()
        else:
            copies[key] = copy.deepcopy(value)
    return copies
