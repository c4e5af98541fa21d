"""Several processes train one run: the same rows, the same weights, one folder; and when one of them fails."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dlrun.data.batches import EpochOrder, MemoryBatches, Placement
from dlrun.data.spec import DataSpec, Split
from dlrun.engine import distributed
from dlrun.engine.distributed import Distributed
from dlrun.runs.checkpoint import load

WORDS = ("data=blobs", "model=mlp", "data.val_fraction=0.2", "tracking.graph=false", "figures=false")
DOTS = DataSpec("vector", (1,), "regression", 1)


def one_of(number: int, count: int) -> Distributed:
    """A process that asks the others nothing."""
    ranks = Distributed()
    ranks.rank, ranks.world_size = number, count
    return ranks


def rows_of(batches: list[Tensor]) -> list[list[int]]:
    return [rows.tolist() for rows in batches]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_parts_of_a_batch_are_the_batch(count: int) -> None:
    all_rows = EpochOrder(22, 6, shuffle=True).batches(3, start=1)
    parts = [one_of(number, count).shard_batch(all_rows) for number in range(count)]
    for batch, *pieces in zip(all_rows, *parts, strict=True):
        assert torch.cat(pieces).tolist() == batch.tolist()
        assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


def test_two_processes_with_half_the_batch_see_the_rows_of_one() -> None:
    all_rows = EpochOrder(24, 8, shuffle=True).batches(1, start=0)
    halves = [one_of(number, 2).shard_batch(all_rows) for number in (0, 1)]
    for batch, first, second in zip(all_rows, *halves, strict=True):
        assert (first.tolist(), second.tolist()) == (batch[:4].tolist(), batch[4:].tolist())


@pytest.mark.parametrize(("count", "block"), [(1, 2), (2, 1), (2, 3), (4, 2)])
def test_an_evaluation_is_dealt_out_whole_batch_by_whole_batch(count: int, block: int) -> None:
    all_rows = EpochOrder(22, 3).batches(1, start=0)
    parts = [rows_of(one_of(number, count).shard_evaluation(all_rows, block)) for number in range(count)]
    assert sorted(batch for part in parts for batch in part) == sorted(rows_of(all_rows))
    assert parts[0][:block] == rows_of(all_rows)[:block]


def test_a_process_without_rows_has_an_input_and_no_target() -> None:
    x = torch.arange(5.0).unsqueeze(1)
    batches = MemoryBatches(Split((x,), x), EpochOrder(5, 4), Placement(torch.device("cpu"), torch.float32, DOTS))
    sizes = [(len(inputs[0]), len(y)) for inputs, y in batches.epoch(1, pick=one_of(2, 3).shard_batch)]
    assert sizes == [(1, 1), (1, 0)]


def test_a_single_process_is_said_how_to_be_started(dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = dlrun(*WORDS)
    assert (outcome.code, outcome.out) == (2, "")
    assert (
        outcome.err
        == "dlrun: WORLD_SIZE is set but RANK, MASTER_ADDR, MASTER_PORT is not; type torchrun -m dlrun ...\n"
    )


@pytest.fixture
def torchrun(tmp_path: Path, warm: Any) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """`torchrun(count, *words)`: `torchrun --nproc-per-node=count -m dlrun *words` from an empty working directory.

    Its processes are warm; tests/test_readme.py and tests/test_search_path.py start it as users do.
    """

    def run(count: int, *words: str, wait: float = 120.0) -> "subprocess.CompletedProcess[str]":
        process = warm.start_torchrun(*start_run(count, *words), cwd=tmp_path)
        code = process.wait(wait)
        return subprocess.CompletedProcess(words, code, process.out, process.err)

    return run


def start_run(count: int, *words: str) -> list[str]:
    """The words behind torchrun."""
    return [f"--nproc-per-node={count}", "--standalone", "-m", "dlrun", *words]


def rows_in(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def result_in(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


def compute_largest_difference(one: Path, two: Path) -> float:
    """The largest difference between the final weights of two runs."""
    a, b = (load(folder / "checkpoints" / "last.pt")["model"] for folder in (one, two))
    return max(float((a[key] - b[key]).abs().max()) for key in a)


@pytest.fixture
def train_twice(
    dlrun: Callable[..., Any], ranks: Callable[..., Any], tmp_path: Path
) -> Callable[..., tuple[Path, Path]]:
    """`train_twice(batch_size, *words)`: the folders of one process and of two with half the batch, which end alike."""

    def train(batch_size: int, *words: str) -> tuple[Path, Path]:
        words = (*words, "trainer.epochs=2")
        assert dlrun(*words, f"data.batch_size={batch_size}", "hydra.run.dir=one").code == 0
        outcome = ranks(2, *words, f"data.batch_size={batch_size // 2}", "hydra.run.dir=two")
        assert outcome.returncode == 0, outcome.stderr
        one = tmp_path / "one"
        two = tmp_path / "two"
        assert compute_largest_difference(one, two) < 1e-5
        for a, b in zip(rows_in(one), rows_in(two), strict=True):
            assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
        return one, two

    return train


def list_messages(outcome: "subprocess.CompletedProcess[str]") -> list[str]:
    """What dlrun said on stderr, without torchrun's own lines."""
    return [line for line in outcome.stderr.splitlines() if line.startswith("dlrun: ")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("data.batch_size=%d",),  # 160 rows: a ragged last batch
        ("data.batch_size=%d", "trainer.accumulate_steps=3", "trainer.grad_clip_norm=0.5", "optimizer=adam"),
        (
            "data.batch_size=%d",
            "task.reduction=sum",
            "optimizer.lr=0.0001",
            "data.loader=workers",
            "data.num_workers=1",
        ),
        ("data.batch_size=%d", "data.train_rows=27", "trainer.ema_decay=0.9"),  # the last batch has a single row
        ("data.batch_size=%d", "model.freeze=layers.0", "trainer.grad_clip_norm=0.5"),
        ("data.batch_size=%d", "trainer.accumulate_steps=3", "task.class_weights=[0.3,4]"),
    ],
    ids=["plain", "accumulated", "workers", "one_row", "frozen", "weighted"],
)
def test_two_processes_train_as_one_with_twice_the_batch(
    words: tuple[str, ...],
    tmp_path: Path,
    ranks: Callable[..., Any],
    torchrun: Callable[..., Any],
    dlrun: Callable[..., Any],
    request: pytest.FixtureRequest,
) -> None:
    """The first of them as it is documented, by torchrun."""
    launch = torchrun if request.node.callspec.id == "plain" else ranks
    more = ("optimizer=sgd", "optimizer.lr=0.05", "trainer.epochs=3", "checkpoint.every_steps=4")
    one, two = ((*WORDS, *more, *(w % size if "%d" in w else w for w in words)) for size in (26, 13))
    assert dlrun(*one, "hydra.run.dir=one").code == 0
    outcome = launch(2, *two, "hydra.run.dir=two")
    assert outcome.returncode == 0, outcome.stderr
    assert compute_largest_difference(tmp_path / "one", tmp_path / "two") < 1e-5
    for a, b in zip(rows_in(tmp_path / "one"), rows_in(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]
    assert len(list((tmp_path / "two").glob("events.out.tfevents.*[0-9]"))) == 1
    assert outcome.stdout.count("completed after 3 epochs") == 1


WATCHING = """
import os
import dlrun


class Watching(dlrun.Callback):
    def on_fit_start(self, trainer):
        self.seen = 0

    def on_step_end(self, trainer):
        self.seen += sum(len(targets) for _, targets, _ in trainer.records)
        self.log("gradient", max(p.grad.abs().max() for p in trainer.model.parameters()))
        self.log("rank", float(os.environ.get("RANK", 0)))
"""


@pytest.mark.slow
def test_callbacks_log_the_mean_over_the_processes_and_each_gets_its_own_state_back(
    tmp_path: Path, ranks: Callable[..., Any], dlrun: Callable[..., Any]
) -> None:
    (tmp_path / "watching.py").write_text(WATCHING)
    words = (*WORDS, "optimizer=sgd", "+callbacks.w._target_=watching.Watching")
    assert dlrun(*words, "data.batch_size=26", "trainer.epochs=3", "hydra.run.dir=one").code == 0
    for epochs, name in ((3, "two"), (1, "resumed")):
        outcome = ranks(2, *words, "data.batch_size=13", f"trainer.epochs={epochs}", f"hydra.run.dir={name}")
        assert outcome.returncode == 0, outcome.stderr
    outcome = ranks(2, "resume", "resumed", "trainer.epochs=3", "trusted_modules=[watching]")
    assert outcome.returncode == 0, outcome.stderr

    for one, two in zip(rows_in(tmp_path / "one"), rows_in(tmp_path / "two"), strict=True):
        assert two["gradient"] == pytest.approx(one["gradient"], rel=1e-4)
        assert (one["rank"], two["rank"]) == (0.0, 0.5)
    assert rows_in(tmp_path / "resumed") == rows_in(tmp_path / "two")
    states = []
    for name in ("two", "resumed"):
        state = load(tmp_path / name / "checkpoints" / "last.pt")
        states.append([state["callbacks"], *(other["callbacks"] for other in state["others"])])
    # Half of 160 rows each, three times; the last batch of an epoch has four rows.
    assert states[0] == states[1] == [{"w": {"seen": 240}}, {"w": {"seen": 240}}]


WITHOUT_COMPILER = """
import sys
import torch
from dlrun.cli.main import main

torch.nn.Module.compile = lambda self: None
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("trainer.accumulate_steps=3", "trainer.grad_clip_norm=0.5")])
def test_layers_that_are_not_always_used_train_as_in_one_process(
    more: tuple[str, ...], tmp_path: Path, ranks: Callable[..., Any], dlrun: Callable[..., Any]
) -> None:
    """Which of them take part depends on the rows, so on step and process; one takes part in none."""
    shutil.copy(Path(__file__).parents[1] / "nets_of_users.py", tmp_path / "user_nets.py")
    words = (*WORDS, "model._target_=user_nets.Unused", "optimizer=momentum", "trainer.epochs=2", *more)
    assert dlrun(*words, "data.batch_size=4", "hydra.run.dir=one").code == 0
    outcome = ranks(2, *words, "data.batch_size=2", "hydra.run.dir=two")
    assert outcome.returncode == 0, outcome.stderr
    assert compute_largest_difference(tmp_path / "one", tmp_path / "two") < 1e-5


COUNTING = """
class Rows:
    def __init__(self):
        self.rows = 0

    def update(self, predictions, targets):
        self.rows += len(predictions)

    def compute(self):
        return self.rows
"""


@pytest.mark.slow
def test_chosen_metrics_see_the_rows_of_all_processes_once(
    tmp_path: Path, train_twice: Callable[..., tuple[Path, Path]]
) -> None:
    (tmp_path / "counting_metric.py").write_text(COUNTING)
    words = (*WORDS, "task.metrics=[counting_metric.Rows,balanced_accuracy,log_loss]")
    words = (*words, "optimizer=sgd", "optimizer.lr=0.05", "checkpoint.monitor=val/log_loss")
    _, two = train_twice(26, *words)
    assert all((row["train/Rows"], row["val/Rows"]) == (160, 40) for row in rows_in(two))


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("task.class_weights=[1,4]", "trainer.accumulate_steps=2")])
def test_labels_train_as_in_one_process(
    words: tuple[str, ...], tmp_path: Path, train_twice: Callable[..., tuple[Path, Path]]
) -> None:
    lines = [f"{i % 7},{i % 5},{int(i % 7 > 2)},{int(i % 5 > i % 3)}" for i in range(67)]
    (tmp_path / "rows.csv").write_text("a,b,p,q\n" + "\n".join(lines) + "\n")
    words = (*WORDS[1:], "data=csv", "task=multilabel", "data.path=rows.csv", "data.target=[p,q]", *words)
    words = (*words, "optimizer=sgd", "optimizer.lr=0.05")
    train_twice(26, *words)


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["memory", "workers"])
def test_an_autoencoder_trains_as_in_one_process(
    loader: str, tmp_path: Path, train_twice: Callable[..., tuple[Path, Path]]
) -> None:
    # The last batch of an epoch has a single row.
    words = ("data=digits", "data.image_size=8", "data.train_rows=53", "model=mlp", "model.hidden_sizes=[4]")
    words = (*words, *WORDS[3:], "task=autoencoder", f"data.loader={loader}", "data.num_workers=0")
    words = (*words, "optimizer=sgd", "optimizer.lr=0.05")
    train_twice(26, *words)


@pytest.mark.slow
@pytest.mark.parametrize("in_memory", ["true", "false"])
def test_mixed_batches_train_as_in_one_process(
    in_memory: str, tmp_path: Path, formats: Any, train_twice: Callable[..., tuple[Path, Path]]
) -> None:
    formats.write_folder(tmp_path / "photos", {"a": 20, "b": 16}, (12, 12))
    words = ("data=image_folder", "data.path=photos", "data.image_size=8", "data.augment=[MixUp,CutMix]")
    words = (*words, f"data.in_memory={in_memory}", "data.num_workers=0", "data.mean=[0.5,0.5,0.5]", "model=mlp")
    words = (*words, *WORDS[3:], "optimizer=sgd", "optimizer.lr=0.05")
    train_twice(10, *words)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["rows", "shards"])
def test_shards_train_as_in_one_process(
    order: str, tmp_path: Path, formats: Any, train_twice: Callable[..., tuple[Path, Path]]
) -> None:
    pytest.importorskip("webdataset")
    formats.write_digit_shards(tmp_path / "digits", rows=90, shards=6)
    words = ("data=webdataset", "data.path=digits", "data.image_size=8", f"data.order={order}", "data.in_memory=false")
    words = (*words, "paths.data=data", "data.num_workers=1", "model=mlp", *WORDS[3:])
    words = (*words, "optimizer=sgd", "optimizer.lr=0.05")
    train_twice(16, *words)


@pytest.mark.slow
def test_several_outputs_train_as_in_one_process(tmp_path: Path, train_twice: Callable[..., tuple[Path, Path]]) -> None:
    lines = [f"{i % 7},{i % 5},{(i % 7) * 0.3 - i % 5},{'abc'[i % 3]}" for i in range(67)]
    (tmp_path / "rows.csv").write_text("a,b,p,q\n" + "\n".join(lines) + "\n")
    words = (*WORDS[1:], "data=csv", "data.path=rows.csv", "data.target=[p,q]", "task.weights={p: 0.1}")
    words = (*words, "optimizer=sgd", "optimizer.lr=0.05", "trainer.accumulate_steps=2")
    train_twice(26, *words)


SCALED = """
import torch
from torch import nn

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, outputs, targets):
        return nn.functional.cross_entropy(outputs * self.scale, targets)
"""


@pytest.mark.slow
def test_a_loss_with_weights_of_its_own_trains_as_in_one_process(
    tmp_path: Path, train_twice: Callable[..., tuple[Path, Path]]
) -> None:
    (tmp_path / "scaled_loss.py").write_text(SCALED)
    words = (*WORDS, "task.loss=scaled_loss.Scaled", "optimizer=momentum", "data.train_rows=27")
    more = ("trainer.accumulate_steps=2", "trainer.grad_clip_norm=0.5")
    folders = train_twice(26, *words, *more)
    a, b = (load(folder / "checkpoints" / "last.pt")["loss"] for folder in folders)
    assert (a["scale"] - 1).abs().max() > 1e-4
    torch.testing.assert_close(a["scale"], b["scale"], rtol=1e-6, atol=1e-7)
    assert torch.equal(b["unused"], torch.ones(2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GrownBuffer", "ComplexBuffer", "Counting"])
def test_what_a_net_keeps_is_that_of_process_0_in_all(
    name: str, tmp_path: Path, ranks: Callable[..., Any], dlrun: Callable[..., Any]
) -> None:
    shutil.copy(Path(__file__).parents[1] / "nets_of_users.py", tmp_path / "user_nets.py")
    words = (*WORDS, f"model._target_=user_nets.{name}", "trainer.epochs=3", "trainer.ema_decay=0.5")
    outcome = ranks(2, *words, "hydra.run.dir=run")
    assert outcome.returncode == 0, outcome.stderr
    assert dlrun("eval", "run", "trusted_modules=[user_nets]").code == 0
    evaluated = json.loads(next((tmp_path / "run" / "eval").rglob("metrics.json")).read_text())
    best = rows_in(tmp_path / "run")[result_in(tmp_path / "run")["best"]["epoch"] - 1]
    assert evaluated["metrics"]["val/ema_loss"] == best["val/ema_loss"]


@pytest.mark.slow
def test_what_is_compiled_before_the_training_takes_no_part_in_it(tmp_path: Path, ranks: Callable[..., Any]) -> None:
    """Gradients of the batches that are thrown away are summed up over the processes too; nothing is compiled here."""
    words = (*WORDS, "model.dropout=0.2", "data.batch_size=13", "trainer.epochs=2")
    for folder, more in (("plain", ()), ("compiled", ("device.compile=true",))):
        outcome = ranks(2, *words, *more, f"hydra.run.dir={folder}", start=("-c", WITHOUT_COMPILER))
        assert outcome.returncode == 0, outcome.stderr
    assert result_in(tmp_path / "compiled")["compile_seconds"] > 0
    assert rows_in(tmp_path / "compiled") == rows_in(tmp_path / "plain")
    assert compute_largest_difference(tmp_path / "compiled", tmp_path / "plain") == 0


@pytest.mark.slow
def test_a_shared_evaluation_is_that_of_one_process_to_the_bit(
    tmp_path: Path, ranks: Callable[..., Any], python: Callable[..., Any]
) -> None:
    words = ("data=digits", "data.eval_batch_size=7", "model=mlp", "trainer.epochs=2", "tracking.graph=false")
    assert ranks(2, *words, "figures=false", "hydra.run.dir=run").returncode == 0
    assert result_in(tmp_path / "run")["metrics"]["test/accuracy"] > 0.5
    script = (
        "import json, sys\nfrom pathlib import Path\nfrom dlrun.inference import evaluate\n"
        "print(json.dumps(evaluate.evaluate(['run'])), file=Path('found').open('w'))"
    )
    assert python("-c", script).code == 0
    alone = json.loads((tmp_path / "found").read_text())
    shared = result_in(tmp_path / "run")["metrics"]
    assert {k: v for k, v in alone.items() if k.startswith("test/")} == {
        k: v for k, v in shared.items() if k.startswith("test/")
    }


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(
    before: int, after: int, tmp_path: Path, ranks: Callable[..., Any], dlrun: Callable[..., Any]
) -> None:
    words = (*WORDS, "optimizer=momentum", "data.batch_size=%d", "hydra.run.dir=%s")

    def train(count: int, *more: str) -> int:
        return int(dlrun(*more).code if count == 1 else ranks(count, *more).returncode)

    size = 20 // before
    assert train(1, *words[:-2], "data.batch_size=20", "hydra.run.dir=whole", "trainer.epochs=4") == 0
    first = (*words[:-2], f"data.batch_size={size}", "hydra.run.dir=run", "trainer.epochs=4", "trainer.max_steps=11")
    assert train(before, *first) == 0
    assert train(after, "resume", "run", "trainer.max_steps=null") == 0
    assert compute_largest_difference(tmp_path / "whole", tmp_path / "run") < 1e-5
    assert [row["step"] for row in rows_in(tmp_path / "run")] == [row["step"] for row in rows_in(tmp_path / "whole")]


@pytest.mark.slow
def test_dropout_differs_between_processes_and_is_the_same_after_a_stop(
    tmp_path: Path, ranks: Callable[..., Any]
) -> None:
    words = (*WORDS, "model.dropout=0.5", "trainer.epochs=4")
    for name, more in (("whole", ()), ("run", ("trainer.max_steps=4",))):
        assert ranks(2, *words, f"hydra.run.dir={name}", *more).returncode == 0
    assert ranks(2, "resume", "run", "trainer.max_steps=null").returncode == 0
    assert result_in(tmp_path / "run")["weights_sha256"] == result_in(tmp_path / "whole")["weights_sha256"]
    state = load(tmp_path / "run" / "checkpoints" / "last.pt")
    assert not torch.equal(state["rng"]["torch"], state["others"][0]["rng"]["torch"])


FAILING = """
import os, signal, time
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, spec, how="raise"):
        super().__init__()
        self.layer, self.how, self.calls = nn.Linear(spec.input_size, spec.output_size), how, 0

    def forward(self, x):
        self.calls += self.training and torch.is_grad_enabled()
        if os.environ["RANK"] == "1" and self.calls > 5:
            if self.how == "raise":
                raise ArithmeticError("the third card fell out")
            os.kill(os.getpid(), signal.SIGKILL if self.how == "kill" else signal.SIGSTOP)
        return self.layer(x)

def end_slowly():
    # As on a busy machine: process 0 takes long to end what it has begun before it says what was wrong.
    time.sleep(3)
    destroy()

destroy = torch.distributed.destroy_process_group
if os.environ["RANK"] == "0":
    torch.distributed.destroy_process_group = end_slowly
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("raise", "process 1 of 2 failed: ArithmeticError: the third card fell out"),
        ("kill", "process 1 of 2 does not answer: it was killed, or hangs"),
        ("stop", "process 1 of 2 does not answer: it was killed, or hangs"),
    ],
)
def test_a_failing_process_ends_all_and_is_named(
    how: str, sentence: str, tmp_path: Path, ranks: Callable[..., Any], torchrun: Callable[..., Any]
) -> None:
    """One that raises by torchrun, which then ends the others."""
    launch = torchrun if how == "raise" else ranks
    (tmp_path / "failing.py").write_text(FAILING)
    began = time.monotonic()
    own = ("model._target_=failing.Net", f"+model.how={how}", "device.timeout_seconds=3", "preflight=false")
    outcome = launch(2, *WORDS, *own, "hydra.run.dir=run")
    assert outcome.returncode != 0
    assert time.monotonic() - began < 90
    assert [line for line in list_messages(outcome) if sentence in line], list_messages(outcome)
    assert result_in(tmp_path / "run")["status"] == "failed"
    assert sentence in result_in(tmp_path / "run")["error"]
    assert len(list_messages(outcome)) == 1


@pytest.mark.slow
def test_a_wrong_request_is_said_once_and_writes_nothing(
    tmp_path: Path, ranks: Callable[..., Any], torchrun: Callable[..., Any]
) -> None:
    """The first and the last by torchrun."""
    for words, sentence in (
        (("model=resnett",), "model=resnett is not a choice"),
        (("optimizer.lr=-1",), "optimizer.lr=-1"),
        (("-m", "seed=1,2"), "a sweep is done by one process; start it without torchrun"),
        (("eval", "outputs"), "dlrun eval is done by one process"),
        (("device.num_threads=auto",), "times one process alone"),
    ):
        outcome = torchrun(2, *words) if words == ("model=resnett",) else ranks(2, *words)
        assert outcome.returncode != 0
        assert len(list_messages(outcome)) == 1, outcome.stderr
        assert sentence in list_messages(outcome)[0]
        assert outcome.stdout == ""
    assert list(tmp_path.iterdir()) == []
    assert torchrun(2, "--help").stdout.startswith("Usage: dlrun")


WAITING = """
import signal
import time
from pathlib import Path
import dlrun


class Waiting(dlrun.Callback):
    def on_fit_start(self, trainer):
        handle = signal.getsignal(signal.SIGTERM)

        def note(*arguments):
            Path("arrived").touch()
            handle(*arguments)

        signal.signal(signal.SIGTERM, note)

    def on_step_end(self, trainer):
        # Until the signal of the test has arrived.
        if trainer.step in (5, 12):
            Path(f"step {trainer.step}").touch()
            while not Path("arrived").exists():
                time.sleep(0.01)
"""


@pytest.mark.slow
def test_a_signal_stops_all_in_the_same_step(tmp_path: Path, ranks: Callable[..., Any], warm: Any) -> None:
    """Sent to the second process alone, then to torchrun, which hands it on; the run continues to the same weights."""
    (tmp_path / "waiting.py").write_text(WAITING)
    words = (*WORDS, "data.batch_size=10", "trainer.epochs=3", "trainer.ema_decay=0.5")
    words = (*words, "+callbacks.w._target_=waiting.Waiting")
    arrived = tmp_path / "arrived"
    arrived.touch()
    assert ranks(2, *words, "hydra.run.dir=whole").returncode == 0
    for path in tmp_path.glob("step *"):
        path.unlink()

    for who, step in (("one", 5), ("all", 12)):
        arrived.unlink()
        process = warm.start_torchrun(*start_run(2, *words, "resume=auto", "hydra.run.dir=run"), cwd=tmp_path)
        while not (tmp_path / f"step {step}").exists():
            assert process.poll() is None, process.err
            time.sleep(0.02)
        os.kill(second_of(process.pid) if who == "one" else process.pid, signal.SIGTERM)
        assert process.wait(timeout=600) != 0
        assert result_in(tmp_path / "run")["status"] == "interrupted"
    assert ranks(2, *words, "resume=auto", "hydra.run.dir=run").returncode == 0
    assert result_in(tmp_path / "run")["weights_sha256"] == result_in(tmp_path / "whole")["weights_sha256"]
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def second_of(parent: int) -> int:
    """The process of torchrun `parent` that has rank 1."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return next(
        int(c) for c in children if b"RANK=1\0" in Path(f"/proc/{c}/environ").read_bytes().replace(b"_RANK", b"")
    )


@pytest.mark.slow
def test_two_machines_make_one_run_in_the_folder_of_the_first(
    tmp_path: Path, dlrun: Callable[..., Any], warm: Any, free_port: Callable[[], int]
) -> None:
    """Two launchers on this machine, each in a working directory of its own."""
    port = free_port()
    start = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    words = [*WORDS, "trainer.epochs=3", "hydra.run.dir=run"]
    launchers = []
    for number in (0, 1):
        place = tmp_path / str(number)
        place.mkdir()
        command = [*start, f"--node-rank={number}", "-m", "dlrun", *words, "data.batch_size=16"]
        launchers.append(warm.start_torchrun(*command, cwd=place))
    assert [launcher.wait(timeout=600) for launcher in launchers] == [0, 0]
    assert list((tmp_path / "1").iterdir()) == []
    assert dlrun(*words, "data.batch_size=32").code == 0
    assert compute_largest_difference(tmp_path / "0" / "run", tmp_path / "run") < 1e-6


class Store(dict[str, str]):
    """Of torch's stores, what is asked here."""

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)


@pytest.mark.parametrize(
    ("keys", "seconds"),
    [([], distributed._NOTICE_SECONDS), (["answered/0"], distributed._REPORT_SECONDS), ([distributed._REPORTED], 0)],
)
def test_a_failed_rank_waits_long_only_for_a_rank_zero_that_has_failed_too(
    keys: list[str], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(naps), sleep=naps.append)
    monkeypatch.setattr(distributed, "time", clock)
    monkeypatch.setattr(distributed, "_stores", [Store.fromkeys(keys, "yes")])
    distributed.wait_for_report_of_rank_zero()
    assert sum(naps) == pytest.approx(seconds, abs=0.1)
