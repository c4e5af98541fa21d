"""What a command line says of a sweep, and what the plan says of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.experiment import setup
from dlrun.sweep.ledger import Ledger

TINY = ("data=line", "model=linear", "optimizer=sgd", "trainer.epochs=1", "figures=false", "tracking.graph=false")


def test_settings_of_sweeps_are_refused_for_a_single_run(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    for word in ("sweep.dry_run=true", "sweep.jobs=2", "sweep.dir=x"):
        outcome = dlrun(*TINY, word)
        assert (outcome.code, outcome.err) == (2, f"dlrun: {word} is for a sweep; add -m, or leave it out\n")
    assert not list(tmp_path.iterdir())


def test_a_point_that_sets_the_whole_sweep_is_refused(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun(*TINY, "sweep.points=['seed=1 sweep.jobs=2']")
    assert outcome.code == 2
    assert "sweep.jobs=2 applies to the whole sweep" in outcome.err


@pytest.mark.slow
def test_flags_may_stand_between_overrides(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "cfg" / "model").mkdir(parents=True)
    (tmp_path / "cfg" / "model" / "mine.yaml").write_text("_target_: dlrun.models.mlp.MLP\nhidden_sizes: [3]\n")
    outcome = dlrun(*TINY[:1], "--config-dir", "cfg", "model=mine", "-m", "seed=0,1", *TINY[2:], "sweep.dir=s")
    assert outcome.code == 0, outcome.err
    assert len(list(Path("s").glob("*/result.json"))) == 2
    more = dlrun("resume", "s", "seed=2")
    assert more.code == 2
    assert "--config-dir cfg" in more.err


@pytest.mark.slow
def test_the_plan_counts_settings_and_seeds(dlrun: Callable[..., Any]) -> None:
    def plan(*words: str) -> str:
        outcome = dlrun("-m", *TINY, *words, "sweep.dry_run=true")
        assert outcome.code == 0, outcome.err
        lines = outcome.out.splitlines()
        assert lines[0].startswith("preparing ")
        return str(lines[1])

    assert plan("optimizer.lr=0.1,0.2", "seed=range(3)").endswith("6 runs: 2 settings × 3 seeds; one at a time")
    assert plan("seed=range(3)").endswith("3 runs: 1 setting × 3 seeds; one at a time")
    assert plan("optimizer.lr=0.1,0.2").endswith("2 runs; one at a time")


NET = """
import os, signal
from torch import nn

class Net(nn.Module):
    def __init__(self, spec, act: str = ""):
        super().__init__()
        exec(act)
        self.layer = nn.Linear(spec.input_size, spec.output_size)

    def forward(self, x):
        return self.layer(x)
"""


@pytest.mark.slow
def test_a_net_that_ends_its_process_costs_its_own_job(command: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "ending.py").write_text(NET)
    acts = ("os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)", "raise SystemExit(3)", "")
    points = ",".join(f"'+model.act=\\'{act}\\''" for act in acts)
    outcome = command(
        "-m", *TINY[:1], "model._target_=ending.Net", *TINY[2:], f"sweep.points=[{points}]", "sweep.dir=s"
    )
    assert outcome.code == 1, outcome.err
    assert "1 of 4 runs finished, 3 failed" in outcome.out
    assert "ended the process that tried it (exit code 0); each run has a process of its own" in " ".join(
        outcome.out.split()
    )
    ledger = Ledger.read(tmp_path / "s")
    assert sorted(entry.status for entry in ledger.entries.values()) == ["completed", "failed", "failed", "failed"]


@pytest.mark.slow
def test_batches_go_once_through_the_models_that_differ_in_seed_and_rate(
    dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []
    run_preflight = setup._run_preflight

    def count(settings: Any, *arguments: Any) -> Any:
        checked.append(settings.data.keys.batch_size)
        return run_preflight(settings, *arguments)

    monkeypatch.setattr(setup, "_run_preflight", count)
    words = ("optimizer.lr=0.1,0.2", "seed=0,1", "data.batch_size=4,8", "sweep.dry_run=true")
    assert dlrun("-m", *TINY, *words).code == 0
    assert checked == [4, 8]

    # What only a rate or a seed makes wrong is found in each job.
    refused = dlrun("-m", *TINY, "optimizer.lr=0.1,-1", "sweep.dry_run=true")
    assert refused.code == 2
    assert "optimizer.lr=-1" in refused.err


def test_a_download_that_fails_is_tried_once_for_all_points(
    dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    addresses: list[str] = []

    def fail(address: str, *_: Any, **__: Any) -> None:
        addresses.append(address)
        raise ConnectionError("no route to host")

    monkeypatch.setattr("requests.get", fail)
    outcome = dlrun("-m", "data=diabetes", "model=mlp", "seed=range(5)", "paths.data=empty", "sweep.dir=s")
    assert outcome.code == 2
    assert "no route to host" in outcome.err
    assert len(addresses) == 1
    assert not list(tmp_path.glob("s"))
