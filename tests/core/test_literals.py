"""Text from a file is text: nothing in it is evaluated, by any command."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import dlrun as package
from dlrun.config import compose, request
from dlrun.config.settings import read_settings
from dlrun.core.literals import Literals
from dlrun.core.yaml import dump_yaml, read_yaml
from dlrun.experiment import run as experiment
from dlrun.runs import checkpoint

SECRET = "the-secret-of-this-machine"
EXPRESSION = "$" + "{oc.env:DLRUN_TEST_SECRET}"
QUICK = ("data=blobs", "trainer.max_steps=3", "tracking.graph=false", "figures=false")


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, to be copied."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert all(
        experiment.run(one_run) == 0 for one_run in request.from_command_line([*QUICK, f"hydra.run.dir={folder}"])
    )
    return folder


@pytest.fixture
def crafted_run(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run with an expression in each text of its files that nothing is built from."""
    monkeypatch.setenv("DLRUN_TEST_SECRET", SECRET)
    run = tmp_path / "crafted"
    shutil.copytree(trained_run, run)

    def craft(plain: dict[str, Any]) -> dict[str, Any]:
        plain["paths"] = {"data": EXPRESSION, "outputs": f"outputs/{EXPRESSION}"}
        plain["resume"] = EXPRESSION
        plain["sweep"]["dir"] = EXPRESSION
        return plain

    for path in (run / "checkpoints").iterdir():
        state = checkpoint.load(path)
        path.unlink()
        checkpoint.save(
            path, state | {"config": craft(state["config"]), "choices": {**state["choices"], "lesson": "x"}}
        )
    hidden = run / ".hydra"
    (hidden / "config.yaml").write_text(dump_yaml(craft(read_yaml((hidden / "config.yaml").read_text()))))
    (hidden / "overrides.yaml").write_text(dump_yaml(["data=blobs", f"paths.outputs={EXPRESSION}"]))
    return run


def texts(folder: Path) -> bytes:
    """All that lies in a folder, one after the other."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "RUN"),
        ("resume", "RUN", "trainer.max_steps=6"),
        ("predict", "RUN", "1,2"),
        ("export", "RUN", "format=python"),
        ("compare", "RUN"),
        ("diff", "RUN", "RUN"),
        ("ls", "runs", "RUN"),
    ],
    ids=lambda words: words[0],
)
def test_nothing_in_a_loaded_run_is_evaluated(
    dlrun: Callable[..., Any], crafted_run: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    outcome = dlrun(*(str(crafted_run) if word == "RUN" else word for word in words))
    assert outcome.code == 0, outcome.err
    assert SECRET not in outcome.out + outcome.err
    assert SECRET.encode() not in texts(tmp_path)
    if words[0] == "resume":
        newest = checkpoint.load(crafted_run / "checkpoints" / "last.pt")
        assert newest["step"] == 6
        assert newest["config"]["paths"]["outputs"] == f"outputs/{EXPRESSION}"


def test_nothing_is_evaluated_from_python_either(crafted_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = package.load(crafted_run)
    assert run.config["paths"]["outputs"] == f"outputs/{EXPRESSION}"
    assert len(run.predict([[1.0, 2.0]]).values) == 1


def test_this_command_lines_own_words_may_refer_to_saved_keys(trained_run: Path) -> None:
    saved = checkpoint.load(trained_run / "checkpoints" / "last.pt")
    saved["config"]["paths"]["outputs"] = f"a{EXPRESSION}b"
    words = ["data.root=$" + "{paths.outputs}", "trainer.epochs=$" + "{trainer.max_steps}"]
    one_request = request.from_saved(saved["config"], saved["choices"], [f"+{words[0]}", words[1]], None)
    assert one_request.config["data"]["root"] == f"a{EXPRESSION}b"
    assert one_request.config["trainer"]["epochs"] == 3


@pytest.mark.slow
def test_a_ledger_is_data_too(dlrun: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLRUN_TEST_SECRET", SECRET)
    assert dlrun("-m", *QUICK, "seed=1,2", "sweep.dir=sweep").code == 0
    lines = [json.loads(line) for line in (tmp_path / "sweep" / "sweep.jsonl").read_text().splitlines()]
    lines[0]["words"].append(f"data.name={EXPRESSION}")
    lines[1]["config"]["paths"]["outputs"] = EXPRESSION
    (tmp_path / "sweep" / "sweep.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(tmp_path / "sweep" / lines[1]["folder"])

    more = dlrun("resume", "sweep", "seed=3")
    assert more.code == 2
    assert f"data.name={EXPRESSION}" in more.err
    assert "type it again behind this command" in more.err

    again = dlrun("resume", "sweep")
    assert again.code == 0, again.err
    assert SECRET.encode() not in texts(tmp_path)


PIECES = [
    "\\",
    "$",
    "{",
    "}",
    "a",
    ":",
    "'",
    '"',
    "$" + "{",
    "\n",
    " ",
    "$" + "{a}",
    EXPRESSION,
    "\\$" + "{",
    ",",
    "<0>",
]


@pytest.mark.slow
def test_any_text_comes_back_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLRUN_TEST_SECRET", SECRET)
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choice(PIECES) for _ in range(draw.randint(0, 8)))
        literals = Literals()
        merged = OmegaConf.create({"own": literals.hide(text), "list": literals.hide([text]), "refers": "$" + "{own}"})
        OmegaConf.update(merged, "mixed", "<$" + "{own}>")
        restored_config = literals.restore(compose.resolve(merged))
        assert restored_config == {"own": text, "list": [text], "refers": text, "mixed": f"<{text}>"}


def test_the_schema_and_the_targets_take_text_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLRUN_TEST_SECRET", SECRET)
    plain = compose.resolve(compose.compose_config([*QUICK]))
    plain["init_from"] = plain["paths"]["outputs"] = EXPRESSION
    plain["probes"] = [[EXPRESSION]]
    settings = read_settings(plain, {})
    assert (settings.init_from, settings.paths.outputs, settings.probes) == (EXPRESSION, EXPRESSION, [[EXPRESSION]])


@pytest.mark.slow
def test_a_setting_of_the_users_own_may_hold_a_dollar_and_a_brace(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "dollar.py").write_text(
        "from dlrun.data.synthetic import blobs\n"
        "def data(name: str = '', **rest):\n    assert name == '$' + '{x}', name\n    return blobs(**rest)\n"
    )
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "dollar.yaml").write_text("_target_: dollar.data\nname: '\\$" + "{x}'\n")
    words = ("trainer.max_steps=2", "tracking.graph=false", "figures=false", "hydra.run.dir=run")
    outcome = dlrun("--config-dir", "conf", "data=dollar", *words)
    assert outcome.code == 0, outcome.err
    outcome = dlrun("eval", "run", "trusted_modules=[dollar]", "figures=false")
    assert outcome.code == 0, outcome.err
