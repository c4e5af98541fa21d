"""Process state: which device there is, what is set for a run and put back, what a signal leaves."""

import contextlib
import io
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dlrun.config.schema import DeviceConfig
from dlrun.core.errors import RequestError
from dlrun.engine import device as runtime
from dlrun.engine import distributed
from dlrun.engine.device import Runtime

Patch = pytest.MonkeyPatch


def pretend(monkeypatch: Patch, gpus: int = 0, mps: bool = False) -> None:
    """Let torch see so many GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"Card {i}")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("gpus", "mps", "config", "chosen", "took"),
    [
        (0, False, DeviceConfig(), "cpu", "cpu (auto; no GPU found)"),
        (0, True, DeviceConfig(), "mps", "mps (auto)"),
        (2, False, DeviceConfig(), "cuda:0", "cuda:0 (auto)"),
        (2, False, DeviceConfig(index=1), "cuda:1", "cuda:1 (auto)"),
        (2, False, DeviceConfig(name="cuda", index=1), "cuda:1", "cuda:1"),
        (2, True, DeviceConfig(name="cpu"), "cpu", "cpu"),
    ],
)
def test_the_device_that_is_taken(
    gpus: int, mps: bool, config: DeviceConfig, chosen: str, took: str, monkeypatch: Patch
) -> None:
    pretend(monkeypatch, gpus, mps)
    choice, message = runtime.choose_device(config)
    assert (str(choice), message) == (chosen, took)


@pytest.mark.parametrize(
    ("gpus", "rank", "chosen", "took"),
    [
        (2, 1, "cuda:1", "cuda:1, 2 processes"),
        (1, 0, "cuda:0", "cuda:0, 2 processes, several to a GPU"),
        (1, 1, "cuda:0", "cuda:0, 2 processes, several to a GPU"),
    ],
)
def test_processes_take_the_gpus_in_turn(gpus: int, rank: int, chosen: str, took: str, monkeypatch: Patch) -> None:
    pretend(monkeypatch, gpus)
    ranks: Any = SimpleNamespace(rank=rank, local_rank=rank, world_size=2, local_world_size=2)
    device, message = runtime.choose_device(DeviceConfig(name="cuda"), ranks)
    assert (str(device), message) == (chosen, took)
    # NCCL takes no two processes on one GPU; gloo does.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    assert distributed._can_use_nccl(2) == (gpus == 2)


@pytest.mark.parametrize(
    ("gpus", "config", "message"),
    [
        (0, DeviceConfig(name="cuda"), "device cuda:0 is not on this machine, which has cpu; type device=auto"),
        (0, DeviceConfig(name="mps"), "device mps is not on this machine, which has cpu; type device=auto"),
        (2, DeviceConfig(name="cuda", index=2), "device cuda:2 is not .* has cuda:0 .Card 0., cuda:1 .Card 1., cpu;"),
        (0, DeviceConfig(index=1), "device.index=1 is for cuda only, and this is cpu; leave it out"),
        (2, DeviceConfig(index=3), "device cuda:3 is not on this machine"),
        (2, DeviceConfig(name="cpu", index=0), "device.index=0 is for cuda only, and this is cpu; leave it out"),
    ],
)
def test_a_device_that_is_not_there(gpus: int, config: DeviceConfig, message: str, monkeypatch: Patch) -> None:
    pretend(monkeypatch, gpus)
    with pytest.raises(RequestError, match=message):
        runtime.choose_device(config)


def flags() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    return (
        torch.get_num_threads(),
        cudnn.benchmark,
        cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )


@pytest.fixture
def odd_flags(monkeypatch: Patch) -> Iterator[tuple[Any, ...]]:
    """Settings that no session asks for, and the usual ones afterwards."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    before = flags()
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, True
    torch.set_num_threads(3)
    yield flags()
    torch.set_num_threads(before[0])
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before[1], before[2]
    torch.use_deterministic_algorithms(before[3])


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_a_session_sets_flags_and_puts_them_back(deterministic: bool, fails: bool, odd_flags: tuple[Any, ...]) -> None:
    config = DeviceConfig(name="cpu", num_threads=2, deterministic=deterministic)
    with pytest.raises(KeyError) if fails else runtime.device_session(config, 0), runtime.device_session(config, 0):
        assert flags() == (2, not deterministic, deterministic, deterministic)
        if fails:
            raise KeyError
    assert flags() == odd_flags


def test_null_threads_leave_the_number_as_it_is() -> None:
    before = torch.get_num_threads()
    with runtime.device_session(DeviceConfig(name="cpu"), 0) as process:
        assert torch.get_num_threads() == before
        assert process == Runtime(torch.device("cpu"), "fp32", None, False, "cpu")


def draws() -> tuple[Any, ...]:
    return random.random(), float(np.random.rand()), np.random.normal(), torch.rand(3).tolist(), torch.randn(1).item()


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 7])
def test_a_session_draws_the_same_whatever_was_drawn_before(seed: int) -> None:
    with runtime.device_session(DeviceConfig(name="cpu"), seed):
        first = draws()
    draws()
    with runtime.device_session(DeviceConfig(name="cpu"), seed):
        assert draws() == first
    with runtime.device_session(DeviceConfig(name="cpu"), seed + 1):
        assert draws()[3] != first[3]


@pytest.mark.parametrize("warm", [0, 1, 700])
def test_generators_go_on_from_a_state_that_was_in_a_file(warm: int) -> None:
    for _ in range(warm):
        draws()  # numpy keeps half of a pair of normal draws, torch a position in its block
    file = io.BytesIO()
    torch.save(runtime.get_rng_state(), file)
    file.seek(0)
    wanted = [draws(), draws()]
    runtime.set_rng_state(torch.load(file, weights_only=True))
    assert [draws(), draws()] == wanted
    assert draws() not in wanted


def test_fp64_is_refused_on_mps(monkeypatch: Patch) -> None:
    pretend(monkeypatch, mps=True)
    config = DeviceConfig(name="mps", precision="fp64")
    with (
        pytest.raises(RequestError, match=r"device\.precision=fp64 does not exist on mps"),
        runtime.device_session(config, 0),
    ):
        pass


@pytest.mark.parametrize(
    ("precision", "dtype", "product", "scales"),
    [
        ("fp32", torch.float32, torch.float32, False),
        ("bf16", torch.float32, torch.bfloat16, False),
        ("fp16", torch.float32, torch.float16, True),
        ("fp64", torch.float64, torch.float64, False),
    ],
)
def test_a_precision_is_a_dtype_an_autocast_and_a_scaler(
    precision: str, dtype: torch.dtype, product: torch.dtype, scales: bool
) -> None:
    process = Runtime(torch.device("cpu"), precision, None, False, "")
    assert process.dtype == dtype
    x = torch.ones(2, 2, dtype=process.dtype)
    with process.autocast():
        assert (x @ x).dtype == product
    assert (x @ x).dtype == dtype
    scaler = process.make_scaler()
    assert scaler.is_enabled() == scales
    loss = torch.ones((), requires_grad=True)
    assert (scaler.scale(loss) is loss) == (not scales)


def test_versions_are_those_of_the_modules() -> None:
    versions = runtime.describe_versions()
    assert (versions["torch"], versions["numpy"]) == (
        torch.__version__.split("+")[0],
        np.__version__,
    ) or "+" in versions["torch"]
    assert {"python", "platform", "hydra-core", "tensorboard"} <= versions.keys()


@pytest.mark.parametrize(("tf32", "set_to"), [(True, "tf32"), (False, "ieee"), (None, None)])
def test_tf32_is_switched_for_the_session_alone(tf32: bool | None, set_to: str | None) -> None:
    backends: Any = torch.backends
    places = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    before = [place.fp32_precision for place in places]
    with runtime.device_session(DeviceConfig(name="cpu", tf32=tf32), 0):
        inside = [place.fp32_precision for place in places]
        assert inside == (before if set_to is None else [set_to] * 3)
    assert [place.fp32_precision for place in places] == before


def test_generators_are_kept_over_a_block_that_draws() -> None:
    runtime.seed_everything(3)
    with runtime.preserve_rng_state():
        expected = (random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item())
    with contextlib.suppress(KeyError), runtime.preserve_rng_state():
        random.random()
        np.random.rand()
        torch.rand(1)
        raise KeyError
    assert (random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()) == expected
