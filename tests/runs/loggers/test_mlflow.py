"""Real MLflow: a local file, a server, a server that dies, an address where none is, and runs killed and resumed."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    # Of MLflow and of what it imports.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed"),
]

QUICK = ("data=digits", "data.limit_batches=2", "tracking.graph=false", "figures=false", "hydra.run.dir=run")


def find_free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def start_dlrun(folder: Path, *words: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    return subprocess.Popen(
        [sys.executable, "-m", "dlrun", *words],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run_dlrun(folder: Path, *words: str) -> str:
    process = start_dlrun(folder, *words)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def wait_until(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "run" / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")]


class Server:
    """`mlflow server` over a SQLite file."""

    def __init__(self, folder: Path) -> None:
        self.uri = f"http://127.0.0.1:{find_free_port()}"
        port = self.uri.rpartition(":")[2]
        words = ["server", "--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination",
                 str(folder / "files"), "--host", "127.0.0.1", "--port", port, "--workers", "1"]  # fmt: skip
        # A group of its own, as it starts workers.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(self.answers)

    def answers(self) -> bool:
        assert self.process.poll() is None
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    yield server
    server.kill()


def list_remote(uri: str) -> tuple[Any, list[Any]]:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("dlrun")
    return client, client.search_runs([experiment.experiment_id])


def check_history(client: Any, remote: Any, rows: list[dict[str, Any]]) -> None:
    """Every value of metrics.jsonl is there once, and nothing else of its names."""
    for key in rows[0].keys() - {"step", "lr"}:
        history = [(metric.step, metric.value) for metric in client.get_metric_history(remote.info.run_id, key)]
        assert sorted(history) == [(row["step"], row[key]) for row in rows], key
    steps = [metric.step for metric in client.get_metric_history(remote.info.run_id, "lr")]
    assert len(steps) == len(set(steps))


@pytest.mark.parametrize("keeps_id", [True, False])
def test_a_killed_run_goes_on_in_the_same_run_of_a_server(server: Server, tmp_path: Path, keeps_id: bool) -> None:
    words = (*QUICK, "trainer.epochs=150", "trainer.log_every_steps=5", "logger=mlflow", "run.tags=[a,b c]",
             "run.notes=why", f"logger.mlflow.tracking_uri={server.uri}")  # fmt: skip
    process = start_dlrun(tmp_path, *words)
    wait_until((tmp_path / "run" / "loggers.json").exists)
    # The parameters are there before any metric.
    wait_until(lambda: "epoch" in list_remote(server.uri)[1][0].data.metrics)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done_before = len(read_rows(tmp_path))
    if not keeps_id:
        (tmp_path / "run" / "loggers.json").unlink()

    out = run_dlrun(tmp_path, "resume", "run", "trainer.epochs=170", "run.name=other", "logger.mlflow.wait_seconds=60")
    rows = read_rows(tmp_path)
    assert done_before < len(rows) == 170
    assert "not logged" not in out

    client, remotes = list_remote(server.uri)
    (remote,) = remotes
    check_history(client, remote, rows)
    assert (remote.info.status, remote.info.run_name) == ("FINISHED", "other")
    tags = remote.data.tags
    assert (tags["tag.a"], tags["tag.b c"], tags["mlflow.note.content"]) == ("true", "true", "why")
    # A parameter of MLflow is final.
    assert (remote.data.params["trainer.epochs"], tags["trainer.epochs"]) == ("150", "170")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert remote.data.metrics["test/accuracy"] == result["metrics"]["test/accuracy"]
    names = {file.path for file in client.list_artifacts(remote.info.run_id)}
    assert {"config.yaml", "result.json"} <= names


def test_a_server_that_dies_costs_a_note(server: Server, tmp_path: Path) -> None:
    words = (*QUICK, "trainer.epochs=300", "logger=mlflow", f"logger.mlflow.tracking_uri={server.uri}")
    process = start_dlrun(tmp_path, *words)
    wait_until(lambda: len(read_rows(tmp_path)) > 5)
    server.kill()
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "completed"
    assert len([note for note in result["warnings"] if "not logged there" in note]) == 1
    assert out.count("note: logger mlflow:") == 1
    assert "Traceback" not in out


def test_an_address_where_nothing_listens_costs_a_note(tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{find_free_port()}"
    out = run_dlrun(tmp_path, *QUICK, "trainer.epochs=3", "logger=mlflow", f"logger.mlflow.tracking_uri={uri}")
    assert out.count("note: logger mlflow:") == 1
    assert "Traceback" not in out
    assert len(read_rows(tmp_path)) == 3


def test_jobs_of_a_sweep_are_runs_of_a_local_file_under_one_name(tmp_path: Path) -> None:
    words = [word for word in QUICK if not word.startswith("hydra")]
    out = run_dlrun(tmp_path, "-m", *words, "trainer.epochs=2", "seed=0,1", "logger=[csv,mlflow]", "sweep.dir=sweep")
    assert "not logged" not in out
    client, remotes = list_remote(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    assert [remote.data.tags["dlrun.sweep"] for remote in remotes] == ["sweep", "sweep"]
    assert {remote.data.params["seed"] for remote in remotes} == {"0", "1"}
    assert all(remote.info.status == "FINISHED" for remote in remotes)
    for remote in remotes:
        folder = Path(remote.data.tags["dlrun.folder"])
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        check_history(client, remote, rows)
    assert not list(tmp_path.rglob("mlruns"))


def test_a_loaded_run_gets_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"http://127.0.0.1:{find_free_port()}"
    run_dlrun(tmp_path, *QUICK, "trainer.epochs=1", "logger=mlflow", f"logger.mlflow.tracking_uri={uri}")
    environment = {**os.environ, "MLFLOW_TRACKING_TOKEN": "secret"}
    words = [sys.executable, "-m", "dlrun", "resume", "run", "trainer.epochs=2"]
    refused = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert refused.returncode == 2
    assert f"if you trust that place type logger.mlflow.tracking_uri={uri}" in refused.stderr
    # The advice, taken.
    words.append(f"logger.mlflow.tracking_uri={uri}")
    assert subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True).returncode == 0
