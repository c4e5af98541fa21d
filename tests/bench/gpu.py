"""`make bench-gpu`: what a GPU is measured by, into tests/bench/results/<date>_gpu.md and .json.

The residual net on MNIST beside a loop written by hand and Lightning; a stack of 64 nets against runs one after the
other; and how long lesson=mnist_99_fast trains, and what its net then knows of MNIST's test images.

python tests/bench/gpu.py [--device cuda] [--rounds 5] [--tiny] [--folder tests/bench/results]

DLRUN_DATA_DIR names the folder with MNIST.

--tiny tries every part out on a few rows: where there is no GPU with --device cpu, or on the stand-in for one, as
`python tests/pretended_cuda.py tests/bench/gpu.py --tiny --folder /tmp`.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from harness import interpreter, interval, measure_interleaved, ratios
from machine import describe
from rows import HERE, Row

QUIET = ("figures=false", "tracking.graph=false")
PRECISIONS = ("fp32", "bf16")
# In which the sides start and make their rounds.
_SECONDS = 400


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    root: str
    device: str
    rounds: int
    rows: int = 25_600  # of the residual net's epoch
    stack: int = 64  # nets that train as one
    alone: int = 8  # of these nets, one after the other
    epochs: int = 3  # of each
    few: tuple[str, ...] = ()  # words that make a command short


@dataclass(frozen=True)
class Figure:
    """A measured number: the median of its values."""

    what: str
    values: Sequence[float]
    unit: str
    # The least or the most that the median may be.
    at_least: float | None = None
    at_most: float | None = None

    @property
    def verdict(self) -> str:
        """The bar, and whether the median reaches it."""
        middle = statistics.median(self.values)
        if self.at_least is not None:
            return f"; at least {self.at_least:g}: {'yes' if middle >= self.at_least else 'NO'}"
        if self.at_most is not None:
            return f"; at most {self.at_most:g}: {'yes' if middle <= self.at_most else 'NO'}"
        return ""

    def __str__(self) -> str:
        middle, low, high = interval(self.values)
        return f"- {self.what}: {middle:,.4g} {self.unit} ({low:,.4g} to {high:,.4g}){self.verdict}"


def main(words: Sequence[str]) -> None:
    """Measure all of it; what is measured by then stands in the files after each part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--folder", type=Path, default=HERE / "results")
    options = parser.parse_args(words)
    root = os.environ.get("DLRUN_DATA_DIR")
    if not root:
        raise SystemExit("DLRUN_DATA_DIR is not set: MNIST is looked for there")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here: --device cpu --tiny tries the bench out")

    plan = Plan(str(Path(root).resolve()), options.device, options.rounds)
    if options.tiny:
        plan = replace(plan, rounds=1, rows=128, stack=8, alone=2, epochs=1, few=("data.limit_batches=4",))

    path = options.folder / f"{datetime.date.today()}_gpu.md"
    title = "# Bench on a GPU" + (": a try of its parts, no measurement" if options.tiny else "")
    machine = f"{describe_card(plan.device)}{describe()}"
    lines, figures = [f"{title}\n\n{machine}\n"], []
    parts: list[tuple[str, Callable[[Plan], Iterator[Figure | str]]]] = [
        (f"Residual net on MNIST, batch 64, {plan.rounds} rounds of an epoch of {plan.rows:,} images", measure_steps),
        (f"{plan.stack} nets 784-128-10 on MNIST, {plan.epochs} epochs, {plan.rounds} rounds", measure_stack),
        (f"`dlrun lesson=mnist_99_fast`, {plan.rounds} seeds", measure_accuracy),
    ]
    for heading, measure in parts:
        lines.append(f"\n## {heading}\n")
        for figure in measure(plan):
            lines.append(str(figure))
            print(figure, flush=True)
            if isinstance(figure, Figure):
                figures.append(asdict(figure))
        path.write_text("\n".join(lines) + "\n")
        measured = {"machine": machine, "plan": asdict(replace(plan, root="")), "figures": figures}
        path.with_suffix(".json").write_text(json.dumps(measured, indent=1) + "\n")
    print(f"written: {path}")


def describe_card(device: str) -> str:
    """The card, its memory and its driver."""
    if device == "cpu":
        return "no GPU; "
    card = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    except OSError:
        # A card of AMD has another tool.
        driver = "unknown"
    return f"{card.name}, {card.total_memory / 2**30:.0f} GiB, driver {driver}, CUDA {torch.version.cuda}; "


def measure_steps(plan: Plan) -> Iterator[Figure | str]:
    """Steps of the residual net, interleaved with the peers'."""
    row = Row("resnet", "resnet", "mnist", plan.rows, root=plan.root, device=plan.device)
    sides = measure_interleaved(row, ["dlrun", "hand-written", "Lightning"], _SECONDS, plan.rounds)
    bars = {"hand-written": 3.0, "Lightning": 10.0}
    for name, side in sides.items():
        if side.get("skipped"):
            yield f"- {name}: skipped, {side['skipped']}"
            continue
        yield Figure(f"{name}, a step", [1e6 * seconds / row.steps for seconds in side["seconds"]], "µs")
        if name in bars and not sides["dlrun"].get("skipped"):
            yield Figure(f"dlrun against {name}", ratios(side, sides["dlrun"]), "×", at_least=bars[name])


def measure_stack(plan: Plan) -> Iterator[Figure | str]:
    """A sweep of nets that train as one, against some of them one after the other.

    The start of the command is what a run's command takes beyond what each further run adds; it is taken off both.
    """
    words = ("-m", "data=mnist", "model=mlp", "optimizer=sgd", f"trainer.epochs={plan.epochs}")
    words = (*words, f"device={plan.device}", *QUIET, *plan.few)
    one_by_one = ("sweep.stack=off", "sweep.jobs=1")
    commands, starts, runs = [], [], []
    for _ in range(plan.rounds):
        commands.append(run(plan, *words, f"seed=range({plan.stack})", "sweep.stack=on")[0])
        one = run(plan, *words, "seed=range(1)", *one_by_one)[0]
        several = run(plan, *words, f"seed=range({plan.alone + 1})", *one_by_one)[0]
        runs.append((several - one) / plan.alone)
        starts.append(one - runs[-1])
    yield Figure("the stack, from the command to its end", commands, "s")
    yield Figure("the start of a command", starts, "s")
    yield Figure("a run alone, without the start", runs, "s")

    whole, training = [], []
    for command, start, seconds in zip(commands, starts, runs, strict=True):
        whole.append((start + seconds * plan.stack) / command)
        training.append(seconds * plan.stack / (command - start))
    yield Figure("the stack against one after the other, whole commands", whole, "×")
    yield Figure("the stack against one after the other, without the start", training, "×", at_least=20)


def measure_accuracy(plan: Plan) -> Iterator[Figure | str]:
    """Seconds of training, and what the net then knows, by precision."""
    for precision in PRECISIONS:
        seconds, accuracies = [], []
        for seed in range(plan.rounds):
            words = ("lesson=mnist_99_fast", f"device={plan.device}", f"device.precision={precision}", f"seed={seed}")
            _, (result,) = run(plan, *words, *QUIET, *plan.few)
            seconds.append(result["train_seconds"])
            accuracies.append(100 * result["metrics"]["test/accuracy"])
        yield Figure(f"{precision}, training", seconds, "s", at_most=5)
        yield Figure(f"{precision}, test accuracy", accuracies, "%", at_least=99)
        yield f"  of each seed: {', '.join(f'{accuracy:.2f}' for accuracy in accuracies)}"


def run(plan: Plan, *words: str) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of a command of dlrun from its start to its end, and the results of its runs."""
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        command = [*interpreter(), "-m", "dlrun", *words, f"paths.data={plan.root}"]
        outcome = subprocess.run(command, capture_output=True, text=True, cwd=place)
        took = time.perf_counter() - began
        if outcome.returncode:
            raise SystemExit(f"{' '.join(words)} failed:\n{outcome.stdout[-2000:]}{outcome.stderr[-2000:]}")
        return took, [json.loads(path.read_text()) for path in Path(place).rglob("result.json")]


if __name__ == "__main__":
    main(sys.argv[1:])
