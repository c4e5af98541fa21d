"""What dlrun tells its user to type works where it is told: in a shell, from Python, in a notebook."""

import html
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dlrun as library

QUICK = ("data=blobs", "model=mlp", "trainer.epochs=1", "data.limit_batches=2", "tracking.graph=false", "figures=false")
ODD = "runs/a b (1) 'x' $HOME"


def tell(out: str, name: str) -> str:
    """What stands behind a name among the facts that a run ends with."""
    return next(line for line in out.splitlines() if line.startswith(name)).removeprefix(name).strip()


def take(dlrun: Callable, line: str) -> None:
    """Type a line of the shell that begins with dlrun."""
    words = shlex.split(line)
    assert words[0] == "dlrun"
    outcome = dlrun(*words[1:])
    assert outcome.code == 0, outcome.err


@pytest.mark.slow
@pytest.mark.parametrize("folder", [ODD])
def test_what_a_run_ends_with_can_be_typed(dlrun: Callable, folder: str) -> None:
    outcome = dlrun(*QUICK, f'hydra.run.dir="{folder}"')
    assert outcome.code == 0, outcome.err
    assert Path(folder, "result.json").is_file()
    take(dlrun, tell(outcome.out, "evaluate"))
    watched = shlex.split(tell(outcome.out, "view"))
    assert watched[:2] == ["tensorboard", "--logdir"]
    assert list(Path(watched[2]).rglob("events.out.tfevents.*"))
    take(dlrun, tell(outcome.out, "continue"))
    finished = dlrun("resume", folder)
    take(dlrun, finished.out.partition("type ")[2].strip().replace("=...", "=3"))


@pytest.mark.parametrize("folder", [ODD])
def test_a_change_that_resume_refuses_can_be_made_by_a_new_run(dlrun: Callable, folder: str) -> None:
    assert dlrun(*QUICK, f'hydra.run.dir="{folder}"').code == 0
    refused = dlrun("resume", folder, "seed=3")
    assert refused.code == 2
    line = refused.err[refused.err.index("dlrun ", 6) :].strip()
    take(dlrun, line.replace(" ...", f" {' '.join(QUICK)} seed=3"))
    with pytest.raises(library.RequestError) as caught:
        library.train(f"resume={folder}", "seed=3", quiet=True)
    call = str(caught.value).partition("from its weights: ")[2].replace(", ...", ", *QUICK, quiet=True")
    assert eval(call, {"dlrun": library, "QUICK": QUICK}).folder is not None


def test_a_folder_in_use_names_a_resume_that_works(dlrun: Callable) -> None:
    assert dlrun(*QUICK, "hydra.run.dir=run").code == 0
    refused = dlrun(*QUICK, "hydra.run.dir=run")
    assert refused.code == 2
    take(dlrun, refused.err[refused.err.index("dlrun resume") :].strip())


NOTEBOOK = """
import contextlib, io, torch
import dlrun

class Mine(torch.nn.Linear):
    def __init__(self, spec):
        super().__init__(spec.input_size, spec.output_size)

words = ("model._target_=__main__.Mine", {quick})
said = io.StringIO()
with contextlib.redirect_stdout(said):
    run = dlrun.train(*words)
facts = dict(line.split("  ", 1) for line in said.getvalue().splitlines() if line.startswith(("evaluate", "continue")))
loaded = eval(facts["evaluate"])
assert loaded.result["weights_sha256"] == run.result["weights_sha256"]
longer = eval(facts["continue"])
assert len(longer.history) == 2, longer.history
with contextlib.redirect_stdout(said):
    eval(facts["continue"])  # which is finished by now
again = said.getvalue().rpartition("type ")[2].strip().replace("=...", "=3")
assert len(eval(again.replace(")", ", 'trusted_modules=[__main__]')")).history) == 3

try:
    dlrun.load(run.folder)
except dlrun.RequestError as error:
    word = str(error).partition("add ")[2]
    assert eval(f"dlrun.load(run.folder, {{word}})").history
try:
    dlrun.train(f"resume={{run.folder}}", "trainer.epochs=4")
except dlrun.RequestError as error:
    word = str(error).partition("add ")[2]
    assert len(eval(f"dlrun.train('resume={{run.folder}}', 'trainer.epochs=4', {{word}})").history) == 4
assert dlrun.load(run.folder, trusted_modules="__main__").history
print(run.folder)
"""


@pytest.mark.slow
def test_after_a_training_in_a_notebook_calls_are_printed(python: Callable, dlrun: Callable, tmp_path: Path) -> None:
    outcome = python("-c", NOTEBOOK.format(quick=", ".join(map(repr, QUICK))))
    assert outcome.code == 0, outcome.err
    folder = outcome.out.splitlines()[-1]
    for trust in ((), ("trusted_modules=[__main__]",)):
        refused = dlrun("eval", folder, *trust)
        assert refused.code == 2
        assert "Mine is defined in a script or a notebook; load the run there" in refused.err
        assert "Traceback" not in refused.err


@pytest.mark.parametrize("table", ["csv", pytest.param("digits", marks=pytest.mark.slow)])
def test_the_calls_that_the_readme_shows_work_for_floats_of_any_kind(dlrun: Callable, table: str) -> None:
    np.savetxt("rows.csv", np.random.default_rng(0).normal(size=(60, 3)), delimiter=",", header="a,b,c", comments="")
    data = ("data=csv", "data.path=rows.csv", "data.target=c") if table == "csv" else ("data=digits",)
    run = library.train(*data, *QUICK[1:], quiet=True)
    some = run.splits.test.inputs[0][:5]
    assert run.model(some).shape[0] == len(some)
    assert run.predict(some).values is not None or run.predict(some).labels


def test_ls_runs_of_a_folder_that_is_not_there(dlrun: Callable) -> None:
    outcome = dlrun("ls", "runs", "nosuch")
    assert outcome.code == 2
    assert "there is no folder nosuch" in outcome.err


@pytest.mark.slow
def test_the_report_of_an_extended_sweep_names_commands_that_make_it(dlrun: Callable, tmp_path: Path) -> None:
    assert dlrun("-m", "seed=0,1", *QUICK, "sweep.dir=runs/sweep").code == 0
    assert dlrun("resume", "runs/sweep", "seed=2").code == 0
    page = html.unescape(Path("runs/sweep/report.html").read_text())
    command = re.search(r"dlrun -m [^<]*", page)
    assert command is not None
    (tmp_path / "elsewhere").mkdir()
    Path("runs").rename("before")
    for line in command[0].split(" && "):
        take(dlrun, line.strip())
    folders = {path.name for path in Path("runs/sweep").iterdir() if path.is_dir() and path.name != "figures"}
    assert folders == {path.name for path in Path("before/sweep").iterdir() if path.is_dir() and path.name != "figures"}
    assert len(folders) == 3
