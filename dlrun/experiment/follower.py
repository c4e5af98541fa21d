"""A process that trains along with process 0 and records nothing: what torchrun starts besides the first."""

import contextlib
import traceback
from pathlib import Path
from typing import Any

from dlrun.config.request import Request
from dlrun.core import lock, signals
from dlrun.core.errors import DlrunError
from dlrun.core.terminal import write_error
from dlrun.data import workers
from dlrun.engine import device
from dlrun.engine.distributed import Distributed, joined, wait_for_report_of_rank_zero
from dlrun.engine.state import TrainState
from dlrun.engine.trainer import Trainer
from dlrun.experiment import run
from dlrun.experiment.context import RunContext
from dlrun.runs.checkpoint_manager import CheckpointManager, states_of_all


class Silent(CheckpointManager):
    """Saves nothing, but hands its own state over whenever process 0 saves."""

    def write(self, training: TrainState, row: dict[str, float]) -> None:
        """See CheckpointManager."""
        states_of_all(training)

    def _keep_best_of_part(self) -> None:
        """Process 0 does."""


def main(verbose: bool) -> int:
    """Follow process 0 until it has ended; returns the exit code. Process 0 says what went wrong, also here."""
    try:
        with contextlib.ExitStack() as held:
            ranks = held.enter_context(joined())
            held.callback(workers.end_workers)
            request: Request | None = ranks.share(None)
            if request is None:
                return 0
            own = held.enter_context(lock.Lock())
            parts = ranks.in_turn(lambda: run.prepare_run(request, held, ranks, own))
            try:
                return follow(request, parts, held)
            except (Exception, SystemExit) as error:  # training runs code of the user's own
                explained = workers.explain_death(error) or error
                said = str(explained)
                if not isinstance(explained, DlrunError):
                    said = f"{type(error).__name__}: {error}"
                ranks.blame(error, said)
                raise
    except (Exception, SystemExit) as error:  # whatever it was, the first process says it
        if verbose:
            write_error("".join(traceback.format_exception(error)).rstrip("\n"))
        wait_for_report_of_rank_zero()
        return error.exit_code if isinstance(error, DlrunError) else 1


def follow(request: Request, parts: RunContext, held: contextlib.ExitStack) -> int:
    """The training and the test, in step with process 0."""
    ranks, keys = parts.runtime.ranks, parts.settings.rest.checkpoint
    earlier = run.restore_checkpoint(request, parts)
    seed_or_restore_generators(ranks, parts.settings.rest.seed, earlier)
    if parts.runtime.compile:
        run.compile_model(parts)
    stop = held.enter_context(signals.interruptible(quiet=True))
    saver = Silent(Path(), {}, keys.every_epochs, keys.every_steps, keys.keep)
    status = Trainer(parts.training, [saver], ranks.together(stop)).fit()
    if status != "interrupted":
        run.evaluate_best_weights(parts, None)
    return signals.exit_code(stop.signal_number) if stop() else 0


def seed_or_restore_generators(ranks: Distributed, seed: int, earlier: dict[str, Any] | None) -> None:
    """Random numbers of its own (dropout, say), or those that it had before where there were as many processes."""
    others = earlier.get("others", []) if earlier else []
    if len(others) == ranks.count - 1:
        device.set_rng_state(others[ranks.number - 1]["rng"])
    else:
        device.seed_everything((seed + 1_000_003 * ranks.number) % 2**63)
