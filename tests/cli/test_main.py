"""The command line as users meet it: help, lists, exit codes, launch styles."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dlrun.config.compose import GROUPS
from dlrun.config.schema import CONFIG_DIR

QUICK = ("data=line", "model=linear", "trainer.epochs=1", "tracking.graph=false", "figures=false")


def test_help_names_every_group_and_command(dlrun: Callable) -> None:
    outcome = dlrun("--help")
    assert outcome.code == 0
    assert all(word in outcome.out for word in (*GROUPS, "resume", "eval", "ls", "-m", "--config-dir"))
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_ls_lists_every_option_with_a_few_words(dlrun: Callable) -> None:
    outcome = dlrun("ls")
    # Other folders hold what is no choice of the user's.
    paths = [path for group in GROUPS for path in CONFIG_DIR.glob(f"{group}/*.yaml")]
    assert len(paths) > 50
    for path in paths:
        line = next(line for line in outcome.out.splitlines() if line.split()[:1] == [path.stem])
        assert len(line.split()) > 2, path


def test_ls_of_one_group(dlrun: Callable) -> None:
    outcome = dlrun("ls", "scheduler")
    assert [line.split()[0] for line in outcome.out.splitlines()] == [
        "cosine", "exponential", "multistep", "none", "one_cycle", "plateau", "step",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["--help"], ["ls"], ["--cfg", "job"], ["--cfg", "job", "model=resnet", "lesson=resnet_mnist"]]
)
def test_answers_without_torch(words: list[str], tmp_path: Path) -> None:
    code = "import sys; from dlrun.cli.main import main; c = main(); assert 'torch' not in sys.modules; sys.exit(c)"
    outcome = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout
    assert not list(tmp_path.iterdir())


def test_cfg_shows_the_contract_keys(dlrun: Callable) -> None:
    outcome = dlrun("--cfg", "job", "--package", "trainer")
    assert outcome.code == 0
    assert "accumulate_steps: 1" in outcome.out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (QUICK, 0),
        (("modle=linear",), 2),
        ((*QUICK, "optimizer=sgd", "optimizer.lr=1e20"), 1),
        pytest.param(("-m", "optimizer.lr=0.1,1e30", "optimizer=sgd", *QUICK), 1, marks=pytest.mark.slow),
        (("resume",), 2),
        (("eval", "nothing"), 2),
    ],
)
def test_exit_codes(dlrun: Callable, words: tuple[str, ...], code: int) -> None:
    outcome = dlrun(*words)
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.out + outcome.err


def test_traceback_on_request_only(dlrun: Callable) -> None:
    assert "Traceback" not in dlrun("modle=linear").err
    assert "Traceback" in dlrun("-v", "modle=linear").err


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    line = f"{sys.executable} -m dlrun ls | head -n 1; exit ${{PIPESTATUS[0]}}"
    outcome = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path)
    assert (outcome.returncode, outcome.stderr) == (0, "")


@pytest.mark.slow
def test_the_command_runs_from_another_directory(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("dlrun")
    if not script.exists():
        pytest.skip("dlrun is not installed as a command here")
    outcome = subprocess.run([script, *QUICK], capture_output=True, text=True, cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert len(list((tmp_path / "outputs").glob("*/*/result.json"))) == 1


@pytest.mark.slow
def test_multirun_makes_a_folder_a_job_under_one_sweep_folder(dlrun: Callable, tmp_path: Path) -> None:
    outcome = dlrun("-m", "optimizer=sgd,adam", *QUICK)
    assert outcome.code == 0
    (sweep,) = (tmp_path / "outputs" / "multirun").glob("*/*")
    jobs = sorted(p.name for p in sweep.iterdir() if p.is_dir())
    assert [job.split("_")[0] for job in jobs] == ["0", "1"]
    assert all((sweep / job / "result.json").exists() for job in jobs)
    assert all(f"optimizer={name}" in job for name, job in zip(["sgd", "adam"], jobs, strict=True))


@pytest.mark.slow
def test_a_failing_job_is_said_at_once_and_the_others_go_on(dlrun: Callable, tmp_path: Path) -> None:
    outcome = dlrun("-m", "optimizer=sgd", "optimizer.lr=1e30,0.1", *QUICK)
    assert outcome.code == 1
    assert re.search(r"1/2  optimizer.lr=1e\+30: FAILED: the loss is", outcome.out)
    assert "log: " in outcome.out or "run.log" in outcome.out
    statuses = [p.read_text().split('"status": "')[1].split('"')[0] for p in sorted(tmp_path.rglob("result.json"))]
    assert statuses == ["failed", "completed"]


@pytest.mark.slow
def test_job_k_of_a_sweep_equals_the_job_alone(dlrun: Callable, tmp_path: Path) -> None:
    words = (
        "data=blobs",
        "model=mlp",
        "model.dropout=0.3",
        "trainer.epochs=2",
        "figures=false",
        "tracking.graph=false",
    )
    alone = dlrun("optimizer=adam", *words).result["weights_sha256"]
    dlrun("-m", "optimizer=sgd,adam", *words)
    (job,) = (tmp_path / "outputs" / "multirun").glob("*/*/1_*/result.json")
    assert alone in job.read_text()


@pytest.mark.slow
def test_piped_output_of_python_m_fits_and_is_plain(command: Callable) -> None:
    words = ("data=blobs", "trainer.epochs=2", "figures=false", "tracking.graph=false")
    outcome = command(*words, env={**os.environ, "COLUMNS": "80"})
    assert "\x1b[" not in outcome.out
    assert [line for line in outcome.out.splitlines() if line.startswith("epoch")] != []
    tables = [line for line in outcome.out.splitlines() if line.startswith(" ")]
    assert max(map(len, tables)) <= 80


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("check", "gradients", "model=scratch_mlp", "data=blobs"), 0, "all gradients agree"),
        (("check", "gradients", "model=mlp", "data=blobs"), 2, "scratch_mlp"),
        (("check", "gradient"), 2, "'gradient' is neither a command nor key=value"),
        (("check", "data=blobs"), 0, "ready"),
        (("check", "data=blobs", "optimizer.lr=-1"), 2, "optimizer.lr=-1"),
        (("optimizer=exhaustive", "data=blobs"), 2, "at most 2 parameters"),
    ],
)
def test_checks_and_what_they_refuse(dlrun: Callable, words: tuple[str, ...], code: int, message: str) -> None:
    outcome = dlrun(*words)
    assert outcome.code == code
    assert message in outcome.out + outcome.err
    assert "Traceback" not in outcome.err


ENDING = """
import atexit, sys, types
from dlrun.cli import main

class Loud:
    def __del__(self):
        print("freed")

loud = Loud()
loud.itself = loud
sys.modules["torch"] = types.ModuleType("torch")
atexit.register(print, "at exit")
main.main = lambda: print("said", end=" ") or 3
sys.exit(main.run())
"""


def test_the_process_ends_without_freeing_all_that_it_holds() -> None:
    process = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True)
    assert process.returncode == 3, process.stderr
    assert process.stdout == "said at exit\n"
