"""`dlrun check lr`: which learning rates train, on problems where that is known, and without a trace."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch.optim import Optimizer

from dlrun.experiment.builder import build
from dlrun.experiment.checks import lr_finder
from dlrun.experiment.checks.lr_finder import HIGHEST, LOWEST, STEPS_PER_DECADE, Curve, describe_curve, suggest_rate

CURVES: list[Curve] = []
SMALL = ("data=digits", "data.image_size=16", "data.batch_size=32")
BLOBS = ("check", "lr", "data=blobs", "model=mlp")


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> list[Curve]:
    """What `dlrun check lr` has measured."""
    drawn: list[Curve] = []
    before = lr_finder.measure_curve

    def record(*arguments: Any) -> Curve:
        drawn.append(before(*arguments))
        return drawn[-1]

    monkeypatch.setattr(lr_finder, "measure_curve", record)
    return drawn


def draw(fall: float, rise: float, noise: float = 0.0) -> Curve:
    """A loss that falls from 2 to 0.5 around the rate `fall` and grows without bound around `rise`."""
    rates = [LOWEST * 10 ** (i / STEPS_PER_DECADE) for i in range(141)]
    generator = np.random.default_rng(0)
    x = np.log10(rates)
    losses = 2 - 1.5 / (1 + np.exp(-(x - np.log10(fall)) * 6)) + np.exp(np.minimum((x - np.log10(rise)) * 8, 700))
    return Curve(rates, list(losses + noise * generator.standard_normal(141)))


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_curve_is_read_without_lag(noise: float) -> None:
    curve = draw(fall=1e-3, rise=1.0, noise=noise)
    assert curve.level == pytest.approx(2, abs=0.1)
    assert curve.steepest is not None
    assert curve.rates[curve.steepest] == pytest.approx(1e-3, rel=0.5)
    assert 5e-3 < curve.rates[curve.lowest] < 0.6
    assert suggest_rate(curve) == pytest.approx(curve.rates[curve.lowest] / 3, rel=0.05)
    assert curve.divergence is not None
    assert curve.rates[curve.divergence] == pytest.approx(1.0, rel=0.3)


def test_a_flat_curve_suggests_nothing() -> None:
    noise = np.random.default_rng(0).standard_normal(141)
    for losses in (2 + 0.1 * noise, np.full(141, 2.0), np.zeros(141)):
        curve = Curve(draw(1, 1).rates, list(losses))
        assert (curve.steepest, suggest_rate(curve), curve.divergence) == (None, None, None)
        messages = [
            "the loss never falls by more than its noise: nothing is suggested",
            "the loss does not diverge up to 10",
        ]
        assert describe_curve(curve, None) == messages


def test_losses_that_are_not_finite_diverge() -> None:
    curve = draw(fall=1e-3, rise=1.0)
    for last in (float("nan"), float("inf")):
        cut = Curve(curve.rates[:110], [*curve.losses[:109], last])  # 10^-0.55: before the rise
        assert cut.divergence == 109
        assert cut.steepest == curve.steepest
        assert np.isfinite(cut.smooth).all()


@pytest.mark.slow
def test_a_quadratic_diverges_from_two_over_its_curvature_on(dlrun: Callable[..., Any], curves: list[Curve]) -> None:
    words = ("data=three_points", "model=linear", "model.bias=false", "data.batch_size=3", "optimizer=sgd")
    outcome = dlrun("check", "lr", *words, "device.precision=fp64")
    (curve,) = curves
    limit = 2 / (2 * (1 + 4 + 9) / 3)  # the loss is the mean of (w x - 2 x)^2 over x = 1, 2, 3
    assert curve.rates[curve.lowest] < limit
    assert limit / 20 < (suggest_rate(curve) or 0) < limit / 2
    assert f"suggestion: optimizer.lr={suggest_rate(curve):g}, " in outcome.out
    assert curve.divergence is None  # what is learned without noise stays learned for long
    (match,) = re.findall(r"the loss diverges from optimizer.lr=(\S+) on", outcome.out)
    assert limit < float(match) < 1.6 * limit


@pytest.mark.slow
def test_table_and_picture(dlrun: Callable[..., Any], curves: list[Curve]) -> None:
    outcome = dlrun(*BLOBS)
    (curve,) = curves
    assert (outcome.code, outcome.err) == (0, "")
    assert max(map(len, outcome.out.splitlines()[:-1])) <= 80
    for message in ("falls fastest", "lowest", "suggested (", "configured (0.001)"):
        assert outcome.out.count(f"  {message}") == 1, message
    line = next(line for line in outcome.out.splitlines() if "configured" in line)
    step = round(np.log10(1e-3 / LOWEST) * STEPS_PER_DECADE)
    assert line.split()[:2] == ["1.0e-03", f"{curve.smooth[step]:.4f}"]
    (picture,) = [path for path in Path().rglob("*") if path.is_file()]
    assert outcome.out.splitlines()[-1] == f"picture: {picture}"
    assert picture.parent == Path("outputs/check_lr")
    assert picture.name.endswith("_mlp_blobs.png")
    assert imread(picture).shape[:2] == (528, 704)
    assert curve.rates[0] == LOWEST
    assert curve.rates[-1] <= HIGHEST * 1.01
    dlrun(*BLOBS)
    assert len(list(Path("outputs/check_lr").iterdir())) == 2


@pytest.mark.slow
def test_it_leaves_no_trace(dlrun: Callable[..., Any]) -> None:
    words = (
        "data=blobs",
        "model=mlp",
        "model.dropout=0.3",
        "trainer.epochs=2",
        "tracking.graph=false",
        "figures=false",
    )
    alone = dlrun(*words, "hydra.run.dir=alone").code, Path("alone/fingerprints.jsonl").read_bytes()
    files = sorted(Path().rglob("*"))
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]
    assert dlrun("check", "lr", *words).code == 0
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # type: ignore[index]
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert (before[2] == after[2]).all()
    assert sorted(Path().rglob("*")) == files  # figures=false: not even a picture
    assert (dlrun(*words, "hydra.run.dir=again").code, Path("again/fingerprints.jsonl").read_bytes()) == alone


@pytest.mark.slow
def test_the_schedule_is_left_out_and_the_loss_is_per_sample(dlrun: Callable[..., Any], curves: list[Curve]) -> None:
    dlrun(*BLOBS, "figures=false")
    dlrun(*BLOBS, "figures=false", "scheduler=one_cycle", "scheduler.warmup_steps=5")
    assert curves[0].losses == curves[1].losses
    dlrun(*BLOBS, "figures=false", "task.reduction=sum")
    assert curves[2].losses[0] == pytest.approx(curves[0].losses[0], rel=1e-5)
    dlrun(*BLOBS, "figures=false", "trainer.accumulate_steps=2")
    assert curves[3].losses[0] != curves[0].losses[0]


@pytest.mark.slow
def test_groups_with_a_rate_of_their_own_keep_it(dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer: list[Optimizer] = []
    before = build.build_optimizer

    def record(*arguments: Any) -> Optimizer:
        optimizer.append(before(*arguments))
        return optimizer[-1]

    monkeypatch.setattr(build, "build_optimizer", record)
    dlrun(*BLOBS, "optimizer.groups=[{match: '*.bias', lr: 0.01},{match: '*.0.weight', weight_decay: 0.1}]")
    own, *others = optimizer[-1].param_groups
    assert own["lr"] == 0.01
    assert len({group["lr"] for group in others}) == 1
    assert others[0]["lr"] > 0.01


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer=lbfgs"], "optimizer=lbfgs evaluates the loss several times a step"),
        (["optimizer=rprop"], "the rate of optimizer=rprop is that of its first step only"),
        (["-m", "optimizer=sgd,adam"], "check lr looks at one run"),
        (["optimizer.groups=[{match: '*', lr: 0.1}]"], "every parameter has a rate of its own"),
        (["optimizer=sdg"], "did you mean optimizer=sgd"),
        (["model=cnn"], "model=cnn does not take data=blobs"),
    ],
)
def test_what_is_refused(dlrun: Callable[..., Any], words: list[str], message: str) -> None:
    outcome = dlrun(*BLOBS, *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert not list(Path().iterdir())


def test_a_loss_that_is_not_finite_from_the_start_is_said(dlrun: Callable[..., Any]) -> None:
    words = ("data=points", "data.x=[1,2,3]", "data.y=[1e30,2e30,3e30]", "model=linear", "optimizer=sgd")
    outcome = dlrun("check", "lr", *words)
    assert (outcome.code, outcome.out) == (1, "")
    assert "the loss is not finite before the first step; try inputs of a size around 1" in outcome.err


def test_a_search_is_refused(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("check", "lr", "data=three_points", "model=linear", "model.bias=false", "optimizer=exhaustive")
    assert (outcome.code, outcome.out) == (2, "")
    assert "optimizer=exhaustive evaluates the loss several times a step" in outcome.err


@pytest.mark.slow
def test_a_picture_that_cannot_be_written_is_said(dlrun: Callable[..., Any]) -> None:
    Path("file").touch()
    outcome = dlrun(*BLOBS, "paths.outputs=file/x", "preflight=false")
    assert outcome.code == 2
    assert "cannot write to file/x/check_lr (Not a directory); type paths.outputs=<folder>" in outcome.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "epochs"),
    [
        (("data=regression", "model=linear", "optimizer=manual_sgd"), 20),
        (("data=hello", "model=rnn_onehot"), 20),
        (("data=pass_fail", "model=logistic", "optimizer=sgd"), 20),
        # One epoch of digits is enough for these nets, but not for the one from scratch.
        ((*SMALL, "model=resnet", "model.channels=[4,8]", "optimizer=momentum", "device.precision=bf16"), 2),
        ((*SMALL, "model=scratch_mlp", "data.loader=workers", "data.num_workers=1", "data.train_rows=400"), 10),
        ((*SMALL, "model=cnn", "trainer.grad_clip_norm=1", "trainer.ema_decay=0.9", "optimizer=adadelta"), 1),
        (("data=parabola", "model=mlp", "optimizer=rmsprop"), 20),
    ],
)
def test_every_task_gets_a_rate_that_trains(
    dlrun: Callable[..., Any], curves: list[Curve], words: tuple[str, ...], epochs: int
) -> None:
    assert dlrun("check", "lr", *words, "figures=false").code == 0
    suggested = suggest_rate(curves[0])
    assert suggested is not None
    more = (f"trainer.epochs={epochs}", "tracking.graph=false", "figures=false", f"optimizer.lr={suggested}")
    rows = dlrun(*words, *more).rows
    assert rows[-1]["train/loss"] < 0.9 * curves[0].level
