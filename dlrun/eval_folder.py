"""RUN/eval/<time>/: what an evaluation leaves behind, never over an earlier one."""

import csv
import io
import itertools
import os
import shutil
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dlrun import run_folder
from dlrun.config import recorded_words
from dlrun.disk import write_atomically
from dlrun.plots import canvas, confusion, reliability, residuals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dlrun.evaluation import Evaluation


def write(found: "Evaluation", run: Path, figures: bool) -> Path:
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


def _fill(folder: Path, found: "Evaluation", figures: bool) -> None:
    run_folder.write_json(folder / "metrics.json", about(found))
    if found.classes is not None:
        write_atomically(folder / "per_class.csv", found.classes.as_csv().encode())
    if found.saved.spec.task != "tagging":
        write_atomically(folder / "predictions.csv", predictions(found).encode())
    if figures:
        (folder / "figures").mkdir()
        for name, figure in _pictures(found):
            canvas.save_png(canvas.pixels(figure), folder / "figures" / f"{name}.png")


def about(found: "Evaluation") -> dict[str, Any]:
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


def predictions(found: "Evaluation") -> str:
    """A line a row of the split, in its order: what is true, what was said, and the probability of a class."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    if found.probability is None or found.classes is None:
        count = found.targets.shape[1]
        ends = [""] if count == 1 else [f"_{i}" for i in range(count)]
        writer.writerow(["row", *(f"true{end}" for end in ends), *(f"predicted{end}" for end in ends)])
        columns = zip(found.targets.tolist(), found.predicted.tolist(), strict=True)
        writer.writerows([row, *true, *said] for row, (true, said) in enumerate(columns))
        return file.getvalue()
    names, binary = found.classes.names, found.saved.spec.task == "binary"
    writer.writerow(["row", "true", "predicted", "probability"])
    of_one = found.probability.tolist()
    rows = zip(found.targets.tolist(), found.predicted.tolist(), of_one, strict=True)
    for row, (true, said, p) in enumerate(rows):
        writer.writerow([row, names[true], names[said], f"{1 - p if binary and said == 0 else p:.6f}"])
    return file.getvalue()


def _pictures(found: "Evaluation") -> Iterator[tuple[str, "Figure"]]:
    spec = found.saved.spec
    if found.probability is None:
        names = [str(i) for i in range(found.targets.shape[1])]
        yield "residuals", residuals.residual_plot(found.predicted, found.targets, names, found.split)
        return
    yield "confusion", confusion.confusion_matrix(found.targets, found.predicted, spec, found.split)
    if found.calibration is not None:
        yield "reliability", reliability.reliability_diagram(found.calibration, found.split)
