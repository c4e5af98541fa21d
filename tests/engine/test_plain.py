"""A checkpoint holds plain values and tensors: NumPy's come back as they were, anything else is refused by name."""

import collections
import datetime
import enum
import io
import json
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dlrun.core import files
from dlrun.core.errors import CheckpointError, DataError, RunError
from dlrun.data.spec import DataSpec
from dlrun.engine.plain import NotPlainError, decode, encode, take_copy
from dlrun.engine.state import load_optimizer_state
from dlrun.runs import checkpoint

QUIET = ("tracking.graph=false", "figures=false")


class Color(enum.IntEnum):
    RED = 1


class Layered(torch.Tensor):
    """A subclass of a user's own."""


Pair = collections.namedtuple("Pair", "a b")
PLAIN = {
    "none": None,
    "bool": True,
    "int": 2**100,
    "float": 1.5,
    "complex": 1j,
    "text": "x",
    "bytes": b"x",
    "bytearray": bytearray(b"x"),
    "list": [1, [2]],
    "tuple": (1, (2,)),
    "dict": {1: {"a": 2}, (1, "a"): 3, None: 4},
    "ordered": collections.OrderedDict(a=1),
    "counter": collections.Counter("aab"),
    "set": {1, 2},
    "size": torch.Size([2]),
    "dtype": torch.bfloat16,
    "device": torch.device("cpu"),
    "tensor": torch.arange(3),
    "parameter": nn.Parameter(torch.zeros(2)),
}
REFUSED = {
    "enum": Color.RED,
    "path": pathlib.Path("x"),
    "date": datetime.datetime(2026, 11, 20),
    "default": collections.defaultdict(list),
    "deque": collections.deque([1]),
    "named": Pair(1, 2),
    "frozen": frozenset([1]),
    "function": len,
    "class": int,
    "subclass": torch.zeros(2).as_subclass(Layered),
    "objects": np.array([None]),
    "dates": np.array(["2026-11-20"], "datetime64[D]"),
    "long": np.longdouble(1),
    "matrix": np.ma.masked_array([1]),
    "generator": torch.Generator(),
    "key": {Color.RED: 1},
}


def read_back(values: Any) -> Any:
    """What torch reads of what it has written."""
    file = io.BytesIO()
    torch.save(values, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_let_through_is_read_back_by_torch(name: str) -> None:
    state = {name: PLAIN[name]}
    assert encode(state) is state
    actual = read_back(state)[name]
    assert type(actual) is type(PLAIN[name])
    assert bool(torch.equal(actual, PLAIN[name])) if isinstance(actual, torch.Tensor) else actual == PLAIN[name]


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_would_not_read_back_is_refused(name: str) -> None:
    with pytest.raises(NotPlainError, match=r"the scheduler's state holds table\[1\]\.inner"):
        encode({"scheduler": {"steps": 1, "scheduler": {"table": [0, {"inner": REFUSED[name]}]}}})
    with pytest.raises(Exception, match=r"eights only|not support|pickle"):
        read_back(REFUSED[name])


def test_what_holds_itself_or_is_too_deep_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotPlainError, match="holds itself"):
        encode({"optimizer": loop})
    deep: list[Any] = []
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(NotPlainError, match="deeper than 50 levels"):
        encode({"optimizer": deep})


@pytest.mark.parametrize(
    "value",
    [
        np.float32(0.1),
        np.float64(0.1),
        np.int64(-3),
        np.bool_(True),
        np.str_("café"),
        np.complex64(1j),
        np.arange(6.0).reshape(2, 3)[:, ::-1],
        np.array(1.5, np.float16),
        np.array([1, 2], ">i4"),
        np.array([2**63], np.uint64),
        np.array(["a", "bcd"]),
        np.zeros((0, 3), np.float32),
        np.arange(3, dtype=np.ulonglong),
    ],
)
def test_numpy_comes_back_as_it_was(value: Any, tmp_path: Path) -> None:
    user_state = {"a": [{"b": (1, value, [value])}, value], np.str_("k"): {np.int64(3): value}}
    checkpoint.save(tmp_path / "x.pt", {"format_version": 1, "scheduler": user_state})
    loaded = checkpoint.load(tmp_path / "x.pt")["scheduler"]
    actual = [loaded["a"][0]["b"][1], loaded["a"][0]["b"][2][0], loaded["a"][1], loaded["k"][3]]
    for one in actual:
        assert type(one) is type(value)
        assert (one.dtype, one.shape) == (value.dtype, value.shape)
        assert np.array_equal(one, value)
    assert set(loaded) == {"a", "k"}
    assert type(next(key for key in loaded if key == "k")) is str
    plain_content = torch.load(tmp_path / "x.pt", weights_only=True)["scheduler"]  # without dlrun it is plain
    assert isinstance(plain_content["a"][1], torch.Tensor | int | float | str | complex | bool | list)


@pytest.mark.parametrize("name", PLAIN)
def test_a_copy_is_the_same_to_a_file_and_another_object(name: str) -> None:
    value = PLAIN[name]
    copied = take_copy({"value": value})["value"]
    assert type(copied) is type(value)
    before, after = io.BytesIO(), io.BytesIO()
    torch.save(value, before)
    torch.save(copied, after)
    assert before.getvalue() == after.getvalue()


def test_a_copy_shares_nothing_with_a_training_that_goes_on() -> None:
    tied = nn.Linear(3, 3)
    model = nn.Sequential(tied, nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = tied.weight
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    own = {"list": [1], "array": np.zeros(2), "set": {1}, "inner": {"deep": [torch.zeros(1)]}}

    def state() -> dict[str, Any]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "own": own}

    def step() -> None:
        model(torch.randn(4, 3)).sum().backward()
        optimizer.step()

    step()
    copied = take_copy(state())
    before = io.BytesIO()
    torch.save(copied, before)
    assert copied["model"]._metadata == model.state_dict()._metadata  # type: ignore[attr-defined]
    # Written once, as the original is.
    assert copied["model"]["0.weight"] is copied["model"]["2.weight"]

    step()
    own["list"].append(2)  # type: ignore[attr-defined]
    own["array"] += 1  # type: ignore[operator]
    own["set"].add(2)  # type: ignore[attr-defined]
    own["inner"]["deep"][0] += 1  # type: ignore[index]
    after = io.BytesIO()
    torch.save(copied, after)
    assert before.getvalue() == after.getvalue()
    assert not torch.equal(copied["model"]["0.weight"], model.state_dict()["0.weight"])


def test_a_model_keeps_what_torch_writes_beside_its_state() -> None:
    state = nn.BatchNorm1d(2).state_dict()
    state["_extra_state"] = {"counts": np.arange(3)}  # type: ignore[assignment]
    actual = decode(read_back(encode({"model": state})))["model"]
    assert actual._metadata == state._metadata  # type: ignore[attr-defined]
    assert np.array_equal(actual["_extra_state"]["counts"], np.arange(3))


@pytest.mark.parametrize(
    "marks",
    [
        5,
        [[]],
        [[["epoch"], "scalar", "<i8"]],
        [[["scheduler", "a"], "array", "O"]],
        [[["scheduler", "nosuch"], "scalar", "<f4"]],
        [[["scheduler", "a", 0], "array", "<f4"]],
    ],
)
def test_a_note_that_does_not_fit_is_a_damaged_file(marks: Any, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "x.pt", {"format_version": 1, "scheduler": {"a": torch.zeros(2)}, "numpy": marks})
    with pytest.raises(CheckpointError, match=r"its note on NumPy values does not fit|says of no value what it was"):
        checkpoint.load(tmp_path / "x.pt")


def test_what_cannot_be_held_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"the data's description holds names, a pathlib\.PosixPath"):
        checkpoint.save(tmp_path / "x.pt", {"spec": {"names": Path("x")}})
    assert list(tmp_path.iterdir()) == []


def test_a_description_takes_what_users_have() -> None:
    x, y = np.random.default_rng(0).random((20, 3), np.float32), np.arange(20) % 4
    spec = DataSpec(
        np.str_("vector"),  # type: ignore[arg-type]
        x.shape[1:],
        "multiclass",
        y.max() + 1,
        class_names=np.unique(np.array(["d", "a", "c", "b"])),  # type: ignore[arg-type]
        feature_names=[np.int64(1), 2, "c"],  # type: ignore[arg-type]
        mean=x.mean(0),  # type: ignore[arg-type]
        std=torch.ones(3),  # type: ignore[arg-type]
    )
    plain = spec.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert encode(plain) is plain
    assert spec.class_names == ("a", "b", "c", "d")
    assert spec.feature_names == ("1", "2", "c")
    assert (type(spec.output_size), spec.output_size) == (int, 4)
    assert spec.mean == tuple(float(v) for v in x.mean(0))
    assert DataSpec.from_dict(plain) == spec
    for wrong, field in (({"mean": x[:1]}, "mean"), ({"class_names": [Path("x")]}, "class_names")):
        with pytest.raises(DataError, match=f"DataSpec.{field} holds"):
            DataSpec("vector", (3,), "regression", 1, **wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"DataSpec\.output_size holds 1\.5"):
        DataSpec("vector", (3,), "regression", 1.5)  # type: ignore[arg-type]


def test_json_takes_numpy_and_tensors(tmp_path: Path) -> None:
    values = {"a": np.float32("nan"), "b": (np.int64(2), np.inf), np.str_("c"): torch.tensor([1.0]), "d": np.arange(2)}
    files.write_json(tmp_path / "x.json", values)
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [2, None], "c": [1.0], "d": [0, 1]}


def test_arrays_in_an_optimizer_come_back() -> None:
    def optimizer() -> torch.optim.Optimizer:
        return torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1, momentum=0.9)

    one, two = optimizer(), optimizer()
    first = one.param_groups[0]["params"][0]
    first.grad = torch.ones_like(first)
    one.step()
    one.state[first]["trace"] = np.arange(2.0)
    load_optimizer_state(two, decode(read_back(encode({"optimizer": one.state_dict()})))["optimizer"])
    actual = two.state[two.param_groups[0]["params"][0]]
    assert np.array_equal(actual["trace"], np.arange(2.0))
    assert torch.equal(actual["momentum_buffer"], one.state[first]["momentum_buffer"])


OWN = '''
import collections, pathlib
import numpy as np
import torch
from torch.optim.lr_scheduler import LRScheduler
from dlrun.data.spec import DataSpec, Split, Splits


class Table(LRScheduler):
    """Learning rates by NumPy, and a history that grows."""

    def __init__(self, optimizer, bad="None"):
        self.rates = np.linspace(0.1, 0.01, 7, dtype=np.float32)
        self.seen = [np.float32(0)]
        self.bad = eval(bad)
        super().__init__(optimizer)

    def get_lr(self):
        self.seen.append(self.rates[self.last_epoch % 7] + self.seen[-1] / 100)
        return [self.seen[-1] for _ in self.base_lrs]


class Own(torch.optim.SGD):
    """Keeps arrays and NumPy numbers for each parameter, and uses them."""

    bad = None

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["norms"] = np.append(state.get("norms", np.zeros(0)), float(p.grad.norm()))[-5:]
                state["count"] = np.int64(state.get("count", 0) + 1)
                p.grad.mul_(float(1 / (1 + state["norms"].mean())))
                if self.bad:
                    state["bad"] = collections.deque([1])
        return super().step(closure)


class Bad(Own):
    bad = True


def data():
    x = np.random.default_rng(0).normal(size=(120, 3)).astype(np.float32)
    y = (x.sum(1) > 0).astype(np.int64) + (x[:, 0] > 1)
    names = np.unique(np.array(["none", "some", "much"]))
    spec = DataSpec("vector", x.shape[1:], "multiclass", y.max() + 1, class_names=names, mean=x.mean(0), std=x.std(0))
    return Splits(Split((torch.from_numpy(x),), torch.from_numpy(y)), None, None, spec)
'''
WORDS = (
    "data._target_=owned.data",
    "model=linear",
    "optimizer._target_=owned.Own",
    "optimizer.lr=0.1",
    "scheduler._target_=owned.Table",
    "data.batch_size=32",
    "trainer.epochs=4",
    *QUIET,
)


@pytest.fixture
def own_classes(tmp_path: Path, dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owned.py").write_text(OWN)


@pytest.mark.slow
@pytest.mark.usefixtures("own_classes")
def test_a_run_with_numpy_in_it_is_gone_on_with_to_the_same_end(dlrun: Callable[..., Any]) -> None:
    reference = dlrun(*WORDS, "hydra.run.dir=whole")
    assert reference.code == 0, reference.err
    assert dlrun(*WORDS, "trainer.epochs=2", "hydra.run.dir=run").code == 0
    resumed = dlrun("resume", "run", "trainer.epochs=4", "trusted_modules=[owned]")
    assert resumed.code == 0, resumed.err
    assert resumed.result["weights_sha256"] == reference.result["weights_sha256"]
    assert resumed.rows == reference.rows
    assert dlrun("eval", "run", "trusted_modules=[owned]", "figures=false").code == 0
    assert checkpoint.load(Path("run/checkpoints/last.pt"))["spec"]["class_names"] == ["much", "none", "some"]


@pytest.mark.usefixtures("own_classes")
@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("+scheduler.bad='pathlib.Path(\"x\")'", "the scheduler's state holds bad, a pathlib.PosixPath"),
        ("optimizer._target_=owned.Bad", "the optimizer's state holds state[0].bad, a collections.deque"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_the_first_step(
    word: str, sentence: str, dlrun: Callable[..., Any]
) -> None:
    outcome = dlrun(*WORDS, word)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1), outcome.err
    assert sentence in outcome.err
    assert not Path("outputs").exists()


@pytest.mark.slow
def test_the_first_checkpoint_is_read_back_once(dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = checkpoint.load

    def load(path: Path) -> dict[str, Any]:
        read.append(path.name)
        return real(path)

    words = ("data=blobs", "model=linear", "trainer.epochs=3", *QUIET)
    monkeypatch.setattr("dlrun.runs.checkpoint_manager.load", load)
    assert dlrun(*words, "hydra.run.dir=run").code == 0
    assert read.count(read[0]) == 1
    assert read[0].startswith("step_")

    def refuse(path: Path) -> dict[str, Any]:
        raise CheckpointError(f"{path} holds more than tensors and plain values; it is not opened")

    monkeypatch.setattr("dlrun.runs.checkpoint_manager.load", refuse)
    outcome = dlrun(*words, "hydra.run.dir=other")
    assert outcome.code == 1
    assert "the first checkpoint was written, and cannot be read back" in outcome.err
    assert not list(Path("other/checkpoints").glob("*.pt"))
