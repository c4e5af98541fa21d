"""`dlrun resume` and `init_from`: going on with a run, and starting from its weights."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

QUICK = ("tracking.graph=false", "figures=false")
TIMED = ("train_seconds", "samples_per_second")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's scalars but for timings, as (step, value) by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize(
    "words",
    [
        ("model=mlp", "model.dropout=0.3", "optimizer=momentum", "scheduler=plateau", "scheduler.patience=0"),
        ("model=cnn", "optimizer=adam", "trainer.accumulate_steps=2", "trainer.grad_clip_norm=0.5"),
        (
            "model=mlp",
            "scheduler=step",
            "scheduler.step_size=2",
            "scheduler.warmup_steps=8",
            "data.loader=workers",
            "data.num_workers=0",
        ),
    ],
)
def test_training_longer_equals_training_long(dlrun: Callable, tmp_path: Path, words: tuple[str, ...]) -> None:
    words = ("data=digits", "data.limit_batches=5", "trainer.log_every_steps=3", *words, *QUICK)
    dlrun(*words, "trainer.epochs=4", "hydra.run.dir=whole")
    dlrun(*words, "trainer.epochs=2", "hydra.run.dir=parts")
    assert dlrun("resume", "parts", "trainer.epochs=4").code == 0
    whole, parts = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "parts"))
    assert {k: v for k, v in parts.items() if k not in TIMED} == {k: v for k, v in whole.items() if k not in TIMED}
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert scalars(tmp_path / "parts") == scalars(tmp_path / "whole")


def test_resume_of_a_finished_run_says_so(dlrun: Callable) -> None:
    dlrun("data=blobs", "trainer.epochs=1", "hydra.run.dir=run", *QUICK)
    for words in (("resume", "run"), ("resume=run",)):
        done = dlrun(*words)
        assert done.code == 0
        assert "completed" in done.out


def test_resume_refuses_to_become_another_run(dlrun: Callable) -> None:
    dlrun("data=blobs", "trainer.epochs=1", "hydra.run.dir=run", *QUICK)
    done = dlrun("resume", "run", "optimizer.lr=0.5", "data.batch_size=8", "trainer.epochs=3")
    assert done.code == 2
    assert "optimizer.lr (0.001 -> 0.5)" in done.err
    assert "data.batch_size (64 -> 8)" in done.err
    assert "init_from=run" in done.err


def test_resume_of_what_is_no_run(dlrun: Callable, tmp_path: Path) -> None:
    for words in (("resume",), ("resume", "nowhere"), ("resume", str(tmp_path))):
        done = dlrun(*words)
        assert done.code == 2
        assert len(done.err.splitlines()) == 1


def test_init_from_takes_what_fits_and_says_what_does_not(dlrun: Callable) -> None:
    dlrun("data=digits", "trainer.epochs=1", "hydra.run.dir=run", *QUICK)
    done = dlrun("data=digits", "init_from=run", "model.hidden_sizes=[128,10]", "trainer.epochs=1", *QUICK)
    assert done.code == 0, done.err
    (note,) = (note for note in done.result["warnings"] if "init_from" in note or "taken from run" in note)
    assert "4 of 6 tensors" in note
    assert "layers.5.weight" in note
    refused = dlrun("data=blobs", "init_from=run", "model.hidden_sizes=[3]", *QUICK)
    assert refused.code == 2
    assert "none of its weights fit" in refused.err


def test_a_folder_is_never_written_by_two_runs(dlrun: Callable) -> None:
    dlrun("data=blobs", "trainer.epochs=1", "hydra.run.dir=run", *QUICK)
    done = dlrun("data=blobs", "trainer.epochs=1", "hydra.run.dir=run", *QUICK)
    assert done.code == 2
    assert "already holds a run" in done.err
