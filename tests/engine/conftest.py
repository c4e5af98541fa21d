"""Several processes that train one run, as torchrun starts them."""

import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def free_port() -> Callable[[], int]:
    """`free_port()`: a port of this machine that nobody listens on."""

    def find() -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return int(free.getsockname()[1])

    return find


@pytest.fixture
def ranks(warm: Any, tmp_path: Path, free_port: Callable[[], int]) -> Callable[..., Any]:
    """`ranks(count, *words)`: so many warm processes with the variables of torchrun; what process 0 said.

    `start` is what Python is told to run. The exit code is the first that is not 0. A process that is left when the
    others have failed is killed.
    """

    def run(count: int, *words: str, start: tuple[str, ...] = ("-m", "dlrun")) -> Any:
        port = str(free_port())
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
        processes = []
        for number in range(count):
            own = {"RANK": str(number), "LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": str(count)}
            processes.append(warm.start(*start, *words, cwd=tmp_path, env={**os.environ, **where, **own}))
        try:
            while all(process.poll() in (None, 0) for process in processes):
                if all(process.poll() == 0 for process in processes):
                    break
                time.sleep(0.01)
            if processes[0].poll() is None:
                processes[0].wait(300)
        finally:
            for process in processes:
                process.kill()
        codes = [process.wait(300) for process in processes]
        code = next((code for code in codes if code), 0)
        return subprocess.CompletedProcess(words, code, processes[0].out, "".join(p.err for p in processes))

    return run
