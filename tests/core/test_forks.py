"""Calls in forked processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dlrun.core.errors import RequestError, RunError
from dlrun.core.forks import HAS_FORKS, ForkDeath, Forks

pytestmark = pytest.mark.skipif(not HAS_FORKS, reason="forks on Linux alone")


def test_results_come_in_order_from_several_processes() -> None:
    with Forks(lambda number: (number, os.getpid()), range(7), 3) as forks:
        results = list(forks)
    assert [value[0] for value, _ in results] == list(range(7))
    assert len({value[1] for value, _ in results} - {os.getpid()}) == 3


def test_what_a_call_raises_comes_back() -> None:
    class Local(Exception):
        """Of a function, so that it cannot be pickled."""

    errors = {1: RequestError("a sentence"), 2: Local("what")}

    def call(number: int) -> int:
        if number in errors:
            raise errors[number]
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with Forks(call, range(6), 4) as forks:
        results = list(forks)
    assert [value for value, _ in results] == [0, None, None, None, 4, 5]
    assert isinstance(results[1][1], RequestError)
    assert str(results[1][1]) == "a sentence"
    assert isinstance(results[2][1], RunError)
    assert str(results[2][1]) == "Local: what"
    assert isinstance(results[3][1], ForkDeath)


def test_a_block_that_is_left_ends_them(tmp_path: Path) -> None:
    def call(number: int) -> None:
        time.sleep(0.1 * number)
        (tmp_path / str(number)).touch()

    with Forks(call, (0, 1), 2) as forks:
        next(iter(forks))
    time.sleep(0.15)
    assert not (tmp_path / "1").exists()


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from dlrun.core.forks import Forks

def call(number):
    Path(sys.argv[1], "begun").touch()
    time.sleep(0.2)
    Path(sys.argv[1], "ended").touch()

with Forks(call, [0], 1) as forks:
    while not Path(sys.argv[1], "begun").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_they_die_with_their_parent(tmp_path: Path) -> None:
    process = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)])
    assert process.returncode == -signal.SIGKILL
    time.sleep(0.4)
    assert (tmp_path / "begun").exists()
    assert not (tmp_path / "ended").exists()
