"""From settings to objects: what is built is what was asked for, and what cannot be built is a sentence."""

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dlrun.config import compose, schema
from dlrun.config.settings import Component, Settings, read_settings
from dlrun.core.errors import MisfitError, RequestError
from dlrun.data.batches import Batches, LoaderBatches, MemoryBatches
from dlrun.data.spec import DataSpec, Split, Splits
from dlrun.engine.device import Runtime
from dlrun.experiment.builder import build

IMAGES = DataSpec("image", (1, 28, 28), "multiclass", 10)
VECTOR = DataSpec("vector", (3,), "regression", 1)
TOKENS = DataSpec("tokens", (6,), "multiclass", 4, vocabulary=("", *"abc"))


def process(precision: str = "fp32", channels_last: bool | None = None) -> Runtime:
    return Runtime(torch.device("cpu"), precision, channels_last, False, "cpu")


@functools.cache
def compose_plain(groups: tuple[str, ...]) -> DictConfig:
    """Composing costs 0.1 s: once for each choice of options."""
    return compose.compose_config(list(groups))


def settings(*words: str) -> Settings:
    choices = {"data": "digits", "model": "mlp", "optimizer": "adam", "scheduler": "none"}
    choices |= {key: value for key, _, value in (word.partition("=") for word in words) if key in choices}
    base = compose_plain(tuple(f"{key}={value}" for key, value in choices.items())).copy()
    OmegaConf.set_struct(base, False)
    keys = [word for word in words if word.partition("=")[0] not in choices]
    return read_settings(compose.resolve(OmegaConf.merge(base, OmegaConf.from_dotlist(keys))), choices)  # type: ignore[arg-type]


def model(*words: str, spec: DataSpec = VECTOR, precision: str = "fp32") -> nn.Module:
    return build.build_model(settings(*words), spec, process(precision), None)


def numbers(splits: Splits) -> list[list[float]]:
    """The first feature of every row of train, val and test."""
    parts = [part for part in (splits.train, splits.val, splits.test) if isinstance(part, Split)]
    return [part.inputs[0][:, 0].tolist() for part in parts]


def test_the_validation_part_is_carved_off_the_training_rows_only() -> None:
    all_rows, (train_rows, held_out) = (
        numbers(build.build_data(settings("data=line", *w), None)) for w in ([], ["data.val_fraction=0.2"])
    )
    assert [len(part) for part in all_rows] == [500]
    assert (len(train_rows), len(held_out)) == (400, 100)
    assert sorted(train_rows + held_out) == sorted(all_rows[0])


def test_what_is_held_out_does_not_depend_on_the_seed_of_the_training() -> None:
    words = ("data=line", "data.val_fraction=0.2")
    first, second = (numbers(build.build_data(settings(*words, f"seed={seed}"), None)) for seed in (0, 1))
    assert first == second
    assert numbers(build.build_data(settings(*words, "data.seed=1"), None)) != first


@pytest.mark.parametrize(("batches", "sizes"), [(1, [64, 64, 64]), (3, [192, 144, 192]), (99, [1294, 144, 359])])
def test_limit_batches_cuts_every_part(batches: int, sizes: list[int]) -> None:
    splits = build.build_data(settings(f"data.limit_batches={batches}"), None)
    parts = [part for part in (splits.train, splits.val, splits.test) if isinstance(part, Split)]
    assert [len(part) for part in parts] == sizes
    assert all(len(torch.unique(part.inputs[0], dim=0)) > 0.95 * len(part) for part in parts)  # spread, not repeated


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("data=line", "data.drop_last=true", "data.batch_size=501"),
            "data.drop_last=true leaves no batch: there are 500",
        ),
        (("data=line", "data.noise=-1"), "data.noise=-1 must be at least 0"),
        (("data=line", "data.rows=many"), "data.rows='many' must be a whole number"),
        (("data=line", "data.slop=1"), "did you mean data.slope?"),
    ],
)
def test_data_that_cannot_be_made_is_a_sentence(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        build.build_data(settings(*words), None)
    assert message in str(caught.value)


OWN = """
import torch
from torch import nn
from dlrun.data.spec import DataSpec, Split, Splits

def nothing():
    return 3

def empty():
    return Splits(Split((torch.ones(0, 2),), torch.ones(0, 1)), None, None, DataSpec("vector", (2,), "regression", 1))

class Net(nn.Module):
    def __init__(self, spec, width: int = 2):
        super().__init__()
        self.inner = nn.Linear(spec.input_size, spec.output_size)

def no_net(spec):
    return nn.Linear

def no_optimizer(groups, lr: float = 0.1):
    return groups

def breaks(spec):
    raise KeyError("width")
"""


@pytest.fixture
def make_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """`own(group, name)`: settings whose group is that object of a user's own module."""
    (tmp_path / "builds.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "builds", raising=False)

    def make(group: str, name: str, *words: str) -> Settings:
        (tmp_path / group).mkdir(exist_ok=True)
        all_settings = settings(*words)
        component = Component(group, "mine", f"builds.{name}", {}, schema.KEYS[group]())
        return Settings(**{**all_settings.__dict__, group: component})

    return make


@pytest.mark.parametrize(
    ("group", "name", "message"),
    [
        ("data", "nothing", "data._target_=builds.nothing must return dlrun.data.spec.Splits, not int"),
        ("data", "empty", "data=mine has no training rows"),
        ("model", "no_net", "model._target_=builds.no_net must be a torch.nn.Module, not type"),
        ("model", "breaks", "model=mine: KeyError: 'width'"),
        ("optimizer", "no_optimizer", "optimizer._target_=builds.no_optimizer must be a torch.optim.Optimizer"),
        ("model", "Gone", "model._target_=builds.Gone cannot be imported"),
    ],
)
def test_an_own_object_of_another_kind_is_a_sentence(
    group: str, name: str, message: str, make_own_settings: Callable[..., Settings]
) -> None:
    chosen = make_own_settings(group, name)
    calls: dict[str, Callable[[], Any]] = {
        "data": lambda: build.build_data(chosen, None),
        "model": lambda: build.build_model(chosen, VECTOR, process(), None),
        "optimizer": lambda: build.build_optimizer(chosen, nn.Linear(2, 1), None),
    }
    with pytest.raises(RequestError) as caught:
        calls[group]()
    assert message in str(caught.value)


def test_an_own_object_of_a_saved_run_needs_trust(make_own_settings: Callable[..., Settings]) -> None:
    with pytest.raises(RequestError, match="comes from a saved run"):
        build.build_model(make_own_settings("model", "Net"), VECTOR, process(), [])
    assert "builds" not in sys.modules
    assert type(build.build_model(make_own_settings("model", "Net"), VECTOR, process(), ["builds"])).__name__ == "Net"


@pytest.mark.parametrize(
    ("name", "spec", "fitting"),
    [
        ("gru", IMAGES, ["cnn", "mlp", "resnet"]),
        ("cnn", TOKENS, ["gru", "lstm", "rnn"]),
        ("resnet", VECTOR, ["linear", "mlp"]),
    ],
)
def test_a_model_that_does_not_fit_names_those_that_do(name: str, spec: DataSpec, fitting: list[str]) -> None:
    with pytest.raises(MisfitError) as caught:
        model(f"model={name}", spec=spec)
    message, _, models = str(caught.value).partition("models that do: ")
    assert message.startswith(f"model={name} does not take data=digits (")
    assert set(fitting) <= set(models.split(", "))
    assert name not in models.split(", ")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.float32), ("fp64", torch.float64)]
)
def test_fp64_gives_float64_parameters_and_inputs(precision: str, dtype: torch.dtype) -> None:
    chosen = settings("data=line", "model=linear")
    splits = build.build_data(chosen, None)
    net = build.build_model(chosen, splits.spec, process(precision), None)
    train = build.build_batches(chosen, splits, net, process(precision))[0]
    assert train is not None
    (x,), y = next(train.epoch(1))
    assert {p.dtype for p in net.parameters()} == {x.dtype} == {y.dtype} == {net(x).dtype} == {dtype}


@pytest.mark.parametrize(
    ("init", "wanted"),
    [
        ("{w: 2.0}", {"weight": [[2.0, 2.0, 2.0]], "bias": None}),
        ("{weight: [[1, 2, 3]], b: -1}", {"weight": [[1.0, 2.0, 3.0]], "bias": [-1.0]}),
        ("{weight: [1, 2, 3]}", {"weight": [[1.0, 2.0, 3.0]], "bias": None}),
        ("{'*': 0.5}", {"weight": [[0.5] * 3], "bias": [0.5]}),
        ("{'*': 0.5, b: 3}", {"weight": [[0.5] * 3], "bias": [3.0]}),
    ],
)
def test_start_values_are_set_by_name(init: str, wanted: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = model("model=linear").state_dict()
    torch.manual_seed(0)
    parameters = {k.rpartition(".")[2]: v for k, v in model("model=linear", f"model.init={init}").state_dict().items()}
    for (name, value), before in zip(parameters.items(), plain.values(), strict=True):
        assert value.tolist() == (before.tolist() if wanted[name] is None else wanted[name])


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("{weigth: 1.0}", "there is no such parameter; did you mean "),
        ("{w: [1, 2]}", "must be a number or nested lists of shape (1, 3)"),
        ("{w: big}", "must be a number or nested lists of shape (1, 3)"),
    ],
)
def test_start_values_that_do_not_fit_are_sentences(init: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        model("model=linear", f"model.init={init}")
    assert str(caught.value).startswith("model.init.")
    assert message in str(caught.value)


def batches(*words: str, wide: bool | None = None) -> tuple[Batches | None, ...]:
    chosen = settings(*words)
    splits = build.build_data(chosen, None)
    net = build.build_model(chosen, splits.spec, process(channels_last=wide), None)
    return tuple(build.build_batches(chosen, splits, net, process(channels_last=wide)))


@pytest.mark.parametrize(
    ("word", "kind", "workers"),
    [
        ("data.loader=auto", MemoryBatches, None),
        ("data.loader=memory", MemoryBatches, None),
        ("data.memory_share=1e-9", LoaderBatches, None),
        ("data.loader=workers", LoaderBatches, None),
        ("data.num_workers=3", MemoryBatches, 3),
    ],
)
def test_rows_lie_in_memory_where_they_fit(word: str, kind: type, workers: int | None) -> None:
    train_batches = batches(word)
    assert [type(part) for part in train_batches] == [kind] * 3
    loaded = batches("data.loader=workers", *([word] if workers else []))[0]
    assert isinstance(loaded, LoaderBatches)
    assert 0 <= loaded.workers <= 4 if workers is None else loaded.workers == workers


@pytest.mark.parametrize(
    ("processes", "cards", "kind"), [(1, 1, MemoryBatches), (2, 2, MemoryBatches), (2, 1, LoaderBatches)]
)
def test_processes_that_outnumber_the_gpus_share_their_memory(
    processes: int, cards: int, kind: type, pretended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings("data.batch_size=64")
    splits = build.build_data(chosen, None)
    # Digits take 5.6 MB, and half of what is free is for them.
    monkeypatch.setattr(build, "measure_free_memory", lambda device: 12 * 2**20)
    ranks: Any = SimpleNamespace(local_world_size=processes)
    with pretended.pretend_cuda(cards):
        on_card = replace(process(), device=torch.device("cuda", 0), ranks=ranks)
        net = build.build_model(chosen, splits.spec, process(), None)
        assert type(build.build_batches(chosen, splits, net, on_card).train) is kind


def test_training_is_shuffled_and_evaluation_is_large_and_in_order() -> None:
    train, val, test = batches("data.batch_size=10", "seed=5")
    assert isinstance(train, MemoryBatches)
    assert (train.order.shuffle, train.order.batch_size, train.order.seed) == (True, 10, 5)
    for part, rows in ((val, 144), (test, 359)):
        assert isinstance(part, MemoryBatches)
        assert (part.order.shuffle, part.order.batch_size, part.rows) == (False, 256, rows)
    val = batches("data.eval_batch_size=7", "data.shuffle=false")[1]
    assert isinstance(val, MemoryBatches)
    assert len(val) == math.ceil(144 / 7)


@pytest.mark.parametrize(
    ("name", "setting", "wide"), [("cnn", None, True), ("cnn", False, False), ("mlp", None, False)]
)
def test_images_have_channels_last_for_convolutions(name: str, setting: bool | None, wide: bool) -> None:
    train = batches(f"model={name}", wide=setting)[0]
    assert isinstance(train, MemoryBatches)
    assert train.place.channels_last == wide
    net = build.build_model(settings(f"model={name}"), IMAGES, process(channels_last=setting), None)
    kernels = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert all(k.is_contiguous(memory_format=torch.channels_last) or not wide for k in kernels)
