"""What every model must be able to do, whatever it is."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from dlrun.data.spec import DataSpec

CONFIGS = Path(__file__).parents[2] / "configs" / "model"
IMAGE = DataSpec("image", (3, 32, 32), "multiclass", 10)
VECTOR = DataSpec("vector", (8,), "regression", 1)
TOKENS = DataSpec("tokens", (5,), "multiclass", 4, vocabulary=("", *"abcdef"))
TAGS = DataSpec("tokens", (5,), "tagging", 4, vocabulary=("", *"abcdef"))
SERIES = DataSpec("series", (6, 3), "regression", 2)
CASES = [
    *(
        (name, IMAGE)
        for name in ("linear", "logistic", "mlp", "scratch_mlp", "sequential", "cnn", "inception", "resnet")
    ),
    ("torchvision", IMAGE),
    *((name, VECTOR) for name in ("linear", "mlp", "scratch_mlp", "sequential")),
    *((name, TOKENS) for name in ("rnn", "lstm", "gru", "transformer")),
    *((name, SERIES) for name in ("rnn", "lstm", "gru", "transformer", "linear", "mlp", "sequential")),
    ("gru", TAGS),
    ("transformer", TAGS),
    ("rnn_onehot", TAGS),
    ("rnn_cell", TAGS),
]
ON_TENSORS = [(name, spec) for name, spec in CASES if spec.kind != "tokens"]


def load(name: str) -> tuple[type[nn.Module], dict[str, Any]]:
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    module, _, attribute = settings.pop("_target_").rpartition(".")
    return getattr(importlib.import_module(module), attribute), settings


def build(name: str, spec: DataSpec) -> nn.Module:
    model, settings = load(name)
    torch.manual_seed(0)
    return model(spec, **settings)


def batch(spec: DataSpec) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    if spec.kind == "tokens":
        codes = torch.randint(1, len(spec.vocabulary), (3, *spec.input_shape), generator=generator)
        return codes, torch.tensor([5, 1, 3])
    return (torch.randn(3, *spec.input_shape, generator=generator),)


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES}))
def test_config_holds_the_defaults_of_its_target(name: str) -> None:
    model, settings = load(name)
    parameters = list(inspect.signature(model).parameters.values())
    assert parameters[0].name == "spec"
    assert settings == {p.name: p.default for p in parameters[1:]}
    first, second = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[:2]
    assert first.startswith("# ")
    assert second.startswith("# dlrun ")
    assert f"model={name}" in second


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_declares_what_it_accepts(name: str, spec: DataSpec) -> None:
    model, _ = load(name)
    assert spec.kind in model.kinds  # type: ignore[attr-defined]
    assert spec.task in getattr(model, "tasks", (spec.task,))


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_output_shape_and_gradients(name: str, spec: DataSpec) -> None:
    net = build(name, spec)
    output = net(*batch(spec))
    length = (5,) if spec.task == "tagging" else ()
    assert output.shape == (3, *length, spec.output_size)
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_whole_model_survives_saving(name: str, spec: DataSpec, tmp_path: Path) -> None:
    net = build(name, spec).eval()
    torch.save(net, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(again(*batch(spec)), net(*batch(spec)))


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_state_dict_carries_everything_learned(name: str, spec: DataSpec) -> None:
    net = build(name, spec).eval()
    model, settings = load(name)
    torch.manual_seed(99)
    other = model(spec, **settings).eval()
    assert not torch.equal(other(*batch(spec)), net(*batch(spec)))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(*batch(spec)), net(*batch(spec)))


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_same_seed_gives_the_same_start(name: str, spec: DataSpec) -> None:
    ours, again = build(name, spec).state_dict(), build(name, spec).state_dict()
    assert all(torch.equal(ours[key], again[key]) for key in ours)


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_double_precision(name: str, spec: DataSpec) -> None:
    net = build(name, spec).eval()
    single = net(*batch(spec))
    inputs = [x.double() if x.is_floating_point() else x for x in batch(spec)]
    double = net.double()(*inputs)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "spec"), [case for case in CASES if case[1].kind == "image"])
def test_channels_last_gives_the_same(name: str, spec: DataSpec) -> None:
    net = build(name, spec).eval()
    (x,) = batch(spec)
    expected = net(x)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    actual = net(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_can_be_built_without_memory(name: str, spec: DataSpec) -> None:
    with torch.device("meta"):
        net = build(name, spec)
    assert all(p.is_meta for p in net.parameters())
    if spec.kind != "tokens":
        assert net(batch(spec)[0].to("meta")).shape == (3, spec.output_size)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "spec"), [case for case in ON_TENSORS if case[0] not in ("rnn", "lstm", "gru")])
def test_compiles_to_one_graph(name: str, spec: DataSpec) -> None:
    net = build(name, spec).eval()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*batch(spec)), net(*batch(spec)))
