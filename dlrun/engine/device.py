"""Process state: device, precision, threads, seeds."""

import contextlib
import ctypes
import os
import platform
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dlrun.config.schema import DeviceConfig
from dlrun.core.errors import RequestError, iter_causes
from dlrun.engine.distributed import SINGLE_PROCESS, Distributed

_SAID_BY_TORCH = ("out of memory", "can't allocate memory", "not enough memory")

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
START_SCALE = 2.0**16  # of the loss in fp16; it is halved at every step whose gradients overflow
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """Where and how tensors are computed."""

    device: torch.device
    precision: str
    channels_last: bool | None
    compile: bool
    description: str  # what the terminal says about the choice
    ranks: Distributed = SINGLE_PROCESS  # the processes of the run
    batches_per_step: int = (
        1  # of data.batch_size rows that make one of the run's batches: as many as it began with processes
    )

    @property
    def dtype(self) -> torch.dtype:
        """The type of parameters and floating inputs; autocast narrows it inside the forward pass."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The forward pass in bf16 or fp16; nothing otherwise."""
        if self.precision not in _AUTOCAST:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=_AUTOCAST[self.precision])

    def make_scaler(self) -> torch.amp.GradScaler:
        """Loss scaling for fp16, whose gradients underflow otherwise; passes everything through else."""
        enabled = self.precision == "fp16"
        return torch.amp.GradScaler(self.device.type, init_scale=START_SCALE, enabled=enabled)


def list_devices() -> list[str]:
    """What this machine has, best first."""
    names = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def choose_device(config: DeviceConfig, ranks: Distributed = SINGLE_PROCESS) -> tuple[torch.device, str]:
    """The device asked for, of a machine's processes each its own, and a few words on it; RequestError if not there."""
    there = list_devices()
    name = there[0].split(":")[0] if config.name == "auto" else config.name
    if config.index is not None and name != "cuda":
        raise RequestError(f"device.index={config.index} is for cuda only, and this is {name}; leave it out")
    if ranks.world_size > 1 and config.index is not None:
        raise RequestError(f"device.index={config.index} would put all processes on one GPU; leave it out")
    if ranks.world_size > 1 and name == "mps":
        raise RequestError("several processes cannot share an mps device; type device=cpu")
    index = ranks.local_rank if config.index is None else config.index
    device = torch.device("cuda", index) if name == "cuda" else torch.device(name)
    why = "" if config.name != "auto" else " (auto)" if len(there) > 1 else " (auto; no GPU found)"
    several = f", {ranks.world_size} processes" if ranks.world_size > 1 else ""
    return _existing(device, there), f"{device}{why}{several}"


def _existing(device: torch.device, there: list[str]) -> torch.device:
    if not any(str(device) == name.split(" ")[0] for name in there):
        raise RequestError(f"device {device} is not on this machine, which has {', '.join(there)}; type device=auto")
    return device


@contextlib.contextmanager
def device_session(
    config: DeviceConfig, seed: int, ranks: Distributed = SINGLE_PROCESS, batches_per_step: int = 1
) -> Iterator[Runtime]:
    """Set the process up for one run and put it back afterwards, so that job k of a sweep equals job k alone."""
    device, took = choose_device(config, ranks)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if device.type == "mps" and config.precision == "fp64":
        raise RequestError("device.precision=fp64 does not exist on mps; type device=cpu or device.precision=fp32")
    with preserve_switches():
        keep_freed_memory()
        if config.num_threads not in (None, "auto"):
            torch.set_num_threads(config.num_threads)
        cudnn = torch.backends.cudnn
        cudnn.benchmark, cudnn.deterministic = not config.deterministic, config.deterministic
        _fp32_precision(config.tf32)
        if config.deterministic:
            os.environ.setdefault(_CUBLAS, ":4096:8")  # without it cuBLAS refuses to be exact
        torch.use_deterministic_algorithms(config.deterministic)
        seed_everything(seed)
        wide, compiled = config.channels_last, config.compile
        yield Runtime(device, config.precision, wide, compiled, took, ranks, batches_per_step)


@contextlib.contextmanager
def preserve_switches() -> Iterator[None]:
    """torch's threads and switches, and the global generators, are afterwards as they were."""
    threads, cudnn, generators = torch.get_num_threads(), torch.backends.cudnn, get_rng_state()
    before = (cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled())
    workspace, fp32 = os.environ.get(_CUBLAS), _fp32_precision(None)
    try:
        yield
    finally:
        if workspace is None:
            os.environ.pop(_CUBLAS, None)
        torch.set_num_threads(threads)
        cudnn.benchmark, cudnn.deterministic = before[0], before[1]
        fp32()
        torch.use_deterministic_algorithms(before[2])
        set_rng_state(generators)


def _fp32_precision(tf32: bool | None) -> Callable[[], None]:
    """How CUDA multiplies fp32 numbers, where that is asked for; returns what puts it back."""
    backends: Any = torch.backends
    places = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    before = [place.fp32_precision for place in places]
    if tf32 is not None:
        for place in places:
            place.fp32_precision = "tf32" if tf32 else "ieee"

    def restore() -> None:
        for place, value in zip(places, before, strict=True):
            if place.fp32_precision != value:
                place.fp32_precision = value

    return restore


def count_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Tell glibc to keep the memory of freed activations instead of giving it back to the kernel.

    It is faulted in again at every step otherwise: measured up to 1.5 times slower for small conv nets.
    The two options are M_TRIM_THRESHOLD (-1) and M_MMAP_THRESHOLD (-3) of mallopt(3).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(-1, 2**31 - 1)
    libc.mallopt(-3, 2**30)


def seed_everything(seed: int) -> None:
    """Python's, NumPy's and torch's (all devices') global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_rng_state() -> dict[str, Any]:
    """Every global generator's state, as plain types and tensors: 600 numbers would each be pickled by themselves."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {"python": [version, torch.tensor(numbers), gauss], "torch": torch.get_rng_state()}
    state["numpy"] = [name, torch.from_numpy(keys.astype(np.int64)), *rest]  # type: ignore[union-attr]
    initialized: Callable[[], bool] = torch.cuda.is_initialized  # asking before would take memory of every GPU
    if torch.cuda.is_available() and initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """The inverse of `rng_state`; CUDA states are set when there are as many devices."""
    random.setstate(_python_state(state))
    np.random.set_state(_numpy_state(state))
    torch.set_rng_state(state["torch"])
    if len(state.get("cuda", [])) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state.get("cuda", []))


def _python_state(state: dict[str, Any]) -> tuple[Any, ...]:
    version, numbers, gauss = state["python"]
    if isinstance(numbers, torch.Tensor):  # older checkpoints have plain numbers
        numbers = numbers.tolist()
    return version, tuple(map(int, numbers)), gauss


def _numpy_state(state: dict[str, Any]) -> tuple[Any, ...]:
    name, keys, *rest = state["numpy"]
    return name, keys.numpy().astype(np.uint32), *rest


def is_rng_state(state: Any) -> bool:
    """Whether `set_rng_state` would take it; generators of its own try it."""
    try:
        random.Random().setstate(_python_state(state))
        np.random.RandomState().set_state(_numpy_state(state))
        torch.Generator().set_state(state["torch"])
        return all(isinstance(device, torch.Tensor) for device in state.get("cuda", []))
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError, OverflowError):
        return False


def get_synchronizer(device: torch.device) -> Callable[[], None]:
    """What waits for the device's queue; needed before a clock is read, and only there."""
    if device.type == "cuda":
        return torch.cuda.synchronize
    if device.type == "mps":
        return torch.mps.synchronize
    return lambda: None


def describe_versions() -> dict[str, str]:
    """Versions that a result depends on."""
    names = ("torch", "torchvision", "hydra-core", "omegaconf", "tensorboard", "numpy", "scikit-learn")
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or one that it came from, says that there is no memory left."""
    return any(
        isinstance(cause, MemoryError | torch.OutOfMemoryError)
        or (isinstance(cause, RuntimeError) and any(words in str(cause) for words in _SAID_BY_TORCH))
        for cause in iter_causes(error)
    )
