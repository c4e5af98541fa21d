"""Shell completion: what the Tab key answers, in real shells, and from which files it knows."""

import contextlib
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.cli import completion
from dlrun.cli.commands import DLRUN
from dlrun.cli.completion import read_keys
from dlrun.config.compose import GROUPS, compose_config
from dlrun.config.explain import iter_keys
from dlrun.config.schema import CONFIG_DIR
from dlrun.inference.export.command import FORMATS
from dlrun.inference.predict import writers


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two runs, and a sweep of one job."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "2026-11-20/03-00-00_mlp_blobs",
        "2026-11-21/04-00-00_cnn_mnist",
        "multirun/2026-11-21/05-00-00/0_seed=0",
    ):
        Path("outputs", name).mkdir(parents=True)
        Path("outputs", name, "result.json").touch()
    Path("outputs/multirun/2026-11-21/05-00-00/sweep.jsonl").touch()
    return tmp_path


RUNS = ["outputs/2026-11-21/04-00-00_cnn_mnist", "outputs/2026-11-20/03-00-00_mlp_blobs"]
SWEEP = "outputs/multirun/2026-11-21/05-00-00"


def complete_line(shell: str, line: str) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMP_WORDS", line)
        return completion.make_completion(shell, DLRUN).complete().splitlines()


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("dlrun model=re", ["model=resnet"]),
        ("dlrun data=digits -m model=cnn,re", ["model=cnn,resnet"]),
        ("dlrun trainer.ep", ["trainer.epochs="]),
        ("dlrun trainer.early", ["trainer.early_stopping."]),
        ("dlrun device.precision=f", ["device.precision=fp32", "device.precision=fp16", "device.precision=fp64"]),
        ("dlrun tracking.graph=", ["tracking.graph=true", "tracking.graph=false"]),
        ("dlrun model=gru model.bi", ["model.bidirectional="]),
        ("dlrun model=gru model.bidirectional=t", ["model.bidirectional=true"]),
        ("dlrun model=mlp model.bidir", []),
        ("dlrun eva", ["eval"]),
        ("dlrun data=digits eva", []),
        ("dlrun --config", ["--config-dir"]),
        ("dlrun eval ", [f"{SWEEP}/", *RUNS]),
        ("dlrun eval outputs/2026-11-20/", RUNS[1:]),
        (f"dlrun eval {SWEEP}/", [f"{SWEEP}/0_seed=0"]),
        (f"dlrun eval {RUNS[0]} data=fas", ["data=fashion_mnist"]),
        ("dlrun resume ", [SWEEP, *RUNS]),
        (f"dlrun resume {RUNS[0]} trainer.ep", ["trainer.epochs="]),
        (f"dlrun diff {RUNS[0]} outputs/2026-11-20", RUNS[1:]),
        ("dlrun init_from=outputs/2026-11-20", [f"init_from={RUNS[1]}"]),
        ("dlrun ls ru", ["runs"]),
        ("dlrun ls runs status=fa", ["status=failed"]),
        ("dlrun ls runs so", ["sort="]),
        ("dlrun ls runs format=j", ["format=json"]),
        (f"dlrun diff {RUNS[0]} {RUNS[1]} form", ["format="]),
        ("dlrun clean status=failed,em", ["status=failed,empty"]),
        ("dlrun clean --y", ["--yes"]),
        ("dlrun ls runs --so", ["--sort"]),
        ("dlrun ls runs --format ", ["table", "json", "csv"]),
        ("dlrun compare outputs --format=j", ["--format=json"]),
        (f"dlrun eval {RUNS[0]} split=t", ["split=train", "split=test"]),
        ("dlrun check gr", ["gradients"]),
        ("dlrun check lr data=blo", ["data=blobs"]),
        (f"dlrun show {RUNS[0]} ", ["format="]),
        ("dlrun check re", ["resume", "resume="]),
        ("dlrun check model=res", ["model=resnet"]),
        ("dlrun completion z", ["zsh"]),
        ("dlrun 'model.hid", ["model.hidden_sizes="]),
        ("dlrun logger=mlflow logger.mlflow.tr", ["logger.mlflow.tracking_uri="]),
        ("dlrun logger=[csv,mlflow] logger.mlflow.art", ["logger.mlflow.artifacts="]),
    ],
)  # fmt: skip
def test_how_a_line_goes_on(place: Path, line: str, candidates: list[str]) -> None:
    assert complete_line("zsh", line) == candidates
    assert complete_line("fish", line) == candidates


def test_every_command_group_and_key_is_offered(place: Path) -> None:
    first = complete_line("bash", "dlrun ")
    assert {"resume", "ls", "eval", "completion"} <= set(DLRUN.commands) - {"train"} <= set(first)
    assert {f"{group}=" for group in GROUPS} <= set(first)
    for group in GROUPS:
        options = {path.stem for path in (CONFIG_DIR / group).glob("*.yaml")}
        assert set(complete_line("bash", f"dlrun {group}=")) == options
    composed = [
        key for key in iter_keys(compose_config(["model=gru", "data=names", "scheduler=step"])) if "_target_" not in key
    ]
    leaves = {key for key in composed if not any(other.startswith(f"{key}.") for other in composed)}
    assert leaves - set(read_keys(["model=gru", "data=names", "scheduler=step"])) == set()


def test_the_formats_of_export_and_predict_are_offered(place: Path) -> None:
    assert complete_line("zsh", f"dlrun export {RUNS[0]} form") == ["format="]
    assert complete_line("bash", f"dlrun export {RUNS[0]} format=") == list(FORMATS)
    assert complete_line("bash", f"dlrun predict {RUNS[0]} format=") == list(writers.FORMATS)


def test_options_of_the_users_own_are_offered(place: Path) -> None:
    Path("my/model").mkdir(parents=True)
    Path("my/model/mine.yaml").write_text("_target_: mynet.Net\nwidth: 3\n")
    assert complete_line("bash", "dlrun --config-dir my model=mi") == ["mine"]
    assert complete_line("bash", "dlrun --config-dir my model=mine model.wi") == ["model.width="]


def test_bash_gets_what_stands_behind_its_word_break(place: Path) -> None:
    assert complete_line("bash", "dlrun model=re") == ["resnet"]
    Path("outputs/2026-11-20/03-00-00_mlp_blobs").rename("outputs/with space")
    assert complete_line("bash", "dlrun eval outputs/w") == ["'outputs/with space'"]


@pytest.mark.parametrize("question", ["bash_complete", "nushell_complete", "bash"])
def test_a_question_without_an_answer(
    dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    monkeypatch.setenv(completion.VARIABLE, question)
    monkeypatch.setenv("COMP_WORDS", "dlrun nothing=like th")
    outcome = dlrun()
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


def test_which_shell(dlrun: Callable[..., Any]) -> None:
    for words in ((), ("nushell",), ("bash", "zsh")):
        outcome = dlrun("completion", *words)
        assert (outcome.code, outcome.out) == (2, "")
        assert 'type eval "$(dlrun completion bash)", or one of bash, zsh, fish' in outcome.err


@pytest.mark.slow
def test_torch_is_not_imported(place: Path) -> None:
    code = "import sys; from dlrun.cli.main import main; c = main(); assert 'torch' not in sys.modules; sys.exit(c)"
    question = {completion.VARIABLE: "bash_complete", "COMP_WORDS": "dlrun eval outputs/2026-11-20"}
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **question}
    )
    assert (outcome.returncode, outcome.stdout) == (0, f"{RUNS[1]}\n"), outcome.stderr


@pytest.fixture
def on_path(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command `dlrun` for a shell to find."""
    command = place / "bin/dlrun"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m dlrun "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    return command


@pytest.mark.slow
def test_bash_calls_the_function(on_path: Path) -> None:
    script = """
        eval "$(dlrun completion bash)"
        COMP_LINE='dlrun data=digits model=re and more'; COMP_POINT=26
        COMP_WORDS=(dlrun data = digits model = re); COMP_CWORD=6
        _dlrun; printf '%s|' "${COMPREPLY[@]}"
        complete -p dlrun
    """
    outcome = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True)
    assert outcome.stdout == "resnet|complete -o default -o nosort -F _dlrun dlrun\n", outcome.stderr


class Terminal:
    """A shell in a terminal, to which keys are sent."""

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        self.process, self.handle = pty.fork()
        if self.process == 0:
            os.execvpe(words[0], words, environment)
        self.output = ""

    def press(self, keys: str, until: str) -> str:
        """What the terminal shows after some keys, as soon as it shows `until`."""
        self.output = ""
        os.write(self.handle, keys.encode())
        deadline = time.monotonic() + 30
        while until not in self.output and time.monotonic() < deadline:
            if select.select([self.handle], [], [], 0.2)[0]:
                self.output += os.read(self.handle, 4096).decode(errors="replace")
        assert until in self.output, self.output
        return self.output

    def close(self) -> None:
        os.kill(self.process, 9)
        os.waitpid(self.process, 0)
        with contextlib.suppress(OSError):
            os.close(self.handle)


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed here")
def test_fish_calls_the_function(on_path: Path) -> None:
    script = """
        dlrun completion fish | source
        complete --do-complete "dlrun data=digits -m model=cnn,re"
        complete --do-complete "dlrun trainer.epo"
        complete --do-complete "dlrun eval outputs/2026-11-20/"
        complete --do-complete "dlrun eval outputs/2026-11-20/03-00-00_mlp_blobs/resu"
    """
    outcome = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, text=True)
    assert outcome.stdout.splitlines() == ["model=cnn,resnet", "trainer.epochs=", RUNS[1], f"{RUNS[1]}/result.json"]


@pytest.mark.slow
@pytest.mark.parametrize("words", [["bash", "--norc", "-i"], ["zsh", "-f", "-i"]], ids=["bash", "zsh"])
def test_the_tab_key_of_a_real_shell(on_path: Path, words: list[str]) -> None:
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed here")
    shell = Terminal(
        words, {**os.environ, "TERM": "dumb", "PS1": "$ ", "INPUTRC": "/dev/null", "HOME": str(on_path.parent)}
    )
    try:
        shell.press(f'eval "$(dlrun completion {words[0]})"; echo rea""dy\n', "ready")
        shell.press("dlrun model=resn\t", "model=resnet ")
        shell.press("trainer.epo\t", "trainer.epochs=")
        shell.press("3\x15", "")
        shell.press("dlrun eval outputs/2026-11-20/\t", RUNS[1])
        shell.press("\x7f/resu\t", "result.json")  # no run: files, as ever
    finally:
        shell.close()
