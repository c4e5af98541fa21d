"""Whole command lines from their start: time to an accuracy on MNIST, and one process beside two."""

import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import interval
from rows import HERE

Found = dict[str, Any]
THRESHOLDS = (0.97, 0.98, 0.99)
_STEPS = 300  # of each run that processes are compared by
_MOST_ROUNDS = 9
SGD = ("optimizer=sgd", "optimizer.lr=0.01", "optimizer.momentum=0.5")


def _environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(p for p in (str(HERE), os.environ.get("PYTHONPATH", "")) if p)
    return os.environ | {"PYTHONPATH": path} | more


def seconds_to(words: list[str], pattern: str) -> dict[str, float]:
    """Seconds from the start of a command until it prints each accuracy for the first time; it is ended at the last."""
    reached: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=place,
            env=_environment(PYTHONUNBUFFERED="1"),
        )
        assert process.stdout is not None
        for line in process.stdout:
            match = re.search(pattern, line)
            for threshold in THRESHOLDS:
                if match and float(match[1]) >= threshold:
                    reached.setdefault(f"{threshold:g}", time.perf_counter() - began)
            if len(reached) == len(THRESHOLDS):
                process.kill()
        process.wait()
    return reached


def accuracy(root: str, seeds: int, epochs: int, say: Callable[[str], None]) -> list[Found]:
    """Seconds to an accuracy on the test images, seed by seed, both sides in turn."""
    if not root:
        say("time to accuracy: skipped, DLRUN_DATA_DIR is not set")
        return []
    words = ["--config-dir", str(HERE / "configs"), "data=mnist_tested", f"paths.data={root}", "model=resnet", *SGD]
    results = []
    for seed in range(seeds):
        ours = ["-m", "dlrun", *words, f"trainer.epochs={epochs}", f"seed={seed}", "device=cpu"]
        theirs = ["-m", "sides.course", root, str(epochs), str(seed)]
        both = {"dlrun": (ours, r"val/accuracy (\S+)"), "course script": (theirs, r"test accuracy (\S+)")}
        for name in random.Random(seed).sample(list(both), 2):
            results.append({"side": name, "seed": seed, "reached": seconds_to(*both[name])})
            shown = ", ".join(f"{t} after {s:.1f} s" for t, s in results[-1]["reached"].items())
            say(f"  {name}, seed {seed}: {shown or 'none'}")
    return results


def accuracy_markdown(results: list[Found]) -> str:
    """Median seconds, and in how many runs it was reached."""
    text = "\n| test accuracy | dlrun, s | course script, s |\n| --- | --- | --- |\n" if results else "\nskipped\n"
    for threshold in (f"{t:g}" for t in THRESHOLDS) if results else ():
        cells = []
        for side in ("dlrun", "course script"):
            runs = [f["reached"].get(threshold) for f in results if f["side"] == side]
            finished = [seconds for seconds in runs if seconds is not None]
            middle = (
                f"{statistics.median(finished):.1f} ({min(finished):.1f} to {max(finished):.1f})"
                if finished
                else "never"
            )
            cells.append(f"{middle}, {len(finished)} of {len(runs)} runs")
        text += f"| {threshold} | " + " | ".join(cells) + " |\n"
    return text


def processes(root: str, seconds: float, say: Callable[[str], None]) -> Found:
    """Samples a second of one process with one thread, with two, and of two processes with a thread each.

    Rounds of the three, as many as fit into so many seconds, the last one cut off.
    """
    if not root:
        return {"skipped": "DLRUN_DATA_DIR is not set"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dlrun"]
    kinds = {
        "1 process, 1 thread": (["-m", "dlrun"], 64, 1),
        "1 process, 2 threads": (["-m", "dlrun"], 64, 2),
        "2 processes, 1 thread each": (torchrun, 32, 1),
    }
    results: Found = {name: [] for name in kinds}
    end = time.perf_counter() + seconds
    for number in range(_MOST_ROUNDS):
        speeds: dict[str, float] = {}
        for name in random.Random(number).sample(list(kinds), len(kinds)):
            start, batch, threads = kinds[name]
            words = [*start, "data=mnist", "model=resnet", *SGD, f"data.batch_size={batch}"]
            try:
                speed = _speed(words, root, threads, end - time.perf_counter())
            except subprocess.TimeoutExpired:
                break
            if isinstance(speed, str):
                say(f"  {name}: skipped, {speed}")
                return {"skipped": f"{name}: {speed}"}
            speeds[name] = speed
            say(f"  {name}: {speed:,.0f} samples/s")
        if len(speeds) < len(kinds):
            break
        for name, speed in speeds.items():
            results[name].append(speed)

    rounds = len(results["1 process, 1 thread"])
    say(f"  {rounds} whole round{'s' if rounds != 1 else ''}")
    return results if rounds else {"skipped": f"too slow: no round in {seconds:.0f} s, give it more --seconds"}


def _speed(words: list[str], root: str, threads: int, seconds: float) -> float | str:
    """Samples a second as the run's result.json has it, or what it said when it was refused.

    subprocess.TimeoutExpired if it takes longer than so many seconds.
    """
    with tempfile.TemporaryDirectory() as place:
        more = [f"paths.data={root}", f"trainer.max_steps={_STEPS}", "device=cpu", f"hydra.run.dir={place}/run"]
        outcome = subprocess.run(
            [sys.executable, *words, *more, "figures=false"],
            capture_output=True,
            text=True,
            cwd=place,
            env=_environment(OMP_NUM_THREADS=str(threads)),
            timeout=max(seconds, 0),
        )
        if outcome.returncode:
            lines = [
                line for line in outcome.stderr.splitlines() if line.startswith("dlrun:")
            ] or outcome.stderr.splitlines()
            return lines[0] if lines else "it failed without a word"
        return float(json.loads((Path(place) / "run" / "result.json").read_text())["samples_per_second"])


def processes_markdown(results: Found) -> str:
    """Samples a second, and the ratio to one process with one thread."""
    if "skipped" in results:
        return f"\nskipped: {results['skipped']}\n"
    base = results["1 process, 1 thread"]
    text = f"\n{len(base)} rounds of {_STEPS} steps.\n\n| how | samples/s | × one thread |\n| --- | --- | --- |\n"
    for name, speeds in results.items():
        middle, low, high = interval([a / b for a, b in zip(speeds, base, strict=True)])
        text += f"| {name} | {statistics.median(speeds):,.0f} | {middle:.2f} ({low:.2f} to {high:.2f}) |\n"
    return text


def script(name: str) -> str:
    """What a bench of its own prints."""
    words = [sys.executable, str(HERE / f"{name}.py")]
    outcome = subprocess.run(words, capture_output=True, text=True, env=_environment())
    return outcome.stdout.strip() if outcome.returncode == 0 else f"{name} failed: {outcome.stderr[-2000:]}"
