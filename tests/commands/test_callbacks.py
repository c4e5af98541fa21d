"""Callbacks of the user's own, and the spellings of dlrun's: the same run after any interruption."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.core.yaml import read_yaml
from dlrun.runs import checkpoint

QUICK = ("tracking.graph=false", "figures=false")
MINE = """
import dlrun
import torch
from torch import nn


class Gradients(dlrun.Callback):
    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.steps = 0

    def on_fit_start(self, trainer):
        # A resumed run gets all of this back, the random numbers and weights too.
        self.losses = []
        self.noise = float(torch.rand(()))
        with torch.no_grad():
            next(trainer.model.parameters()).mul_(0.5)

    def on_epoch_start(self, trainer):
        self.largest = torch.zeros(())
        for parameter in list(trainer.model.parameters())[:2]:
            # From the third epoch on, and not only in it: a resumed run has the same parameters frozen.
            if trainer.epoch == 3:
                parameter.requires_grad_(False)

    def on_step_end(self, trainer):
        self.steps += 1
        norms = [p.grad.abs().max() for p in trainer.model.parameters() if p.grad is not None]
        self.largest = torch.maximum(self.largest, max(norms))
        self.log("gradient/largest", max(norms) * self.factor)

    def on_validation_end(self, trainer):
        self.losses.append(trainer.row["val/loss"])

    def on_epoch_end(self, trainer, row):
        self.log("gap", row["val/loss"] - row["train/loss"])


class Net(nn.Module):
    def __init__(self, spec, dropout: float = 0.2) -> None:
        super().__init__()
        self.first = nn.Linear(spec.input_size, 8)
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(8, spec.output_size)

    def forward(self, x):
        h = self.first(x.flatten(1)).relu()
        self.penalty = h.square().mean()
        dlrun.log("hidden/mean", h.mean())
        return self.last(self.dropout(h))

    def auxiliary_loss(self):
        return 0.1 * self.penalty

    def training_metrics(self):
        return {"hidden/penalty": self.penalty}


class Stop(dlrun.Callback):
    def on_epoch_end(self, trainer, row):
        if row["epoch"] == 2:
            trainer.stop()


class Handle(dlrun.Callback):
    def on_fit_start(self, trainer):
        self.text = "kept"
        self.handle = open("notes.txt", "w")

    def on_fit_end(self, trainer):
        self.handle.close()


class Failing(dlrun.Callback):
    def on_step_end(self, trainer):
        raise KeyError("gradient")

    def on_exception(self, trainer, error):
        print(f"closed after {type(error).__name__} at step {trainer.step}")


class Late(dlrun.Callback):
    def on_fit_end(self, trainer):
        self.log("last", 1.0)


class Misspelt(dlrun.Callback):
    def on_step_ends(self, trainer):
        pass


class Wrong(dlrun.Callback):
    def on_epoch_end(self, trainer):
        pass


class Repeating(dlrun.Callback):
    def on_epoch_end(self, trainer, row):
        self.log("train/loss", 1.0)


class Shape(dlrun.Callback):
    def on_step_end(self, trainer):
        self.log("weights", next(trainer.model.parameters()))
"""


@pytest.fixture
def train(dlrun: Callable[..., Any]) -> Callable[..., Any]:
    """The command line in a folder with callbacks and a net of the user's own."""
    Path("watched.py").write_text(MINE)
    return dlrun


WATCHED = (
    "data=digits",
    "data.train_rows=300",
    "model._target_=watched.Net",
    "trainer.epochs=4",
    "trainer.log_every_steps=2",
    "+callbacks.mine._target_=watched.Gradients",
    "checkpoint.monitor=gap",
    "checkpoint.mode=max",
    "checkpoint.every_steps=3",
    *QUICK,
)


class Killed(BaseException):
    """The end of a process, which nothing in it can answer."""


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the training end after a step as if it had been killed: with what was saved until then."""
    from dlrun.runs.checkpoint_manager import CheckpointManager

    save = CheckpointManager.on_step_end

    def save_and_die(saver: Any, trainer: Any) -> None:
        save(saver, trainer)
        if trainer.step == step:
            raise Killed

    monkeypatch.setattr(CheckpointManager, "on_step_end", save_and_die)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_callbacks(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = train(*WATCHED, "hydra.run.dir=whole")
    assert reference.code == 0, reference.err

    # In the middle of the third epoch of five steps, and not at a save.
    with monkeypatch.context() as patch:
        kill_at(13, patch)
        with pytest.raises(Killed):
            train(*WATCHED, "hydra.run.dir=killed")
    refused = train("resume", "killed")
    assert refused.code == 2
    assert "trusted_modules='[watched]'" in refused.err
    resumed = train("resume", "killed", "trusted_modules=[watched]")
    assert resumed.code == 0, resumed.err

    for name in ("metrics.jsonl", "fingerprints.jsonl"):
        assert Path("killed", name).read_text() == Path("whole", name).read_text()
    states = [checkpoint.load(Path(name, "checkpoints/last.pt"))["callbacks"]["mine"] for name in ("whole", "killed")]
    largest = [state.pop("largest") for state in states]
    assert states[0] == states[1]
    assert largest[0].equal(largest[1])
    assert states[0]["steps"] == 20
    assert len(states[0]["losses"]) == 4


@pytest.mark.slow
def test_what_is_logged_is_a_metric_like_others(train: Callable[..., Any]) -> None:
    outcome = train(*WATCHED)
    assert outcome.code == 0, outcome.err
    for row in outcome.rows:
        # To rounding: the difference of the row's own values is formed in the same floats.
        assert row["gap"] == row["val/loss"] - row["train/loss"]
        assert {"gradient/largest", "hidden/mean", "hidden/penalty"} <= row.keys()
    best = max(outcome.rows, key=lambda row: row["gap"])
    assert outcome.result["best"]["value"] == best["gap"]
    assert outcome.result["best"]["epoch"] == best["epoch"]
    assert outcome.result["metrics"]["gap"] == outcome.rows[-1]["gap"]

    from dlrun.runs.tensorboard import read_scalars

    scalars = read_scalars(outcome.folder)
    assert [step for step, _ in scalars["gap"]] == [5, 10, 15, 20]
    assert [step for step, _ in scalars["gradient/largest_step"]] == list(range(2, 21, 2))
    assert "gap" in train("show", str(outcome.folder)).out
    listed = train("ls", "runs", "gap>-100", "format=json").out
    assert len(json.loads(listed)) == 1


@pytest.mark.slow
def test_the_row_has_the_mean_over_the_batches_and_the_loss_its_auxiliary_part(train: Callable[..., Any]) -> None:
    import torch
    from torch.nn import functional as F

    from dlrun.data.synthetic import blobs

    # The weights do not move, so that one pass over the batches tells what each of them gave.
    outcome = train(
        "data=blobs", "model._target_=watched.Net", "model.dropout=0", "trainer.epochs=1", "data.shuffle=false",
        "optimizer=sgd", "optimizer.lr=0.0", "data.batch_size=64", "device.precision=fp64", *QUICK,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    state = checkpoint.load(outcome.folder / "checkpoints/last.pt")["model"]
    train_split: Any = blobs().train
    losses, means, penalties = [], [], []
    with torch.no_grad():
        for x, y in zip(train_split.inputs[0].double().split(64), train_split.targets.split(64), strict=True):
            hidden = F.relu(F.linear(x, state["first.weight"], state["first.bias"]))
            loss = F.cross_entropy(F.linear(hidden, state["last.weight"], state["last.bias"]), y)
            means.append(float(hidden.mean()))
            penalties.append(float(hidden.square().mean()))
            losses += [float(loss) + 0.1 * penalties[-1]] * len(x)

    row = outcome.rows[0]
    assert math.isclose(row["hidden/mean"], sum(means) / len(means), rel_tol=1e-9)
    assert math.isclose(row["hidden/penalty"], sum(penalties) / len(penalties), rel_tol=1e-9)
    assert math.isclose(row["train/loss"], sum(losses) / len(losses), rel_tol=1e-9)


@pytest.mark.slow
def test_a_callback_may_end_the_training(train: Callable[..., Any]) -> None:
    words = ("data=blobs", "+callbacks.stop._target_=watched.Stop", "trainer.epochs=5", *QUICK)
    outcome = train(*words, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert (outcome.result["status"], outcome.result["epochs"]) == ("early_stopped", 2)
    assert "dlrun resume run trainer.epochs=10" in outcome.out

    again = train("resume", "run", "trusted_modules=[watched]")
    assert again.code == 0
    assert "trainer.epochs=" in again.out
    longer = train("resume", "run", "trainer.epochs=10", "trusted_modules=[watched]")
    assert (longer.result["status"], longer.result["epochs"]) == ("completed", 10)


def test_what_no_checkpoint_can_hold_is_said_once(train: Callable[..., Any]) -> None:
    outcome = train("data=blobs", "+callbacks.mine._target_=watched.Handle", "trainer.epochs=3", *QUICK)
    assert outcome.code == 0, outcome.err
    notes = [note for note in outcome.result["warnings"] if "callbacks.mine" in note]
    assert len(notes) == 1
    assert "handle (TextIOWrapper)" in notes[0]
    assert checkpoint.load(outcome.folder / "checkpoints/last.pt")["callbacks"] == {"mine": {"text": "kept"}}


def test_an_error_in_a_hook_is_one_sentence_and_others_are_told(train: Callable[..., Any]) -> None:
    outcome = train("data=blobs", "+callbacks.mine._target_=watched.Failing", *QUICK)
    assert outcome.code == 1
    assert "watched.py, line" in outcome.err
    assert "KeyError: 'gradient'" in outcome.err
    assert "closed after KeyError at step 1" in outcome.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("callbacks.mine._target_=watched.Stop",), "type +callbacks.mine._target_=module.Class"),
        (("+callbacks.mine.factor=2",), "callbacks.mine has no class; type +callbacks.mine._target_="),
        (("+callbacks.mine._target_=watched.Net", "+callbacks.mine.spec=1"), "callbacks.mine"),
        (("+callbacks.mine._target_=watched.Misspelt",), "Misspelt.on_step_ends is no hook; did you mean on_step_end?"),
        (("+callbacks.mine._target_=watched.Wrong",), "type def on_epoch_end(self, trainer, row)"),
        (("+callbacks.mine._target_=watched.Gradients", "+callbacks.mine.factr=2"), "callbacks.mine.factor?"),
        (("callbacks.early_stopping.patiense=2",), "did you mean callbacks.early_stopping.patience"),
        (("callbacks.early_stopping.patience=2", "trainer.early_stopping.patience=3"), "are one setting"),
        (("callbacks.early_stopping=2",), "callbacks.early_stopping=2"),
        (("callbacks.ema.decay=2",), "trainer.ema_decay=2"),
        (("~callbacks.checkpoint",), "every run has checkpoints; leave it out"),
        (("checkpoint.monitor=gap",), "checkpoint.monitor=gap is no metric of this run"),
        (("checkpoint.monitor=gap", "+callbacks.mine._target_=watched.Stop"), "type checkpoint.mode=min or"),
    ],
)  # fmt: skip
def test_mistakes(words: tuple[str, ...], sentence: str, train: Callable[..., Any]) -> None:
    outcome = train("data=blobs", *QUICK, *words)
    assert outcome.code == 2, outcome.out
    assert sentence in outcome.err
    assert "Traceback" not in outcome.err
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("+callbacks.mine._target_=watched.Repeating",), "every epoch has a value of this name already"),
        (("+callbacks.mine._target_=watched.Shape",), "log('weights', ...) takes one number"),
        (("+callbacks.mine._target_=watched.Late",), "log('last', ...) has no epoch to belong to"),
        (
            ("+callbacks.mine._target_=watched.Stop", "checkpoint.monitor=gap", "checkpoint.mode=min"),
            "checkpoint.monitor=gap was not logged in epoch 1",
        ),
    ],
)
def test_mistakes_that_show_in_the_training(words: tuple[str, ...], sentence: str, train: Callable[..., Any]) -> None:
    outcome = train("data=blobs", *QUICK, *words)
    assert outcome.code == 1
    assert sentence in outcome.err


ALIASES = [
    ("callbacks.early_stopping.patience=3", "trainer.early_stopping.patience=3"),
    ("callbacks.early_stopping.min_delta=0.5", "trainer.early_stopping.min_delta=0.5"),
    ("callbacks.ema.decay=0.9", "trainer.ema_decay=0.9"),
    ("callbacks.checkpoint.keep=5", "checkpoint.keep=5"),
    ("callbacks.weight_histograms.enabled=true", "tracking.weight_histograms=true"),
    ("~callbacks.diagnostics", "tracking.diagnose=false"),
    ("~callbacks.progress", "trainer.progress=off"),
]


@pytest.mark.parametrize(("one", "other"), ALIASES)
def test_both_spellings_make_the_same_run(one: str, other: str) -> None:
    from dlrun.config.request import from_command_line

    configs = [from_command_line([word])[0].config for word in (one, other)]
    assert configs[0] == configs[1]
    # A run without callbacks of the user's own looks as it always did.
    assert "callbacks" not in configs[0]


@pytest.mark.slow
def test_a_preset_may_be_overridden_by_either_spelling(dlrun: Callable[..., Any]) -> None:
    Path("mine/experiment").mkdir(parents=True)
    overlay = "# @package _global_\n# stops early\ncallbacks: {early_stopping: {patience: 7}, ema: {decay: 0.5}}\n"
    Path("mine/experiment/early.yaml").write_text(overlay)
    words = ("--config-dir", "mine", "experiment=early", "data=blobs", "trainer.epochs=1", *QUICK)
    outcome = dlrun(*words, "callbacks.early_stopping.patience=4", "~callbacks.ema", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    trainer = read_yaml(Path("run/.hydra/config.yaml").read_text())["trainer"]
    assert (trainer["early_stopping"]["patience"], trainer["ema_decay"]) == (4, None)

    longer = dlrun("resume", "run", "trainer.epochs=2", "callbacks.early_stopping.patience=5")
    assert longer.code == 0, longer.err


@pytest.mark.slow
def test_an_option_of_ones_own_replaces_the_default(train: Callable[..., Any]) -> None:
    Path("mine/callbacks").mkdir(parents=True)
    Path("mine/callbacks/stop.yaml").write_text("# stops after two epochs\nstop: {_target_: watched.Stop}\n")
    words = ("--config-dir", "mine", "data=blobs", "trainer.epochs=5", *QUICK)
    outcome = train(*words, "callbacks=stop", "hydra.run.dir=alone")
    assert (outcome.code, outcome.result["epochs"]) == (0, 2), outcome.err
    assert read_yaml(Path("alone/.hydra/config.yaml").read_text())["tracking"]["diagnose"] is False
    both = train(*words, "callbacks=[default,stop]", "hydra.run.dir=both")
    assert (both.code, both.result["epochs"]) == (0, 2), both.err
    assert read_yaml(Path("both/.hydra/config.yaml").read_text())["tracking"]["diagnose"] is True


def test_a_spelling_without_effect_is_noted_as_the_key_is(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("data=blobs", "trainer.epochs=1", "callbacks.early_stopping.min_delta=0.1", *QUICK)
    assert "trainer.early_stopping.min_delta has no effect here" in outcome.out


@pytest.mark.slow
@pytest.mark.usefixtures("comparison_without_pictures")
def test_a_sweep_has_them_in_every_job_and_its_table(train: Callable[..., Any]) -> None:
    outcome = train(
        "-m", "data=digits", "data.train_rows=200", "model=linear", "trainer.epochs=1", "optimizer.lr=0.1,0.01",
        "+callbacks.mine._target_=watched.Gradients", "checkpoint.monitor=gap", "checkpoint.mode=min", *QUICK,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "gap" in outcome.out.partition("preparing")[2]
    rows = [path.read_text() for path in Path("outputs").rglob("metrics.jsonl")]
    assert len(rows) == 2
    assert all('"gap"' in row for row in rows)


@pytest.mark.slow
def test_a_script_for_plain_torch_cannot_have_them(train: Callable[..., Any]) -> None:
    outcome = train(
        "data=blobs", "+callbacks.stop._target_=watched.Stop", "trainer.epochs=1", *QUICK, "hydra.run.dir=run"
    )
    assert outcome.code == 0, outcome.err
    refused = train("export", "run", "format=python", "trusted_modules=[watched]")
    assert refused.code == 2
    assert "callbacks.stop" in refused.err


@pytest.mark.slow
def test_loading_a_run_needs_none_of_its_callbacks(train: Callable[..., Any]) -> None:
    outcome = train(
        "data=blobs", "+callbacks.stop._target_=watched.Stop", "trainer.epochs=1", *QUICK, "hydra.run.dir=run"
    )
    assert outcome.code == 0, outcome.err
    Path("watched.py").unlink()
    assert train("eval", "run", "figures=false").code == 0
