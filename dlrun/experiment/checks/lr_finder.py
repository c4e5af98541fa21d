"""`dlrun check lr [overrides]`: the learning-rate range test of Smith (2015, arXiv:1506.01186, section 3.3).

The learning rate grows from step to step, here by a constant factor, and the loss says which rates train: too small
ones leave it where it is, good ones let it fall, too large ones drive it up.

Suggested is a third of the rate at which the smoothed loss is lowest: a step back from those that are too large, as
Bengio (2012, arXiv:1206.5533, section 3.1.1) takes it. Measured for ten choices (linear, mlp, cnn, resnet and gru with
sgd, momentum, rmsprop, adam and adamw; seed 0, 3 to 50 epochs): the loss after training with it was in the median 1.2
times that of the best of nine rates from 1e-4 to 1; with the rate where the loss falls fastest 2.0 times, and with a
tenth of the lowest 3.0 times. The worst were 102, 324 and 295 times, for a line without noise.
"""

import copy
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from dlrun.config.settings import Settings, read_settings
from dlrun.core.errors import RequestError, RunError
from dlrun.core.files import convert_write_errors, write_atomically
from dlrun.core.format import format_folder_name
from dlrun.data.batches import Batch
from dlrun.engine import device, trainer
from dlrun.engine.state import TrainState
from dlrun.experiment.builder import build
from dlrun.experiment.checks.one_run import parse_one_run
from dlrun.experiment.setup import prepare
from dlrun.runs.reports.console import Console, build_table, format_number

LOWEST = 1e-6
HIGHEST = 10.0
STEPS_PER_DECADE = 20

# The first steps, a decade, whose losses differ by noise alone.
_FLAT = 20

# Standard deviation, in steps, of the window that smooths.
_WIDTH = 4.0

# Multiples of the loss at the start: higher losses are cut to this one ...
_TOO_HIGH = 4

# ... and below this one a model has learned all there is, and may not get worse for long.
_LEARNT = 1e-3

# A loss counts as the lowest within this share of the way down.
_AS_GOOD = 0.02

# Short trainings that look for the diverging rate.
_TRIAL_STEPS = 30
_TRIAL_FACTOR = 10**0.2

# Steps between rows of the table, which lists steps with a remark besides.
_ROW_STEPS = 10

# Characters of the longest bar.
_BAR = 24


@dataclass(frozen=True)
class Curve:
    """The loss per sample before each step, and the learning rate of that step; the last loss may be infinite."""

    rates: list[float]
    losses: list[float]

    @cached_property
    def first(self) -> list[float]:
        """The finite losses of the first steps, whose rates are too small to change them."""
        return [loss for loss in self.losses[:_FLAT] if math.isfinite(loss)]

    @cached_property
    def level(self) -> float:
        """The loss at the start."""
        return float(np.median(self.first))

    @cached_property
    def ceiling(self) -> float:
        """The limit that higher losses are cut to."""
        return self.level + (_TOO_HIGH - 1) * max(abs(self.level), 1e-12)

    @cached_property
    def smooth(self) -> NDArray[np.float64]:
        """The mean over the neighbours on both sides, weighted by a bell curve: it does not lag behind."""
        y = np.minimum(np.nan_to_num(np.array(self.losses), nan=np.inf, posinf=np.inf), self.ceiling)
        steps = np.arange(len(y))
        weights = np.exp(-0.5 * ((steps[:, None] - steps[None]) / _WIDTH) ** 2)
        mean: NDArray[np.float64] = weights @ y / weights.sum(1)
        return mean

    @cached_property
    def noise(self) -> float:
        """The largest meaningless difference of smoothed losses: four deviations of such a mean, and a hundredth."""
        # The number of values that the window amounts to.
        averaged = 2 * math.sqrt(math.pi) * _WIDTH
        return 4 * float(np.std(self.first)) / math.sqrt(averaged) + 0.01 * abs(self.level)

    @cached_property
    def lowest(self) -> int:
        """The first step where the smoothed loss is as good as lowest: a net that saturates stays there at any rate."""
        low = float(self.smooth.min())
        return int((self.smooth <= low + _AS_GOOD * max(self.level - low, 0.0)).argmax())

    @cached_property
    def steepest(self) -> int | None:
        """The step up to `lowest` where the loss falls fastest over log(rate); None if it never falls beyond noise."""
        if self.lowest < 2 or self.level - self.smooth[self.lowest] <= self.noise:
            return None
        return int(np.gradient(self.smooth[: self.lowest + 1]).argmin())

    @cached_property
    def divergence(self) -> int | None:
        """The first step behind the lowest where the smoothed loss is above the start's; None if there is none."""
        above = np.flatnonzero(self.smooth[self.lowest :] > self.level + self.noise)
        if len(above):
            return self.lowest + int(above[0])
        return None if math.isfinite(self.losses[-1]) else len(self.losses) - 1


def measure_curve(state: TrainState, optimizer: Optimizer, groups: Sequence[int]) -> Curve:
    """Train with growing rates until the loss is far above its start, not finite, or the rates are used up.

    It also ends where there is nothing left to learn: a problem without noise stays solved at any rate then.
    optimizer: a fresh one, without a schedule. groups: indices of its parameter groups whose rate grows.
    """
    most = round(math.log10(HIGHEST / LOWEST) * STEPS_PER_DECADE) + 1
    rates = [LOWEST * 10 ** (i / STEPS_PER_DECADE) for i in range(most)]
    losses: list[float] = []
    for loss in _train_at_rates(state, optimizer, groups, rates):
        losses.append(loss)
        curve = Curve(rates[: len(losses)], losses)
        # Three steps, as a single one may be noise.
        newest = losses[-3:]
        if len(losses) > _FLAT and (min(newest) > curve.ceiling or max(newest) < _LEARNT * curve.level):
            break
    return Curve(rates[: len(losses)], losses)


def _train_at_rates(
    state: TrainState, optimizer: Optimizer, groups: Sequence[int], rates: Iterable[float]
) -> Iterator[float]:
    """Make a step with each rate, and yield the loss per sample before it; the first that is not finite is the last.

    Each loss is a synchronization with the device.
    """
    state.optimizer = optimizer
    state.model.train()
    for rate, batches in zip(rates, _iterate_steps(state), strict=False):
        for i in groups:
            optimizer.param_groups[i]["lr"] = rate

        loss = float(trainer.backward(state, batches, []))
        samples = sum(len(targets) for _, targets in batches)
        yield loss / (samples if state.objective.reduction == "sum" else 1)
        if not math.isfinite(loss):
            return

        state.scaler.step(optimizer)
        state.scaler.update()


def _find_diverging_rate(
    state: TrainState, make_optimizer: Callable[[], Optimizer], groups: Sequence[int], curve: Curve
) -> float | None:
    """Find the rate from which on the loss rises above its start; None if it does not up to HIGHEST.

    Read off the curve, or by short trainings at growing rates if the curve ends before. The model must be as before
    its first step, and is so again afterwards.
    """
    if curve.divergence is not None:
        return curve.rates[curve.divergence]

    start = copy.deepcopy(state.model.state_dict())
    # A loss may have parameters, too.
    loss = state.objective.loss_module or nn.Module()
    loss_start = copy.deepcopy(loss.state_dict())
    rate = curve.rates[curve.lowest]
    # A little above, for the rounding of the factors.
    while rate <= HIGHEST * 1.01:
        losses = list(_train_at_rates(state, make_optimizer(), groups, [rate] * _TRIAL_STEPS))
        state.built_buffers.fit(start)
        state.model.load_state_dict(start)
        loss.load_state_dict(loss_start)
        if not math.isfinite(losses[-1]) or np.mean(losses[-5:]) > curve.level + curve.noise:
            return rate
        rate *= _TRIAL_FACTOR
    return None


def _iterate_steps(state: TrainState) -> Iterator[list[Batch]]:
    """Yield the batches of one optimizer step after another, epoch after epoch, without end."""
    for epoch in count(1):
        batches = state.train.epoch(epoch)
        while step := list(islice(batches, state.stop_rules.accumulate_steps)):
            yield step


def check_lr(words: Sequence[str]) -> int:
    """Print the curve and the rate that it suggests, and draw it into paths.outputs/check_lr; returns 0.

    Nothing else is written, and generators are as before. Raises RequestError for several runs, and for optimizers
    without one rate that can grow.
    """
    request = parse_one_run(list(words), "lr")
    if request is None:
        return 0

    settings = read_settings(request.config, request.choices)
    # The session restores the generators.
    with device.device_session(settings.device, settings.seed) as runtime:
        state = prepare(settings, runtime, request.trusted_modules).state
        _refuse_optimizer(state.optimizer, settings)
        start = copy.deepcopy(state.model.state_dict())
        loss = state.objective.loss_module or nn.Module()
        loss_start = copy.deepcopy(loss.state_dict())
        # Without a schedule, which would change the rates.
        make_optimizer = partial(build.build_optimizer, settings, state.model, request.trusted_modules, loss)
        groups = _find_growing_groups(settings, make_optimizer())

        curve = measure_curve(state, make_optimizer(), groups)
        # Without a finite loss the curve has no level to be compared with.
        if not curve.first:
            raise RunError("the loss is not finite before the first step; try inputs of a size around 1")
        state.built_buffers.fit(start)
        state.model.load_state_dict(start)
        loss.load_state_dict(loss_start)
        top = _find_diverging_rate(state, make_optimizer, groups, curve)

    console = Console()
    names = f"{settings.model.choice} on {settings.data.choice}, {settings.optimizer.choice}"
    rows = make_rows(curve, settings.hyperparameters.get("optimizer.lr"))
    console.say(f"learning-rate range test of {names}: {len(curve.rates)} steps, one for each rate")
    console.say(build_table(("optimizer.lr", "loss", "", ""), rows, left=4))
    for sentence in describe_curve(curve, top):
        console.say(sentence)
    if settings.figures is not False:
        console.say(f"picture: {_draw_picture(curve, top, settings, names)}")
    return 0


def _refuse_optimizer(optimizer: Optimizer, settings: Settings) -> None:
    """Raise RequestError for an optimizer whose steps are not made with one learning rate each."""
    choice = settings.optimizer.choice
    if trainer.requires_closure(optimizer):
        raise RequestError(
            f"check lr: optimizer={choice} evaluates the loss several times a step and finds its own way; "
            "type optimizer=sgd, say"
        )
    if isinstance(optimizer, torch.optim.Rprop):
        raise RequestError(
            f"check lr: the rate of optimizer={choice} is that of its first step only; type optimizer=sgd"
        )


def _find_growing_groups(settings: Settings, optimizer: Optimizer) -> list[int]:
    """Return the indices of the parameter groups that optimizer.lr is the rate of.

    Raises RequestError if each has one of its own.
    """
    groups_with_rate = [i for i, entry in enumerate(settings.optimizer.keys.groups or []) if "lr" in entry]
    groups = [i for i in range(len(optimizer.param_groups)) if i not in groups_with_rate]
    if not groups:
        raise RequestError(
            "check lr: every parameter has a rate of its own in optimizer.groups, and optimizer.lr is that of none; "
            "leave the lr of one group out"
        )
    return groups


def suggest_rate(curve: Curve) -> float | None:
    """Return a third of the rate at which the smoothed loss is lowest, to two digits; None if it never falls."""
    return None if curve.steepest is None else float(f"{curve.rates[curve.lowest] / 3:.1e}")


def make_rows(curve: Curve, configured: Any) -> list[tuple[str, ...]]:
    """Rows of the table: rate, smoothed loss, the loss as a bar, and a remark.

    configured: optimizer.lr of the config.
    """
    rates = curve.rates
    smooth = curve.smooth
    suggested = suggest_rate(curve)

    # By step. Every so many have a row, and those with a remark.
    remarks: dict[int, list[str]] = {i: [] for i in range(0, len(rates), _ROW_STEPS)}
    steps = (
        ("falls fastest", curve.steepest),
        (f"lowest (to {_AS_GOOD:.0%})", curve.lowest),
        ("diverges", curve.divergence),
    )
    for remark, step in steps:
        if step is not None and suggested is not None:
            remarks.setdefault(step, []).append(remark)
    for remark, rate in (("suggested", suggested), ("configured", configured)):
        if isinstance(rate, float) and rates[0] <= rate <= rates[-1]:
            step = round(math.log10(rate / LOWEST) * STEPS_PER_DECADE)
            remarks.setdefault(step, []).append(f"{remark} ({rate:g})")

    low = smooth.min()
    # Above 0, for a curve that is flat.
    span = max(smooth.max() - smooth.min(), 1e-300)
    rows: list[tuple[str, ...]] = []
    for i in sorted(remarks):
        loss = format_number(float(smooth[i]))
        bar = "█" * round(_BAR * float((smooth[i] - low) / span))
        rows.append((f"{rates[i]:.1e}", loss, bar, ", ".join(remarks[i])))
    return rows


def describe_curve(curve: Curve, top: float | None) -> list[str]:
    """Sentences on the curve. top: the rate from which on the loss diverges."""
    suggested = suggest_rate(curve)
    end = f"does not diverge up to {HIGHEST:g}" if top is None else f"diverges from optimizer.lr={top:.2g} on"
    if suggested is None:
        return ["the loss never falls by more than its noise: nothing is suggested", f"the loss {end}"]
    return [
        f"suggestion: optimizer.lr={suggested:g}, a third of the rate at which the loss is lowest",
        f"the loss {end}",
    ]


def _draw_picture(curve: Curve, top: float | None, settings: Settings, title: str) -> Path:
    """Draw the curve into a file of its own, and return its path; RequestError if it cannot be written."""
    from PIL import Image

    from dlrun.runs.reports.plots import canvas
    from dlrun.runs.reports.plots import lr_finder as plot

    figure = plot.draw_range_test(
        curve.rates, curve.losses, curve.smooth, curve.lowest, suggest_rate(curve), top, title
    )
    png = io.BytesIO()
    Image.fromarray(canvas.render_pixels(figure)).save(png, "png")

    folder = Path(settings.paths.outputs) / "check_lr"
    time = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    name = format_folder_name(f"{time}_{settings.model.choice}_{settings.data.choice}")
    with convert_write_errors(folder, "type paths.outputs=<folder>"):
        folder.mkdir(parents=True, exist_ok=True)
        # Two pictures of one second get different names.
        path = folder / f"{name}.png"
        for i in count(2):
            if not path.exists():
                break
            path = folder / f"{name}_{i}.png"
        write_atomically(path, png.getvalue())
    return path
