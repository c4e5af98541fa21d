"""What a model has learnt, drawn every few epochs while it learns."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from dlrun.core.errors import RequestError
from dlrun.data.spec import DataSpec
from dlrun.engine import device
from dlrun.engine.callback import Callback, EpochSummary
from dlrun.engine.evaluation import collect_rows, compute_outputs, evaluation_mode
from dlrun.engine.state import TrainState
from dlrun.experiment.context import RunContext
from dlrun.runs.logger import Logger
from dlrun.runs.reports.plots import canvas, decision, errors, fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_MOST_DOTS = 1000  # rows shown in a frame
_FRAME_MS, _LAST_MS = 120, 1500  # how long the animation shows a frame, and the last one


def choose_kind(spec: DataSpec) -> str:
    """What is drawn of such data: `fit`, `decision`, or `word` (logged as text). RequestError where nothing is."""
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
    """For every epoch of a run: a frame at the first one and every `every_epochs`, into TensorBoard and
    figures/evolution/epoch_00005.png, or for tagging the first training word and its tags as text.

    Model mode and generators stay as they were. RequestError as `kind_of` says.
    """

    phase = "figures"  # in the table of where the time went

    def __init__(self, context: RunContext, folder: Path, every_epochs: int, tracker: Logger) -> None:
        self.context, self.every_epochs = context, every_epochs
        self.tracker = tracker
        self.kind = choose_kind(context.splits.spec)
        self.frames = folder / "figures" / "evolution"
        self.inputs, self.targets = collect_rows(context.training.train, 1 if self.kind == "word" else _MOST_DOTS)

    def on_epoch_end(self, training: TrainState, summary: EpochSummary) -> None:
        """Show an epoch, when it is one of those to show."""
        row = summary.row
        epoch, step = int(row["epoch"]), int(row["step"])
        if epoch != 1 and epoch % self.every_epochs:
            return
        before = device.get_rng_state()
        if self.kind == "word":
            self.tracker.log_text("tagging/train", self.tag_first_word(), step)
        else:
            image = self.draw_frame(f"epoch {epoch}, loss {row['train/loss']:.4g}")
            self.frames.mkdir(parents=True, exist_ok=True)
            canvas.save_png(image, self.frames / f"epoch_{epoch:05d}.png")
            self.tracker.log_image(f"evolution/{self.kind}", torch.from_numpy(image).permute(2, 0, 1), step)
        device.set_rng_state(before)

    def draw_frame(self, title: str) -> NDArray[np.uint8]:
        """Pixels (H, W, 3); axes and margins are those of every other frame."""
        figure = canvas.sheet(5.2, 4.0, dpi=80)
        figure.set_layout_engine("none")  # it would move the axes with the width of the numbers, at twice the time
        axes = figure.add_axes((0.13, 0.13, 0.84, 0.78))
        self._draw(axes)
        axes.set_title(title, y=1.0)  # a place of its own: looking for a free one takes a quarter of the time
        return canvas.pixels(figure)

    def _draw(self, axes: "Axes") -> None:
        context, spec, x = self.context, self.context.splits.spec, self.inputs[0]
        if self.kind == "decision":
            decision.draw_regions(axes, _probabilities(context), x, self.targets, spec, side=60)
            axes.legend(title="true class", loc="upper right", framealpha=0.9)
            return
        rows = {"train": (x, self.targets)}
        fit.draw_curve(
            axes, rows, lambda x: compute_outputs(context.model, x, context.runtime), spec, context.splits.truth
        )
        low, high = float(self.targets.min()), float(self.targets.max())
        margin = 0.15 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
        axes.legend(loc="upper left", framealpha=0.9)

    @torch.inference_mode()
    def tag_first_word(self) -> str:
        """The first training word and the tags that the model gives it now."""
        spec, length = self.context.splits.spec, int(self.inputs[1][0])
        with evaluation_mode(self.context.model), self.context.runtime.autocast():
            predicted = self.context.task.predict(self.context.model(*self.inputs))
        return f"{errors.text(spec, self.inputs[0][0], length)} → {errors.tags(spec, predicted[0, :length])}"


def write_animation(figures: Path, last_epoch: int) -> None:
    """Make evolution.gif of the frames up to the last epoch, if there are any: later ones are of a run cut back."""
    from PIL import Image

    paths = [p for p in sorted((figures / "evolution").glob("epoch_*.png")) if int(p.stem[6:]) <= last_epoch]
    if not paths:
        return
    first, *rest = [Image.open(path).quantize(64) for path in paths]
    times = [_FRAME_MS] * len(rest) + [_LAST_MS]
    first.save(figures / "evolution.gif", save_all=True, append_images=rest, duration=times, loop=0)


def _probabilities(context: RunContext) -> "Callable[[torch.Tensor], torch.Tensor]":
    return lambda rows: context.task.compute_probabilities(compute_outputs(context.model, rows, context.runtime))
