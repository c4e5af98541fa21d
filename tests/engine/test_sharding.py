"""device.strategy=fsdp2: each of several processes trains its share of the net, to the weights of one process."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from dlrun.engine import sharding
from dlrun.runs.checkpoint import load

# 160 training rows: the last of 7 batches is ragged. The middle layer is a block of its own.
WORDS = ("data=blobs", "model=mlp", "model.hidden_sizes=[128,128]", "data.val_fraction=0.2", "tracking.graph=false")
WORDS = (*WORDS, "figures=false", "trainer.epochs=3")
SHARDED = "device.strategy=fsdp2"


def rows_in(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_norms(folder: Path) -> list[float]:
    """The norms of the gradients that TensorBoard shows."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    if "train/grad_norm" not in events.Tags()["scalars"]:
        return []
    return [event.value for event in events.Scalars("train/grad_norm")]


def list_tensors(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a state, by where they are in it."""
    if isinstance(value, torch.Tensor):
        return {name: value.double()}
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    tensors: dict[str, torch.Tensor] = {}
    if isinstance(value, dict):
        for key, item in value.items():
            tensors |= list_tensors(item, f"{name}.{key}")
    return tensors


def assert_equal_runs(one: Path, two: Path, relative: float = 1e-5, relative_of_rows: float = 1e-4) -> None:
    """Weights, averages and optimizers are equal, relative to the largest number of each tensor, and all metrics."""
    parts = ("model", "optimizer", "ema", "scheduler")
    first, second = (load(folder / "checkpoints" / "last.pt") for folder in (one, two))
    tensors = list_tensors([first.get(part) for part in parts])
    others = list_tensors([second.get(part) for part in parts])
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert (tensor - others[name]).abs().max() <= relative * tensor.abs().max(), name
    for row, other in zip(rows_in(one), rows_in(two), strict=True):
        assert row == pytest.approx(other, rel=relative_of_rows, abs=0.01 * relative_of_rows)


def list_messages(outcome: Any) -> list[str]:
    return [line for line in outcome.stderr.splitlines() if line.startswith("dlrun: ")]


OWN = """
import torch
from torch import nn
from torch import nn
import dlrun


class Net(nn.Module):
    def __init__(self, spec, kind="tied"):
        super().__init__()
        self.kind = kind
        self.inner = nn.Linear(spec.input_size, 150)
        self.middle = nn.Linear(150, 150)
        self.norm = nn.BatchNorm1d(150)
        self.last = nn.Linear(150, spec.output_size)
        self.calls = 0

    def forward(self, x):
        if self.training:
            self.calls += 1
        hidden = self.middle(torch.relu(self.inner(x)))
        if self.kind == "tied":
            hidden = nn.functional.linear(torch.relu(hidden), self.middle.weight)
        self.size = hidden.square().mean()
        if self.kind == "tied":
            # Its statistics are those of a process's own rows.
            hidden = self.norm(hidden)
        return self.last(hidden) / (1 + 0.01 * self.calls)

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]

    def auxiliary_loss(self):
        return 0.01 * (self.middle.weight.square().sum() if self.kind == "decay" else self.size)


class Shares(dlrun.Callback):
    def on_step_end(self, trainer):
        weight = trainer.model.middle.weight
        self.log("norm", weight.norm())
        local = getattr(weight, "to_local", lambda: weight)()
        self.log("rows", float(len(local)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "words"),
    [
        (
            3,
            (
                "optimizer=adam",
                "trainer.grad_clip_norm=0.5",
                "trainer.ema_decay=0.9",
                "checkpoint.every_steps=4",
                "trainer.log_every_steps=1",
            ),
        ),
        (2, ("optimizer=momentum", "trainer.accumulate_steps=3", "scheduler=cosine")),
        (2, ("optimizer=adagrad", "model.freeze=layers.0", "trainer.log_every_steps=1")),
    ],
    ids=["adam", "momentum", "adagrad"],
)
def test_shares_are_trained_to_the_weights_of_one_process(
    count: int, words: tuple[str, ...], tmp_path: Path, ranks: Callable[..., Any], dlrun: Callable[..., Any]
) -> None:
    assert dlrun(*WORDS, *words, "data.batch_size=24", "hydra.run.dir=one").code == 0
    outcome = ranks(count, *WORDS, *words, f"data.batch_size={24 // count}", SHARDED, "hydra.run.dir=shared")
    assert outcome.returncode == 0, outcome.stderr
    assert f"{count} processes, fsdp2" in outcome.stdout
    assert_equal_runs(tmp_path / "one", tmp_path / "shared")
    assert read_norms(tmp_path / "one") == pytest.approx(read_norms(tmp_path / "shared"), rel=1e-4)
    assert len((tmp_path / "shared" / "fingerprints.jsonl").read_text().splitlines()) == 4
    # Any command reads the checkpoint as that of one process.
    assert dlrun("eval", "shared").code == 0


@pytest.mark.slow
def test_a_loss_of_the_net_may_be_made_of_its_weights(
    tmp_path: Path, ranks: Callable[..., Any], dlrun: Callable[..., Any]
) -> None:
    (tmp_path / "own_net.py").write_text(OWN)
    words = ("data=blobs", *WORDS[3:], "model._target_=own_net.Net", "+model.kind=decay", "optimizer=momentum")
    words = (*words, "device.precision=bf16", "trainer.log_every_steps=1")
    assert dlrun(*words, "data.batch_size=24", "hydra.run.dir=one").code == 0
    outcome = ranks(2, *words, "data.batch_size=12", SHARDED, "hydra.run.dir=shared")
    assert outcome.returncode == 0, outcome.stderr
    # Sums of half a batch are rounded to 8 bits, too.
    assert_equal_runs(tmp_path / "one", tmp_path / "shared", relative=0.02, relative_of_rows=0.02)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_any_number_of_processes(
    tmp_path: Path, ranks: Callable[..., Any], dlrun: Callable[..., Any], killed_at_save: Callable[[int], str]
) -> None:
    """Begun with three, then two, then three again, one without the others, and two."""
    words = (*WORDS, "optimizer=momentum", "trainer.ema_decay=0.9", "trainer.epochs=6", "checkpoint.every_steps=4")
    assert dlrun(*words, "data.batch_size=24", "hydra.run.dir=one").code == 0
    words = (*words, "data.batch_size=8", SHARDED, "hydra.run.dir=run")
    outcome = ranks(3, *words, "resume=auto", start=("-c", killed_at_save(4)))
    assert outcome.returncode == -signal.SIGKILL
    # The first file of the second attempt is the fifth.
    for count, nth in ((2, 3), (1, 3)):
        outcome = ranks(count, "resume", "run", start=("-c", killed_at_save(nth)))
        assert outcome.returncode == -signal.SIGKILL, outcome.stderr
    outcome = ranks(2, "resume", "run")
    assert outcome.returncode == 0, outcome.stderr
    assert_equal_runs(tmp_path / "one", tmp_path / "run")


@pytest.mark.slow
def test_a_killed_run_goes_on_exactly_and_ends_under_ddp(
    tmp_path: Path, ranks: Callable[..., Any], dlrun: Callable[..., Any], killed_at_save: Callable[[int], str]
) -> None:
    """With a callback of the user's, whose on_fit_start changes weights, dropout, and a save amid an epoch."""
    (tmp_path / "own_net.py").write_text(OWN)
    words = ("data=blobs", *WORDS[3:], "model._target_=own_net.Net", "optimizer=adam", "data.batch_size=12", SHARDED)
    words = (*words, "+callbacks.s._target_=own_net.Shares", "checkpoint.every_steps=4", "trainer.ema_decay=0.9")
    assert ranks(2, *words, "hydra.run.dir=whole").returncode == 0
    outcome = ranks(2, *words, "hydra.run.dir=run", start=("-c", killed_at_save(4)))
    assert outcome.returncode == -signal.SIGKILL, outcome.stderr
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    trust = "trusted_modules=[own_net]"
    for run, word in (("run", SHARDED), ("other", "device.strategy=ddp")):
        outcome = ranks(2, "resume", run, trust, word)
        assert outcome.returncode == 0, outcome.stderr
    assert_equal_runs(tmp_path / "whole", tmp_path / "run", relative=0, relative_of_rows=0)
    for row, other in zip(rows_in(tmp_path / "whole"), rows_in(tmp_path / "other"), strict=True):
        assert row["val/loss"] == pytest.approx(other["val/loss"], rel=1e-4)
        # The callback sees half of the 150 rows of the layer.
        assert row["rows"] == 75


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("optimizer=lbfgs",), "optimizer=lbfgs evaluates the loss itself; type device.strategy=ddp"),
        (("device.compile=true",), "device.compile=true compiles a whole net; type device.strategy=ddp"),
        (("device.strategy=fsdp3",), "device.strategy=fsdp3"),
    ],
    ids=["closure", "compile", "unknown"],
)
def test_what_cannot_be_shared_is_said_before_anything_is_written(
    words: tuple[str, ...], sentence: str, tmp_path: Path, ranks: Callable[..., Any]
) -> None:
    outcome = ranks(2, *WORDS, SHARDED, *words)
    assert outcome.returncode == 2
    assert len(list_messages(outcome)) == 1, outcome.stderr
    assert sentence in list_messages(outcome)[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_one_process_trains_the_whole_net_and_says_so(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun(*WORDS, SHARDED, "hydra.run.dir=run")
    assert outcome.code == 0
    assert "note: device.strategy has no effect here: there is one process only" in outcome.out


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4)
        self.feed = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(300, 64)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(64, 300, bias=False)
        self.head.weight = self.embed.weight


def test_blocks_are_parts_with_a_forward_pass_that_share_no_weights() -> None:
    net = Language()
    names = {module: name for name, module in net.named_modules()}
    # Not the tied weights, the lists, nor what is inside of torch's attention.
    blocks = [names[block] for block in sharding.list_blocks(net)]
    assert sorted(blocks) == sorted(
        [f"blocks.{i}{part}" for i in (0, 1) for part in (".feed.0", ".feed.2", ".attention")]
    )
