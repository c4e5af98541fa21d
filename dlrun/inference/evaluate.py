"""`dlrun eval RUN_OR_CHECKPOINT [split=...] [key=value ...]`: metrics of saved weights on a split, test by default."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlrun.config import unheeded
from dlrun.core.errors import DataError, RequestError, RunError
from dlrun.core.files import is_about
from dlrun.core.suggest import did_you_mean
from dlrun.data.datasets import count_rows
from dlrun.data.inspection import get_valid_targets
from dlrun.data.spec import PADDING
from dlrun.engine import trainer
from dlrun.engine.calibration import Calibration, compute_calibration
from dlrun.engine.objective import Objective
from dlrun.engine.per_class import PerClass, count_per_class
from dlrun.experiment import ignored, result
from dlrun.experiment.builder import build
from dlrun.inference.eval_folder import Evaluation, write_evaluation
from dlrun.inference.saved_model import SavedModel, load_weights, open_saved_model, read_run_name
from dlrun.runs import folder as run_folder
from dlrun.runs.record import RunRecord
from dlrun.runs.reports.console import Console, build_table, format_facts, format_number
from dlrun.runs.reports.plots import fonts

SPLITS = ("train", "val", "test", "all")
# Data in files of the user: files that the run has not seen are evaluated whole.
_FILE_TARGETS = ("dlrun.data.tabular.csv", "dlrun.data.folders.image_folder", "dlrun.data.arrays.arrays")
_MAX_CLASS_LINES = 20


@dataclass
class PredictionCollector:
    """Predictions of all rows, collected batch by batch on the CPU; of sequences each tag is a row."""

    task: Objective
    # (N,) classes, or (N, columns) values.
    targets: list[Tensor] = field(default_factory=list)
    # Of the same shape.
    predictions: list[Tensor] = field(default_factory=list)
    # (N,), of the predicted class; for binary tasks of class 1.
    probabilities: list[Tensor] = field(default_factory=list)

    def add(self, _inputs: tuple[Tensor, ...], outputs: Tensor, targets: Tensor) -> None:
        """Add one batch."""
        predictions = self.task.predict(outputs)
        if self.task.spec.task == "regression":
            self.targets.append(targets.double().cpu())
            self.predictions.append(predictions.double().cpu())
            return

        probabilities = self.task.compute_probabilities(outputs.float())
        if self.task.spec.task != "binary":
            probabilities = probabilities.max(-1).values

        # Boolean indexing flattens (N, length) to (tags,).
        is_real = targets != PADDING
        self.targets.append(targets[is_real].cpu())
        self.predictions.append(predictions[is_real].cpu())
        self.probabilities.append(probabilities[is_real].cpu())

    def concatenate(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return targets, predictions and probabilities of all rows; no probabilities for regression."""
        targets = torch.cat(self.targets)
        predictions = torch.cat(self.predictions)
        probabilities = torch.cat(self.probabilities) if self.probabilities else None
        return targets, predictions, probabilities


def evaluate(words: list[str]) -> dict[str, float]:
    """Evaluate the best checkpoint of a run, or the named file; print and write the result, return the metrics."""
    place = read_run_name(words, "eval")
    split_words = [word for word in words[1:] if word.startswith("split=")]
    overrides = [word for word in words[1:] if not word.startswith("split=")]
    # Of several split= words the first counts.
    split = split_words[0].removeprefix("split=") if split_words else None
    if split is not None and split not in SPLITS:
        raise RequestError(f"split={split} is none; {did_you_mean(split, SPLITS)}type split={', '.join(SPLITS)}")
    unheeded.refuse_unheeded(words[1:], "dlrun eval")

    console = Console()
    with open_saved_model(place, overrides) as saved:
        evaluation = evaluate_split(saved, split)
        print_evaluation(console, evaluation)
        if saved.folder is None:
            console.say("nothing was written: the checkpoint lies in no run folder")
            return evaluation.metrics

        try:
            folder = write_evaluation(evaluation, saved.folder, figures="figures=false" not in words)
        except OSError as error:
            # An OSError about another file is a bug, and deserves its traceback.
            if not is_about(error, saved.folder):
                raise
            raise RunError(
                f"{saved.folder}/eval cannot be written ({error.strerror}); the metrics above are complete"
            ) from error

        # Characters that no installed font can draw are reported once, after all figures.
        for line in fonts.describe_missing_letters():
            console.say(f"note: {line}")
        console.say(format_facts([("written to", run_folder.format_path(folder))]))
    return evaluation.metrics


def evaluate_split(saved: SavedModel, split: str | None = None) -> Evaluation:
    """Evaluate a split. None is the test part, or every row of a file that the run has not seen."""
    if split is None:
        unsplit = _read_unsplit_if_unseen(saved)
        if unsplit is not None:
            saved = unsplit
            split = "all"
    name, batches, origin = saved.load_held_out() if split is None else saved.load_part(split)

    collector = PredictionCollector(saved.task)
    autocast = saved.process.autocast
    values = trainer.evaluate(saved.model, batches, saved.task, autocast, on_batch=collector.add)
    metrics = {f"{name}/{key}": value for key, value in values.items()}

    # The averaged weights pass through the same model, which gets its own weights back afterwards.
    if saved.averaged_weights is not None:
        load_weights(saved.model, saved.averaged_weights, saved.path)
        averaged_values = trainer.evaluate(saved.model, batches, saved.task, autocast)
        metrics |= {f"{name}/ema_{key}": value for key, value in averaged_values.items()}
        load_weights(saved.model, saved.state["model"], saved.path)

    baseline = _compute_baseline(saved, name)
    recorded = _read_recorded_metrics(saved, name)
    targets, predictions, probability = collector.concatenate()
    evaluation = Evaluation(
        saved, name, batches.rows, metrics, baseline, recorded, targets, predictions, probability, origin
    )
    if probability is not None:
        evaluation.classes = count_per_class(targets, predictions, saved.class_names)
        evaluation.calibration = _calibrate(evaluation, probability)
    return evaluation


def _read_unsplit_if_unseen(saved: SavedModel) -> SavedModel | None:
    """Return the same model with its files read unsplit if the run has not seen them; None if it was trained on them.

    Training files are recognized even after they moved: they are split as in training, and the parts are compared.
    """
    if str(saved.settings.data.target) not in _FILE_TARGETS:
        return None

    overrides = saved.request.overrides
    unsplit = replace(saved, settings=build.disable_splitting(saved.settings, overrides))
    if not saved.state:
        # A full model does not record its training data: only data named by the command line count as unseen.
        names_data = any(word.lstrip("+").startswith("data") for word in overrides)
        return unsplit if names_data else None

    trained_path = saved.state["config"].get("data", {}).get("path")
    path = saved.settings.data.arguments.get("path")
    is_elsewhere = trained_path is None or Path(str(path)).resolve() != Path(str(trained_path)).resolve()
    if is_elsewhere and not _has_row_count_of_training(saved, unsplit):
        return unsplit
    try:
        return None if saved.is_training_data else unsplit
    except DataError:
        # They cannot even be split as the training data were.
        return unsplit


def _has_row_count_of_training(saved: SavedModel, unsplit: SavedModel) -> bool:
    """Whether there are about as many rows as in training, so that splitting them to compare is worth the time."""
    keys = saved.settings.data.keys
    if keys.train_rows is not None or keys.limit_batches is not None:
        return True

    rows = count_rows(unsplit.raw_splits.train)
    test_fraction = float(saved.settings.data.arguments.get("test_fraction") or 0)
    expected = rows * (1 - test_fraction) * (1 - keys.val_fraction)
    # The share is rounded class by class, and once more for the validation part; parts in files of their own take none.
    slack = 2 + len(unsplit.raw_splits.spec.class_names)
    trained_rows = int(saved.state.get("rows", rows))
    return expected - slack <= trained_rows <= rows


def _calibrate(evaluation: Evaluation, probability: Tensor) -> Calibration:
    if evaluation.saved.spec.task == "binary":
        is_positive = evaluation.targets == 1
        return compute_calibration(probability, is_positive, f"class {evaluation.saved.class_names[1]}")
    is_correct = evaluation.predictions == evaluation.targets
    return compute_calibration(probability, is_correct, "the predicted class")


def _compute_baseline(saved: SavedModel, name: str) -> dict[str, float]:
    """Metrics of always predicting the mean or majority class of the training part; for "all", of the rows themselves.

    Empty for "all" if the targets of a part are known only by reading every row.
    """
    if name != "all":
        baseline = result.compute_baseline(saved.task, saved.splits)
        return {key: value for key, value in baseline.items() if key.startswith(f"{name}/")}

    # The whole data set has no separate training part to take a majority from.
    part_targets = []
    for part in (saved.splits.train, saved.splits.val, saved.splits.test):
        if part is None:
            continue
        targets = get_valid_targets(part, saved.splits.spec)
        if targets is None:
            return {}
        part_targets.append(targets)
    baseline = saved.task.compute_baseline(torch.cat(part_targets), torch.cat(part_targets))
    return {f"all/{key}": value for key, value in baseline.items()}


def _read_recorded_metrics(saved: SavedModel, name: str) -> dict[str, Any]:
    """Metrics recorded by training: of the test part in result.json, of the validation part in the checkpoint."""
    if name == "val":
        metrics = saved.state.get("metrics", {})
    elif name == "test" and saved.folder is not None:
        metrics = RunRecord(saved.folder).result.get("metrics", {})
    else:
        return {}
    return {key: value for key, value in metrics.items() if key.startswith(f"{name}/")}


def print_evaluation(console: Console, evaluation: Evaluation) -> None:
    """Print metrics beside the recorded ones and the baseline, then the classes and the calibration."""
    saved = evaluation.saved
    process = saved.process
    epoch = f" (epoch {saved.state['epoch']})" if "epoch" in saved.state else ""
    data = saved.request.choices.get("data")
    lines = [
        ("checkpoint", f"{saved.path}{epoch}"),
        ("device", f"{process.description}, {process.precision}"),
        ("data", f"{data}: {_describe_split(evaluation)}, {evaluation.rows:,} rows"),
    ]
    # Notes of the data set itself, then overrides that had no effect on it.
    lines += [("note", note) for note in saved.splits.notes]
    notes = ignored.find_unheeded_data(saved.raw_splits, saved.settings.data.target, saved.request.overrides)
    lines += [("note", note) for note in notes]
    console.say(format_facts(lines))
    console.say()

    rows = []
    for key, value in evaluation.metrics.items():
        recorded = _format_or_dash(evaluation.recorded.get(key))
        baseline = _format_or_dash(evaluation.baseline.get(key))
        rows.append((key, format_number(value), recorded, baseline))
    console.say(build_table(("metric", "now", "recorded", "baseline"), rows))
    for line in compare_with_recorded(evaluation):
        console.say(line)

    if evaluation.classes is not None:
        console.say()
        _print_classes(console, evaluation.classes)
    if evaluation.calibration is not None:
        console.say(format_calibration(evaluation.calibration))
    console.say()


def _format_or_dash(value: float | None) -> str:
    return "-" if value is None else format_number(value)


def _describe_split(evaluation: Evaluation) -> str:
    if evaluation.split != "all":
        return evaluation.split
    return "all" if evaluation.saved.is_training_data else "all, as the run has not seen them"


def compare_with_recorded(evaluation: Evaluation) -> list[str]:
    """State whether the metrics equal those of training; empty if there is no reason why they should."""
    saved = evaluation.saved
    shared = [key for key in evaluation.metrics if evaluation.recorded.get(key) is not None]
    if not shared or not saved.is_training_data or not saved.state or saved.folder is None:
        return []

    # result.json holds the test metrics of the best weights alone.
    best_epoch = RunRecord(saved.folder).best_epoch
    if evaluation.split == "test" and saved.state["epoch"] != best_epoch:
        return [f"recorded: of the best weights, those of epoch {best_epoch}"]

    difference = max(abs(evaluation.metrics[key] - evaluation.recorded[key]) for key in shared)
    if difference == 0:
        return ["the same as recorded in training, to the last bit"]
    return [f"up to {difference:.2g} from what was recorded in training: weights and data are the same, the sums round"]


def _print_classes(console: Console, classes: PerClass) -> None:
    # name, precision, recall, f1, support, ...
    rows = classes.compute_rows()
    visible_rows = rows
    if len(rows) > _MAX_CLASS_LINES:
        has_support = [row for row in rows if row[4]]
        visible_rows = sorted(has_support, key=lambda row: row[3] or 0.0)[:_MAX_CLASS_LINES]

    lines = [(row[0], *map(_format_or_dash, row[1:5])) for row in visible_rows]
    console.say(build_table(("class", "precision", "recall", "f1", "support"), lines))
    if len(rows) > len(visible_rows):
        console.say(f"the {len(visible_rows)} of {len(rows)} classes with the lowest f1; all are in per_class.csv")

    mistakes = [f"{true} taken for {predicted} ({count:,})" for true, predicted, count in classes.find_most_confused()]
    if mistakes:
        console.say("most confused: " + ", ".join(mistakes))


def format_calibration(calibration: Calibration) -> str:
    """Format the calibration error, with mean probability and frequency, which show the side it errs on."""
    # The frequency with which the predicted class is right is the accuracy.
    rate = "accuracy" if calibration.of.startswith("the predicted") else "its share"
    return (
        f"calibration: ECE {calibration.ece:.4f}; mean probability of {calibration.of} "
        f"{calibration.mean_confidence:.4f}, {rate} {calibration.mean_frequency:.4f}"
    )
