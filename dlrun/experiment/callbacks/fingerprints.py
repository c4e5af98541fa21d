"""fingerprints.jsonl: the sha256 of the weights after every epoch, by which two runs are compared later."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dlrun.core.files import DiskProblems, GrowingFile
from dlrun.engine.callback import Callback, TrainerView
from dlrun.runs.checkpoint import hash_weights
from dlrun.runs.record import FINGERPRINTS


class WeightHashes(Callback):
    """Records the weights' hash: {"epoch": 3, "step": 63, "weights_sha256": ...}; epoch 0 is before the first step.

    An epoch's costs 0.05 ms for 10,000 parameters and 0.3 ms for 100,000 (one core); for 25 million 0.17 s, a part
    of what a checkpoint of them takes.
    """

    def __init__(self, model: nn.Module, folder: Path, unsaved: DiskProblems) -> None:
        self.model = model
        self.file = GrowingFile(folder / FINGERPRINTS, FINGERPRINTS, unsaved)

    def record(self, epoch: int, step: int) -> None:
        """Append one line, which is on the disk before this returns."""
        self.write([{"epoch": epoch, "step": step, "weights_sha256": hash_weights(self.model)}])

    def write(self, lines: Sequence[dict[str, Any]]) -> None:
        """Append lines, which are on the disk before this returns."""
        self.file.write("".join(json.dumps(line) + "\n" for line in lines))
        self.file.flush()

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        """Record the weights after the epoch."""
        self.record(int(row["epoch"]), int(row["step"]))
