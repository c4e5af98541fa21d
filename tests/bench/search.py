"""What a search finds at equal trials: tpe beside random search, and what pruning saves.

python tests/bench/search.py [--trials 20] [--seeds 5] [words ...]

The first ten trials of tpe are those of random search with the same seed. The best of a search is chosen by its
validation loss; the same run's test loss stands beside it, which no search has seen. Medians over the seeds, and
their smallest and largest value.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from machine import describe, row

import dlrun.cli.main
from dlrun.sweep import runner

DATA = {"diabetes": "trainer.epochs=20", "digits": "trainer.epochs=10"}
SPACE = (
    "optimizer.lr=tag(log,interval(1e-4,1))",
    "optimizer=sgd,adam",
    "model.hidden_sizes=[8],[32],[32,32]",
    "data.batch_size=16,32,64,128",
)
SEARCHES = {
    "random": ("sweep.search=random",),
    "tpe": ("sweep.search=tpe",),
    "tpe, median": ("sweep.search=tpe", "sweep.pruner=median"),
    "tpe, hyperband": ("sweep.search=tpe", "sweep.pruner=hyperband"),
}


def search(words: Sequence[str]) -> tuple[float, float, int]:
    """Validation and test loss of the best run of a search, and the epochs that all of its runs trained."""
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(place) / "sweep"
        sys.argv = ["dlrun", "-m", *SPACE, *words, f"sweep.dir={folder}", "figures=false", "sweep.stack=off"]
        code = dlrun.cli.main.main()
        results = [json.loads(path.read_text()) for path in folder.glob("*/result.json")]
    complete = [result for result in results if result["status"] in ("completed", "early_stopped")]
    assert complete, f"exit {code}"
    best = min(complete, key=lambda result: float(result["best"]["value"]))
    return best["best"]["value"], best["metrics"]["test/loss"], sum(result["epochs"] for result in results)


def main() -> int:
    """Print a row for each kind of search on each data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    # What is compared here is more than one sweep.
    runner.conclude = lambda *_, **__: True
    print(describe(), flush=True)
    for data, epochs in DATA.items():
        for name, words in SEARCHES.items():
            outcomes = []
            for seed in range(options.seeds):
                own = (f"data={data}", epochs, f"seed={seed}", f"sweep.trials={options.trials}", *words)
                outcomes.append(search([*own, *options.words]))
            validation, test, trained = zip(*outcomes, strict=True)
            print(row(f"{data}, {name}: val/loss", validation, 4))
            print(row("    test/loss of the same run", test, 4))
            print(row("    epochs trained", trained), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
