"""Aim: a repository under paths.outputs, or a remote one."""

import logging
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrun.core.errors import RequestError
from dlrun.runs.loggers.base import LoggedRun, Logger
from dlrun.runs.loggers.optional import import_library


class AimLogger(Logger):
    """Log to Aim: settings as hparams, metrics by step and epoch, name, tags and notes."""

    in_background = True

    def __init__(self, repo: str | None = None, experiment: str = "dlrun", wait_seconds: float = 5.0) -> None:
        """repo: a folder or aim://host:port; None for paths.outputs.

        wait_seconds: how long the end of the run waits for Aim
        """
        if not wait_seconds >= 0:
            raise ValueError("wait_seconds must be at least 0")
        self.aim = import_library("aim", "aim")
        # It tells of locks that a killed process has left.
        logging.getLogger("aim").setLevel(logging.ERROR)
        self.repo = repo
        self.experiment = experiment
        self.wait_seconds = wait_seconds
        if repo is None or "://" not in repo:
            # Files only.
            self.start_seconds = 60.0
        self.remote: Any = None

    def refuse_saved(self, permitted: Sequence[str]) -> None:
        """RequestError for a place that a saved run names: dlrun would write there."""
        if self.repo is not None and self.repo not in permitted:
            # Absolute, so that the word is known for a place.
            place = self.repo if "://" in self.repo else Path(self.repo).absolute()
            raise RequestError(
                f"logger.aim.repo={self.repo} comes from a saved run; if you trust that place type "
                f"logger.aim.repo={place}, else logger.aim.repo=null"
            )

    def start(self, run: LoggedRun) -> None:
        """Begin a run in Aim, or continue that of before: what it holds of a step is written anew in its place."""
        self.run = run
        place = self.repo or str(run.outputs.absolute())
        run_hash = (self.state or {}).get("run_hash")
        if run.resumed_step is not None and isinstance(run_hash, str) and re.fullmatch(r"[0-9a-f]{24}", run_hash):
            try:
                self.remote = self._open(place, run_hash)
            except Exception as error:
                # It was deleted, or is in another repository.
                if type(error).__name__ != "MissingRunError":
                    raise

        if self.remote is None:
            self.remote = self._open(place, None)
        self.state = {"run_hash": self.remote.hash}

        self.remote.name = run.name
        if run.notes is not None:
            self.remote.description = run.notes
        present = set(self.remote.props.tags)
        tags = [*run.tags] if run.sweep is None else [*run.tags, run.sweep]
        for tag in tags:
            if tag not in present:
                self.remote.add_tag(tag)

        self.remote["dlrun"] = {"run_id": run.run_id, "folder": str(run.folder.absolute()), "sweep": run.sweep or ""}
        for row in run.rows:
            self.log_metrics(row, int(row["step"]))

    def log_hyperparameters(self, values: dict[str, Any]) -> None:
        """Log settings as hparams."""
        self.remote["hparams"] = values

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        """Log metrics with step and epoch, the part of the data as context."""
        epoch = int(values["epoch"]) if "epoch" in values else None
        for key, value in values.items():
            if key in ("epoch", "step"):
                continue
            part, slash, name = key.rpartition("/")
            context = {"subset": part} if slash else None
            self.remote.track(value, name=name, step=step, epoch=epoch, context=context)

    def finish(self, status: str) -> None:
        """End the run in Aim."""
        self.remote["status"] = status
        self.remote.close()

    def suggest_view(self) -> str | None:
        """The command that shows the repository."""
        return f"aim up --repo {shlex.quote(self.repo or str(self.run.outputs))}"

    def _open(self, place: str, run_hash: str | None) -> Any:
        return self.aim.Run(
            run_hash=run_hash,
            repo=place,
            experiment=self.experiment,
            # A killed process could not give up its lock; dlrun has one of its own for the run folder.
            force_resume=run_hash is not None,
            system_tracking_interval=None,
            log_system_params=False,
            capture_terminal_logs=False,
        )
