"""Nets that are not like dlrun's own: extra state, lazy layers, and parameters made in `forward`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from dlrun.core.errors import RequestError
from dlrun.data.files.tensors import load_weights
from dlrun.data.spec import DataSpec
from dlrun.engine.forward_buffers import BuiltBuffers
from dlrun.engine.optim.ema import ExponentialMovingAverage
from dlrun.experiment.builder.build import set_precision
from dlrun.inference import api

nets_of_users: Any = ModuleType("nets_of_users")
exec(
    compile((Path(__file__).parents[1] / "nets_of_users.py").read_text(), "nets_of_users.py", "exec"),
    vars(nets_of_users),
)
QUIET = ("data=blobs", "trainer.epochs=2", "data.limit_batches=3", "tracking.graph=false", "figures=false")


@pytest.fixture
def nets(tmp_path: Path, dlrun: Callable[..., Any]) -> Path:
    """The module that the command lines name, in the working directory."""
    shutil.copy(Path(__file__).parents[1] / "nets_of_users.py", tmp_path / "user_nets.py")
    return tmp_path


def test_parameters_made_in_forward_are_refused(nets: Path, dlrun: Callable[..., Any]) -> None:
    outcome = dlrun(*QUIET, "model._target_=user_nets.Late")
    assert outcome.code == 2
    assert "the model makes scale in forward" in outcome.err
    assert "__init__" in outcome.err


@pytest.mark.slow
def test_extra_state_is_saved_and_comes_back(nets: Path, dlrun: Callable[..., Any]) -> None:
    net = "model._target_=user_nets.Counting"
    own = "trusted_modules=[user_nets]"
    reference = dlrun(*QUIET, net, "trainer.epochs=4", "hydra.run.dir=whole")
    assert reference.code == 0, reference.err
    assert dlrun(*QUIET, net, "hydra.run.dir=half").code == 0
    resumed = dlrun("resume", "half", own, "trainer.epochs=4")
    assert resumed.code == 0, resumed.err

    results = [json.loads(Path(name, "result.json").read_text()) for name in ("whole", "half")]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
    assert Path("whole/metrics.jsonl").read_text() == Path("half/metrics.jsonl").read_text()
    assert dlrun("eval", "half", own, "figures=false").code == 0
    assert dlrun("init_from=half", *QUIET, net).code == 0


@pytest.mark.slow
def test_lazy_layers_train_as_those_whose_sizes_are_given(nets: Path, dlrun: Callable[..., Any]) -> None:
    net = "model._target_=user_nets.Lazy"
    own = "trusted_modules=[user_nets]"
    words = (*QUIET, net, "trainer.ema_decay=0.9", "hydra.run.dir=lazy")
    trained = dlrun(*words)
    assert trained.code == 0, trained.err
    assert trained.rows[-1]["train/loss"] < trained.rows[0]["train/loss"]
    assert dlrun("resume", "lazy", own, "trainer.epochs=3").code == 0
    evaluation = dlrun("eval", "lazy", own, "figures=false")
    assert evaluation.code == 0, evaluation.err


def test_lazy_layers_that_cannot_be_known_are_a_sentence(nets: Path, dlrun: Callable[..., Any]) -> None:
    outcome = dlrun(*QUIET, "model._target_=user_nets.Unknowable")
    assert outcome.code == 2
    assert "the sizes of first.weight" in outcome.err
    assert "missing 1 required positional argument" in outcome.err


@pytest.mark.slow
def test_the_rates_of_a_net_with_extra_state_are_tried(nets: Path, dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("check", "lr", "data=blobs", "model._target_=user_nets.Counting")
    assert outcome.code == 0, outcome.err


NETS = (
    "Counting", "MadeBuffer", "SetBuffer", "GrownBuffer", "Lazy", "LazyConvolution", "OldWeightNorm", "WeightNorm",
    "SpectralNorm", "OldSpectralNorm", "Tied", "Unused", "ComplexBuffer", "WholeBuffers", "Lists", "Shared",
    "Subclass", "Scalar", "BufferClass", "Uninitialized", "Frozen",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", NETS)
def test_a_net_goes_through_all_that_is_done_with_nets(name: str, nets: Path, dlrun: Callable[..., Any]) -> None:
    own = "trusted_modules=[user_nets]"
    words = ("data=blobs", "data.val_fraction=0.2", "data.train_rows=30", "data.batch_size=8", "trainer.epochs=3",
             "trainer.accumulate_steps=2", "trainer.ema_decay=0.9", f"model._target_=user_nets.{name}",
             "tracking.graph=false", "figures=false")  # fmt: skip
    is_parametrized = name in ("WeightNorm", "SpectralNorm")
    form = "checkpoint.format=state_dict" if is_parametrized else "checkpoint.format=full"
    reference = dlrun(*words, form, "hydra.run.dir=whole")
    assert reference.code == 0, reference.err
    stopped = dlrun(*words, "hydra.run.dir=half", "trainer.max_steps=3")
    assert stopped.code == 0, stopped.err
    resumed = dlrun("resume", "half", own, "trainer.max_steps=null")
    assert resumed.code == 0, resumed.err

    results = [json.loads(Path(folder, "result.json").read_text()) for folder in ("whole", "half")]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert not any("resume" in text for result in results for text in result["warnings"])
    assert Path("whole/metrics.jsonl").read_text() == Path("half/metrics.jsonl").read_text()
    assert is_parametrized or results[0]["measured"]["reload_difference"] == 0

    for command in (("eval", "half", own, "figures=false"), ("predict", "half", own, "--", "0.1,0.2")):
        outcome = dlrun(*command)
        assert outcome.code == 0, (command, outcome.err)
    exported = dlrun("export", "half", own, "format=safetensors")
    # A file of tensors has no place for extra state.
    assert exported.code == (2 if "_extra_state" in exported.err else 0), exported.err
    run = api.load("half", trusted_modules=["user_nets"])
    rows = [json.loads(line) for line in Path("half/metrics.jsonl").read_text().splitlines()]
    best = rows[results[0]["best"]["epoch"] - 1]
    with torch.no_grad():
        outputs = run.model(*run.splits.val.inputs)
    assert float(nn.functional.cross_entropy(outputs, run.splits.val.targets)) == pytest.approx(best["val/loss"])


@pytest.mark.slow
def test_buffers_that_a_net_makes_go_with_the_run(nets: Path, dlrun: Callable[..., Any]) -> None:
    own = "trusted_modules=[user_nets]"
    words = (*QUIET, "trainer.ema_decay=0.9", "model._target_=user_nets.GrownBuffer")
    assert dlrun(*words, "hydra.run.dir=whole").code == 0
    assert dlrun(*words, "hydra.run.dir=half", "trainer.max_steps=4").code == 0
    resumed = dlrun("resume", "half", own, "trainer.max_steps=null")
    assert resumed.code == 0, resumed.err
    hashes = [json.loads(Path(folder, "result.json").read_text())["weights_sha256"] for folder in ("whole", "half")]
    assert hashes[0] == hashes[1]
    assert dlrun("eval", "half", own).code == 0


def test_only_buffers_made_in_forward_are_given_to_a_net() -> None:
    spec = DataSpec("vector", (2,), "multiclass", 2)
    net = nets_of_users.SetBuffer(spec)
    built = BuiltBuffers(net)
    saved = net.state_dict()
    net(torch.zeros(3, 2))
    grown = net.state_dict()
    assert built.list_created() == ["mean"]
    built.fit(saved)  # back to the weights of before
    assert net.mean is None

    fresh = nets_of_users.SetBuffer(spec)
    BuiltBuffers(fresh).fit(grown, ["mean"])
    load_weights(fresh, grown)
    others = {
        "a parameter that is gone": {**saved, "scale": torch.ones(1)},
        "a layer of another size": {**saved, "first.weight": torch.zeros(7, 2)},
    }
    for weights in others.values():
        BuiltBuffers(fresh).fit(weights)
        with pytest.raises(RuntimeError, match=r"scale|first\.weight"):
            load_weights(fresh, weights)
    for name in ("forward", "first", "last.weight", "no such", "nowhere.mean", "__class__", ""):
        BuiltBuffers(fresh).fit({name: torch.ones(9)}, [name])
    assert set(fresh.state_dict()) == set(grown)
    norm = nn.BatchNorm1d(3)
    BuiltBuffers(norm).fit({"running_mean": torch.zeros(9)}, ["running_mean"])
    assert norm.running_mean is not None
    assert norm.running_mean.shape == (3,)


@pytest.mark.parametrize("name", ["MadeBuffer", "GrownBuffer", "OldWeightNorm", "OldSpectralNorm", "Counting"])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_an_average_is_that_written_by_hand(name: str) -> None:
    torch.manual_seed(0)
    net = getattr(nets_of_users, name)(DataSpec("vector", (2,), "multiclass", 2))
    net(torch.randn(5, 2))  # it keeps what it has computed, as in a run that goes on
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    average = ExponentialMovingAverage(net, optimizer, 0.8)
    expected: dict[str, torch.Tensor] = {}
    for step in range(4):
        net.zero_grad()
        net(torch.randn(5, 2)).square().mean().backward()
        optimizer.step()
        for key, parameter in net.named_parameters():
            now = parameter.detach().clone()
            expected[key] = now if step == 0 else 0.8 * expected[key] + 0.2 * now
    averages = average.state_dict()["model"]
    for key, value in net.state_dict().items():
        if key in expected:
            torch.testing.assert_close(averages[key], expected[key])
        elif isinstance(value, torch.Tensor):
            torch.testing.assert_close(averages[key], value, rtol=0, atol=0)
        else:
            assert averages[key] == value


def test_complex_numbers_stay_complex() -> None:
    for dtype in (torch.float32, torch.float64):
        net = set_precision(nets_of_users.ComplexBuffer(DataSpec("vector", (2,), "multiclass", 2)), dtype)
        assert net.phase.is_complex()
        assert net.first.weight.dtype == dtype


MIXED = ("data._target_=mixed_inputs.rows", "model._target_=mixed_inputs.Net", "trainer.epochs=2", *QUIET[3:])


@pytest.mark.slow
def test_inputs_of_several_kinds_train_in_any_layout(tmp_path: Path, dlrun: Callable[..., Any]) -> None:
    shutil.copy(Path(__file__).parents[1] / "mixed_inputs.py", tmp_path)
    losses = {}
    for layout in ("true", "false"):
        outcome = dlrun(*MIXED, f"device.channels_last={layout}", f"hydra.run.dir=run_{layout}")
        assert outcome.code == 0, outcome.err
        losses[layout] = [json.loads(line) for line in Path(f"run_{layout}", "metrics.jsonl").read_text().splitlines()]
    for row, other in zip(losses["true"], losses["false"], strict=True):
        assert row == pytest.approx(other, rel=1e-4)


@pytest.mark.slow
def test_several_inputs_are_given_in_python(tmp_path: Path, dlrun: Callable[..., Any]) -> None:
    shutil.copy(Path(__file__).parents[1] / "mixed_inputs.py", tmp_path)
    own = "trusted_modules=[mixed_inputs]"
    assert dlrun(*MIXED, "trainer.max_steps=1", "hydra.run.dir=run").code == 0
    refused = dlrun("predict", "run", own, "pictures.npy")
    assert refused.code == 2
    advice, _, call = refused.err.strip().rpartition(": ")
    assert advice == (
        "dlrun: the model takes 4 inputs (picture, table, series, volume), and predict reads one; give it tensors of "
        "rows in Python"
    )
    run = api.load("run", trusted_modules=["mixed_inputs"])
    inputs = dict(zip(("picture", "table", "series", "volume"), run.splits.test.inputs, strict=True))
    assert eval(call, {"dlrun": api, **inputs}).shape == (20, 2)
    with pytest.raises(RequestError, match=r"takes 4 inputs .*\.model\(picture, table, series, volume\)"):
        run.predict(run.splits.test.inputs)
    no_script = dlrun("export", "run", own, "format=python")
    assert no_script.code == 2
    assert "format=onnx and format=safetensors take the model itself" in no_script.err


@pytest.mark.slow
def test_inputs_of_several_kinds_go_through_all_that_is_done_with_a_run(
    tmp_path: Path, dlrun: Callable[..., Any]
) -> None:
    shutil.copy(Path(__file__).parents[1] / "mixed_inputs.py", tmp_path)
    own = "trusted_modules=[mixed_inputs]"
    outcome = dlrun(*MIXED, "figures=true", "tracking.graph=true", "checkpoint.format=full", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert dlrun("resume", "run", own, "trainer.epochs=3").code == 0
    evaluated = dlrun("eval", "run", own)
    assert evaluated.code == 0, evaluated.err
    run = api.load("run", trusted_modules=["mixed_inputs"])
    assert run.model(*run.splits.test.inputs).shape == (20, 2)
    assert dlrun("export", "run", own, "format=safetensors").code == 0
    assert dlrun("export", "run", own, "format=onnx").code == 0


@pytest.mark.slow
def test_a_net_that_cannot_be_traced_is_named_where_it_fails(tmp_path: Path, dlrun: Callable[..., Any]) -> None:
    (tmp_path / "untraceable.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def __init__(self, spec): super().__init__(spec.input_size, spec.output_size)\n"
        "    def forward(self, x):\n"
        "        if torch.jit.is_tracing():\n"
        "            raise ValueError('odd')\n"
        "        return super().forward(x)\n"
    )
    words = ("data=blobs", "model._target_=untraceable.Net", "trainer.max_steps=1", "figures=false")
    outcome = dlrun(*words, "tracking.graph=true")
    assert outcome.code == 0
    assert "TensorBoard shows no graph: ValueError: odd (untraceable.py, line 6)" in outcome.out


@pytest.mark.slow
@pytest.mark.usefixtures("warm_check_resume")
def test_check_resume_takes_extra_state(nets: Path, dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("check", "resume", "data=blobs", "model._target_=user_nets.Counting")
    assert outcome.code == 0, outcome.err
    assert "the same run, to the last bit" in outcome.out
