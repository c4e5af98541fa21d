"""What one run is made of, handed to all that watch it, record it and show it."""

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
    """What one run is made of."""

    settings: Settings
    runtime: Runtime
    splits: Splits
    task: Objective
    model: nn.Module
    training: TrainState
    test: Batches | None
    layers: list[Layer]  # none where `preflight` is off
    baseline: dict[str, float]  # the trivial answer's metrics, by split
    notes: list[str]  # what the user should know
    start_parameters: dict[str, float] = field(default_factory=dict)  # of a model small enough to watch them move
    first_predictions: dict[str, Answer] = field(default_factory=dict)  # to `probes`, before training
    is_alone: bool = True  # not one of several runs whose expectations are checked together
    unsaved: DiskProblems = field(default_factory=DiskProblems)  # what the disk did not take
    memory_estimate: memory.Estimate | None = None  # memory of a step
    compile_seconds: float | None = None  # what torch.compile took before the first step
    sample: Batch | None = None  # some training rows, where state that resume cannot see is looked for
