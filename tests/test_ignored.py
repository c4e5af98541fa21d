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


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("hydra.job.chdir=true", "a run stays in the working directory"),
        ("hydra.job.name=mine", "type hydra.run.dir=<folder>"),
        ("+hydra.job.env_set.A=1", "NAME=value dlrun"),
        ("hydra.output_subdir=other", "always lies in .hydra"),
        ("hydra.verbose=true", "type -v"),
        ("hydra/job_logging=default", "run.log"),
        ("+hydra.callbacks.mine._target_=x.Y", "leave it out"),
        ("hydra/launcher=basic", "type sweep.jobs="),
        ("hydra/sweeper=basic", "sweep.points"),
    ],
)
def test_keys_of_hydra_without_effect_are_refused(
    word: str, instead: str, dlrun: Callable[..., Any], tmp_path: Path
) -> None:
    done = dlrun(*QUIET, word)
    assert done.code == 2
    assert done.err.startswith(f"dlrun: {word} has no effect in dlrun: ")
    assert instead in done.err
    assert not list(tmp_path.iterdir())


def test_keys_without_effect_are_named(dlrun: Callable[..., Any]) -> None:
    words = (
        "data.num_workers=2",
        "data.loader=memory",
        "data.memory_share=0.1",
        "scheduler.interval=step",
        "strict=true",
    )
    more = (
        "trainer.early_stopping.min_delta=0.1",
        "device=cpu",
        "device.timeout_seconds=9",
        "device.channels_last=true",
    )
    done = dlrun(*QUIET, "trainer.max_steps=1", *words, *more, "device.cuda_graph=off")
    assert done.code == 0, done.err
    named = [line.split()[1] for line in done.out.splitlines() if "has no effect here" in line]
    assert named == [
        "data.num_workers", "data.memory_share", "scheduler.interval", "trainer.early_stopping.min_delta", "strict",
        "device.cuda_graph", "device.timeout_seconds", "device.channels_last",
    ]  # fmt: skip
    for command in ("eval", "predict", "export"):
        refused = dlrun(command, str(done.folder), "trainer.epochs=5")
        assert refused.code == 2
        assert f"trainer.epochs=5 is for training, and has no effect on dlrun {command}" in refused.err


def test_long_words_are_cut_in_messages(dlrun: Callable[..., Any]) -> None:
    for word in ("x" * 10_000, "trainer.epochs=" + "y" * 10_000, "trainer.epochs=" + "7\n" * 3000):
        done = dlrun(word)
        assert done.code == 2
        assert len(done.err.splitlines()) == 1
        assert len(done.err) < 700


def test_numbers_for_a_run_on_pictures_are_answered(
    command: Callable[..., Any], dlrun: Callable[..., Any], tmp_path: Path
) -> None:
    words = ("model=linear", "trainer.max_steps=1", "tracking.graph=false", "figures=false", "hydra.run.dir=run")
    assert dlrun(*words).code == 0
    rows = [" ".join(["0.5"] * 784), ",".join(["0.5"] * 783), " ".join(["7"] * 784), "x" * 5000]
    done = command("predict", "run", "-", input="\n".join(rows))
    assert done.code == 1, done.err
    said = " ".join(done.out.split())
    assert "the row holds 783 numbers" in said
    assert "pixels as numbers are from 0" in said
    assert "of 5,000 letters is neither" in said
    assert "3 of 4 inputs have no answer" in done.err
    assert max(map(len, done.out.splitlines())) < 300
