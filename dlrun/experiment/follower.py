"""The processes that torchrun starts besides rank 0: each trains along with it and records nothing."""

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
from dlrun.engine.distributed import Distributed, join_processes, wait_for_report_of_rank_zero
from dlrun.engine.state import TrainState
from dlrun.engine.trainer import Trainer
from dlrun.experiment.acceleration import compile_model
from dlrun.experiment.context import RunContext
from dlrun.experiment.finish import evaluate_best_weights
from dlrun.experiment.ranks import join_ranks
from dlrun.experiment.resume import restore_checkpoint
from dlrun.experiment.setup import prepare_run
from dlrun.runs.checkpoint_manager import CheckpointManager, gather_rank_states


class StateSender(CheckpointManager):
    """Writes no file, but sends the state of this rank whenever rank 0 saves."""

    def begin_save(self, state: TrainState, row: dict[str, float]) -> None:
        """Send the state to rank 0: that of this rank, and its share of the model where training splits that."""
        with state.summon_full_weights():
            gather_rank_states(state)
            if state.sharded is not None:
                state.state_dict()

    def save_partial_best(self) -> None:
        """Leave it to rank 0."""


def main(verbose: bool) -> int:
    """Follow rank 0 until it has ended, and return the exit code. Rank 0 reports the errors of all."""
    try:
        with contextlib.ExitStack() as stack:
            ranks = stack.enter_context(join_processes())
            stack.callback(workers.end_workers)
            request: Request | None = ranks.broadcast(None)
            # Rank 0 has nothing to train.
            if request is None:
                return 0

            folder_lock = stack.enter_context(lock.Lock())
            context = ranks.rank_zero_first(lambda: prepare_run(request, stack, ranks, folder_lock))
            try:
                return follow(request, context, stack)
            except (Exception, SystemExit) as error:
                # Training runs the user's own code, so anything can come.
                explained = workers.explain_death(error) or error
                message = str(explained)
                if not isinstance(explained, DlrunError):
                    message = f"{type(error).__name__}: {error}"
                ranks.explain_failure(error, message)
                raise

    except (Exception, SystemExit) as error:  # whatever user code raises
        if verbose:
            write_error("".join(traceback.format_exception(error)).rstrip("\n"))
        # torchrun kills all ranks as soon as one of them exits, so rank 0 reports first.
        wait_for_report_of_rank_zero()
        return error.exit_code if isinstance(error, DlrunError) else 1


def follow(request: Request, context: RunContext, stack: contextlib.ExitStack) -> int:
    """Train and evaluate in step with rank 0; returns the exit code."""
    ranks = context.runtime.ranks
    keys = context.settings.checkpoint
    join_ranks(request, context)
    resumed = restore_checkpoint(request, context)
    _seed_or_restore_generators(ranks, context.settings.seed, resumed)
    if context.runtime.compile:
        compile_model(context)

    stop_requested = stack.enter_context(signals.catch_signals(quiet=True))
    sender = StateSender(Path(), {}, keys.every_epochs, keys.every_steps, keys.keep, every_seconds=keys.every_seconds)
    status = Trainer(context.state, [sender], ranks.any_rank(stop_requested), context.user_callbacks).fit()
    context.state.leave_shards()
    if status != "interrupted":
        evaluate_best_weights(context, None)
    return signals.get_signal_exit_code(stop_requested.signal_number) if stop_requested() else 0


def _seed_or_restore_generators(ranks: Distributed, seed: int, resumed: dict[str, Any] | None) -> None:
    """Give this rank random numbers of its own, for dropout and the like.

    A resumed run restores those of the checkpoint, if it was written by as many processes.
    """
    others = resumed.get("others", []) if resumed else []
    if len(others) == ranks.world_size - 1:
        device.set_rng_state(others[ranks.rank - 1]["rng"])
    else:
        device.seed_everything((seed + 1_000_003 * ranks.rank) % 2**63)
