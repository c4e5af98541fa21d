"""One side of a row, as a process: python tests/bench/side.py SIDE ROW, where ROW is JSON. See pace.py."""

import importlib
import json
import sys

from pace import Pace, own_stdout
from rows import Row

SIDES = {  # name -> module in sides/, function, the package that it needs
    "dlrun": ("dlrun", "train", "dlrun"),
    "dlrun bf16": ("dlrun", "train_bf16", "dlrun"),
    "hand-written": ("hand", "train", "torch"),
    "pure compute": ("pure", "train", "torch"),
    "course script": ("course", "train", "torchvision"),
    "Lightning": ("lightning", "train", "lightning"),
    "Lightning bare": ("lightning", "train_bare", "lightning"),
    "Keras": ("keras", "train", "keras"),
    "Ignite": ("ignite", "train", "ignite"),
    "Accelerate": ("accelerate", "train", "accelerate"),
}


def main() -> None:
    """Train until told to end."""
    answers = own_stdout()
    module, function, _ = SIDES[sys.argv[1]]
    row = Row(**json.loads(sys.argv[2]))
    getattr(importlib.import_module(f"sides.{module}"), function)(
        row, Pace(row.steps, sys.stdin, answers, device=row.device)
    )
    raise SystemExit("the training ended by itself")


if __name__ == "__main__":
    main()
