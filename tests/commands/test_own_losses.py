"""Losses of a user's choice on the command line: weighted, or modules of their own that are trained and saved."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrun.runs.checkpoint import load

QUIET = ("tracking.graph=false", "figures=false", "device.precision=fp64")
LOSSES = """
import torch
from torch import nn


class Tempered(nn.Module):
    '''Cross-entropy of outputs that a learned number scales; it counts the batches of training.'''

    def __init__(self, spec, start=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.full((spec.output_size,), start) + 0.1 * torch.rand(spec.output_size))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def forward(self, outputs, targets):
        if self.training:
            self.batches += 1
        return nn.functional.cross_entropy(outputs * self.scale, targets)


class Plain:
    def __call__(self, outputs, targets):
        return outputs.sum()


def powers(outputs, targets, exponent=2.0):
    return ((outputs - targets).abs() ** exponent).mean()
"""


@pytest.fixture
def run_with_losses(dlrun: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """dlrun beside a module of losses, named anew for each test: Python imports a name once."""
    name = f"losses_{tmp_path.name.strip('_0123456789')[:40]}_{abs(hash(tmp_path)) % 10**8}"
    (tmp_path / f"{name}.py").write_text(LOSSES)

    def run(*words: str) -> Any:
        return dlrun(*(word.replace("MINE", name) for word in words))

    return run


def weights(folder: str) -> dict[str, torch.Tensor]:
    return dict(load(Path(folder) / "checkpoints" / "last.pt")["model"])


def assert_close(one: str, two: str) -> None:
    for key, value in weights(one).items():
        torch.testing.assert_close(value, weights(two)[key], rtol=1e-9, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("data=digits", "data.train_rows=72", "task.class_weights=[0.3,1,2,3,4,5,6,7,8,9]"),
        ("data=blobs", "data.task=binary", "task.loss=focal", "task.class_weights=[0.3,4.0]"),
        ("data=hello", "data.val_fraction=0", "model=rnn", "task.class_weights=[0.2,1,3,1]"),
    ],
    ids=["multiclass", "binary", "tagging"],
)
def test_weighted_batches_of_one_step_are_one_large_batch(words: tuple[str, ...], dlrun: Callable[..., Any]) -> None:
    common = (*QUIET, *words, "optimizer=sgd", "trainer.epochs=2", "data.shuffle=false")
    size = 2 if "data=hello" in words else 24
    assert dlrun(*common, f"data.batch_size={size}", "hydra.run.dir=large").code == 0
    small = (f"data.batch_size={size // 2}", "trainer.accumulate_steps=2", "data.loader=memory")
    assert dlrun(*common, *small, "hydra.run.dir=small").code == 0
    assert_close("large", "small")
    rows = [json.loads(line) for line in Path("large/metrics.jsonl").read_text().splitlines()]
    others = [json.loads(line) for line in Path("small/metrics.jsonl").read_text().splitlines()]
    assert [row["train/loss"] for row in rows] == pytest.approx([row["train/loss"] for row in others], rel=1e-9)


@pytest.mark.slow
def test_balanced_weights_are_those_of_scikit_learn(dlrun: Callable[..., Any]) -> None:
    import numpy as np
    from sklearn.utils.class_weight import compute_class_weight

    Path("rows.csv").write_text("a,y\n" + "".join(f"{i % 7},{'abbccc'[i % 6]}\n" for i in range(120)))
    words = ("data=csv", "data.path=rows.csv", "data.target=y", "trainer.epochs=1", "data.val_fraction=0")
    outcome = dlrun(*QUIET, *words, "task.class_weights=balanced", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    state = load(Path("run/checkpoints/last.pt"))
    assert state["rows"] < 120

    from dlrun import load as open_run

    targets = open_run("run").splits.train.targets.numpy()
    truth = compute_class_weight("balanced", classes=np.arange(3), y=targets)
    assert state["class_weights"] == pytest.approx(truth.tolist(), rel=1e-12)
    # The weights of training count on other data, too.
    outcome = dlrun("eval", "run", "split=train", "data.train_rows=9", "figures=false")
    assert outcome.code == 0, outcome.err
    assert dlrun("predict", "run", "rows.csv").code == 0


@pytest.mark.slow
def test_a_loss_with_weights_of_its_own_is_trained_saved_and_resumed(run_with_losses: Callable[..., Any]) -> None:
    words = (
        "data=digits",
        "data.limit_batches=4",
        "task.loss=MINE.Tempered",
        "+task.loss_args.start=2",
        "trainer.epochs=3",
    )
    words = (*QUIET, *words, "optimizer=momentum", "trainer.grad_clip_norm=0.5")
    outcome = run_with_losses(*words, "hydra.run.dir=undisturbed")
    assert outcome.code == 0, outcome.err
    reference = load(Path("undisturbed/checkpoints/last.pt"))
    assert int(reference["loss"]["batches"]) == 12
    assert reference["loss"]["scale"].dtype == torch.float64
    assert (reference["loss"]["scale"] - 2.05).abs().min() > 1e-4

    # In the middle of an epoch.
    assert run_with_losses(*words, "trainer.max_steps=6", "hydra.run.dir=cut").code == 0
    assert run_with_losses("resume", "cut", "trainer.max_steps=12").code == 2
    outcome = run_with_losses("resume", "cut", "trainer.max_steps=12", "trusted_modules=[MINE]")
    assert outcome.code == 0, outcome.err
    resumed = load(Path("cut/checkpoints/last.pt"))
    for part in ("model", "loss"):
        for key, value in reference[part].items():
            assert torch.equal(value, resumed[part][key]), key
    assert Path("cut/metrics.jsonl").read_text() == Path("undisturbed/metrics.jsonl").read_text()

    outcome = run_with_losses("eval", "cut", "split=val", "figures=false", "trusted_modules=[MINE]")
    assert "the same as recorded in training, to the last bit" in outcome.out, outcome.err
    assert run_with_losses("export", "cut", "format=python", "trusted_modules=[MINE]").code == 2


@pytest.mark.slow
def test_the_weights_of_a_loss_do_not_move_those_of_the_model(run_with_losses: Callable[..., Any]) -> None:
    words = (*QUIET, "data=digits", "data.limit_batches=2", "trainer.epochs=1", "optimizer=sgd", "optimizer.lr=1e-30")
    assert run_with_losses(*words, "hydra.run.dir=plain").code == 0
    assert run_with_losses(*words, "task.loss=MINE.Tempered", "preflight=false", "hydra.run.dir=tempered").code == 0
    assert run_with_losses(*words, "task.loss=MINE.Tempered", "hydra.run.dir=checked").code == 0
    assert_close("plain", "tempered")
    first, second = (load(Path(name) / "checkpoints" / "last.pt")["loss"] for name in ("tempered", "checked"))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("task.loss=MINE.Tempered", "task.loss_args={strat:2}"), "did you mean task.loss_args.start? it takes start"),
        (("task.loss=MINE.Tempered", "task.loss_args={start:two}"), "TypeError: "),
        (("task.loss=MINE.Tempered", "task.reduction=sum"), "has no parameter reduction; give it one"),
        (("task.loss=MINE.Tempered", "task.class_weights=balanced"), "its weights by task.loss_args"),
        (("task.loss=MINE.Plain",), "is a class; name a function of outputs and targets, or a class that is an nn"),
        (("task.loss=CTCLoss",), "takes log_probs, targets, input_lengths, target_lengths, and a model gives outputs"),
        (("task.loss=KLDivLoss",), "is no loss for the targets of multiclass; type task.loss=CrossEntropyLoss"),
        (("task.class_weights=balnced",), "did you mean balanced? type balanced, or a number for each class"),
        (("task.loss_args=3",), "task.loss_args=3 must be values by name, {name: value}"),
        (("data=regression", "task.class_weights=balanced"), "is for classes, and these targets are numbers"),
        (
            ("data=regression", "task.loss=MINE.powers", "task.loss_args={power:3}"),
            "is no argument of task.loss=",
        ),
    ],
)
def test_a_loss_that_cannot_be_is_a_sentence(
    words: tuple[str, ...], sentence: str, run_with_losses: Callable[..., Any]
) -> None:
    data = () if any(word.startswith("data=") for word in words) else ("data=digits",)
    outcome = run_with_losses(*QUIET, *data, *words, "hydra.run.dir=run")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
    assert sentence in outcome.err
    assert not Path("run").exists()


@pytest.mark.slow
def test_functions_and_classes_of_torch_take_arguments(run_with_losses: Callable[..., Any]) -> None:
    words = (*QUIET, "data=regression", "model=linear", "trainer.epochs=2", "data.batch_size=32")
    assert (
        run_with_losses(*words, "task.loss=MINE.powers", "task.loss_args={exponent:2}", "hydra.run.dir=own").code == 0
    )
    assert run_with_losses(*words, "hydra.run.dir=mse").code == 0
    assert_close("own", "mse")
    outcome = run_with_losses(*words, "task.loss=torch.nn.MultiLabelSoftMarginLoss", "hydra.run.dir=soft")
    assert outcome.code == 0, outcome.err
    assert run_with_losses("eval", "soft", "figures=false").code == 0


@pytest.mark.slow
def test_a_poisson_regression_predicts_counts(dlrun: Callable[..., Any]) -> None:
    rates = [(i % 7 - 3) / 2 for i in range(140)]
    Path("rows.csv").write_text("x,y\n" + "".join(f"{x},{round(2.718**x)}\n" for x in rates))
    words = (
        "data=csv",
        "data.path=rows.csv",
        "data.target=y",
        "data.task=regression",
        "model=linear",
        "optimizer=lbfgs",
    )
    outcome = dlrun(*QUIET, *words, "task.loss=poisson", "trainer.epochs=3", "data.batch_size=200", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    result = json.loads(Path("run/result.json").read_text())
    assert result["metrics"]["train/r2"] > 0.9
    outcome = dlrun("eval", "run")
    assert "to the last bit" in outcome.out
    assert dlrun("predict", "run", "rows.csv", "format=csv").code == 0
    assert dlrun("export", "run", "format=safetensors").code == 0
    description = json.loads(next(Path("run").rglob("model.json")).read_text())
    assert description["output_to_value"] == "exp"


@pytest.mark.slow
def test_the_learning_rate_test_leaves_a_loss_as_it_was(run_with_losses: Callable[..., Any]) -> None:
    words = ("data=blobs", "model=linear", "task.loss=MINE.Tempered", "data.batch_size=50")
    outcome = run_with_losses("check", "lr", *QUIET, *words)
    assert outcome.code == 0, outcome.err


@pytest.mark.slow
def test_killed_and_resumed_is_the_undisturbed_run(
    run_with_losses: Callable[..., Any], kill_at_save: Callable[..., None], tmp_path: Path
) -> None:
    """A loss and a metric of one's own, killed in the middle of an epoch."""
    module = next(tmp_path.glob("losses_*.py"))
    module.write_text(
        module.read_text()
        + """

class Share:
    def __init__(self):
        self.hits = self.rows = 0

    def update(self, predictions, targets):
        self.hits += int((predictions == 3).sum())
        self.rows += len(predictions)

    def compute(self):
        return self.hits / self.rows
"""
    )
    name = module.stem
    words = [*QUIET, "data=digits", f"task.loss={name}.Tempered", f"task.metrics=[{name}.Share,accuracy,log_loss]"]
    words += ["checkpoint.every_steps=1", "trainer.epochs=2", "data.batch_size=128", "task.class_weights=null"]
    assert run_with_losses(*words, "hydra.run.dir=undisturbed").code == 0
    kill_at_save(15, *words, "hydra.run.dir=killed")
    assert not Path("killed/result.json").exists()

    outcome = run_with_losses("resume", "killed", f"trusted_modules=[{name}]")
    assert outcome.code == 0, outcome.err
    one, two = (load(Path(folder) / "checkpoints" / "last.pt") for folder in ("undisturbed", "killed"))
    for part in ("model", "loss"):
        assert all(torch.equal(one[part][key], two[part][key]) for key in one[part])
    assert Path("killed/metrics.jsonl").read_text() == Path("undisturbed/metrics.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("word", ["task.loss_args.gamma=3", "+task.loss_args.gamma=3", "++task.loss_args.gamma=3"])
def test_an_argument_of_a_loss_needs_no_plus(dlrun: Callable[..., Any], word: str) -> None:
    words = ("data=blobs", "model=mlp", "task.loss=focal", "trainer.epochs=1", "tracking.graph=false", "figures=false")
    outcome = dlrun(*words, word)
    assert outcome.code == 0, outcome.err
    reference = dlrun(*words, "task.loss_args={gamma:3}")
    assert outcome.result["weights_sha256"] == reference.result["weights_sha256"]
    assert outcome.result["config_hash"] == reference.result["config_hash"]

    wrong = dlrun(*words, word.replace("gamma", "gama"))
    assert (wrong.code, wrong.out) == (2, "")
    assert "did you mean task.loss_args.gamma" in wrong.err
