"""`run.name`, `run.tags` and `run.notes`: where they are shown, and that they make no other run."""

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.config import request
from dlrun.config.schema import hash_config
from dlrun.core.yaml import read_yaml
from dlrun.runs.record import RunRecord

QUICK = ("data=blobs", "trainer.epochs=1", "tracking.graph=false")
LABELS = ("run.name=base line/1", "run.tags=[baseline, 'a b']", "run.notes='as in the <b>paper</b>'")
# config_hash of runs from before there were labels.
HASH_OF_DEFAULTS = "506d3fed9ac775a37ee63ccd6a0493f897eb88387907f8714b5754de8d90e9f1"


@pytest.mark.slow
def test_labels_are_in_the_folder_the_list_the_report_and_the_result(dlrun: Callable[..., Any]) -> None:
    named = dlrun(*QUICK, *LABELS)
    plain = dlrun(*QUICK, "figures=false")

    assert named.folder.name.endswith("_base-line-1")
    assert plain.folder.name.endswith("_mlp_blobs")
    assert named.result["name"] == "base line/1"
    assert plain.result["name"] is None
    assert named.result["config_hash"] == plain.result["config_hash"]
    assert named.result["weights_sha256"] == plain.result["weights_sha256"]

    page = html.unescape((named.folder / "report.html").read_text())
    for text in ("base line/1: mlp on blobs", "<dd>base line/1</dd>", "<dd>baseline, a b</dd>"):
        assert text in page
    assert "as in the &lt;b&gt;paper" in (named.folder / "report.html").read_text()

    listed = dlrun("ls", "runs").out
    assert str(named.folder) in listed
    assert "run.name" not in listed


@pytest.mark.slow
def test_the_list_has_the_name_of_a_folder_that_lacks_it(dlrun: Callable[..., Any]) -> None:
    dlrun(*QUICK, "run.name=first", "hydra.run.dir=mine", "figures=false")
    dlrun("-m", *QUICK, "run.name=second", "seed=1,2", "figures=false")
    lines = dlrun("ls", "runs", ".", "model=mlp").out.splitlines()
    assert [line.split()[0] for line in lines if "  first " in line] == ["mine"]
    assert len([line for line in lines if "  second " in line]) == 2


@pytest.mark.parametrize("name", ["../../up", "..", "/etc/passwd", "a\x1b[31mb\nc", "😀" * 300, "漢" * 300, "''"])
def test_odd_names_make_one_folder_of_today(dlrun: Callable[..., Any], name: str, tmp_path: Path) -> None:
    quoted = name if name == "''" else json.dumps(name, ensure_ascii=False)
    outcome = dlrun(*QUICK, "trainer.max_steps=1", "figures=false", f"run.name={quoted}")
    assert outcome.code == 0, outcome.err
    assert outcome.folder.resolve().parent.parent == (tmp_path / "outputs").resolve()
    listed = dlrun("ls", "runs")
    assert (listed.code, listed.err) == (0, "")
    assert "\x1b" not in listed.out
    assert len(listed.out.splitlines()) == 2


@pytest.mark.slow
def test_a_resumed_run_may_take_other_labels_and_is_the_same_run(dlrun: Callable[..., Any]) -> None:
    run = dlrun(*QUICK, "run.name=first", "run.tags=[a]", "figures=false")
    before = json.loads((run.folder / "environment.json").read_text())["run_id"]

    again = dlrun("resume", str(run.folder), "trainer.epochs=2", "run.name=second", "run.tags=[b,c]", "run.notes=why")
    assert again.code == 0, again.err
    record = RunRecord(run.folder)
    assert (record.name, record.tags, record.notes) == ("second", ["b", "c"], "why")
    assert record.environment["run_id"] == before
    assert record.epochs == 2
    assert record.damage == []

    longer = dlrun(*QUICK, "trainer.epochs=2", "figures=false").result
    assert record.result["config_hash"] == longer["config_hash"]
    assert record.result["weights_sha256"] == longer["weights_sha256"]


def test_resume_auto_finds_a_run_of_another_name(dlrun: Callable[..., Any]) -> None:
    first = dlrun(*QUICK, "run.name=first", "figures=false")
    again = dlrun(*QUICK, "run.name=second", "figures=false", "resume=auto")
    assert again.code == 0
    assert f"{first.folder} is completed" in again.out


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("run.nane=x", "run.name"),
        ("run.tags=x", "run.tags=x must be a list like [text]"),
        ("run=x", "run"),
    ],
)
def test_wrong_labels_are_sentences(dlrun: Callable[..., Any], word: str, message: str) -> None:
    outcome = dlrun(*QUICK, word)
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert not Path("outputs").exists()


def test_the_hash_of_existing_configs_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    (plain,) = request.from_command_line([])
    (named,) = request.from_command_line(["run.name=x", "run.tags=[a]", "run.notes=b"])
    assert hash_config(plain.config) == hash_config(named.config) == HASH_OF_DEFAULTS
    without = {key: value for key, value in plain.config.items() if key != "run"}
    assert hash_config(without) == HASH_OF_DEFAULTS


def test_a_damaged_label_is_damage(dlrun: Callable[..., Any]) -> None:
    folder = dlrun(*QUICK, "figures=false").folder
    path = folder / ".hydra" / "config.yaml"
    config = read_yaml(path.read_text())
    path.write_text(json.dumps({**config, "run": {"tags": "x"}}))
    record = RunRecord(folder)
    assert record.tags == []
    assert record.damage == [f"damaged: {path}: run.tags is the text 'x', not a list of texts"]
