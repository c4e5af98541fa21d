"""Seconds from a command to its first optimizer step, over those of the imports that it cannot do without.

python tests/bench/start_up.py [--runs 9]      `dlrun data=regression model=linear` beside torch, one torch.optim
construction (torch._dynamo comes with it) and scikit-learn's data sets, in fresh interpreters, in turn. dlrun does
without torch._dynamo where nothing is compiled, and imports without Python's garbage collector looking on: how long
the bare imports take that way is measured beside it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import describe, row

IMPORTS = """
import time, torch, sklearn.datasets
torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
print(time.time())
"""
QUICK = "import gc; gc.disable()" + IMPORTS
SPY = """
import time, torch
class Spy(torch.optim.SGD):
    def step(self, closure=None):
        print(time.time(), flush=True)
        raise KeyboardInterrupt
"""


def seconds(words: list[str], folder: Path) -> float:
    """From the start of a process until it prints what the clock says."""
    compiled = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # as it is from the second on
    began = time.time()
    outcome = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=folder, env=compiled)
    numbers = [line for line in outcome.stdout.splitlines() if line.replace(".", "", 1).isdigit()]
    if not numbers:
        raise SystemExit(f"{' '.join(words)} failed:\n{outcome.stdout[-1000:]}{outcome.stderr[-2000:]}")
    return float(numbers[0]) - began


def main() -> None:
    """Print both, and the difference run by run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "spy.py").write_text(SPY)
        train = ["-m", "dlrun", "data=regression", "model=linear", "optimizer=sgd", "optimizer._target_=spy.Spy"]
        words = (["-c", IMPORTS], ["-c", QUICK], train)
        times = [[seconds([*w, *place_of(w, i)], folder) for w in words] for i in range(runs + 1)][1:]
    bare, quick, ours = zip(*times, strict=True)
    print(f"from the command to the first step, seconds, {runs} runs each in turn; {describe()}")
    print(row("the imports alone", bare, 2))
    print(row("the same without the collector", quick, 2))
    print(row("dlrun data=regression", ours, 2))
    print(row("over the imports (bar: 0.7)", [b - a for a, b in zip(bare, ours, strict=True)], 2))


def place_of(words: list[str], number: int) -> list[str]:
    """A folder of its own for each run."""
    return [f"hydra.run.dir=run{number}"] if "dlrun" in words else []


if __name__ == "__main__":
    main()
