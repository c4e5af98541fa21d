"""Frames of a model's predictions, drawn every few epochs while it learns."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.core.errors import RequestError
from dlrun.data.spec import DataSpec
from dlrun.engine.callback import Callback, TrainerView
from dlrun.engine.device import preserve_rng_state
from dlrun.engine.evaluation import collect_rows, compute_outputs, evaluation_mode
from dlrun.experiment.context import RunContext
from dlrun.runs.logger import RunLogger
from dlrun.runs.loggers.tensorboard import IMAGES
from dlrun.runs.reports.plots import canvas, decision, errors, regression

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Rows shown in a frame.
_MOST_DOTS = 1000

# How long the animation shows a frame, and the last one.
_FRAME_MS = 120
_LAST_MS = 1500


def choose_kind(spec: DataSpec) -> str:
    """Return the kind of frame for a data set: `fit`, `decision`, or `word` (logged as text).

    Raises RequestError if there is nothing to draw.
    """
    features = spec.input_size if spec.kind == "vector" else None
    if spec.task == "regression" and features == 1 and spec.output_size == 1:
        return "fit"
    if spec.task in ("binary", "multiclass") and features == 2:
        return "decision"
    if spec.task == "tagging" and spec.vocabulary:
        return "word"
    raise RequestError(
        "tracking.evolution_every_epochs shows a regression of one feature, classes over two features or a tagged "
        "word, and this data has none of them; type tracking.evolution_every_epochs=null"
    )


class Evolution(Callback):
    """Draws a frame at the first epoch and every `every_epochs`.

    Frames go to TensorBoard and figures/evolution/epoch_00005.png; for tagging the first training word and its tags
    are logged as text instead. Model mode and generators stay as they were. RequestError as `choose_kind` says.
    """

    # In the table of trainer.profile.
    phase = "figures"

    def __init__(self, context: RunContext, folder: Path, every_epochs: int, run_logger: RunLogger) -> None:
        self.context = context
        self.every_epochs = every_epochs
        self.run_logger = run_logger
        self.kind = choose_kind(context.splits.spec)
        self.frames = folder / "figures" / "evolution"
        most_rows = 1 if self.kind == "word" else _MOST_DOTS
        self.inputs, self.targets = collect_rows(context.state.train, most_rows)

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        """Draw the epoch, if it is one of those to draw."""
        number = int(row["epoch"])
        step = int(row["step"])
        if number != 1 and number % self.every_epochs:
            return

        with preserve_rng_state():
            if self.kind == "word":
                self.run_logger.log_text("tagging/train", self.tag_first_word(), step)
                return

            image = self.draw_frame(f"epoch {number}, loss {row['train/loss']:.4g}")
            self.frames.mkdir(parents=True, exist_ok=True)
            canvas.save_png(image, self.frames / f"epoch_{number:05d}.png")
            # (H, W, 3) -> (3, H, W)
            self.run_logger.log_image(f"{IMAGES}evolution_{self.kind}", torch.from_numpy(image).permute(2, 0, 1), step)

    def draw_frame(self, title: str) -> NDArray[np.uint8]:
        """Return pixels (H, W, 3); axes and margins are those of every other frame."""
        figure = canvas.create_figure(5.2, 4.0, dpi=80)
        # A layout engine would move the axes with the width of the numbers, at twice the time.
        figure.set_layout_engine("none")
        axes = figure.add_axes((0.13, 0.13, 0.84, 0.78))
        if self.kind == "decision":
            self._draw_decision(axes)
        else:
            self._draw_fit(axes)
        # A fixed place: looking for a free one takes a quarter of the time.
        axes.set_title(title, y=1.0)
        return canvas.render_pixels(figure)

    def _draw_decision(self, axes: "Axes") -> None:
        def predict(rows: Tensor) -> Tensor:
            return self.context.objective.compute_probabilities(self._run_model(rows))

        decision.draw_regions(axes, predict, self.inputs[0], self.targets, self.context.splits.spec, side=60)
        axes.legend(title="true class", loc="upper right", framealpha=0.9)

    def _draw_fit(self, axes: "Axes") -> None:
        splits = self.context.splits
        rows = {"train": (self.inputs[0], self.targets)}

        def predict(rows: Tensor) -> Tensor:
            return self.context.objective.predict(self._run_model(rows))

        regression.draw_curve(axes, rows, predict, splits.spec, splits.truth)

        low = float(self.targets.min())
        high = float(self.targets.max())
        margin = 0.15 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
        axes.legend(loc="upper left", framealpha=0.9)

    def _run_model(self, rows: Tensor) -> Tensor:
        return compute_outputs(self.context.state.model, rows, self.context.runtime)

    @torch.inference_mode()
    def tag_first_word(self) -> str:
        """Return the first training word and the tags that the model predicts for it now."""
        context = self.context
        spec = context.splits.spec
        length = int(self.inputs[1][0])
        with evaluation_mode(context.state.model), context.runtime.autocast():
            predicted = context.objective.predict(context.state.model(*self.inputs))
        return (
            f"{errors.decode_text(spec, self.inputs[0][0], length)} → {errors.format_tags(spec, predicted[0, :length])}"
        )


def write_animation(figures: Path, last_epoch: int) -> None:
    """Make evolution.gif of the frames up to the last epoch, if there are any.

    Frames of later epochs are left over from before a resume.
    """
    from PIL import Image

    frames = sorted((figures / "evolution").glob("epoch_*.png"))
    frames = [path for path in frames if int(path.stem.removeprefix("epoch_")) <= last_epoch]
    if not frames:
        return

    first, *others = [Image.open(path).quantize(64) for path in frames]
    durations = [_FRAME_MS] * len(others) + [_LAST_MS]
    first.save(figures / "evolution.gif", save_all=True, append_images=others, duration=durations, loop=0)
