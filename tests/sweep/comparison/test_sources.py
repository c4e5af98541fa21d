"""Run folders are read as plain data; what is damaged is named and left out."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dlrun.core.errors import RequestError
from dlrun.runs.record import RunRecord
from dlrun.sweep.comparison.sources import find_finished_runs


def test_a_run_is_read_as_it_was_written(runs: Any) -> None:
    written = runs.write(runs("optimizer.lr=0.1", value=0.25, seed=3), curve=(1.0, 0.25))
    record = RunRecord(written.folder)
    for name in ("config", "overrides", "choices", "result"):
        assert getattr(record, name) == getattr(written, name)
    assert (record.seed, record.metric, record.best_value, record.reason_unusable) == (3, "val/loss", 0.25, "")
    assert [row["val/loss"] for row in record.rows] == [1.0, 0.25]
    assert record.choices == {"data": "digits", "model": "mlp", "optimizer": "sgd"}
    assert record.identity == {
        "seed": 3, "data._target_": "d.digits", "optimizer.lr": 0.1, "checkpoint.mode": None
    }  # fmt: skip


DAMAGE = {
    "result.json": ["", "{", "[]", "{}", '{"status": "completed"}', "null"],
    ".hydra/config.yaml": ["", "a: [", "[1]", "seed: x", "!!python/object/apply:os.system [touch pwned]"],
    ".hydra/overrides.yaml": ["{}", "\x00"],
    ".hydra/hydra.yaml": ["{}", "hydra: {runtime: {choices: 3}}"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in DAMAGE.items() for text in texts])
def test_a_damaged_run_is_left_out_with_the_reason(
    name: str, text: str, runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good, bad = runs.write(runs(seed=0)), runs.write(runs(seed=1))
    (bad.folder / name).write_text(text)
    damaged: list[tuple[str, str]] = []
    assert find_finished_runs([tmp_path], damaged) == [good]
    ((folder, reason),) = damaged
    assert folder == str(bad.folder)
    assert reason
    assert "\n" not in reason
    assert not (tmp_path / "pwned").exists()
    with pytest.raises(RequestError, match="can be read"):
        find_finished_runs([bad.folder])


def test_missing_or_damaged_curves_cost_the_curve_only(runs: Any) -> None:
    written = runs.write(runs(), curve=(1.0,))
    (written.folder / "metrics.jsonl").write_text('{"epoch": 1}\n{"ep')  # as a kill leaves it
    assert RunRecord(written.folder).rows == [{"epoch": 1}]
    (written.folder / "metrics.jsonl").write_text("3\n")
    assert RunRecord(written.folder).rows == []


def test_runs_are_found_once_below_any_place(runs: Any, tmp_path: Path) -> None:
    a, b = runs.write(runs(seed=0)), runs.write(runs(seed=1))
    (a.folder / "checkpoints").mkdir()
    (a.folder / "checkpoints" / "result.json").write_text("{}")  # inside a run, so none of its own
    damaged: list[tuple[str, str]] = []
    assert find_finished_runs([tmp_path, a.folder, tmp_path / "sweep" / "..", b.folder], damaged) == [a, b]
    assert damaged == []


def test_where_nothing_is_the_sentence_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"there is no folder .*nowhere; type a run"):
        find_finished_runs([tmp_path / "nowhere"])
    with pytest.raises(RequestError, match=r"no finished run .* type a run, a sweep"):
        find_finished_runs([tmp_path])


def test_what_does_not_count_says_why(runs: Any) -> None:
    assert runs(status="failed", value=None, error="boom").reason_unusable == "failed: boom"
    assert runs(status="interrupted").reason_unusable.startswith("interrupted: dlrun resume ")
    assert runs(value=None).reason_unusable == "val/loss is not finite"
    assert runs(value=math.inf).reason_unusable == "val/loss is not finite"
    assert runs(status="early_stopped").reason_unusable == ""
    assert math.isnan(runs().get_metric("val/none"))
    assert json.loads(json.dumps(runs().result))["best"]["epoch"] == 3
