"""Jobs of a sweep that train as one stack: equal to runs alone, recorded like them, and killed like them."""

import contextlib
import json
import math
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlrun.core.forks import HAS_FORKS
from dlrun.engine.device import count_cores
from dlrun.runs import checkpoint
from dlrun.runs.tensorboard import read_scalars
from dlrun.sweep import runner, stacks
from dlrun.sweep.stacks import find_begun_stacks

pytestmark = pytest.mark.usefixtures("comparison_without_pictures")

MLP = ("data=blobs", "model=mlp", "model.hidden_sizes=[6]", "trainer.epochs=3", "figures=false", "tracking.graph=false")
FOUR = ("-m", *MLP, "seed=0,1", "optimizer.lr=0.01,0.1")


def read_rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_result(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def list_runs(sweep: Path) -> list[Path]:
    return sorted(path.parent for path in sweep.glob("*/result.json"))


def compare_rows(stacked: Path, alone: Path) -> None:
    of_stack, of_run = read_rows(stacked), read_rows(alone)
    assert [list(row) for row in of_stack] == [list(row) for row in of_run]
    for ours, theirs in zip(of_stack, of_run, strict=True):
        for key, value in theirs.items():
            assert math.isclose(ours[key], value, rel_tol=1e-4, abs_tol=1e-6), (key, ours, theirs)


@pytest.mark.slow
def test_members_are_recorded_as_runs_alone(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    stacked = dlrun(*FOUR, "sweep.stack=on", "sweep.dir=stacked")
    assert stacked.code == 0, stacked.err
    assert "4 runs train as one stack, as sweep.stack=on asks" in stacked.out
    assert "all 4 runs trained stacked, as one net, and equal runs alone up to rounding" in stacked.out
    alone = dlrun(*FOUR, "sweep.stack=off", "sweep.dir=alone")
    assert alone.code == 0, alone.err
    assert "stack" not in alone.out.replace("sweep.stack", "")

    assert [path.name for path in list_runs(tmp_path / "stacked")] == [
        path.name for path in list_runs(tmp_path / "alone")
    ]
    assert not list((tmp_path / "stacked").glob("stack_*"))
    for ours in list_runs(tmp_path / "stacked"):
        theirs = tmp_path / "alone" / ours.name
        compare_rows(ours, theirs)

        result, expected = read_result(ours), read_result(theirs)
        assert result.keys() == expected.keys() | {"stacked"}
        assert result["stacked"] == 4
        same = ("status", "epochs", "steps", "parameters", "config_hash", "code_hash", "warnings", "best", "baseline")
        for key in set(same) - {"best"}:
            assert result[key] == expected[key], key
        assert result["best"]["epoch"] == expected["best"]["epoch"]
        assert result["metrics"] == pytest.approx(expected["metrics"], rel=1e-4, abs=1e-6)

        # TensorBoard shows the same curves.
        curves, expected_curves = read_scalars(ours), read_scalars(theirs)
        assert curves.keys() == expected_curves.keys()
        for tag, points in expected_curves.items():
            assert [step for step, _ in curves[tag]] == [step for step, _ in points], tag

        # Before the first step all is equal to the bit.
        first = [(path / "fingerprints.jsonl").read_text().splitlines()[0] for path in (ours, theirs)]
        assert first[0] == first[1]

        # The hashes are those of the weights that the run has at its end, and at its best.
        lines = (ours / "fingerprints.jsonl").read_text().splitlines()
        hashes = [json.loads(line)["weights_sha256"] for line in lines]
        assert hashes[-1] == result["weights_sha256"]
        best = checkpoint.load(ours / "checkpoints" / "best.pt")
        assert checkpoint.hash_state(best["model"]) == hashes[result["best"]["epoch"]]

    # Every command reads them.
    member = list_runs(tmp_path / "stacked")[1]
    assert dlrun("eval", str(member)).code == 0
    listed = dlrun("ls", "runs", "stacked")
    assert listed.code == 0
    assert member.name in listed.out
    assert dlrun("compare", "stacked").code == 0
    longer = dlrun("resume", str(member), "trainer.epochs=4")
    assert longer.code == 0, longer.err
    assert [row["epoch"] for row in read_rows(member)] == [1, 2, 3, 4]


@pytest.mark.slow
def test_optimizers_and_early_stopping_differ_within_a_stack(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    words = (
        "-m",
        *MLP,
        "trainer.epochs=8",
        "trainer.early_stopping={patience: 1, min_delta: 0.05}",
        "optimizer=sgd,adam,rmsprop",
        "seed=0,1",
    )
    outcome = dlrun(*words, "sweep.stack=on", "sweep.dir=stacked")
    assert outcome.code == 0, outcome.err
    assert dlrun(*words, "sweep.stack=off", "sweep.dir=alone").code == 0
    lengths = set()
    for ours in list_runs(tmp_path / "stacked"):
        compare_rows(ours, tmp_path / "alone" / ours.name)
        lengths.add(len(read_rows(ours)))
    assert len(lengths) > 1


@pytest.mark.slow
def test_a_run_that_does_not_fit_trains_alone(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    points = "sweep.points=['seed=0,1','trainer.ema_decay=0.9','optimizer=lbfgs']"
    outcome = dlrun(*MLP, points, "sweep.stack=on", "sweep.dir=s")
    assert outcome.code == 0, outcome.err
    assert "optimizer=lbfgs trains alone: LBFGS" in outcome.out
    assert len(list_runs(tmp_path / "s")) == 4


@pytest.mark.slow
def test_a_run_that_fails_costs_itself(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    words = ("-m", *MLP[:2], "optimizer=sgd", "optimizer.lr=0.1,1e38", "seed=0,1", "figures=false", "trainer.epochs=3")
    outcome = dlrun(*words, "sweep.stack=on", "sweep.dir=stacked")
    assert outcome.code == 1
    assert "2 of 4 runs finished, 2 failed" in outcome.out
    assert dlrun(*words, "sweep.stack=off", "sweep.dir=alone").code == 1
    for path in list_runs(tmp_path / "alone"):
        ours, theirs = read_result(tmp_path / "stacked" / path.name), read_result(path)
        assert (ours["status"], ours["error"] and ours["error"].split(" (epoch")[0]) == (
            theirs["status"],
            theirs["error"] and theirs["error"].split(" (epoch")[0],
        )


@pytest.mark.slow
def test_a_stack_whose_file_is_damaged_is_told_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "stack_0123.pt"
    file.write_bytes(b"cut short")
    units, notes = find_begun_stacks(tmp_path, [], set())
    assert units == []
    assert len(notes) == 1
    assert "stack_0123.pt is not a checkpoint of dlrun, or was cut short (9 bytes)" in notes[0]
    assert notes[0].endswith("the runs of that stack begin anew")
    assert file.read_bytes() == b"cut short"


@pytest.mark.slow
def test_a_run_that_does_not_fit_is_not_begun_after_a_failure(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    points = "sweep.points=['optimizer=sgd optimizer.lr=1e38 seed=0,1','optimizer=lbfgs']"
    words = (*MLP[:2], "trainer.epochs=3", "figures=false", points, "sweep.stack=on", "sweep.fail_fast=true")
    outcome = dlrun(*words, "sweep.dir=s")
    assert outcome.code == 1
    assert "trains alone: LBFGS" in outcome.out
    assert [read_result(path)["status"] for path in list_runs(tmp_path / "s")] == ["failed"]


@pytest.mark.slow
def test_the_first_failure_ends_a_stack_that_is_to_fail_fast(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    words = ("-m", *MLP[:2], "optimizer=sgd", "optimizer.lr=0.1,1e38", "seed=0,1", "figures=false", "trainer.epochs=3")
    outcome = dlrun(*words, "sweep.stack=on", "sweep.fail_fast=true", "sweep.dir=s")
    assert outcome.code == 1
    assert "0 of 4 runs finished, 1 failed (sweep.fail_fast=true" in outcome.out
    assert [read_result(path)["status"] for path in list_runs(tmp_path / "s")] == ["failed"]

    # The others continue where they were.
    assert list((tmp_path / "s").glob("stack_*"))
    resumed = dlrun("resume", "s", "sweep.fail_fast=false")
    assert resumed.code == 1
    assert "2 failed" in resumed.out
    uninterrupted = dlrun(*words, "sweep.stack=on", "sweep.dir=whole")
    assert uninterrupted.code == 1
    finished = [path for path in list_runs(tmp_path / "whole") if read_result(path)["status"] == "completed"]
    assert len(finished) == 2
    for path in finished:
        other = tmp_path / "s" / path.name
        assert (path / "fingerprints.jsonl").read_text() == (other / "fingerprints.jsonl").read_text()


def test_auto_says_what_it_chose(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun(*FOUR, "sweep.dry_run=true")
    assert "as one, " in outcome.out
    assert "one after the other" in outcome.out
    # Too few to be worth it.
    assert "stack" not in dlrun("-m", *MLP, "seed=0,1", "sweep.dry_run=true").out
    refused = dlrun("-m", "data=digits", "model=resnet", "seed=range(4)", "sweep.dry_run=true")
    assert "not stacked: ResNet is no chain of layers" in refused.out


@pytest.mark.slow
def test_auto_says_which_setting_it_cannot_stack(dlrun: Callable[..., Any]) -> None:
    average = dlrun(*FOUR, "trainer.ema_decay=0.9", "sweep.dry_run=true")
    assert "not stacked: trainer.ema_decay" in average.out


@pytest.mark.slow
def test_stacks_train_in_processes_of_their_own(command: Callable[..., Any], tmp_path: Path) -> None:
    outcome = command(*FOUR, "model.hidden_sizes=[4],[5]", "sweep.jobs=2", "sweep.stack=on", "sweep.dir=s")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("4 runs train as one stack") == 2
    assert dlrun_statuses(tmp_path / "s") == ["completed"] * 8


def dlrun_statuses(sweep: Path) -> list[str]:
    return [read_result(path)["status"] for path in list_runs(sweep)]


LONG = (
    *("-m", "data=blobs", "model=mlp", "model.hidden_sizes=[6]", "model.dropout=0.1", "data.batch_size=8"),
    *("seed=range(3)", "optimizer.lr=0.003,0.3", "trainer.epochs=80", "trainer.early_stopping.patience=30"),
    *("sweep.stack=on", "figures=false"),
)


@pytest.mark.slow
def test_a_stack_that_is_killed_ends_as_one_that_is_not(command: Callable[..., Any], warm: Any, tmp_path: Path) -> None:
    """Kills by SIGKILL and SIGTERM at random moments after the stack has been saved anew."""
    reference = command(*LONG, "sweep.dir=whole")
    assert reference.code == 0, reference.err

    draw = random.Random(7)
    kills = 0
    for _ in range(8):
        saved_at = read_save_time(tmp_path)
        process = warm.start("-m", "dlrun", *LONG, "sweep.dir=killed", cwd=tmp_path)
        while process.poll() is None and read_save_time(tmp_path) in (saved_at, None):
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
        if process.poll() is not None:
            break
        process.send_signal(draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        process.wait(60)
        kills += 1
    last = command(*LONG, "sweep.dir=killed")
    assert last.code == 0, last.err
    assert kills >= 3

    runs = list_runs(tmp_path / "whole")
    assert len(runs) == 6
    for path in runs:
        other = tmp_path / "killed" / path.name
        for name in ("fingerprints.jsonl", "metrics.jsonl"):
            assert (path / name).read_text() == (other / name).read_text(), (path.name, name)
        ours, theirs = read_result(path), read_result(other)
        for key in ("weights_sha256", "metrics", "warnings", "status"):
            assert ours[key] == theirs[key]
    assert not list((tmp_path / "killed").glob("stack_*"))


TWELVE = (*FOUR[:-2], "seed=range(6)", "optimizer.lr=0.01,0.1", "sweep.stack=on")


@pytest.mark.slow
def test_folders_that_several_processes_write_survive_a_kill(
    command: Callable[..., Any], warm: Any, tmp_path: Path
) -> None:
    """Killed as soon as the first run of twelve has its result: the forks that write the others die with the sweep."""
    assert command(*TWELVE, "sweep.dir=whole").code == 0
    process = warm.start("-m", "dlrun", *TWELVE, "sweep.dir=killed", cwd=tmp_path)
    while process.poll() is None and not list_runs(tmp_path / "killed"):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    recorded = len(list_runs(tmp_path / "killed"))
    time.sleep(0.2)
    assert len(list_runs(tmp_path / "killed")) == recorded < 12

    last = command(*TWELVE, "sweep.dir=killed")
    assert last.code == 0, last.err
    runs = list_runs(tmp_path / "whole")
    assert len(runs) == 12
    for path in runs:
        other = tmp_path / "killed" / path.name
        for name in ("fingerprints.jsonl", "metrics.jsonl"):
            assert (path / name).read_text() == (other / name).read_text(), (path.name, name)
        ours, theirs = read_result(path), read_result(other)
        # One that was killed between its checkpoint and its result has ended alone.
        for key in ("weights_sha256", "metrics", "status"):
            assert ours[key] == theirs[key], (path.name, key)
        # Each process counts the threads of the training, not its own.
        names = [json.loads((run / "environment.json").read_text())["threads"] for run in (path, other)]
        assert names[0] == names[1]


SIXTEEN = ("-m", *MLP, "data.batch_size=8", "trainer.epochs=60", "optimizer.lr=0.01,0.1", "seed=range(8)")

# dlrun, to which every stack is long enough to be shared out among the cores.
SPLITTING = """
import sys
from dlrun.cli.main import run
from dlrun.sweep import stacks
stacks._FEWEST_SECONDS = 0.0
sys.exit(run())
"""


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "count_cores", lambda: 2)


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
def test_long_stacks_are_split_among_forked_processes(
    dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(stacks, "_FEWEST_SECONDS", 0.0)
    outcome = dlrun(*SIXTEEN, "trainer.epochs=3", "sweep.dir=split")
    assert outcome.code == 0, outcome.err
    assert "16 runs train as 2 stacks at a time: a step of all takes" in outcome.out
    assert "16 of 16 runs finished" in outcome.out
    assert not list((tmp_path / "split").glob("stack_*"))

    # Each half equals the same runs as one stack, to the bit.
    for rate in ("0.01", "0.1"):
        words = (*SIXTEEN, "trainer.epochs=3", f"optimizer.lr={rate}", "sweep.stack=on", f"sweep.dir=lr{rate}")
        assert dlrun(*words).code == 0
        runs = {path.name.partition("_")[2]: path for path in list_runs(tmp_path / "split")}
        for alone in list_runs(tmp_path / f"lr{rate}"):
            split = runs[f"optimizer.lr={rate},{alone.name.partition('_')[2]}"]
            assert read_result(split)["stacked"] == 8
            assert read_result(split)["weights_sha256"] == read_result(alone)["weights_sha256"]

    # Code of one's own may end a process, more threads than one do not survive a fork, and jobs=1 is one process.
    for word in ("device.num_threads=2", "sweep.jobs=1", "sweep.stack=on"):
        assert "16 runs train as one stack" in dlrun(*SIXTEEN, word, "sweep.dry_run=true").out


@pytest.mark.parametrize(
    ("threads", "fitting", "allowed"), [(None, 16, True), (1, 16, True), (2, 16, False), (None, 15, False)]
)
def test_begun_stacks_fork_with_one_thread_and_memory_for_all(
    threads: int | None, fitting: int, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "prepare_run", lambda request: SimpleNamespace(context=None))
    monkeypatch.setattr(stacks, "can_fork", lambda request, context: True)
    monkeypatch.setattr(stacks.choice, "count_fitting", lambda context: fitting)
    job: Any = SimpleNamespace(key="a", request=SimpleNamespace(config={"device": {"num_threads": threads}}))
    assert stacks.allow_fork(stacks.Unit((job,) * 8), processes=2) == allowed


@pytest.mark.slow
@pytest.mark.usefixtures("two_cores")
def test_short_stacks_are_not_split(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun(*SIXTEEN, "trainer.epochs=1", "sweep.dry_run=true")
    assert "16 runs train as one stack: " in outcome.out


@pytest.mark.slow
@pytest.mark.skipif(count_cores() < 2, reason="one core")
@pytest.mark.skipif(not HAS_FORKS, reason="no forks on this system")
def test_forked_stacks_that_are_killed_end_as_ones_that_are_not(
    python: Callable[..., Any], warm: Any, tmp_path: Path
) -> None:
    """The sweep is killed, then stopped; then one of its processes is killed, which costs the runs of its stack."""
    words = (*SIXTEEN, "trainer.epochs=250")
    reference = python("-c", SPLITTING, *words, "sweep.dir=whole")
    assert reference.code == 0, reference.err
    assert "16 runs train as " in reference.out
    assert " stacks at a time" in reference.out

    for number in (signal.SIGKILL, signal.SIGTERM):
        process = start_and_await_save(warm, words, tmp_path)
        forks = list_children(process.pid)
        assert len(forks) >= 2
        process.send_signal(number)
        code = process.wait(60)
        assert code == (-number if number == signal.SIGKILL else 128 + number)
        # None outlives the sweep, in whose folder the next one will write.
        deadline = time.monotonic() + 5
        while any(map(is_running, forks)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(map(is_running, forks))

    process = start_and_await_save(warm, words, tmp_path)
    os.kill(list_children(process.pid)[0], signal.SIGKILL)
    assert process.wait(60) == 1
    statuses = dlrun_statuses(tmp_path / "killed")
    assert statuses.count("completed") == 16 - 8

    last = python("-c", SPLITTING, *words, "sweep.dir=killed")
    assert last.code == 0, last.err
    runs = list_runs(tmp_path / "whole")
    assert len(runs) == 16
    for path in runs:
        other = tmp_path / "killed" / path.name
        for name in ("fingerprints.jsonl", "metrics.jsonl"):
            assert (path / name).read_text() == (other / name).read_text(), (path.name, name)
        assert read_result(path)["weights_sha256"] == read_result(other)["weights_sha256"]
    assert not list((tmp_path / "killed").glob("stack_*"))


def start_and_await_save(warm: Any, words: Sequence[str], folder: Path) -> Any:
    """Start a sweep, and wait until each of its stacks has been saved anew."""
    times = [path.stat().st_mtime for path in folder.glob("killed/stack_*.pt")]
    process = warm.start("-c", SPLITTING, *words, "sweep.dir=killed", cwd=folder)
    while process.poll() is None:
        saved = [path.stat().st_mtime for path in folder.glob("killed/stack_*.pt")]
        if len(saved) >= 2 and min(saved) > max(times, default=0.0) and len(list_children(process.pid)) >= 2:
            break
        time.sleep(0.01)
    return process


def list_children(parent: int) -> list[int]:
    """The processes that a process has forked, by Linux's own list."""
    numbers: list[int] = []
    for path in Path(f"/proc/{parent}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            numbers += map(int, path.read_text().split())
    return numbers


def is_running(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def read_save_time(folder: Path) -> float | None:
    files = list(folder.glob("killed/stack_*.pt"))
    return files[0].stat().st_mtime if files else None
