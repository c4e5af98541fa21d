"""`user`: keys of one's own, which other keys refer to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.core.yaml import read_yaml

QUICK = ("data=blobs", "trainer.epochs=1", "tracking.graph=false", "figures=false")
OVERLAY = """\
# @package _global_
# a net as wide as user.width
user: {width: 5, rates: {slow: 0.001}}
model:
  hidden_sizes: ["${user.width}"]
optimizer:
  lr: ${user.rates.slow}
"""


@pytest.fixture
def wide(dlrun: Callable[..., Any]) -> tuple[str, ...]:
    """The words that choose an overlay with keys of its own."""
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/wide.yaml").write_text(OVERLAY)
    return ("--config-dir", "mine", "experiment=wide")


@pytest.mark.slow
def test_what_refers_to_them_follows_and_all_is_kept(dlrun: Callable[..., Any], wide: tuple[str, ...]) -> None:
    outcome = dlrun(*wide, *QUICK, "user.width=7", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    config = read_yaml(Path("run/.hydra/config.yaml").read_text())
    assert config["user"] == {"width": 7, "rates": {"slow": 0.001}}
    assert (config["model"]["hidden_sizes"], config["optimizer"]["lr"]) == ([7], 0.001)

    # What was evaluated once is not evaluated again: the run stays the same run.
    longer = dlrun("resume", "run", "trainer.epochs=2")
    assert longer.code == 0, longer.err
    changed = dlrun("resume", "run", "user.width=3")
    assert changed.code == 2
    assert "user.width (7 -> 3)" in changed.err
    evaluated = dlrun("eval", "run", "user.width=3")
    assert evaluated.code == 2
    assert "user.width=3 has no effect on dlrun eval" in evaluated.err
    assert "user.width" in dlrun("show", "run").out
    assert dlrun("ls", "runs", ".", "user.width>6").out.splitlines()[1].startswith("run ")


@pytest.mark.slow
@pytest.mark.usefixtures("comparison_without_pictures")
def test_a_sweep_over_one_of_them(dlrun: Callable[..., Any], wide: tuple[str, ...]) -> None:
    outcome = dlrun("-m", *wide, *QUICK, "user.width=2,3")
    assert outcome.code == 0, outcome.err
    configs = [read_yaml(path.read_text()) for path in sorted(Path("outputs").rglob(".hydra/config.yaml"))]
    assert [config["model"]["hidden_sizes"] for config in configs] == [[2], [3]]


@pytest.mark.slow
def test_a_key_that_is_not_there_is_added_with_a_plus(dlrun: Callable[..., Any], wide: tuple[str, ...]) -> None:
    assert "\nx: 3\n" in dlrun("--cfg", "job", "--package", "user", "+user.x=3").out
    for words, advice in (
        (("user.x=3",), "there is no key user.x yet; type +user.x=... to add it"),
        ((*wide, "user.widht=3"), "did you mean user.width? "),
        ((*wide, "user.rates.slwo=3"), "did you mean user.rates.slow? "),
        (("user=3",), "user=3 must be values by name, {name: value}"),
    ):
        outcome = dlrun(*words)
        assert (outcome.code, outcome.out) == (2, "")
        assert advice in outcome.err


@pytest.mark.slow
def test_nothing_below_them_is_built(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun(*QUICK, "+user.tool._target_=os.getcwd", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert "trusted_modules" not in outcome.out
    assert dlrun("eval", "run", "figures=false").code == 0
