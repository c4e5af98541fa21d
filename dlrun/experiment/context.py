"""The objects that one run is made of, for everything that watches, records and shows it."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from dlrun.config.settings import Settings
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
class SplitOutputs:
    """Inputs, outputs and targets of the first rows of a split, on the CPU, in the order of epoch 1 of its batches."""

    split: str
    batches: Batches
    inputs: tuple[Tensor, ...]
    outputs: Tensor
    targets: Tensor


@dataclass
class RunContext:
    """Settings, data, model and training state of one run, and what has been noted about it."""

    settings: Settings
    runtime: Runtime
    splits: Splits
    task: Objective
    model: nn.Module
    training: TrainState
    test: Batches | None
    # Empty where `preflight` is off.
    layers: list[Layer]
    # Metrics of the trivial answer (the mean or the majority class), by split.
    baseline: dict[str, float]
    # What the user should know; result.json keeps them as warnings.
    notes: list[str]
    # Initial parameters of a model small enough to watch them move.
    start_parameters: dict[str, float] = field(default_factory=dict)
    # Answers to `probes` before training.
    first_predictions: dict[str, Answer] = field(default_factory=dict)
    # False for one of several runs whose expectations are checked together.
    is_alone: bool = True
    # Files that the disk did not take.
    unsaved: DiskProblems = field(default_factory=DiskProblems)
    # Memory that a step needs.
    memory_estimate: memory.Estimate | None = None
    # Time of torch.compile before the first step.
    compile_seconds: float | None = None
    # Some training rows, on which state that resume would lose is looked for.
    sample: Batch | None = None
    # Outputs of the final weights on the split that is shown.
    final_outputs: SplitOutputs | None = None
