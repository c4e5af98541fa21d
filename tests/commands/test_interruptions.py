"""Ctrl-C, SIGTERM and crashes in every phase of a run: what is left is intact, and is resumed to the same end."""

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

QUIET = ("tracking.graph=false", "figures=false")
WORDS = ("data=blobs", "data.val_fraction=0.2", "model=mlp", "model.dropout=0.2", "trainer.epochs=4", *QUIET)
FIGURES = ("data=line", "model=linear", "trainer.epochs=2", "tracking.graph=false")
LBFGS = ("data=regression", "model=linear", "optimizer=lbfgs", "trainer.epochs=3", *QUIET)
PHASES = {  # what is called when, the how-manieth call gets the signal, and a run that makes it
    "opening": ("dlrun.runs.folder", "write_description", 1, WORDS),
    "step": ("dlrun.engine.state", "TrainState.log_model_metrics", 3, WORDS),
    "lbfgs": ("dlrun.engine.trainer", "backward", 3, LBFGS),
    "evaluation": ("dlrun.engine.trainer", "evaluate", 2, WORDS),
    # In the thread that writes checkpoints.
    "save": ("dlrun.runs.checkpoint_manager", "save_encoded", 2, (*WORDS, "checkpoint.every_steps=1")),
    "between epochs": ("dlrun.runs.logger", "RunLogger.log_epoch", 2, WORDS),
    "figures": ("dlrun.experiment.reports.figures", "draw_all", 1, FIGURES),
}
# One handler takes every signal, so each phase meets one of them, and each signal at least one phase.
SLOW = {
    "opening": "SIGINT",
    "step": "SIGTERM",
    "lbfgs": "SIGINT",
    "evaluation": "SIGTERM",
    "between epochs": "SIGUSR1",
    "figures": "SIGINT",
}
NET = """
import os, signal, sys, time
import torch
from torch import nn

class Net(nn.Module):
    calls = 0

    def __init__(self, spec, on_build: str = "None", on_call: str = "None"):
        super().__init__()
        self.layer, self.on_call = nn.Linear(spec.input_size, spec.output_size), on_call
        eval(on_build)

    def forward(self, x):
        Net.calls += self.training and torch.is_grad_enabled()  # steps, not the looks before them
        if Net.calls == 9:
            eval(self.on_call)
        return self.layer(x)
"""


@pytest.fixture
def interrupt_at_call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`at_call(module, name, nth, act)`: call `act` in the nth call of a function, and no other."""

    def patch(module: str, dotted: str, nth: int, act: Callable[[], Any]) -> None:
        owner: Any = importlib.import_module(module)
        *path, name = dotted.split(".")
        for part in path:
            owner = getattr(owner, part)
        original, calls = getattr(owner, name), []

        def replacement(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == nth:
                act()
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, replacement)

    return patch


def read_results(folder: Path) -> tuple[Any, bytes]:
    """result.json but for its timings, and metrics.jsonl."""
    result = json.loads((folder / "result.json").read_text())
    timed = ("train_seconds", "samples_per_second")
    return {k: v for k, v in result.items() if k not in timed}, (folder / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("name", "phase"),
    [
        ("SIGTERM", "save"),
        ("SIGHUP", "step"),
        *(pytest.param(name, phase, marks=pytest.mark.slow) for phase, name in SLOW.items()),
    ],
)
def test_the_first_signal_saves_and_resume_ends_in_the_same_run(
    name: str, phase: str, dlrun: Callable[..., Any], interrupt_at_call: Callable[..., None]
) -> None:
    module, function, nth, words = PHASES[phase]
    assert dlrun(*words, "hydra.run.dir=whole").code == 0
    interrupt_at_call(module, function, nth, lambda: signal.raise_signal(signal.Signals[name]))
    stopped = dlrun(*words, "hydra.run.dir=run")
    assert stopped.code == 128 + signal.Signals[name], stopped.err
    assert "once more to stop at once" in stopped.err
    status = json.loads(Path("run/result.json").read_text())["status"]
    assert status == ("completed" if phase == "figures" else "interrupted")
    assert "dlrun resume run" in stopped.out
    resumed = dlrun("resume", "run")
    assert resumed.code == 0, resumed.err
    assert read_results(Path("run")) == read_results(Path("whole"))
    assert not list(Path("run").rglob("*.tmp"))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_before_the_run_has_begun_it_stops_at_once_and_leaves_nothing(
    name: str, dlrun: Callable[..., Any], interrupt_at_call: Callable[..., None]
) -> None:
    interrupt_at_call(
        "dlrun.experiment.builder.build", "build_data", 1, lambda: signal.raise_signal(signal.Signals[name])
    )
    before = signal.getsignal(signal.SIGTERM)
    stopped = dlrun(*WORDS)
    assert stopped.code == 128 + signal.Signals[name]
    assert "Traceback" not in stopped.err
    assert not Path("outputs").exists()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["step", "figures"])
def test_the_second_signal_stops_now_and_resume_makes_the_rest(
    phase: str, dlrun: Callable[..., Any], python: Callable[..., Any]
) -> None:
    module, function, nth, words = PHASES[phase]
    # Every epoch is saved, and each save waits for the one before it: by the third epoch the first is on the disk.
    words = (*words, "checkpoint.keep=3", "device.deterministic=true")
    assert dlrun(*words, "hydra.run.dir=whole").code == 0
    script = (
        f"import sys, signal, time; import {module} as module; from dlrun.cli.main import main\n"
        f"original, calls = module.{function}, []\n"
        "def replaced(*args, **kwargs):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == {nth**2}:\n"  # a step of the third epoch
        "        signal.raise_signal(signal.SIGINT); signal.raise_signal(signal.SIGINT); time.sleep(60)\n"
        "    return original(*args, **kwargs)\n"
        f"module.{function} = replaced\n"
        f"sys.argv = ['dlrun', *{words!r}, 'hydra.run.dir=run']; sys.exit(main())"
    )
    outcome = python("-c", script)
    assert outcome.code == -signal.SIGINT, outcome.err  # a shell says 130
    assert not Path("run/result.json").exists()
    resumed = dlrun("resume", "run")
    assert resumed.code == 0, resumed.err
    assert read_results(Path("run")) == read_results(Path("whole"))


SIGNALLED = """
import os, signal, sys
from dlrun.cli.main import main
from dlrun.engine.state import TrainState

log_model_metrics = TrainState.log_model_metrics


def send_and_log(state):
    if state.progress.step == {step}:
        os.killpg(0, signal.{name})
    log_model_metrics(state)


TrainState.log_model_metrics = send_and_log
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_to_the_whole_process_group_leaves_the_workers_at_work(
    name: str, dlrun: Callable[..., Any], warm: Any, tmp_path: Path
) -> None:
    words = (*WORDS, "trainer.epochs=5", "data.loader=workers", "data.num_workers=2", "checkpoint.every_steps=1")
    # Sent by the run itself, in a step of the second epoch: from outside it may come after the end.
    script = SIGNALLED.format(name=name, step=6)
    process = warm.start("-c", script, *words, "hydra.run.dir=run", cwd=tmp_path, start_new_session=True)
    code = process.wait(timeout=300)
    assert code == 128 + signal.Signals[name], process.out + process.err
    assert process.err.count("interrupted") == 1, process.err
    assert "dlrun resume run" in process.out
    assert json.loads(Path("run/result.json").read_text())["status"] == "interrupted"
    assert dlrun("resume", "run").code == 0
    assert dlrun(*words, "hydra.run.dir=whole").code == 0
    assert read_results(Path("run")) == read_results(Path("whole"))


# The first process of a session of its own, with a terminal of its own, as a shell's is.
IN_A_TERMINAL = (
    "import os, signal, sys; os.login_tty(0); signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    "from dlrun.cli.main import main; sys.exit(main())"
)
UNDER_NOHUP = (
    "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    "from dlrun.cli.main import main; sys.exit(main())"
)


@pytest.mark.slow
def test_a_lost_terminal_saves(dlrun: Callable[..., Any], warm: Any, tmp_path: Path) -> None:
    words = (*WORDS, "trainer.epochs=100000", "checkpoint.every_epochs=100000", "hydra.run.dir=run")
    terminal, inside = os.openpty()
    process = warm.start("-c", IN_A_TERMINAL, *words, cwd=tmp_path, stdin=inside)
    os.close(inside)
    try:
        wait_for(tmp_path / "run" / "metrics.jsonl")
        os.set_blocking(terminal, False)
    finally:
        os.close(terminal)  # the kernel sends SIGHUP, and what is written to the terminal fails from here on
    assert process.wait(timeout=300) == 129
    assert json.loads(Path("run/result.json").read_text())["status"] == "interrupted"
    assert list(Path("run/checkpoints").glob("step_*.pt"))


@pytest.mark.slow
def test_under_nohup_a_lost_terminal_is_nothing(dlrun: Callable[..., Any], warm: Any, tmp_path: Path) -> None:
    words = (*WORDS, "trainer.epochs=50", "hydra.run.dir=run")
    process = warm.start("-c", UNDER_NOHUP, *words, cwd=tmp_path)
    wait_for(tmp_path / "run" / "metrics.jsonl")
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=300) == 0
    assert json.loads(Path("run/result.json").read_text())["status"] == "completed"


def test_what_only_looks_ends_without_a_word(dlrun: Callable[..., Any], interrupt_at_call: Callable[..., None]) -> None:
    assert dlrun(*WORDS, "hydra.run.dir=run").code == 0
    interrupt_at_call("dlrun.engine.trainer", "evaluate", 1, lambda: signal.raise_signal(signal.SIGUSR1))
    outcome = dlrun("eval", "run", "figures=false")
    assert (outcome.code, outcome.err) == (138, "")
    assert not Path("run/eval").exists()


def wait_for(path: Path, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        ("sys.exit(3)", "SystemExit: 3"),
        pytest.param("{}['lost']", "KeyError: 'lost'", marks=pytest.mark.slow),
    ],
)
def test_a_crash_in_the_model_keeps_the_last_checkpoint(
    act: str, message: str, dlrun: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crashing.py").write_text(NET)
    words = ("data=line", "model._target_=crashing.Net", "data.batch_size=16", f"+model.on_call={json.dumps(act)}")
    outcome = dlrun(
        *words, "checkpoint.every_steps=1", "trainer.epochs=9", "preflight=false", "hydra.run.dir=run", *QUIET
    )
    del sys.modules["crashing"]
    assert outcome.code == 1
    assert message in outcome.err
    result = json.loads(Path("run/result.json").read_text())
    assert result["status"] == "failed"
    assert message in result["error"]
    assert "Traceback" in Path("run/run.log").read_text()
    steps = [int(path.stem.removeprefix("step_")) for path in Path("run/checkpoints").glob("step_*.pt")]
    assert max(steps) == result["steps"] == 8


def test_sys_exit_before_the_run_is_a_sentence(
    dlrun: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaving.py").write_text(NET)
    outcome = dlrun("data=line", "model._target_=leaving.Net", "+model.on_build='sys.exit(0)'", *QUIET)
    del sys.modules["leaving"]
    assert outcome.code == 2
    assert "sys.exit(0)" in outcome.err
    assert not Path("outputs").exists()


@pytest.mark.slow
def test_a_killed_worker_fails_the_run_in_a_sentence(command: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text(
        "import os, signal, torch\n"
        "from torch.utils.data import Dataset, get_worker_info\n"
        "from dlrun.data.spec import DataSpec, Split, Splits\n"
        "class Rows(Dataset):\n"
        "    targets = torch.zeros(64)\n"
        "    def __len__(self): return 64\n"
        "    def __getitem__(self, row):\n"
        "        if row == 63 and get_worker_info(): os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return torch.zeros(1), torch.tensor(0.0)\n"
        "def rows():\n"
        "    return Splits(Rows(), None, None, DataSpec('vector', (1,), 'regression', 1))\n"
    )
    words = ("data._target_=deadly.rows", "data.loader=workers", "data.num_workers=1", "data.val_fraction=0")
    outcome = command(*words, "model=linear", "data.shuffle=false", "data.batch_size=8", "hydra.run.dir=run", *QUIET)
    assert outcome.code == 1, outcome.out + outcome.err
    assert "Traceback" not in outcome.err
    assert "worker" in outcome.err
    assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "failed"
    assert "Traceback" in (tmp_path / "run/run.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["step", "figures"])
def test_in_a_sweep_the_first_ctrl_c_ends_this_job_and_the_sweep(
    phase: str, dlrun: Callable[..., Any], interrupt_at_call: Callable[..., None]
) -> None:
    module, function, nth, words = PHASES[phase]
    interrupt_at_call(module, function, nth, lambda: signal.raise_signal(signal.SIGINT))
    # A sweep draws no pictures of a job that nobody asks for.
    outcome = dlrun("-m", *words, "seed=0,1,2", "hydra.sweep.dir=sweep", "figures=true")
    assert outcome.code == 130, outcome.err
    (only,) = Path("sweep").glob("*/result.json")
    assert json.loads(only.read_text())["status"] == ("completed" if phase == "figures" else "interrupted")
    assert dlrun("resume", str(only.parent)).code == 0
    assert json.loads(only.read_text())["status"] == "completed"
