"""What a command line says of a sweep, and what the plan says of it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TINY = ("data=line", "model=linear", "optimizer=sgd", "trainer.epochs=1", "figures=false", "tracking.graph=false")


def test_settings_of_sweeps_are_refused_for_a_single_run(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    for word in ("sweep.dry_run=true", "sweep.jobs=2", "sweep.dir=x"):
        done = dlrun(*TINY, word)
        assert (done.code, done.err) == (2, f"dlrun: {word} is for a sweep; add -m, or leave it out\n")
    assert not list(tmp_path.iterdir())


def test_a_point_that_sets_the_whole_sweep_is_refused(dlrun: Callable[..., Any]) -> None:
    done = dlrun(*TINY, "sweep.points=['seed=1 sweep.jobs=2']")
    assert done.code == 2
    assert "sweep.jobs=2 is of the whole sweep" in done.err


def test_flags_may_stand_between_overrides(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "cfg" / "model").mkdir(parents=True)
    (tmp_path / "cfg" / "model" / "mine.yaml").write_text("_target_: dlrun.models.mlp.MLP\nhidden_sizes: [3]\n")
    done = dlrun(*TINY[:1], "--config-dir", "cfg", "model=mine", "-m", "seed=0,1", *TINY[2:], "sweep.dir=s")
    assert done.code == 0, done.err
    assert len(list(Path("s").glob("*/result.json"))) == 2
    more = dlrun("resume", "s", "seed=2")
    assert more.code == 2
    assert "--config-dir cfg" in more.err


@pytest.mark.slow
def test_the_plan_counts_settings_and_seeds(dlrun: Callable[..., Any]) -> None:
    def plan(*words: str) -> str:
        done = dlrun("-m", *TINY, *words, "sweep.dry_run=true")
        assert done.code == 0, done.err
        return str(done.out.splitlines()[0])

    assert plan("optimizer.lr=0.1,0.2", "seed=range(3)").endswith("6 runs: 2 settings × 3 seeds; one at a time")
    assert plan("seed=range(3)").endswith("3 runs: 1 setting × 3 seeds; one at a time")
    assert plan("optimizer.lr=0.1,0.2").endswith("2 runs; one at a time")


@pytest.mark.slow
def test_a_forecast_counts_the_processes(dlrun: Callable[..., Any]) -> None:
    done = dlrun("-m", *TINY, "seed=range(8)", "sweep.jobs=2", "sweep.dir=s")
    assert done.code == 0, done.err
    found = re.search(r"in ([\d.]+) s \(forecast ([\d.]+) s\)", done.out)
    assert found is not None
    assert float(found[2]) > 0.2  # eight processes, two at a time; the training itself is a few milliseconds
