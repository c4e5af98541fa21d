"""When a run is saved, which of its checkpoints are kept, and which are called last and best."""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from dlrun.core.errors import CheckpointError, RunError
from dlrun.core.files import DiskProblems, link
from dlrun.engine.callback import Callback, EpochSummary
from dlrun.engine.device import get_rng_state
from dlrun.engine.state import TrainState
from dlrun.runs.checkpoint import FORMAT_VERSION, load, save

_ASIDE = ".newer"  # of a checkpoint newer than the one that the run goes on from


class CheckpointManager(Callback):
    """Keeps a run's checkpoints: the newest `keep` step_*.pt files, and last.pt and best.pt as links to such.

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
        unsaved: DiskProblems | None = None,
    ) -> None:
        self.folder, self.identity = folder, identity
        self.unsaved = unsaved or DiskProblems()  # where a save that fails is noted
        self.every_epochs, self.every_steps, self.keep = every_epochs, every_steps, keep
        self.best: dict[str, Any] | None = None  # what best.pt still lacks
        self.row: dict[str, float] = {}  # of the last epoch that has ended
        self.is_proved = False  # a checkpoint of this process has been read back
        self.examine: Callable[[dict[str, Any]], None] | None = None  # looks at what was read back
        self.saves = 0
        self.left_open = False  # the newest state is to go on from in mid-epoch
        self.seconds = 0.0

    def go_on(self, earlier: dict[str, Any]) -> None:
        """Take over from an earlier process: what it saved after the state `earlier` is made again."""
        self.row = dict(earlier["metrics"])
        best, before = self.folder / "best.pt", self.folder / "best_before.pt"
        ended, best_epoch = self._step_file(earlier["step"]), earlier["early_stopping"]["best_epoch"]
        if before.exists():
            before.replace(best)
            before.unlink(missing_ok=True)  # two names of one file: the rename does nothing
        elif best_epoch is None:
            best.unlink(missing_ok=True)
        elif best_epoch == earlier["epoch"] and ended.exists() and not best.exists():
            link(ended, best)  # it was killed in its first save, before the links
        for file in self.folder.glob("step_*.pt"):
            if file > ended:  # perhaps it could not be read just now: it stays until it has been made again
                file.replace(file.with_suffix(_ASIDE))
        self._forget_old()

    def on_step_end(self, training: TrainState) -> None:
        """Save in the middle of an epoch where `every_steps` says so."""
        if self._is_due(training.progress.step) and training.progress.batch < len(training.train):
            self.write(training, self.row)  # else `on_epoch_end` does, when the epoch has its row

    def _is_due(self, step: int) -> bool:
        return self.every_steps is not None and step % self.every_steps == 0

    def on_epoch_end(self, training: TrainState, epoch: EpochSummary) -> None:
        """Remember the row and the best weights; save where `every_epochs` says so, and at the end."""
        self.row = row = epoch.row
        if epoch.is_best:
            weights = _copied(training.weights())
            self.best = weights | {"epoch": row["epoch"], "step": row["step"], "metrics": dict(row)}
        ended = training.is_done or training.is_out_of_patience
        if self.left_open:
            with self.unsaved.tolerate("the checkpoint"):
                self._keep_best_of_part()
        elif ended or training.progress.epoch % self.every_epochs == 0 or self._is_due(training.progress.step):
            self.write(training, row)

    def on_interrupt(self, training: TrainState) -> None:
        """Save where the run stands; an `on_epoch_end` that follows is of an unfinished epoch, and saves its best."""
        self.write(training, self.row)
        self.left_open = True

    def _keep_best_of_part(self) -> None:
        """best.pt becomes the unfinished epoch's, if that is best; best_before.pt is what counts when it goes on."""
        best = self.folder / "best.pt"
        if self.best is not None:
            if best.exists():
                link(best, self.folder / "best_before.pt")
            self._save_best()

    def write(self, training: TrainState, row: dict[str, float]) -> None:
        """Save, if the disk lets us: the files of before stay whole where it does not."""
        started, states = time.perf_counter(), states_of_all(training)
        with self.unsaved.tolerate("the checkpoint"):
            self._write(training, row, states)
        self.seconds += time.perf_counter() - started

    def _write(self, training: TrainState, row: dict[str, float], states: list[dict[str, Any]]) -> None:
        """step_*.pt with all the state; then the links, then the files that are no longer kept."""
        p = training.progress
        self.folder.mkdir(exist_ok=True)
        state = training.state_dict() | states[0] | ({"others": states[1:]} if len(states) > 1 else {})
        state |= {
            "epoch": p.epoch,
            "step": p.step,
            "metrics": dict(row),
        }
        newest = self._step_file(p.step)
        if self._is_passed(newest) and not (self.folder / "last.pt").exists():
            self._save_best()  # first, as nothing from before it is there to go on from
        save(newest, self.identity | state | {"format_version": FORMAT_VERSION})
        first = None if self.is_proved else self._prove(newest)
        try:
            self._name(newest)
        except OSError:
            newest.unlink()  # or every try would leave one more
            raise
        self._forget_old()
        self.saves += 1
        if self.examine is not None and self._is_examined(training):
            self.examine(load(newest) if first is None else first)

    def _is_examined(self, training: TrainState) -> bool:
        """Whether to look at a save: the first, second, fourth and so on, and the last; state may act late."""
        is_power_of_two = self.saves & (self.saves - 1) == 0
        return is_power_of_two or training.is_done or training.is_out_of_patience

    def _prove(self, newest: Path) -> dict[str, Any]:
        """Read the first checkpoint of this process back before anything relies on it; RunError where it cannot be.

        It takes about as long as writing it, once.
        """
        try:
            state = load(newest)
        except CheckpointError as error:
            newest.unlink(missing_ok=True)
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from error  # the disk, which the run goes on without
            raise RunError(f"the first checkpoint was written, and cannot be read back: {error}") from error
        self.is_proved = True
        return state

    def _name(self, newest: Path) -> None:
        """best.pt where there is a new one, and then last.pt: a run goes on from before a best that it lacks."""
        if self._is_passed(newest):
            self._save_best()
        elif self.best is not None:
            link(newest, self.folder / "best.pt")
            self.best = None
        link(newest, self.folder / "last.pt")

    def _is_passed(self, newest: Path) -> bool:
        """Whether the best epoch lies before what is saved as `newest`."""
        return self.best is not None and self._step_file(self.best["step"]) != newest

    def _save_best(self) -> None:
        """best.pt as a file of its own, with the weights alone."""
        assert self.best is not None
        save(self.folder / "best.pt", self.identity | self.best | {"format_version": FORMAT_VERSION})
        self.best = None

    def best_weights(self, training: TrainState) -> dict[str, Any] | None:
        """The best epoch's `model`, and `ema` where weights are averaged, also where they could not be saved.

        Null where no epoch was best.
        """
        if self.best is not None:
            return self.best
        if training.progress.best_epoch is None:
            return None
        try:
            return load(self.folder / "best.pt")
        except CheckpointError as error:
            self.unsaved.say(f"{error}; what is measured and drawn at the end is of the last weights, not the best")
            return None

    def _step_file(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}.pt"

    def _forget_old(self) -> None:
        files = sorted(self.folder.glob("step_*.pt"))
        best = self.folder / "best.pt"
        others = [file for file in files[:-1] if not (best.exists() and file.samefile(best))]
        for file in [*others, *files[-1:]][: -self.keep]:
            file.unlink()

        for file in self.folder.glob(f"step_*{_ASIDE}"):
            if files and file.stem <= files[-1].stem:
                file.unlink()


def states_of_all(training: TrainState) -> list[dict[str, Any]]:
    """What each process has of its own: its generators, and what it has summed up of the epoch."""
    return training.ranks.gather({"rng": get_rng_state(), "totals": training.totals.state_dict()})


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """A state that later steps do not change."""
    copies: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, dict):
            copies[key] = _copied(value)
        elif isinstance(value, Tensor):
            copies[key] = value.detach().clone()
        else:
            copies[key] = copy.deepcopy(value)
    return copies
