"""RUN/eval/<time>/: the files that an evaluation writes, never over an earlier one."""

import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dlrun.config.schema import strip_permission_words
from dlrun.core.csv_text import CsvWriter
from dlrun.core.files import write_json, write_text
from dlrun.core.new_folder import create_folder
from dlrun.data.origin import Origin
from dlrun.data.spec import Output
from dlrun.data.windows import is_series, name_steps
from dlrun.engine.calibration import Calibration
from dlrun.engine.per_class import PerClass
from dlrun.inference.predict.answer import undo_normalization
from dlrun.inference.saved_model import SavedModel
from dlrun.runs.reports.plots import canvas, classification, reconstruction, regression

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Evaluation:
    """Results of one split: metrics, and targets and predictions row by row."""

    saved_model: SavedModel
    split: str
    rows: int
    # With the split's name in front, as in test/loss.
    metrics: dict[str, float]
    baseline: dict[str, float]
    # The same metrics as training recorded them.
    recorded: dict[str, Any]
    # (N,) classes, (N, labels) of 0 and 1, or (N, columns) values.
    targets: Tensor
    predictions: Tensor
    # (N,), for multilabel (N, labels); None for regression.
    probability: Tensor | None
    # File and line of each row.
    origin: Origin
    classes: PerClass | None = None
    calibration: Calibration | None = None


def write_evaluation(evaluation: Evaluation, run: Path, figures: bool) -> Path:
    """Write a new folder in RUN/eval, which appears complete or not at all; OSError if it cannot be written."""
    with create_folder(run / "eval", f"{datetime.now():%Y-%m-%d_%H-%M-%S}") as folder:
        _write_files(folder.temporary, evaluation, figures)
    return folder.final


def _write_files(folder: Path, evaluation: Evaluation, figures: bool) -> None:
    write_json(folder / "metrics.json", _describe_evaluation(evaluation))
    if evaluation.classes is not None:
        write_text(folder / "per_class.csv", evaluation.classes.to_csv())
    # A tag is no row of a file.
    if evaluation.saved_model.spec.task != "tagging":
        write_text(folder / "predictions.csv", _format_predictions(evaluation))
    if figures:
        (folder / "figures").mkdir()
        for name, figure in _draw_figures(evaluation):
            canvas.save_png(canvas.render_pixels(figure), folder / "figures" / f"{name}.png")


def _describe_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of metrics.json."""
    saved_model = evaluation.saved_model
    calibration = evaluation.calibration
    return {
        "checkpoint": str(saved_model.path),
        "epoch": saved_model.state.get("epoch"),
        "run_id": saved_model.state.get("run_id"),
        "data": saved_model.request.choices.get("data"),
        "overrides": strip_permission_words(saved_model.request.overrides),
        "split": evaluation.split,
        "rows": evaluation.rows,
        "metrics": evaluation.metrics,
        "recorded": evaluation.recorded,
        "baseline": evaluation.baseline,
        "calibration": None if calibration is None else _describe_calibration(calibration),
        "device": f"{saved_model.runtime.device}, {saved_model.runtime.precision}, {torch.get_num_threads()} threads",
        "evaluated": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {"dlrun": version("dlrun"), "torch": str(torch.__version__)},
    }


def _describe_calibration(calibration: Calibration) -> dict[str, Any]:
    counts = calibration.counts.tolist()
    confidences = calibration.confidence.tolist()
    frequencies = calibration.frequency.tolist()
    bins = []
    for rows, confidence, frequency in zip(counts, confidences, frequencies, strict=True):
        bins.append({"rows": rows, "probability": confidence, "share_that_came_true": frequency})

    return {
        "of": calibration.of,
        "ece": calibration.ece,
        "mean_probability": calibration.mean_confidence,
        "share_that_came_true": calibration.mean_frequency,
        "bins": bins,
    }


def _format_predictions(evaluation: Evaluation) -> str:
    """Return predictions.csv: row number, target, prediction, for classes its probability, and the file of each row.

    Of an autoencoder: the mean squared error of each row, as the model sees it, and the values that it gives back in
    the data's own units.

    row counts from 0, like x[row] and pandas' iloc; line, for text files, from 1 with the header, like an editor.
    """
    columns = evaluation.origin.to_columns()
    # The row number comes first, the other columns of the origin last.
    numbers = columns.pop("row")
    places = zip(*columns.values(), strict=True)

    file = io.StringIO()
    writer = CsvWriter(file)
    writer.write_row(["row", *_name_columns(evaluation), *columns])
    rows = zip(numbers, _iterate_cells(evaluation), places, strict=True)
    writer.write_rows([number, *cells, *place] for number, cells, place in rows)
    return file.getvalue()


def _combine_names(kinds: Sequence[str], names: Sequence[str]) -> list[str]:
    """Columns such as true_a, true_b, predicted_a, predicted_b."""
    columns: list[str] = []
    for kind in kinds:
        columns += [f"{kind}_{name}" for name in names]
    return columns


def _name_columns(evaluation: Evaluation) -> list[str]:
    spec = evaluation.saved_model.spec
    if spec.outputs:
        return list(itertools.chain.from_iterable(map(_name_output_columns, spec.outputs)))
    if spec.task == "multilabel":
        return _combine_names(("true", "predicted", "probability"), evaluation.saved_model.class_names)
    if evaluation.probability is not None:
        return ["true", "predicted", "probability"]

    count = evaluation.targets.shape[1]
    if spec.reconstructs:
        names = spec.feature_names or [str(number) for number in range(count)]
        return ["mse", *(f"reconstructed_{name}" for name in names)]
    if count == 1:
        return ["true", "predicted"]
    names = name_steps(spec) if is_series(spec) else [str(number) for number in range(count)]
    return _combine_names(("true", "predicted"), names)


def _iterate_cells(evaluation: Evaluation) -> Iterator[list[Any]]:
    """Yield target and prediction of each row, in the order of `_name_columns`."""
    spec = evaluation.saved_model.spec
    if spec.reconstructs:
        errors = (evaluation.predictions - evaluation.targets).square().mean(1).tolist()
        values = undo_normalization(evaluation.predictions, spec).tolist()
        for error, row in zip(errors, values, strict=True):
            yield [error, *row]
        return

    if spec.outputs:
        yield from _iterate_output_cells(evaluation)
        return

    targets = evaluation.targets.tolist()
    predictions = evaluation.predictions.tolist()
    if evaluation.probability is None or evaluation.classes is None:
        for target, prediction in zip(targets, predictions, strict=True):
            yield [*target, *prediction]
        return

    if spec.task == "multilabel":
        for target, prediction, row in zip(targets, predictions, evaluation.probability.tolist(), strict=True):
            yield [*target, *prediction, *(f"{probability:.6f}" for probability in row)]
        return

    names = evaluation.classes.names
    is_binary = spec.task == "binary"
    probabilities = evaluation.probability.tolist()
    for target, prediction, probability in zip(targets, predictions, probabilities, strict=True):
        # Of a binary task the probability is that of class 1, whichever class was predicted.
        if is_binary and prediction == 0:
            probability = 1 - probability
        yield [names[target], names[prediction], f"{probability:.6f}"]


def _name_output_columns(output: Output) -> list[str]:
    """The columns of one of several outputs."""
    if output.task != "regression":
        return [f"{column}_{output.name}" for column in ("true", "predicted", "probability")]

    names = [output.name]
    if output.size > 1:
        names = [f"{output.name}_{number}" for number in range(output.size)]
    return [*(f"true_{name}" for name in names), *(f"predicted_{name}" for name in names)]


def _iterate_output_cells(evaluation: Evaluation) -> Iterator[list[Any]]:
    """Yield the cells of each row, in the order of `_name_output_columns`."""
    outputs = evaluation.saved_model.spec.outputs
    assert evaluation.probability is not None
    rows = zip(
        evaluation.targets.tolist(), evaluation.predictions.tolist(), evaluation.probability.tolist(), strict=True
    )
    for targets, predictions, probabilities in rows:
        cells: list[Any] = []
        start = 0
        for output, probability in zip(outputs, probabilities, strict=True):
            if output.task == "regression":
                end = start + output.columns
                cells += [*targets[start:end], *predictions[start:end]]
            else:
                names = [output.name_class(int(value)) for value in (targets[start], predictions[start])]
                cells += [*names, f"{probability:.6f}"]
            start += output.columns
        yield cells


def _draw_figures(evaluation: Evaluation) -> Iterator[tuple[str, "Figure"]]:
    spec = evaluation.saved_model.spec
    targets = evaluation.targets
    predictions = evaluation.predictions
    if spec.reconstructs:
        if spec.kind == "image":
            yield "reconstructions", reconstruction.draw_reconstructions(targets, predictions, spec, evaluation.split)
        return

    if evaluation.probability is None:
        names = name_steps(spec) if is_series(spec) else [str(i) for i in range(targets.shape[1])]
        yield "residuals", regression.draw_residuals(predictions, targets, names, evaluation.split)
        return

    if spec.task in ("multilabel", "multitask"):
        return
    yield "confusion", classification.draw_confusion_matrix(targets, predictions, spec, evaluation.split)
    if evaluation.calibration is not None:
        yield "reliability", classification.draw_reliability(evaluation.calibration, evaluation.split)
