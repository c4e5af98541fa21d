"""Sweeps on Ray: on a cluster of two nodes that this machine stands for, and on one of the sweep's own."""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'dlrun[ray]'"
    ),
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]
TINY = ("data=blobs", "model=mlp", "figures=false", "device.num_threads=1")
WORDS = ("-m", *TINY, "model.dropout=0.3", "trainer.epochs=400", "seed=0,1,2,3,4,5", "sweep.dir=s")
Wait = Callable[..., None]
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0"}


def list_members(session: int, name: str = "") -> list[int]:
    """The processes of a session that live, and have `name` in their command line."""
    processes = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z" and name.encode() in (path / "cmdline").read_bytes():
                processes.append(int(path.name))
    return processes


def kill(session: int) -> None:
    for process in list_members(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def count_done(sweep: Path) -> int:
    return len(list(sweep.glob("*/result.json")))


def start_node(wait_for: Wait, log: Path, *words: str) -> "subprocess.Popen[bytes]":
    """A node of Ray with one CPU, up to being ready."""
    common = ("--block", "--num-cpus=1", "--object-store-memory=80000000")
    with log.open("w") as file:
        node = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *words, *common],
            env=ENVIRONMENT,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    wait_for(lambda: "Ray runtime started" in log.read_text() or node.poll() is not None)
    assert node.poll() is None, log.read_text()
    return node


@pytest.fixture
def nodes(wait_for: Wait, tmp_path: Path) -> Iterator[tuple[int, int, str]]:
    """The sessions of a head and of a second node, and the head's address."""
    head = start_node(wait_for, tmp_path / "head.log", "--head", "--port=0", "--include-dashboard=false")
    address = next(
        line.rpartition("'")[0].rpartition("'")[2]
        for line in (tmp_path / "head.log").read_text().splitlines()
        if "--address='" in line
    )
    second = start_node(wait_for, tmp_path / "second.log", f"--address={address}")
    yield head.pid, second.pid, address
    for node in (head, second):
        kill(node.pid)
        node.wait()


def test_a_lost_worker_a_lost_node_and_a_ctrl_c_cost_nothing(
    nodes: tuple[int, int, str],
    wait_for: Wait,
    read_files: Callable[[Path], dict[str, bytes]],
    warm: Any,
    tmp_path: Path,
) -> None:
    head, second, address = nodes
    sweep = tmp_path / "s"
    local = warm.start("-m", "dlrun", *WORDS, "sweep.stack=off", "sweep.dir=local", cwd=tmp_path)
    assert local.wait(300) == 0, local.out + local.err

    words = ("sweep.engine=ray", f"sweep.ray.address={address}")
    start = {"cwd": tmp_path, "env": ENVIRONMENT, "start_new_session": True}
    process = warm.start("-m", "dlrun", *WORDS, *words, **start)
    wait_for(lambda: list_members(second, "_run_task"), process)
    os.kill(list_members(second, "_run_task")[0], signal.SIGKILL)
    wait_for(lambda: "WorkerCrashedError" in process.out, process)
    wait_for(lambda: count_done(sweep) >= 2, process)
    kill(second)
    wait_for(lambda: count_done(sweep) >= 3, process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(300) == 130, process.out + process.err
    assert "on Ray, 2 machines for 2 at a time" in process.out
    assert "resume it: dlrun resume s" in process.out
    assert "FAILED" not in process.out
    # Nothing of it is left in the cluster.
    wait_for(lambda: not list_members(head, "_run_task"), seconds=60)
    wait_for(lambda: not list_members(process.pid), seconds=60)

    resumed = warm.start("-m", "dlrun", "resume", "s", **start)
    assert resumed.wait(300) == 0, resumed.out + resumed.err
    assert read_files(sweep) == read_files(tmp_path / "local")


@pytest.mark.parametrize(
    ("number", "left"),
    # Two helpers of Ray live for a minute after their cluster was killed.
    [(signal.SIGINT, ()), (signal.SIGKILL, ("Agent",))],
)
def test_a_cluster_of_its_own_ends_with_the_sweep(
    number: int, left: tuple[str, ...], wait_for: Wait, warm: Any, tmp_path: Path
) -> None:
    start = {"cwd": tmp_path, "env": ENVIRONMENT, "start_new_session": True}
    process = warm.start("-m", "dlrun", *WORDS, "sweep.engine=ray", **start)
    wait_for(lambda: list_members(process.pid, "_run_task"), process)
    os.kill(process.pid, number)
    process.wait(300)
    helpers = {member for name in left for member in list_members(process.pid, name)}
    wait_for(lambda: set(list_members(process.pid)) <= helpers, seconds=30)
    kill(process.pid)


def test_what_no_machine_has_is_refused(wait_for: Wait, warm: Any, tmp_path: Path) -> None:
    words = ("sweep.engine=ray", "sweep.ray.cpus=1000")
    process = warm.start("-m", "dlrun", *WORDS, *words, cwd=tmp_path, env=ENVIRONMENT, start_new_session=True)
    assert process.wait(300) == 2
    assert "no machine of the Ray cluster has sweep.ray.cpus=1000" in process.err
    assert not (tmp_path / "s").exists()
    wait_for(lambda: not list_members(process.pid), seconds=60)
