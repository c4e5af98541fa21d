"""Results of several runs: one picture of all loss curves, decision regions side by side."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.sweep.comparison import expectations

TINY = ("data=blobs", "trainer.epochs=2", "tracking.graph=false")


@pytest.mark.slow
def test_runs_of_one_group_are_drawn_together(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    outcome = dlrun(*TINY, "figures=true", "sweep.points=['model.hidden_sizes=[2],[3]']")
    assert outcome.code == 0, outcome.err
    (folder,) = tmp_path.glob("outputs/multirun/*/*")
    assert {p.name for p in (folder / "figures").iterdir()} >= {"decision.png", "loss_curves.png"}


@pytest.mark.slow
def test_a_sweep_on_one_data_set_is_drawn_together_and_one_on_two_is_not(
    dlrun: Callable[..., Any], tmp_path: Path
) -> None:
    assert dlrun("-m", *TINY, "seed=0,1", "hydra.sweep.dir=one").code == 0
    assert (tmp_path / "one" / "figures" / "loss_curves.png").is_file()
    assert dlrun("-m", *TINY[1:], "data=blobs,flower", "hydra.sweep.dir=two").code == 0
    assert not (tmp_path / "two" / "figures" / "loss_curves.png").exists()


def test_labels_are_what_tells_the_runs_apart() -> None:
    runs = [["data=a", "optimizer=sgd"], ["data=a", "optimizer=adam", "optimizer.betas=[0.9,0.99]"], ["data=a"]]
    assert expectations._make_labels(runs) == ["optimizer=sgd", "optimizer=adam betas=[0.9,0.99]", "as it is"]
    long = ["model=scratch_mlp", "model.hidden_sizes=[4]", "task.loss=scratch_bce_with_logits"]
    (label, _) = expectations._make_labels([long, ["model=mlp"]])
    assert label == "model=scratch_mlp hidden_sizes=[4]\nloss=scratch_bce_with_logits"
