"""What is shown of a training while it lasts."""

import contextlib
import io
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console as RichConsole

from dlrun.engine.state import Progress
from dlrun.experiment.callbacks.progress import ProgressDisplay
from dlrun.runs.reports.console import Console

ROW = {"epoch": 2.0, "step": 42.0, "train/loss": 0.5, "train/accuracy": 0.25, "val/loss": 0.75, "val/accuracy": 0.125}
TIMINGS = {"epoch_seconds": 0.5, "samples_per_second": 12345.6}


def training(**progress: Any) -> Any:
    """As much of a run as the console looks at."""
    limits = SimpleNamespace(epochs=10, accumulate_steps=2, max_steps=None)
    return SimpleNamespace(progress=Progress(**progress), stop_rules=limits, train=range(5))


@contextlib.contextmanager
def show_progress(console: Console, run: Any) -> Iterator[ProgressDisplay]:
    display = ProgressDisplay(console, run)
    with display.show():
        yield display


def end_epoch(display: ProgressDisplay, row: dict[str, float], is_best: bool) -> None:
    trainer: Any = SimpleNamespace(state=display._state, timings=TIMINGS, is_best=is_best)
    display.on_epoch_end(trainer, row)


@pytest.mark.parametrize("is_best", [True, False])
def test_an_epoch_is_a_line_where_there_is_no_terminal(is_best: bool) -> None:
    stream = io.StringIO()
    console = Console(stream)
    with show_progress(console, training()) as display:
        end_epoch(display, ROW, is_best)
    best = "  best" if is_best else ""
    line = f"epoch  2/10  train/loss 0.5000  val/loss 0.7500  val/accuracy 0.1250  12,346 samples/s{best}\n"
    assert stream.getvalue() == line


def list_printed_epochs(run: Any, epochs: range, tmp_path: Path, terminal: bool = False) -> list[int]:
    """The epochs that have a line, of a run that goes through `epochs`; the same in run.log."""
    stream = io.StringIO()
    console = Console(stream)
    if terminal:
        console.terminal = RichConsole(file=stream, force_terminal=True, width=80)
    console.open_log(tmp_path / "run.log")
    with show_progress(console, run) as display:
        for epoch in epochs:
            end_epoch(display, ROW | {"epoch": float(epoch)}, False)
    console.close()
    output = (tmp_path / "run.log").read_text()
    assert terminal or output == stream.getvalue()
    return [int(line.split("/")[0].removeprefix("epoch")) for line in output.splitlines()]


@pytest.mark.parametrize(
    ("planned", "epochs_trained", "expected"),
    [
        (20, range(1, 21), [*range(1, 21)]),
        (50, range(1, 51), [*range(1, 51)]),
        (51, range(1, 52), [1, *range(2, 51, 2), 51]),
        (1000, range(1, 1001), [1, *range(20, 1001, 20)]),
        (1000, range(1, 48), [1, 20, 40, 47]),  # patience or a signal ended it
        (1000, range(333, 390), [333, 340, 360, 380, 389]),  # resumed
        (1000, range(1, 1), []),
    ],
)
@pytest.mark.parametrize("terminal", [False, True])
def test_a_long_run_has_about_fifty_lines(
    planned: int, epochs_trained: range, expected: list[int], terminal: bool, tmp_path: Path
) -> None:
    run = training()
    run.stop_rules.epochs = planned
    assert list_printed_epochs(run, epochs_trained, tmp_path, terminal) == expected


def test_the_last_epoch_is_said_when_the_run_fails() -> None:
    stream, run = io.StringIO(), training()
    run.stop_rules.epochs = 1000
    console = Console(stream)

    def fails() -> None:
        with show_progress(console, run) as display:
            for epoch in range(1, 8):
                end_epoch(display, ROW | {"epoch": float(epoch), "train/loss": 10.0 ** (44 * epoch)}, False)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    first, last = stream.getvalue().splitlines()
    assert first.startswith("epoch    1/1000  train/loss 1.000e+44  val/loss")
    assert last.startswith("epoch    7/1000  train/loss 1.000e+308  val/loss")


def test_without_a_validation_part_the_line_shows_training_metrics() -> None:
    stream = io.StringIO()
    console = Console(stream)
    with show_progress(console, training()) as display:
        end_epoch(display, {k: v for k, v in ROW.items() if not k.startswith("val/")}, False)
    assert "train/loss 0.5000  train/accuracy 0.2500  12,346" in stream.getvalue()


def render(console: Console, thing: Any) -> str:
    console.terminal = RichConsole(file=io.StringIO(), width=100, force_terminal=False)
    console.terminal.print(thing)
    text: str = console.terminal.file.getvalue()  # type: ignore[attr-defined]
    return text


@pytest.mark.parametrize(
    ("progress", "max_steps", "shown"),
    [
        ({"epoch": 0, "step": 0}, None, ["epoch 1/10", "0/3"]),
        # 5 batches, 2 a step: 3 steps an epoch.
        ({"epoch": 3, "step": 10}, None, ["epoch 4/10", "1/3", " steps/s", " left"]),
        ({"epoch": 3, "step": 12}, 12, ["epoch 4/10", "3/3", "0:00 left"]),
        ({"epoch": 10, "step": 30}, None, ["epoch 10/10", "3/3", "0:00 left"]),
    ],
)
def test_the_bar_reads_the_counters(progress: dict[str, int], max_steps: int | None, shown: list[str]) -> None:
    run = training()
    console = Console(io.StringIO())
    with show_progress(console, run) as display:
        run.progress, run.stop_rules.max_steps = Progress(**progress), max_steps
        text = render(console, display._make_bar())
    assert all(part in text for part in shown), text


def test_the_loss_in_the_bar_is_smoothed() -> None:
    console = Console(io.StringIO())
    display = ProgressDisplay(console, training())
    assert "loss" not in render(console, display._make_bar())
    unused: Any = None
    display.on_log(unused, {"train/loss_step": 1.0, "lr": 0.1})
    display.on_log(unused, {"train/loss_step": 2.0, "lr": 0.1})
    assert "loss 1.1000" in render(console, display._make_bar())


def on_terminal(tmp_path: Path, mode: str, width: int) -> tuple[str, str]:
    """What a terminal of that width gets for an epoch, and what run.log has."""
    stream = io.StringIO()
    console = Console(stream)
    console.terminal = RichConsole(file=stream, force_terminal=True, width=width, highlight=False)
    console.open_log(tmp_path / "run.log")
    display = ProgressDisplay(console, training(), mode)
    with display.show():
        end_epoch(display, ROW, True)
    console.close()
    return stream.getvalue(), (tmp_path / "run.log").read_text()


LINE = "epoch  2/10  train/loss 0.5000  val/loss 0.7500  val/accuracy 0.1250"


@pytest.mark.parametrize(("width", "shown"), [(120, f"{LINE}  12,346 samples/s  best\n"), (80, f"{LINE}  best\n")])
def test_on_a_terminal_an_epoch_is_a_line_above_the_bar(width: int, shown: str, tmp_path: Path) -> None:
    terminal, log = on_terminal(tmp_path, "bar", width)
    assert shown in terminal
    assert "━" in terminal
    assert log == f"{LINE}  12,346 samples/s  best\n"


def test_a_line_alone_or_nothing_is_shown_where_that_is_asked_for(tmp_path: Path) -> None:
    terminal, log = on_terminal(tmp_path, "line", 120)
    assert terminal == log == f"{LINE}  12,346 samples/s  best\n"
    (tmp_path / "run.log").unlink()
    terminal, log = on_terminal(tmp_path, "off", 120)
    assert terminal == ""
    assert log == f"{LINE}  12,346 samples/s  best\n"


@pytest.mark.slow
def test_a_notebook_has_one_output_that_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[str] = []
    is_drawn = threading.Event()

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            assert raw
            updates.append(data["text/html"])
            is_drawn.set()

    fake = SimpleNamespace(display=lambda data, raw, display_id: Handle())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=fake))
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    console = Console(io.StringIO())
    console.is_notebook = True
    with show_progress(console, training(epoch=3, step=10)):
        assert is_drawn.wait(10)
    assert "epoch 4/10" in updates[0]
    assert updates[-1] == ""
    # The thread has ended with the training.
    count = len(updates)
    time.sleep(0.6)
    assert len(updates) == count
