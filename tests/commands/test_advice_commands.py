"""Advice about saved runs, sweeps, learning trouble and calls from Python is taken as it is printed."""

import ast
import dataclasses
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dlrun as library
from dlrun.config import explain
from dlrun.config import schema as config
from dlrun.config.compose import compose_config
from dlrun.config.schema import CONFIG_DIR
from dlrun.data.spec import DataSpec
from dlrun.experiment.callbacks import diagnostics
from dlrun.experiment.preflight import final_activation

pytestmark = pytest.mark.usefixtures("comparison_without_pictures")
PACKAGE = Path(library.__file__).parent
QUICK = ("trainer.epochs=1", "data.limit_batches=2", "tracking.graph=false", "figures=false")
TINY = ("data=blobs", "model=mlp", *QUICK)
Take = Callable[..., Any]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run and a sweep of two lie as soon as a test has made them."""
    return tmp_path_factory.mktemp("shelf") / "runs"


@pytest.fixture
def run_beside_runs(dlrun: Take, shelf: Path) -> Take:
    """The command line, where runs/one is a run and runs/sweep a sweep."""
    if not shelf.exists():
        assert dlrun(*TINY, "hydra.run.dir=runs/one").code == 0
        assert dlrun("-m", "seed=0,1", *TINY, "sweep.dir=runs/sweep").code == 0
        shutil.copytree("runs", shelf)
    else:
        shutil.copytree(shelf, "runs")
    return dlrun


def take(dlrun: Take, line: str, *more: str) -> Any:
    """Type a line of the shell that begins with dlrun."""
    words = shlex.split(line)
    assert words[0] == "dlrun"
    outcome = dlrun(*words[1:], *more)
    assert outcome.code == 0, outcome.err
    return outcome


def refusal(outcome: Any, code: int = 2) -> str:
    assert outcome.code == code, outcome.out
    return str(outcome.err.strip())


@pytest.mark.slow
def test_a_command_that_another_kind_of_folder_needs(run_beside_runs: Take) -> None:
    message = refusal(run_beside_runs("diff", "runs/sweep", "runs/one"))
    take(run_beside_runs, re.findall(r"dlrun compare \S+", message)[0])
    shutil.rmtree("runs/sweep/figures", ignore_errors=True)
    Path("runs/sweep/sweep.jsonl").unlink()
    message = refusal(run_beside_runs("resume", "runs/sweep"))
    take(run_beside_runs, message.partition("type ")[2])


@pytest.mark.slow
def test_a_run_that_saved_nothing_names_the_command_that_makes_it(run_beside_runs: Take) -> None:
    shutil.rmtree("runs/one/checkpoints")
    for file in ("result.json", "metrics.jsonl"):
        Path("runs/one", file).unlink()
    message = refusal(run_beside_runs("resume", "runs/one"))
    assert "delete runs/one and " in message
    shutil.rmtree("runs/one")
    assert take(run_beside_runs, message[message.index("dlrun data=") :]).folder == Path("runs/one")


@pytest.mark.slow
def test_the_command_that_removes_what_clean_shows(run_beside_runs: Take) -> None:
    outputs = "paths.outputs=runs"
    shown = run_beside_runs("clean", "runs", "status=completed", outputs)
    assert shown.code == 0, shown.err
    take(run_beside_runs, shown.out.strip().rpartition("type ")[2])
    assert not Path("runs/one").exists()


@pytest.mark.parametrize(
    "command",
    [
        "predict",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("eval", "resume", "export", "compare", "diff")),
    ],
)
def test_an_example_for_a_command_without_its_run(command: str, run_beside_runs: Take) -> None:
    message = refusal(run_beside_runs(command))
    line = re.findall(r"dlrun \w+[^,:;]*", message)[-1]
    for blank, value in (("outputs/<date>/<run>", "runs/one"), ("INPUT ...", "0.5,-1.5"), ("outputs", "runs")):
        line = line.replace(blank, value)
    take(run_beside_runs, line)


def test_an_example_of_predict_without_input(run_beside_runs: Take) -> None:
    message = refusal(run_beside_runs("predict", "runs/one"))
    line = message.partition("type ")[2].partition(":")[0]
    take(run_beside_runs, line.replace("INPUT ...", "0.5,-1.5"))


WRONG = [  # what stays of the command, what is wrong with it, and what stands in place of a blank
    (("predict", "runs/one", "0.5,-1.5"), ("--top", "0"), {}),
    (("predict", "runs/one", "0.5,-1.5"), ("--top",), {}),
    (("predict", "runs/one", "0.5,-1.5"), ("--format",), {}),
    (("ls", "runs", "runs"), ("--last", "none"), {}),
    (("ls", "runs", "runs"), ("status=",), {" or model=resnet; not status=": ""}),
    (("clean", "runs"), (), {"...": "."}),
    (("-m", "seed=0", *TINY), ("sweep.jobs=0",), {}),
    (("-m", "seed=0", *TINY), ("resume=auto",), {"<folder>": "new"}),
]


@pytest.mark.parametrize(
    ("stays", "wrong", "blanks"),
    [case if i in (0, 6) else pytest.param(*case, marks=pytest.mark.slow) for i, case in enumerate(WRONG)],
    ids=lambda words: " ".join(words)[-20:],
)
def test_what_is_to_be_typed_in_place_of_a_wrong_word(
    stays: tuple[str, ...], wrong: tuple[str, ...], blanks: dict[str, str], run_beside_runs: Take
) -> None:
    message = refusal(run_beside_runs(*stays, *wrong))
    advice = re.split(r"\b(?:type|as in) ", message)[-1]
    for blank, value in blanks.items():
        advice = advice.replace(blank, value)
    outcome = run_beside_runs(*stays, *shlex.split(advice))
    assert outcome.code == 0, outcome.err


@pytest.mark.slow
def test_another_sweep_can_be_added_to_the_one_that_is_there(run_beside_runs: Take) -> None:
    message = refusal(run_beside_runs("-m", "optimizer.lr=0.1,0.2", *TINY, "sweep.dir=runs/sweep"))
    line = message[message.index("dlrun resume") :]
    outcome = take(run_beside_runs, line.replace("<key>=<values>", "seed=2"))
    assert len([path for path in Path("runs/sweep").iterdir() if (path / "result.json").is_file()]) == 3, outcome.out


@pytest.mark.slow
def test_a_folder_that_holds_no_sweep_is_left_for_a_new_one(run_beside_runs: Take) -> None:
    message = refusal(run_beside_runs("-m", "seed=0,1", *TINY, "sweep.dir=runs/one"))
    word = message.partition("type ")[2].replace("<a new folder>", "new")
    assert word == "sweep.dir=new"
    assert run_beside_runs("-m", "seed=0", *TINY, word).code == 0


def test_a_damaged_ledger_is_mended_or_left_as_its_sentence_says(run_beside_runs: Take) -> None:
    ledger = Path("runs/sweep/sweep.jsonl")
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join([*lines[:-1], lines[-1][:-7]]))
    message = refusal(run_beside_runs("resume", "runs/sweep"))
    assert f"line {len(lines)}, which holds the status of a job; delete that line and type the command again" in message
    ledger.write_bytes(b"".join(lines[:-1]))
    assert run_beside_runs("resume", "runs/sweep").code == 0

    ledger.write_bytes(lines[0] + lines[1][:9])
    message = refusal(run_beside_runs("resume", "runs/sweep"))
    assert "type it again with another sweep.dir" in message
    take(run_beside_runs, re.findall(r"dlrun compare \S+", message)[0])


@pytest.mark.slow
def test_what_a_comparison_says_to_add(run_beside_runs: Take) -> None:
    outcome = run_beside_runs("compare", "runs/sweep")
    assert outcome.code == 0
    outcome = run_beside_runs("compare", "runs/one", "runs/sweep")
    message = outcome.out[outcome.out.index("nothing can be told apart") :] if "told apart: add" in outcome.out else ""
    word = shlex.split(message.partition("add ")[2].splitlines()[0])[0] if message else "seed=range(5)"
    assert run_beside_runs("check", "-m", *TINY, word).code == 0


@pytest.mark.slow
def test_a_setting_beyond_the_best_is_added_to_the_sweep(dlrun: Take) -> None:
    words = ("data=line", "model=linear", "optimizer=sgd", "trainer.max_steps=1", "tracking.graph=false")
    outcome = dlrun("-m", "optimizer.lr=1e-5,1e-4,1e-3", *words, "figures=false", "sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    word = re.findall(r"try (optimizer\.lr=\S+) too", outcome.out)[0]
    assert not 1e-5 <= float(word.partition("=")[2]) <= 1e-3
    again = dlrun("resume", "sweep", word)
    assert again.code == 0, again.err


SENTENCES = [
    *diagnostics.find_divergence([{"epoch": i, "train/loss": 4.0**i} for i in range(1, 6)], 0.5, {}).values(),
    *diagnostics.find_overflow(2.0**-12, 40).values(),
    *diagnostics.find_overfitting(
        [{"epoch": i, "train/loss": 1.0 / i, "val/loss": 1.0 + 0.5 * (i - 1)} for i in range(1, 9)], {}
    ).values(),
    *diagnostics.find_unfinished_fall(
        [{"epoch": i, "train/loss": 1.0, "val/loss": 2.0 - 0.1 * i} for i in range(1, 13)], {"val/loss": 1.0}
    ).values(),
    *diagnostics.find_nonfinite({"step": 3, "val/loss": float("nan")}, None, None).values(),
    *diagnostics.find_far_inputs(torch.full((8, 2), 500.0), DataSpec("vector", (2,), "binary", 1), True).values(),
    final_activation._explain_function("a softmax", "cross_entropy", "LogSoftmax", "nll"),
]


def test_every_trouble_that_names_words_is_among_those_tried() -> None:
    """Each `try key=value` of diagnostics.py and final_activation.py stands in one of the sentences above."""
    named = set()
    for name in ("callbacks/diagnostics.py", "preflight/final_activation.py"):
        for _, text in sentences(PACKAGE / "experiment" / name):
            named |= {key for key, _ in keys_of(text) if advises(text)}
    shown = " ".join(SENTENCES)
    others = {"optimizer": "adam", "model": "resnet"}  # of sentences that take a net to be seen
    assert {key for key in named if f"{key}=" not in shown} <= others.keys()


@pytest.mark.parametrize("sentence", SENTENCES, ids=lambda sentence: sentence[:20])
def test_what_is_tried_against_learning_trouble_can_be_typed(sentence: str, dlrun: Take) -> None:
    np.savetxt("rows.csv", np.random.default_rng(0).normal(size=(40, 3)), delimiter=",", header="a,b,c", comments="")
    words = re.findall(r"[a-z_.]+=[\w.-]+", re.split(r"\b(?:try|type)\b", sentence)[-1])
    assert words
    data = ("data=csv", "data.path=rows.csv", "model=linear") if "normalize" in words[0] else ("data=digits",)
    ends = ("model=sequential", "model.layers=[Flatten,{Linear:[in,out]},{LogSoftmax:1}]") if "nll" in words[0] else ()
    for word in words:
        outcome = dlrun("check", *data, *ends, word)
        assert outcome.code == 0, outcome.err


@pytest.mark.slow
def test_a_run_that_diverges_learns_with_what_it_says(dlrun: Take) -> None:
    words = ("data=line", "model=linear", "optimizer=sgd", "trainer.epochs=6", "tracking.graph=false", "figures=false")
    rate = first = "optimizer.lr=0.9"
    for _ in range(4):
        outcome = dlrun(*words, rate)
        advice = re.findall(r"try a tenth of it, (optimizer\.lr=\S+)", outcome.out)
        if not advice:
            break
        rate = advice[-1]
    assert rate != first
    assert outcome.code == 0
    assert "diverging" not in outcome.out


@pytest.mark.slow
def test_the_call_that_a_refused_call_names(run_beside_runs: Take) -> None:
    with pytest.raises(library.RequestError) as caught:
        library.train("-m", "seed=1,2")
    call = re.findall(r"dlrun\.train\(.*?\)", str(caught.value))[0]
    assert call_of(call, *QUICK).result["status"] == "completed"


def test_the_example_of_load_and_of_a_resume_without_a_run(run_beside_runs: Take) -> None:
    with pytest.raises(library.RequestError) as caught:
        library.load("")
    call = str(caught.value).partition("type ")[2].replace("outputs/<date>/<run>", "runs/one")
    assert eval(call, {"dlrun": library}).folder.samefile("runs/one")
    with pytest.raises(library.RequestError) as caught:
        library.train("resume=", quiet=True)
    call = str(caught.value).partition("type ")[2].replace("outputs/<date>/<run>", "runs/one")
    assert call_of(call, "trainer.epochs=2").history[-1]["epoch"] == 2


@pytest.mark.slow
def test_several_runs_in_one_call_are_typed_in_a_terminal(
    run_beside_runs: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(library.RequestError) as caught:
        library.train("lesson=optimizer_race", *QUICK, quiet=True)
    line = str(caught.value).partition("type ")[2].removesuffix(" in a terminal")
    take(run_beside_runs, f"dlrun check {line.removeprefix('dlrun ')}")


@pytest.mark.slow
def test_a_run_that_misses_an_expectation_is_returned_without_strict(run_beside_runs: Take) -> None:
    words = (*TINY, "expect=['train/loss <= -1']")
    with pytest.raises(library.RunError, match=r"did not meet .*; leave out strict=true to have the run"):
        library.train(*words, "strict=true", quiet=True)
    assert library.train(*words, quiet=True).metrics


@pytest.mark.slow
def test_what_an_interrupted_call_says_resumes_it(run_beside_runs: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlrun.runs.checkpoint_manager import CheckpointManager

    on_step_end = CheckpointManager.on_step_end
    signals = iter([signal.SIGINT])

    def interrupt(saver: Any, training: Any) -> None:
        on_step_end(saver, training)
        for number in signals:
            signal.raise_signal(number)

    monkeypatch.setattr(CheckpointManager, "on_step_end", interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        library.train(*TINY, quiet=True)
    call = re.findall(r"dlrun\.train\(.*?\)", str(caught.value))[0]
    assert call_of(call).result["status"] == "completed"


@pytest.mark.slow
def test_the_lines_of_the_package_docstring(run_beside_runs: Take, tmp_path: Path) -> None:
    lines = [line.strip() for line in str(library.__doc__).splitlines() if line.startswith("    ")]
    assert len(lines) >= 5
    code = "\n".join(lines).replace('"data=digits")', '"data=digits", *QUICK, quiet=True)')
    code = re.sub(r"outputs/[\w/-]+", "runs/one", code)
    names: dict[str, Any] = {"QUICK": QUICK}
    exec(code, names)
    assert names["run"].folder.samefile("runs/one")


def call_of(call: str, *words: str) -> Any:
    """The run of a call of dlrun.train as it is shown, with further words and without output."""
    return eval(f"{call[:-1]}, *words, quiet=True)", {"dlrun": library, "words": words})


# Advice anywhere in the package: what it names exists, also where a test cannot meet it (a GPU, a full disk).


def sentences(path: Path) -> list[tuple[int, str]]:
    """The texts of a module that are no docstrings, with their lines; {} stands for what is filled in."""
    tree = ast.parse(path.read_text())
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            inside.add(id(node.value))
    sentences_of_file = []
    for node in ast.walk(tree):
        if id(node) in inside:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            sentences_of_file.append((node.lineno, node.value))
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            sentences_of_file.append((node.lineno, "".join(map(str, parts))))
    return sentences_of_file


def advises(text: str) -> bool:
    return bool(re.search(r"(?:^|[\s(;,:])(?:type|try|add|set|as in|again with) ", text))


def keys_of(text: str) -> list[tuple[str, str]]:
    """Every key=value in a text whose key is written out."""
    return re.findall(r"(?<![\w.{}<~+/-])([a-z_]+(?:\.[a-z_0-9]+)*)=(\S*)", text)


def known_keys() -> set[str]:
    """Every key that can be typed: of the composed config, of each option of each group, and the groups."""
    keys = {*explain.iter_keys(compose_config([]))}
    for path in CONFIG_DIR.glob("*/*.yaml"):
        keys |= {f"{path.parent.name}.{name}" for name in re.findall(r"^(\w+):", path.read_text(), re.MULTILINE)}
    # A logger's keys stand below its name.
    for path in CONFIG_DIR.glob("logger/*.yaml"):
        names = re.findall(r"^  (\w+):", path.read_text(), re.MULTILINE)
        keys |= {f"logger.{path.stem}.{name}" for name in names}
    for group, schema in config.KEYS.items():
        keys |= {f"{group}.{field.name}" for field in dataclasses.fields(schema)}
    groups = {path.name for path in CONFIG_DIR.iterdir() if path.is_dir()}
    return keys | groups


OF_COMMANDS = {
    "split",
    "format",
    "sort",
    "limit",
    "weights",
    "status",
    "last",
    "key",
    "trust",
    "lr",
}  # and of optimizer.groups
COMMANDS = {
    "eval",
    "show",
    "rerun",
    "watch",
    "resume",
    "predict",
    "export",
    "compare",
    "diff",
    "check",
    "ls",
    "clean",
    "completion",
    "help",
    "new",
    "run",
}


@pytest.mark.slow
def test_every_key_command_and_call_that_is_advised_exists() -> None:
    known = known_keys() | OF_COMMANDS
    count = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        for line, text in sentences(path):
            if "\n" in text:  # source that dlrun writes
                continue
            where = f"{path.name}:{line}: {text}"
            for key, value in keys_of(text) if advises(text) else []:
                count += 1
                assert key in known or key.startswith("hydra."), where
                group = CONFIG_DIR / key
                option = value.rstrip(",;.)'")
                if group.is_dir() and option.isidentifier():
                    assert option in {file.stem for file in group.glob("*.yaml")}, where
            for command in re.findall(r"(?:type|try|add|or|as in|[(`;]) ?dlrun ([a-z]+)\b(?!=)", text):
                assert command in COMMANDS, where
            for function in re.findall(r"dlrun\.(\w+)\(", text):
                assert function in library.__all__, where
    assert count > 120
