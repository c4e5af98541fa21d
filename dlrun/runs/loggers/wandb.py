"""Weights & Biases: its server, or with mode=offline files under paths.outputs that `wandb sync` sends later."""

import contextlib
import netrc
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dlrun.core.errors import RequestError
from dlrun.runs.loggers.base import LoggedRun, Logger, Record
from dlrun.runs.loggers.optional import import_library

MODES = ("online", "offline")

# Retries and seconds of wandb's own process, which would hold the end of a run for as long as there is no network.
_MOST_RETRIES = 3
_TIMEOUT_SECONDS = 5


class WandbLogger(Logger):
    """Log to Weights & Biases: settings as config, metrics by step, name, tags, notes; a sweep as a group."""

    in_background = True

    def __init__(
        self,
        project: str = "dlrun",
        entity: str | None = None,
        mode: str | None = None,
        wait_seconds: float = 5.0,
    ) -> None:
        """mode: online or offline; None for $WANDB_MODE, or without it online.

        wait_seconds: how long the end of the run waits for the server
        """
        if mode is not None and mode not in MODES:
            raise ValueError(f"mode {mode} is not a choice; type one of {', '.join(MODES)}")
        if not wait_seconds >= 0:
            raise ValueError("wait_seconds must be at least 0")
        self.wandb = import_library("wandb", "wandb")
        self.project = project
        self.entity = entity
        self.mode = mode or os.environ.get("WANDB_MODE") or "online"
        self.wait_seconds = wait_seconds
        if self.mode == "online":
            # Without a key wandb would ask for one in the terminal; wandb.login would ask the server.
            if not _has_key(self.wandb.setup().settings):
                raise RequestError(
                    "logger=wandb has no key for the server on this machine; type wandb login, or "
                    "logger.wandb.mode=offline"
                )
        else:
            # Files only.
            self.start_seconds = 60.0

        self.remote: Any = None
        # Up to this step the server has all from earlier processes.
        self.known_step = -1

    def start(self, run: LoggedRun) -> None:
        """Begin a run of the same id in W&B, or continue it."""
        self.run = run
        folder = run.outputs.absolute() / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        settings = self.wandb.Settings(
            silent=True,
            console="off",
            init_timeout=_TIMEOUT_SECONDS,
            disable_git=True,
            disable_code=True,
            x_graphql_retry_max=_MOST_RETRIES,
            x_graphql_timeout_seconds=_TIMEOUT_SECONDS,
            x_file_stream_retry_max=_MOST_RETRIES,
            x_file_stream_timeout_seconds=_TIMEOUT_SECONDS,
            x_file_transfer_retry_max=_MOST_RETRIES,
            x_file_transfer_timeout_seconds=_TIMEOUT_SECONDS,
        )
        # The id is the run's own, so that a resumed run needs no record of it.
        self.remote = self.wandb.init(
            id=_clean(run.run_id),
            resume="allow",
            dir=str(folder),
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            name=run.name,
            notes=run.notes,
            tags=[tag[:64] for tag in run.tags],
            group=run.sweep,
            settings=settings,
        )
        self.state = {"run_id": self.remote.id}
        # The server tells what it has; offline that is 0, and the new file holds all epochs, as an earlier process may
        # have been killed before its rows were in the file.
        self.known_step = int(self.remote.step) - 1
        for row in run.rows:
            self.log_metrics(row, int(row["step"]))

    def log_hyperparameters(self, values: dict[str, Any]) -> None:
        """Log settings as the config of the run."""
        self.remote.config.update(values, allow_val_change=True)

    def log_records(self, records: Sequence[Record]) -> None:
        """Log metrics with their steps."""
        for record in records:
            self.log_metrics(record.values, record.step)

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        """Log metrics of one step, unless an earlier process has: W&B's steps only go up."""
        if step <= self.known_step:
            return
        self.remote.log({key: value for key, value in values.items() if key != "step"}, step=step)

    def finish(self, status: str) -> None:
        """End the run in W&B."""
        self.remote.summary["status"] = status
        self.remote.finish(exit_code=int(status == "failed"))

    def is_outage(self, error: Exception) -> bool:
        """Whether the server does not answer."""
        return isinstance(error, OSError | self.wandb.errors.CommError)

    def suggest_view(self) -> str | None:
        """The command that sends an offline run."""
        if self.mode != "offline":
            return None
        pattern = self.run.outputs / "wandb" / "wandb"
        return f"wandb sync {shlex.quote(str(pattern))}/offline-run-*-{_clean(self.run.run_id)}"


def _has_key(settings: Any) -> bool:
    """Whether this machine has a key for the server: in the environment, or as `wandb login` writes it.

    settings: those of wandb
    """
    if settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(settings.base_url).hostname or ""
    paths = [Path.home() / ".netrc", Path.home() / "_netrc"]
    if "NETRC" in os.environ:
        paths = [Path(os.environ["NETRC"]).expanduser()]
    for path in paths:
        # A file of another form is wandb's to complain of.
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(path).authenticators(host) is not None:
                return True

    return False


def _clean(run_id: str) -> str:
    """An id as W&B takes it."""
    return re.sub(r"[^\w-]", "_", run_id)[:64]
