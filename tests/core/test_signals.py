"""The signals that end a run: what is caught, what is ignored, what a second one does."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from dlrun.core import signals

Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_sets_a_flag_and_the_second_ends_the_process(
    number: signal.Signals, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(s) for s in signals.STOP_SIGNALS]
    with signals.catch_signals() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        assert stop.signal_number == number
        assert "once more to stop at once" in capsys.readouterr().err
        ended: list[int] = []
        monkeypatch.setattr(signal, "raise_signal", ended.append)
        os.kill(os.getpid(), number)
        assert ended == [number]
        assert signal.getsignal(number) is signal.SIG_DFL
    assert [signal.getsignal(s) for s in signals.STOP_SIGNALS] == before


def test_handlers_come_back_after_an_exception() -> None:
    before = [signal.getsignal(s) for s in signals.STOP_SIGNALS]
    with pytest.raises(KeyError), signals.catch_signals():
        raise KeyError
    assert [signal.getsignal(s) for s in signals.STOP_SIGNALS] == before


def test_outside_the_main_thread_there_is_only_the_flag() -> None:
    states: list[bool] = []

    def work() -> None:
        with signals.catch_signals() as stop:
            states.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert states == [False]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_what_comes_twice_by_itself_never_ends_a_save(number: signal.Signals, monkeypatch: Patch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", ended.append)
    with signals.catch_signals(quiet=True) as stop:
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert stop.signal_number == number
        os.kill(os.getpid(), signal.SIGTERM)  # a cluster's next step: there is still time to save
        assert ended == []
        os.kill(os.getpid(), number)
        assert ended == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == [signal.SIGTERM]
    assert signals.get_signal_exit_code(stop.signal_number) == 128 + number


@pytest.mark.parametrize("manager", [signals.catch_signals, signals.raise_on_signals])
def test_what_is_ignored_from_the_start_stays_ignored(manager: Callable[..., Any]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
    try:
        with manager() as stop:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
            assert not (stop and stop())
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_exit_codes() -> None:
    codes = {
        name: signals.get_signal_exit_code(signal.Signals[name]) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    }
    assert codes == {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 138}
    assert [code for code in range(256) if signals.is_interruption(code)] == sorted(codes.values())
