"""MLflow: a tracking server, or a SQLite file under paths.outputs that needs nothing to be started."""

import logging
import os
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from dlrun.core.errors import RequestError, iter_causes
from dlrun.runs.loggers.base import LoggedRun, Logger, Record
from dlrun.runs.loggers.optional import import_library
from dlrun.runs.record import CONFIG, ENVIRONMENT, OVERRIDES, RESULT

T = TypeVar("T")

# Below paths.outputs.
_FILE_NAME = "mlflow.db"

# MLflow's own limits of one request.
_MOST_METRICS = 1000
_MOST_PARAMS = 100
_LONGEST_PARAM = 6000

# A server that does not answer must not hold the thread: the run sends again by itself.
_LIMITS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    # Of all that a run does nothing is told to others than the chosen server.
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_CREDENTIALS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_AUTH")
_STATUSES = {"completed": "FINISHED", "early_stopped": "FINISHED", "interrupted": "KILLED", "pruned": "KILLED"}

# Files of the run folder that MLflow keeps too, where they are there.
_ARTIFACTS = (CONFIG, OVERRIDES, ENVIRONMENT, RESULT, "report.html")
_LARGEST_ARTIFACT = 32 * 2**20

# Characters that MLflow does not take in names.
_FOREIGN = re.compile(r"[^\w\-. /:]")


class MLflowLogger(Logger):
    """Log to MLflow: settings as parameters, metrics by step, tags, notes and small files of the run folder."""

    in_background = True

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str = "dlrun",
        artifacts: bool = True,
        wait_seconds: float = 5.0,
    ) -> None:
        """tracking_uri: None for $MLFLOW_TRACKING_URI, or without it for mlflow.db under paths.outputs.

        artifacts: whether config, result and report are kept there too
        wait_seconds: how long the end of the run waits for MLflow
        """
        if not wait_seconds >= 0:
            raise ValueError("wait_seconds must be at least 0")
        for name, value in _LIMITS.items():
            os.environ.setdefault(name, value)
        self.mlflow = import_library("mlflow", "mlflow")
        self.entities = import_library("mlflow.entities", "mlflow")
        # Both tell of tables that they make.
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)

        self.tracking_uri = tracking_uri
        self.experiment = experiment
        self.artifacts = artifacts
        self.wait_seconds = wait_seconds
        # Where nothing names a server.
        self.is_local = tracking_uri is None and not os.environ.get("MLFLOW_TRACKING_URI")
        if self.is_local:
            import_library("mlflow.store.tracking.sqlalchemy_store", "mlflow")
            # The first run makes the tables, which takes seconds.
            self.start_seconds = 60.0

        self.client: Any = None
        self.remote_id = ""
        # By metric, the steps that MLflow has from earlier processes, and the last one that this process has sent.
        self.known_steps: dict[str, set[int]] = {}
        self.last_steps: dict[str, int] = {}
        self.known_params: dict[str, str] = {}

    def refuse_saved(self, permitted: Sequence[str]) -> None:
        """RequestError for an address of a saved run that would get this machine's credentials, or name a file."""
        uri = self.tracking_uri
        if uri is None or uri in (*permitted, os.environ.get("MLFLOW_TRACKING_URI")):
            return
        has_credentials = any(name in os.environ for name in _CREDENTIALS)
        has_credentials = has_credentials or (Path.home() / ".mlflow" / "credentials").exists()
        if not uri.startswith(("http://", "https://")) or has_credentials:
            raise RequestError(
                f"logger.mlflow.tracking_uri={uri} comes from a saved run; if you trust that place type "
                f"logger.mlflow.tracking_uri={uri}, else logger=tensorboard"
            )

    def start(self, run: LoggedRun) -> None:
        """Make a run in MLflow, or continue the one of before, without repeating what it holds."""
        self.run = run
        if self.client is None:
            uri = self._open_file(run.outputs) if self.is_local else self.tracking_uri
            self.client = self.mlflow.MlflowClient(tracking_uri=uri)

        remote = self._find_remote() if run.resumed_step is not None else None
        if remote is None:
            tags = self._collect_tags()
            remote = self.client.create_run(self._find_experiment(), run_name=run.name, tags=tags)
        else:
            self._reopen(remote)

        self.remote_id = remote.info.run_id
        self.state = {"run_id": self.remote_id}
        # Epochs that the server missed while it did not answer; all of them where the logger is new to the run.
        self.log_records([Record(row, int(row["step"]), time.time()) for row in run.rows])

    def log_hyperparameters(self, values: dict[str, Any]) -> None:
        """Log settings as parameters. Those of MLflow cannot change: a new value of a resumed run becomes a tag."""
        params: list[Any] = []
        for key, value in values.items():
            name = _clean(key)
            text = str(value)[:_LONGEST_PARAM]
            if name not in self.known_params:
                params.append(self.entities.Param(name, text))
            elif self.known_params[name] != text:
                self.client.set_tag(self.remote_id, name, text)

        for some in _split(params, _MOST_PARAMS):
            self.client.log_batch(self.remote_id, params=some)

    def log_records(self, records: Sequence[Record]) -> None:
        """Log metrics with their steps, except those that MLflow has already."""
        metrics: dict[tuple[str, int], Any] = {}
        for record in records:
            for key, value in record.values.items():
                name = _clean(key)
                is_known = record.step in self.known_steps.get(name, ())
                if key != "step" and not is_known and record.step > self.last_steps.get(name, -1):
                    # By name and step: the learning rate of a step that ends an epoch comes twice.
                    metric = self.entities.Metric(name, float(value), int(1000 * record.time), record.step)
                    metrics[name, record.step] = metric

        for some in _split(list(metrics.values()), _MOST_METRICS):
            self.client.log_batch(self.remote_id, metrics=some)
            for metric in some:
                self.last_steps[metric.key] = max(metric.step, self.last_steps.get(metric.key, -1))

    def log_text(self, tag: str, text: str, step: int = 0) -> None:
        """Keep a text as a file, unless the config file says the same."""
        if self.artifacts and tag != "config":
            self.client.log_text(self.remote_id, text, f"{_clean(tag)}.md")

    def finish(self, status: str) -> None:
        """Send the files of the run folder and end the run in MLflow."""
        if self.artifacts:
            for name in _ARTIFACTS:
                path = self.run.folder / name
                if path.is_file() and not path.is_symlink() and path.stat().st_size <= _LARGEST_ARTIFACT:
                    self.client.log_artifact(self.remote_id, str(path))
        self.client.set_tag(self.remote_id, "dlrun.status", status)
        self.client.set_terminated(self.remote_id, _STATUSES.get(status, "FAILED"))

    def is_outage(self, error: Exception) -> bool:
        """Whether the server does not answer, or is in trouble itself; or another process writes the SQLite file."""
        for cause in iter_causes(error):
            if isinstance(cause, OSError) or type(cause).__name__ == "OperationalError":
                return True
            code = getattr(cause, "get_http_status_code", None)
            if code is not None and code() in (429, 502, 503, 504):
                return True
        return False

    def suggest_view(self) -> str | None:
        """The command that shows the SQLite file; a server has a page of its own."""
        if not self.is_local:
            return None
        return f"mlflow ui --backend-store-uri sqlite:///{shlex.quote(str(self.run.outputs / _FILE_NAME))}"

    def _open_file(self, outputs: Path) -> str:
        """The address of the SQLite file below paths.outputs, with all tables."""
        path = outputs.absolute() / _FILE_NAME
        if not path.exists():
            # A file whose tables are made in part, as by a process that is killed, is of no use to MLflow any more.
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            temporary.unlink(missing_ok=True)
            self.mlflow.MlflowClient(tracking_uri=f"sqlite:///{temporary}")
            if not path.exists():
                temporary.replace(path)
            temporary.unlink(missing_ok=True)

        return f"sqlite:///{path}"

    def _find_experiment(self) -> str:
        """The id of the experiment, which is made at its first run."""
        experiment = self.client.get_experiment_by_name(self.experiment)
        if experiment is not None:
            return str(experiment.experiment_id)

        # A server keeps files where it likes; beside the SQLite file they lie in a folder.
        location = (self.run.outputs.absolute() / "mlflow").as_uri() if self.is_local else None
        try:
            return str(self.client.create_experiment(self.experiment, artifact_location=location))
        except Exception:
            # Another job of the sweep was faster; any other reason shows again.
            experiment = self.client.get_experiment_by_name(self.experiment)
            if experiment is None:
                raise
            return str(experiment.experiment_id)

    def _find_remote(self) -> Any:
        """The run in MLflow that the resumed run has logged to before; None where there is none."""
        remote_id = (self.state or {}).get("run_id")
        if isinstance(remote_id, str) and re.fullmatch(r"[0-9a-f]{32}", remote_id):
            try:
                remote = self.client.get_run(remote_id)
            except self.mlflow.MlflowException as error:
                # It was deleted, or is on another server.
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            else:
                # An id of another run does not count.
                if remote.data.tags.get("dlrun.run_id") == self.run.run_id:
                    return remote

        # The process may have been killed before it could note the id.
        experiment = self.client.get_experiment_by_name(self.experiment)
        if experiment is None or not re.fullmatch(r"\w+", self.run.run_id):
            return None
        condition = f"tags.`dlrun.run_id` = '{self.run.run_id}'"
        remotes = self.client.search_runs([experiment.experiment_id], filter_string=condition, max_results=1)
        return remotes[0] if remotes else None

    def _reopen(self, remote: Any) -> None:
        """Set the remote run going again, with the labels of now, and look up what it holds."""
        remote_id = remote.info.run_id
        if remote.info.lifecycle_stage == "deleted":
            self.client.restore_run(remote_id)
        self.client.update_run(remote_id, status="RUNNING", name=self.run.name)
        for key, value in self._collect_tags().items():
            self.client.set_tag(remote_id, key, value)

        self.known_params = dict(remote.data.params)
        for name in remote.data.metrics:
            history = self.client.get_metric_history(remote_id, name)
            self.known_steps[name] = {metric.step for metric in history}

    def _collect_tags(self) -> dict[str, str]:
        run = self.run
        tags = {"dlrun.run_id": run.run_id, "dlrun.folder": str(run.folder.absolute())}
        if run.sweep is not None:
            tags["dlrun.sweep"] = run.sweep
        if run.notes is not None:
            # What MLflow shows as the description of a run.
            tags["mlflow.note.content"] = run.notes

        # MLflow's tags have values.
        for tag in run.tags:
            tags[_clean(f"tag.{tag}")] = "true"
        return tags


def _clean(name: str) -> str:
    """A name as MLflow takes it."""
    return _FOREIGN.sub("_", name)[:250]


def _split(items: Sequence[T], most: int) -> Iterator[list[T]]:
    """Yield lists of at most `most` items."""
    remaining = iter(items)
    while some := list(islice(remaining, most)):
        yield some
