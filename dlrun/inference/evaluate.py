"""`dlrun eval RUN_OR_CHECKPOINT [split=...] [key=value ...]`: metrics of saved weights on a split, test by default."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlrun.config import unheeded
from dlrun.core.errors import DataError, RunError
from dlrun.core.files import is_about
from dlrun.data import series, tables, text
from dlrun.data.datasets import count_rows, join_parts
from dlrun.data.inspection import get_valid_targets
from dlrun.data.spec import PADDING
from dlrun.data.targets import FILE_TARGETS, SERIES_TARGET, TABLE_TARGET, TEXT_TARGET
from dlrun.data.windows import is_series
from dlrun.engine import trainer
from dlrun.engine.calibration import Calibration, compute_calibration
from dlrun.engine.objective import Objective
from dlrun.engine.per_class import PerClass, count_per_class, count_per_label
from dlrun.experiment import ignored, results
from dlrun.experiment.builder import build
from dlrun.inference.eval_folder import Evaluation, write_evaluation
from dlrun.inference.saved_model import SavedModel, load_weights, open_saved_model, read_run_name
from dlrun.runs import folder as run_folder
from dlrun.runs.record import RunRecord
from dlrun.runs.reports.console import Console, build_table, format_facts, format_number
from dlrun.runs.reports.plots import fonts

# Data that are known again by the bytes of their files.
_HASHES = {TABLE_TARGET: tables.hash_files, TEXT_TARGET: text.hash_files, SERIES_TARGET: series.hash_files}
_MAX_CLASS_LINES = 20


@dataclass
class PredictionCollector:
    """Predictions of all rows, collected batch by batch on the CPU; of sequences each tag is a row."""

    objective: Objective
    # (N,) classes, (N, labels) of 0 and 1, or (N, columns) values.
    targets: list[Tensor] = field(default_factory=list)
    # Of the same shape.
    predictions: list[Tensor] = field(default_factory=list)
    # (N,), of the predicted class; for binary tasks of class 1; for multilabel (N, labels).
    probabilities: list[Tensor] = field(default_factory=list)

    def add(self, _inputs: tuple[Tensor, ...], outputs: Tensor, targets: Tensor) -> None:
        """Add one batch."""
        task = self.objective.spec.task
        predictions = self.objective.predict(outputs)
        if task == "regression":
            self._append(targets.double(), predictions.double())
            return

        probabilities = self.objective.compute_probabilities(outputs.float())
        if task == "multitask":
            self._append(targets.double(), predictions.double(), probabilities)
            return
        if task == "multilabel":
            self._append(targets.long(), predictions, probabilities)
            return

        # Of several classes, the probability of the predicted one.
        if task != "binary":
            probabilities = probabilities.max(-1).values
        # Boolean indexing flattens (N, length) to (tags,).
        is_real = targets != PADDING
        self._append(targets[is_real], predictions[is_real], probabilities[is_real])

    def _append(self, targets: Tensor, predictions: Tensor, probabilities: Tensor | None = None) -> None:
        self.targets.append(targets.cpu())
        self.predictions.append(predictions.cpu())
        if probabilities is not None:
            self.probabilities.append(probabilities.cpu())

    def concatenate(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return targets, predictions and probabilities of all rows; no probabilities for regression."""
        targets = torch.cat(self.targets)
        predictions = torch.cat(self.predictions)
        probabilities = torch.cat(self.probabilities) if self.probabilities else None
        return targets, predictions, probabilities


def evaluate(words: list[str], split: str | None = None) -> dict[str, float]:
    """Evaluate the best checkpoint of a run, or the named file; print and write the result, return the metrics."""
    place = read_run_name(words, "eval")
    overrides = words[1:]
    unheeded.refuse_unheeded(overrides, "dlrun eval")

    console = Console()
    with open_saved_model(place, overrides) as saved_model:
        evaluation = evaluate_split(saved_model, split)
        _print_evaluation(console, evaluation)
        if saved_model.folder is None:
            console.say("nothing was written: the checkpoint lies in no run folder")
            return evaluation.metrics

        try:
            folder = write_evaluation(evaluation, saved_model.folder, figures="figures=false" not in words)
        except OSError as error:
            # An OSError about another file is a bug, and deserves its traceback.
            if not is_about(error, saved_model.folder):
                raise
            raise RunError(
                f"{saved_model.folder}/eval cannot be written ({error.strerror}); the metrics above are complete"
            ) from error

        # Characters that no installed font can draw are reported once, after all figures.
        for line in fonts.describe_missing_letters():
            console.say(f"note: {line}")
        console.say(format_facts([("written to", run_folder.format_path(folder))]))
    return evaluation.metrics


def evaluate_split(saved_model: SavedModel, split: str | None = None) -> Evaluation:
    """Evaluate a split. None is the test part, or every row of a file that the run has not seen."""
    if split is None:
        unsplit = _read_unsplit_if_unseen(saved_model)
        if unsplit is not None:
            saved_model = unsplit
            split = "all"
    name, batches, origin = saved_model.load_held_out() if split is None else saved_model.load_part(split)

    collector = PredictionCollector(saved_model.objective)
    autocast = saved_model.runtime.autocast
    values = trainer.evaluate(saved_model.model, batches, saved_model.objective, autocast, on_batch=collector.add)
    metrics = {f"{name}/{key}": value for key, value in values.items()}

    # The averaged weights pass through the same model, which gets its own weights back afterwards.
    if saved_model.averaged_weights is not None:
        load_weights(saved_model.model, saved_model.averaged_weights, saved_model.path)
        averaged_values = trainer.evaluate(saved_model.model, batches, saved_model.objective, autocast)
        metrics |= {f"{name}/ema_{key}": value for key, value in averaged_values.items()}
        load_weights(saved_model.model, saved_model.state["model"], saved_model.path)

    baseline = _compute_baseline(saved_model, name)
    recorded = _read_recorded_metrics(saved_model, name)
    targets, predictions, probability = collector.concatenate()
    evaluation = Evaluation(
        saved_model, name, batches.rows, metrics, baseline, recorded, targets, predictions, probability, origin
    )
    if saved_model.spec.task == "multilabel":
        evaluation.classes = count_per_label(targets, predictions, saved_model.class_names)
    elif probability is not None and saved_model.spec.task != "multitask":
        evaluation.classes = count_per_class(targets, predictions, saved_model.class_names)
        evaluation.calibration = _calibrate(evaluation, probability)
    return evaluation


def _read_unsplit_if_unseen(saved_model: SavedModel) -> SavedModel | None:
    """Return the same model with its files read unsplit if the run has not seen them; None if it was trained on them.

    Training files are recognized even after they moved: they are split as in training, and the parts are compared.
    """
    if str(saved_model.settings.data.target) not in FILE_TARGETS:
        return None

    settings = build.disable_splitting(saved_model.settings, saved_model.request.overrides)
    unsplit = replace(saved_model, settings=settings)
    if not saved_model.state:
        # A full model does not record its training data: only data named by the command line count as unseen.
        return unsplit if saved_model.is_data_named else None

    preprocessing = saved_model.state["spec"].get("preprocessing")
    hash_files = _HASHES.get(str(saved_model.settings.data.target))
    if preprocessing and hash_files is not None:
        return None if hash_files(saved_model.settings.data.arguments) == preprocessing["sha256"] else unsplit

    trained_path = saved_model.state["config"].get("data", {}).get("path")
    path = saved_model.settings.data.arguments.get("path")
    is_elsewhere = trained_path is None or Path(str(path)).resolve() != Path(str(trained_path)).resolve()
    if is_elsewhere and not _has_row_count_of_training(saved_model, unsplit):
        return unsplit
    try:
        return None if saved_model.is_training_data else unsplit
    except DataError:
        # They cannot even be split as the training data were.
        return unsplit


def _has_row_count_of_training(saved_model: SavedModel, unsplit: SavedModel) -> bool:
    """Whether there are about as many rows as in training, so that splitting them to compare is worth the time."""
    keys = saved_model.settings.data.keys
    if keys.train_rows is not None or keys.limit_batches is not None:
        return True

    rows = count_rows(unsplit.raw_splits.train)
    test_fraction = float(saved_model.settings.data.arguments.get("test_fraction") or 0)
    expected = rows * (1 - test_fraction) * (1 - keys.val_fraction)
    # The share is rounded class by class, and once more for the validation part; parts in files of their own take none.
    slack = 2 + len(unsplit.raw_splits.spec.class_names)
    trained_rows = int(saved_model.state.get("rows", rows))
    return expected - slack <= trained_rows <= rows


def _calibrate(evaluation: Evaluation, probability: Tensor) -> Calibration:
    if evaluation.saved_model.spec.task == "binary":
        is_positive = evaluation.targets == 1
        return compute_calibration(probability, is_positive, f"class {evaluation.saved_model.class_names[1]}")
    is_correct = evaluation.predictions == evaluation.targets
    return compute_calibration(probability, is_correct, "the predicted class")


def _compute_baseline(saved_model: SavedModel, name: str) -> dict[str, float]:
    """Metrics of always predicting the mean or majority class of the training part; for "all", of the rows themselves.

    Empty for "all" if the targets of a part are known only by reading every row.
    """
    if name != "all":
        baseline = results.compute_baseline(saved_model.objective, saved_model.splits)
        return {key: value for key, value in baseline.items() if key.startswith(f"{name}/")}

    if is_series(saved_model.splits.spec):
        parts = (saved_model.splits.train, saved_model.splits.val, saved_model.splits.test)
        every = join_parts({str(number): part for number, part in enumerate(parts) if part is not None})
        scores = results.score_naive_forecast(saved_model.objective, every, saved_model.splits.spec)
        return {f"all/{key}": value for key, value in scores.items()}
    # The whole data set has no separate training part to take a majority from.
    part_targets = []
    for part in (saved_model.splits.train, saved_model.splits.val, saved_model.splits.test):
        if part is None:
            continue
        targets = get_valid_targets(part, saved_model.splits.spec)
        if targets is None:
            return {}
        part_targets.append(targets)
    baseline = saved_model.objective.compute_baseline(torch.cat(part_targets), torch.cat(part_targets))
    return {f"all/{key}": value for key, value in baseline.items()}


def _read_recorded_metrics(saved_model: SavedModel, name: str) -> dict[str, Any]:
    """Metrics recorded by training: of the test part in result.json, of the validation part in the checkpoint."""
    if name == "val":
        metrics = saved_model.state.get("metrics", {})
    elif name == "test" and saved_model.folder is not None:
        metrics = RunRecord(saved_model.folder).result.get("metrics", {})
    else:
        return {}
    return {key: value for key, value in metrics.items() if key.startswith(f"{name}/")}


def _print_evaluation(console: Console, evaluation: Evaluation) -> None:
    """Print metrics beside the recorded ones and the baseline, then the classes and the calibration."""
    saved_model = evaluation.saved_model
    runtime = saved_model.runtime
    epoch = f" (epoch {saved_model.state['epoch']})" if "epoch" in saved_model.state else ""
    data = saved_model.request.choices.get("data")
    lines = [
        ("checkpoint", f"{saved_model.path}{epoch}"),
        ("device", f"{runtime.description}, {runtime.precision}"),
        ("data", f"{data}: {_describe_split(evaluation)}, {evaluation.rows:,} rows"),
    ]
    # Notes of the data set itself, then overrides that had no effect on it.
    lines += [("note", note) for note in saved_model.splits.notes]
    notes = ignored.find_ignored_data_keys(
        saved_model.raw_splits, saved_model.settings.data.target, saved_model.request.overrides
    )
    lines += [("note", note) for note in notes]
    console.say(format_facts(lines))
    console.say()

    rows = []
    for key, value in evaluation.metrics.items():
        recorded = _format_or_dash(evaluation.recorded.get(key))
        baseline = _format_or_dash(evaluation.baseline.get(key))
        rows.append((key, format_number(value), recorded, baseline))
    console.say(build_table(("metric", "now", "recorded", "baseline"), rows))
    for line in _compare_with_recorded(evaluation):
        console.say(line)

    if evaluation.classes is not None:
        console.say()
        _print_classes(console, evaluation.classes, "label" if saved_model.spec.task == "multilabel" else "class")
    if evaluation.calibration is not None:
        console.say(_format_calibration(evaluation.calibration))
    console.say()


def _format_or_dash(value: float | None) -> str:
    return "-" if value is None else format_number(value)


def _describe_split(evaluation: Evaluation) -> str:
    if evaluation.split != "all":
        return evaluation.split
    return "all" if evaluation.saved_model.is_training_data else "all, as the run has not seen them"


def _compare_with_recorded(evaluation: Evaluation) -> list[str]:
    """State whether the metrics equal those of training; empty if there is no reason why they should."""
    saved_model = evaluation.saved_model
    common_keys = [key for key in evaluation.metrics if evaluation.recorded.get(key) is not None]
    if not common_keys or not saved_model.is_training_data or not saved_model.state or saved_model.folder is None:
        return []

    # result.json holds the test metrics of the best weights alone.
    best_epoch = RunRecord(saved_model.folder).best_epoch
    if evaluation.split == "test" and saved_model.state["epoch"] != best_epoch:
        return [f"recorded: of the best weights, those of epoch {best_epoch}"]

    difference = max(abs(evaluation.metrics[key] - evaluation.recorded[key]) for key in common_keys)
    if difference == 0:
        return ["the same as recorded in training, to the last bit"]
    return [f"up to {difference:.2g} from what was recorded in training: weights and data are the same, the sums round"]


def _print_classes(console: Console, classes: PerClass, noun: str) -> None:
    # name, precision, recall, f1, support, ...
    rows = classes.compute_rows()
    visible_rows = rows
    if len(rows) > _MAX_CLASS_LINES:
        has_support = [row for row in rows if row[4]]
        visible_rows = sorted(has_support, key=lambda row: row[3] or 0.0)[:_MAX_CLASS_LINES]

    lines = [(row[0], *map(_format_or_dash, row[1:5])) for row in visible_rows]
    console.say(build_table((noun, "precision", "recall", "f1", "support"), lines))
    if len(rows) > len(visible_rows):
        plural = "labels" if noun == "label" else "classes"
        console.say(f"the {len(visible_rows)} of {len(rows)} {plural} with the lowest f1; all are in per_class.csv")

    mistakes = [f"{true} taken for {predicted} ({count:,})" for true, predicted, count in classes.find_most_confused()]
    if mistakes:
        console.say("most confused: " + ", ".join(mistakes))


def _format_calibration(calibration: Calibration) -> str:
    """Format the calibration error, with mean probability and frequency, which show the side it errs on."""
    # The frequency with which the predicted class is right is the accuracy.
    rate = "accuracy" if calibration.of.startswith("the predicted") else "its share"
    return (
        f"calibration: ECE {calibration.ece:.4f}; mean probability of {calibration.of} "
        f"{calibration.mean_confidence:.4f}, {rate} {calibration.mean_frequency:.4f}"
    )
