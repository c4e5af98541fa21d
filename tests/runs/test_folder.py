"""The run folder: its name, its owner, and what is written about the run."""

import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from dlrun.config.request import Request
from dlrun.core.bounded import read_json
from dlrun.core.errors import RequestError
from dlrun.core.files import write_json
from dlrun.core.format import format_folder_name
from dlrun.engine.device import Runtime
from dlrun.runs import folder as run_folder


class Stopped(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz: Any = None) -> "Stopped":
        return cls(2026, 11, 20, 14, 3, 7)


@pytest.fixture
def stop_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "datetime", Stopped)


@pytest.mark.usefixtures("stop_clock")
def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    folders = [run_folder.create_folder(tmp_path, "resnet_mnist") for _ in range(3)]
    day = tmp_path / "2026-11-20"
    assert folders == [day / f"14-03-07_resnet_mnist{end}" for end in ("", "_2", "_3")]
    assert all(folder.is_dir() for folder in folders)


@pytest.mark.usefixtures("stop_clock")
def test_a_thousand_runs_of_a_second_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exists(*_: Any, **__: Any) -> None:
        raise FileExistsError

    (tmp_path / "2026-11-20").mkdir()
    monkeypatch.setattr(Path, "mkdir", exists)
    with pytest.raises(RequestError, match="a thousand runs of this second"):
        run_folder.create_folder(tmp_path, "x")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"cannot write to .*file \(Not a directory\); type paths.outputs=<folder>"):
        run_folder.create_folder(tmp_path / "file", "x")


def test_a_disk_that_takes_nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(Path, "write_text", full)
    request, runtime = Request({}, {}, []), Runtime(torch.device("cpu"), "fp32", None, False, "")
    with pytest.raises(RequestError, match=r"cannot write to .* \(Disk quota exceeded\); type paths.outputs=<folder>"):
        run_folder.write_description(tmp_path, request, runtime)
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=r"cannot write to .*file/run \(Not a directory\)"):
        run_folder.claim_folder(tmp_path / "file" / "run")


@pytest.mark.parametrize("name", ["metrics.jsonl", "result.json"])
def test_a_folder_that_holds_a_run_is_not_claimed_again(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert run_folder.claim_folder(folder) == folder
    assert run_folder.claim_folder(folder).is_dir()
    (folder / name).write_text("")
    with pytest.raises(RequestError, match=f"{folder} already holds a run; choose another folder, or dlrun resume"):
        run_folder.claim_folder(folder)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("resnet_mnist", "resnet_mnist"),
        ("optimizer.lr=0.1,seed=2", "optimizer.lr=0.1,seed=2"),
        ("model.hidden_sizes=[64,32]", "model.hidden_sizes=64,32"),
        ("a/b\\c: d*?", "a-b-c-d"),
        ("../../etc", "..-..-etc"),
        ("[]", "run"),
        ("", "run"),
        ("é" * 3, "ééé"),
        ("x" * 300, "x" * 100),
    ],
)
def test_names_are_what_every_file_system_takes(text: str, name: str) -> None:
    assert format_folder_name(text) == name


def test_json_has_null_for_what_is_not_finite(tmp_path: Path) -> None:
    values = {"a": math.nan, "b": [1.5, math.inf, {"c": -math.inf}], "d": None, "e": "NaN", "f": True}
    write_json(tmp_path / "x.json", values)
    wanted = {"a": None, "b": [1.5, None, {"c": None}], "d": None, "e": "NaN", "f": True}
    assert json.loads((tmp_path / "x.json").read_text()) == wanted
    assert read_json(tmp_path / "x.json") == wanted
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("content", ["", '{"status": "comp', "[1"])
def test_json_that_cannot_be_read_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(RequestError, match=f"damaged: {path}: "):
        read_json(path)


def test_the_folder_tells_what_was_asked_for_and_where_it_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no repository
    request = Request(
        config={"seed": 3},
        choices={"model": "mlp"},
        overrides=["seed=3"],
        hydra={"runtime": {"choices": {"model": "mlp"}}},
        words=["seed=3", "model.init={w: 1}"],
    )
    run_folder.write_description(tmp_path, request, Runtime(torch.device("cpu"), "bf16", None, False, "cpu"))
    hidden = tmp_path / ".hydra"
    assert OmegaConf.load(hidden / "config.yaml") == {"seed": 3}
    assert OmegaConf.load(hidden / "overrides.yaml") == ["seed=3"]
    assert OmegaConf.load(hidden / "hydra.yaml") == {"hydra": {"runtime": {"choices": {"model": "mlp"}}}}
    environment = read_json(tmp_path / "environment.json")
    assert len(environment["run_id"]) == 32
    assert environment["command"] == "dlrun seed=3 'model.init={w: 1}'"
    assert (environment["device"], environment["precision"]) == ("cpu", "bf16")
    assert environment["threads"] == torch.get_num_threads()
    assert (environment["git_commit"], environment["git_dirty"]) == (None, False)
    assert environment["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert datetime.fromisoformat(environment["started"]).tzinfo is not None


def test_the_commit_is_that_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    def git(*words: str) -> str:
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        outcome = subprocess.run(["git", *identity, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return outcome.stdout.strip()

    (tmp_path / "file").write_text("1")
    git("init", "-q")
    git("add", "file")
    git("commit", "-qm", "one")
    monkeypatch.chdir(tmp_path)
    request, runtime = Request({}, {}, []), Runtime(torch.device("cpu"), "fp32", None, False, "")
    environment = run_folder.collect_environment(request, runtime)
    assert (environment["git_commit"], environment["git_dirty"]) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "file").write_text("2")
    run_folder._git.cache_clear()  # as another process finds it
    assert run_folder.collect_environment(request, runtime)["git_dirty"] is True
