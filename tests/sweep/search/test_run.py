"""A search from the command line: a sweep like others, killed and resumed like others."""

import json
import pickle
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("optuna")

from dlrun.sweep.attempts import Attempt
from dlrun.sweep.remote import Remote, run_remote_job
from dlrun.sweep.search.answer import Answer
from dlrun.sweep.search.study import JOURNAL

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("comparison_without_pictures")]

MLP = ("data=blobs", "model=mlp", "model.hidden_sizes=[6]", "optimizer=sgd", "sweep.stack=off", "figures=false")
RATE = "optimizer.lr=tag(log,interval(1e-3,1))"


_make_figures = Answer._make_figures


@pytest.fixture(autouse=True)
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna's plots take seconds, and are looked at by one test."""
    monkeypatch.setattr("dlrun.sweep.search.answer.Answer._make_figures", lambda self: iter(()))


def read_trials(sweep: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in Path(sweep, "sweep.jsonl").read_text().splitlines()]
    return [line for line in lines if "trial" in line]


def read_results(sweep: str) -> dict[str, Any]:
    """What is the same in equal runs, by folder."""
    results = {}
    for path in sorted(Path(sweep).glob("*/result.json")):
        result = json.loads(path.read_text())
        results[path.parent.name] = [result[key] for key in ("status", "weights_sha256", "metrics", "best", "epochs")]
    return results


def test_a_search_is_a_sweep_like_others(dlrun: Callable[..., Any]) -> None:
    words = ("-m", *MLP, "optimizer.lr=0.1,1e30,0.01", "trainer.epochs=1,2", "sweep.search=random", "seed=3")
    outcome = dlrun(*words, "sweep.trials=4", "sweep.seeds=2", "sweep.dir=s")
    # One of three rates diverges, which is a row and not the end.
    assert outcome.code == 1, outcome.err
    assert "4 trials by random × 2 seeds" in outcome.out
    assert "FAILED" in outcome.out
    assert len(read_trials("s")) == 4
    results = read_results("s")
    assert {status for status, *_ in results.values()} == {"completed", "failed"}
    assert all("seed=3" in name or "seed=4" in name for name in results)

    assert "nothing is left to do" in dlrun("resume", "s").out
    assert dlrun("resume", "s", "sweep.trials=6").code in (0, 1)
    assert read_results("s").items() >= results.items()
    # The same points as if there had been six from the start; and it stays so long.
    dlrun(*words, "sweep.trials=6", "sweep.seeds=2", "sweep.dir=six", "sweep.round=2")
    assert [trial["point"] for trial in read_trials("s")] == [trial["point"] for trial in read_trials("six")]
    assert "6 trials by random × 2 seeds, 6 of them finished before" in dlrun("resume", "s").out

    for sentence, line in (
        ("would make it another search", ("resume", "s", "sweep.seeds=3")),
        ("would make it another search", ("resume", "s", "optimizer.lr=0.1,0.2")),
        ("holds another search", (*words[:-2], "seed=3", "sweep.search=tpe", "sweep.dir=s")),
        ("holds a search", ("-m", *MLP, "optimizer.lr=0.1,0.2", "seed=3", "trainer.epochs=1,2", "sweep.dir=s")),
    ):
        refused = dlrun(*line)
        assert (refused.code, sentence in refused.err) == (2, True), refused.err


def test_a_killed_search_ends_as_the_unbroken_one(dlrun: Callable[..., Any], tmp_path: Path, warm: Any) -> None:
    words = ("-m", *MLP, RATE, "optimizer.momentum=interval(0,0.9)", "sweep.search=tpe", "sweep.trials=14")
    words = (*words, "trainer.epochs=2", "sweep.round=2")
    unbroken = dlrun(*words, "sweep.dir=whole")
    assert unbroken.code == 0, unbroken.err

    for lines in (15, 60):
        first = ("resume", "cut") if Path("cut/sweep.jsonl").exists() else (*words, "sweep.dir=cut")
        process = warm.start("-m", "dlrun", *first, cwd=tmp_path)
        deadline = time.monotonic() + 60
        ledger = Path("cut/sweep.jsonl")
        while time.monotonic() < deadline and process.poll() is None:
            if ledger.exists() and ledger.read_bytes().count(b"\n") >= lines:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert len(read_results("cut")) < 14

    # Half a line in the file for other programs.
    with Path("cut", JOURNAL).open("ab") as file:
        file.write(b'{"op')
    assert dlrun("resume", "cut").code == 0
    assert read_trials("cut") == read_trials("whole")
    assert read_results("cut") == read_results("whole")


class _Cluster(Remote):
    """Runs each job at once, as a machine gets it; of each fifth the first attempt is lost."""

    # Jobs that were handed in together.
    batches: ClassVar[list[int]] = []

    def submit(self, attempts: Sequence[Attempt], watcher: Any) -> None:
        self.batches.append(len(attempts))
        for attempt in attempts:
            if attempt.job.number % 5 or attempt.remote.file.name.endswith("_2.jsonl"):
                run_remote_job(pickle.loads(pickle.dumps(attempt.remote)))

    def collect_ended(self, attempts: Sequence[Attempt], watcher: Any) -> list[tuple[Attempt, str]]:
        return [(attempt, "its machine was lost") for attempt in attempts]

    def stop(self, attempt: Attempt) -> None:
        raise AssertionError

    def describe(self) -> str:
        return "on machines that are made up"

    def close(self) -> None:
        pass


def test_a_search_on_a_cluster_is_that_of_one_machine(
    dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("-m", *MLP[:4], RATE, "figures=false", "trainer.epochs=4", "sweep.search=tpe", "sweep.trials=11")
    words = (*words, "sweep.pruner=median", "device.num_threads=1")
    assert dlrun(*words, "sweep.round=2", "sweep.stack=off", "sweep.dir=local").code == 0

    monkeypatch.setattr(_Cluster, "batches", [])
    monkeypatch.setattr("dlrun.sweep.clusters.open_cluster", lambda settings, folder: _Cluster(folder, 1, None))
    outcome = dlrun(*words, "sweep.engine=slurm", "sweep.dir=far")
    assert outcome.code == 0, outcome.err
    assert "11 trials by tpe, median pruning; on machines that are made up" in outcome.out
    assert "its machine was lost; it is run again" in outcome.out
    # It would take all at once, but then no trial would learn from another.
    assert max(_Cluster.batches) == 2
    assert read_trials("far") == read_trials("local")
    results = read_results("far")
    assert results == read_results("local")
    assert "pruned" in {status for status, *_ in results.values()}

    random = dlrun(*words[:6], "sweep.search=random", "sweep.trials=5", "sweep.engine=slurm", "sweep.dir=random")
    assert random.code == 0, random.err
    assert max(_Cluster.batches) == 5


def test_a_pruned_run_is_taken_up_again(dlrun: Callable[..., Any]) -> None:
    epochs = "trainer.epochs=4"
    rates = "optimizer.lr=1,0.3,0.1,0.03,0.01,0.003,0.002,0.0001"
    words = ("-m", *MLP, rates, epochs, "sweep.search=grid", "sweep.pruner=median", "sweep.seeds=2", "sweep.dir=s")
    outcome = dlrun(*words)
    assert outcome.code == 0, outcome.err
    results = read_results("s")
    pruned = {name: result for name, result in results.items() if result[0] == "pruned"}
    # Further seeds of a pruned trial are not begun.
    assert pruned
    assert all("seed=0" in name for name in pruned)
    assert len(results) == 16 - len(pruned)
    assert f"{len(pruned)} of 8 trials were pruned, which saved" in outcome.out
    assert "nothing is left to do" in dlrun("resume", "s").out

    name, (_, _, _, _, trained) = next(iter(pruned.items()))
    assert trained < 4
    run = f"s/{name}"
    assert f"dlrun resume {run}" in dlrun("show", run).out.replace("'", "")
    resumed = dlrun("resume", run)
    assert resumed.code == 0, resumed.err
    assert resumed.result["status"] == "completed"
    rate = name.partition("optimizer.lr=")[2].partition(",")[0]
    alone = dlrun(*MLP[:4], "figures=false", epochs, f"optimizer.lr={rate}")
    assert resumed.result["weights_sha256"] == alone.result["weights_sha256"]


# Ends hard before it writes the result of a run, once there are so many.
# With the processes that write other folders.
KILLED_AT_CALL = """
import os, signal, sys
from pathlib import Path
from dlrun.cli.main import main
from dlrun.{0} import {1} as module

original = module.{2}

def kill(*arguments, **words):
    if len(list(Path("cut").glob("*/result.json"))) >= {3}:
        os.killpg(0, signal.SIGKILL)
    return original(*arguments, **words)

module.{2} = kill
sys.exit(main())
"""
# Once so many runs have ended: between a checkpoint and its links, and before a result.
KILLS = (("runs", "checkpoint_manager", "link", 3), ("experiment", "results", "collect_result", 13))


def test_the_worse_trials_leave_their_stack(dlrun: Callable[..., Any], tmp_path: Path, warm: Any) -> None:
    """Successive halving: 8 trials, then 2, then 1, after the epochs 1 and 4."""
    rates = "optimizer.lr=" + ",".join(f"{0.4 * 0.7**n:.4f}" for n in range(8))
    run = (*MLP[:4], "data.val_fraction=0.2", "data.batch_size=8", "trainer.epochs=6", "figures=false")
    search = ("sweep.search=grid", "sweep.pruner=halving", "sweep.stack=on", "sweep.seeds=2")
    outcome = dlrun("-m", *run, rates, *search, "sweep.dir=whole")
    assert outcome.code == 0, outcome.err
    assert "16 runs train as one stack" in outcome.out
    results = read_results("whole")
    assert [epochs for *_, epochs in results.values()] == [6, 6, 4, 4] + [1] * 12
    assert all((status == "pruned") == (epochs < 6) for status, *_, epochs in results.values())
    header = next(line for line in outcome.out.splitlines() if "val/loss" in line and "95 %" in line)
    assert header.split()[-1] == "pruned"
    assert "7 of 8 trials were pruned, which saved 67 % of the epochs (32 of 96 trained)" in " ".join(
        outcome.out.split()
    )

    # Without a stack nothing would be compared, which is told.
    averaged = dlrun("-m", *run, "optimizer.lr=0.1,0.2", *search[:3], "trainer.ema_decay=0.9", "trainer.epochs=1")
    assert "2 runs are in no stack, and none of them is pruned" in " ".join(averaged.out.split()), averaged.err

    # Killed as the stack begins, and as the second seed of a trial that has left is half written.
    process = warm.start("-m", "dlrun", "-m", *run, rates, *search, "sweep.dir=cut", cwd=tmp_path)
    while process.poll() is None and not list(Path("cut").glob("stack_*.pt")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    for kill in KILLS:
        script = KILLED_AT_CALL.format(*kill)
        process = warm.start("-c", script, "resume", "cut", cwd=tmp_path, start_new_session=True)
        process.wait(60)
        results_so_far = len(read_results("cut"))
        assert kill[-1] <= results_so_far < 16
        assert len(list(Path("cut").glob("*/checkpoints/step_*.pt"))) > results_so_far
    assert dlrun("resume", "cut").code == 0
    assert read_trials("cut") == read_trials("whole")
    assert read_results("cut") == results

    # One that left trains on as if it had never been in a stack.
    name = next(name for name, result in results.items() if result[-1] == 4)
    resumed = dlrun("resume", f"whole/{name}")
    assert (resumed.code, resumed.result["status"]) == (0, "completed"), resumed.err
    rate = name.partition("lr=")[2].partition(",")[0]
    alone = dlrun(*run, f"optimizer.lr={rate}", f"seed={name[-1]}")
    assert resumed.result["metrics"] == pytest.approx(alone.result["metrics"], rel=1e-4)


def test_several_objectives_end_in_a_front(dlrun: Callable[..., Any]) -> None:
    words = ("-m", *MLP[:2], "model.hidden_sizes=[4],[64]", "trainer.epochs=1", "sweep.search=grid", "sweep.dir=s")
    outcome = dlrun(*words, "sweep.objectives=[min train/loss, min parameters]", "figures=false", "sweep.stack=off")
    assert outcome.code == 0, outcome.err
    front = next(line for line in outcome.out.replace("\n    ", " ").splitlines() if "in every objective" in line)
    sizes = {json.loads(path.read_text())["parameters"] for path in Path("s").glob("*/result.json")}
    assert f"parameters {min(sizes)}" in front

    refused = dlrun(*words[:-1], "sweep.objectives=[min train/lss]", "sweep.dir=other")
    assert (refused.code, "sweep.objectives: min train/lss is no metric of this run" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("-m", "optimizer.lr=interval(0,1)"), "add sweep.search=tpe"),
        (("-m", "optimizer.lr=0.1,0.2", "sweep.trials=5"), "sweep.trials=5 is for a search"),
        (("-m", "optimizer.lr=0.1,0.2", "sweep.pruner=halving"), "add sweep.search=grid, or leave it out"),
        (("-m", "optimizer.lr=0.1,0.2", "sweep.search=tpee"), "did you mean tpe"),
        (("-m", "optimizer.lr=0.1", "sweep.search=tpe"), "finds nothing to vary"),
        (("-m", RATE, "sweep.search=tpe", "sweep.points=['seed=1']"), "leave out sweep.points"),
        (("-m", RATE, "sweep.search=tpe", "sweep.trials=2000"), "type sweep.max_jobs=2000"),
        (("-m", "optimizer=sgd,adm", "sweep.search=tpe"), "did you mean optimizer=adam"),
        (("-m", RATE, "optimizer.momentun=interval(0,1)", "sweep.search=tpe"), "momentun"),
        (("-m", "optimizer.lr=interval(-1,1)", "sweep.search=tpe"), "lr"),
        (("-m", "hydra/sweeper=optuna", RATE), "sweep.search=tpe sweep.trials=<number>"),
        (("-m", "hydra.sweeper.n_trials=20", RATE), "type sweep.search=tpe sweep.trials=<number>"),
        ((RATE, "sweep.search=tpe"), "-m"),
    ],
)
def test_a_wrong_search_is_a_sentence_and_writes_nothing(
    dlrun: Callable[..., Any], words: tuple[str, ...], sentence: str, tmp_path: Path
) -> None:
    outcome = dlrun("data=blobs", *words)
    assert (outcome.code, sentence in outcome.err) == (2, True), outcome.err
    assert not list(tmp_path.rglob("*.json*"))


def test_a_missing_optuna_is_named(dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    outcome = dlrun("-m", "data=blobs", RATE, "sweep.search=tpe")
    assert outcome.code == 2
    assert "type pip install 'dlrun[search]'" in outcome.err


def test_optunas_plots_are_in_the_page(dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlrun.sweep.search.answer.Answer._make_figures", _make_figures)
    words = ("-m", *MLP, RATE, "trainer.epochs=1,2", "sweep.search=random", "sweep.trials=5", "sweep.dir=s")
    assert dlrun(*words).code == 0
    names = sorted(path.stem for path in Path("s/figures").glob("search_*.png"))
    assert names == ["search_history", "search_importances", "search_parallel", "search_slice"]
    page = Path("s/report.html").read_text()
    assert page.count("data:image/png") >= 4
    assert "optuna-dashboard" in page
