"""`dlrun resume` and `init_from`: continuing a run, and starting from its weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrun.config.request import from_command_line
from dlrun.core.errors import RequestError
from dlrun.experiment import run
from dlrun.experiment.resume import (
    choose_threads,
    find_environment_changes,
    find_reached_limit,
    refuse_other_curve,
    refuse_shorter,
)
from dlrun.runs.checkpoint import load, save

QUICK = ("tracking.graph=false", "figures=false")
TIMED = ("train_seconds", "samples_per_second")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's scalars but for timings, as (step, value) by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def state() -> dict[str, Any]:
    """As much of a checkpoint as `resume` looks at: two epochs, 20 steps, two without improvement."""
    trainer = {"epochs": 2, "max_steps": None, "early_stopping": {"patience": None}}
    return {
        "epoch": 2,
        "step": 20,
        "choices": {"scheduler": "cosine"},
        "config": {"trainer": trainer, "scheduler": {}},
        "early_stopping": {"epochs_without_improvement": 2},
    }


def change_trainer(saved: dict[str, Any], **trainer: Any) -> dict[str, Any]:
    """The config of a saved state with other settings of the trainer."""
    return {**saved["config"], "trainer": {**saved["config"]["trainer"], **trainer}}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, to be copied."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    words = ["data=blobs", "trainer.epochs=2", f"hydra.run.dir={folder}", *QUICK]
    assert all(run.run(one_run) == 0 for one_run in from_command_line(words))
    return folder


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(
            ("model=mlp", "model.dropout=0.3", "optimizer=momentum", "scheduler=plateau", "scheduler.patience=0"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("model=cnn", "optimizer=adam", "trainer.accumulate_steps=2", "trainer.grad_clip_norm=0.5"),
            marks=pytest.mark.slow,
        ),
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
    reference, parts = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "parts"))
    assert {k: v for k, v in parts.items() if k not in TIMED} == {k: v for k, v in reference.items() if k not in TIMED}
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert scalars(tmp_path / "parts") == scalars(tmp_path / "whole")


@pytest.mark.slow
def test_resume_of_a_finished_run_says_so(dlrun: Callable) -> None:
    dlrun("data=blobs", "trainer.epochs=1", "hydra.run.dir=run", *QUICK)
    for words in (("resume", "run"), ("resume=run",)):
        outcome = dlrun(*words)
        assert outcome.code == 0
        assert "completed" in outcome.out


def test_resume_refuses_to_become_another_run(dlrun: Callable) -> None:
    dlrun("data=blobs", "trainer.epochs=1", "hydra.run.dir=run", *QUICK)
    outcome = dlrun("resume", "run", "optimizer.lr=0.5", "data.batch_size=8", "trainer.epochs=3")
    assert outcome.code == 2
    assert "optimizer.lr (0.001 -> 0.5)" in outcome.err
    assert "data.batch_size (64 -> 8)" in outcome.err
    assert "init_from=run" in outcome.err


@pytest.mark.parametrize(
    "words",
    [
        ("trainer.epochs=1",),
        ("trainer.max_steps=3",),
        ("trainer.early_stopping.patience=1", "trainer.epochs=9"),
        ("seed=1", "trainer.epochs=9"),
        ("checkpoint.monitor=val/accuracy", "trainer.epochs=9"),
        ("task.loss=nll",),
        ("model=linear",),
        ("init_from=run",),
    ],
)
def test_what_makes_it_another_run_is_refused_before_anything_is_written(
    dlrun: Callable, tmp_path: Path, words: tuple[str, ...], finished_run: Path
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    outcome = dlrun("resume", "run", *words)
    assert outcome.code == 2
    assert "init_from=run" in outcome.err
    assert words[0].split("=")[0].split(".")[0] in outcome.err
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize(("epochs", "max_steps"), [(9, None), (2, 60)])
@pytest.mark.parametrize("key", ["T_max", "total_steps"])
def test_a_longer_training_would_have_had_another_curve(key: str, epochs: int, max_steps: int | None) -> None:
    now = state()
    now["config"]["scheduler"] = {key: None}
    now["config"]["trainer"]["max_steps"] = 30
    with pytest.raises(RequestError, match=f"scheduler=cosine spans the whole.*init_from=run .*scheduler.{key}=<"):
        refuse_other_curve(now, change_trainer(now, epochs=epochs, max_steps=max_steps), Path("run"))
    refuse_other_curve(now, change_trainer(now), Path("run"))
    now["config"]["scheduler"] = {key: 99}
    refuse_other_curve(now, change_trainer(now, epochs=epochs, max_steps=max_steps), Path("run"))


@pytest.mark.parametrize(
    ("key", "was", "value", "message"),
    [
        ("epochs", 2, 1, r"epochs=1 is below the 2 of this run \(2 are done\)"),
        ("max_steps", 30, 29, r"max_steps=29 is below the 30 of this run \(20 are done\)"),
        ("max_steps", None, 99, r"max_steps=99 is below the null, no limit, of this run \(20 are done\)"),
        (
            "early_stopping",
            {"patience": 4},
            {"patience": 3},
            r"early_stopping.patience=3 is below the 4 of this run, and",
        ),
    ],
)
def test_a_run_only_gets_longer(key: str, was: Any, value: Any, message: str) -> None:
    now = state()
    now["config"]["trainer"][key] = was
    with pytest.raises(RequestError, match=message):
        refuse_shorter(now, change_trainer(now, **{key: value}), Path("run"))
    now["config"]["trainer"][key] = value
    if value != 99:
        refuse_shorter(now, change_trainer(now, **{key: was}), Path("run"))
    refuse_shorter(now, change_trainer(now, max_steps=None), Path("run"))


@pytest.mark.parametrize(
    ("trainer", "key"),
    [
        ({}, "trainer.epochs"),
        ({"epochs": 3}, None),
        ({"epochs": 3, "max_steps": 20}, "trainer.max_steps"),
        ({"epochs": 3, "max_steps": 21}, None),
        ({"epochs": 3, "early_stopping": {"patience": 2}}, "trainer.early_stopping.patience"),
        ({"epochs": 3, "early_stopping": {"patience": 3}}, None),
    ],
)
def test_what_ended_a_run(trainer: dict[str, Any], key: str | None) -> None:
    assert find_reached_limit(state(), change_trainer(state(), **trainer)) == key


def test_as_many_threads_as_before_where_there_are_so_many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    plain: dict[str, Any] = {"device": {"num_threads": None}}
    assert choose_threads({"threads": 2}, plain) == 2
    assert choose_threads({"threads": 3}, plain) is None
    assert choose_threads({"threads": 3}, {"device": {"num_threads": 3}}) == 3
    assert choose_threads({}, plain) is None


def test_what_differs_is_said_and_other_data_are_refused() -> None:
    before = {"spec": {"task": "binary"}, "rows": 10, "threads": 4, "torch": "1.0"}
    assert find_environment_changes(before, before) == find_environment_changes({}, before) == []
    threads, torch = find_environment_changes(before, before | {"threads": 2, "torch": "2.0"})
    assert threads == "until now CPU threads 4, from here on 2: results may differ in the last bits"
    assert torch.startswith("until now torch 1.0, from here on 2.0")
    with pytest.raises(RequestError, match="the number of training rows is 11, and was 10 when the run began"):
        find_environment_changes(before, before | {"rows": 11})
    with pytest.raises(RequestError, match="the data's description is"):
        find_environment_changes(before, before | {"spec": {}})


@pytest.mark.slow
def test_a_state_of_another_dlrun_gets_a_verdict(dlrun: Callable, tmp_path: Path, finished_run: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    path, more = tmp_path / "run/checkpoints/last.pt", ("resume", "run", "trainer.epochs=3", *QUICK)
    reference = load(path)
    for file in path.parent.glob("*.pt"):
        file.unlink()
    for key in ("config", "choices", "spec", "rng", "progress", "early_stopping", "totals", "scaler", "metrics"):
        save(path, {k: v for k, v in reference.items() if k != key})
        outcome = dlrun(*more)
        assert (outcome.code, len(outcome.err.splitlines())) == (1, 1)
        assert f"last.pt lacks {key}: it was written by another dlrun" in outcome.err
    for version, message in ((0, "the older one"), (9, "the newer one")):
        save(path, reference | {"format_version": version})
        assert message in dlrun(*more).err
    save(path, reference | {"optimizer": {"state": {}, "param_groups": [{"params": [0]}]}})
    before = (tmp_path / "run/metrics.jsonl").read_bytes(), (tmp_path / "run/result.json").read_bytes()
    outcome = dlrun(*more)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "does not fit this model, optimizer and dlrun" in outcome.err
    assert before == ((tmp_path / "run/metrics.jsonl").read_bytes(), (tmp_path / "run/result.json").read_bytes())
    save(path, reference | {"torch": "1.0", "threads": 9999})
    outcome = dlrun(*more)
    assert outcome.code == 0, outcome.err
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert [w[:30] for w in result["warnings"]] == ["until now CPU threads 9999, fr", "until now torch 1.0, from here"]
    outcome = dlrun("eval", "run/checkpoints/last.pt", "figures=false")
    assert outcome.code == 0
    save(path, {k: v for k, v in reference.items() if k != "choices"})
    outcome = dlrun("eval", "run/checkpoints/last.pt", "figures=false")
    assert (outcome.code, "lacks choices" in outcome.err) == (2, True)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("dlrun data=blobs seed=3", "nothing to resume from; start it again: dlrun data=blobs seed=3"),
        ("dlrun hydra.run.dir=run", "delete run and type dlrun hydra.run.dir=run"),
    ],
)
def test_a_run_that_ended_before_its_first_checkpoint(
    dlrun: Callable, tmp_path: Path, command: str, message: str
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/.step_00000001.pt.7.tmp").write_bytes(b"half")
    (tmp_path / "run/environment.json").write_text(json.dumps({"command": command}))
    outcome = dlrun("resume", "run")
    assert (outcome.code, outcome.err.strip().endswith(message)) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "more"),
    [
        (("trainer.max_steps=7",), ("trainer.max_steps=15",)),
        (("trainer.max_steps=3", "checkpoint.monitor=train/accuracy"), ("trainer.max_steps=null",)),
        (("trainer.early_stopping.patience=1",), ("trainer.early_stopping.patience=9",)),
    ],
)
def test_a_run_that_had_ended_goes_on_as_if_it_had_not(
    dlrun: Callable, tmp_path: Path, first: tuple[str, ...], more: tuple[str, ...]
) -> None:
    words = ("data=digits", "data.limit_batches=5", "trainer.epochs=5", "trainer.log_every_steps=1", *QUICK)
    shake = ("optimizer=sgd", "optimizer.lr=9", "model.dropout=0.5")
    changed = more[0].split("=")[0]
    others = [word for word in first if not word.startswith(f"{changed}=")]
    dlrun(*words, *shake, *others, *more, "hydra.run.dir=whole")
    assert dlrun(*words, *shake, *first, "hydra.run.dir=parts").code == 0
    outcome = dlrun("resume", "parts")
    assert (outcome.code, more[0].split("=")[0] in outcome.out) == (0, True)
    assert dlrun("resume", "parts", *more).code == 0
    reference, parts = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "parts"))
    assert {k: v for k, v in parts.items() if k not in TIMED} == {k: v for k, v in reference.items() if k not in TIMED}
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert scalars(tmp_path / "parts") == scalars(tmp_path / "whole")
    one, two = (load(tmp_path / name / "checkpoints/best.pt")["model"] for name in ("whole", "parts"))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_resume_of_what_is_no_run(dlrun: Callable, tmp_path: Path) -> None:
    for words in (("resume",), ("resume", "nowhere"), ("resume", str(tmp_path))):
        outcome = dlrun(*words)
        assert outcome.code == 2
        assert len(outcome.err.splitlines()) == 1


@pytest.mark.slow
def test_init_from_takes_what_fits_and_says_what_does_not(dlrun: Callable) -> None:
    dlrun("data=digits", "trainer.epochs=1", "hydra.run.dir=run", *QUICK)
    outcome = dlrun("data=digits", "init_from=run", "model.hidden_sizes=[128,10]", "trainer.epochs=1", *QUICK)
    assert outcome.code == 0, outcome.err
    (note,) = (note for note in outcome.result["warnings"] if "init_from" in note or "taken from run" in note)
    assert "4 of 6 tensors" in note
    assert any("run lacks them: layers.5.weight" in note for note in outcome.result["warnings"])
    refused = dlrun("data=blobs", "init_from=run", "model.hidden_sizes=[3]", *QUICK)
    assert refused.code == 2
    assert "none of its weights fit" in refused.err


@pytest.mark.slow
def test_a_folder_is_never_written_by_two_runs(dlrun: Callable) -> None:
    dlrun("data=blobs", "trainer.epochs=1", "hydra.run.dir=run", *QUICK)
    outcome = dlrun("data=blobs", "trainer.epochs=1", "hydra.run.dir=run", *QUICK)
    assert outcome.code == 2
    assert "already holds a run" in outcome.err


@pytest.mark.slow
def test_a_run_goes_on_without_the_file_that_it_began_from(dlrun: Callable, finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "first")
    words = ("data=blobs", "trainer.max_steps=2", *QUICK, "init_from=first", "hydra.run.dir=second")
    assert dlrun(*words).code == 0
    shutil.rmtree(tmp_path / "first")
    outcome = dlrun("resume", "second", "trainer.max_steps=4")
    assert outcome.code == 0, outcome.err
