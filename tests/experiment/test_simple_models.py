"""scikit-learn's models beside a run on a table: their metrics, the note where one is better, and when none is."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dlrun.data.datasets import take
from dlrun.data.spec import DataSpec, Split
from dlrun.engine.objective import Objective
from dlrun.experiment import simple_models

RUN = ("data=table", "data.path=xor.csv", "data.target=y", "model=linear", "trainer.epochs=2", "tracking.graph=false",
       "hydra.run.dir=run")  # fmt: skip


def write_xor(path: Path, rows: int = 300) -> None:
    """Classes that no line can tell apart, and trees can."""
    draw = random.Random(0)
    lines = ["a,b,color,y"]
    for _ in range(rows):
        a = draw.uniform(-1, 1)
        b = draw.uniform(-1, 1)
        lines.append(f"{a:.3f},{b:.3f},{draw.choice(['red', 'blue'])},{'in' if a * b > 0 else 'out'}")
    path.write_text("\n".join(lines) + "\n")


def make_regression() -> tuple[dict[str, Split], DataSpec]:
    """Targets of about 1,000; the second column holds codes of 3 categories, the test part has an unknown."""
    draw = np.random.default_rng(0)
    codes = draw.integers(1, 4, 80)
    codes[70:] = 0
    x = np.stack([draw.normal(size=80), codes], axis=1)
    y = 1000 + 50 * x[:, :1] + 30 * (codes[:, None] == 2) + draw.normal(size=(80, 1))
    split = Split((torch.from_numpy(x),), torch.from_numpy(y))
    spec = DataSpec("vector", (2,), "regression", 1, target_mean=(1000.0,), target_std=(50.0,), code_counts=(0, 4))
    return {"train": take(split, torch.arange(60), "train"), "test": take(split, torch.arange(60, 80), "test")}, spec


@pytest.mark.slow
def test_metrics_are_those_of_scikit_learn_in_the_unit_of_the_target() -> None:
    from sklearn.linear_model import Ridge
    from sklearn.metrics import mean_squared_error, r2_score

    rows, spec = make_regression()
    scores, notes = simple_models.fit_and_score(rows, spec, Objective(spec))
    columns = {}
    for name, part in rows.items():
        x = part.inputs[0].numpy()
        # By hand, a column a category, and none for the unknown.
        columns[name] = np.column_stack([x[:, 0], *(x[:, 1] == code for code in (1, 2, 3))])
    model = Ridge().fit(columns["train"], rows["train"].targets[:, 0].numpy())
    predicted = model.predict(columns["test"])
    true = rows["test"].targets[:, 0].numpy()
    ridge = scores["ridge regression"]
    assert ridge["test/mse"] == pytest.approx(mean_squared_error(true, predicted), rel=1e-6)
    assert ridge["test/r2"] == pytest.approx(r2_score(true, predicted), abs=1e-6)
    assert set(scores) == {"ridge regression", "gradient boosting"}
    assert not notes
    assert not any(key.endswith("loss") for key in ridge)


@pytest.mark.slow
def test_large_tables_are_cut_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, spec = make_regression()
    monkeypatch.setattr(simple_models, "_MOST_VALUES", 40)
    monkeypatch.setattr(simple_models, "_MOST_TREE_VALUES", 1)
    scores, notes = simple_models.fit_and_score(rows, spec, Objective(spec))
    assert list(scores) == ["ridge regression"]
    assert "20 of 60 training rows" in notes[0]
    assert "gradient boosting was not tried" in notes[1]


@pytest.mark.slow
def test_a_run_says_where_boosting_wins(dlrun: Callable, tmp_path: Path) -> None:
    write_xor(tmp_path / "xor.csv")
    outcome = dlrun(*RUN)
    assert outcome.code == 0, outcome.err
    scores = outcome.result["simple_models"]
    accuracy = scores["gradient boosting"]["test/accuracy"]
    assert accuracy > 0.9 > outcome.result["metrics"]["test/accuracy"]
    (note,) = [note for note in outcome.result["warnings"] if "scikit-learn's gradient boosting is better" in note]
    assert f"on the 60 test rows: accuracy {accuracy:.4f}, this net" in note
    assert " ".join(f"note: {note}".split()) in " ".join(outcome.out.split())
    page = (tmp_path / "run" / "report.html").read_text()
    assert "scikit-learn on the same rows" in page
    assert f"{accuracy:.4f}" in page

    # Without it, and in a sweep, nothing is fitted, and the run is the same one.
    off = dlrun(*RUN[:-1], "hydra.run.dir=off", "tracking.simple_models=false")
    assert off.code == 0
    assert "simple_models" not in off.result
    assert off.result["config_hash"] == outcome.result["config_hash"]
    assert dlrun(*RUN[:-1], "-m", "seed=0,1", "sweep.dir=sweep").code == 0
    results = list((tmp_path / "sweep").glob("*/result.json"))
    assert len(results) == 2
    assert not any("simple_models" in json.loads(path.read_text()) for path in results)


def test_other_data_are_left_alone_and_told(dlrun: Callable) -> None:
    outcome = dlrun("data=line", "model=linear", "trainer.epochs=1", "tracking.simple_models=true", "figures=false",
                 "tracking.graph=false")  # fmt: skip
    assert outcome.code == 0
    assert "simple_models" not in outcome.result
    assert any("tracking.simple_models" in note and "data=table" in note for note in outcome.result["warnings"])
