"""Processes of a sweep: when `sweep.jobs=auto` starts them."""

from typing import Any

import pytest

from dlrun.sweep import process_engine
from dlrun.sweep.stacks import Unit


class _FakeWatcher:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.pace = 1

    def on_job_start(self, job: Any) -> None:
        pass

    def on_job_end(self, job: Any, outcome: Any) -> bool:
        return True

    def note(self, text: str) -> None:
        self.lines.append(text)

    def on_pace_change(self, at_once: int) -> None:
        self.pace = at_once


@pytest.mark.parametrize(("seconds", "here", "apart"), [(9.0, 1, 3), (0.1, 4, 0)])
def test_auto_runs_several_at_a_time_once_a_run_took_long(
    seconds: float, here: int, apart: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    ran: list[Unit] = []
    in_processes: list[Unit] = []

    class Here:
        is_continuing = True

        def run(self, units: Any, watcher: Any) -> int:
            clock[0] += seconds
            ran.extend(units)
            return 0

    class Apart:
        def __init__(self, count: int) -> None:
            self.count = count

        def warm_up(self) -> None:
            pass

        def run(self, units: Any, watcher: Any) -> int:
            in_processes.extend(units)
            return 0

    monkeypatch.setattr(process_engine, "Parallel", Apart)
    monkeypatch.setattr(process_engine.time, "process_time", lambda: clock[0])
    monkeypatch.setattr(process_engine.torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(process_engine, "count_cores", lambda: 2)
    watcher = _FakeWatcher()
    units: Any = [Unit((number,)) for number in range(4)]  # type: ignore[arg-type]
    assert process_engine.Adaptive(Here(), 2).run(units, watcher) == 0  # type: ignore[arg-type]
    assert (len(ran), len(in_processes)) == (here, apart)
    assert [*ran, *in_processes] == units
    if apart:
        assert "that took 9 s, so the others run 2 at a time, with 1 of 2 threads each" in watcher.lines[0]
    assert watcher.pace == (2 if apart else 1)
