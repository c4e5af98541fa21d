"""What the user types is heeded, or dlrun says that it is not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

QUIET = ("tracking.graph=false", "figures=false", "data=line", "model=linear", "optimizer=sgd")


def test_typed_steps_alone_end_the_training(dlrun: Callable[..., Any]) -> None:
    done = dlrun(*QUIET, "trainer.max_steps=30", "data.batch_size=1000")
    assert done.code == 0, done.err
    assert (done.result["steps"], done.result["epochs"]) == (30, 30)
    assert "note: trainer" not in done.out
    longer = dlrun("resume", str(done.folder), "trainer.max_steps=35")
    assert longer.code == 0, longer.err
    assert json.loads((done.folder / "result.json").read_text())["steps"] == 35
    whole = dlrun(*QUIET, "trainer.max_steps=35", "data.batch_size=1000")
    assert (done.folder / "metrics.jsonl").read_bytes().count(b"\n") == 35
    assert json.loads((done.folder / "result.json").read_text())["weights_sha256"] == whole.result["weights_sha256"]


def test_epochs_that_end_before_the_steps_are_named(dlrun: Callable[..., Any]) -> None:
    done = dlrun(*QUIET, "trainer.epochs=3", "trainer.max_steps=30", "data.batch_size=1000")
    assert done.result["steps"] == 3
    said = (
        "note: trainer.epochs=3 ends the training after 3 steps, before trainer.max_steps=30; type trainer.epochs=null"
    )
    assert said in done.out


def test_a_training_without_an_end_is_refused(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    done = dlrun(*QUIET, "trainer.epochs=null")
    assert done.code == 2
    assert "trainer.epochs=null never ends; type trainer.max_steps=<steps> too" in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_schedule_spans_the_steps(interval: str, dlrun: Callable[..., Any]) -> None:
    done = dlrun(*QUIET, "trainer.max_steps=30", "scheduler=cosine", f"scheduler.interval={interval}")
    other = dlrun(
        *QUIET, "trainer.max_steps=30", "trainer.epochs=30", "scheduler=cosine", f"scheduler.interval={interval}"
    )
    assert done.result["weights_sha256"] == other.result["weights_sha256"]
