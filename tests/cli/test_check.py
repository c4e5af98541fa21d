"""`dlrun check`: what a training would be, or everything that is wrong with it at once; nothing is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.core.errors import ErrorList, MultipleErrors, RequestError

QUIET = ("tracking.graph=false", "figures=false")
WRONG = {
    "trainer.epochs=0": "trainer.epochs=0 must be above 0; type trainer.epochs=20",
    "data.val_fraction=2": "data.val_fraction=2.0 must be below 1; type data.val_fraction=0.1",
    "device=mps": "device mps is not on this machine",
    "expect=[nonsense]": "expect: 'nonsense' is not understood",
    "task.loss=mse": "task.loss=mse is no loss for multiclass",
    "model.activation=rellu": "model.activation=rellu is unknown (did you mean relu",
    "optimizer.lr=-1": "optimizer.lr=-1: Invalid learning rate",
    "scheduler.gamma=x": "scheduler.gamma='x' must be a number; type scheduler.gamma=0.1",
}


@pytest.mark.slow
def test_all_that_is_wrong_is_said_at_once_in_a_numbered_list(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    outcome = dlrun("check", "scheduler=step", *WRONG)
    lines = outcome.err.splitlines()
    assert (outcome.code, outcome.out, lines[0]) == (2, "", f"dlrun: {len(WRONG)} things are wrong:")
    for i, message in enumerate(WRONG.values(), 1):
        (line,) = [line for line in lines if message in line]
        assert line.split(".")[0].strip().isdigit(), (i, line)
    assert [int(line.split(".")[0]) for line in lines[1:]] == list(range(1, len(WRONG) + 1))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_training_is_refused_with_the_same_list(dlrun: Callable[..., Any]) -> None:
    words = ("scheduler=step", "scheduler.step_size=0", "optimizer.eps=-1", "checkpoint.monitor=val/acc", "probes=[1]")
    trained = dlrun(*words)
    assert (trained.code, len(trained.err.splitlines())) == (2, 4)  # an image is no probe, once the rest is right
    assert dlrun("check", *words).err == trained.err


@pytest.mark.slow
def test_composing_does_not_stop_at_its_first_complaint(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("check", "modle=mlp", "optimizer=adm", "trainer.epochs=abc", "seed=-1", "data.bach_size=3")
    lines = outcome.err.splitlines()
    assert (outcome.code, lines[0]) == (2, "dlrun: 5 things are wrong:")
    for word in (
        "did you mean model",
        "did you mean optimizer=adam",
        "trainer.epochs=abc",
        "seed=-1",
        "data.batch_size",
    ):
        assert sum(word in line for line in lines) == 1, outcome.err


@pytest.mark.slow
def test_without_the_data_the_rest_is_still_looked_at(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("check", "data=csv", "optimizer.lr=-1", "+model.depth=3", "scheduler=cosine", "scheduler.T_max=0")
    messages = ("data.path has no value yet; type data.path=", "model.depth", "optimizer.lr=-1", "scheduler.T_max=0")
    assert outcome.code == 2
    assert [line for line in outcome.err.splitlines()[1:] if not any(word in line for word in messages)] == []
    assert len(outcome.err.splitlines()) == 1 + len(messages)


def test_with_nothing_wrong_it_says_what_would_run(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    outcome = dlrun("check", "model=mlp", "data=digits", "data.image_size=8", "optimizer.lr=0.01")
    assert (outcome.code, outcome.err, outcome.out.splitlines()[-1]) == (0, "", "ready")
    starts = ("data ", "model ", "optimizer ", "device ", "memory ", "disk ", " layers.1 ", " total ")
    assert all(any(line.startswith(word) for line in outcome.out.splitlines()) for word in starts), outcome.out
    assert "run folder" not in outcome.out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_runs_of_a_sweep_are_all_looked_at(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    good = dlrun("check", "-m", "data=blobs", "model=linear,mlp")
    assert (good.code, good.out.count(": no problem"), good.out.splitlines()[-1]) == (0, 2, "ready: 2 runs")
    bad = dlrun("check", "-m", "data=blobs", "model=linear,cnn,gru")
    assert bad.code == 2
    assert all(f"model={name} does not take data=blobs" in bad.err for name in ("cnn", "gru"))
    assert not [path for path in tmp_path.rglob("*") if path.name != "outputs"]


@pytest.mark.slow
def test_preflight_can_be_switched_off(dlrun: Callable[..., Any]) -> None:
    words = ("data=blobs", "model=linear", "trainer.max_steps=1", *QUIET)
    assert "linear" in dlrun(*words).out
    outcome = dlrun(*words, "preflight=false")
    assert outcome.code == 0
    assert " Linear " not in outcome.out  # no layer table


@pytest.mark.parametrize("words", [(), ("model.output_activation=sigmoid", "task.loss=bce")])
def test_a_fitting_last_layer_is_not_remarked_upon(dlrun: Callable[..., Any], words: tuple[str, ...]) -> None:
    assert "note: " not in dlrun("check", "data=pass_fail", "model=scratch_mlp", *words).out


def test_a_sigmoid_before_a_loss_with_its_own_is_said_once(dlrun: Callable[..., Any]) -> None:
    words = ("data=pass_fail", "model=scratch_mlp", "model.output_activation=sigmoid")
    message = (
        "note: the model ends in ScratchSigmoid, and task.loss=bce_with_logits takes logits and has its own sigmoid"
    )
    assert dlrun("check", *words).out.count(message) == 1
    run = dlrun(*words, "trainer.epochs=2", *QUIET)
    assert run.out.count("takes logits") == 1
    assert len([message for message in run.result["warnings"] if "takes logits" in message]) == 1


def test_one_problem_is_raised_as_it_is_and_several_as_a_list() -> None:
    problems = ErrorList()
    problems.raise_if_any()
    assert problems.collect(int, "3") == 3
    first, second = RequestError("first"), RequestError("second")
    problems.add(first)
    with pytest.raises(RequestError) as caught:
        problems.raise_if_any()
    assert caught.value is first
    problems.add(MultipleErrors([first, second]))
    with pytest.raises(MultipleErrors, match=r"^2 things are wrong:\n  1\. first\n  2\. second$"):
        problems.raise_if_any()


def test_an_error_that_is_no_request_is_not_collected() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        ErrorList().collect(int, "x")


def test_nothing_is_downloaded_for_a_request_that_is_wrong(
    dlrun: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads: list[str] = []
    monkeypatch.setattr("pooch.retrieve", lambda url, *_, **__: downloads.append(url))
    outcome = dlrun("data=mnist", "data.val_fraction=2", "optimizer.lr=-1", "model=cnn", "model.channels=[a]")
    assert (outcome.code, downloads, list(tmp_path.iterdir())) == (2, [], [])
    for key in ("data.val_fraction=2.0", "optimizer.lr=-1", "model.channels="):
        assert key in outcome.err
    dlrun("data=mnist")
    assert downloads
