"""Losses of every name against torch.nn, torchvision, scikit-learn and closed forms; class weights, however batched."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from dlrun.core.errors import RequestError
from dlrun.data.spec import DataSpec, TaskName
from dlrun.engine.losses import ALIASES, LOSSES
from dlrun.engine.objective import Objective

ROWS = 41
WEIGHTS = {"binary": [0.5, 3.0], "multiclass": [1.0, 2.5, 0.2], "tagging": [1.0, 2.5, 0.2]}


def spec(task: TaskName) -> DataSpec:
    return DataSpec("vector", (3,), task, 1 if task in ("regression", "binary") else 3)


def draw(task: TaskName) -> tuple[Tensor, Tensor]:
    """Outputs and targets in double precision; sequences of 4 tags, some of them padding."""
    generator = torch.Generator().manual_seed(5)
    shape = {"regression": (1,), "binary": (1,), "multiclass": (3,), "tagging": (4, 3)}[task]
    outputs = torch.randn(ROWS, *shape, generator=generator, dtype=torch.float64)
    if task == "regression":
        return outputs, torch.poisson(torch.full((ROWS, 1), 2.0, dtype=torch.float64), generator=generator)
    targets = torch.randint(0, len(WEIGHTS[task]), outputs.shape[: max(1, len(shape))], generator=generator)
    if task == "binary":
        return outputs, targets
    if task == "tagging":
        lengths = torch.randint(1, 5, (ROWS, 1), generator=generator)
        return outputs, targets.masked_fill(torch.arange(4) >= lengths, -100)
    return outputs, targets


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("task", "name", "arguments"),
    [
        ("regression", "MSELoss", {}),
        ("regression", "torch.nn.L1Loss", {}),
        ("regression", "HuberLoss", {"delta": 0.3}),
        ("regression", "SmoothL1Loss", {"beta": 0.3}),
        ("regression", "PoissonNLLLoss", {}),
        ("regression", "PoissonNLLLoss", {"full": True, "eps": 0.1}),
        ("binary", "BCEWithLogitsLoss", {}),
        ("multiclass", "CrossEntropyLoss", {"label_smoothing": 0.2}),
        ("multiclass", "CrossEntropyLoss", {"weight": WEIGHTS["multiclass"], "label_smoothing": 0.2}),
        ("multiclass", "NLLLoss", {"weight": WEIGHTS["multiclass"]}),
        ("multiclass", "MultiMarginLoss", {"p": 2, "margin": 0.7}),
    ],
)
def test_a_class_of_torch_is_computed_as_torch_does(
    task: TaskName, name: str, arguments: dict[str, Any], reduction: str
) -> None:
    outputs, targets = draw(task)
    objective = Objective(spec(task), name, reduction, loss_args=arguments)
    assert objective.loss_name == ALIASES[name.removeprefix("torch.nn.")]

    tensors = {
        key: torch.tensor(value, dtype=torch.float64) if key == "weight" else value for key, value in arguments.items()
    }
    truth = getattr(nn, name.removeprefix("torch.nn."))(**tensors, reduction=reduction)
    expected = truth(outputs.squeeze(-1), targets.double()) if task == "binary" else truth(outputs, targets)
    torch.testing.assert_close(objective.compute_loss(outputs, targets), expected, rtol=1e-12, atol=0)


def test_every_alias_names_a_loss() -> None:
    names = {name for losses in LOSSES.values() for name in losses}
    assert set(ALIASES.values()) <= names
    assert all(hasattr(nn, alias) for alias in ALIASES if alias[0].isupper())


def test_losses_that_torch_lacks_are_their_formulas() -> None:
    z, y = draw("binary")
    flat = z.squeeze(-1)
    truth = sigmoid_focal_loss(flat, y.double(), alpha=0.3, gamma=1.7, reduction="mean")
    focal = Objective(spec("binary"), "focal", loss_args={"gamma": 1.7, "alpha": 0.3})
    torch.testing.assert_close(focal.compute_loss(z, y), truth)

    sign = 2 * y - 1
    torch.testing.assert_close(Objective(spec("binary"), "hinge").compute_loss(z, y), (1 - sign * flat).relu().mean())
    soft = nn.SoftMarginLoss()(flat, sign)
    torch.testing.assert_close(Objective(spec("binary"), "SoftMarginLoss").compute_loss(z, y), soft)
    weighted = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0))(flat, y.double())
    positive = Objective(spec("binary"), loss_args={"pos_weight": 3})
    torch.testing.assert_close(positive.compute_loss(z, y), weighted)

    z, y = draw("multiclass")
    p = z.softmax(-1).gather(1, y.unsqueeze(1))
    focal = Objective(spec("multiclass"), "focal", loss_args={"gamma": 0.5})
    torch.testing.assert_close(focal.compute_loss(z, y), (-((1 - p) ** 0.5) * p.log()).mean())
    # A row that is certainly right has no loss and no slope, where (1 - p) ** -0.5 is infinite.
    certain = torch.tensor([[90.0, 0.0, 0.0]], requires_grad=True)
    focal.compute_loss(certain, torch.tensor([0])).backward()
    assert certain.grad is not None
    assert certain.grad.abs().max() < 1e-30


def test_the_quantile_loss_is_least_at_the_quantile() -> None:
    targets = torch.arange(101.0).unsqueeze(1)
    loss = Objective(spec("regression"), "quantile", loss_args={"quantile": 0.9})
    values = [float(loss.compute_loss(torch.full_like(targets, float(q)), targets)) for q in range(101)]
    assert min(range(101), key=values.__getitem__) == 90


def test_a_poisson_model_answers_with_rates() -> None:
    outputs, targets = draw("regression")
    objective = Objective(spec("regression"), "poisson")
    totals = objective.new_accumulator()
    totals.add(outputs, targets, objective.compute_loss(outputs, targets))
    metrics = totals.compute_metrics()
    assert metrics["mse"] == pytest.approx(float((outputs.exp() - targets).square().mean()))
    # The best constant of a Poisson likelihood is the mean.
    constant = objective.fit_constant_outputs(targets)
    assert float(objective.predict(constant)) == pytest.approx(float(targets.mean()))
    assert torch.equal(
        Objective(spec("regression"), "poisson", loss_args={"log_input": False}).predict(outputs), outputs
    )


def compute_weighted_truth(task: TaskName, name: str, outputs: Tensor, targets: Tensor) -> float:
    """Row by row, the mean that numpy.average and scikit-learn's sample_weight form."""
    import numpy as np

    weights = torch.tensor(WEIGHTS[task], dtype=torch.float64)
    if task == "tagging":
        outputs, targets = outputs[targets != -100], targets[targets != -100]
    plain = Objective(spec("multiclass" if task == "tagging" else task), name)
    losses = [float(plain.compute_loss(outputs[i : i + 1], targets[i : i + 1])) for i in range(len(targets))]
    return float(np.average(losses, weights=weights[targets]))


WEIGHTED: list[tuple[TaskName, str]] = [
    *[("binary", name) for name in ("bce_with_logits", "focal", "hinge", "soft_margin", "perceptron")],
    *[("multiclass", name) for name in ("cross_entropy", "nll", "focal", "multi_margin")],
    *[("tagging", name) for name in ("cross_entropy", "nll")],
]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("task", "name"), WEIGHTED)
def test_a_weighted_loss_is_the_weighted_mean_of_all_rows(task: TaskName, name: str, reduction: str) -> None:
    outputs, targets = draw(task)
    objective = Objective(spec(task), name, reduction, class_weights=WEIGHTS[task])
    expected = compute_weighted_truth(task, name, outputs, targets)
    for sizes in ([ROWS], [16, 16, 9], [1] * ROWS):
        totals = objective.new_accumulator()
        for o, t in zip(outputs.split(sizes), targets.split(sizes), strict=True):
            totals.add(o, t, objective.compute_loss(o, t))
        assert totals.compute_metrics()["loss"] == pytest.approx(expected, rel=1e-12)


def test_weights_of_two_classes_are_scikit_learns_sample_weights() -> None:
    from sklearn.metrics import log_loss

    z, y = draw("binary")
    weights = torch.tensor(WEIGHTS["binary"])[y].numpy()
    expected = log_loss(y.numpy(), z.squeeze(-1).sigmoid().numpy(), sample_weight=weights)
    loss = Objective(spec("binary"), class_weights=WEIGHTS["binary"]).compute_loss(z, y)
    assert float(loss) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("task", "settings", "words"),
    [
        ("regression", {"class_weights": [1.0]}, "task.class_weights is for classes, and these targets are numbers"),
        ("multiclass", {"class_weights": [1, 2]}, "must be a positive number for each of 3 classes, [1.0, 1.0, 1.0]"),
        ("multiclass", {"class_weights": [1, 0, 2]}, "must be a positive number for each of 3 classes"),
        (
            "binary",
            {"loss_name": "scratch_bce", "class_weights": [1, 2]},
            "takes no task.class_weights; type task.loss=",
        ),
        (
            "multiclass",
            {"loss_args": {"gamma": 2}},
            "task.loss_args.gamma is no argument of task.loss=cross_entropy; it",
        ),
        ("regression", {"loss_args": {"gamma": 2}}, "it takes none; leave it out"),
        (
            "binary",
            {"loss_name": "focal", "loss_args": {"gama": 2}},
            "did you mean task.loss_args.gamma? it takes gamma",
        ),
        ("multiclass", {"loss_name": "focal", "loss_args": {"alpha": 0.2}}, "it takes gamma"),
        ("binary", {"loss_args": {"pos_weight": "three"}}, "task.loss_args.pos_weight=three must be a number of at"),
        ("multiclass", {"loss_args": {"label_smoothing": 2}}, "label_smoothing=2 must be a number from 0 to 1"),
        ("regression", {"loss_name": "poisson", "loss_args": {"full": 1}}, "full=1 must be true or false"),
        (
            "multiclass",
            {"loss_args": {"weight": [1, 1, 1]}, "class_weights": [1, 1, 1]},
            "task.class_weights and task.loss_args.weight are the same; leave out one of them",
        ),
    ],
)
def test_what_a_loss_does_not_take_is_a_sentence(task: TaskName, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as caught:
        Objective(spec(task), **settings)
    assert words in str(caught.value)
