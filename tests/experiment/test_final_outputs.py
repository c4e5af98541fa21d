"""The final weights see the split that is shown once: metrics, notes and figures share that pass."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrun.engine import evaluation
from dlrun.experiment import finish
from dlrun.experiment.context import RunContext
from dlrun.experiment.final_outputs import FinalOutputs
from dlrun.runs.checkpoint_manager import CheckpointManager

QUICK = ("tracking.graph=false", "trainer.epochs=1")


@pytest.fixture
def figure_inputs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunContext, FinalOutputs]]:
    """The context and outputs of each run, as figures get them."""
    figure_inputs: list[tuple[RunContext, FinalOutputs]] = []
    monkeypatch.setattr(
        finish.figures,
        "draw_all",
        lambda context, folder, run_logger, outputs: figure_inputs.append((context, outputs)),
    )
    return figure_inputs


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each forward pass that is made for outputs alone."""
    passes: list[int] = []
    collect = evaluation.collect_outputs

    def count(*arguments: Any) -> Any:
        outputs = collect(*arguments)
        passes.append(len(outputs[2]))
        return outputs

    monkeypatch.setattr(evaluation, "collect_outputs", count)
    return passes


@pytest.mark.slow
@pytest.mark.parametrize("words", [("model=mlp",), ("model=cnn", "optimizer=adam")])
def test_the_evaluation_of_the_test_part_records_what_a_pass_of_its_own_gives(
    words: tuple[str, ...],
    dlrun: Callable[..., Any],
    figure_inputs: list[tuple[RunContext, FinalOutputs]],
    passes: list[int],
) -> None:
    assert dlrun("data=digits", "data.limit_batches=3", *words, *QUICK).code == 0
    assert passes == []

    ((context, recorded),) = figure_inputs
    test = context.batches.test
    assert test is not None
    final = recorded.get()
    assert final.split == "test"
    inputs, outputs, targets = evaluation.collect_outputs(context.state.model, test, context.runtime.autocast)
    assert all(torch.equal(*pair) for pair in zip(final.inputs, inputs, strict=True))
    assert torch.equal(final.outputs, outputs)
    assert torch.equal(final.targets, targets)


@pytest.mark.slow
def test_no_more_rows_are_recorded_than_are_shown(
    dlrun: Callable[..., Any], figure_inputs: list[tuple[RunContext, FinalOutputs]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "MAX_ROWS", 20)
    assert dlrun("data=digits", "data.limit_batches=3", "data.eval_batch_size=16", *QUICK).code == 0
    assert len(figure_inputs[0][1].get().targets) == 32


@pytest.mark.slow
def test_without_a_test_part_notes_and_figures_share_one_pass(
    dlrun: Callable[..., Any], figure_inputs: list[tuple[RunContext, FinalOutputs]], passes: list[int]
) -> None:
    assert (
        dlrun("data=points", "data.x=[1,2,3]", "data.y=[2,4,6]", "model=linear", "data.val_fraction=0", *QUICK).code
        == 0
    )
    assert figure_inputs[0][1].get().split == "train"
    assert passes == [3]


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "is_read"), [("0.01", False), ("3", True)])
def test_the_best_weights_are_read_only_where_later_epochs_have_changed_them(
    rate: str, is_read: bool, dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the larger rate each epoch is worse than the one before."""
    read: list[Any] = []
    load = CheckpointManager.load_best_weights

    def watch(*arguments: Any) -> Any:
        read.append(load(*arguments))
        return read[-1]

    monkeypatch.setattr(CheckpointManager, "load_best_weights", watch)
    Path("line.csv").write_text("x,y\n" + "".join(f"{x},{2 * x}\n" for x in range(40)))
    words = ("data=table", "data.path=line.csv", "data.target=y", "model=linear", "optimizer=sgd")
    words += (f"optimizer.lr={rate}", "trainer.epochs=3", "seed=1")
    outcome = dlrun(*words, "tracking.graph=false", "figures=false", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert (outcome.result["best"]["epoch"] < 3) is is_read
    assert bool(read) is is_read

    # An evaluation reads best.pt, whatever the run held in memory.
    assert dlrun("eval", "run", "figures=false").code == 0
    (file,) = Path("run").glob("eval/*/metrics.json")
    metrics = json.loads(file.read_text())["metrics"]
    assert metrics
    assert metrics == {key: outcome.result["metrics"][key] for key in metrics}
