"""A project beside dlrun, with data, a loss, a metric, a callback and a logger of its own: see its README."""

import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.runs import checkpoint

PROJECT = Path(__file__).parent / "user_project"
WORDS = ("experiment=rings", "checkpoint.every_steps=3", "tracking.graph=false", "figures=false")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, in which commands are run."""
    shutil.copytree(PROJECT, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "outputs"))
    return tmp_path


@pytest.mark.slow
def test_everything_of_the_project_takes_part(project: Path, dlrun: Callable[..., Any]) -> None:
    outcome = dlrun(*WORDS, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err

    last = outcome.rows[-1]
    assert {"val/accuracy", "val/worst_recall", "first_layer/gradient", "cooled"} <= last.keys()
    assert outcome.result["best"]["metric"] == "val/worst_recall"
    assert outcome.result["best"]["value"] == max(row["val/worst_recall"] for row in outcome.rows)
    state = checkpoint.load(project / "run/checkpoints/last.pt")
    # 8 steps an epoch, and a loss that has learned.
    assert int(state["loss"]["calls"]) >= 64
    # It began at 2.
    assert abs(float(state["loss"]["log_temperature"].exp()) - 2.0) > 0.01
    assert state["callbacks"]["cooling"]["losses"] == [row["train/loss"] for row in outcome.rows]
    assert state["callbacks"]["cooling"]["cooled"] == last["cooled"]
    page = (project / "run/page.md").read_text()
    assert page.count("- epoch") == 8
    assert page.endswith("The run is completed.\n")

    evaluated = dlrun("eval", "run", "figures=false", "trusted_modules=[rings]")
    assert evaluated.code == 0, evaluated.err
    assert "worst_recall" in evaluated.out
    refused = dlrun("eval", "run")
    assert refused.code == 2
    assert "trusted_modules='[rings]'" in refused.err


@pytest.mark.slow
def test_a_killed_run_of_the_project_ends_as_an_undisturbed_one(project: Path, warm: Any) -> None:
    words = ("-m", "dlrun", *WORDS, "trainer.epochs=30")
    reference = warm.start(*words, "hydra.run.dir=whole", cwd=project)
    assert reference.wait(300) == 0, reference.err

    killed = warm.start(*words, "hydra.run.dir=killed", cwd=project)
    # After the first epochs, wherever it is.
    rows = project / "killed/metrics.jsonl"
    while not rows.exists() or len(rows.read_text().splitlines()) < 3:
        assert killed.poll() is None, killed.err
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait(60)
    assert len(rows.read_text().splitlines()) < 30

    resumed = warm.start("-m", "dlrun", "resume", "killed", "trusted_modules=[rings]", cwd=project)
    assert resumed.wait(300) == 0, resumed.err
    for name in ("metrics.jsonl", "fingerprints.jsonl"):
        assert (project / "killed" / name).read_text() == (project / "whole" / name).read_text()
    one, two = (checkpoint.load(project / name / "checkpoints/last.pt") for name in ("whole", "killed"))
    assert one["callbacks"] == two["callbacks"]
    assert one["loss"].keys() == two["loss"].keys()
    assert all(value.equal(two["loss"][key]) for key, value in one["loss"].items())
    assert all(value.equal(two["model"][key]) for key, value in one["model"].items())
    pages = [re.sub("^# .*", "", (project / name / "page.md").read_text()) for name in ("whole", "killed")]
    assert pages[0] == pages[1]


@pytest.mark.slow
def test_the_commands_of_its_readme(project: Path, dlrun: Callable[..., Any]) -> None:
    text = (PROJECT / "README.md").read_text()
    commands = [line.split("  #")[0] for line in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)[0].splitlines()]
    assert len(commands) == 5
    run = dlrun(*WORDS, "trainer.epochs=1").folder
    for command in commands:
        words = [word.strip("'").replace("RUN", str(run)) for word in command.split()[1:]]
        if words[0] not in ("resume", "eval"):
            words += ["trainer.epochs=1", "figures=false", "tracking.graph=false"]
        outcome = dlrun(*words)
        assert outcome.code == 0, outcome.err
