"""The class that loggers derive from, dlrun's own and those of users."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from dlrun.core.files import DiskProblems


@dataclass(frozen=True)
class LoggedRun:
    """What a logger is told about the run when it starts."""

    # The run folder, and paths.outputs.
    folder: Path
    outputs: Path = Path("outputs")
    # The same in all processes of a run that is resumed.
    run_id: str = ""
    # run.name, or the name of the folder.
    name: str = ""
    tags: tuple[str, ...] = ()
    notes: str | None = None
    # Name of the sweep that the run is a job of.
    sweep: str | None = None
    # Keys that differ between the jobs of the sweep; for a run alone, the keys of its command line.
    varied: tuple[str, ...] = ()
    # Step of the checkpoint that a resumed run continues from; None for a new run.
    resumed_step: int | None = None
    # Whether the run has ended before, and only pictures of it are added.
    is_ended: bool = False
    # Rows of metrics.jsonl up to there.
    rows: Sequence[dict[str, float]] = ()
    # Takes what the disk refuses.
    disk_problems: DiskProblems = field(default_factory=DiskProblems)


@dataclass(frozen=True)
class Record:
    """Metrics of one step, and when they were measured."""

    values: dict[str, float]
    step: int
    # Seconds since 1970.
    time: float


class Logger:
    """Base class of loggers: override what a logger needs, and choose it by `+logger.NAME._target_=mine.MyLogger`.

    An instance is made whenever a config is checked, so it must not write or connect before `start`. An exception in
    a method never ends the run: it is noted once, and the lost calls are counted.
    """

    # Call the methods from a thread: the run neither waits for a slow logger nor for one that does not answer.
    in_background: ClassVar[bool] = False

    # How long the end of the run waits for such a logger.
    wait_seconds: float = 5.0

    # How long the training waits for its `start`: for one that only opens files here, not for a server.
    start_seconds: float = 0.0

    # Plain data that the run folder keeps, such as the id of a remote run: set in `start`, there when the run is
    # resumed. It is of the latest moment, not of the checkpoint.
    state: dict[str, Any] | None = None

    def start(self, run: LoggedRun) -> None:
        """Called first, for a new run and for a resumed one."""

    def log_hyperparameters(self, values: dict[str, Any]) -> None:
        """Log settings by dotted key, such as optimizer.lr; called once after `start`."""

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        """Log metrics by name after `step` optimizer steps.

        Those of an epoch hold the entry "epoch" too, and its timings as time/...; those within one do not. After the
        last step those of the test split follow. A resumed run repeats what was logged after its checkpoint.
        """

    def log_records(self, records: Sequence[Record]) -> None:
        """Log several records at once; a logger that can send them together overrides this."""
        for record in records:
            self.log_metrics(record.values, record.step)

    def log_text(self, tag: str, text: str, step: int = 0) -> None:
        """Log Markdown, such as the config."""

    def finish(self, status: str) -> None:
        """Called last, unless the process is killed; the run folder is complete then.

        status: completed, early_stopped, pruned, interrupted or failed, as in result.json.
        """

    def refuse_saved(self, permitted: Sequence[str]) -> None:
        """RequestError for arguments that are not to be taken from a saved run, such as where to send credentials.

        permitted: addresses that this command line itself names
        """

    def suggest_view(self) -> str | None:
        """The command that shows what was logged, for the end of a run's report; None without one."""
        return None

    def is_outage(self, error: Exception) -> bool:
        """Whether the same call may succeed later, as where a server does not answer. Only asked in the background."""
        return isinstance(error, OSError)
