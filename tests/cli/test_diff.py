"""`dlrun diff A B`: what two runs were asked for, where their weights part, and their results."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

QUICK = ("data=blobs", "model=mlp", "trainer.log_every_steps=1", "tracking.graph=false", "figures=false")


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def runs(dlrun: Callable[..., Any], shared_folder: Path) -> Callable[..., Any]:
    """Runs a and b, which part after epoch 1: their rates go down at different epochs. Trained once for all tests."""
    for name, step in (("a", 1), ("b", 3)):
        words = (
            "scheduler=step",
            f"scheduler.step_size={step}",
            "trainer.epochs=3",
            f"hydra.run.dir={shared_folder / name}",
        )
        if not (shared_folder / name).exists():
            assert dlrun(*QUICK, *words).code == 0
        shutil.copytree(shared_folder / name, name)
    return dlrun


def cells(out: str, name: str) -> list[str]:
    """The row of a table that begins with `name`."""
    line = next(line for line in out.splitlines() if line.strip().startswith(name + "  "))
    return re.split(r"\s{2,}", line.strip())[1:]


@pytest.mark.slow
def test_where_two_runs_part(runs: Callable[..., Any]) -> None:
    outcome = runs("diff", "a", "b")
    assert (outcome.code, outcome.err) == (0, "")
    assert cells(outcome.out, "scheduler.step_size") == ["1", "3"]
    assert "trainer.epochs" not in outcome.out
    assert "hydra.run.dir" not in outcome.out
    assert "made with: no difference" in outcome.out
    assert "weights: equal to the last bit until epoch 1, and apart after epoch 2\n" in outcome.out
    # The first step with another rate is the 5th; the first loss after it is that of the 6th.
    one, two = re.findall(
        r"the first logged step that differs is 6: train/loss_step (\S+) in A, (\S+) in B", outcome.out
    )[0]
    assert one != two
    rows = [[json.loads(x) for x in Path(f"{n}/metrics.jsonl").read_text().splitlines()] for n in "ab"]
    shown = cells(outcome.out, "train/loss")
    assert [float(x) for x in shown[:2]] == pytest.approx([r[-1]["train/loss"] for r in rows], rel=1e-3)
    assert float(shown[2]) == pytest.approx(rows[1][-1]["train/loss"] - rows[0][-1]["train/loss"], rel=1e-2)
    assert max(map(len, outcome.out.splitlines())) <= 110


@pytest.mark.slow
def test_runs_that_are_equal_as_far_as_both_go(runs: Callable[..., Any]) -> None:
    assert "weights: equal to the last bit after every one of 3 epochs" in runs("diff", "a", "a").out
    shutil.copytree("a", "longer")
    runs("resume", "longer", "trainer.epochs=5")
    output = runs("diff", "longer", "a").out
    assert "weights: equal to the last bit until epoch 3, where one ends; A continues to epoch 5" in output
    assert cells(output, "epochs") == ["5", "3", "-2"]


@pytest.mark.slow
def test_another_seed_or_model_differs_from_the_start(runs: Callable[..., Any]) -> None:
    runs(*QUICK, "model.hidden_sizes=[8]", "trainer.epochs=1", "seed=1", "hydra.run.dir=c")
    output = runs("diff", "a", "c").out
    assert "weights: they differ before the first step" in output
    assert cells(output, "seed") == ["0", "1"]
    assert cells(output, "scheduler.step_size") == ["1", "-"]
    assert "the first logged step" not in output


def test_runs_without_fingerprints_are_judged_by_their_losses(runs: Callable[..., Any]) -> None:
    Path("a/fingerprints.jsonl").unlink()
    output = runs("diff", "a", "b").out
    assert "judged by metrics.jsonl: they part in epoch 2 (train/loss " in output
    assert "final weights: different" in output
    assert "equal in all 3 epochs that both have\nfinal weights: equal to the last bit" in runs("diff", "a", "a").out


def test_a_killed_run_is_compared_by_what_there_is(runs: Callable[..., Any]) -> None:
    for name in ("result.json", "metrics.jsonl", "environment.json", "fingerprints.jsonl"):
        Path("a", name).unlink()
    outcome = runs("diff", "a", "b")
    assert outcome.code == 0
    assert "no epoch was recorded by both runs\nfinal weights: not known of both" in outcome.out
    assert cells(outcome.out, "status") == ["-", "completed"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "takes two run folders"),
        (["a", "b", "b"], "takes two run folders"),
        (["a", "nowhere"], "nowhere does not exist; dlrun diff takes a run folder, one of `dlrun ls runs`"),
        (["a/config", "a"], "a/config is a file"),
        ([".", "a"], ". holds no run"),
        (["a", "sweep"], "sweep is a sweep, and dlrun diff takes two runs; dlrun compare sweep shows all of it"),
        (["a", "broken"], "damaged: broken/.hydra/config.yaml: "),
        (["a", "half"], "damaged: half/result.json: it is no JSON"),
    ],
)
def test_what_is_no_run_is_refused(dlrun: Callable[..., Any], words: list[str], message: str) -> None:
    for name, text in (("a", "seed: 0"), ("broken", "[:"), ("half", "seed: 0")):
        Path(name, ".hydra").mkdir(parents=True)
        Path(name, ".hydra/config.yaml").write_text(text)
    Path("a/config").touch()
    Path("half/result.json").write_text('{"status": ')
    Path("sweep").mkdir()
    Path("sweep/sweep.jsonl").touch()
    outcome = dlrun("diff", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1


@pytest.mark.slow
def test_torch_is_not_imported(runs: Callable[..., Any]) -> None:
    code = "import sys; from dlrun.cli.main import main; c = main(); assert 'torch' not in sys.modules; sys.exit(c)"
    outcome = subprocess.run([sys.executable, "-c", code, "diff", "a", "b"], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
