"""A call in a thread of its own: it ends, or its error comes to who waits."""

import signal
import threading
import time

import pytest

from dlrun.core.background import BackgroundCall


def test_the_caller_goes_on_until_it_waits() -> None:
    gate = threading.Event()
    outcome: list[str] = []

    def work() -> None:
        gate.wait(30)
        sum(range(200_000))
        outcome.append(threading.current_thread().name)

    call = BackgroundCall(work, "worker")
    assert not call.has_ended
    gate.set()
    call.wait()
    assert outcome == ["worker"]
    assert call.has_ended
    assert call.cpu_seconds > 0
    assert "worker" not in [thread.name for thread in threading.enumerate()]
    call.wait()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_the_call_raises_comes_to_who_waits(error: BaseException) -> None:
    def fail() -> None:
        raise error

    call = BackgroundCall(fail, "worker")
    with pytest.raises(type(error)) as caught:
        call.wait()
    assert caught.value is error


@pytest.mark.slow
def test_a_signal_is_answered_while_waiting() -> None:
    answered: list[float] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: answered.append(time.monotonic()))
    try:
        call = BackgroundCall(lambda: time.sleep(0.3), "worker")
        threading.Timer(0.02, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1)).start()
        call.wait()
        assert len(answered) == 1
        assert answered[0] < time.monotonic() - 0.1
    finally:
        signal.signal(signal.SIGUSR1, before)
