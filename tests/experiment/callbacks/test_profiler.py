"""trainer.profile: a trace and a table, and the very same run."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.experiment.callbacks import profiler
from dlrun.experiment.callbacks.profiler import Profiler

WORDS = ("data=blobs", "model=mlp", "model.dropout=0.2", "trainer.epochs=5", "figures=false", "tracking.graph=false")


@pytest.mark.slow
def test_the_run_is_the_same_and_where_its_time_went_is_said(dlrun: Callable[..., Any]) -> None:
    plain = dlrun(*WORDS, "hydra.run.dir=plain")
    outcome = dlrun(*WORDS, "trainer.profile=true", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert outcome.rows == plain.rows
    assert outcome.result["weights_sha256"] == plain.result["weights_sha256"]
    assert outcome.result["config_hash"] == plain.result["config_hash"]
    shares = re.findall(r"^ (\w+) +([\d.]+) +([\d.]+) % +[\d,]+", outcome.out, re.MULTILINE)
    assert [name for name, *_ in shares] == list(profiler._PHASES)
    assert sum(float(share) for *_, share in shares) == pytest.approx(100, abs=0.5)
    assert all(float(seconds) > 0 for name, seconds, _ in shares if name in ("forward", "backward", "log"))
    (trace,) = Path("run/profile").glob("*.pt.trace.json")
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"aten::addmm", "Optimizer.step#Adam.step", "data", "forward", "backward", "optimizer"} <= names
    assert sum(str(name).startswith("ProfilerStep#") for name in names) == profiler._TRACED["active"]
    assert not Path("plain/profile").exists()


@pytest.mark.slow
def test_a_step_with_a_closure_has_the_phases_of_its_evaluations(dlrun: Callable[..., Any]) -> None:
    words = (*WORDS, "optimizer=lbfgs", "trainer.max_steps=12", "checkpoint.every_steps=4")
    plain = dlrun(*words, "hydra.run.dir=plain")
    outcome = dlrun(*words, "trainer.profile=true", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert outcome.result["weights_sha256"] == plain.result["weights_sha256"]
    (trace,) = Path("run/profile").glob("*.pt.trace.json")
    events = [event.get("name") for event in json.loads(trace.read_text())["traceEvents"]]
    assert events.count("forward") == events.count("backward") >= profiler._TRACED["active"]
    assert events.count("checkpoint") > 0
    seconds = dict(re.findall(r"^ (\w+) +([\d.]+) +[\d.]+ % +[\d,]+", outcome.out, re.MULTILINE))
    assert float(seconds["backward"]) > 0
    assert float(seconds["optimizer"]) > 0


@pytest.mark.slow
def test_pictures_are_stopped_whenever_they_are_drawn(dlrun: Callable[..., Any], no_stand_in: None) -> None:
    words = ("data=parabola", "model=mlp", "trainer.epochs=2", "tracking.evolution_every_epochs=1")
    outcome = dlrun(*words, "trainer.profile=true", "tracking.graph=false")
    assert outcome.code == 0, outcome.err
    shares = dict(re.findall(r"^ (\w+) +([\d.]+) +[\d.]+ % +[\d,]+", outcome.out, re.MULTILINE))
    assert float(shares["figures"]) > 0.1 > float(shares["log"])


def test_what_is_inside_something_counts_as_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    profile = Profiler(lambda: None)

    def spend(seconds: float) -> None:
        now[0] += seconds

    def log() -> None:
        spend(1)
        profile.wrap(spend, "figures")(2)
        spend(4)

    spend(8)
    profile.wrap(log, "log")()
    assert {k: v for k, v in profile.seconds.items() if v} == {"log": 5, "figures": 2, "other": 8}


def test_each_stretch_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    waited: list[float] = []
    profile = Profiler(lambda: waited.append(now[0]))

    def spend(seconds: float, result: str = "") -> str:
        now[0] += seconds
        return result

    assert profile.wrap(spend, "data")(1, "x") == "x"
    profile.start_phase()
    spend(2)
    profile.charge("forward")
    spend(4)
    profile.start_phase()  # another forward pass: what was before it was a backward one
    spend(8)
    profile.charge("forward")
    spend(16)
    profile.charge("backward")
    spend(32)
    with pytest.raises(TypeError):
        profile.wrap(spend, "log")("no number")
    assert profile.seconds == {
        **dict.fromkeys(profiler._PHASES, 0.0),
        "data": 1,
        "forward": 10,
        "backward": 20,
        "other": 32,
    }
    assert sum(profile.seconds.values()) == now[0]
    assert len(waited) == 9
