"""Process state of a run: device, precision, threads, seeds."""

import contextlib
import ctypes
import functools
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

# Initial scale of the loss in fp16; GradScaler halves it at every step whose gradients overflow.
START_SCALE = 2.0**16

_AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

# Without this cuBLAS is not deterministic.
_CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"

# Texts of RuntimeErrors that torch raises when it cannot allocate memory.
_OUT_OF_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class Runtime:
    """Where and how tensors are computed."""

    device: torch.device
    precision: str
    channels_last: bool | None
    compile: bool
    # The device as the terminal shows it, and why it was chosen.
    description: str
    # The processes of the run.
    ranks: Distributed = SINGLE_PROCESS
    # Batches of data.batch_size rows that make one batch of the run: as many as it had processes when it was started.
    batches_per_step: int = 1

    @property
    def dtype(self) -> torch.dtype:
        """Type of parameters and floating inputs; autocast narrows it inside the forward pass."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Context in which the forward pass runs in bf16 or fp16; does nothing for other precisions."""
        if self.precision not in _AUTOCAST_DTYPES:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=_AUTOCAST_DTYPES[self.precision])

    def make_scaler(self) -> torch.amp.GradScaler:
        """Loss scaling for fp16, whose gradients underflow otherwise; disabled for other precisions."""
        is_enabled = self.precision == "fp16"
        return torch.amp.GradScaler(self.device.type, init_scale=START_SCALE, enabled=is_enabled)


def _list_devices() -> list[str]:
    """Devices of this machine, the fastest first."""
    devices = []
    for i in range(torch.cuda.device_count()):
        devices.append(f"cuda:{i} ({torch.cuda.get_device_name(i)})")
    if torch.backends.mps.is_available():
        devices.append("mps")
    devices.append("cpu")
    return devices


def choose_device(config: DeviceConfig, ranks: Distributed = SINGLE_PROCESS) -> tuple[torch.device, str]:
    """Device that the config asks for, and its description; the ranks of one machine take its GPUs in turn.

    Raises RequestError if this machine has no such device, or if the ranks cannot share it.
    """
    devices = _list_devices()
    name = config.name
    if name == "auto":
        name = devices[0].split(":")[0]

    # Mistakes of the request come before what the machine lacks.
    if config.index is not None and name != "cuda":
        raise RequestError(f"device.index={config.index} is for cuda only, and this is {name}; leave it out")
    if ranks.world_size > 1 and config.index is not None:
        raise RequestError(f"device.index={config.index} would put all processes on one GPU; leave it out")
    if ranks.world_size > 1 and name == "mps":
        raise RequestError("several processes cannot share an mps device; type device=cpu")

    device = torch.device(name)
    if name == "cuda":
        index = config.index
        if index is None:
            # More processes than GPUs share them.
            index = ranks.local_rank % max(1, torch.cuda.device_count())
        device = torch.device("cuda", index)
    if str(device) not in [entry.split(" ")[0] for entry in devices]:
        raise RequestError(f"device {device} is not on this machine, which has {', '.join(devices)}; type device=auto")

    description = str(device)
    if config.name == "auto":
        description += " (auto)" if len(devices) > 1 else " (auto; no GPU found)"
    if ranks.world_size > 1:
        description += f", {ranks.world_size} processes"
        description += ", fsdp2" if config.strategy == "fsdp2" else ""
    if device.type == "cuda" and ranks.local_world_size > torch.cuda.device_count():
        description += ", several to a GPU"
    return device, description


@contextlib.contextmanager
def device_session(
    config: DeviceConfig,
    seed: int,
    ranks: Distributed = SINGLE_PROCESS,
    batches_per_step: int = 1,
) -> Iterator[Runtime]:
    """Set the process up for one run and restore it afterwards, so that job k of a sweep equals job k alone."""
    device, description = choose_device(config, ranks)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if device.type == "mps" and config.precision == "fp64":
        raise RequestError("device.precision=fp64 does not exist on mps; type device=cpu or device.precision=fp32")

    with preserve_switches():
        _keep_freed_memory()
        if config.num_threads not in (None, "auto"):
            torch.set_num_threads(config.num_threads)

        # Benchmarking picks the fastest kernel by timing, so that two runs may use different ones.
        torch.backends.cudnn.benchmark = not config.deterministic
        torch.backends.cudnn.deterministic = config.deterministic
        _set_fp32_precision(config.tf32)
        if config.deterministic:
            os.environ.setdefault(_CUBLAS_WORKSPACE, ":4096:8")
        _set_deterministic(config.deterministic)
        seed_everything(seed)

        yield Runtime(
            device,
            config.precision,
            config.channels_last,
            config.compile,
            description,
            ranks,
            batches_per_step,
        )


@contextlib.contextmanager
def preserve_switches() -> Iterator[None]:
    """Restore torch's threads and switches, and the global generators, on exit."""
    cudnn = torch.backends.cudnn
    threads = torch.get_num_threads()
    benchmark = cudnn.benchmark
    cudnn_deterministic = cudnn.deterministic
    deterministic = torch.are_deterministic_algorithms_enabled()
    workspace = os.environ.get(_CUBLAS_WORKSPACE)
    restore_fp32_precision = _set_fp32_precision(None)

    try:
        with preserve_rng_state():
            yield
    finally:
        if workspace is None:
            os.environ.pop(_CUBLAS_WORKSPACE, None)
        torch.set_num_threads(threads)
        cudnn.benchmark = benchmark
        cudnn.deterministic = cudnn_deterministic
        restore_fp32_precision()
        _set_deterministic(deterministic)


def _set_deterministic(is_on: bool) -> None:
    # torch also tells its compiler, whose import takes as long as that of torch itself.
    if torch.are_deterministic_algorithms_enabled() != is_on:
        torch.use_deterministic_algorithms(is_on)


def _set_fp32_precision(tf32: bool | None) -> Callable[[], None]:
    """Set how CUDA multiplies fp32 numbers, None leaves it; returns a function that restores the old setting."""
    backends: Any = torch.backends
    settings = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    before = [setting.fp32_precision for setting in settings]
    if tf32 is not None:
        for setting in settings:
            setting.fp32_precision = "tf32" if tf32 else "ieee"

    def restore() -> None:
        for setting, precision in zip(settings, before, strict=True):
            if setting.fp32_precision != precision:
                setting.fp32_precision = precision

    return restore


class _Outside:
    """Threads of this process outside of `compute_in_one_thread`, while it is inside."""

    threads: int | None = None


_outside = _Outside()


def count_threads() -> int:
    """Number of CPU threads that training computes with."""
    return _outside.threads or torch.get_num_threads()


@contextlib.contextmanager
def compute_in_one_thread() -> Iterator[None]:
    """Compute with one thread inside the block, also in processes that are forked there.

    GNU's OpenMP hangs in a forked process that computes with several threads if its parent has done so.
    """
    _outside.threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(_outside.threads)
        _outside.threads = None


def count_cores() -> int:
    """Number of CPU cores that this process may use."""
    # A container or taskset may leave fewer than there are; macOS does not tell.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _keep_freed_memory() -> None:
    """Tell glibc to keep the memory of freed activations instead of returning it to the kernel.

    It is faulted in again at every step otherwise: measured up to 1.5 times slower for small conv nets.
    See mallopt(3).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    # M_TRIM_THRESHOLD: free memory at the top of the heap from which it is returned.
    libc.mallopt(-1, 2**31 - 1)
    # M_MMAP_THRESHOLD: size from which a block is mapped, and unmapped when freed.
    libc.mallopt(-3, 2**30)


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices)."""
    random.seed(seed)
    # NumPy takes 32 bits only.
    np.random.seed(seed % 2**32)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        # torch.manual_seed does this on a CPU, and queues a call and a traceback for a GPU that never comes.
        torch.default_generator.manual_seed(seed)


def get_rng_state() -> dict[str, Any]:
    """State of every global generator, as plain types and tensors.

    Numbers are in tensors, because pickle would write each of a tuple's 600 by itself.
    """
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, torch.from_numpy(np.array(numbers, np.int64)), gauss],
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],  # type: ignore[union-attr]
    }

    if _has_cuda_generators():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


@contextlib.contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Restore every global generator on exit. It takes a tenth of the time of `get_rng_state` and `set_rng_state`."""
    python = random.getstate()
    numpy = np.random.get_state()
    generator = torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if _has_cuda_generators() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(generator)
        if devices:
            torch.cuda.set_rng_state_all(devices)


def _has_cuda_generators() -> bool:
    # Reading the state would initialize CUDA, which takes memory of every GPU.
    is_initialized: Callable[[], bool] = torch.cuda.is_initialized
    # In this order: whether CUDA is available takes 0.1 ms to tell.
    return is_initialized() and torch.cuda.is_available()


def set_rng_state(state: dict[str, Any]) -> None:
    """The inverse of `get_rng_state`; CUDA states are set if there are as many devices."""
    random.setstate(_get_python_state(state))
    np.random.set_state(_get_numpy_state(state))
    torch.set_rng_state(state["torch"])
    # A run that resumes on another machine, or a CPU, goes without.
    cuda_states = state.get("cuda", [])
    if cuda_states and len(cuda_states) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda_states)


def _get_python_state(state: dict[str, Any]) -> tuple[Any, ...]:
    version, numbers, gauss = state["python"]
    # Older checkpoints have plain numbers.
    if isinstance(numbers, torch.Tensor):
        numbers = numbers.tolist()
    return version, tuple(map(int, numbers)), gauss


def _get_numpy_state(state: dict[str, Any]) -> tuple[Any, ...]:
    name, keys, *rest = state["numpy"]
    return name, keys.numpy().astype(np.uint32), *rest


def is_rng_state(state: Any) -> bool:
    """Whether `set_rng_state` would accept the state; tried on generators of its own."""
    try:
        random.Random().setstate(_get_python_state(state))
        np.random.RandomState().set_state(_get_numpy_state(state))
        torch.Generator().set_state(state["torch"])
        return all(isinstance(device, torch.Tensor) for device in state.get("cuda", []))
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError, OverflowError):
        return False


def get_synchronizer(device: torch.device) -> Callable[[], None]:
    """Function that waits for the device's queue; needed before a clock is read, and only there."""
    if device.type == "cuda":
        return torch.cuda.synchronize
    if device.type == "mps":
        return torch.mps.synchronize
    return lambda: None


def describe_versions() -> dict[str, str]:
    """Versions of Python, the platform and the libraries that a result depends on."""
    return dict(_read_versions())


# Cached, as each job of a sweep asks for it and reading the packages' metadata takes 2 ms.
@functools.cache
def _read_versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("torch", "torchvision", "hydra-core", "omegaconf", "tensorboard", "numpy", "scikit-learn"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or one of its causes, says that there is no memory left."""
    for cause in iter_causes(error):
        if isinstance(cause, MemoryError | torch.OutOfMemoryError):
            return True
        # CPU allocators raise plain RuntimeErrors.
        if isinstance(cause, RuntimeError) and any(text in str(cause) for text in _OUT_OF_MEMORY_TEXTS):
            return True
    return False
