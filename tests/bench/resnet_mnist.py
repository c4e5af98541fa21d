"""Samples per second of `dlrun model=resnet data=mnist` beside a plain script, in turn, both as own processes.

python tests/bench/resnet_mnist.py [--runs 5] [--steps 600]     (needs DLRUN_DATA_DIR with MNIST)
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import described, row

HERE = Path(__file__).parent


def plain(root: str, steps: int) -> float:
    """The course's way."""
    words = [sys.executable, str(HERE / "plain_script.py"), root, str(steps)]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def ours(root: str, steps: int, *overrides: str) -> float:
    """dlrun's own figure, warm-up included: the real command line with everything it records by default."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["model=resnet", "data=mnist", "optimizer=sgd", "optimizer.lr=0.01", "optimizer.momentum=0.5"]
        words += [f"trainer.max_steps={steps}", "trainer.epochs=1", f"paths.data={root}", f"hydra.run.dir={folder}/run"]
        done = [sys.executable, "-m", "dlrun", *words, *overrides]
        subprocess.run(done, capture_output=True, text=True, check=True, cwd=folder)
        return float(json.loads((Path(folder) / "run" / "result.json").read_text())["samples_per_second"])


def main() -> None:
    """Print medians and the ratio pair by pair."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    asked = parser.parse_args()
    root = os.environ.get("DLRUN_DATA_DIR")
    if not root:
        print("resnet on MNIST: skipped, DLRUN_DATA_DIR is not set")
        return
    root = str(Path(root).resolve())
    pairs = [(plain(root, asked.steps), ours(root, asked.steps)) for _ in range(asked.runs)]
    bf16 = [ours(root, asked.steps, "device.precision=bf16") for _ in range(asked.runs)]
    print(f"resnet on MNIST, batch 64, SGD 0.01/0.5, fp32, samples/s, {asked.runs} runs each in turn; {described()}")
    print(row("plain script", [p for p, _ in pairs]))
    print(row("dlrun", [o for _, o in pairs]))
    print(row("dlrun, device.precision=bf16", bf16))
    ratios = [o / p for p, o in pairs]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"dlrun / plain script: median {statistics.median(ratios):.2f} (bar: 1.9), {spread}")


if __name__ == "__main__":
    main()
