"""Metrics of a user's choice on the command line, beside scikit-learn on what the model answers."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

import dlrun as api
from dlrun.core.errors import RequestError
from dlrun.data.spec import DataSpec
from dlrun.engine.chosen_metrics import ChosenMetric
from dlrun.engine.objective import Objective

QUIET = ("tracking.graph=false", "figures=false")
BLOBS = ("data=blobs", "data.task=binary", "data.spread=3", "data.val_fraction=0.25", "data.batch_size=7")
MINE = """
import torch


def specificity(predictions, targets):
    no = targets == 0
    return (predictions[no] == 0).double().mean()


def brier(probabilities, targets, scale=1.0):
    return scale * ((probabilities - targets) ** 2).mean()


def margin(logits, targets):
    return float(logits.abs().mean())


class Share:
    '''The share of a class among the predictions, counted as the rows come.'''

    def __init__(self, of=1):
        self.of = of
        self.hits = 0
        self.rows = 0

    def update(self, predictions, targets):
        self.hits += int((predictions == self.of).sum())
        self.rows += len(predictions)

    def compute(self):
        return self.hits / self.rows


class NoMetric:
    pass


def two(predictions, targets):
    return predictions[:2]


def failing(predictions, targets):
    raise KeyError("nothing")
"""


@pytest.fixture
def run_with_metrics(dlrun: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """dlrun beside a module of metrics, named anew for each test: Python imports a name once."""
    name = f"metrics_{abs(hash(tmp_path)) % 10**8}"
    (tmp_path / f"{name}.py").write_text(MINE)

    def run(*words: str) -> Any:
        return dlrun(*(word.replace("MINE", name) for word in words))

    run.module = name  # type: ignore[attr-defined]
    return run


def answers(folder: str, split: str, **permissions: Any) -> tuple[Any, Any, Any]:
    """Targets, predictions and probabilities of a split, in the model's own words."""
    run = api.load(folder, **permissions)
    part = getattr(run.splits, split)
    rows = run.predict(part.inputs[0])
    return part.targets.numpy(), rows.values.numpy(), rows.probabilities


@pytest.mark.slow
def test_named_metrics_are_those_of_scikit_learn_on_every_split(run_with_metrics: Any) -> None:
    chosen = (
        "[auroc,accuracy,balanced_accuracy,matthews_corrcoef,sklearn.metrics.cohen_kappa_score,log_loss,roc_auc,"
        "{_target_:fbeta,beta:0.5},{_target_:fbeta,beta:2,_name_:f_two},MINE.specificity,{_target_:MINE.brier,scale:2},"
        "MINE.margin,{_target_:MINE.Share,of:0}]"
    )
    outcome = run_with_metrics(*QUIET, *BLOBS, "trainer.epochs=2", f"task.metrics={chosen}", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    y, predicted, probabilities = answers("run", "val", trusted_modules=[run_with_metrics.module])
    p = probabilities.double().numpy()
    p = p if p.ndim == 1 else p[:, -1]
    expected = {
        "auroc": sk.roc_auc_score(y, p),
        "accuracy": sk.accuracy_score(y, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(y, predicted),
        "matthews_corrcoef": sk.matthews_corrcoef(y, predicted),
        "cohen_kappa_score": sk.cohen_kappa_score(y, predicted),
        "log_loss": sk.log_loss(y, p),
        "roc_auc": sk.roc_auc_score(y, p),
        "fbeta": sk.fbeta_score(y, predicted, beta=0.5),
        "f_two": sk.fbeta_score(y, predicted, beta=2),
        "specificity": sk.recall_score(y, predicted, pos_label=0),
        "brier": 2 * sk.brier_score_loss(y, p),
        "margin": float(np.abs(np.log(p / (1 - p))).mean()),
        "Share": float((predicted == 0).mean()),
    }
    actual = {key.removeprefix("val/"): value for key, value in rows[-1].items() if key.startswith("val/")}
    assert list(actual) == ["loss", *expected]
    assert actual.pop("loss") == pytest.approx(expected["log_loss"], rel=1e-5)
    assert actual == pytest.approx(expected, rel=1e-5)
    assert {f"train/{name}" for name in expected} <= rows[0].keys()
    result = json.loads(Path("run/result.json").read_text())
    assert result["metrics"].keys() == result["baseline"].keys()


@pytest.mark.parametrize("sizes", [[60], [16, 16, 16, 12], [1] * 60])
def test_however_the_rows_are_batched_a_metric_sees_them_once(sizes: list[int]) -> None:
    """Tags without their padding, in sequences whose batches differ in length; in the middle of an epoch, too."""
    spec = DataSpec("tokens", (3,), "tagging", 4, vocabulary=tuple("abc"))
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def remember(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        calls.append((outputs, targets))
        return 1.0

    task = Objective(spec, metrics=["accuracy", ChosenMetric("seen", remember, "outputs")])
    generator = torch.Generator().manual_seed(1)
    outputs = torch.randn(60, 5, 4, generator=generator)
    targets = torch.randint(0, 4, (60, 5), generator=generator)
    targets[torch.arange(5) >= torch.randint(1, 6, (60, 1), generator=generator)] = -100

    totals = task.new_accumulator(flush_batches=3)
    for number, (o, t) in enumerate(zip(outputs.split(sizes), targets.split(sizes), strict=True)):
        length = int((t != -100).sum(1).max())
        totals.add(o[:, :length], t[:, :length], task.compute_loss(o[:, :length], t[:, :length]))
        if number == 1:
            state = totals.state_dict()
            totals = task.new_accumulator(flush_batches=3)
            totals.load_state_dict(state, torch.device("cpu"))

    computed = totals.compute_metrics()
    assert list(computed) == ["loss", "accuracy", "seen"]
    (inputs, tags), *others = calls
    assert not others
    assert torch.equal(inputs, outputs[targets != -100])
    assert torch.equal(tags, targets[targets != -100])
    assert computed["accuracy"] == sk.accuracy_score(tags, inputs.argmax(-1))


@pytest.mark.slow
def test_more_classes_and_numbers(dlrun: Callable[..., Any]) -> None:
    chosen = (
        "[macro_f1,macro_precision,macro_recall,auroc,top_k_accuracy,{_target_:f1_score,average:weighted},log_loss]"
    )
    words = ("data=digits", "data.limit_batches=2", "trainer.epochs=1")
    outcome = dlrun(*QUIET, *words, f"task.metrics={chosen}", "hydra.run.dir=digits")
    assert outcome.code == 0, outcome.err
    y, predicted, probabilities = answers("digits", "test")
    p = probabilities.double().numpy()
    p /= p.sum(1, keepdims=True)
    test_metrics = json.loads(Path("digits/result.json").read_text())["metrics"]
    assert test_metrics["test/macro_precision"] == pytest.approx(
        sk.precision_score(y, predicted, average="macro", zero_division=0)
    )
    assert test_metrics["test/macro_recall"] == pytest.approx(
        sk.recall_score(y, predicted, average="macro", zero_division=0)
    )
    assert test_metrics["test/auroc"] == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr"), rel=1e-6)
    assert test_metrics["test/top_k_accuracy"] == sk.top_k_accuracy_score(y, p)
    assert test_metrics["test/f1_score"] == pytest.approx(sk.f1_score(y, predicted, average="weighted"))
    assert test_metrics["test/log_loss"] == pytest.approx(sk.log_loss(y, p), rel=1e-5)

    words = (
        "data=regression",
        "model=linear",
        "trainer.epochs=2",
        "task.metrics=[rmse,r2,max_error,explained_variance]",
    )
    assert dlrun(*QUIET, *words, "data.val_fraction=0.3", "hydra.run.dir=numbers").code == 0
    y, predicted, _ = answers("numbers", "val")
    rows = [json.loads(line) for line in Path("numbers/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["val/rmse"] == pytest.approx(sk.root_mean_squared_error(y, predicted), rel=1e-5)
    assert rows[-1]["val/max_error"] == pytest.approx(sk.max_error(y, predicted), rel=1e-5)
    assert rows[-1]["val/explained_variance"] == pytest.approx(sk.explained_variance_score(y, predicted), rel=1e-4)


@pytest.mark.slow
def test_a_cut_epoch_measures_all_of_its_rows_once_it_is_resumed(run_with_metrics: Any) -> None:
    words = (*QUIET, *BLOBS, "task.metrics=[MINE.Share,balanced_accuracy,MINE.brier]", "trainer.epochs=2")
    words = (*words, "checkpoint.monitor=train/Share", "checkpoint.mode=max")
    assert run_with_metrics(*words, "hydra.run.dir=undisturbed").code == 0
    steps = json.loads(Path("undisturbed/result.json").read_text())["steps"]
    assert run_with_metrics(*words, f"trainer.max_steps={steps // 2 + 3}", "hydra.run.dir=cut").code == 0
    refused = run_with_metrics("resume", "cut", f"trainer.max_steps={steps}")
    assert refused.code == 2
    assert f"if you trust it add trusted_modules='[{run_with_metrics.module}]'" in refused.err
    outcome = run_with_metrics("resume", "cut", f"trainer.max_steps={steps}", "trusted_modules=[MINE]")
    assert outcome.code == 0, outcome.err
    assert Path("cut/metrics.jsonl").read_text() == Path("undisturbed/metrics.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("comparison_without_pictures")
def test_a_chosen_metric_decides_is_expected_evaluated_and_compared(run_with_metrics: Any) -> None:
    words = (*QUIET, *BLOBS, "task.metrics=[MINE.Share,jaccard]", "checkpoint.monitor=val/jaccard", "trainer.epochs=2")
    outcome = run_with_metrics("-m", *words, "expect=['val/Share >= 0']", "strict=true", "seed=0,1", "sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    assert "val/jaccard" in outcome.out
    run = next(Path("sweep").glob("0_*"))
    result = json.loads((run / "result.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert result["best"]["value"] == max(row["val/jaccard"] for row in rows)

    assert run_with_metrics("eval", str(run)).code == 2
    outcome = run_with_metrics("eval", str(run), "split=val", "figures=false", "trusted_modules=[MINE]")
    assert "to the last bit" in outcome.out, outcome.err
    # Other metrics of a saved run: those of scikit-learn need no permission, and naming one's own gives it.
    outcome = run_with_metrics(
        "eval", str(run), "split=val", "figures=false", "task.metrics=[zero_one_loss,MINE.specificity]"
    )
    assert outcome.code == 0, outcome.err
    assert "val/zero_one_loss" in outcome.out
    Path("rows.csv").write_text("x0,x1\n1,2\n")
    assert run_with_metrics("predict", str(run), "rows.csv", "trusted_modules=[MINE]").code == 0
    outcome = run_with_metrics("export", str(run), "format=python", "trusted_modules=[MINE]")
    assert "format=python cannot write task.metrics=" in outcome.err


@pytest.mark.slow
def test_the_confusion_matrix_is_a_picture_and_no_number(dlrun: Callable[..., Any]) -> None:
    words = ("data=blobs", "trainer.epochs=1", "tracking.graph=false", "task.metrics=[accuracy,confusion]")
    assert dlrun(*words, "hydra.run.dir=run").code == 0
    assert Path("run/figures/confusion.png").is_file()
    row = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])
    assert {key for key in row if key.startswith("train/")} == {"train/loss", "train/accuracy"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("task.metrics=[accurcy]",), "did you mean accuracy?"),
        (("task.metrics=[macro_f1]",), "macro_f1 is no metric for binary; "),
        (("task.metrics=[MINE.NoMetric]",), "has no update and compute; give it update(predictions, targets)"),
        (("task.metrics=[MINE.two]",), "two gives (2,) numbers, and a metric is one number"),
        (("task.metrics=[MINE.failing]",), "failing cannot be computed: KeyError: 'nothing' (metrics_"),
        (("task.metrics=[{_target_:MINE.brier,sclae:2}]",), "did you mean scale? it takes scale"),
        (("task.metrics=[{_target_:MINE.Share,of:1,fo:2}]",), "fo is no argument of"),
        (("task.metrics=[{_target_:fbeta,beta:-1}]",), "fbeta cannot be computed: InvalidParameterError"),
        (
            ("task.metrics=[MINE.Share,{_target_:MINE.Share,of:0}]",),
            "there are two metrics of the name Share; give one",
        ),
        (("task.metrics=[{_target_:MINE.Share,_name_:'a/b'}]",), "must be a word of letters"),
        (
            ("task.metrics=[{_target_:MINE.Share,_input_:logits}]",),
            "must be one of predictions, probabilities, outputs",
        ),
        (("task.metrics=[3]",), "task.metrics[0]=3 is no metric; type a name"),
        (("task.metrics=accuracy",), "task.metrics=accuracy must be a list"),
        (("task.metrics=[sklearn.metrics.pairwise_distances]",), "is no function of targets and predictions"),
        (("task.metrics=[classification_report]",), "classification_report gives a str"),
        (("task.metrics=[confusion]",), "figures=false draws none; leave out one of the two"),
        (("task.metrics=[nowhere.metric]",), "there is no module nowhere"),
        (
            ("task.metrics=[MINE.Share]", "checkpoint.monitor=val/Share"),
            "it is not known whether more or less of it is better; type checkpoint.mode=max, or checkpoint.mode=min",
        ),
        (("task.metrics=[f1]", "checkpoint.monitor=val/accuracy"), "val/accuracy is no metric of this run"),
    ],
)
def test_what_is_no_metric_is_a_sentence(words: tuple[str, ...], sentence: str, run_with_metrics: Any) -> None:
    outcome = run_with_metrics(*QUIET, *BLOBS, *words, "hydra.run.dir=run")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
    assert sentence in outcome.err
    assert not Path("run").exists()


def test_torchmetrics_is_asked_for_where_it_is_missing(dlrun: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlrun.experiment.builder import metrics

    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    outcome = dlrun(*QUIET, *BLOBS, "task.metrics=[torchmetrics.classification.BinaryAUROC]")
    assert outcome.code == 2
    assert "needs torchmetrics, which is not installed; type pip install torchmetrics" in outcome.err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_classes_and_functions_of_torchmetrics(dlrun: Callable[..., Any]) -> None:
    pytest.importorskip("torchmetrics")
    import torchmetrics.functional as tm

    there = "torchmetrics.classification"
    chosen = (
        f"[accuracy,{there}.MulticlassAUROC,{{_target_:{there}.MulticlassFBetaScore,beta:0.5,num_classes:10}},"
        "torchmetrics.functional.accuracy,torchmetrics.CohenKappa]"
    ).replace("torchmetrics.functional.accuracy", "{_target_:torchmetrics.functional.accuracy,_name_:micro}")
    words = ("data=digits", "data.limit_batches=2", "trainer.epochs=1")
    outcome = dlrun(*QUIET, *words, f"task.metrics={chosen}", "hydra.run.dir=digits")
    assert outcome.code == 0, outcome.err
    y, predicted, p = answers("digits", "test", trusted_modules=["torchmetrics"])
    y = torch.as_tensor(y)
    metrics = json.loads(Path("digits/result.json").read_text())["metrics"]
    assert metrics["test/MulticlassAUROC"] == pytest.approx(
        float(tm.auroc(p, y, "multiclass", num_classes=10)), rel=1e-5
    )
    fbeta = tm.fbeta_score(p, y, "multiclass", beta=0.5, num_classes=10, average="macro")
    assert metrics["test/MulticlassFBetaScore"] == pytest.approx(float(fbeta), rel=1e-5)
    assert metrics["test/micro"] == pytest.approx(metrics["test/accuracy"])
    assert metrics["test/CohenKappa"] == pytest.approx(sk.cohen_kappa_score(y, predicted), rel=1e-5)
    refused = dlrun("eval", "digits")
    assert "trusted_modules='[torchmetrics]'" in refused.err


def test_an_error_of_a_metric_before_training_is_a_wrong_request() -> None:
    def fail(predictions: torch.Tensor, targets: torch.Tensor) -> float:
        raise ValueError("too few")

    task = Objective(DataSpec("vector", (1,), "binary", 1), metrics=[ChosenMetric("failing", fail)])
    targets = torch.tensor([0, 1, 1])
    with pytest.raises(RequestError, match="failing cannot be computed: ValueError: too few"):
        task.compute_baseline(targets, targets)
