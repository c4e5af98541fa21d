"""A logger in the background: nothing is lost while its server can answer again, and the run never waits for long."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dlrun.runs.loggers import channels
from dlrun.runs.loggers.base import LoggedRun, Logger
from dlrun.runs.loggers.channels import BackgroundChannel


class Server(Logger):
    """Keeps what it is sent, unless it is down or hangs."""

    in_background = True
    wait_seconds = 5.0

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.is_down = False
        self.attempts = 0
        self.answers = threading.Event()
        self.answers.set()
        self.status = ""

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.attempts += 1
        self.answers.wait()
        if self.is_down:
            raise ConnectionRefusedError(111, "Connection refused")
        if values.get("bad"):
            raise ValueError("no such metric")
        self.steps.append(step)

    def finish(self, status: str) -> None:
        self.status = status


def open_channel(server: Server, tmp_path: Path) -> tuple[BackgroundChannel, list[str]]:
    messages: list[str] = []
    channel = BackgroundChannel("mine", server, messages.append)
    channel.start(LoggedRun(tmp_path))
    return channel, messages


def close(channel: BackgroundChannel, seconds: float = 5.0) -> list[str]:
    deadline = time.monotonic() + seconds
    notes = channel.settle(deadline)
    channel.begin_finish("completed")
    channel.wait_for_finish(deadline)
    return notes


def wait_for_attempt(server: Server) -> None:
    while not server.attempts:
        time.sleep(0.001)


def test_all_arrives_in_order(tmp_path: Path) -> None:
    server = Server()
    channel, messages = open_channel(server, tmp_path)
    for step in range(3000):
        channel.log_metrics({"loss": 1.0}, step)
    assert close(channel) == []
    assert server.steps == list(range(3000))
    assert (server.status, messages) == ("completed", [])


def test_what_waits_is_sent_once_the_server_answers_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "_FIRST_PAUSE", 0.01)
    server = Server()
    server.is_down = True
    channel, messages = open_channel(server, tmp_path)
    for step in range(5):
        channel.log_metrics({"loss": 1.0}, step)
    wait_for_attempt(server)
    server.is_down = False
    assert close(channel) == []
    assert server.steps == list(range(5))
    assert server.status == "completed"
    assert len(messages) <= 1


def test_a_server_that_never_answers_is_counted_once(tmp_path: Path) -> None:
    server = Server()
    server.is_down = True
    channel, messages = open_channel(server, tmp_path)
    for step in range(7):
        channel.log_metrics({"loss": 1.0}, step)
    wait_for_attempt(server)
    # Far below the deadline: a refused connection is tried once more, not waited for.
    (note,) = close(channel, 600.0)
    assert note.startswith("logger mine: 7 records are not logged there (Connection refused")
    assert len(messages) <= 1
    assert server.status == ""


def test_a_server_that_hangs_is_left_alone(tmp_path: Path) -> None:
    server = Server()
    server.answers.clear()
    channel, messages = open_channel(server, tmp_path)
    channel.log_metrics({"loss": 1.0}, 1)
    wait_for_attempt(server)
    server.wait_seconds = 0.05
    notes = close(channel, server.wait_seconds)
    server.answers.set()
    assert notes == ["logger mine: 1 record is not logged there (it does not answer within 0.05 s)"]
    assert messages == []


def test_the_queue_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "_MOST_WAITING", 10)
    server = Server()
    server.answers.clear()
    channel, _ = open_channel(server, tmp_path)
    channel.log_metrics({"loss": 1.0}, 0)
    wait_for_attempt(server)
    for step in range(1, 31):
        channel.log_metrics({"loss": 1.0}, step)
    server.answers.set()
    assert close(channel) == ["logger mine: 20 records are not logged there (it is too slow)"]
    assert server.steps == list(range(11))


def test_a_record_that_is_refused_costs_itself(tmp_path: Path) -> None:
    server = Server()
    channel, messages = open_channel(server, tmp_path)
    channel.log_metrics({"bad": 1.0}, 1)
    while not channel.lost:
        time.sleep(0.001)
    channel.log_metrics({"loss": 1.0}, 2)
    notes: list[Any] = close(channel)
    assert notes[0].startswith("logger mine: 1 record is not logged there (ValueError: no such metric (")
    assert server.steps == [2]
    (line,) = messages
    assert line.startswith("logger mine: ValueError: no such metric (")
