"""RUN/eval/<time>/: what an evaluation leaves behind, never over an earlier one."""

import io
import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dlrun.config.schema import recorded_words
from dlrun.core.csv_text import CsvWriter
from dlrun.core.files import write_text
from dlrun.data.origin import Origin
from dlrun.engine.calibration import Calibration
from dlrun.engine.per_class import PerClass
from dlrun.inference.saved_model import SavedModel
from dlrun.runs import folder as run_folder
from dlrun.runs.reports.plots import canvas, confusion, reliability, residuals

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Evaluation:
    """What became of one split."""

    saved: SavedModel
    split: str
    rows: int
    metrics: dict[str, float]  # test/loss and so on
    baseline: dict[str, float]
    recorded: dict[str, Any]  # what training wrote down of the same
    targets: Tensor
    predicted: Tensor
    probability: Tensor | None  # null for quantities
    origin: Origin  # where the rows are from
    classes: PerClass | None = None
    calibration: Calibration | None = None


def write_evaluation(found: Evaluation, run: Path, figures: bool) -> Path:
    """A new folder in RUN/eval, which appears whole; returns it. OSError where it cannot be written."""
    parent = run / "eval"
    fresh = not parent.exists()
    hidden = parent / f".{os.getpid()}.tmp"
    try:
        hidden.mkdir(parents=True)
        _fill(hidden, found, figures)
        return _named(hidden, parent / f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        if fresh and parent.exists() and not any(parent.iterdir()):
            parent.rmdir()


def _named(hidden: Path, wanted: Path) -> Path:
    """Give the folder its name, with a number behind it where there is one already."""
    for suffix in itertools.chain([""], (f"_{i}" for i in itertools.count(2))):
        folder = wanted.with_name(wanted.name + suffix)
        if folder.exists():
            continue
        try:
            return hidden.rename(folder)
        except OSError:  # another evaluation of this second was faster: a folder that holds something is not replaced
            if not folder.exists():
                raise
    raise AssertionError("there is no end of numbers")


def _fill(folder: Path, found: Evaluation, figures: bool) -> None:
    run_folder.write_json(folder / "metrics.json", describe_evaluation(found))
    if found.classes is not None:
        write_text(folder / "per_class.csv", found.classes.as_csv())
    if found.saved.spec.task != "tagging":
        write_text(folder / "predictions.csv", format_predictions(found))
    if figures:
        (folder / "figures").mkdir()
        for name, figure in _pictures(found):
            canvas.save_png(canvas.pixels(figure), folder / "figures" / f"{name}.png")


def describe_evaluation(found: Evaluation) -> dict[str, Any]:
    """What metrics.json holds."""
    saved, calibration = found.saved, found.calibration
    return {
        "checkpoint": str(saved.path),
        "epoch": saved.state.get("epoch"),
        "run_id": saved.state.get("run_id"),
        "data": saved.request.choices.get("data"),
        "overrides": recorded_words(saved.request.overrides),
        "split": found.split,
        "rows": found.rows,
        "metrics": found.metrics,
        "recorded": found.recorded,
        "baseline": found.baseline,
        "calibration": None
        if calibration is None
        else {
            "of": calibration.of,
            "ece": calibration.ece,
            "mean_probability": calibration.mean_confidence,
            "share_that_came_true": calibration.mean_frequency,
            "bins": [
                {"rows": rows, "probability": said, "share_that_came_true": came}
                for rows, said, came in zip(
                    calibration.counts.tolist(),
                    calibration.confidence.tolist(),
                    calibration.frequency.tolist(),
                    strict=True,
                )
            ],
        },
        "device": f"{saved.process.device}, {saved.process.precision}, {torch.get_num_threads()} threads",
        "evaluated": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {"dlrun": version("dlrun"), "torch": str(torch.__version__)},
    }


def format_predictions(found: Evaluation) -> str:
    """A line a row: its number in its file, what is true, what was said, the probability of a class, and the file.

    row counts from 0, as x[row] and pandas' iloc do; line, of a text file, from 1 with the header, as an editor does.
    """
    file = io.StringIO()
    writer = CsvWriter(file)
    origin = found.origin.to_columns()
    numbers = origin.pop("row")
    rows = zip(numbers, _answers(found), zip(*origin.values(), strict=True), strict=True)
    writer.write_row(["row", *_heads(found), *origin])
    writer.write_rows([row, *answer, *place] for row, answer, place in rows)
    return file.getvalue()


def _heads(found: Evaluation) -> list[str]:
    if found.probability is not None:
        return ["true", "predicted", "probability"]
    count = found.targets.shape[1]
    ends = [""] if count == 1 else [f"_{i}" for i in range(count)]
    return [f"{kind}{end}" for kind in ("true", "predicted") for end in ends]


def _answers(found: Evaluation) -> Iterator[list[Any]]:
    """What is true and what was said of each row, under `_heads`."""
    pairs = zip(found.targets.tolist(), found.predicted.tolist(), strict=True)
    if found.probability is None or found.classes is None:
        for true, said in pairs:
            yield [*true, *said]
        return
    names = found.classes.names
    is_binary = found.saved.spec.task == "binary"
    for (true, said), p in zip(pairs, found.probability.tolist(), strict=True):
        shown = 1 - p if is_binary and said == 0 else p
        yield [names[true], names[said], f"{shown:.6f}"]


def _pictures(found: Evaluation) -> Iterator[tuple[str, "Figure"]]:
    spec = found.saved.spec
    if found.probability is None:
        names = [str(i) for i in range(found.targets.shape[1])]
        yield "residuals", residuals.residual_plot(found.predicted, found.targets, names, found.split)
        return
    yield "confusion", confusion.confusion_matrix(found.targets, found.predicted, spec, found.split)
    if found.calibration is not None:
        yield "reliability", reliability.reliability_diagram(found.calibration, found.split)
