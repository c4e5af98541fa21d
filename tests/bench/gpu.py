"""`make bench-gpu`: what a GPU is measured by, into tests/bench/results/<date>_gpu.md.

The residual net on MNIST beside a loop written by hand and Lightning; a stack of 64 nets against runs one after the
other; and how long a net trains until it knows 99 % of MNIST's test images.

python tests/bench/gpu.py [--rounds 5] [--device cuda]     (needs DLRUN_DATA_DIR with MNIST; cpu tries the script out)
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from harness import interval, measure_interleaved, ratios
from machine import describe
from rows import HERE, Row

QUIET = ("figures=false", "tracking.graph=false")
STACK = 64

# One cycle of the rate, up to ten times optimizer.lr, over five epochs of large batches.
RECIPE = ("model=resnet", "data=mnist", "data.val_fraction=0", "data.batch_size=256", "trainer.epochs=5")
RECIPE = (*RECIPE, "optimizer=adam", "optimizer.lr=0.001", "scheduler=one_cycle")
PRECISIONS = ("device.precision=fp32", "device.precision=bf16")


def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    options = parser.parse_args()
    root = os.environ.get("DLRUN_DATA_DIR")
    if not root:
        raise SystemExit("DLRUN_DATA_DIR is not set: MNIST is looked for there")

    lines = [f"# Bench on a GPU\n\n{describe_card(options.device)}{describe()}\n"]
    path = HERE / "results" / f"{datetime.date.today()}_gpu.md"
    parts = (measure_steps, measure_stack, measure_accuracy)
    for part in parts:
        for line in part(str(Path(root).resolve()), options.device, options.rounds):
            print(line, flush=True)
            lines.append(line)
            path.write_text("\n".join(lines) + "\n")


def describe_card(device: str) -> str:
    """The card, its memory and its driver."""
    if device == "cpu":
        return "no GPU; "
    card = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    driver = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    return f"{card.name}, {card.total_memory / 2**30:.0f} GiB, driver {driver}, CUDA {torch.version.cuda}; "


def measure_steps(root: str, device: str, rounds: int) -> Iterator[str]:
    """Steps of the residual net, batch 64, interleaved with the peers'."""
    row = Row("resnet", "resnet", "mnist", 25_600, root=root, device=device)
    sides = measure_interleaved(row, ["dlrun", "hand-written", "Lightning"], rounds)
    yield f"\n## Residual net on MNIST, batch 64, {rounds} rounds of {row.steps} steps\n"
    for name, side in sides.items():
        if side.get("skipped"):
            yield f"- {name}: skipped, {side['skipped']}"
            continue
        microseconds = 1e6 * statistics.median(side["seconds"]) / row.steps
        middle, low, high = interval(ratios(side, sides["dlrun"]))
        yield f"- {name}: {microseconds:,.0f} µs a step; dlrun is {middle:.2f} × as fast ({low:.2f} to {high:.2f})"


def measure_stack(root: str, device: str, rounds: int) -> Iterator[str]:
    """A sweep of nets that train as one, against an eighth of them one after the other."""
    words = ("data=mnist", "model=mlp", "optimizer=sgd", "trainer.epochs=1", f"device={device}", *QUIET)
    stacked, alone = [], []
    few = STACK // 8
    for _ in range(rounds):
        stacked.append(run(root, "-m", *words, f"seed=range({STACK})", "sweep.stack=on")[0])
        one = run(root, "-m", *words, "seed=range(1)", "sweep.stack=off", "sweep.jobs=1")[0]
        many = run(root, "-m", *words, f"seed=range({few + 1})", "sweep.stack=off", "sweep.jobs=1")[0]
        # The start of the command is in both, and counts once.
        alone.append(one + (many - one) / few * (STACK - 1))
    middle, low, high = interval([a / b for a, b in zip(alone, stacked, strict=True)])
    yield f"\n## {STACK} nets 784-128-10 on MNIST, one epoch, {rounds} rounds\n"
    yield f"- as one stack: {statistics.median(stacked):.1f} s from the command to its end"
    yield f"- one after the other, from {few} of them: {statistics.median(alone):.1f} s"
    yield f"- the stack is {middle:.1f} × as fast ({low:.1f} to {high:.1f})"


def measure_accuracy(root: str, device: str, rounds: int) -> Iterator[str]:
    """Seconds of training, and what the net then knows, by precision."""
    yield f"\n## MNIST, `dlrun {' '.join(RECIPE)}`, {rounds} seeds\n"
    for precision in PRECISIONS:
        seconds, accuracies = [], []
        for seed in range(rounds):
            _, results = run(root, *RECIPE, precision, f"seed={seed}", f"device={device}", *QUIET)
            seconds.append(results[0]["train_seconds"])
            accuracies.append(results[0]["metrics"]["test/accuracy"])
        shown = ", ".join(f"{accuracy:.4f}" for accuracy in accuracies)
        yield f"- {precision}: {statistics.median(seconds):.2f} s of training (median); test accuracy {shown}"


def run(root: str, *words: str) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of a command of dlrun from its start to its end, and the results of its runs."""
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        command = [sys.executable, "-m", "dlrun", *words, f"paths.data={root}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=place)
        took = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return took, [json.loads(path.read_text()) for path in Path(place).rglob("result.json")]


if __name__ == "__main__":
    main()
