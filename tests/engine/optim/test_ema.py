"""A moving average of the weights: against torch's own, in the rows and files of a run, and through an interruption."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dlrun.engine.optim.ema import ExponentialMovingAverage
from dlrun.runs import checkpoint

WORDS = (
    "data=digits",
    "model=cnn",
    "data.limit_batches=6",
    "trainer.epochs=3",
    "figures=false",
    "tracking.graph=false",
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_it_is_what_torch_averages(decay: float) -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ours = ExponentialMovingAverage(model, optimizer, decay)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for _ in range(7):
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
        theirs.update_parameters(model)
    expected = theirs.module.state_dict()
    assert ours.steps == 7
    assert all(torch.equal(v, expected[k]) for k, v in ours.model.state_dict().items())
    assert not all(torch.equal(a, b) for a, b in zip(ours.model.parameters(), model.parameters(), strict=True))
    again = ExponentialMovingAverage(Net(), torch.optim.SGD(model.parameters()), decay)
    again.load_state_dict(ours.state_dict())
    assert again.steps == 7
    assert all(torch.equal(v, expected[k]) for k, v in again.model.state_dict().items())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("skipped", [{0, 1}, {2}, {0, 3}])
def test_a_step_that_the_scaler_skips_does_not_move_it(fused: bool, skipped: set[int]) -> None:
    """A fused optimizer is called for such a step too, and leaves the weights alone by itself."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    average = ExponentialMovingAverage(model, optimizer, 0.75)
    expected: torch.Tensor | None = None
    for step in range(5):
        optimizer.zero_grad()
        factor = float("inf") if step in skipped else 1.0
        scaler.scale(factor * model(torch.randn(4, 3)).square().mean()).backward()
        before = model.weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, model.weight) == (step in skipped)
        if step not in skipped:
            now = model.weight.detach().clone()
            expected = now if expected is None else 0.75 * expected + 0.25 * now
    assert average.steps == 5 - len(skipped)
    torch.testing.assert_close(average.model.state_dict()["weight"], expected)


@pytest.mark.slow
def test_it_is_evaluated_and_saved_beside_the_weights(dlrun: Callable[..., Any]) -> None:
    plain = dlrun(*WORDS, "hydra.run.dir=plain")
    outcome = dlrun(*WORDS, "trainer.ema_decay=0.8", "checkpoint.monitor=val/ema_accuracy", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert outcome.result["weights_sha256"] == plain.result["weights_sha256"]  # training is not changed by it
    assert outcome.result["best"]["metric"] == "val/ema_accuracy"
    assert {"val/ema_loss", "test/ema_loss", "test/ema_accuracy"} <= set(outcome.result["metrics"])
    assert all(row["val/ema_loss"] != row["val/loss"] for row in outcome.rows)
    best = checkpoint.load(Path("run/checkpoints/best.pt"))
    assert best["ema"]["model"].keys() == best["model"].keys()
    values = [row["val/ema_accuracy"] for row in outcome.rows]
    assert outcome.result["best"]["value"] == max(values)
    evaluated = dlrun("eval", "run", "figures=false")
    line = next(line for line in evaluated.out.splitlines() if "test/ema_loss" in line)
    now, recorded = line.split()[1:3]
    assert now == recorded


@pytest.mark.parametrize("decay", ["1", "x"])
def test_a_decay_that_is_none_is_refused(decay: str, dlrun: Callable[..., Any]) -> None:
    outcome = dlrun(*WORDS, f"trainer.ema_decay={decay}")
    assert outcome.code == 2
    assert "trainer.ema_decay" in outcome.err


def test_a_run_without_an_average_has_no_such_metric(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun(*WORDS, "checkpoint.monitor=val/ema_loss")
    assert outcome.code == 2
    assert "checkpoint.monitor=val/ema_loss" in outcome.err


@pytest.mark.parametrize("stop_at", [pytest.param(7, marks=pytest.mark.slow), pytest.param(12, marks=pytest.mark.slow)])
def test_interrupted_and_resumed_it_is_the_same_average(
    stop_at: int, dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    from dlrun.engine import trainer

    words = (*WORDS, "trainer.ema_decay=0.9", "checkpoint.monitor=val/ema_loss")
    reference = dlrun(*words, "hydra.run.dir=whole")
    real, calls = trainer.backward, 0

    def count_calls(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(trainer, "backward", count_calls)
    assert dlrun(*words, "hydra.run.dir=run").code == 130
    outcome = dlrun("resume", "run")
    assert outcome.code == 0, outcome.err
    assert outcome.rows == reference.rows
    files = [
        checkpoint.load(Path(run, "checkpoints", name)) for run in ("run", "whole") for name in ("last.pt", "best.pt")
    ]
    for one, other in zip(files[:2], files[2:], strict=True):
        assert one["ema"]["steps"] == other["ema"]["steps"]
        assert all(torch.equal(v, other["ema"]["model"][k]) for k, v in one["ema"]["model"].items())
    results = [json.loads(Path(run, "result.json").read_text()) for run in ("run", "whole")]
    assert results[0]["metrics"] == results[1]["metrics"]
