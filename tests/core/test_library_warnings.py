"""Warnings of libraries go to run.log; those of the user's own code are counted in a note."""

import contextlib
import importlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dlrun.core.library_warnings import divert_warnings, show_warnings
from dlrun.models.mlp import MLP

QUICK = ("data=blobs", "model=mlp", "trainer.max_steps=3", "tracking.graph=false", "figures=false")
LIBRARY = """
import logging, sys, warnings

def complain(number=0):
    warnings.warn(f"old way {number}", FutureWarning)
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("somelib.own")
    logger.addHandler(handler)
    logger.propagate = False
    logger.warning("clipping %s", "input")
    logger.removeHandler(handler)
"""
NET = """
import warnings

import torch
from torch import nn

import somelib


class Net(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.layer = nn.Linear(spec.input_size, spec.output_size)

    def forward(self, x):
        somelib.complain()
        warnings.warn("x is large")
        return self.layer(x)
"""


@pytest.fixture
def warning_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A net of the user's that warns, and an installed library that it calls."""
    library = tmp_path / "site-packages"
    library.mkdir()
    (library / "somelib.py").write_text(LIBRARY)
    (tmp_path / "warner.py").write_text(NET)
    monkeypatch.syspath_prepend(library)
    monkeypatch.delitem(sys.modules, "somelib", raising=False)
    monkeypatch.delitem(sys.modules, "warner", raising=False)
    return "model._target_=warner.Net"


@contextlib.contextmanager
def list_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """What Python itself is left to show: without this, pytest lists it at the end of the test run."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        yield shown


@pytest.mark.filterwarnings("default")
def test_a_run_writes_what_libraries_warn_of_into_its_log(dlrun: Callable, warning_module: str) -> None:
    outcome = dlrun(*QUICK, warning_module)
    assert (outcome.code, outcome.err) == (0, "")
    log = (outcome.folder / "run.log").read_text()
    for text in ("FutureWarning: old way 0", "somelib.own: clipping input"):
        assert log.count(text) == 1
        assert text not in outcome.out


@pytest.mark.filterwarnings("default")
def test_warnings_of_own_code_are_a_note(dlrun: Callable, warning_module: str) -> None:
    outcome = dlrun(*QUICK, warning_module)
    note = "1 warning of code of yours is in run.log: warner.py, line 17: UserWarning: x is large"
    assert f"note: {note}" in outcome.out
    assert note in outcome.result["warnings"]


@pytest.mark.slow
def test_commands_without_a_log_hold_them_back_unless_v_is_given(dlrun: Callable, warning_module: str) -> None:
    with list_warnings():
        assert dlrun(*QUICK, warning_module, "hydra.run.dir=run").code == 0
    trust = ("trusted_modules=[warner]",)
    for words in (
        ("eval", "run", *trust, "figures=false"),
        ("predict", "run", "1,2", *trust),
        ("check", *QUICK, warning_module),
    ):
        with list_warnings() as shown:
            outcome = dlrun(*words)
        assert outcome.code == 0, outcome.err
        assert "somelib" not in outcome.out + outcome.err
        assert "old way" not in outcome.out + outcome.err
        assert {str(warning.message) for warning in shown} == {"x is large"}
    with list_warnings() as shown:
        assert "clipping input" in dlrun("-v", "eval", "run", *trust, "figures=false").err
    assert {str(warning.message) for warning in shown} == {"x is large", "old way 0"}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_sweep_writes_them_into_the_logs_of_its_jobs(
    dlrun: Callable, warning_module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = importlib.import_module("somelib")
    forward = MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda net, x: (library.complain(), forward(net, x))[1])
    outcome = dlrun("-m", "seed=0,1", *QUICK)
    assert outcome.code == 0
    assert "somelib" not in outcome.out + outcome.err
    logs = [path.read_text() for path in tmp_path.glob("outputs/multirun/*/*/*/run.log")]
    assert len(logs) == 2
    assert all("somelib.own: clipping input" in log for log in logs)


def test_a_filter_that_makes_errors_of_warnings_is_heeded() -> None:
    lines: list[str] = []
    with warnings.catch_warnings(), divert_warnings(lines.append):
        warnings.simplefilter("error")
        with pytest.raises(FutureWarning):
            warnings.warn("old", FutureWarning, stacklevel=1)
    assert lines == []


def test_the_process_is_afterwards_as_it_was() -> None:
    before = warnings.showwarning, logging.StreamHandler.emit
    with divert_warnings(), pytest.raises(ValueError, match="inside"), divert_warnings(print):
        raise ValueError("inside")
    assert (warnings.showwarning, logging.StreamHandler.emit) == before


def test_what_was_said_before_there_is_a_log_is_in_the_log() -> None:
    lines: list[str] = []
    with divert_warnings() as outer:
        outer.take("early", is_own=False)
        with divert_warnings(lines.append):
            assert lines == ["early"]
        show_warnings(True)
        assert not outer.take("shown", is_own=False)


def test_what_no_handler_takes_goes_into_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    record = logging.LogRecord("matplotlib.image", logging.WARNING, logging.__file__, 1, "clipping", None, None)
    assert logging.lastResort is not None
    with divert_warnings(lines.append):
        logging.lastResort.handle(record)
        logging.lastResort.handle(record)
    assert lines == ["matplotlib.image: clipping"]
    assert capfd.readouterr().err == ""


def test_files_and_buffers_of_loggers_are_left_alone() -> None:
    buffer = io.StringIO()
    handler = logging.StreamHandler(buffer)
    record = logging.LogRecord("lib", logging.WARNING, logging.__file__, 1, "text", None, None)
    with divert_warnings():
        handler.emit(record)
    assert buffer.getvalue() == "text\n"


@pytest.mark.slow
def test_from_python_too(dlrun: Callable, warning_module: str, capfd: pytest.CaptureFixture[str]) -> None:
    import dlrun as library

    with list_warnings() as shown:
        run = library.train(*QUICK, warning_module, quiet=True)
        run.predict([[1.0, 2.0]])
    assert {str(warning.message) for warning in shown} == {"x is large"}
    output = capfd.readouterr()
    assert "somelib" not in output.out + output.err
