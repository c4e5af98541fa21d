"""Which pictures a run gets: the same in figures/*.png and in TensorBoard."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dlrun.data.datasets import get_origin
from dlrun.engine import device
from dlrun.engine.evaluation import (
    MAX_ROWS,
    choose_split,
    collect_outputs,
    collect_rows,
    compute_outputs,
    evaluation_mode,
)
from dlrun.experiment.callbacks import evolution
from dlrun.experiment.context import RunContext
from dlrun.runs import logger
from dlrun.runs.logger import Logger
from dlrun.runs.reports.plots import (
    activations,
    canvas,
    confusion,
    decision,
    errors,
    fit,
    landscape,
    loss,
    probability,
    samples,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Named = tuple[str, "Figure | None"]
_PARAMETER = "parameter/"  # in front of a trained number's name in metrics.jsonl


def draw_all(parts: RunContext, folder: Path, tracker: Logger) -> None:
    """Every picture that makes sense for the run, and curves of precision over recall, from the weights it holds now.

    The model's mode and the generators are afterwards as they were.
    """
    target = folder / "figures"
    target.mkdir(exist_ok=True)
    before = device.get_rng_state()
    with evaluation_mode(parts.model):
        for name, figure in _pictures(parts, folder, tracker):
            if figure is None:
                continue
            image = canvas.pixels(figure)
            canvas.save_png(image, target / f"{name}.png")
            shown = torch.from_numpy(image).permute(2, 0, 1)
            tracker.log_image(f"figures/{name}", shown, parts.training.progress.step)
    device.set_rng_state(before)
    evolution.write_animation(target, parts.training.progress.epoch)


def _pictures(parts: RunContext, folder: Path, tracker: Logger) -> Iterator[Named]:
    rows = logger.read_rows(folder)
    if len(rows) > 1:
        yield "loss", loss.loss_curves(rows)
    if found := activations.activations_of(parts.model):
        yield "activations", activations.activation_curves(found)
    if len(landscape.trained(parts.model)) in (1, 2) and parts.splits.spec.task in ("regression", "binary"):
        yield "landscape", _landscape(parts, rows)
    if parts.splits.spec.task == "regression":
        yield from _regression(parts)
    else:
        yield from _classification(parts, tracker)


def _regression(parts: RunContext) -> Iterator[Named]:
    spec = parts.splits.spec
    split, batches = choose_split(parts.training, parts.test)
    inputs, outputs, targets = collect_outputs(parts.model, batches, parts.runtime.autocast)
    if spec.output_size == 1 and spec.kind == "vector" and spec.input_size == 1:
        train_inputs, train_targets = collect_rows(parts.training.train)
        rows = {"train": (train_inputs[0], train_targets), split: (inputs[0], targets)}
        yield (
            "fit",
            fit.curve_fit(rows, lambda x: compute_outputs(parts.model, x, parts.runtime), spec, parts.splits.truth),
        )
    elif spec.output_size == 1:
        yield "fit", fit.predictions(outputs, targets, split)
    if spec.kind == "image" and parts.settings.rest.tracking.samples:
        yield "samples", samples.image_grid(inputs[0], targets, spec)


def _classification(parts: RunContext, tracker: Logger) -> Iterator[Named]:
    spec, task = parts.splits.spec, parts.task
    split, batches = choose_split(parts.training, parts.test)
    inputs, outputs, targets = collect_outputs(parts.model, batches, parts.runtime.autocast)
    # Batches of the training part come in the order of epoch 1.
    origin = get_origin(getattr(parts.splits, split), split).take(batches.order.permutation(1)[: len(targets)])
    if spec.task == "tagging":
        yield "mistakes", errors.tagging_mistakes(inputs, task.predict(outputs), targets, spec, split, origin)
        return
    yield "confusion", confusion.confusion_matrix(targets, task.predict(outputs), spec, split)
    probabilities = task.compute_probabilities(outputs)
    tracker.log_pr_curves(targets, probabilities, spec.class_names, parts.training.progress.step)
    if spec.kind == "tokens" and spec.vocabulary:
        yield "mistakes", errors.text_mistakes(inputs, probabilities, targets, spec, split, origin)
    elif spec.kind == "image":
        yield "mistakes", errors.image_mistakes(inputs[0], probabilities, targets, spec, split, origin)
        if parts.settings.rest.tracking.samples:
            yield "samples", samples.image_grid(inputs[0], targets, spec)
    elif spec.input_size <= 2:
        yield from _boundaries(parts)


def _boundaries(parts: RunContext) -> Iterator[Named]:
    """Classes over one feature or two, with the training rows."""
    spec = parts.splits.spec
    (x,), y = collect_rows(parts.training.train)

    def probabilities(rows: Tensor) -> Tensor:
        return parts.task.compute_probabilities(compute_outputs(parts.model, rows, parts.runtime))

    if spec.input_size == 2:
        yield "decision", decision.decision_regions(probabilities, x, y, spec, "train")
    elif spec.task == "binary":
        yield "probability", probability.probability_curve(probabilities, x, y, spec, "train")


def _landscape(parts: RunContext, rows: list[dict[str, float]]) -> "Figure":
    names = landscape.trained(parts.model)
    started = {k.removeprefix(_PARAMETER): v for k, v in parts.start_parameters.items()}
    followed = [[row[_PARAMETER + name] for name in names] for row in rows if _PARAMETER + names[0] in row]
    way = ([[started[name] for name in names]] if started else []) + followed
    tried = [entry[: len(names)] for entry in getattr(parts.training.optimizer, "history", [])]
    inputs, targets = collect_rows(parts.training.train, MAX_ROWS)
    measured = landscape.loss_at(parts.model, parts.task, inputs, targets)
    points = (np.array(points, dtype=float).reshape(-1, len(names)) for points in (way, tried))
    return landscape.loss_landscape(landscape.Landscape(names, measured, *points))
