"""Probes: what the model answers to inputs typed in the config, before and after training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

QUIET = ("figures=false", "tracking.graph=false", "device.precision=fp64")
THREE = ("data=points", "data.x=[1,2,3]", "data.y=[2,4,6]", "data.batch_size=3", "data.val_fraction=0")


def test_a_number_is_answered_before_and_after_training(dlrun: Callable[..., Any]) -> None:
    start = ("model=linear", "model.init={w: 1.0, b: 0.5}", "optimizer=sgd", "trainer.epochs=1", "data.shuffle=false")
    outcome = dlrun(*THREE, *start, *QUIET, "probes=[4]")
    w = 1 - 0.01 * 2 / 3 * sum(x * (x + 0.5 - 2 * x) for x in (1, 2, 3))
    b = 0.5 - 0.01 * 2 / 3 * sum(x + 0.5 - 2 * x for x in (1, 2, 3))
    assert f"answer for 4: 4.5 before training, {4 * w + b:.10g} after" in outcome.out
    assert outcome.result["measured"]["answer(4)"] == pytest.approx(4 * w + b, abs=1e-14)
    assert outcome.result["measured"]["weight"] == pytest.approx(w, abs=1e-14)
    assert outcome.result["measured"]["first_loss"] == pytest.approx(sum((x - 0.5) ** 2 for x in (1, 2, 3)) / 3)


@pytest.mark.slow
def test_features_are_asked_in_their_own_units(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    rows = "".join(f"{x},{z},{3 * x - z}\n" for x in range(8) for z in (100, 200, 300))
    (tmp_path / "t.csv").write_text("x,z,y\n" + rows)
    words = ("data=csv", "data.path=t.csv", "data.target=y", "data.batch_size=30", "model=linear", "optimizer=lbfgs")
    outcome = dlrun(*words, *QUIET, "probes=[[2, 150]]", "trainer.epochs=5")
    assert outcome.result["measured"]["answer(2, 150)"] == pytest.approx(6 - 150, abs=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data=line", "probes=[[1, 2]]"), "probes[0]=[1, 2]: these data have 1 feature(s); type a number"),
        (("data=blobs", "probes=[3]"), "probes[0]=3: these data have 2 feature(s); type 2 numbers, [...]"),
        (("data=line", "probes=[abc]"), "probes[0]=abc: these data have 1 feature(s)"),
        (("data=digits", "probes=[3]"), "probes[0]: data of kind image cannot be written in a config"),
        (("data=hello", "model=rnn", "probes=[help]"), "probes[0]=help: type 1 to 5 of the characters ehlo"),
    ],
)
def test_a_probe_that_does_not_fit_is_refused(words: tuple[str, ...], message: str, dlrun: Callable[..., Any]) -> None:
    outcome = dlrun(*words)
    assert outcome.code == 2
    assert message in outcome.err
