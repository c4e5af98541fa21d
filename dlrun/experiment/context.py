"""The objects that one run is made of, for everything that watches, records and shows it."""

from dataclasses import dataclass, field

from torch import nn

from dlrun.config.schema import Settings
from dlrun.core.files import DiskProblems
from dlrun.data.batches import Batch, Batches
from dlrun.data.spec import Splits
from dlrun.engine.device import Runtime
from dlrun.engine.objective import Objective
from dlrun.engine.state import TrainState
from dlrun.experiment.preflight import memory
from dlrun.experiment.preflight.checks import Layer

Answer = float | str


@dataclass
class RunContext:
    """Settings, data, model and training state of one run, and what has been noted about it.

    layers: the model's layers, empty where `preflight` is off
    baseline: metrics of the trivial answer (the mean or the majority class), by split
    notes: what the user should know; result.json keeps them as warnings
    start_parameters: initial parameters of a model small enough to watch them move
    first_predictions: answers to `probes` before training
    is_alone: False for one of several runs whose expectations are checked together
    unsaved: files that the disk did not take
    memory_estimate: memory that a step needs
    compile_seconds: time of torch.compile before the first step
    sample: some training rows, where state that resume would lose is looked for
    """

    settings: Settings
    runtime: Runtime
    splits: Splits
    task: Objective
    model: nn.Module
    training: TrainState
    test: Batches | None
    layers: list[Layer]
    baseline: dict[str, float]
    notes: list[str]
    start_parameters: dict[str, float] = field(default_factory=dict)
    first_predictions: dict[str, Answer] = field(default_factory=dict)
    is_alone: bool = True
    unsaved: DiskProblems = field(default_factory=DiskProblems)
    memory_estimate: memory.Estimate | None = None
    compile_seconds: float | None = None
    sample: Batch | None = None
