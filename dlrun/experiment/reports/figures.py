"""The pictures of a run: the same in figures/*.png and in TensorBoard."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dlrun.data.datasets import get_origin
from dlrun.data.windows import is_series
from dlrun.engine.device import preserve_rng_state
from dlrun.engine.evaluation import (
    MAX_ROWS,
    collect_rows,
    compute_outputs,
    evaluation_mode,
)
from dlrun.experiment.callbacks import evolution
from dlrun.experiment.context import RunContext
from dlrun.experiment.final_outputs import FinalOutputs, SplitOutputs
from dlrun.runs import logger
from dlrun.runs.logger import RunLogger
from dlrun.runs.loggers.tensorboard import IMAGES
from dlrun.runs.reports.plots import (
    activations,
    canvas,
    classification,
    decision,
    errors,
    forecast,
    landscape,
    loss,
    reconstruction,
    regression,
    samples,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


NamedFigure = tuple[str, "Figure | None"]

# In front of a trained number's name in metrics.jsonl.
_PARAMETER = "parameter/"


def draw_all(context: RunContext, folder: Path, run_logger: RunLogger, outputs: FinalOutputs) -> None:
    """Draw every picture that makes sense for the run, and precision-recall curves, from the weights it holds now.

    Restores the model's mode and the generators.
    """
    target = folder / "figures"
    target.mkdir(exist_ok=True)
    with preserve_rng_state(), evaluation_mode(context.state.model):
        for name, figure in _draw_pictures(context, folder, run_logger, outputs):
            if figure is None:
                continue
            image = canvas.render_pixels(figure)
            canvas.save_png(image, target / f"{name}.png")
            # (H, W, 3) -> (3, H, W)
            channels_first = torch.from_numpy(image).permute(2, 0, 1)
            run_logger.log_image(IMAGES + name, channels_first, context.state.progress.step)
    evolution.write_animation(target, context.state.progress.epoch)


def _draw_pictures(
    context: RunContext, folder: Path, run_logger: RunLogger, outputs: FinalOutputs
) -> Iterator[NamedFigure]:
    rows = logger.read_rows(folder)
    if len(rows) > 1:
        yield "loss", loss.draw_loss_curves(rows)

    functions = activations.find_activations(context.state.model) if context.settings.tracking.activations else {}
    if functions:
        yield "activations", activations.draw_activations(functions)

    # A landscape has one axis or two.
    task = context.splits.spec.task
    if len(landscape.list_trained_numbers(context.state.model)) in (1, 2) and task in ("regression", "binary"):
        yield "landscape", _draw_landscape(context, rows)

    if task == "regression":
        yield from _draw_regression(context, outputs.get())
    elif task == "multitask":
        # A picture is of one output.
        return
    elif task == "multilabel":
        # The other pictures are of one class a row.
        yield from _draw_labelled_images(context, outputs.get())
    else:
        yield from _draw_classification(context, run_logger, outputs.get())


def _draw_regression(context: RunContext, final: SplitOutputs) -> Iterator[NamedFigure]:
    spec = context.splits.spec
    split = final.split
    inputs = final.inputs
    targets = final.targets

    if spec.reconstructs:
        if spec.kind == "image":
            values = context.objective.predict(final.outputs)
            yield "reconstructions", reconstruction.draw_reconstructions(targets, values, spec, split)
        return

    if is_series(spec):
        forecasts = context.objective.predict(final.outputs)
        yield "forecast", forecast.draw_forecast(inputs[0], forecasts, targets, spec, split)
        return
    if spec.output_size == 1 and spec.kind == "vector" and spec.input_size == 1:
        train_inputs, train_targets = collect_rows(context.state.train)
        rows = {"train": (train_inputs[0], train_targets), split: (inputs[0], targets)}

        def predict(x: Tensor) -> Tensor:
            return context.objective.predict(compute_outputs(context.state.model, x, context.runtime))

        yield "fit", regression.draw_curve_fit(rows, predict, spec, context.splits.truth)
    elif spec.output_size == 1:
        yield "fit", regression.draw_predictions(context.objective.predict(final.outputs), targets, split)

    if spec.kind == "image" and context.settings.tracking.samples:
        yield "samples", samples.draw_image_grid(inputs[0], targets, spec)


def _draw_labelled_images(context: RunContext, final: SplitOutputs) -> Iterator[NamedFigure]:
    spec = context.splits.spec
    if spec.kind == "image" and context.settings.tracking.samples:
        yield "samples", samples.draw_image_grid(final.inputs[0], final.targets, spec)


def _draw_classification(context: RunContext, run_logger: RunLogger, final: SplitOutputs) -> Iterator[NamedFigure]:
    spec = context.splits.spec
    objective = context.objective
    split = final.split
    inputs = final.inputs
    outputs = final.outputs
    targets = final.targets

    # Batches of the training part come in the order of epoch 1.
    order = final.batches.order.permutation(1)[: len(targets)]
    origin = get_origin(getattr(context.splits, split), split).take(order)
    if spec.task == "tagging":
        yield "mistakes", errors.draw_tagging_mistakes(inputs, objective.predict(outputs), targets, spec, split, origin)
        return

    yield "confusion", classification.draw_confusion_matrix(targets, objective.predict(outputs), spec, split)
    probabilities = objective.compute_probabilities(outputs)
    run_logger.log_pr_curves(targets, probabilities, spec.class_names, context.state.progress.step)

    if spec.kind == "tokens" and spec.vocabulary:
        yield "mistakes", errors.draw_text_mistakes(inputs, probabilities, targets, spec, split, origin)
    elif spec.kind == "image":
        yield "mistakes", errors.draw_image_mistakes(inputs[0], probabilities, targets, spec, split, origin)
        if context.settings.tracking.samples:
            yield "samples", samples.draw_image_grid(inputs[0], targets, spec)
    elif spec.input_size <= 2:
        yield from _draw_boundaries(context)


def _draw_boundaries(context: RunContext) -> Iterator[NamedFigure]:
    """Classes over one feature or two, with the training rows."""
    spec = context.splits.spec
    (x,), y = collect_rows(context.state.train)

    def predict(rows: Tensor) -> Tensor:
        return context.objective.compute_probabilities(compute_outputs(context.state.model, rows, context.runtime))

    if spec.input_size == 2:
        yield "decision", decision.draw_decision_regions(predict, x, y, spec, "train")
    elif spec.task == "binary":
        yield "probability", decision.draw_probability_curve(predict, x, y, spec, "train")


def _draw_landscape(context: RunContext, rows: list[dict[str, float]]) -> "Figure":
    """The loss over the one or two trained numbers, the path of the training, and the points that a search tried."""
    names = landscape.list_trained_numbers(context.state.model)
    start = {key.removeprefix(_PARAMETER): value for key, value in context.start.parameters.items()}

    # From the start, through the end of each epoch that recorded the numbers.
    path = []
    if start:
        path.append([start[name] for name in names])
    for row in rows:
        if _PARAMETER + names[0] in row:
            path.append([row[_PARAMETER + name] for name in names])
    # Only optimizers that search have a history of points.
    history = getattr(context.state.optimizer, "history", [])
    candidates = [entry[: len(names)] for entry in history]

    inputs, targets = collect_rows(context.state.train, MAX_ROWS)
    loss_at = landscape.make_loss_function(context.state.model, context.objective, inputs, targets)
    # (points, numbers)
    path_points = np.array(path, dtype=float).reshape(-1, len(names))
    candidate_points = np.array(candidates, dtype=float).reshape(-1, len(names))
    return landscape.draw_loss_landscape(landscape.Landscape(names, loss_at, path_points, candidate_points))
