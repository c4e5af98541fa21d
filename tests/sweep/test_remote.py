"""What the engines of clusters share, on a cluster that is made up: losses, failures, machines that see no folder."""

import json
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlrun.core.errors import RequestError
from dlrun.sweep import ray_engine, remote
from dlrun.sweep.attempts import Attempt, RemoteJob, read_progress
from dlrun.sweep.remote import Remote


class _Cluster(Remote):
    """Each attempt ends at once, by the next word of its job: a code, "lost", "blind", or "queued" for never."""

    def __init__(self, folder: Path, words: dict[str, list[Any]], at_once: int | None = None) -> None:
        super().__init__(folder, 1, at_once)
        self.words = words
        self.most = 0
        self.withdrawn: list[str] = []

    def submit(self, attempts: Sequence[Attempt], watcher: Any) -> None:
        for attempt in attempts:
            attempt.handle = self.words[attempt.job.key].pop(0)
            if attempt.handle not in ("blind", "queued"):
                lines = [{"began": 1, "host": "m"}]
                if attempt.handle != "lost":
                    lines.append({"code": attempt.handle, "error": "it \x1b broke" if attempt.handle == 1 else None})
                attempt.remote.file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def collect_ended(self, attempts: Sequence[Attempt], watcher: Any) -> list[tuple[Attempt, str]]:
        self.most = max(self.most, len(attempts))
        ended = [a for a in attempts if a.handle != "queued" or a.job.key in self.withdrawn]
        return [(a, "" if a.handle == "blind" else "its machine was lost") for a in ended]

    def stop(self, attempt: Attempt) -> None:
        self.withdrawn.append(attempt.job.key)

    def describe(self) -> str:
        return ""

    def close(self) -> None:
        pass


class _Watcher:
    def __init__(self, fail_fast: bool) -> None:
        self.fail_fast = fail_fast
        self.started: list[str] = []
        self.ended: dict[str, Any] = {}
        self.notes: list[str] = []

    def on_job_start(self, job: Any) -> None:
        self.started.append(job.key)

    def on_job_end(self, job: Any, outcome: Any) -> bool:
        assert job.key in self.started
        self.ended[job.key] = outcome
        return not (self.fail_fast and outcome.error)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[_Watcher, _Cluster]]:
    def run(words: dict[str, list[Any]], fail_fast: bool = False, at_once: int | None = None) -> Any:
        jobs = [SimpleNamespace(key=key, label=key, number=i) for i, key in enumerate(words)]
        watcher = _Watcher(fail_fast)
        cluster = _Cluster(tmp_path, words, at_once)
        units: Any = [SimpleNamespace(open_jobs=[job]) for job in jobs]
        assert cluster.run(units, watcher) == 0  # type: ignore[arg-type]
        return watcher, cluster

    return run


def test_a_lost_job_runs_again_and_a_failed_one_does_not(run: Callable[..., Any]) -> None:
    watcher, cluster = run({"a": ["lost", "blind", 0], "b": [1], "c": [143, 0], "d": ["lost"] * 3}, at_once=2)
    assert {key: outcome.code for key, outcome in watcher.ended.items()} == {"a": 0, "b": 1, "c": 0, "d": 1}
    assert watcher.ended["b"].error == "it \\x1b broke"
    assert watcher.ended["d"].error == "its machine was lost, 3 times"
    assert watcher.notes.count("a: its machine was lost; it is run again, from its newest checkpoint") == 1
    assert sorted(watcher.started) == ["a", "b", "c", "d"]
    assert cluster.most == 2
    assert cluster.words == {"a": [], "b": [], "c": [], "d": []}


def test_a_failure_that_ends_the_sweep_withdraws_what_is_queued(run: Callable[..., Any]) -> None:
    watcher, cluster = run({"a": [1], "b": ["queued"], "c": [0]}, fail_fast=True)
    assert cluster.withdrawn == ["b"]
    assert sorted(watcher.ended) == ["a", "c"]
    assert "b" not in watcher.started


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    job = RemoteJob(None, tmp_path / "s" / "cluster" / "0_1.jsonl", tmp_path, 1)  # type: ignore[arg-type]
    answer = remote.run_remote_job(job)
    assert str(answer).endswith(f"does not see {tmp_path / 's'}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "process", "code"),
    [
        ("", None, None),
        ('{"began": 5}\n{"code": 138', 5, None),
        ('{"began": 5}\n{"code": 138, "error": null}\n', 5, 138),
        ('{"began": 5}\n{"code": 138, "error": null}\n{"began": 7}\n', 7, None),
        ('{"began": "x"}\n[]\n{"code": 0}\n', None, None),
        ("\x00\xff\n", None, None),
    ],
)
def test_what_a_machine_has_written_is_read_as_far_as_it_can_be(
    text: str, process: int | None, code: int | None, tmp_path: Path
) -> None:
    (tmp_path / "f").write_text(text)
    progress = read_progress(tmp_path / "f")
    assert (progress.process, progress.code) == (process, code)


@pytest.mark.parametrize("is_automatic", [False, True])
def test_a_ray_that_died_is_told_at_once(is_automatic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        typed = "auto" if is_automatic else address
        ray_engine.refuse_silent_cluster(typed)
    with pytest.raises(RequestError, match=rf"address={typed} cannot be joined: no Ray answers at {address}"):
        ray_engine.refuse_silent_cluster(typed)
