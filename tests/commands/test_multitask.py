"""Several outputs of one net: against a loop of torch and scikit-learn, after a stop, and in every command."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dlrun as package
from dlrun.runs.checkpoint import load

QUIET = ("tracking.graph=false", "figures=false")

TWO = """
import torch
from torch import nn
from dlrun.data.spec import DataSpec, Output, Split, Splits


def rows(bad=None, size=5, count=120):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    digit = (x[:, 0] > 0).double() + (x[:, 1] > 0.5).double()
    angle = torch.stack([x[:, 2], x.sum(1)], 1)
    y = torch.cat([digit[:, None], angle, (x[:, 3:] > 0).double()], 1)
    if bad is not None:
        y[7, 0] = bad
    outputs = (
        Output("digit", "multiclass", 3, ("none", "one", "both")),
        Output("angle", "regression", 2),
        Output("odd", "binary"),
    )
    spec = DataSpec("vector", (4,), "multitask", size + 1, outputs=outputs)
    test = Split((x[:40],), y[:40])
    return Splits(Split((x[40:],), y[40:]), None, test, spec)


class Heads(nn.Module):
    def __init__(self, spec, kind="dict", odd="odd"):
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.heads = nn.ModuleDict({output.name: nn.Linear(6, output.size) for output in spec.outputs})
        self.kind = kind
        self.odd = odd

    def forward(self, x):
        x = self.body(x).tanh()
        values = {name: head(x) for name, head in self.heads.items()}
        values[self.odd] = values.pop("odd").squeeze(-1)
        return values if self.kind == "dict" else tuple(values.values())


class Single(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.layer = nn.Linear(spec.input_size, spec.output_size)

    def forward(self, x):
        return {"first": self.layer(x.flatten(1)), "second": x}
"""
DATA = ("data._target_=two_outputs.rows",)
HEADS = (*DATA, "model._target_=two_outputs.Heads")


@pytest.fixture
def two(dlrun: Callable[..., Any]) -> Callable[..., Any]:
    """dlrun beside a module of data and nets of several outputs."""
    Path("two_outputs.py").write_text(TWO)
    return dlrun


def weights_of(folder: str) -> dict[str, torch.Tensor]:
    return dict(load(Path(folder) / "checkpoints" / "last.pt")["model"])


@pytest.mark.slow
def test_it_trains_as_a_loop_of_torch_with_a_loss_each(two: Callable[..., Any]) -> None:
    common = ("data.val_fraction=0", "data.shuffle=false", "data.batch_size=80", "device.precision=fp64")
    common += ("optimizer=sgd", "optimizer.lr=0.1", "trainer.epochs=20")
    chosen = ("task.losses={angle: huber, odd: focal}", "task.weights={angle: 0.1, odd: 2}")
    outcome = two(*QUIET, *HEADS, *common, *chosen, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    # A tuple in the order of the spec is the same.
    assert two(*QUIET, *HEADS, *common, *chosen, "+model.kind=tuple", "hydra.run.dir=tuple").code == 0
    assert Path("run/metrics.jsonl").read_text() == Path("tuple/metrics.jsonl").read_text()

    split = package.load("run", trusted_modules="two_outputs").splits.train
    x, y = split.inputs[0].double(), split.targets.double()
    torch.manual_seed(0)
    body, digit, angle, odd = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 2), nn.Linear(6, 1)
    net = nn.ModuleList([body, digit, angle, odd]).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    expected = []
    for _ in range(20):
        h = body(x).tanh()
        p = torch.where(y[:, 3] == 1, odd(h)[:, 0], -odd(h)[:, 0]).sigmoid()
        losses = [
            nn.functional.cross_entropy(digit(h), y[:, 0].long()),
            nn.functional.huber_loss(angle(h), y[:, 1:3]),
            -((1 - p) ** 2 * p.log()).mean(),
        ]
        loss = losses[0] + 0.1 * losses[1] + 2 * losses[2]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append([loss.item(), *(part.item() for part in losses)])
    names = ("loss", "digit_loss", "angle_loss", "odd_loss")
    part_losses = [[row[f"train/{name}"] for name in names] for row in outcome.rows]
    assert np.allclose(part_losses, expected, rtol=1e-12)
    for mine, theirs in zip(weights_of("run").values(), net.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_outputs_have_metrics_and_class_weights_of_their_own(two: Callable[..., Any]) -> None:
    from sklearn import metrics

    chosen = ("task.metrics={digit: [accuracy, auroc, cohen_kappa], angle: [rmse]}", "data.batch_size=16")
    chosen += ("task.class_weights={digit: balanced, odd: [1, 3]}", "trainer.epochs=2")
    outcome = two(*QUIET, *HEADS, *chosen, "checkpoint.monitor=val/digit_auroc", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    saved = package.load("run", trusted_modules="two_outputs")
    test = saved.splits.test
    y = test.targets
    with torch.no_grad():
        outputs = saved.model(test.inputs[0].float()).double()

    counts = torch.bincount(saved.splits.train.targets[:, 0].long())
    logits = outputs[:, :3]
    signs = torch.where(y[:, 3] == 1, outputs[:, 5], -outputs[:, 5])
    weights = 1 + 2 * y[:, 3]
    losses = {
        "digit_loss": nn.functional.cross_entropy(logits, y[:, 0].long(), weight=counts.sum() / (3 * counts.double())),
        "angle_loss": nn.functional.mse_loss(outputs[:, 3:5], y[:, 1:3]),
        "odd_loss": -(weights * nn.functional.logsigmoid(signs)).sum() / weights.sum(),
    }
    truth = {
        **{name: float(loss) for name, loss in losses.items()},
        "loss": float(sum(losses.values())),
        "digit_auroc": metrics.roc_auc_score(y[:, 0], logits.softmax(1), multi_class="ovr"),
        "digit_cohen_kappa": metrics.cohen_kappa_score(y[:, 0], logits.argmax(1)),
        "angle_rmse": float(losses["angle_loss"].sqrt()),
    }
    result = outcome.result["metrics"]
    assert {name: result[f"test/{name}"] for name in truth} == pytest.approx(truth, rel=1e-5)
    assert "test/angle_mse" not in result
    # Over the batches of an epoch too, where a mean with weights is not the mean of the batches'.
    row = outcome.rows[-1]
    assert row["train/loss"] == pytest.approx(sum(row[f"train/{name}"] for name in losses), rel=1e-6)
    assert "test/odd_f1" in result
    outcome = two("eval", "run", "trusted_modules=[two_outputs]")
    assert "the same as recorded in training, to the last bit" in outcome.out, outcome.err


@pytest.mark.slow
def test_metrics_and_tables_of_each_output_are_scikit_learns(two: Callable[..., Any]) -> None:
    from sklearn import metrics

    words = ("model=mlp", "optimizer.lr=0.02", "trainer.epochs=3", "checkpoint.monitor=val/digit_accuracy")
    outcome = two(*QUIET, *DATA, *words, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert outcome.result["best"]["metric"] == "val/digit_accuracy"
    assert load(Path("run/checkpoints/last.pt"))["config"]["task"]["losses"] is None

    outcome = two("eval", "run", "trusted_modules=[two_outputs]")
    assert "the same as recorded in training, to the last bit" in outcome.out, outcome.err
    (folder,) = Path("run/eval").iterdir()
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    digits, guesses = ([row[f"{kind}_digit"] for row in rows] for kind in ("true", "predicted"))
    odd, odd_guesses = ([int(row[f"{kind}_odd"]) for row in rows] for kind in ("true", "predicted"))
    angles, values = (
        np.array([[float(row[f"{kind}_angle_{i}"]) for i in range(2)] for row in rows])
        for kind in ("true", "predicted")
    )
    assert set(digits) == {"none", "one", "both"}
    truth = {
        "digit_accuracy": metrics.accuracy_score(digits, guesses),
        "digit_macro_f1": metrics.f1_score(digits, guesses, average="macro"),
        "angle_mse": metrics.mean_squared_error(angles, values),
        "angle_r2": metrics.r2_score(angles, values),
        "odd_f1": metrics.f1_score(odd, odd_guesses),
    }
    result = json.loads(Path("run/result.json").read_text())
    assert {name: result["metrics"][f"test/{name}"] for name in truth} == pytest.approx(truth, rel=1e-5)
    parts = ("digit_loss", "angle_loss", "odd_loss")
    assert result["metrics"]["test/loss"] == pytest.approx(sum(result["metrics"][f"test/{name}"] for name in parts))
    train = package.load("run", trusted_modules="two_outputs").splits.train.targets
    mean_error = metrics.mean_squared_error(angles, np.tile(train[:, 1:3].mean(0).numpy(), (len(angles), 1)))
    assert result["baseline"]["test/angle_mse"] == pytest.approx(mean_error, rel=1e-6)

    row = ",".join("1" for _ in range(4))
    outcome = two("predict", "run", row, "--format", "jsonl", "trusted_modules=[two_outputs]")
    answer = json.loads(outcome.out)
    assert set(answer["prediction"]) == {"digit", "angle", "odd"}
    assert set(answer["probabilities"]) == {"digit", "odd"}
    outcome = two("predict", "run", row, "--format", "csv", "trusted_modules=[two_outputs]")
    header = "input,prediction_digit,probability_digit,prediction_angle_0,prediction_angle_1,prediction_odd,"
    assert outcome.out.startswith(header), outcome.out
    assert two("predict", "run", row, "trusted_modules=[two_outputs]").code == 0
    saved = package.load("run", trusted_modules="two_outputs")
    assert saved.predict(torch.ones(1, 4)).labels[0].startswith(f"digit {answer['prediction']['digit']} (")

    assert two("export", "run", "format=safetensors", "trusted_modules=[two_outputs]").code == 0
    about = json.loads(Path("run/export/safetensors/model.json").read_text())
    columns = [(column["name"], column["from"], column["to"]) for column in about["columns"]]
    assert columns == [("digit", 0, 3), ("angle", 3, 5), ("odd", 5, 6)]
    assert [column["output_to_probability"] for column in about["columns"]] == ["softmax", None, "sigmoid"]
    outcome = two("export", "run", "format=python", "trusted_modules=[two_outputs]")
    assert (outcome.code, "a training of several outputs" in outcome.err) == (2, True)


@pytest.mark.slow
def test_a_run_cut_off_in_an_epoch_goes_on_to_the_bit(two: Callable[..., Any]) -> None:
    words = (*QUIET, *HEADS, "data.batch_size=16", "trainer.epochs=3", "task.weights={angle: 0.1}")
    assert two(*words, "hydra.run.dir=undisturbed").code == 0
    assert two(*words, "trainer.max_steps=7", "hydra.run.dir=cut").code == 0
    outcome = two("resume", "cut", "trainer.max_steps=null", "trusted_modules=[two_outputs]")
    assert outcome.code == 0, outcome.err
    assert Path("cut/metrics.jsonl").read_text() == Path("undisturbed/metrics.jsonl").read_text()
    one, other = weights_of("cut"), weights_of("undisturbed")
    assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["csv", "table"])
def test_several_columns_of_a_table_are_an_output_each(data: str, dlrun: Callable[..., Any]) -> None:
    lines = [f"{i % 7},{i % 5},{(i % 7) * 1.5 - i % 5},{'abc'[i % 3]}" for i in range(60)]
    Path("rows.csv").write_text("a,b,price,kind\n" + "\n".join(lines) + "\n")
    words = (f"data={data}", "data.path=rows.csv", "data.target=[price,kind]", "trainer.epochs=2")
    outcome = dlrun(*QUIET, *words, "task.losses={price: l1}", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert "were taken for regression (price), multiclass (kind)" in outcome.out
    assert {"val/price_mae", "val/kind_accuracy", "val/loss"} <= set(outcome.rows[-1])
    assert dlrun("eval", "run").code == 0
    answers = [json.loads(line) for line in dlrun("predict", "run", "rows.csv", "--format", "jsonl").out.splitlines()]
    assert (len(answers), answers[4]["label"]) == (60, "2.0, b")
    Path("other.csv").write_text("a,b,price,kind\n1,2,3.5,a\n2,1,4.5,b\n")
    outcome = dlrun("eval", "run", "data.path=other.csv")
    assert (
        outcome.code,
        "was trained for the outputs price (regression), kind (multiclass of a, b, c)" in outcome.err,
    ) == (2, True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            (*HEADS, "+model.odd=even"),
            "the model returns angle, digit, even, and spec.outputs are digit, angle, odd",
        ),
        (
            (*DATA, "model._target_=two_outputs.Single"),
            "the model returns first, second, and spec.outputs are digit",
        ),
        (
            ("data=digits", "model._target_=two_outputs.Single"),
            "returns a dict of first, second, and the data have one",
        ),
        ((*HEADS, "+data.bad=3"), "has a target of 3 for digit, and multiclass with 3 classes takes 0 to 2"),
        ((*HEADS, "+data.bad=0.5"), "has a target of 0.5 for digit"),
        ((*HEADS, "+data.size=4"), "spec.output_size is 5, and the sizes of spec.outputs add up to 6"),
        ((*HEADS, "task.losses={digits: nll}"), "task.losses.digits is no output; did you mean task.losses.digit?"),
        ((*HEADS, "task.losses={digit: mse}"), "task.losses.digit=mse is no loss for multiclass; "),
        ((*HEADS, "task.weights={odd: -1}"), "task.weights.odd=-1 must be a number of at least 0"),
        ((*HEADS, "task.weights={odd: 0, digit: 0, angle: 0}"), "so that there is nothing to learn"),
        ((*HEADS, "task.loss=mse"), "task.loss is for one output; type task.losses={digit: mse}"),
        (
            (*HEADS, "task.metrics=[accuracy]"),
            "is for one output, and these data have digit, angle, odd; type task.m",
        ),
        ((*HEADS, "task.metrics={digt: [auroc]}"), "task.metrics.digt is no output; did you mean task.metrics.digit"),
        ((*HEADS, "task.metrics={angle: [auroc]}"), "task.metrics"),
        ((*HEADS, "task.class_weights={angle: balanced}"), "task.class_weights.angle is no output of classes; "),
        ((*HEADS, "task.class_weights={digit: [1, 2]}"), "balanced, or a number for each of 3 classes"),
        ((*HEADS, "task.class_weights=[1, 2]"), "type balanced, or task.class_weights='{digit: balanced}'"),
        (("data=digits", "task.weights={digit: 1}"), "task.weights is for data of several outputs, and these have one"),
        ((*DATA, "model=logistic"), "model=logistic does not take data=rows"),
    ],
)
def test_a_mistake_is_a_sentence(words: tuple[str, ...], sentence: str, two: Callable[..., Any]) -> None:
    outcome = two(*QUIET, *words, "hydra.run.dir=run")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
    assert sentence in outcome.err
    assert not Path("run").exists()


SCENES = """
import torch
from dlrun.data.spec import DataSpec, Split, Splits


def scenes():
    x = torch.rand(12, 1, 4, 4)
    return Splits(Split((x,), (x[:, 0] > 0.5).long()), None, None, DataSpec("image", (1, 4, 4), "multiclass", 2))
"""


def test_segmentation_is_refused_in_a_sentence(dlrun: Callable[..., Any]) -> None:
    Path("scenes.py").write_text(SCENES)
    outcome = dlrun(*QUIET, "data._target_=scenes.scenes", "model=linear")
    assert (outcome.code, "segmentation, is nothing that dlrun trains" in outcome.err) == (2, True)


@pytest.mark.slow
def test_the_network_in_onnx_has_the_outputs_side_by_side(two: Callable[..., Any]) -> None:
    assert two(*QUIET, *HEADS, "trainer.epochs=1", "hydra.run.dir=run").code == 0
    outcome = two("export", "run", "format=onnx", "trusted_modules=[two_outputs]")
    assert outcome.code == 0, outcome.err
    assert "rows of test: at most" in outcome.out
