"""What callbacks of one's own cost: CPU microseconds a step over a run that has none with a hook in the step.

python tests/bench/callback_cost.py [--rounds 7] [--epochs 6]

A net 8-6-4-1 on 16,000 rows, batches of 32, in rounds that take all kinds in turn. Each kind is timed from the start of
the training to its end by a callback that has those two hooks alone, and stands in all of them.
"""

import argparse
import contextlib
import io
import os
import random
import statistics
import tempfile
import time
from typing import Any

import numpy as np
from machine import describe

import dlrun

STEP = "callback_cost.EveryStep"
LOG = "callback_cost.LoggedStep"
EPOCH = "callback_cost.EveryEpoch"

# Callbacks beside the one that measures.
KINDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "ten with hooks of epochs": (EPOCH,) * 10,
    "one with on_step_end": (STEP,),
    "ten with on_step_end": (STEP,) * 10,
    "one that logs a value a step": (LOG,),
}

# Of the last training: CPU seconds and steps.
measured: list[tuple[float, int]] = []


class Stopwatch(dlrun.Callback):
    """CPU time between the first and the last hook of a run."""

    def on_fit_start(self, trainer: Any) -> None:
        """Start."""
        self.started = time.process_time()

    def on_fit_end(self, trainer: Any, *_: Any) -> None:
        """Stop."""
        measured.append((time.process_time() - self.started, trainer.state.progress.step))


class EveryEpoch(dlrun.Callback):
    """Takes part in epochs only."""

    def on_epoch_end(self, trainer: Any, row: Any) -> None:
        """Do nothing."""


class EveryStep(dlrun.Callback):
    """Takes part in every step."""

    def on_step_end(self, trainer: Any) -> None:
        """Do nothing."""


class LoggedStep(dlrun.Callback):
    """Logs what is at hand without a computation."""

    def on_step_end(self, trainer: Any) -> None:
        """Log a number."""
        self.log("constant", 1.0)


def measure(kind: str, epochs: int) -> float:
    """CPU microseconds a step."""
    words = ["data=arrays", "data.path=.", "data.task=binary", "data.test_fraction=0", "data.val_fraction=0"]
    words += ["model=mlp", "model.hidden_sizes=[6,4]", "optimizer=sgd", "optimizer.lr=0.1", "data.batch_size=32"]
    words += [f"trainer.epochs={epochs}", "figures=false", "tracking.graph=false", "device=cpu"]
    words.append("+callbacks.watch._target_=callback_cost.Stopwatch")
    words += [f"+callbacks.own{number}._target_={target}" for number, target in enumerate(KINDS[kind])]
    with contextlib.redirect_stdout(io.StringIO()):
        dlrun.train(*words, quiet=True)
    seconds, steps = measured.pop()
    return 1e6 * seconds / steps


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    print(describe())
    print(
        f"CPU µs a step: the lowest of {arguments.rounds} interleaved rounds, over that without callbacks; the median"
    )

    costs: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        generator = np.random.default_rng(0)
        x = generator.normal(size=(16_000, 8)).astype(np.float32)
        np.save("x.npy", x)
        np.save("y.npy", (x[:, 0] > x[:, 1]).astype(np.int64))
        # The first round warms up the imports.
        for number in range(arguments.rounds + 1):
            for kind in random.Random(number).sample(list(KINDS), len(KINDS)):
                cost = measure(kind, arguments.epochs)
                if number:
                    costs[kind].append(cost)

    for kind, values in costs.items():
        # Other programs make a step slower, never faster.
        over = min(values) - min(costs["none"])
        print(f"  {kind:<30} {min(values):>6,.1f}   {over:+5.1f}   {statistics.median(values):>6,.1f}")


if __name__ == "__main__":
    # The classes are looked up by the name of their module, not as __main__'s.
    import callback_cost

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    callback_cost.main()
