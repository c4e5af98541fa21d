"""What a notebook shows: tables and pictures of a run, its answers and other runs, and a mistake as its sentence."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import dlrun
from dlrun.inference.api import Run
from dlrun.inference.notebook import History
from dlrun.inference.predictions import Predictions

QUICK = ("tracking.graph=false", "figures=false", "trainer.epochs=3", "hydra.run.dir=runs/one")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    """A run without a test part; these tests only read it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(place)
        return dlrun.train("data=blobs", "data.val_fraction=0.2", *QUICK, quiet=True)


def cells(table: str) -> list[list[str]]:
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in table.splitlines() if line.startswith("<tr")]


def test_a_run_without_a_test_part_shows_the_metrics_of_validation(run: Run) -> None:
    assert f"val/loss {run.metrics['val/loss']:.4g}" in repr(run)
    assert "train/" not in repr(run)
    table = cells(run._repr_html_())
    assert table[0] == ["metric", "train", "val"]
    assert table[1] == ["loss", f"{run.metrics['train/loss']:.4g}", f"{run.metrics['val/loss']:.4g}"]


def test_the_history_is_rows_and_columns(run: Run) -> None:
    history = run.history
    assert [row["epoch"] for row in history] == history["epoch"] == [1, 2, 3]
    assert history[-1]["val/loss"] == history["val/loss"][-1] == run.metrics["val/loss"]
    assert history[1:]["epoch"] == [2, 3]
    with pytest.raises(KeyError, match=r"no row has 'val/los'; there are epoch, step, train/loss"):
        history["val/los"]


class Frame:
    """As much of pandas.DataFrame as `to_pandas` calls."""

    def __init__(self, rows: list[dict[str, float]], columns: list[str]) -> None:
        self.rows = rows
        self.columns = columns
        self.index = ""

    def set_index(self, name: str) -> "Frame":
        self.index = name
        return self


def test_the_history_as_a_data_frame(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # A stand-in: scikit-learn imports pandas wherever it is installed, and tests of the start-up look at imports.
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=Frame))
    frame = run.history.to_pandas()
    assert frame.index == "epoch"
    assert frame.columns == run.history.columns
    assert [row["val/loss"] for row in frame.rows] == run.history["val/loss"]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(dlrun.RequestError, match=r"^pandas is not installed; type pip install pandas$"):
        run.history.to_pandas()


def test_of_a_long_history_the_ends_are_shown() -> None:
    history = History({"epoch": float(i), "val/loss": 1 / i} for i in range(1, 31))
    text = history._repr_html_()
    assert [row[0] for row in cells(text)] == ["epoch", "1", "2", "3", "4", "5", "epoch", "26", "27", "28", "29", "30"]
    assert "<p>20 more epochs</p>" in text


@pytest.mark.slow
def test_the_curves_are_a_picture(run: Run, tmp_path: Path) -> None:
    picture = run.plot()
    path = picture.save(tmp_path / "curves.png")
    assert path.read_bytes() == picture._repr_png_()
    with Image.open(path) as image:
        assert image.width > 500
    lines = {line.get_label(): line for line in picture.figure.axes[0].lines}
    assert lines["val"].get_ydata().tolist() == run.history["val/loss"]  # type: ignore[union-attr]
    assert [axes.get_title() for axes in picture.figure.axes] == ["loss", "accuracy", "macro_f1"]


def test_predictions_in_text_and_as_a_table(run: Run) -> None:
    answers = run.predict(run.splits.train.inputs[0][:3])
    assert answers.probabilities is not None
    best = answers.probabilities.amax(1).tolist()
    shown = ", ".join(f"{label} ({p:.2f})" for label, p in zip(answers.labels, best, strict=True))
    assert repr(answers) == f"<3 predictions: {shown}>"
    table = cells(answers._repr_html_())
    assert table[1:] == [[str(i), answers.labels[i], f"{best[i]:.3f}"] for i in range(3)]


def test_of_many_predictions_the_first_are_shown() -> None:
    values = Predictions(torch.arange(24.0).reshape(12, 2), None, [])
    assert repr(values).endswith("18 19, ... 2 more>")
    assert len(cells(values._repr_html_())) == 11
    assert "<p>2 more rows</p>" in values._repr_html_()


def test_names_of_classes_are_text_in_a_table() -> None:
    hostile = Predictions(torch.tensor([0]), torch.tensor([[1.0]]), ["<script>\x1b[31m"])
    assert "<script>" not in hostile._repr_html_()
    assert "\x1b" not in hostile._repr_html_() + repr(hostile)


def test_saved_runs_are_listed(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    listed = dlrun.runs("runs")
    assert [str(record.folder) for record in listed] == ["runs/one"]
    assert listed[0].metrics["val/loss"] == run.metrics["val/loss"]
    assert repr(listed) == f"runs/one  completed  val/loss {run.history['val/loss'][-1]:.4g}"
    assert cells(listed._repr_html_())[1][:3] == ["runs/one", "completed", "3"]
    assert repr(dlrun.runs(place / "runs" / "one" / "checkpoints")) == "no runs"
    with pytest.raises(dlrun.RequestError, match=r"^there is no folder nosuch; type dlrun\.runs\('outputs'\)$"):
        dlrun.runs("nosuch")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"epochs": 3}, "not epochs=...; type dlrun.train('trainer.epochs=3')"),
        ({"model": "cnn", "lr": 0.1}, "not model=..., lr=...; type dlrun.train('model=cnn', 'optimizer.lr=0.1')"),
        ({"hidden_sizes": [3]}, "not hidden_sizes=...; type dlrun.train('model.hidden_sizes=[3]')"),
        ({"figures": False}, "not figures=...; type dlrun.train('figures=false')"),
        ({"xyzzy": 1}, "not xyzzy=...; dlrun --cfg job shows all keys"),
    ],
)
def test_keywords_are_answered_by_the_words(keywords: dict[str, object], message: str) -> None:
    with pytest.raises(dlrun.RequestError) as caught:
        dlrun.train("data=blobs", **keywords)  # type: ignore[arg-type]
    assert str(caught.value) == f"dlrun.train takes key=value words, {message}"


def test_a_mistake_shows_its_sentence_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(dlrun.RequestError) as caught:
        dlrun.load("nowhere")
    # IPython shows these lines in place of a traceback.
    assert caught.value._render_traceback_() == [f"RequestError: {caught.value}"]
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert "Traceback" in caught.value._render_traceback_()[0]
