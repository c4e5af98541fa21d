"""The real command line of dlrun, with everything that it records by default; only a step's end is counted."""

import sys
from pathlib import Path

from pace import Pace
from rows import Row

from dlrun.cli import main
from dlrun.engine.callback import TrainerView
from dlrun.runs.checkpoint_manager import CheckpointManager


def train(row: Row, pace: Pace, *more: str) -> None:
    """See above; more: further words of the command line."""
    on_step_end = CheckpointManager.on_step_end

    def count(saver: CheckpointManager, trainer: TrainerView) -> None:
        on_step_end(saver, trainer)
        pace.step()

    CheckpointManager.on_step_end = count  # type: ignore[method-assign]
    sys.argv = ["dlrun", *row.command_line(Path.cwd()), *more]
    raise SystemExit(main.main())


def train_bf16(row: Row, pace: Pace) -> None:
    """The same in bfloat16."""
    train(row, pace, "device.precision=bf16")
