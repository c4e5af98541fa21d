"""device.num_threads=auto: times a few steps, changes nothing else, and is taken again on resume."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrun.engine.acceleration import threads as thread_choice

WORDS = ("data=blobs", "model=mlp", "model.dropout=0.3", "trainer.epochs=2", "figures=false", "tracking.graph=false")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def slow_but_with(best: int) -> Callable[..., float]:
    return lambda *_: 1.0 + abs(torch.get_num_threads() - best)


@pytest.mark.slow
@pytest.mark.parametrize("best", [2, 3])
def test_the_fastest_number_is_taken_and_said_and_the_run_is_the_same(
    best: int, dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_choice, "_time_step", slow_but_with(best))
    monkeypatch.setattr("dlrun.engine.device.count_cores", lambda: 3)
    outcome = dlrun(*WORDS, "device.num_threads=auto", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert f"device.num_threads=auto: {best} (a step takes " in outcome.out
    assert json.loads(Path("run/environment.json").read_text())["threads"] == best
    alone = dlrun(*WORDS, f"device.num_threads={best}", "hydra.run.dir=alone")
    assert outcome.rows == alone.rows
    monkeypatch.setattr(thread_choice, "_time_step", slow_but_with(1 if best > 1 else 3))
    longer = dlrun("resume", "run", "trainer.epochs=3")
    assert longer.code == 0, longer.err
    assert "num_threads=auto" not in longer.out
    assert "may differ" not in longer.out


def test_within_three_percent_the_fewest_are_taken(monkeypatch: pytest.MonkeyPatch, dlrun: Callable[..., Any]) -> None:
    monkeypatch.setattr(thread_choice, "_time_step", lambda *_: 1.0 - 0.01 * torch.get_num_threads())
    monkeypatch.setattr("dlrun.engine.device.count_cores", lambda: 2)
    assert "device.num_threads=auto: 1 (" in dlrun(*WORDS, "device.num_threads=auto").out


def test_real_steps_are_timed(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun(*WORDS, "device.num_threads=auto")
    assert outcome.code == 0, outcome.err
    assert " ms with 1" in outcome.out


@pytest.mark.parametrize(
    "wrong", ["-1", *(pytest.param(w, marks=pytest.mark.slow) for w in ("0", "many", "1.5", "true"))]
)
def test_what_is_no_number_is_refused(wrong: str, dlrun: Callable[..., Any]) -> None:
    outcome = dlrun(*WORDS, f"device.num_threads={wrong}")
    assert outcome.code == 2
    assert f"device.num_threads={wrong}" in outcome.err
