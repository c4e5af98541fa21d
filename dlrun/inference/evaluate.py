"""`dlrun eval RUN_OR_CHECKPOINT [split=...] [key=value ...]`: what saved weights are worth, on the test split."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlrun.config import unheeded
from dlrun.core.errors import DataError, RequestError, RunError, did_you_mean
from dlrun.core.files import is_about
from dlrun.data.datasets import count_rows
from dlrun.data.inspection import get_valid_targets
from dlrun.data.spec import PADDING
from dlrun.engine import trainer
from dlrun.engine.calibration import Calibration, calibration
from dlrun.engine.objective import Objective
from dlrun.engine.per_class import PerClass, per_class
from dlrun.experiment import ignored, result
from dlrun.experiment.build import build
from dlrun.inference.eval_folder import Evaluation, write_evaluation
from dlrun.inference.saved_model import SavedModel, load_weights, open_saved_model, read_run_name
from dlrun.runs import folder as run_folder
from dlrun.runs.record import RunRecord
from dlrun.runs.reports.console import Console, facts, number, table
from dlrun.runs.reports.plots import fonts

SPLITS = ("train", "val", "test", "all")
# Files of the user's own: what the run has not seen of such is evaluated whole.
_OF_FILES = ("dlrun.data.tabular.csv", "dlrun.data.folders.image_folder", "dlrun.data.arrays.arrays")
_MOST_LINES = 20


@dataclass
class PredictionCollector:
    """What the model said of each row, collected batch by batch on the CPU; sequences count by their tags."""

    task: Objective
    targets: list[Tensor] = field(default_factory=list)  # (N,) classes, or (N, columns) values
    predicted: list[Tensor] = field(default_factory=list)  # the same
    probability: list[Tensor] = field(default_factory=list)  # (N,) of the predicted class; in a binary task of class 1

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """One batch."""
        said = self.task.predictions(outputs)
        if self.task.spec.task == "regression":
            self.targets.append(targets.double().cpu())
            self.predicted.append(said.double().cpu())
            return
        probability = self.task.probabilities(outputs.float())
        probability = probability if self.task.spec.task == "binary" else probability.max(-1).values
        real = targets != PADDING
        self.targets.append(targets[real].cpu())
        self.predicted.append(said[real].cpu())
        self.probability.append(probability[real].cpu())

    def columns(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Targets, predictions and probabilities of all rows."""
        return (
            torch.cat(self.targets),
            torch.cat(self.predicted),
            torch.cat(self.probability) if self.probability else None,
        )


def evaluate(words: list[str]) -> dict[str, float]:
    """Print and write what the best checkpoint of a run, or the file named, is worth; returns the metrics."""
    place = read_run_name(words, "eval")
    asked = next((word.removeprefix("split=") for word in words[1:] if word.startswith("split=")), None)
    if asked is not None and asked not in SPLITS:
        raise RequestError(f"split={asked} is none; {did_you_mean(asked, SPLITS)}type split={', '.join(SPLITS)}")
    unheeded.refuse_unheeded(words[1:], "dlrun eval")
    console = Console()
    with open_saved_model(place, [word for word in words[1:] if not word.startswith("split=")]) as saved:
        found = evaluate_split(saved, asked)
        print_evaluation(console, found)
        figures = "figures=false" not in words
        if saved.folder is None:
            console.say("nothing was written: the checkpoint lies in no run folder")
            return found.metrics
        try:
            folder = write_evaluation(found, saved.folder, figures)
        except OSError as error:
            if not is_about(error, saved.folder):
                raise
            said = f"{saved.folder}/eval cannot be written ({error.strerror}); the metrics above are whole"
            raise RunError(said) from error
        for line in fonts.note():
            console.say(f"note: {line}")
        console.say(facts([("written to", run_folder.from_here(folder))]))
    return found.metrics


def evaluate_split(saved: SavedModel, split: str | None = None) -> Evaluation:
    """Send a split through the model: the test part where null, or every row of a file that the run has not seen."""
    unseen = _unseen(saved) if split is None else None
    if unseen is not None:
        saved, split = unseen, "all"
    name, batches, origin = saved.load_held_out() if split is None else saved.load_part(split)
    seen, process = PredictionCollector(saved.task), saved.process
    metrics = trainer.evaluate(saved.model, batches, saved.task, process.autocast, seen=seen.add)
    found = {f"{name}/{k}": v for k, v in metrics.items()}
    if saved.averaged_weights is not None:
        load_weights(saved.model, saved.averaged_weights, saved.path)
        averaged = trainer.evaluate(saved.model, batches, saved.task, process.autocast)
        found |= {f"{name}/ema_{k}": v for k, v in averaged.items()}
        load_weights(saved.model, saved.state["model"], saved.path)
    baseline, recorded = _baseline(saved, name), _recorded(saved, name)
    made = Evaluation(saved, name, batches.rows, found, baseline, recorded, *seen.columns(), origin)
    if made.probability is not None:
        made.classes = per_class(made.targets, made.predicted, saved.class_names)
        made.calibration = _calibration(made, made.probability)
    return made


def _unseen(saved: SavedModel) -> SavedModel | None:
    """The same with its files read whole, where the run has not seen them; None where it was trained on them.

    Those of the training are known again in another place too: parts are drawn of them as then, and compared.
    """
    if str(saved.settings.data.target) not in _OF_FILES:
        return None
    overrides = saved.request.overrides
    whole = replace(saved, settings=build.disable_splitting(saved.settings, overrides))
    if not saved.state:  # a full model does not say what it was trained on
        names_data = any(word.lstrip("+").startswith("data") for word in overrides)
        return whole if names_data else None
    trained_path = saved.state["config"].get("data", {}).get("path")
    path = saved.settings.data.arguments.get("path")
    is_elsewhere = trained_path is None or Path(str(path)).resolve() != Path(str(trained_path)).resolve()
    if is_elsewhere and not _may_be_seen(saved, whole):
        return whole
    try:
        return None if saved.is_training_data else whole
    except DataError:  # no parts can be drawn of them as for the training
        return whole


def _may_be_seen(saved: SavedModel, whole: SavedModel) -> bool:
    """Whether there are about as many rows as in training, so that drawing the parts as then is worth the time."""
    keys = saved.settings.data_keys
    if keys.train_rows is not None or keys.limit_batches is not None:
        return True
    rows = count_rows(whole.raw_splits.train)
    test_fraction = float(saved.settings.data.arguments.get("test_fraction") or 0)
    expected = rows * (1 - test_fraction) * (1 - keys.val_fraction)
    # The share is rounded class by class, and once more for the validation part; parts in files of their own take none.
    slack = 2 + len(whole.raw_splits.spec.class_names)
    trained_rows = int(saved.state.get("rows", rows))
    return expected - slack <= trained_rows <= rows


def _calibration(found: Evaluation, probability: Tensor) -> Calibration:
    if found.saved.spec.task == "binary":
        return calibration(probability, found.targets == 1, f"class {found.saved.class_names[1]}")
    return calibration(probability, found.predicted == found.targets, "the predicted class")


def _baseline(saved: SavedModel, name: str) -> dict[str, float]:
    """The metrics of the mean or the majority class of the training part; of the rows themselves for all of them."""
    if name != "all":
        return {k: v for k, v in result.compute_baseline(saved.task, saved.splits).items() if k.startswith(f"{name}/")}
    parts = (saved.splits.train, saved.splits.val, saved.splits.test)
    targets = [get_valid_targets(part, saved.splits.spec) for part in parts if part is not None]
    there = [t for t in targets if t is not None]
    if len(there) < len(targets):
        return {}
    return {f"all/{k}": v for k, v in saved.task.baseline(torch.cat(there), torch.cat(there)).items()}


def _recorded(saved: SavedModel, name: str) -> dict[str, Any]:
    """What training wrote down: of the test part result.json, of the validation part the checkpoint itself."""
    if name == "val":
        return {k: v for k, v in saved.state.get("metrics", {}).items() if k.startswith("val/")}
    if saved.folder is None or name != "test":
        return {}
    metrics = RunRecord(saved.folder).result.get("metrics", {})
    return {k: v for k, v in metrics.items() if k.startswith("test/")}


def print_evaluation(console: Console, found: Evaluation) -> None:
    """Metrics beside those recorded and the baseline, the classes, and the calibration."""
    saved, process = found.saved, found.saved.process
    epoch = f" (epoch {saved.state['epoch']})" if "epoch" in saved.state else ""
    lines = [
        ("checkpoint", f"{saved.path}{epoch}"),
        ("device", f"{process.took}, {process.precision}"),
        ("data", f"{saved.request.choices.get('data')}: {_split_name(found)}, {found.rows:,} rows"),
    ]
    lines += [("note", note) for note in saved.splits.notes]
    notes = ignored.find_unheeded_data(saved.raw_splits, saved.settings.data.target, saved.request.overrides)
    lines += [("note", note) for note in notes]
    console.say(facts(lines))
    console.say()
    rows = []
    for key, value in found.metrics.items():
        cells = [found.recorded.get(key), found.baseline.get(key)]
        rows.append((key, number(value), *("-" if cell is None else number(cell) for cell in cells)))
    console.say(table(("metric", "now", "recorded", "baseline"), rows))
    for line in compare_with_recorded(found):
        console.say(line)
    if found.classes is not None:
        console.say()
        _show_classes(console, found.classes)
    if found.calibration is not None:
        console.say(format_calibration(found.calibration))
    console.say()


def _split_name(found: Evaluation) -> str:
    if found.split != "all":
        return found.split
    return "all" if found.saved.is_training_data else "all, as the run has not seen them"


def compare_with_recorded(found: Evaluation) -> list[str]:
    """Whether the metrics are those of the training, where they should be; empty where they need not."""
    saved, shared = found.saved, [k for k in found.metrics if found.recorded.get(k) is not None]
    if not shared or not saved.is_training_data or not saved.state or saved.folder is None:
        return []
    best = RunRecord(saved.folder).best_epoch
    if found.split == "test" and saved.state["epoch"] != best:
        return [f"recorded: of the best weights, those of epoch {best}"]
    apart = max(abs(found.metrics[k] - found.recorded[k]) for k in shared)
    if apart == 0:
        return ["the same as recorded in training, to the last bit"]
    return [f"up to {apart:.2g} from what was recorded in training: weights and data are the same, the sums round"]


def _show_classes(console: Console, classes: PerClass) -> None:
    rows = classes.rows()
    worst = sorted((row for row in rows if row[4]), key=lambda row: row[3] or 0.0)[:_MOST_LINES]
    shown = rows if len(rows) <= _MOST_LINES else worst
    cells = [(row[0], *("-" if v is None else number(v) for v in row[1:5])) for row in shown]
    console.say(table(("class", "precision", "recall", "f1", "support"), cells))
    if len(rows) > len(shown):
        console.say(f"the {len(shown)} of {len(rows)} classes with the lowest f1; all are in per_class.csv")
    confused = classes.most_confused()
    if confused:
        console.say("most confused: " + ", ".join(f"{true} taken for {said} ({n:,})" for true, said, n in confused))


def format_calibration(found: Calibration) -> str:
    """The error, and on which side it lies on the whole."""
    said, came = found.mean_confidence, found.mean_frequency
    rate = "accuracy" if found.of.startswith("the predicted") else "its share"
    return f"calibration: ECE {found.ece:.4f}; mean probability of {found.of} {said:.4f}, {rate} {came:.4f}"
