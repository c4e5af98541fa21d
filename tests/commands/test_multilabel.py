"""Any number of labels a row, on the command line: against scikit-learn, a loop of torch, and itself after a stop."""

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
FILMS = ("task=multilabel", "data=csv", "data.path=films.csv", "data.target=[drama,comedy,crime]")
LABELS = ("drama", "comedy", "crime")


def write_films(rows: int = 150) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """films.csv: four numbers and three labels a row; the last label is rare."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, 4)).round(4)
    y = (x @ generator.normal(size=(4, 3)) + generator.normal(size=(rows, 3)) > [0.0, 0.5, 3.0]).astype(int)
    with Path("films.csv").open("w") as file:
        file.write("a,b,c,d,drama,comedy,crime\n")
        for inputs, labels in zip(x.tolist(), y.tolist(), strict=True):
            file.write(",".join(map(str, [*inputs, *labels])) + "\n")
    return x, y


def columns_of(rows: list[dict[str, str]], kind: str) -> np.ndarray[Any, Any]:
    return np.array([[float(row[f"{kind}_{label}"]) for label in LABELS] for row in rows])


@pytest.mark.slow
def test_metrics_tables_and_predictions_are_scikit_learns(dlrun: Callable[..., Any]) -> None:
    from sklearn import metrics

    write_films()
    words = ("optimizer.lr=0.03", "trainer.epochs=4", "hydra.run.dir=run")
    by_row = "{_target_: sklearn.metrics.f1_score, average: samples, _name_: by_row}"
    more = f"task.metrics=[accuracy,exact_match,macro_f1,micro_f1,auroc,{by_row}]"
    outcome = dlrun(*QUIET, *FILMS, *words, more)
    assert outcome.code == 0, outcome.err
    done_eval = dlrun("eval", "run")
    assert "the same as recorded in training, to the last bit" in done_eval.out, done_eval.err
    (folder,) = Path("run/eval").iterdir()

    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    true, predicted, probabilities = (columns_of(rows, kind) for kind in ("true", "predicted", "probability"))
    assert ((probabilities > 0.5) == predicted).all()
    varying = [i for i in range(3) if len(set(true[:, i])) == 2]
    truth = {
        "loss": metrics.log_loss(true.ravel(), probabilities.ravel()),
        "accuracy": 1 - metrics.hamming_loss(true, predicted),
        "exact_match": metrics.accuracy_score(true, predicted),
        "macro_f1": metrics.f1_score(true, predicted, average="macro", zero_division=0),
        "micro_f1": metrics.f1_score(true, predicted, average="micro"),
        "auroc": metrics.roc_auc_score(true[:, varying], probabilities[:, varying], average="macro"),
        "by_row": metrics.f1_score(true, predicted, average="samples", zero_division=0),
    }
    test_metrics = {name: outcome.result["metrics"][f"test/{name}"] for name in truth}
    assert test_metrics == pytest.approx(truth, rel=1e-5)

    precision, recall, f1, support = metrics.precision_recall_fscore_support(true, predicted, zero_division=0)
    with (folder / "per_class.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["class"] for row in table] == list(LABELS)
    for number, row in enumerate(table):
        cells = [float(row[name] or 0) for name in ("precision", "recall", "f1", "support")]
        assert cells == pytest.approx([column[number] for column in (precision, recall, f1, support)])

    # The labels of a row by name, and the same numbers from every door.
    outcome = dlrun("predict", "run", "films.csv", "--format", "jsonl")
    answers = [json.loads(line) for line in outcome.out.splitlines()]
    by_line = {answer["input"]: answer for answer in answers}
    for row, holds in zip(rows, predicted, strict=True):
        answer = by_line[f"films.csv:{row['line']}"]
        assert answer["prediction"] == [label for label, hold in zip(LABELS, holds, strict=True) if hold]
        assert answer["label"] == ", ".join(label for label in LABELS if row[f"true_{label}"] == "1")
    first = dlrun("predict", "run", "films.csv", "--format", "csv").out.splitlines()
    assert first[0].startswith("input,prediction,probability_drama,probability_comedy,probability_crime,label")
    saved = package.load("run")
    predictions = saved.predict(saved.splits.test.inputs[0])
    assert predictions.probabilities is not None
    assert np.allclose(predictions.probabilities.numpy(), probabilities, atol=1e-6)
    assert predictions.labels[0] == ", ".join(label for label, hold in zip(LABELS, predicted[0], strict=True) if hold)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "losses"),
    [
        ((), nn.BCEWithLogitsLoss()),
        (("task.loss_args={pos_weight:3}",), nn.BCEWithLogitsLoss(pos_weight=torch.full((3,), 3.0))),
        (("task.class_weights=[1,2,5]",), nn.BCEWithLogitsLoss(weight=torch.tensor([1.0, 2.0, 5.0]) * 3 / 8)),
        (("task.loss=torch.nn.MultiLabelSoftMarginLoss",), nn.BCEWithLogitsLoss()),
    ],
    ids=["plain", "pos_weight", "class_weights", "torch"],
)
def test_it_trains_as_a_loop_of_torch(words: tuple[str, ...], losses: nn.Module, dlrun: Callable[..., Any]) -> None:
    x, y = write_films(40)
    common = ("data.test_fraction=0", "data.val_fraction=0", "data.normalize=false", "data.shuffle=false")
    common += (
        "device.precision=fp64",
        "model=mlp",
        "optimizer=momentum",
        "model.hidden_sizes=[6]",
        "trainer.epochs=20",
    )
    outcome = dlrun(*QUIET, *FILMS, *common, *words, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    settings = load(Path("run/checkpoints/last.pt"))["config"]["optimizer"]
    optimizer = torch.optim.SGD(net.parameters(), lr=settings["lr"], momentum=settings["momentum"])
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y).double()
    expected = []
    for _ in range(20):
        loss = losses.double()(net(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert [row["train/loss"] for row in outcome.rows] == pytest.approx(expected, rel=1e-12)
    weights = load(Path("run/checkpoints/last.pt"))["model"]
    for mine, theirs in zip(weights.values(), net.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_a_run_cut_off_in_an_epoch_goes_on_to_the_bit(dlrun: Callable[..., Any]) -> None:
    write_films()
    words = (*QUIET, *FILMS, "data.batch_size=16", "model.dropout=0.2", "trainer.epochs=3")
    assert dlrun(*words, "hydra.run.dir=undisturbed").code == 0
    assert dlrun(*words, "trainer.max_steps=9", "hydra.run.dir=cut").code == 0
    outcome = dlrun("resume", "cut", "trainer.max_steps=null")
    assert outcome.code == 0, outcome.err
    assert Path("cut/metrics.jsonl").read_text() == Path("undisturbed/metrics.jsonl").read_text()
    one, two = (load(Path(name, "checkpoints", "last.pt"))["model"] for name in ("cut", "undisturbed"))
    assert all(torch.equal(one[key], two[key]) for key in two)


@pytest.mark.slow
def test_arrays_and_exports_know_the_labels(dlrun: Callable[..., Any]) -> None:
    Path("scans").mkdir()
    x = np.random.default_rng(0).integers(0, 256, (60, 8, 8)).astype(np.uint8)
    np.save("scans/x.npy", x)
    np.save("scans/y.npy", x.reshape(60, -1)[:, :2] > 127)
    words = ("data=arrays", "data.path=scans", "data.class_names=[left,right]", "model=linear", "trainer.epochs=2")
    # The words of the data alone will do.
    for name, more in (("run", "task=multilabel"), ("same", "data.task=multilabel")):
        figures = "true" if name == "run" else "false"
        outcome = dlrun("tracking.graph=false", f"figures={figures}", *words, more, f"hydra.run.dir={name}")
        assert outcome.code == 0, outcome.err
    assert Path("run/metrics.jsonl").read_text() == Path("same/metrics.jsonl").read_text()
    assert sorted(path.name for path in Path("run/figures").iterdir()) == ["loss.png", "samples.png"]

    assert dlrun("export", "run", "format=safetensors").code == 0
    about = json.loads(Path("run/export/safetensors/model.json").read_text())
    expected = ("multilabel", "sigmoid", ["left", "right"])
    assert (about["task"], about["output_to_probability"], about["class_names"]) == expected
    outcome = dlrun("export", "same", "format=python")
    assert (outcome.code, "several labels a row" in outcome.err) == (2, True)


@pytest.mark.slow
def test_other_tables_may_have_their_labels_in_another_order(dlrun: Callable[..., Any]) -> None:
    x, y = write_films(60)
    assert dlrun(*QUIET, *FILMS, "trainer.epochs=2", "data.test_fraction=0.5", "hydra.run.dir=run").code == 0
    lines = ["crime,a,b,c,d,other,comedy,drama"]
    for inputs, labels in zip(x.tolist(), y.tolist(), strict=True):
        lines.append(",".join(map(str, [labels[2], *inputs, 1, labels[1], labels[0]])))
    Path("other.csv").write_text("\n".join(lines) + "\n")
    first = dlrun("eval", "run", "split=all")
    second = dlrun("eval", "run", "data.path=other.csv", "data.target=[crime,other,comedy,drama]")
    assert second.code == 0, second.err
    numbers = []
    for outcome in (first, second):
        numbers.append([line.split()[1] for line in outcome.out.splitlines() if line.strip().startswith("all/")])
    assert numbers[0] == numbers[1]
    assert len(numbers[0]) == 5
    outcome = dlrun("eval", "run", "data.path=other.csv", "data.target=[crime,other]")
    assert "was trained for the labels drama, comedy" in outcome.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("data=digits", "task=multilabel"),
            "and data=digits is for multiclass; type data=csv with data.target=[a,b,c]",
        ),
        (
            (*FILMS[:3], "data.target=[a,drama]"),
            "line 2: column 'a' holds 0.1257, and multilabel takes 0 and 1",
        ),
        ((*FILMS[:3], "data.target=[drama,drama]"), "data.target names column 'drama' twice"),
        ((*FILMS[:3], "data.target=[]"), "data.target=[] names no column"),
        (
            (*FILMS[:3], "data.target=[drama,krime]"),
            "data.target=krime is no column of films.csv, did you mean 'crime'",
        ),
        ((*FILMS, "data.task=binary"), "task=multilabel and data.task=binary differ; leave out one of them"),
        ((*FILMS, "task.class_weights=balanced"), "is for one class a row; type a number for each label"),
        ((*FILMS, "task.class_weights=[1,2]"), "must be a positive number for each of 3 classes"),
        ((*FILMS, "task.loss=cross_entropy"), "no loss for multilabel; type one of bce_with_logits, bce, focal"),
        ((*FILMS, "task.metrics=[f1]"), "f1 is no metric for multilabel; type one of loss, accuracy"),
        (("task=multilable",), "task=multilable is not a choice; did you mean task=multilabel?"),
        (("task.kind=multilable",), "did you mean multilabel"),
        ((*FILMS, "task.metrics=[confusion]"), "is a picture for one class a row, and this is multilabel"),
    ],
)
def test_a_mistake_is_a_sentence(words: tuple[str, ...], sentence: str, dlrun: Callable[..., Any]) -> None:
    write_films(20)
    outcome = dlrun(*QUIET, *words, "hydra.run.dir=run")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
    assert sentence in outcome.err
    assert not Path("run").exists()


OWN = """
import torch
from dlrun.data.spec import DataSpec, Split, Splits


def films(value=1, size=2):
    x = torch.arange(24.0).view(12, 2)
    y = (x % 3 > 0).int()
    y[7, 1] = value
    spec = DataSpec("vector", (2,), "multilabel", size, class_names=("up", "down")[:size])
    return Splits(Split((x,), y), None, None, spec)
"""


def test_labels_of_ones_own_are_checked_row_by_row(dlrun: Callable[..., Any]) -> None:
    Path("own_labels.py").write_text(OWN)
    words = (*QUIET, "data._target_=own_labels.films", "model=linear", "trainer.epochs=1", "data.val_fraction=0")
    assert dlrun(*words, "task.loss=focal", "task.loss_args={gamma:1,alpha:0.3}").code == 0
    outcome = dlrun(*words, "+data.value=2")
    assert "row 7 of train has a target of 2 for label 'down', and multilabel takes 0 and 1" in outcome.err
    outcome = dlrun(*words, "+data.size=1")
    assert "takes (rows, 1), 0 or 1 a label" in outcome.err


@pytest.mark.slow
def test_a_sweep_of_labels_is_ranked_by_a_metric_of_theirs(dlrun: Callable[..., Any]) -> None:
    write_films(80)
    words = ("trainer.epochs=2", "model=linear,mlp", "seed=0,1", "checkpoint.monitor=val/micro_f1")
    outcome = dlrun("-m", *QUIET, *FILMS, *words, "sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    assert "val/micro_f1" in Path("sweep/comparison.csv").read_text()
