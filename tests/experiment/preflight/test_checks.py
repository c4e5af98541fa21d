"""What is checked before the first step, and that checking leaves no trace."""

import contextlib
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from dlrun.core.errors import RequestError
from dlrun.data.batches import Batch, EpochOrder, MemoryBatches, Placement
from dlrun.data.spec import DataSpec, Split, TaskName
from dlrun.engine import evaluation, preserve
from dlrun.engine.device import get_rng_state
from dlrun.engine.objective import Objective
from dlrun.experiment.preflight import checks, final_activation
from dlrun.experiment.preflight.checks import Layer, inspect_layers, resolve_monitor
from dlrun.models.cnn import CNN
from dlrun.models.inception import Inception
from dlrun.models.mlp import MLP
from dlrun.models.resnet import ResNet
from dlrun.runs import checkpoint

QUIET = ("tracking.graph=false", "figures=false")
SPEC = DataSpec("image", (1, 8, 8), "multiclass", 3)


class Net(nn.Module):
    """A little of everything: convolution, batch norm, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.head = nn.Linear(144, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.body(x).flatten(1))
        return outputs


def batch(rows: int = 2) -> Batch:
    return (torch.rand(rows, 1, 8, 8),), torch.tensor([0, 2])[:rows]


def inspect(model: nn.Module, task: Objective | None = None, given: Batch | None = None) -> list[Layer]:
    return inspect_layers(model, given or batch(), task or Objective(SPEC), contextlib.nullcontext)


def test_the_layer_table_holds_shapes_and_parameters() -> None:
    assert inspect(Net()) == [
        Layer("body.0", "Conv2d", (4, 6, 6), 4 * 9 + 4, 4 * 6 * 6 * 9, 144),
        Layer("body.1", "BatchNorm2d", (4, 6, 6), 8, 0, 144),
        Layer("body.2", "Dropout", (4, 6, 6), 0, 0, 144),
        Layer("head", "Linear", (3,), 144 * 3 + 3, 144 * 3, 3),
    ]


def test_a_model_without_parts_is_one_row() -> None:
    task = Objective(DataSpec("vector", (4,), "regression", 2))
    layers = inspect(nn.Linear(4, 2), task, ((torch.ones(2, 4),), torch.ones(2, 2)))
    assert layers == [Layer("Linear", "Linear", (2,), 10, 8, 2)]


def test_many_leaves_are_shown_as_blocks() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Flatten()
            self.stage = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(20)))
            self.head = nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.head(self.stage(self.stem(x)))
            return outputs

    outputs = inspect(Wide())
    assert [row.name for row in outputs] == ["stem", *(f"stage.{i}" for i in range(20)), "head"]
    assert sum(row.parameters for row in outputs) == sum(p.numel() for p in Wide().parameters())
    assert [row.multiply_adds for row in outputs] == [0, *[64 * 64] * 20, 64 * 3]


PACKED = pack_padded_sequence(torch.rand(2, 7, 4), torch.tensor([7, 3]), batch_first=True)


@pytest.mark.parametrize(
    ("layer", "inputs", "wanted"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, groups=2), torch.rand(2, 4, 9), 2 * (6 * 4) * 2 * 3),
        (nn.Conv2d(3, 8, (5, 3), padding=2), torch.rand(2, 3, 9, 9), 2 * (8 * 9 * 11) * 3 * 15),
        (nn.Conv3d(1, 2, 2), torch.rand(2, 1, 3, 3, 3), 2 * (2 * 8) * 8),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), torch.rand(2, 4, 5, 5), 2 * (4 * 25) * 6 * 4),
        (nn.Linear(4, 6), torch.rand(2, 7, 4), 2 * 7 * 24),
        (nn.RNN(4, 6), torch.rand(7, 2, 4), 2 * 7 * (6 * 4 + 6 * 6)),
        (nn.LSTM(4, 6, bidirectional=True), torch.rand(7, 2, 4), 2 * 7 * 2 * 4 * (6 * 4 + 6 * 6)),
        (nn.GRU(4, 6, num_layers=2), PACKED, 10 * 3 * (6 * 4 + 6 * 6 + 6 * 6 + 6 * 6)),  # 7 + 3 steps, no padding
        (nn.GRUCell(4, 6), torch.rand(2, 4), 2 * 3 * (6 * 4 + 6 * 6)),
        (nn.BatchNorm2d(3), torch.rand(2, 3, 9, 9), 0),
        (nn.ReLU(), torch.rand(2, 3), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_multiply_adds_are_those_counted_by_hand(layer: nn.Module, inputs: Any, wanted: int) -> None:
    assert checks.count_multiply_adds(layer, (inputs,), layer(inputs)) == wanted


class Twice(nn.Module):
    """One layer called twice, and a layer inside of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(8, 8)
        self.outer = nn.Sequential(nn.Sequential(nn.Linear(8, 5, bias=False)), nn.Linear(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.outer(self.shared(self.shared(x)))
        return outputs


def test_a_layer_called_twice_works_twice_and_is_one_row() -> None:
    spec = DataSpec("vector", (8,), "regression", 1)
    layers = inspect(Twice(), Objective(spec), ((torch.ones(2, 8),), torch.ones(2, 1)))
    assert [(row.name, row.parameters, row.multiply_adds) for row in layers] == [
        ("shared", 72, 2 * 64),
        ("outer.0.0", 40, 40),
        ("outer.1", 6, 5),
    ]


MODELS: dict[str, Callable[[DataSpec], nn.Module]] = {
    "cnn": CNN,
    "mlp": MLP,
    "inception": Inception,
    "inception without bottleneck": partial(Inception, bottleneck=False),
    "resnet": ResNet,
}


@pytest.mark.slow  # the import alone takes 2 s
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_total_is_half_of_torchs_count_of_flops(make: Callable[[DataSpec], nn.Module]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    spec = DataSpec("image", (1, 28, 28), "multiclass", 10)
    model, given = make(spec), ((torch.rand(3, 1, 28, 28),), torch.arange(3))
    with FlopCounterMode(display=False) as counter:
        model.eval()(*given[0])
    layers = inspect(model, Objective(spec), given)
    assert 2 * 3 * sum(row.multiply_adds for row in layers) == counter.get_total_flops() > 0


def test_a_bottleneck_pays_where_many_channels_reach_it() -> None:
    spec = DataSpec("image", (1, 28, 28), "multiclass", 10)
    given = ((torch.rand(2, 1, 28, 28),), torch.arange(2))

    def work(bottleneck: bool, branch: str) -> int:
        layers = inspect(Inception(spec, bottleneck), Objective(spec), given)
        return sum(row.multiply_adds for row in layers if row.name.startswith(branch))

    assert work(True, "features.7.branch5x5") == 16 * 16 * (20 + 24 * 25) < work(False, "features.7.branch5x5")
    assert work(True, "features.3.branch5x5") == 144 * 16 * (10 + 24 * 25) > work(False, "features.3.branch5x5")
    assert work(False, "features.7.branch5x5") == 16 * 20 * 24 * 25


@pytest.mark.slow
def test_the_table_of_a_run_ends_in_the_totals_and_fits_80_columns(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("model=inception", "trainer.epochs=1", "trainer.max_steps=1", "data.limit_batches=1", *QUIET)
    lines = outcome.out[outcome.out.index(" layer ") :].split("\n\n")[0].splitlines()
    assert lines[0].split() == ["layer", "kind", "output", "parameters", "multiply-adds"]
    assert ["features.0", "Conv2d", "10×24×24", "260", "144,000"] in [line.split() for line in lines]
    assert lines[-1].split() == ["total", "97,298", "6,019,200"]
    assert max(len(line) for line in lines) <= 80


def local_net() -> nn.Module:
    class Local(nn.Module):
        pass

    return Local()


def add_lambda() -> nn.Module:
    model = nn.Linear(1, 1)
    model.activation = lambda x: x  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("make", [local_net, add_lambda])
def test_a_model_that_cannot_be_exported_is_a_sentence_before_the_run(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(RequestError, match=r"^checkpoint\.format=full: this model cannot be pickled .*state_dict$"):
        checks.check_export(make())


def test_an_export_from_a_notebook_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.check_export(Net()) == []

    class Inner(nn.Module):
        pass

    Inner.__module__, Inner.__qualname__ = "__main__", "Inner"
    monkeypatch.setattr(sys.modules["__main__"], "Inner", Inner, raising=False)
    (note,) = checks.check_export(nn.Sequential(Inner(), nn.Linear(1, 1)))
    assert note.startswith("checkpoint.format=full: Inner is defined in __main__ (a script or a notebook)")


@pytest.mark.parametrize("training", [True, False])
def test_a_look_leaves_generators_buffers_gradients_and_mode_alone(training: bool) -> None:
    model = Net().train(training)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    given = batch()
    torch.manual_seed(3)
    np.random.seed(3)
    inspect(model, given=given)
    assert torch.rand(1).item() == torch.rand(1, generator=torch.Generator().manual_seed(3)).item()
    assert np.random.rand() == np.random.RandomState(3).rand()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training == training
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_untouched_restores_what_a_training_pass_changes() -> None:
    model = Net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)

    def fails() -> None:
        with preserve.preserve_state(model):
            model.train()(*batch()[0])  # draws dropout's mask, too
            assert not torch.equal(model.state_dict()["body.1.running_mean"], before["body.1.running_mean"])
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert torch.rand(1).item() == torch.rand(1, generator=torch.Generator().manual_seed(3)).item()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Says(nn.Module):
    """Answers whatever it is told to."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((1, 2), "the model must return a tensor, not tuple"),
        (torch.ones(2, 4), r"output has the shape \(2, 4\), and multiclass with 3 outputs needs \(2, 3\)"),
        (torch.ones(2), r"shape \(2,\), .* needs \(2, 3\): use spec.output_size for its last layer"),
        (torch.ones(1, 3), r"shape \(1, 3\)"),
    ],
)
def test_an_output_that_does_not_fit_is_a_sentence(answer: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        inspect(Says(answer))


def test_tagging_needs_an_output_at_every_position() -> None:
    task = Objective(DataSpec("tokens", (5,), "tagging", 3))
    given = ((torch.ones(2, 5),), torch.zeros(2, 5, dtype=torch.int64))
    assert inspect(Says(torch.ones(2, 5, 3)), task, given)
    with pytest.raises(RequestError, match=r"needs \(2, 5, 3\)"):
        inspect(Says(torch.ones(2, 3)), task, given)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nn.Linear(5, 3), "mat1 and mat2 shapes cannot be multiplied"),
        (nn.Conv2d(3, 3, 3), "expected input"),
        (nn.Bilinear(1, 1, 1), "missing 1 required positional argument"),
        (nn.Embedding(4, 3), "Expected tensor for argument #1 'indices'"),
    ],
)
def test_a_model_that_does_not_take_the_data_is_a_sentence(model: nn.Module, why: str) -> None:
    with pytest.raises(RequestError) as caught:
        inspect(model)
    assert str(caught.value).startswith("the model does not take this data (inputs of shape (2, 1, 8, 8)): ")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(m._forward_hooks for m in model.modules())


def test_the_small_batch_is_the_head_of_the_first_epoch() -> None:
    split = Split((torch.arange(10.0).view(10, 1), torch.arange(10)), torch.arange(10))
    place = Placement(torch.device("cpu"), torch.float32, DataSpec("tokens", (1,), "multiclass", 10))
    batches = MemoryBatches(split, EpochOrder(10, 4, shuffle=True), place)
    inputs, targets = evaluation.take_small_batch(batches)
    wanted = EpochOrder(10, 4, shuffle=True).permutation(1)[:2]
    assert torch.equal(targets, wanted)
    assert [len(x) for x in inputs] == [2, 2]


@pytest.mark.parametrize(
    ("monitor", "mode", "has_val", "expected"),
    [
        (None, "min", True, ("val/loss", "min")),
        (None, "min", False, ("train/loss", "min")),
        ("val/accuracy", "max", True, ("val/accuracy", "max")),
        ("train/macro_f1", "max", False, ("train/macro_f1", "max")),
        ("train/loss", "min", True, ("train/loss", "min")),
    ],
)
def test_what_decides_on_the_best_epoch(
    monitor: str | None, mode: str, has_val: bool, expected: tuple[str, str]
) -> None:
    assert resolve_monitor(monitor, mode, Objective(SPEC), has_val) == expected


@pytest.mark.parametrize(
    ("monitor", "has_val", "task", "message"),
    [
        ("val/loss", False, "multiclass", "there is no validation part; type data.val_fraction=0.1 or .*=train/loss$"),
        ("val/acuracy", True, "multiclass", "did you mean val/accuracy"),
        ("accuracy", True, "multiclass", "did you mean (val|train)/accuracy"),
        ("val/auroc", True, "multiclass", "is no metric of this run; .*type one of train/loss, .*val/macro_f1$"),
        ("val/accuracy", True, "regression", "type one of train/loss, .*val/r2$"),
        ("test/loss", True, "multiclass", "checkpoint.monitor=test/loss is no metric of this run"),
    ],
)
def test_a_metric_that_is_not_there_is_answered_by_those_that_are(
    monitor: str, has_val: bool, task: TaskName, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        resolve_monitor(monitor, "min", Objective(DataSpec("vector", (2,), task, 3)), has_val)


Usage = namedtuple("Usage", "total used free")


def test_a_full_disk_is_said_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[Path] = []

    def usage(free: int) -> Any:
        def answer(place: Path) -> Usage:
            paths.append(place)
            return Usage(0, 0, free)

        return answer

    model, outputs = nn.Linear(1000, 1000), tmp_path / "not" / "yet" / "there"
    monkeypatch.setattr(shutil, "disk_usage", usage(2**40))
    adam, sgd = torch.optim.Adam(model.parameters()), torch.optim.SGD(model.parameters(), lr=0.1)
    checks.check_disk(outputs, model, adam, keep=2)
    assert paths == [tmp_path]
    one_state = 3 * 4 * 1_001_000  # weights and two moments of Adam
    monkeypatch.setattr(shutil, "disk_usage", usage(4 * one_state))
    with pytest.raises(RequestError, match=r"has 46 MB free, and the checkpoints need about 50 MB; make room, or type"):
        checks.check_disk(outputs, model, adam, keep=2)
    checks.check_disk(outputs, model, adam, keep=1)
    checks.check_disk(outputs, model, sgd, keep=5)
    monkeypatch.setattr(shutil, "disk_usage", usage(33 * 2**20))
    with pytest.raises(RequestError, match="checkpoints need about 39 MB"):
        checks.check_disk(outputs, model, sgd, keep=6, full=True)


class Odd(torch.optim.SGD):
    """Takes no other arguments, keeps two vectors."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            self.state[p] = {"a": torch.zeros_like(p), "b": torch.zeros_like(p)}


@pytest.mark.parametrize("net", ["mlp", "resnet"])
@pytest.mark.parametrize(
    ("make", "moments"),
    [
        (partial(torch.optim.SGD, lr=0.1), 0),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9), 1),
        (partial(torch.optim.Adam, amsgrad=True), 3),
        (partial(torch.optim.AdamW, fused=True), 2),
        (torch.optim.Adagrad, 1),
        (partial(torch.optim.RMSprop, centered=True), 2),
        (partial(torch.optim.LBFGS, history_size=5), 12),
        (Odd, 2),
    ],
)
def test_the_size_of_a_checkpoint_is_foreseen(
    make: Callable[..., torch.optim.Optimizer], moments: float, net: str, tmp_path: Path
) -> None:
    spec = DataSpec("image", (1, 16, 16), "multiclass", 10)
    model: nn.Module = MLP(spec, hidden_sizes=[64]) if net == "mlp" else ResNet(spec)
    optimizer, inputs = make(model.parameters()), torch.rand(4, 1, 16, 16)
    foreseen = checks.estimate_checkpoint_bytes(model, optimizer)
    assert checks.count_moments(optimizer) == pytest.approx(moments, abs=0.01)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(inputs).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    closure()
    optimizer.step(closure)  # type: ignore[arg-type]
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": get_rng_state()}
    checkpoint.save(tmp_path / "x.pt", state | {"config": {f"key{i}": "value" * 3 for i in range(100)}})
    assert foreseen == pytest.approx((tmp_path / "x.pt").stat().st_size, rel=0.2)


def make_net(*last: nn.Module, task: TaskName = "multiclass") -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1 if task == "binary" else 3), *last)


def find_redundant(model: nn.Module, loss: str | None, task: TaskName = "multiclass") -> str | None:
    spec = DataSpec("image", (1, 8, 8), task, 1 if task == "binary" else 3)
    given = (batch()[0], torch.tensor([0, 1]))
    return final_activation.find_redundant_layer(model, given, Objective(spec, loss), contextlib.nullcontext)


@pytest.mark.parametrize(
    ("last", "loss", "task", "advice"),
    [
        (nn.Softmax(-1), None, "multiclass", "leave Softmax out, or end in LogSoftmax and type task.loss=nll"),
        (nn.Softmax(-1), "scratch_cross_entropy", "multiclass", "task.loss=nll"),
        (nn.LogSoftmax(-1), None, "multiclass", "type task.loss=nll"),
        (nn.Sigmoid(), None, "binary", "type task.loss=bce"),
        (nn.Sigmoid(), "scratch_bce_with_logits", "binary", "type task.loss=scratch_bce"),
    ],
)
def test_a_last_layer_that_the_loss_has_too_is_named(
    last: nn.Module, loss: str | None, task: TaskName, advice: str
) -> None:
    message = find_redundant(make_net(last, nn.Identity(), task=task), loss, task)
    assert message is not None
    assert message.startswith(f"the model ends in {type(last).__name__}, and task.loss=")
    assert message.endswith(advice)


@pytest.mark.parametrize(
    ("model", "loss", "task"),
    [
        (make_net(), None, "multiclass"),
        (make_net(nn.LogSoftmax(-1)), "nll", "multiclass"),
        (make_net(nn.Softmax(-1)), "multi_margin", "multiclass"),
        (make_net(nn.Sigmoid(), task="binary"), "bce", "binary"),
        (make_net(nn.Sigmoid(), nn.Linear(1, 1), task="binary"), None, "binary"),  # not the last
        (make_net(nn.Sigmoid()), None, "multiclass"),  # a squashed logit is a logit
    ],
)
def test_a_last_layer_that_fits_is_not(model: nn.Module, loss: str | None, task: TaskName) -> None:
    assert find_redundant(model, loss, task) is None


def test_a_loss_that_cannot_take_the_output_is_named_with_what_to_type() -> None:
    spec, given = DataSpec("image", (1, 8, 8), "binary", 1), (batch()[0], torch.tensor([0, 1]))
    with pytest.raises(RequestError, match=r"^task\.loss=bce does not take .*; type task\.loss=bce_with_logits$"):
        inspect(Says(torch.tensor([[3.0], [-2.0]])), Objective(spec, "bce"), given)
    with pytest.raises(RequestError, match=r"^task\.loss=nll takes log.* type task\.loss=cross_entropy"):
        inspect(Says(torch.ones(2, 3)), Objective(SPEC, "nll"))
    assert inspect(Says(torch.ones(2, 3).log_softmax(-1)), Objective(SPEC, "nll"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("x"), "KeyError: 'x'"),
        (AssertionError(), "AssertionError: no message"),
        (RuntimeError(), "no message"),
    ],
)
def test_whatever_a_users_model_raises_is_a_sentence(error: Exception, message: str) -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise error

    with pytest.raises(RequestError) as caught:
        inspect(Raises())
    assert f": {message} (" in str(caught.value)
    assert "test_checks.py, line " in str(caught.value)


def test_no_memory_for_two_rows_is_left_to_who_knows_what_to_type() -> None:
    class Huge(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.empty(2**50)

    with pytest.raises(RuntimeError, match="can't allocate memory"):
        inspect(Huge())
