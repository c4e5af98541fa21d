"""Learning trouble is said at the epoch where it shows, once, and a run that goes well is left alone."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dlrun.data.batches import EpochOrder, LoaderBatches, MemoryBatches, Placement
from dlrun.data.datasets import Pairs
from dlrun.data.spec import DataSpec, Split
from dlrun.engine import trainer
from dlrun.engine.distributed import SINGLE_PROCESS
from dlrun.engine.objective import Objective
from dlrun.engine.state import Progress
from dlrun.experiment.callbacks.diagnostics import (
    Diagnostics,
    find_dead_units,
    find_far_inputs,
    find_nonfinite,
    find_vanishing_gradients,
)

YES_NO = DataSpec("vector", (4,), "binary", 1, class_names=("no", "yes"))
THREE = DataSpec("vector", (4,), "multiclass", 3)
IMAGES = DataSpec("image", (2, 4, 4), "multiclass", 3)


class Functional(nn.Module):
    """Ends in a function where others end in a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor], outputs: int) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(4, outputs), function

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4) -> (B, outputs)."""
        return self.function(self.linear(x))


def make_diagnostics(
    model: nn.Module, spec: DataSpec, baseline: dict[str, float] | None = None, **other: Any
) -> Diagnostics:
    """A watch over a run of 40 random rows that has not begun; `said` and `parts.notes` hold what it says."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, *spec.input_shape, generator=generator)
    split = Split((x,), torch.arange(40) % max(spec.output_size, 2))
    order, place = EpochOrder(40, 8), Placement(torch.device("cpu"), torch.float32, spec)
    workers = other.pop("workers", None)
    train = MemoryBatches(split, order, place)
    parts: Any = SimpleNamespace(
        objective=Objective(spec, other.pop("loss", None)),
        splits=SimpleNamespace(spec=spec),
        runtime=SimpleNamespace(autocast=contextlib.nullcontext),
        settings=SimpleNamespace(
            hyperparameters={
                "optimizer.lr": 0.1,
                "data.normalize": False,
                "data.eval_batch_size": other.pop("eval_batch_size", None),
            }
        ),
        state=SimpleNamespace(
            model=model,
            train=train if workers is None else LoaderBatches(Pairs(split), order, place, workers),
            val=None,
            progress=Progress(troubles=other.pop("troubles", {})),
            scaler=other.pop("scaler", torch.amp.GradScaler(enabled=False)),
        ),
        preflight=SimpleNamespace(multiply_adds=100),
        baseline=baseline or {},
        notes=["before"],
    )
    messages: list[str] = []
    watch = Diagnostics(parts, [], messages.append)
    watch.messages = messages  # type: ignore[attr-defined]
    return watch


def epochs(watch: Diagnostics, losses: list[float], steps: int = 400, **values: float) -> None:
    for loss in losses:
        epoch = len(watch.rows) + 1
        row = {"epoch": epoch, "step": steps * epoch, "train/loss": loss} | values
        unused: Any = None
        watch.on_epoch_end(unused, row)


def test_a_trouble_is_said_once_with_its_epoch_and_noted() -> None:
    watch = make_diagnostics(nn.Linear(4, 1), YES_NO)
    epochs(watch, [1.0, 2.0, 4.0])
    assert watch.messages == []
    epochs(watch, [8.0, 16.0, 32.0])
    (sentence,) = watch.messages
    assert sentence.startswith("note: epoch 4: diverging: the training loss grew from 1 to 8 in 4 epochs")
    assert watch.context.notes == ["before", sentence.removeprefix("note: ")]
    assert watch.context.state.progress.troubles == {"diverging": watch.context.notes[1]}


def test_a_resumed_watch_notes_what_was_said_and_says_it_no_more() -> None:
    watch = make_diagnostics(nn.Linear(4, 1), YES_NO, troubles={"diverging": "epoch 4: diverging: so"})
    epochs(watch, [1.0, 2.0, 4.0, 8.0, 16.0])
    assert watch.messages == []
    assert watch.context.notes == ["before", "epoch 4: diverging: so"]


def test_late_epochs_are_looked_at_now_and_then() -> None:
    watch = make_diagnostics(nn.Linear(4, 1), YES_NO)
    looked: list[int] = []
    watch.find_troubles = lambda: looked.append(len(watch.rows)) or {}  # type: ignore[func-returns-value,method-assign]
    epochs(watch, [1.0] * 1000)
    assert looked[:51] == [*range(1, 50), 50, 52]
    assert len(looked) < 200


@pytest.mark.parametrize(
    ("steps", "looks"), [(24, [1, 2, 4, 8, 16, 17]), (1, [1, 2, 4, 8, 16]), (400, [*range(1, 26)])]
)
def test_of_few_steps_an_epoch_as_many_steps_lie_between_looks(steps: int, looks: list[int]) -> None:
    watch = make_diagnostics(nn.Linear(4, 1), YES_NO)
    seen: list[int] = []
    watch.find_troubles = lambda: seen.append(len(watch.rows)) or {}  # type: ignore[func-returns-value,method-assign]
    epochs(watch, [1.0] * 25, steps=steps)
    assert seen == looks


def test_looking_changes_nothing() -> None:
    noisy = Functional(lambda z: z + torch.rand(()), 8)
    model = nn.Sequential(noisy, nn.BatchNorm1d(8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    model[1].eval()
    watch = make_diagnostics(model, THREE, workers=0)
    assert len(watch.targets) == 32
    state = {k: v.clone() for k, v in model.state_dict().items()}
    before = torch.get_rng_state()
    epochs(watch, [1.0] * 5, **{"train/accuracy": 0.4})
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model] == [True, False, True, True, True, True]
    assert not any(m._forward_hooks for m in model)
    assert all(p.grad is None for p in model.parameters())


def test_a_look_sees_which_units_of_which_layer_are_awake() -> None:
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].bias[:] = torch.tensor([100.0, -100.0, 100.0, -100.0, -100.0])
        model[3].bias[:] = 1e6 * torch.tensor([-1.0, 1.0, -1.0, -1.0, -1.0, -1.0])
    for eval_batch_size in (None, 7):
        watch = make_diagnostics(model, IMAGES, eval_batch_size=eval_batch_size)
        outputs, awake = watch.probe(watch.inputs)
        assert torch.equal(outputs, model(watch.inputs[0]))
        assert awake["1"].tolist() == [True, False, True, False, False]
        assert awake["4"].tolist() == [False, True, False, False, False, False]
    epochs(watch, [1.0])
    assert "epoch 1: dead ReLUs: 5 of 6 in layer 4 give 0 for every row" in watch.messages[0]


def test_a_unit_that_one_row_wakes_is_awake_whatever_the_batches() -> None:
    model = nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    for eval_batch_size in (None, 1, 7):
        watch = make_diagnostics(model, THREE, eval_batch_size=eval_batch_size)
        with torch.no_grad():
            top = watch.inputs[0][:, 0].sort().values
            model[0].bias.fill_(-float(top[-2:].mean()))
        assert watch.probe(watch.inputs)[1]["1"].tolist() == [True]


def test_a_layer_used_twice_is_awake_where_one_use_is() -> None:
    class Twice(nn.Module):
        def __init__(self, second: int) -> None:
            super().__init__()
            self.first, self.then, self.relu = nn.Linear(4, 4), nn.Linear(4, second), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.then(self.relu(self.first(x)) * 0 - 1e3))

    model = Twice(4)
    with torch.no_grad():
        model.first.bias.fill_(100.0)
        model.then.weight.fill_(1.0)
    watch = make_diagnostics(model, THREE)
    assert watch.probe(watch.inputs)[1]["relu"].all()
    watch = make_diagnostics(Twice(3), THREE)
    assert watch.probe(watch.inputs)[1] == {}


@pytest.mark.parametrize(("silent", "units", "expected"), [(7, 10, 0), (8, 10, 1), (2, 4, 0), (4, 4, 1), (0, 4, 0)])
def test_most_of_a_layer_must_be_dead(silent: int, units: int, expected: int) -> None:
    notes = find_dead_units({"a": torch.ones(3, dtype=torch.bool), "b": torch.arange(units) >= silent})
    assert len(notes) == expected
    assert all(f"{silent} of {units} in layer b" in s for s in notes.values())


def test_no_relu_is_no_dead_relu() -> None:
    assert find_dead_units({}) == {}


@pytest.mark.parametrize(
    ("model", "spec", "loss", "message"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), THREE, None, "a softmax, but task.loss=cross_entropy takes"),
        (Functional(lambda z: z.softmax(-1), 3), THREE, "scratch_cross_entropy", "a softmax, but task.loss=scratch_"),
        (nn.Sequential(nn.Linear(4, 1), nn.Sigmoid()), YES_NO, None, "a sigmoid, but task.loss=bce_with_logits takes"),
        (Functional(lambda z: torch.sigmoid(z).view(-1, 1), 1), YES_NO, None, "end in Sigmoid and type task.loss=bce"),
        (nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)), THREE, "nll", None),
        (nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)), THREE, None, None),  # the same numbers come out
        (nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), THREE, "multi_margin", None),
        (Functional(lambda z: 9 * z - 9 * z.mean(-1, keepdim=True) + 1 / 3, 3), THREE, None, None),  # sums to 1 only
        (nn.Sequential(nn.Linear(4, 1), nn.Sigmoid()), YES_NO, "bce", None),
        (nn.Sequential(nn.Linear(4, 3), nn.Sigmoid()), THREE, None, None),
        # logits that happen to lie between 0 and 1
        (Functional(lambda z: 0.5 + 0.01 * torch.sigmoid(z), 1), YES_NO, None, None),
        (nn.Linear(4, 3), THREE, None, None),
        (nn.Linear(4, 1), YES_NO, None, None),
    ],
)
def test_a_softmax_or_sigmoid_into_a_loss_that_takes_logits(
    model: nn.Module, spec: DataSpec, loss: str | None, message: str | None
) -> None:
    watch = make_diagnostics(model, spec, loss=loss)
    epochs(watch, [0.5, 0.4])
    assert len(watch.messages) == (message is not None)
    assert message is None or message in watch.messages[0]


X = torch.linspace(-1, 1, 50)[:, None].expand(50, 3)


@pytest.mark.parametrize(
    ("scale", "shift", "message"),
    [
        ((1, 1, 1), (0, 9, -9), None),
        ((1, 40, 1), (0, 0, 0), None),  # deviation 24
        ((1, 1, 1), (0, 0, -11), "feature c is far from normalized: feature c has mean -11 and standard deviation 0.5"),
        ((1, 100, 1), (0, 1.5, 0), "feature b is far from normalized: feature b has mean 1."),
        ((1, 3e3, 1), (0, 1e4, 50), "2 of 3 features are far from normalized: feature b has mean 1e+04 and"),
    ],
)
def test_inputs_far_from_normalized(scale: tuple[float, ...], shift: tuple[float, ...], message: str | None) -> None:
    spec = DataSpec("vector", (3,), "regression", 1, feature_names=("a", "b", "c"))
    x = (X * torch.tensor(scale) + torch.tensor(shift)).round(decimals=4)
    notes = find_far_inputs(x, spec, True)
    assert len(notes) == (message is not None)
    if message is not None:
        assert message in notes["inputs"]
        assert notes["inputs"].endswith("; type data.normalize=true")
        assert "data.normalize" not in find_far_inputs(x, spec, False)["inputs"]
    spec = DataSpec("image", (3, 5, 5), "multiclass", 3)
    images = (x[:, :, None, None] + 0.0).expand(50, 3, 5, 5)
    assert len(find_far_inputs(images, spec, False)) == len(notes)


def test_token_codes_need_no_normalizing() -> None:
    assert find_far_inputs(torch.full((9, 5), 1000), DataSpec("tokens", (5,), "multiclass", 3), False) == {}


def deep(activation: type[nn.Module], layers: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    pairs = [m for _ in range(layers) for m in (nn.Linear(4, 4), activation())]
    return nn.Sequential(*pairs, nn.Linear(4, 3))


def test_vanishing_gradients_name_the_layer_and_need_a_loss_that_stands_still() -> None:
    trivial = {"train/loss": math.log(3)}
    for activation, layers, losses, message in (
        (nn.Sigmoid, 8, [1.1] * 5, True),
        (nn.Sigmoid, 8, [1.1, 1.0, 0.9, 0.8, 0.7], False),  # it learns
        (nn.Sigmoid, 8, [0.2] * 5, False),  # it has learnt
        (nn.Sigmoid, 8, [1.1] * 3, False),  # too soon to tell
        (nn.Sigmoid, 1, [1.1] * 5, False),
        (nn.Tanh, 8, [1.1] * 5, False),
    ):
        model = deep(activation, layers)
        watch = make_diagnostics(model, THREE, trivial)
        watch.context.objective.compute_loss(model(watch.inputs[0]), watch.targets).backward()
        epochs(watch, losses, **{"train/accuracy": 0.4})
        vanished = [s for s in watch.messages if "vanishing" in s]
        assert len(vanished) == message, (activation, layers, losses)
        assert all("epoch 4: vanishing gradients: the training loss stands still, and 0.weight" in s for s in vanished)


def test_vanishing_compares_the_root_mean_square() -> None:
    model = nn.Sequential(nn.Linear(100, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[2].weight.grad = torch.full((2, 2), 0.1)
    model[0].weight.grad, model[1].weight.grad = torch.full((2, 100), 3e-4), torch.full((2, 2), 0.2)
    assert find_vanishing_gradients(model) == {}  # 1 : 667, though the norms are 1 : 94
    model[1].weight.grad = torch.full((2, 2), 0.5)
    assert "0.weight gets gradients of 0.0003 where 1.weight gets 0.5" in find_vanishing_gradients(model)["vanishing"]
    model[0].weight.grad = torch.zeros(2, 100)
    assert find_vanishing_gradients(model) == {}
    model[0].weight.grad = torch.full((2, 100), 3e-4)
    model[2].weight.grad = None
    assert find_vanishing_gradients(model) == {}  # two layers have a saddle, no long way


def constant(model: nn.Linear, *bias: float) -> nn.Linear:
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor(bias))
    return model


def test_one_class_for_hundreds_of_steps_without_learning() -> None:
    trivial = {"train/loss": 0.69, "train/accuracy": 0.5}
    watch = make_diagnostics(constant(nn.Linear(4, 1), 3.0), YES_NO, trivial)
    epochs(watch, [1.5, 0.7], **{"train/accuracy": 0.4})
    epochs(watch, [0.691, 0.69, 0.692], **{"train/accuracy": 0.5})
    assert watch.messages == []
    epochs(watch, [0.69], **{"train/accuracy": 0.5})
    assert (
        "epoch 6: predicts 'yes' for all train rows since epoch 3: 50.0 % are right, what the maj" in watch.messages[0]
    )


@pytest.mark.parametrize(
    ("bias", "losses", "steps", "accuracies"),
    [
        ((0.0, 0.0, 0.0), [0.6, 0.5, 0.4, 0.3], 100, [0.5]),  # it learns
        ((0.0, 0.0, 0.0), [1.1] * 9, 10, [0.5]),  # too few steps
        ((0.0, 0.0, 0.0), [1.1] * 9, 100, [0.5, 0.51]),  # the accuracy moves
    ],
)
def test_one_class_for_a_while_is_how_learning_begins(
    bias: tuple[float, ...], losses: list[float], steps: int, accuracies: list[float]
) -> None:
    watch = make_diagnostics(constant(nn.Linear(4, 3), *bias), THREE, {"train/loss": 1.1})
    for i, loss in enumerate(losses):
        epochs(watch, [loss], steps, **{"train/accuracy": accuracies[i % len(accuracies)]})
    assert watch.messages == []


def test_different_answers_are_not_one_class() -> None:
    torch.manual_seed(0)
    watch = make_diagnostics(nn.Linear(4, 3), THREE, {"train/loss": 1.1})
    epochs(watch, [1.1] * 6, **{"train/accuracy": 0.4})
    assert watch.messages == []


def test_not_finite() -> None:
    model = nn.Linear(2, 1)
    assert find_nonfinite({"step": 9}, None, model) == {}
    assert "the gradient is not finite since step 7;" in find_nonfinite({"step": 9}, 7, model)["not finite"]
    model.weight.grad = torch.tensor([[1.0, math.inf]])
    assert "the gradient is not finite since step 9;" in find_nonfinite({"step": 9}, None, model)["not finite"]
    model.weight.grad = torch.ones(1, 2)
    notes = find_nonfinite({"step": 9, "val/loss": math.nan}, None, model)
    assert "the validation loss is not finite since step 9;" in notes["not finite"]
    assert find_nonfinite({"step": 9, "val/loss": 1.0}, None, model) == {}


@pytest.mark.parametrize(("norm", "fp16", "step"), [(math.inf, False, 5), (1.0, False, None), (math.nan, True, None)])
def test_the_log_point_whose_gradient_is_not_finite_is_kept(norm: float, fp16: bool, step: int | None) -> None:
    t: Any = SimpleNamespace(
        check_finite=lambda: None,
        stop_rules=SimpleNamespace(grad_clip_norm=1.0),
        grad_norm=torch.tensor(norm),
        objective=Objective(YES_NO),
        progress=Progress(step=5),
        scaler=SimpleNamespace(is_enabled=lambda: fp16),
        schedule=SimpleNamespace(get_learning_rates=dict),
        ranks=SINGLE_PROCESS,
    )
    trainer.measure_step(t, [(torch.zeros(2, 1), torch.ones(2), torch.tensor(0.7))])
    assert t.progress.bad_gradient_step == step
    t.progress.step = 9
    t.grad_norm = torch.tensor(math.nan)
    trainer.measure_step(t, [(torch.zeros(2, 1), torch.ones(2), torch.tensor(0.7))])
    assert t.progress.bad_gradient_step == (None if fp16 else step or 9)


def table(folder: Path) -> tuple[str, ...]:
    """Words for a run on a table of which one column is large."""
    x = np.random.default_rng(0).normal(size=(80, 2)) * [1.0, 3e3] + [0.0, 1e4]
    np.savetxt(folder / "table.csv", np.c_[x, x[:, 0]], delimiter=",", header="a,income,y", comments="")
    quiet = ("figures=false", "tracking.graph=false", "optimizer.lr=1e-6")
    return ("data=csv", "data.path=table.csv", "data.target=y", "data.normalize=false", *quiet)


def test_trouble_is_said_before_the_epoch_that_shows_it(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    outcome = dlrun(*table(tmp_path), "trainer.epochs=2")
    assert outcome.code == 0, outcome.err
    (far,) = (note for note in outcome.result["warnings"] if "normalized" in note)
    assert far.startswith("epoch 1: feature income is far from normalized: feature income has mean ")
    for text in (outcome.out, (outcome.folder / "run.log").read_text()):
        assert text.count("normalized") == 1
        assert text.index(f"note: {far}") < text.index("epoch 1/2")
    (trivial,) = (note for note in outcome.result["warnings"] if "trivial" in note)
    assert outcome.out.index(trivial) > outcome.out.index("epoch 2/2")


@pytest.mark.slow
def test_a_resumed_run_says_what_the_whole_one_does(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    words = table(tmp_path)
    reference = dlrun(*words, "trainer.epochs=6")
    part = dlrun(*words, "trainer.epochs=3")
    again = dlrun("resume", str(part.folder), "trainer.epochs=6")
    assert again.result["warnings"] == reference.result["warnings"]
    assert sum("normalized" in note for note in reference.result["warnings"]) == 1
    assert "normalized" not in again.out
    silent = dlrun(*words, "trainer.epochs=1", "tracking.diagnose=false")
    assert not any("normalized" in note or "trivial" in note for note in silent.result["warnings"])
