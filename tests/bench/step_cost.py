"""What dlrun adds to a step and at an epoch's end, beside the same arithmetic in the same process, by processor time.

python tests/bench/step_cost.py [--rounds 5]     (under two minutes on an idle core)
Epochs as a run trains them, all recording on, and as many steps of zero_grad, forward, loss, backward and step on one
batch, in turn. Processor seconds do not depend on what else runs on the machine, but for its caches.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import describe
from rows import Row, list_core_rows, loss

from dlrun.cli import main as cli
from dlrun.engine.trainer import Trainer

# Steps of each side in a round.
STEPS = {"tiny-epochs": 600, "overhead": 800, "large-epochs": 100}


def measure(row: Row, trainer: Trainer, rounds: int) -> list[tuple[float, float, float]]:
    """Of each round: seconds of a bare step, of a step of dlrun's, and of an epoch's end with what its thread does."""
    inputs, targets = row.tensors()
    batch = tuple(x[: row.batch_size].clone() for x in inputs)
    targets = targets[: row.batch_size].clone()
    net = row.net().train()
    optimizer = row.torch_optimizer(net)
    per_epoch = len(trainer.state.train)
    epochs = max(1, STEPS[row.name] // per_epoch)
    results = []
    for _ in range(rounds + 1):
        began = time.process_time()
        for _ in range(epochs * per_epoch):
            optimizer.zero_grad()
            loss(net(*batch), targets).backward()
            optimizer.step()
        bare = time.process_time() - began

        began = time.process_time()
        in_steps = 0.0
        for _ in range(epochs):
            trainer.row = {}
            # Of this thread alone: what another does meanwhile belongs to the end of the epoch before.
            step_began = time.thread_time()
            epoch_began = time.perf_counter()
            trainer.train_epoch()
            in_steps += time.thread_time() - step_began
            seconds = time.perf_counter() - epoch_began
            trainer.timings = trainer.state.progress.add_epoch_time(seconds, trainer.state.train, 0)
            trainer.end_epoch()
            trainer.callbacks.on_epoch_end(trainer, trainer.row)
        whole = time.process_time() - began
        steps = epochs * per_epoch
        results.append((bare / steps, in_steps / steps, (whole - in_steps) / epochs))
    # The first round warms up.
    return results[1:]


def run(name: str, rounds: int) -> None:
    """Measure a row inside of a run that the command line has begun, and end the process."""
    row = next(row for row in list_core_rows("") if row.name == name)

    def fit(trainer: Trainer) -> str:
        trainer.start()
        bare, step, end = zip(*measure(row, trainer, rounds), strict=True)
        over = [1e6 * (mine - other) for mine, other in zip(step, bare, strict=True)]
        a_step = [extra + 1e6 * of_end / len(trainer.state.train) for extra, of_end in zip(over, end, strict=True)]
        print(
            f"  {name:<13} arithmetic {1e6 * statistics.median(bare):,.0f} µs a step; over it "
            f"{statistics.median(over):,.0f} ({min(over):,.0f} to {max(over):,.0f}), with the epoch's end "
            f"{statistics.median(a_step):,.0f}; an epoch's end {1e3 * statistics.median(end):.2f} ms "
            f"({1e3 * min(end):.2f} to {1e3 * max(end):.2f})",
            file=sys.stderr,
            flush=True,
        )
        # Without the end of a run, which no one waits for.
        os._exit(0)

    Trainer.fit = fit  # type: ignore[method-assign]
    sys.argv = ["dlrun", *row.command_line(Path.cwd()), "trainer.progress=off"]
    cli.main()


def main() -> None:
    """Each row in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--row", choices=STEPS)
    options = parser.parse_args()
    if options.row:
        run(options.row, options.rounds)
        return
    print(f"Processor time of a step and of an epoch's end; {describe()}")
    for name in STEPS:
        words = [sys.executable, str(Path(__file__).resolve()), "--row", name, "--rounds", str(options.rounds)]
        with tempfile.TemporaryDirectory() as place:
            outcome = subprocess.run(words, capture_output=True, text=True, cwd=place)
        lines = [line for line in outcome.stderr.splitlines() if line.startswith(f"  {name}")]
        print(lines[0] if lines else f"  {name} failed: {outcome.stderr[-500:]}", flush=True)
    print("  bars: an epoch's end of tiny-epochs 1 ms, a step of overhead 100 µs over its arithmetic")


if __name__ == "__main__":
    main()
