"""What saving costs: seconds in which resnet on MNIST waits for its checkpoints, one an epoch, over those of training.

python tests/bench/checkpoint_cost.py [--runs 3] [--epochs 2]     (needs DLRUN_DATA_DIR with MNIST)
"""

import argparse
import os
import tempfile
from pathlib import Path

from machine import describe, row

from dlrun.config.compose import compose_config, resolve
from dlrun.config.request import Request
from dlrun.config.settings import read_settings
from dlrun.core.lock import Lock
from dlrun.engine import device
from dlrun.engine.trainer import Trainer
from dlrun.experiment import setup
from dlrun.experiment.recording import Recording
from dlrun.runs.reports.console import Console


def measure(root: str, epochs: int) -> tuple[float, float, int]:
    """Seconds inside saves, seconds of training, bytes of a checkpoint: a run with all that it records by default."""
    choices = {"data": "mnist", "model": "resnet", "optimizer": "sgd", "scheduler": "none"}
    words = ["data=mnist", "model=resnet", "optimizer=sgd", f"trainer.epochs={epochs}", f"paths.data={root}"]
    request = Request(resolve(compose_config(words)), choices, words)
    settings = read_settings(request.config, choices)
    console = Console(quiet=True)
    with tempfile.TemporaryDirectory() as place, device.device_session(settings.device, 0) as runtime, Lock() as lock:
        request.config["paths"]["outputs"] = place
        settings = read_settings(request.config, choices)
        context = setup.prepare(settings, runtime, None)
        with Recording(request, context, console, lock) as recording:
            recording.start()
            Trainer(context.state, [recording.run_logger, recording.checkpoints], lambda: False).fit()
        size = (recording.folder / "checkpoints" / "last.pt").stat().st_size
        return recording.checkpoints.seconds, context.state.progress.train_seconds, size


def main() -> None:
    """Print both, and their share run by run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    root = os.environ.get("DLRUN_DATA_DIR")
    if not root:
        print("the cost of checkpoints: skipped, DLRUN_DATA_DIR is not set")
        return
    runs = [measure(str(Path(root).resolve()), options.epochs) for _ in range(options.runs)]
    print(f"resnet on MNIST, a checkpoint of {runs[0][2]:,} bytes an epoch, {options.epochs} epochs; {describe()}")
    print(row("training, s", [training for _, training, _ in runs], 1))
    print(row("inside saves, s", [saving for saving, _, _ in runs], 3))
    print(row("share of training, % (bar: 2)", [100 * saving / training for saving, training, _ in runs], 3))


if __name__ == "__main__":
    main()
