"""Losses and metrics against scikit-learn, torch.nn and a sequence counted by hand."""

import io
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.core.errors import RequestError
from dlrun.data.spec import DataSpec, TaskName
from dlrun.engine.metrics import compute_auroc
from dlrun.engine.objective import FLUSH_BATCHES, Objective

ROWS = 150
CPU = torch.device("cpu")
SPLITS = {
    "one batch": [ROWS],
    "a ragged last batch": [*[16] * 9, 6],
    "very unequal": [1, 100, 3, 40, 6],
    "more than are kept waiting": [1] * ROWS,
}
OUTPUTS: dict[TaskName, int] = {"regression": 3, "binary": 1, "multiclass": 12, "tagging": 4}


def spec(task: TaskName, outputs: int | None = None) -> DataSpec:
    return DataSpec("vector", (3,), task, outputs or OUTPUTS[task])


def draw(task: TaskName) -> tuple[Tensor, Tensor]:
    """Random outputs and targets, the targets partly guessed."""
    generator = torch.Generator().manual_seed(3)
    outputs = torch.randn(ROWS, *([5] if task == "tagging" else []), OUTPUTS[task], generator=generator)
    if task == "regression":
        return outputs, outputs + 2 * torch.randn(ROWS, 3, generator=generator) + torch.tensor([0.0, 5.0, -3.0])
    if task == "binary":
        outputs = (outputs * 4).round() / 4  # ties
        return outputs, (outputs.squeeze(-1) + torch.randn(ROWS, generator=generator) > 0.3).long()
    if task == "multiclass":
        outputs[:, 11] = -9.0  # a class that never occurs
        noisy = outputs + 2 * torch.randn(outputs.shape, generator=generator)
        return outputs, noisy[:, :10].argmax(-1)  # and one that is only ever predicted
    targets = (outputs + torch.randn(outputs.shape, generator=generator)).argmax(-1)
    lengths = torch.randint(1, 6, (ROWS, 1), generator=generator)
    return outputs, targets.masked_fill(torch.arange(5) >= lengths, -100)


def measure(task: Objective, outputs: Tensor, targets: Tensor, sizes: list[int]) -> dict[str, float]:
    totals = task.new_accumulator()
    for o, t in zip(torch.split(outputs, sizes), torch.split(targets, sizes), strict=True):
        totals.add(o, t, task.compute_loss(o, t))
    return totals.compute_metrics()


def regression_truth(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    from sklearn import metrics

    y, p = targets.double().numpy(), outputs.double().numpy()
    mse = metrics.mean_squared_error(y, p)
    return {"loss": mse, "mse": mse, "mae": metrics.mean_absolute_error(y, p), "r2": metrics.r2_score(y, p)}


def binary_truth(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    from sklearn import metrics

    y, scores = targets.numpy(), outputs.squeeze(-1).double().numpy()
    p = scores > 0
    return {
        "loss": metrics.log_loss(y, 1 / (1 + math.e**-scores)),
        "accuracy": metrics.accuracy_score(y, p),
        "precision": metrics.precision_score(y, p),
        "recall": metrics.recall_score(y, p),
        "f1": metrics.f1_score(y, p),
        "auroc": metrics.roc_auc_score(y, scores),
    }


def multiclass_truth(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    from sklearn import metrics

    y, scores = targets.numpy(), outputs.double().numpy()
    p, labels = scores.argmax(1), list(range(12))
    return {
        "loss": metrics.log_loss(y, outputs.double().softmax(-1).numpy(), labels=labels),
        "accuracy": metrics.accuracy_score(y, p),
        "macro_f1": metrics.f1_score(y, p, average="macro"),
        "top5_accuracy": metrics.top_k_accuracy_score(y, scores, k=5, labels=labels),
    }


def tagging_truth(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Counted tag by tag."""
    loss, right, tags, exact = 0.0, 0, 0, 0
    for row, wanted in zip(outputs.double(), targets.tolist(), strict=True):
        pairs = [(scores, tag) for scores, tag in zip(row, wanted, strict=True) if tag != -100]
        hits = [int(scores.argmax()) == tag for scores, tag in pairs]
        loss -= sum(math.log(float(scores.softmax(-1)[tag])) for scores, tag in pairs)
        right, tags, exact = right + sum(hits), tags + len(hits), exact + all(hits)
    return {"loss": loss / tags, "accuracy": right / tags, "exact_match": exact / ROWS}


TRUTHS: dict[TaskName, Any] = {
    "regression": regression_truth,
    "binary": binary_truth,
    "multiclass": multiclass_truth,
    "tagging": tagging_truth,
}


@pytest.mark.parametrize("sizes", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("name", TRUTHS)
def test_metrics_are_those_of_scikit_learn_however_the_rows_are_batched(name: TaskName, sizes: list[int]) -> None:
    outputs, targets = draw(name)
    task = Objective(spec(name))
    metrics = measure(task, outputs, targets, sizes)
    assert tuple(metrics) == task.metric_names
    assert metrics == pytest.approx(TRUTHS[name](outputs, targets), rel=2e-6)


def test_the_mean_of_batch_means_would_have_failed() -> None:
    assert len(SPLITS["more than are kept waiting"]) > 2 * FLUSH_BATCHES
    for name in TRUTHS:
        outputs, targets = draw(name)
        task, sizes = Objective(spec(name)), SPLITS["very unequal"]
        pairs = zip(torch.split(outputs, sizes), torch.split(targets, sizes), strict=True)
        naive = sum(float(task.compute_loss(o, t)) for o, t in pairs) / len(sizes)
        assert abs(naive - TRUTHS[name](outputs, targets)["loss"]) > 1e-3


@pytest.mark.parametrize("name", TRUTHS)
def test_reduction_sum_minimizes_the_sum_and_reports_the_mean(name: TaskName) -> None:
    outputs, targets = draw(name)
    task = Objective(spec(name), reduction="sum")
    count = targets.numel() if name == "regression" else int((targets != -100).sum())
    mean = TRUTHS[name](outputs, targets)["loss"]
    assert float(task.compute_loss(outputs, targets)) == pytest.approx(mean * count, rel=1e-5)
    metrics = measure(task, outputs, targets, SPLITS["very unequal"])
    assert metrics["loss"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("name", "loss", "truth"),
    [
        ("regression", "mse", nn.MSELoss),
        ("regression", "mae", nn.L1Loss),
        ("regression", "huber", nn.HuberLoss),
        ("regression", "smooth_l1", nn.SmoothL1Loss),
        ("regression", "scratch_mse", nn.MSELoss),
        ("binary", "bce_with_logits", nn.BCEWithLogitsLoss),
        ("binary", "bce", nn.BCELoss),
        ("binary", "scratch_bce", nn.BCELoss),
        ("binary", "scratch_bce_with_logits", nn.BCEWithLogitsLoss),
        ("multiclass", "cross_entropy", nn.CrossEntropyLoss),
        ("multiclass", "nll", nn.NLLLoss),
        ("multiclass", "multi_margin", nn.MultiMarginLoss),
        ("multiclass", "scratch_cross_entropy", nn.CrossEntropyLoss),
        ("tagging", "cross_entropy", nn.CrossEntropyLoss),
        ("tagging", "nll", nn.NLLLoss),
    ],
)
def test_each_loss_is_the_one_of_torch(name: TaskName, loss: str, truth: Any, reduction: str) -> None:
    outputs, targets = draw(name)
    outputs = (
        outputs.sigmoid() if loss in ("bce", "scratch_bce") else outputs.log_softmax(-1) if loss == "nll" else outputs
    )
    computed_loss = Objective(spec(name), loss, reduction).compute_loss(outputs, targets)
    if name == "binary":
        outputs, targets = outputs.squeeze(-1), targets.float()
    if name == "tagging":
        outputs = outputs.transpose(1, 2)  # torch wants the classes second
    torch.testing.assert_close(computed_loss, truth(reduction=reduction)(outputs, targets))


@pytest.mark.parametrize(
    ("name", "default", "other"),
    [
        ("binary", "bce_with_logits", "bce"),
        ("binary", "bce_with_logits", "scratch_bce"),
        ("multiclass", "cross_entropy", "nll"),
    ],
)
def test_a_loss_on_probabilities_answers_as_the_one_on_logits(name: TaskName, default: str, other: str) -> None:
    logits, targets = draw(name)
    linked = logits.sigmoid() if name == "binary" else logits.log_softmax(-1)
    one, two = Objective(spec(name)), Objective(spec(name), other)
    assert one.loss_name == default
    truth = torch.cat([1 - logits.sigmoid(), logits.sigmoid()], 1) if name == "binary" else logits.softmax(-1)
    wanted = truth[:, 1] if name == "binary" else truth
    for task, outputs in ((one, logits), (two, linked)):
        torch.testing.assert_close(task.compute_probabilities(outputs), wanted)
        assert torch.equal(task.predict(outputs), truth.argmax(-1))
    first, second = (measure(t, o, targets, [ROWS]) for t, o in ((one, logits), (two, linked)))
    assert first == pytest.approx(second, rel=1e-5)
    assert one.compute_baseline(targets, targets) == pytest.approx(two.compute_baseline(targets, targets), rel=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_perceptrons_gradient_is_its_update_rule(reduction: str) -> None:
    logits = torch.tensor([[2.0], [2.0], [-1.0], [-1.0], [0.0], [0.0]], requires_grad=True)
    targets = torch.tensor([1, 0, 1, 0, 1, 0])
    loss = Objective(spec("binary"), "perceptron", reduction).compute_loss(logits, targets)
    loss.backward()
    rows = 6 if reduction == "mean" else 1
    assert logits.grad is not None
    assert (logits.grad.squeeze(1) * rows).tolist() == pytest.approx([0, 1, -1, 0, -1, 0])
    assert loss.item() == pytest.approx((2 + 1) / rows)  # the distance of what is on the wrong side


def test_the_perceptron_learns_blobs_by_rosenblatts_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(40) % 2
    x = torch.randn(40, 2, generator=generator) + 6 * targets.unsqueeze(1) - 3
    learned, by_hand = torch.zeros(2, requires_grad=True), torch.zeros(2)
    for row, target in zip(x, targets, strict=True):
        by_hand -= ((by_hand @ row > 0).float() - target) * row
        z = (learned @ row).reshape(1, 1)
        (step,) = torch.autograd.grad(
            Objective(spec("binary"), "perceptron").compute_loss(z, target.reshape(1)), [learned]
        )
        learned = (learned - step).detach().requires_grad_()
    assert torch.equal(learned.detach(), by_hand)
    assert ((x @ by_hand > 0) == targets.bool()).float().mean() > 0.95


@pytest.mark.parametrize("name", ["regression", "binary", "multiclass"])
def test_the_baseline_is_scikit_learns_dummy(name: TaskName) -> None:
    from sklearn import metrics
    from sklearn.dummy import DummyClassifier, DummyRegressor

    _, targets = draw(name)
    train, y = targets[:100], targets[100:].numpy()
    baseline = Objective(spec(name)).compute_baseline(train, targets[100:])
    if name == "regression":
        mean = DummyRegressor().fit(train, train.double().numpy()).predict(y)
        assert baseline["mse"] == pytest.approx(metrics.mean_squared_error(y, mean))
        assert baseline["loss"] == pytest.approx(metrics.mean_squared_error(y, mean))
        assert baseline["mae"] == pytest.approx(metrics.mean_absolute_error(y, mean))
        assert baseline["r2"] == pytest.approx(metrics.r2_score(y, mean))
        return
    dummy = DummyClassifier(strategy="prior").fit(train, train.numpy())
    guess, shares = dummy.predict(y), dummy.predict_proba(y)
    present = dummy.classes_.tolist()
    assert baseline["accuracy"] == pytest.approx(metrics.accuracy_score(y, guess))
    assert baseline["loss"] == pytest.approx(metrics.log_loss(y, shares, labels=present), rel=1e-6)
    if name == "binary":
        assert baseline["f1"] == pytest.approx(metrics.f1_score(y, guess))
        assert baseline["auroc"] == 0.5
    else:
        assert baseline["macro_f1"] == pytest.approx(metrics.f1_score(y, guess, average="macro"))


def test_the_tagging_baseline_is_the_most_frequent_tag() -> None:
    targets = torch.tensor([[2, 2, 1], [2, -100, -100], [1, 2, -100]])  # tag 2: 4 of 6, tag 1: 2 of 6
    baseline = Objective(spec("tagging", 3)).compute_baseline(targets, targets)
    entropy = -(4 / 6 * math.log(4 / 6) + 2 / 6 * math.log(2 / 6))
    assert baseline == pytest.approx({"loss": entropy, "accuracy": 4 / 6, "exact_match": 1 / 3}, rel=1e-6)


def test_sequences_of_other_lengths_join_in_one_sum() -> None:
    task, totals = Objective(spec("tagging", 2)), Objective(spec("tagging", 2)).new_accumulator()
    for tags, message in (([[0, 1, 1]], [[0, 1, 0]]), ([[1]], [[1]]), ([[0, -100]], [[0, 1]])):
        targets, outputs = torch.tensor(tags), F.one_hot(torch.tensor(message), 2).float()
        totals.add(outputs, targets, task.compute_loss(outputs, targets))
    metrics = totals.compute_metrics()
    assert (metrics["accuracy"], metrics["exact_match"]) == (4 / 5, 2 / 3)


@pytest.mark.parametrize("stop", [3, FLUSH_BATCHES, FLUSH_BATCHES + 6])
@pytest.mark.parametrize("name", TRUTHS)
def test_a_sum_that_was_saved_half_way_ends_in_the_same_bits(name: TaskName, stop: int) -> None:
    outputs, targets = draw(name)
    task = Objective(spec(name))
    pairs = list(zip(torch.split(outputs, 2), torch.split(targets, 2), strict=True))
    reference, first, second = task.new_accumulator(), task.new_accumulator(), task.new_accumulator()
    for i, (o, t) in enumerate(pairs):
        reference.add(o, t, task.compute_loss(o, t))
        (first if i < stop else second).add(o, t, task.compute_loss(o, t))
        if i + 1 == stop:
            file = io.BytesIO()
            torch.save(first.state_dict(), file)
            file.seek(0)
            second.load_state_dict(torch.load(file, weights_only=True), CPU)
    assert second.compute_metrics() == reference.compute_metrics()


def test_top_5_is_told_from_ten_classes_on() -> None:
    assert "top5_accuracy" in Objective(spec("multiclass", 10)).metric_names
    assert "top5_accuracy" not in Objective(spec("multiclass", 9)).metric_names


def test_the_area_under_the_curve_at_its_edges() -> None:
    assert compute_auroc(torch.tensor([0.1, 0.2]), torch.tensor([1, 1])) == 0.5
    assert compute_auroc(torch.tensor([0.1, 0.2]), torch.tensor([1, 0])) == 0.0
    assert compute_auroc(torch.tensor([0.3, 0.3]), torch.tensor([1, 0])) == 0.5
    assert math.isnan(compute_auroc(torch.tensor([math.nan, 0.2]), torch.tensor([1, 0])))


def test_a_constant_target_has_no_r2() -> None:
    outputs, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [1.0]])
    assert measure(Objective(spec("regression", 1)), outputs, targets, [2])["r2"] == 0


@pytest.mark.parametrize(
    ("name", "loss", "message"),
    [
        ("multiclass", "cross_entrpy", "did you mean cross_entropy? type one of cross_entropy, nll, multi_margin"),
        (
            "regression",
            "nll",
            "is no loss for regression; did you mean poisson_nll? type one of mse, mae, huber, smooth_l1",
        ),
    ],
)
def test_an_unknown_loss_is_answered_by_the_known_ones(name: TaskName, loss: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        Objective(spec(name), loss)
    assert message in str(caught.value)
    assert f"task.loss={loss}" in str(caught.value)


def test_a_loss_of_ones_own_is_called_as_torchs_are() -> None:
    outputs, targets = torch.randn(4, 1), torch.tensor([0, 1, 1, 0])

    def plain(z: Tensor, y: Tensor) -> Tensor:
        assert z.shape == y.shape == (4,)
        return ((z - y) ** 4).mean()

    def reduce(z: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        return getattr((z - y) ** 4, reduction)()

    powers = (outputs[:, 0] - targets) ** 4
    assert torch.equal(
        Objective(spec("binary"), "mine.plain", own_loss=plain).compute_loss(outputs, targets), powers.mean()
    )
    assert torch.equal(
        Objective(spec("binary"), "mine.reduced", "sum", reduce).compute_loss(outputs, targets), powers.sum()
    )
    with pytest.raises(RequestError, match=r"mine\.plain has no parameter reduction; give it one, or leave out"):
        Objective(spec("binary"), "mine.plain", "sum", plain)
    with pytest.raises(RequestError, match="is a class; name a function"):
        Objective(spec("binary"), "torch.nn.MSELoss", own_loss=torch.nn.MSELoss)
