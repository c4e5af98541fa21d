"""Sweeps as jobs of Slurm: as processes of submitit's own, and with a stand-in for Slurm's commands."""

import importlib.util
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.sweep.attempts import read_progress
from dlrun.sweep.slurm_jobs import describe_states, is_alive, read_submitted

TINY = ("data=blobs", "model=mlp", "figures=false", "device.num_threads=1")
WORDS = ("-m", *TINY, "model.dropout=0.3", "trainer.epochs=400", "seed=0,1,2", "sweep.dir=s")
Wait = Callable[..., None]
Read = Callable[[Path], dict[str, bytes]]
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def has_saved(sweep: Path, seed: int) -> bool:
    """Whether a run is some epochs on, and far from its end."""
    path = sweep / f"{seed}_seed={seed}" / "metrics.jsonl"
    return path.exists() and path.read_bytes().count(b"\n") > 20


def find_process(sweep: Path, seed: int) -> int:
    """The process of a job that runs."""
    file = max((sweep / "cluster").glob(f"{seed}_*.jsonl"))
    process = read_progress(file).process
    assert process is not None
    return process


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, warm: Any, read_files: Read) -> dict[str, bytes]:
    """The same on this machine, undisturbed."""
    place = tmp_path_factory.mktemp("local")
    process = warm.start("-m", "dlrun", *WORDS, "sweep.stack=off", cwd=place)
    assert process.wait(300) == 0, process.out + process.err
    return read_files(place / "s")


@linux
@pytest.mark.slow
def test_a_killed_and_a_preempted_job_end_in_the_same(
    reference: dict[str, bytes],
    wait_for: Wait,
    read_files: Read,
    dlrun: Callable[..., Any],
    warm: Any,
    tmp_path: Path,
) -> None:
    sweep = tmp_path / "s"
    # Of the reference's jobs the two that something happens to: each start is one of a new interpreter, with torch.
    words = [word.replace("seed=0,1,2", "seed=0,1") for word in WORDS]
    words += ["sweep.engine=slurm", "sweep.slurm.cluster=local", "sweep.jobs=2"]
    process = warm.start("-m", "dlrun", *words, cwd=tmp_path, start_new_session=True)
    wait_for(lambda: all(has_saved(sweep, seed) for seed in range(2)), process)
    os.kill(find_process(sweep, 0), signal.SIGKILL)
    os.kill(find_process(sweep, 1), signal.SIGUSR1)
    wait_for(lambda: "seed=0: its job" in process.out, process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(300) == 130, process.out + process.err
    # What runs is told as soon as it can hear it; nothing is left.
    assert not describe_states(sweep)
    assert "was lost (its process died); it is run again, from its newest checkpoint" in process.out
    assert "FAILED" not in process.out

    resumed = dlrun("resume", "s")
    assert resumed.code == 0, resumed.out + resumed.err
    assert read_files(sweep) == {name: rows for name, rows in reference.items() if name != "2_seed=2"}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with the commands of Slurm."""
    path = Path(__file__).parent / "slurm_stand_in.py"
    spec = importlib.util.spec_from_file_location("slurm_stand_in", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path / "slurm"
    monkeypatch.setenv("PATH", f"{module.install(folder)}{os.pathsep}{os.environ['PATH']}")
    return folder


@linux
@pytest.mark.slow
def test_jobs_of_slurm_live_without_the_sweep_and_are_taken_up_again(
    reference: dict[str, bytes],
    slurm: Path,
    wait_for: Wait,
    read_files: Read,
    dlrun: Callable[..., Any],
    warm: Any,
    tmp_path: Path,
) -> None:
    sweep = tmp_path / "s"
    words = ["sweep.engine=slurm", "sweep.slurm.partition=fast", "sweep.slurm.time=5", "sweep.slurm.gpus=2"]
    words += ["sweep.slurm.memory_gb=1.5", "sweep.slurm.options={mail-type: FAIL}", "sweep.jobs=2"]
    process = warm.start("-m", "dlrun", *WORDS, *words, cwd=tmp_path, start_new_session=True)
    wait_for(lambda: all(has_saved(sweep, seed) for seed in range(3)), process)
    script = (slurm / "1000.sbatch").read_text()
    for line in ("array=0-2%2", "partition=fast", "time=5", "gpus-per-node=2", "mem=1536MB", "signal=USR1@90"):
        assert f"#SBATCH --{line}\n" in script
    assert "#SBATCH --mail-type=FAIL\n" in script

    # The login session is gone, one job is preempted meanwhile, and one is lost.
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(300) == 129, process.out + process.err
    assert "resume it: dlrun resume s" in process.out
    assert dlrun("ls", "runs", "s").err == "note: jobs of s in Slurm: 3 running\n"
    assert "3 running, 0/3 done" in dlrun("ls", "runs", ".").out
    os.kill(find_process(sweep, 0), signal.SIGUSR1)
    os.kill(find_process(sweep, 1), signal.SIGKILL)
    wait_for(lambda: (slurm / "1000_1.state").read_text() == "FAILED")

    resumed = dlrun("resume", "s")
    assert resumed.code == 0, resumed.out + resumed.err
    assert read_files(sweep) == reference
    assert "was lost" not in resumed.out
    # The preempted one was taken up, and the lost one submitted anew. The third may complete just as it is looked for.
    submitted = [json.loads(line) for line in (sweep / "cluster" / "submitted.jsonl").read_text().splitlines()]
    tries = Counter(line["file"].partition("_")[0] for line in submitted)
    assert (tries["0"], tries["1"]) == (1, 2)
    assert not (slurm / "1002.sbatch").exists()
    assert not list(sweep.rglob("*.pkl"))
    wait_for(lambda: (slurm / "1000_2.state").read_text() == "COMPLETED")
    assert not describe_states(sweep)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sweep.engine=slurm"], "srun is not found here; type sweep.engine=local, or sweep.slurm.cluster=local"),
        (["sweep.engine=slurm", "sweep.stack=on"], "type sweep.stack=off or sweep.engine=local"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_written(
    words: list[str], sentence: str, dlrun: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    outcome = dlrun(*WORDS, *words)
    assert outcome.code == 2
    assert sentence in outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("engine", "library"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_library_that_is_missing_is_named(
    engine: str, library: str, dlrun: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    outcome = dlrun(*WORDS, f"sweep.engine={engine}")
    assert outcome.code == 2
    assert f"sweep.engine={engine} needs {library}; type pip install 'dlrun[{engine}]'" in outcome.err
    assert not list(tmp_path.iterdir())


def test_a_foreign_folder_names_no_process_and_no_path_of_ours(tmp_path: Path) -> None:
    place = tmp_path / "cluster"
    place.mkdir()
    lines: list[dict[str, Any]] = [
        {"key": "a", "file": "0_1.jsonl", "id": str(os.getpid()), "is_local": True},
        {"key": "b", "file": "../x.jsonl", "id": "1", "is_local": True},
        {"key": "c", "file": "1_1.jsonl", "id": "1; rm x", "is_local": False},
    ]
    (place / "submitted.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert list(read_submitted(tmp_path)) == ["a"]
    assert not is_alive(tmp_path, str(os.getpid()), is_local=True)
    assert describe_states(tmp_path) == ""
