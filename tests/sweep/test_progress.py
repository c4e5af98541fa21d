"""What is shown of a sweep while it lasts."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console as RichConsole

from dlrun.runs.reports.console import Console
from dlrun.sweep.engines import Outcome
from dlrun.sweep.progress import Display, estimate_seconds_left

RESULT = {"status": "completed", "best": {"metric": "val/loss", "value": 0.25, "epoch": 3}}


def make_job(place: Path, number: int, label: str) -> Any:
    folder = place / str(number)
    folder.mkdir()
    config = {"trainer": {"epochs": 5}, "checkpoint": {"monitor": None}}
    return SimpleNamespace(
        number=number, key=str(number), label=label, folder=folder, request=SimpleNamespace(config=config)
    )


@pytest.fixture
def jobs(tmp_path: Path) -> list[Any]:
    return [make_job(tmp_path, i, f"optimizer.lr=0.{i} model.hidden_sizes=[{8 * i},8]") for i in range(1, 4)]


def on_terminal(width: int) -> tuple[Console, Callable[[], str]]:
    """A console on a terminal of that width, and what it has written so far."""
    stream = io.StringIO()
    console = Console(stream)
    console.terminal = RichConsole(file=stream, force_terminal=True, width=width, no_color=True, highlight=False)
    return console, stream.getvalue


def finish(display: Display, job: Any, outcome: Outcome) -> None:
    display.add_running(job)
    if outcome.error is None:
        (job.folder / "result.json").write_text(json.dumps(RESULT))
    display.finish(job, outcome)


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (120, "1/3  optimizer.lr=0.1 model.hidden_sizes=[8,8]: completed, val/loss 0.2500 (epoch 3), 0.0 s, 0:00 left"),
        (80, "1/3  lr=0.1 hidden_sizes=[8,8]: val/loss 0.2500 (epoch 3), 0.0 s"),
        (40, "1/3  lr=0.1 hidden_sizes=[8,8]: val/los…"),
    ],
)
def test_a_job_that_has_ended_keeps_a_line_above_the_table(jobs: list[Any], width: int, shown: str) -> None:
    console, read = on_terminal(width)
    display = Display(console, jobs, 1)
    with display.show_live():
        finish(display, jobs[0], Outcome(0))
    assert f"{shown}\n" in read()


def test_a_pipe_has_the_whole_line(jobs: list[Any]) -> None:
    stream = io.StringIO()
    display = Display(Console(stream), jobs, 1)
    finish(display, jobs[0], Outcome(0))
    finish(display, jobs[1], Outcome(1, "the loss is nan"))
    first, second = stream.getvalue().splitlines()
    assert first.startswith("1/3  optimizer.lr=0.1 model.hidden_sizes=[8,8]: completed, val/loss 0.2500 (epoch 3)")
    assert second == "2/3  optimizer.lr=0.2 model.hidden_sizes=[16,8]: FAILED: the loss is nan"


def test_the_table_has_the_jobs_that_run(jobs: list[Any]) -> None:
    console, read = on_terminal(100)
    display = Display(console, jobs, 1)
    finish(display, jobs[0], Outcome(0))
    display.add_running(jobs[1])
    (jobs[1].folder / "metrics.jsonl").write_text('{"epoch": 2, "step": 8, "train/loss": 0.5}\n')
    before = len(read())
    console.terminal.print(display._render())
    table = read()[before:]
    assert "1/3" in table
    rows = [line.split() for line in table.splitlines() if "hidden_sizes" in line]
    assert rows == [["2", "lr=0.2", "hidden_sizes=[16,8]", "2/5", "train/loss", "0.5000", "0:00"]]


def test_the_time_left_is_that_of_the_jobs_that_have_finished() -> None:
    assert estimate_seconds_left(10, [], 3, at_once=1) == 30
    assert estimate_seconds_left(10, [4], 0, at_once=1) == 6
    # The last one alone, and not half of both.
    assert estimate_seconds_left(10, [4, 0], 0, at_once=2) == 10
    # 6 + 10 + 10
    assert estimate_seconds_left(10, [4, 0], 3, at_once=2) == 26
    # It takes longer than the others did.
    assert estimate_seconds_left(10, [15], 1, at_once=1) == 10
