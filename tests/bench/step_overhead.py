"""Microseconds a step that dlrun adds to the arithmetic: MLP 784-128-10, batch 64, everything recorded as by default.

Pure compute is zero_grad, forward, loss, backward and optimizer step on one fixed batch. dlrun's side is
`loop.fit` over epochs of 860 steps: batches gathered, metrics, TensorBoard, metrics.jsonl and checkpoints.

python tests/bench/step_overhead.py [--runs 7]
"""

import argparse
import copy
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import described, row
from omegaconf import OmegaConf

from dlrun import config, experiment, loop, runtime, tracking
from dlrun.data.spec import DataSpec, Split, Splits
from dlrun.request import Request, compose

ROWS, BATCH = 55_040, 64
STEPS = ROWS // BATCH


def splits() -> Splits:
    """Random images: the arithmetic does not look at them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(ROWS, 784, generator=generator)
    classes = torch.randint(10, (ROWS,), generator=generator)
    return Splits(Split((images,), classes), None, None, DataSpec("vector", (784,), "multiclass", 10))


def pure(parts: experiment.Parts) -> float:
    """Seconds a step of the arithmetic alone, with torch's optimizer as a plain script makes it."""
    (x,), y = next(parts.training.train.epoch(1))
    model = copy.deepcopy(parts.model).train()
    optimizer = type(parts.training.optimizer)(model.parameters(), lr=0.001)
    started = time.perf_counter()
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return (time.perf_counter() - started) / STEPS


def whole(parts: experiment.Parts, request: Request, folder: Path, epochs: int = 1) -> float:
    """Seconds a step of `fit` with what a run records by default."""
    saver = experiment.make_saver(folder, parts, request, None)
    parts.training.progress.epoch = 0
    parts.training.limits.epochs = epochs
    with tracking.tracked(folder) as tracker:
        started = time.perf_counter()
        loop.fit(parts.training, tracker, _Silent(), saver, lambda: False)
        return (time.perf_counter() - started) / (epochs * STEPS)


class _Silent:
    def epoch(self, row: dict[str, float], timings: dict[str, float], is_best: bool) -> None:
        """Nothing is shown."""


def main() -> None:
    """Print both, in turn, and the difference pair by pair."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    print(f"MLP 784-128-10, batch {BATCH}, microseconds a step, {runs} runs each in turn; {described()}")
    for optimizer in ("sgd", "adam"):
        pairs = measured(optimizer, runs)
        print(row(f"{optimizer}: pure compute", [1e6 * p for p, _ in pairs]))
        print(row(f"{optimizer}: dlrun", [1e6 * w for _, w in pairs]))
        print(row(f"{optimizer}: overhead (bar: 100)", [1e6 * (w - p) for p, w in pairs]))


def measured(optimizer: str, runs: int) -> list[tuple[float, float]]:
    """Seconds a step, pure and whole, in turn."""
    composed = compose(["model=mlp", f"optimizer={optimizer}"])
    OmegaConf.set_struct(composed, False)
    composed.data = {"_target_": "step_overhead.splits", "val_fraction": 0.0}
    request = Request(composed, {"data": "random", "model": "mlp", "optimizer": optimizer, "scheduler": "none"}, [])
    settings = config.read(composed, request.choices)
    with tempfile.TemporaryDirectory() as folder, runtime.session(settings.rest.device, 0) as process:
        parts = experiment.prepare(settings, process, None)
        pure(parts), whole(parts, request, Path(folder))
        return [(pure(parts), whole(parts, request, Path(folder))) for _ in range(runs)]


if __name__ == "__main__":
    main()
