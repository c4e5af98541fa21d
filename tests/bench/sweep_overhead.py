"""Wall time of a sweep from process start, side by side in turn, of the sides that `SIDES` names.

64 points (8 learning rates × 8 seeds) of the diabetes MLP 8-128-1 for 50 epochs of SGD with 19 steps: a plain script
under Hydra's launcher, one that records as much as dlrun does, and dlrun: as one stack, and one run after the other.
Then what a job of dlrun's costs beside its training, without and with pictures and graph; then sixteen points on MNIST.

python tests/bench/sweep_overhead.py [--runs 3] [--resnet-epochs 1]     (needs DLRUN_DATA_DIR with diabetes and MNIST)
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import describe, row

from dlrun.cli import main as cli
from dlrun.engine.trainer import Trainer
from dlrun.experiment import run as experiment

HERE = Path(__file__).parent
RATES = "0.3,0.1,0.03,0.01,0.003,0.001,0.0003,0.0001"
RESNET_RATES = "0.01,0.02,0.05,0.1"
BARE = ("figures=false", "tracking.graph=false")
DRAWN = ("figures=true", "tracking.graph=true")


def wall(*words: str) -> float:
    """Seconds of a command from its start to its end."""
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        outcome = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=place)
        took = time.perf_counter() - began
    if outcome.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{outcome.stdout[-2000:]}{outcome.stderr[-2000:]}")
    return took


def basic(root: str, script: str) -> float:
    """A script under Hydra's own launcher."""
    words = ("-m", f"lr={RATES}", "seed=range(8)", f"root={root}", "hydra.sweep.dir=sweep")
    return wall(str(HERE / script), *words, "hydra/hydra_logging=none")


def ours(root: str, *more: str) -> float:
    """dlrun."""
    words = ("data=diabetes", "model=mlp", "optimizer=sgd", f"optimizer.lr={RATES}", "seed=range(8)")
    rest = ("data.batch_size=32", "trainer.epochs=50", f"paths.data={root}")
    return wall("-m", "dlrun", "-m", *words, *rest, *more)


# What a plain script of a student takes, over what dlrun takes by default.
SIDES = {
    "plain script, Hydra's launcher": lambda root: basic(root, "plain_script.py"),
    "recording script, Hydra's launcher": lambda root: basic(root, "hydra_script.py"),
    "dlrun": lambda root: ours(root),
    "dlrun, sweep.stack=off": lambda root: ours(root, "sweep.stack=off", "sweep.jobs=1"),
    "dlrun, sweep.stack=off sweep.jobs=2": lambda root: ours(root, "sweep.stack=off", "sweep.jobs=2"),
}


def plain_resnet(root: str, epochs: int) -> float:
    """Sixteen points on MNIST by a plain script under Hydra's own launcher."""
    words = ("-m", f"lr={RESNET_RATES}", "seed=range(4)", f"epochs={epochs}", f"root={root}", "hydra.sweep.dir=sweep")
    return wall(str(HERE / "plain_resnet_script.py"), *words, "hydra/hydra_logging=none")


def resnet(root: str, jobs: str, epochs: int) -> float:
    """Sixteen points on MNIST by dlrun, with what it records by default."""
    words = ("data=mnist", "model=resnet", "optimizer=sgd", f"optimizer.lr={RESNET_RATES}", "seed=range(4)")
    return wall("-m", "dlrun", "-m", *words, f"trainer.epochs={epochs}", f"paths.data={root}", f"sweep.jobs={jobs}")


def measure_overhead(root: str, *more: str) -> list[float]:
    """Milliseconds of each job of a sweep in this process that are not spent in Trainer.fit."""
    inside: list[float] = []
    durations: list[float] = []
    fit, run = Trainer.fit, experiment.run

    def add_timer(real: object, seconds: list[float]) -> object:
        def call(*arguments: object) -> object:
            began = time.perf_counter()
            try:
                return real(*arguments)  # type: ignore[operator]
            finally:
                seconds.append(time.perf_counter() - began)

        return call

    Trainer.fit, experiment.run = add_timer(fit, inside), add_timer(run, durations)  # type: ignore[assignment]
    words = [
        "-m",
        "data=diabetes",
        "model=mlp",
        "optimizer.lr=0.1,0.01",
        "seed=range(8)",
        "trainer.epochs=5",
        "sweep.stack=off",
    ]
    with tempfile.TemporaryDirectory() as place, Path(os.devnull).open("w") as null:
        sys.argv, sys.stdout = ["dlrun", *words, f"paths.data={root}", f"sweep.dir={place}/sweep", *more], null
        try:
            cli.main()
        finally:
            sys.stdout, Trainer.fit, experiment.run = sys.__stdout__, fit, run
    return [1e3 * (a - b) for a, b in zip(durations, inside, strict=True)]


def main() -> None:
    """Print medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--resnet-epochs", type=int, default=1)
    options = parser.parse_args()
    root = os.environ.get("DLRUN_DATA_DIR")
    if not root:
        print("sweeps: skipped, DLRUN_DATA_DIR is not set")
        return
    root = str(Path(root).resolve())
    if options.runs:
        compare_diabetes(root, options.runs)
    if options.resnet_epochs:
        compare_resnet(root, options.resnet_epochs)


def compare_diabetes(root: str, runs: int) -> None:
    """Print the seconds of each side on the diabetes table, and what a job costs."""
    print(f"64 points of the diabetes MLP, 50 epochs, wall seconds, {runs} runs each in turn; {describe()}")
    rounds = [[side(root) for side in SIDES.values()] for _ in range(runs)]
    columns = [list(column) for column in zip(*rounds, strict=True)]
    for name, column in zip(SIDES, columns, strict=True):
        print(row(name, column, 1))
    plain, _, stacked, *_ = columns
    ratios = [a / b for a, b in zip(plain, stacked, strict=True)]
    print(f"plain script / dlrun: {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}; bar: 15)")
    for name, more in (
        ("figures=false tracking.graph=false (bar: 50)", BARE),
        ("figures=true tracking.graph=true", DRAWN),
    ):
        print(f"a job beside its training, ms, {name}: {statistics.median(measure_overhead(root, *more)):.0f}")


def compare_resnet(root: str, epochs: int) -> None:
    """Print the seconds of sixteen points of the residual net: one at a time, two, and under Hydra's launcher."""
    seconds = {
        "plain script, Hydra's launcher": plain_resnet(root, epochs),
        "dlrun": resnet(root, "auto", epochs),
        "dlrun, sweep.jobs=1": resnet(root, "1", epochs),
        "dlrun, sweep.jobs=2": resnet(root, "2", epochs),
    }
    print(f"16 points of the residual net on MNIST, {epochs} epochs, wall seconds; {describe()}")
    for name, one in seconds.items():
        print(row(name, [one], 1))
    plain, auto, single, double = seconds.values()
    print(f"plain script / dlrun: {plain / auto:.2f} (bar: 1.3); one at a time / two at a time: {single / double:.2f}")


if __name__ == "__main__":
    main()
