"""Permissions come from this command line or call alone: a run can neither keep nor give itself any."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dlrun as package
from dlrun.config import compose, request
from dlrun.config.schema import hash_config
from dlrun.core.errors import CheckpointError, RequestError
from dlrun.core.yaml import dump_yaml, read_yaml
from dlrun.experiment import run as experiment
from dlrun.experiment.builder import targets
from dlrun.runs import checkpoint

pytestmark = pytest.mark.usefixtures("comparison_without_pictures")
QUICK = ("data=blobs", "trainer.max_steps=3", "tracking.graph=false", "figures=false")
GIVEN = ("trust=true", "trusted_modules=[a_module_of_mine]")


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("canary",)


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps that was given every permission, with its pickled model."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = [*QUICK, *GIVEN, "checkpoint.format=full", f"hydra.run.dir={folder}"]
    assert all(experiment.run(one_run) == 0 for one_run in request.from_command_line(words))
    return folder


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(trained_run, tmp_path / "run")
    return tmp_path / "run"


def bytes_with(word: bytes, folder: Path) -> list[Path]:
    """The files of a folder that hold the word."""
    return [path for path in folder.rglob("*") if path.is_file() and word in path.read_bytes()]


def give_itself(run: Path, **permissions: Any) -> None:
    """Write permissions wherever a run keeps settings."""
    hidden = run / ".hydra"
    plain = read_yaml((hidden / "config.yaml").read_text())
    (hidden / "config.yaml").write_text(dump_yaml(plain | permissions))
    words = [f"{key}={value}" for key, value in permissions.items()]
    (hidden / "overrides.yaml").write_text(dump_yaml(words))
    for path in (run / "checkpoints").iterdir():
        if not checkpoint.is_full_model(path):
            state = checkpoint.load(path)
            path.unlink()
            checkpoint.save(path, state | {"config": state["config"] | permissions})


def test_no_file_of_a_run_holds_a_permission(trained_run: Path) -> None:
    assert bytes_with(b"trust", trained_run) == []
    assert bytes_with(b"a_module_of_mine", trained_run) == []


@pytest.mark.slow
def test_no_file_of_a_sweep_holds_one(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    assert dlrun("-m", *QUICK, *GIVEN, "seed=1,2", "sweep.dir=sweep").code == 0
    assert dlrun("resume", "sweep", *GIVEN, "seed=3").code == 0
    assert bytes_with(b"trust", tmp_path) == []
    assert bytes_with(b"a_module_of_mine", tmp_path) == []
    assert not any("trust" in path.name for path in (tmp_path / "sweep").iterdir())


@pytest.mark.slow
def test_no_evaluation_holds_one(dlrun: Callable[..., Any], run: Path) -> None:
    assert dlrun("eval", str(run), *GIVEN, "figures=false").code == 0
    assert dlrun("resume", str(run), "trainer.max_steps=6", *GIVEN).code == 0
    assert bytes_with(b"trust", run) == []


def test_permissions_are_no_part_of_what_a_run_is() -> None:
    plain = compose.resolve(compose.compose_config(list(QUICK)))
    given = compose.resolve(compose.compose_config([*QUICK, *GIVEN]))
    assert hash_config(plain) == hash_config(given)


@pytest.mark.parametrize("words", [("eval",), ("predict", "1,2"), ("export", "format=python")], ids=lambda w: w[0])
def test_a_run_cannot_have_its_own_pickle_opened(
    dlrun: Callable[..., Any], run: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    give_itself(run, trust=True)
    torch.save(Bomb(), run / "checkpoints" / "bomb.pt")
    (run / "checkpoints" / "bomb.pt").replace(run / "checkpoints" / "best.pt")
    outcome = dlrun(words[0], str(run), *words[1:])
    assert outcome.code == 2, outcome.out
    assert "add trust=true" in outcome.err
    assert "trust in the saved config is ignored" in outcome.err
    assert not (tmp_path / "canary").exists()


def test_nor_from_python(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    give_itself(run, trust=True)
    (run / "checkpoints" / "best.pt").unlink()
    (run / "checkpoints" / "best.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises((CheckpointError, RequestError)):
        package.load(run)
    torch.save(Bomb(), run / "checkpoints" / "best.pt")
    with pytest.raises(CheckpointError, match="add trust=true"):
        package.load(run)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("words", [("eval",), ("resume", "trainer.max_steps=6")], ids=lambda w: w[0])
def test_a_run_cannot_trust_its_own_modules(
    dlrun: Callable[..., Any], run: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "stranger.py").write_text("import os\nos.mkdir('canary')\ndef loss(outputs, targets): pass\n")
    give_itself(run, trusted_modules=["stranger"], task={"loss": "stranger.loss", "reduction": "mean"})
    outcome = dlrun(words[0], str(run), *words[1:])
    assert outcome.code == 2
    assert "if you trust it add trusted_modules='[stranger]'" in outcome.err
    assert not (tmp_path / "canary").exists()


@pytest.mark.slow
def test_a_permission_of_an_older_run_is_ignored_with_a_note(dlrun: Callable[..., Any], run: Path) -> None:
    give_itself(run, trusted_modules=["mine"], trust=True)
    outcome = dlrun("eval", str(run), "figures=false")
    assert outcome.code == 0
    assert "note: trusted_modules in the saved config is ignored" in outcome.err
    outcome = dlrun("resume", str(run), "trainer.max_steps=6")
    assert outcome.code == 0
    assert "note: trust in the saved config is ignored" in outcome.out


def test_no_folder_that_only_a_saved_run_names_is_made_for_its_data(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DLRUN_DATA_DIR", raising=False)
    state = checkpoint.load(trained_run / "checkpoints" / "last.pt")
    strangers, mine = str(tmp_path / "strangers"), str(tmp_path / "mine")
    state["config"]["paths"]["data"] = strangers
    state["config"]["data"]["root"] = f"{strangers}/2"

    def places(*words: str) -> tuple[str, str]:
        plain = request.from_saved(state["config"], state["choices"], list(words), None).config
        return plain["paths"]["data"], plain["data"]["root"]

    assert places() == ("data", "data")
    assert places(f"paths.data={mine}") == (mine, mine)
    assert places(f"data.root={mine}") == ("data", mine)
    (tmp_path / "strangers" / "2").mkdir(parents=True)
    assert places() == (strangers, f"{strangers}/2")


def test_a_target_that_is_typed_is_no_trust_in_its_module(run: Path) -> None:
    state = checkpoint.load(run / "checkpoints" / "last.pt")
    words = ["model._target_=torch.nn.Identity", "task.loss=mine.loss"]
    one_request = request.from_saved(state["config"], state["choices"], words, None)
    assert targets.resolve("torch.nn.Identity", "x", one_request.trusted_modules) is nn.Identity
    for target in ("torch.hub.load", "torch.load", "torch.nn.functional.relu", "mine.other"):
        with pytest.raises(RequestError, match="comes from a saved run"):
            targets.resolve(target, "x", one_request.trusted_modules)


@pytest.mark.slow
def test_a_sweep_needs_them_again_and_hands_them_to_its_jobs(
    dlrun: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "swept_mine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, spec):\n        super().__init__(nn.Linear(2, spec.output_size))\n"
    )
    words = ("model._target_=swept_mine.Net", "seed=1,2", "sweep.dir=sweep")
    with monkeypatch.context() as patch:
        patch.setattr("dlrun.sweep.runner.has_own_code", lambda job: False)  # no other process: what counts is below
        assert dlrun("-m", *QUICK, *words).code == 0
    ledger = tmp_path / "sweep" / "sweep.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    lines[1]["config"]["trusted_modules"] = ["swept_mine"]
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "sweep" / lines[1]["folder"] / "result.json").unlink()
    shutil.rmtree(tmp_path / "sweep" / lines[1]["folder"] / "checkpoints")

    refused = dlrun("resume", "sweep")
    assert refused.code == 2
    assert "if you trust it add trusted_modules='[swept_mine]'" in refused.err
    outcome = dlrun("resume", "sweep", "trusted_modules=[swept_mine]")
    assert outcome.code == 0, outcome.err + outcome.out
    result = json.loads((tmp_path / "sweep" / lines[1]["folder"] / "result.json").read_text())
    assert result["status"] == "completed"
