"""What of a run decides the bits of its weights, as the templates ask for it."""

import math
import re
from collections.abc import Sized
from typing import cast

import torch
from torch import nn

from dlrun.data.batches import Batches
from dlrun.data.datasets import count_rows
from dlrun.engine import trainer
from dlrun.engine.objective import FLUSH_BATCHES
from dlrun.engine.optim.schedule import Schedule
from dlrun.experiment.builder import build
from dlrun.experiment.preflight import checks
from dlrun.experiment.stack.choice import has_batch_norm
from dlrun.inference.saved_model import SavedModel
from dlrun.runs.record import RunRecord

# Up to so many batches trainer.choose_block_size gives 1.
_FEW_BATCHES = 30


def changes_strides(model: nn.Module) -> bool:
    """Whether nn.Module.to would give some kernel other strides than it has, in the same layout."""
    kernels = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.dim() == 4]
    return any(kernel.to(memory_format=torch.channels_last).stride() != kernel.stride() for kernel in kernels)


class TrainingRun:
    """A finished training on tensors in memory."""

    def __init__(self, saved: SavedModel, has_test: bool) -> None:
        self.saved = saved
        self.settings = saved.settings
        self.spec = saved.spec
        self.model = saved.model
        self.keys = saved.settings.data.keys
        self.trainer = saved.settings.trainer
        self.trusted_modules = saved.request.trusted_modules

        precision = self.settings.device.precision
        self.is_double = precision == "fp64"
        self.dtype = torch.float64 if self.is_double else torch.float32
        # The narrower type of the forward pass.
        self.autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        # Gradients of 16 bits would underflow.
        self.has_scaler = precision == "fp16"
        self.channels_last = build.wants_channels_last(self.model, self.spec, saved.runtime)
        # Of kernels of one pixel nn.Module.to changes the strides, by which batch norm of one pixel rounds otherwise.
        self.keeps_strides = self.channels_last and has_batch_norm(self.model) and changes_strides(self.model)

        self.rows = int(saved.state["rows"])
        full_batches, rest = divmod(self.rows, self.keys.batch_size)
        # Batches of an epoch.
        self.batches = full_batches + (rest > 0 and not self.keys.drop_last)
        # Of several batches a step, where there are several.
        self.accumulates = self.trainer.accumulate_steps > 1 and self.batches > 1
        self.eval_batch_size = self.keys.eval_batch_size or max(self.keys.batch_size, 256)

        self.has_test = has_test
        self.has_val = self.keys.val_fraction > 0 and any(key.startswith("val/") for key in saved.state["metrics"])
        monitor = self.settings.checkpoint.monitor
        mode = self.settings.checkpoint.mode
        self.monitor, self.mode = checks.resolve_monitor(monitor, mode, saved.objective, self.has_val)
        self.has_plateau = "plateau" in str(self.settings.scheduler.target).lower()
        self.stops_early = self.trainer.early_stopping.patience is not None
        # The monitored metric decides when the training ends, or how fast it learns.
        self.is_monitored = self.has_plateau or self.stops_early

        # Every step sees all rows in their own order, and no other rows are asked about.
        has_one_batch = self.rows <= self.keys.batch_size and (not self.keys.shuffle or self.rows == 1)
        asks_more = self.has_val or self.has_test or self.is_monitored
        is_image = self.spec.kind == "image"
        self.is_full_batch = has_one_batch and not asks_more and not is_image
        # The script makes batches of several parts; else it picks rows of the training data in place.
        self.has_parts = self.has_val or self.has_test or self.accumulates or is_image

        # What the run folder tells; a checkpoint alone is taken for one of a CPU.
        record = None if saved.folder is None else RunRecord(saved.folder)
        self.device = str(record.environment.get("device", "cpu")) if record else "cpu"
        digest = str(record.result.get("weights_sha256")) if record else ""
        is_digest = re.fullmatch(r"[0-9a-f]{64}", digest) is not None
        # What the script's weights are to be; None where they need not be the same.
        self.weights_sha256 = digest if is_digest and self.device == "cpu" else None
        # Batched products round in other places than those of the net alone, which the script trains.
        self.is_stacked = bool(record and record.result.get("stacked"))

    def build_schedule(self) -> Schedule:
        """The schedule at its start on an optimizer at its start, with all lengths filled in."""
        optimizer = build.build_optimizer(self.settings, self.model, self.trusted_modules)
        # Their number is all that a schedule asks of the batches.
        batches: Sized = range(self.batches)
        return build.build_schedule(self.settings, optimizer, cast(Batches, batches), self.mode, self.trusted_modules)

    @property
    def block(self) -> int:
        """How many losses the run added up at a time, where the monitored metric needs all its bits; else 1."""
        if not (self.is_monitored or self.has_test):
            return 1
        if not self.monitor.startswith("val/"):
            return FLUSH_BATCHES

        # So small a validation part is added up batch by batch; the data need not be read to tell.
        rows = self.rows * self.keys.val_fraction / (1 - self.keys.val_fraction)
        if rows < _FEW_BATCHES * self.eval_batch_size:
            return 1

        val = self.saved.splits.val
        assert val is not None
        return trainer.choose_block_size(math.ceil(count_rows(val) / self.eval_batch_size))
