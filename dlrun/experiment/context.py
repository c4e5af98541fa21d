"""The objects that one run is made of, for everything that watches, records and shows it."""

from dataclasses import dataclass, field

from dlrun.config.settings import Settings
from dlrun.data.batches import Batch, SplitBatches
from dlrun.data.spec import Splits
from dlrun.engine.callback import Callback
from dlrun.engine.device import Runtime
from dlrun.engine.objective import Objective
from dlrun.engine.state import TrainState
from dlrun.experiment.preflight.checks import Layer
from dlrun.experiment.preflight.memory import Estimate
from dlrun.runs.loggers.base import Logger

Answer = float | str


@dataclass(frozen=True)
class Preflight:
    """What a small batch has shown about the model; empty where `preflight` is off."""

    layers: list[Layer] = field(default_factory=list)
    # Memory that a step needs.
    memory: Estimate | None = None
    # Some training rows, for the search for state that resume would lose.
    sample: Batch | None = None

    @property
    def multiply_adds(self) -> int:
        """Work of the whole model for one sample."""
        return sum(layer.multiply_adds for layer in self.layers)


@dataclass(frozen=True)
class Start:
    """The model before its first step."""

    # Parameter values, for a model of a few numbers only.
    parameters: dict[str, float]
    # Answers to `probes`.
    predictions: dict[str, Answer]


@dataclass(frozen=True)
class RunContext:
    """Settings, data, model and training state of one run, and the notes on it."""

    settings: Settings
    runtime: Runtime
    splits: Splits
    batches: SplitBatches
    objective: Objective
    state: TrainState
    # By name; the train state holds them too, because checkpoints do.
    callbacks: dict[str, Callback]
    # Metrics of the trivial answer (the mean or the majority class), by split.
    baseline: dict[str, float]
    preflight: Preflight
    start: Start
    # Sentences for the user, in order; result.json has them as warnings.
    notes: list[str]

    # By their names in the config; empty on all ranks but the first.
    loggers: dict[str, Logger] = field(default_factory=dict)

    @property
    def user_callbacks(self) -> list[Callback]:
        """Callbacks of the user's own, in the order of the config."""
        return list(self.callbacks.values())
