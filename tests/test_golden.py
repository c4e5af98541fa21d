"""Losses of every step of small runs, as they were when they were written down.

Whoever changes them on purpose says why in a commit of its own: WRITE_GOLDEN=1 pytest tests/test_golden.py
"""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

GOLDEN = Path(__file__).parent / "golden"
QUIET = ("tracking.graph=false", "figures=false", "trainer.log_every_steps=1", "device=cpu", "device.num_threads=1")
RACE = ("lesson=optimizer_race", "trainer.epochs=2")
IN_FAST_SUITE = ("mlp_digits", "gru_names", "gradient_descent", "backpropagation_by_hand")
RUNS = {
    "mlp_digits": ("data=digits", "model=mlp", "model.dropout=0.2", "trainer.max_steps=30", "trainer.epochs=2"),
    "cnn_digits": (
        "data=digits",
        "model=cnn",
        "optimizer=momentum",
        "scheduler=one_cycle",
        "trainer.max_steps=20",
        "device.precision=fp64",  # in fp32 another CPU's rounding moves a maximum of the pooling: 3e-4 was seen
    ),
    "gru_names": (
        "data=names",
        "model=gru",
        "model.embedding_size=8",
        "model.hidden_size=8",
        "data.batch_size=16",
        "optimizer.lr=0.01",
        "trainer.epochs=3",
        "trainer.accumulate_steps=2",
        "trainer.grad_clip_norm=1.0",
    ),
    "gradient_descent": ("lesson=gradient_descent",),
    "numeric_gradient": ("lesson=numeric_gradient",),
    "backpropagation": ("lesson=backpropagation",),
    "backpropagation_by_hand": (
        "lesson=backpropagation_by_hand",
        "sweep.points=[]",
        "task.loss=scratch_bce_with_logits",
        "model=scratch_mlp",
        "trainer.epochs=5",
    ),
    "rnn_embedding": ("lesson=rnn_embedding", "seed=0"),
    "rnn_cell": ("lesson=rnn_cell", "seed=1"),
    "parabola_fit": ("lesson=parabola_fit", "seed=0", "tracking.evolution_every_epochs=null"),
    "optimizer_race_sgd": (*RACE, "optimizer=sgd"),
    "optimizer_race_momentum": (*RACE, "optimizer=momentum", "optimizer.momentum=0.8"),
    "optimizer_race_rmsprop": (*RACE, "optimizer=rmsprop", "optimizer.alpha=0.9"),
    "optimizer_race_adam": (*RACE, "optimizer=adam", "optimizer.betas=[0.9,0.99]"),
    "linear_regression": (
        "data=regression",
        "model=linear",
        "model.init={w: 1.0, b: 0.0}",
        "optimizer=sgd",
        "trainer.epochs=10",
    ),
}


def write_names(folder: Path) -> None:
    """Names of two made-up countries: one likes vowels."""
    folder.mkdir()
    draw = random.Random(0)
    for part, rows in (("train", 120), ("test", 20)):
        lines = []
        for i in range(rows):
            letters = "aeioumn" if i % 2 else "bcdrstk"
            name = "".join(draw.choice(letters) for _ in range(draw.randint(2, 7)))
            lines.append(f'"{name.title()}","{"Vowelia" if i % 2 else "Consonia"}"')
        (folder / f"names_{part}.csv").write_text("\n".join(lines) + "\n")


def step_losses(folder: Path) -> list[float]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return [event.value for event in events.Scalars("train/loss_step")]


@pytest.mark.parametrize(
    "name", [name if name in IN_FAST_SUITE else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
def test_the_losses_of_every_step_are_those_written_down(name: str, dlrun: Callable[..., Any], tmp_path: Path) -> None:
    write_names(tmp_path / "data")
    outcome = dlrun(*RUNS[name], *QUIET)
    assert outcome.code == 0, outcome.err
    losses = step_losses(tmp_path / outcome.folder)
    path = GOLDEN / f"{name}.json"
    if os.environ.get("WRITE_GOLDEN") == "1":
        path.write_text(json.dumps([float(f"{loss:.7g}") for loss in losses], indent=0) + "\n")
    wanted = json.loads(path.read_text())
    assert losses == pytest.approx(wanted, rel=1e-5)
    assert losses[-1] < losses[0]
    assert len(losses) == outcome.result["steps"] >= 12


def test_every_file_belongs_to_a_run() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(RUNS)
