"""What a run's training is, as the templates need to know it."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer

from dlrun.config.schema import DataKeys
from dlrun.config.settings import Component, Settings
from dlrun.data.datasets import count_rows
from dlrun.data.spec import DataSpec
from dlrun.engine import trainer
from dlrun.engine.objective import FLUSH_BATCHES
from dlrun.engine.optim.schedule import Schedule
from dlrun.experiment.builder import build
from dlrun.experiment.preflight import checks
from dlrun.inference.saved_model import SavedModel
from dlrun.runs.record import RunRecord

_FEW = 30  # batches of a validation part, which are added up one by one: see loop.evaluation_block


@dataclass(frozen=True)
class TrainingRun:
    """A finished training on tensors in memory, and what of it decides the bits."""

    saved: SavedModel
    rows: int  # that were trained on
    threads: int

    @property
    def settings(self) -> Settings:
        """The config, as plain objects."""
        return self.saved.settings

    @property
    def data(self) -> Component[Any]:
        """Target and arguments of the data."""
        return self.settings.data

    @property
    def keys(self) -> DataKeys:
        """How the rows are parted and grouped."""
        return self.settings.data.keys

    @property
    def spec(self) -> DataSpec:
        """What the model was trained for."""
        return self.saved.spec

    @property
    def model(self) -> nn.Module:
        """The model, with the weights of some epoch: for names and shapes."""
        return self.saved.model

    @cached_property
    def optimizer(self) -> Optimizer:
        """As the run had it at its start, for its settings."""
        return build.build_optimizer(self.settings, self.model, self.saved.request.trusted_modules)

    @cached_property
    def schedule(self) -> Schedule:
        """The schedule of a fresh optimizer, with all lengths filled in."""
        optimizer = build.build_optimizer(self.settings, self.model, self.saved.request.trusted_modules)
        trusted = self.saved.request.trusted_modules
        return build.build_schedule(self.settings, optimizer, _Length(self.batches), self.mode, trusted)  # type: ignore[arg-type]

    @property
    def batches(self) -> int:
        """Of an epoch."""
        whole, rest = divmod(self.rows, self.keys.batch_size)
        return whole + (rest > 0 and not self.keys.drop_last)

    @property
    def has_val(self) -> bool:
        """Whether rows of the training part were held out for validation."""
        return self.keys.val_fraction > 0 and any(key.startswith("val/") for key in self.saved.state["metrics"])

    @property
    def has_test(self) -> bool:
        """Whether there is a test part."""
        name, test = str(self.data.target).rpartition(".")[2], self.data.arguments.get("test_fraction")
        return test > 0 if test is not None else name in PUBLISHED

    @property
    def monitor(self) -> str:
        """The metric that decides which epoch is best."""
        return self._monitored[0]

    @property
    def mode(self) -> str:
        """`min` or `max` of it."""
        return self._monitored[1]

    @cached_property
    def _monitored(self) -> tuple[str, str]:
        keys = self.settings.checkpoint
        return checks.resolve_monitor(keys.monitor, keys.mode, self.saved.task, self.has_val)

    @property
    def whole(self) -> bool:
        """Whether every step sees all rows in their own order, and no other rows are asked about."""
        one = self.rows <= self.keys.batch_size and (not self.keys.shuffle or self.rows == 1)
        return one and not (self.has_val or self.has_test or self.watched) and self.spec.kind != "image"

    @property
    def watched(self) -> bool:
        """Whether the monitored metric changes anything: when it ends, or how fast it learns."""
        plateau = "plateau" in str(self.settings.scheduler.target).lower()
        return plateau or self.settings.trainer.early_stopping.patience is not None

    @property
    def simple(self) -> bool:
        """Whether only the training rows are ever asked about, a batch a step."""
        apart = self.has_val or self.has_test or self.settings.trainer.accumulate_steps > 1
        return not apart and self.spec.kind != "image"

    @property
    def block(self) -> int:
        """How many losses are added up at a time, as the monitored metric has it; 1 where it decides nothing."""
        if not (self.watched or self.has_test):
            return 1
        if not self.monitor.startswith("val/"):
            return FLUSH_BATCHES
        share, size = self.keys.val_fraction, self.keys.eval_batch_size or max(self.keys.batch_size, 256)
        if self.rows * share / (1 - share) < _FEW * size:
            return 1
        val = self.saved.splits.val
        return 1 if val is None else trainer.choose_block_size(math.ceil(count_rows(val) / size))

    @property
    def channels_last(self) -> bool:
        """Whether images lie with their channels last."""
        return build.wants_channels_last(self.model, self.spec, self.saved.process)

    @property
    def double(self) -> bool:
        """64 bits or 32."""
        return self.settings.device.precision == "fp64"

    @property
    def dtype(self) -> str:
        """Of floating tensors."""
        return "torch.float64" if self.double else "torch.float32"

    @property
    def autocast(self) -> str | None:
        """The narrower type of the forward pass."""
        return {"bf16": "torch.bfloat16", "fp16": "torch.float16"}.get(self.settings.device.precision)

    @property
    def modal(self) -> bool:
        """Whether the net does something else in training than afterwards."""
        kinds = (_DropoutNd, _NormBase)
        return any(isinstance(m, kinds) or getattr(m, "dropout", 0.0) for m in self.model.modules())

    @property
    def columns(self) -> tuple[str, ...]:
        """What a row is made of, as the source names it."""
        return ("codes", "lengths", "y") if self.spec.kind == "tokens" else ("x", "y")

    @property
    def inputs(self) -> str:
        """What the net is called with."""
        return ", ".join(self.columns[:-1])

    @property
    def shapes(self) -> str:
        """Of a batch of inputs and of outputs, as a comment."""
        inside = ", ".join(str(int(n)) for n in self.spec.input_shape)
        return f"(B, {inside}) -> (B, {int(self.spec.output_size)})"

    @property
    def result(self) -> dict[str, Any]:
        """result.json; empty where the checkpoint lies in no run folder."""
        return {} if self.saved.folder is None else RunRecord(self.saved.folder).result

    @property
    def device(self) -> str:
        """Where it was trained; the CPU where nothing says otherwise."""
        noted = {} if self.saved.folder is None else RunRecord(self.saved.folder).environment
        return str(noted.get("device", "cpu"))


PUBLISHED = ("mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "names")  # with a test part of their own


@dataclass(frozen=True)
class _Length:
    """As many batches as the training part has: all that a schedule asks of it."""

    count: int

    def __len__(self) -> int:
        return self.count
