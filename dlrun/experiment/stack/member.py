"""One run of a stack: prepared as a run alone, trained with the others, and recorded in its folder at its end."""

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dlrun.config.request import Request
from dlrun.config.settings import Settings
from dlrun.core import lock, signals
from dlrun.engine import device
from dlrun.engine.callback import Callback, TrainerView
from dlrun.engine.stack.member import Member
from dlrun.engine.stack.model import StackedModel
from dlrun.experiment.callbacks.diagnostics import RELUS, Diagnostics, merge_uses
from dlrun.experiment.callbacks.fingerprints import WeightHashes
from dlrun.experiment.context import RunContext
from dlrun.experiment.finish import finish
from dlrun.experiment.recording import Recording
from dlrun.experiment.run import choose_exit_code
from dlrun.experiment.stack.history import History
from dlrun.runs.logger import replace_infinite
from dlrun.runs.reports.console import Console, format_epoch, is_printed_epoch


class StackedRun:
    """A run whose steps a stack makes, with its history for the folder that is written at its end."""

    def __init__(self, request: Request, context: RunContext, rng: dict[str, Any]) -> None:
        """rng: state of all generators after the run was prepared."""
        self.request = request
        self.context = context
        self.history = History(context.state.model)
        # Lines for the run's log, which is opened at the end, with the epochs that they belong to.
        self.lines: list[tuple[int, str]] = []

        # Number of notes that the opening of the log lists.
        self.opening_notes = len(context.notes)
        # Rows for the diagnostics, which append to them.
        self.rows: list[dict[str, float]] = []

        callbacks: list[Callback] = [self.history]
        self.diagnostics: SparseDiagnostics | None = None
        if context.settings.tracking.diagnose:
            self.diagnostics = SparseDiagnostics(context, self.rows, self.add_line)
            callbacks.append(self.diagnostics)
        self.member = Member(context.state, rng, callbacks)

    @property
    def settings(self) -> Settings:
        """The settings of the run."""
        return self.context.settings

    def state_dict(self) -> dict[str, Any]:
        """What a stack's checkpoint holds of the run besides the state of its training."""
        return {"history": self.history.state_dict(), "lines": [list(line) for line in self.lines]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.history.load_state_dict(state["history"])
        self.lines = [(int(epoch), text) for epoch, text in state["lines"]]
        self.rows[:] = [replace_infinite(row) for row in self.history.rows]
        self.context.notes.extend(self.context.state.progress.troubles.values())

    def add_line(self, text: str) -> None:
        """Add a line to the log, after that of the epoch that has just ended."""
        self.lines.append((len(self.history.rows), text))

    def log_epochs(self, console: Console) -> None:
        """Write the lines of the epochs, and what was noted between them, to the log."""
        epochs = self.context.state.stop_rules.epochs
        last = len(self.history.rows)
        for number, row in enumerate(self.history.rows, 1):
            if number in (1, last) or is_printed_epoch(number, epochs):
                rate = f"{self.history.timings[number - 1]['samples_per_second']:,.0f} samples/s"
                console.say(format_epoch(row, epochs, rate, self.history.are_best[number - 1]))
            for epoch, text in self.lines:
                if epoch == number:
                    console.say(text)

    def record(self, members: int, is_verified: bool) -> int:
        """Write the run's folder, as a run alone would have left it; returns the exit code.

        members: number of runs in the stack; is_verified: whether a checkpoint of this stack has been read back.
        RunError for a run that has failed, whose folder says why.
        """
        context = self.context
        console = Console(quiet=True)
        with contextlib.ExitStack() as stack:
            folder_lock = stack.enter_context(lock.Lock())
            stack.enter_context(device.preserve_switches())
            # Checkpoints hold the state of the generators as the run alone would have left it.
            device.set_rng_state(self.member.get_rng_state())

            recording = stack.enter_context(Recording(self.request, context, console, folder_lock))
            recording.open_log()
            with console.hold_log():
                self.log_opening(recording)
                self.log_epochs(console)
                recording.mark_notes_printed()
                recording.start()
                self.write_history(recording, is_verified)
                result = finish(recording, self.member.status, None, members, self.history.best)

        recording.print_closing(result)
        unsaved = recording.disk_problems.summary()
        return choose_exit_code(context, recording.folder, result, signals.Interrupt(), unsaved)

    def log_opening(self, recording: Recording) -> None:
        """Write what the run is made of to the log, with the notes from before its first epoch."""
        notes = self.context.notes
        later_notes = notes[self.opening_notes :]
        del notes[self.opening_notes :]
        recording.print_opening()
        notes.extend(later_notes)

    def write_history(self, recording: Recording, is_verified: bool) -> None:
        """Write metrics, events and checkpoints of the training; the error that ended it is raised after them.

        is_verified: whether a checkpoint of this stack has been read back.
        """
        history = self.history
        run_logger = recording.run_logger
        recording.log_opening()
        run_logger.log_history(history.rows, history.timings, history.log_points)
        hashes = WeightHashes(self.context.state.model, recording.folder, recording.disk_problems)
        hashes.write(history.fingerprints)

        checkpoints = recording.checkpoints
        checkpoints.is_verified = is_verified
        checkpoints.take_best(history.best)
        if self.member.error is not None:
            # The weights of the last step may be of no use, those of the best epoch are.
            checkpoints.save_partial_best()
            raise self.member.error
        checkpoints.begin_save(self.context.state, history.rows[-1])
        checkpoints.wait()


def is_power_of_two(number: int) -> bool:
    """Whether a positive number is 1, 2, 4, 8 ..."""
    return number & (number - 1) == 0


class SparseDiagnostics(Diagnostics):
    """Diagnostics of epochs 1, 2, 4, 8 ... and the last: an examination takes as long as the steps of an epoch."""

    # What `probe` returns in this epoch, if the stack has computed it for all members at once.
    _probed: tuple[Tensor, dict[str, Tensor]] | None = None

    def is_examined(self, number: int) -> bool:
        """Whether to examine the epoch of this number, which has just ended."""
        return is_power_of_two(number) or self.context.state.is_finished

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        """Examine the epoch, if it is one of those to examine."""
        super().on_epoch_end(trainer, row)
        # The next epoch has other weights.
        self._probed = None

    def probe(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs and awake units, from the stack if it has computed them, else from the member's own net."""
        return self._probed or super().probe(inputs)


def probe_together(model: StackedModel, members: Sequence[SparseDiagnostics], batch_size: int) -> None:
    """Send the rows of all members through the stack once, for the diagnostics of each.

    model: a chain, in evaluation mode; members: in its order. batch_size: rows of a batch, which fit into the memory.
    """
    first = members[0]
    units_are_last = first.context.splits.spec.kind == "series"
    outputs: list[Tensor] = []
    uses: dict[str, list[Tensor]] = defaultdict(list)
    for begin in range(0, len(first.inputs[0]), batch_size):
        rows = torch.stack([member.inputs[0][begin : begin + batch_size] for member in members])
        batch_outputs, batch_uses = model.find_awake_units(rows, RELUS, units_are_last)
        outputs.append(batch_outputs.float())
        for name, masks in batch_uses.items():
            uses[name] += masks

    all_outputs = torch.cat(outputs, 1)
    awake = merge_uses(uses)
    for number, member in enumerate(members):
        member._probed = all_outputs[number], {name: units[number] for name, units in awake.items()}
