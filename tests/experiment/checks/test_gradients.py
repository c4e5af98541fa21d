"""`dlrun check gradients`: what it prints, its exit codes, and that it sees a wrong derivative."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dlrun.core.errors import RequestError
from dlrun.data.spec import DataSpec
from dlrun.experiment.checks.gradients import (
    GradientErrors,
    Subject,
    check_gradients,
    check_subject,
    measure_relative_error,
)
from dlrun.models import scratch, scratch_autograd

HERE = ["data=blobs", "model=scratch_mlp"]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []  # whatever it was: nothing is written


def measure_errors(layer: torch.nn.Module, x: Tensor) -> list[GradientErrors]:
    parameters: dict[str, Tensor] = dict(layer.named_parameters())
    bends = hasattr(layer, "bends_at_zero")
    unit = x.abs().clamp(min=1)
    torch.manual_seed(0)
    return list(check_subject(Subject("it", type(layer).__name__, layer, layer.reference, x, parameters, unit, bends)))


def test_right_gradients_agree(capfd: pytest.CaptureFixture[str]) -> None:
    words = [*HERE, "model.hidden_sizes=[3]", "task.loss=scratch_cross_entropy", "device.precision=fp32"]
    assert check_gradients(words) == 0
    out = capfd.readouterr().out
    assert "all gradients agree (tolerance 1e-06)" in out
    rows = [line.split() for line in out.splitlines() if line.startswith((" layers", " loss"))]
    assert [(row[0], row[1], row[2]) for row in rows] == [
        ("layers.0", "ScratchLinear", "input"),
        ("layers.0", "ScratchLinear", "weight"),
        ("layers.0", "ScratchLinear", "bias"),
        ("layers.1", "ScratchTanh", "input"),
        ("layers.2", "ScratchLinear", "input"),
        ("layers.2", "ScratchLinear", "weight"),
        ("layers.2", "ScratchLinear", "bias"),
        ("loss", "scratch_cross_entropy", "input"),
    ]
    assert all(float(cell) < 1e-8 for row in rows for cell in row[3:])


def test_a_wrong_backward_is_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    right = scratch_autograd.Tanh.backward
    monkeypatch.setattr(
        scratch_autograd.Tanh, "backward", staticmethod(lambda ctx, grad: right(ctx, grad) * (1 + 3e-6))
    )
    assert check_gradients(HERE) == 1
    verdict = capfd.readouterr().out.splitlines()[-1]
    assert verdict == "gradients that do not agree (tolerance 1e-06): layers.1 (ScratchTanh, input)"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=blobs", "model=mlp"], r"^model=mlp has no hand-written layers.*type model=scratch_mlp$"),
        ([*HERE, "-m", "seed=0,1"], "looks at one run; leave out -m"),
        ([*HERE, "sweep.points=['seed=0','seed=1']"], "looks at one run; leave out -m"),
    ],
)
def test_what_cannot_be_checked_is_a_sentence(words: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_gradients(words)


@pytest.mark.parametrize("far", [0.0, 50.0])
@pytest.mark.parametrize("kind", scratch.ACTIVATIONS)
def test_activations_agree_at_their_kink_and_where_they_are_flat(kind: str, far: float) -> None:
    torch.manual_seed(0)
    x = torch.cat([far + torch.randn(20, dtype=torch.float64), torch.tensor([0.0, -0.0, 1e-7, -far, 1e-4])])
    (row,) = measure_errors(scratch.ACTIVATIONS[kind](), x)
    assert row.is_right
    assert row.central is not None


def test_a_net_that_rests_on_its_kink_has_no_difference_quotient() -> None:
    (row,) = measure_errors(scratch.ScratchReLU(), torch.zeros(3, dtype=torch.float64))
    assert row.is_right
    assert row.central is None


@pytest.mark.parametrize("entry", ["weight", "bias", "input"])
def test_one_wrong_entry_is_seen(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right, place = scratch_autograd.Linear.backward, ["input", "weight", "bias"].index(entry)

    def wrong(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        gradients = [g.clone() for g in right(ctx, grad)]
        gradients[place].view(-1)[1] = 0
        return tuple(gradients)

    monkeypatch.setattr(scratch_autograd.Linear, "backward", staticmethod(wrong))
    rows = measure_errors(scratch.ScratchLinear(3, 2).double(), torch.randn(4, 3, dtype=torch.float64))
    assert [row.tensor for row in rows if not row.is_right] == [entry]
    assert [row.tensor for row in rows if row.central is not None and row.central > 0.99] == [entry]


@pytest.mark.parametrize("loss", ["mse", "bce", "bce_with_logits", "cross_entropy"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses_agree_far_out_too(loss: str, reduction: str) -> None:
    from dlrun.engine.objective import Objective
    from dlrun.experiment.checks.gradients import make_loss_subject

    torch.manual_seed(0)
    name, size = {"mse": ("regression", 2), "cross_entropy": ("multiclass", 3)}.get(loss, ("binary", 1))
    outputs, targets = 20 * torch.randn(16, size, dtype=torch.float64), torch.arange(16) % max(size, 2)
    if loss == "mse":
        outputs, targets = 100 * outputs, torch.randn(16, 2, dtype=torch.float64)
    if loss == "bce":
        outputs = torch.cat([(outputs / 5).sigmoid()[:-2], torch.tensor([[0.0], [1.0]], dtype=torch.float64)])
    task = Objective(DataSpec("vector", (3,), name, size), f"scratch_{loss}", reduction)  # type: ignore[arg-type]
    (row,) = check_subject(make_loss_subject(task, outputs, targets))
    assert row.is_right, row
    assert row.central is not None


@pytest.mark.parametrize(
    ("autograd", "central", "agrees"),
    [(1e-6, 1e-6, True), (0, None, True), (1.1e-6, 0, False), (0, 1.1e-6, False), (float("nan"), 0, False)],
)
def test_both_errors_count(autograd: float, central: float | None, agrees: bool) -> None:
    assert GradientErrors("layers.0", "ScratchLinear", "weight", autograd, central).is_right is agrees


def test_relative_error_is_the_largest_of_the_entries() -> None:
    one, other = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 3.0, 0.0])
    assert measure_relative_error(one, other) == pytest.approx(1 / 5)
    assert measure_relative_error(one, -one) == 1
    assert measure_relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert not measure_relative_error(torch.tensor([torch.nan, 1.0]), torch.ones(2)) <= 1


def test_hydras_own_answers_check_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert check_gradients(["--cfg", "job"]) == 0
    assert "largest relative error" not in capfd.readouterr().out
