"""A stand-in for a GPU: what dlrun does on one runs here on the CPU, in this process.

Whatever is sent to a device called cuda stays on the CPU, and torch.cuda's streams, generators and counters do nothing.
It shows that the branches for a GPU are run and fit together, and nothing of its arithmetic, its memory or its time.

python tests/pretended_cuda.py SCRIPT WORDS... or -m MODULE WORDS... runs a program on it.
"""

import contextlib
import os
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dlrun.engine.acceleration import cuda_graph
from dlrun.engine.state import TrainState

FREE_BYTES = 8 * 2**30
NAME = "a pretended GPU"
CPU = torch.device("cpu")


def replace_device(value: Any) -> Any:
    """The CPU for a GPU, on its own or in a list; anything else as it is."""
    if isinstance(value, torch.device) and value.type == "cuda":
        return CPU
    if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")):
        return CPU
    return value


class OnTheCpu(TorchFunctionMode):
    """Calls torch's functions with the CPU where they are asked for a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        words = {key: replace_device(value) for key, value in (kwargs or {}).items()}
        return func(*map(replace_device, args), **words)


class OnCard(Tensor):
    """A tensor of the CPU that says it lies on a GPU: for branches that ask the tensor."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """A GPU."""
        return torch.device("cuda", 0)

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """Yes."""
        return True


class Generator(torch.Generator):
    """A generator of a GPU, which is one of the CPU."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        return super().__new__(cls, replace_device(device))


class Stream:
    """A queue of a GPU that is always empty; `waits` counts how often one was made to wait for another."""

    waits = 0

    def __init__(self, device: Any = None) -> None:
        pass

    def wait_stream(self, other: "Stream") -> None:
        Stream.waits += 1

    def synchronize(self) -> None:
        pass


class Recorder:
    """A stand-in for cuda_graph.GraphRecorder: recording computes nothing, a replay computes anew in the same memory.

    `records` and `replays` count both.
    """

    def __init__(self, state: TrainState) -> None:
        self.state, self.records, self.replays = state, 0, 0

    @contextlib.contextmanager
    def use_side_stream(self) -> Iterator[None]:
        """The block as it is."""
        yield

    def record(self, make_step: Callable[[], None]) -> Callable[[], None]:
        """What makes the step, into the memory that it had its results in the first time."""
        state, before, rng = self.state, self.copy_tensors(), torch.get_rng_state()
        make_step()
        self.records += 1
        cells = [cell.cell_contents for cell in make_step.__closure__ or ()]
        step: Any = next(content for content in cells if hasattr(content, "records"))
        records, norm = list(step.records), state.grad_norm
        gradients = [p.grad for p in state.model.parameters()]

        for tensor, value in zip(self.list_tensors(), before, strict=True):
            tensor.data.copy_(value)
        torch.set_rng_state(rng)

        def replay() -> None:
            self.replays += 1
            held, held_norm = [p.grad for p in state.model.parameters()], state.grad_norm
            make_step()
            for (outputs, _, loss), (new_outputs, _, new_loss) in zip(records, step.records, strict=True):
                outputs.copy_(new_outputs)
                loss.copy_(new_loss)
            step.records[:] = records

            for p, static, old in zip(state.model.parameters(), gradients, held, strict=True):
                if static is not None:
                    static.copy_(p.grad)
                p.grad = old
            norm.copy_(state.grad_norm)
            state.grad_norm = held_norm

        return replay

    def list_tensors(self) -> list[Tensor]:
        """What a step changes: weights, buffers, moments of the optimizer."""
        moments = []
        for values in self.state.optimizer.state.values():
            moments += [value for value in values.values() if isinstance(value, Tensor)]
        return [*self.state.model.state_dict().values(), *moments]

    def copy_tensors(self) -> list[Tensor]:
        """The same, as they are now."""
        return [tensor.detach().clone() for tensor in self.list_tensors()]


def attach_graph(
    state: TrainState, kind: str, compiled: bool, profiled: bool, note: Callable[[str], None]
) -> str | None:
    """cuda_graph.attach_graph with the recorder above."""
    reason = cuda_graph.find_obstacle(state, kind, compiled, profiled)
    if reason is None:
        recorder: Any = Recorder(state)
        state.graph_step = cuda_graph.CudaGraphStep(recorder, note)
    return reason


@contextlib.contextmanager
def pretend_cuda(cards: int = 1) -> Iterator[SimpleNamespace]:
    """A machine with GPUs, for this process; yields counters of what was asked of them."""
    calls = SimpleNamespace(synchronized=0, pinned=0)

    def synchronize(device: Any = None) -> None:
        calls.synchronized += 1

    def pin(tensor: Tensor, *_: Any) -> Tensor:
        calls.pinned += 1
        return tensor

    def autocast(device_type: str, **words: Any) -> Any:
        return real_autocast("cpu" if device_type == "cuda" else device_type, **words)

    def make_scaler(device: str = "cpu", **words: Any) -> Any:
        return real_scaler("cpu" if device == "cuda" else device, **words)

    real_autocast, real_scaler = torch.autocast, torch.amp.GradScaler
    states = [torch.Generator().get_state() for _ in range(cards)]

    def set_states(new: list[Tensor]) -> None:
        states[:] = new

    replaced: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: cards,
        "get_device_name": lambda index=0: NAME,
        "get_device_capability": lambda index=0: (9, 0),
        "get_device_properties": lambda index=0: SimpleNamespace(name=NAME, total_memory=FREE_BYTES),
        "set_device": lambda device: None,
        "current_device": lambda: 0,
        "synchronize": synchronize,
        "mem_get_info": lambda device=None: (FREE_BYTES, FREE_BYTES),
        "max_memory_allocated": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
        "Stream": Stream,
        "current_stream": lambda device=None: Stream(),
        "stream": lambda stream: contextlib.nullcontext(),
        "is_current_stream_capturing": lambda: False,
        "get_rng_state": lambda device=0: states[device].clone(),
        "set_rng_state": lambda state, device=0: states.__setitem__(device, state),
        "get_rng_state_all": lambda: [state.clone() for state in states],
        "set_rng_state_all": set_states,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
    }
    with contextlib.ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch.accelerator, "current_accelerator", return_value=None))
        stack.enter_context(mock.patch.object(Tensor, "pin_memory", pin))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        stack.enter_context(mock.patch.object(torch, "autocast", autocast))
        stack.enter_context(mock.patch.object(torch.amp, "GradScaler", make_scaler))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "'pin_memory' argument is set as true but no accelerator")
        stack.enter_context(mock.patch.object(cuda_graph, "attach_graph", attach_graph))
        stack.enter_context(OnTheCpu())
        yield calls


if __name__ == "__main__":
    # For the processes that the program starts.
    os.environ["DLRUN_TEST_CUDA"] = "pretended"
    _, *sys.argv = sys.argv
    with pretend_cuda():
        if sys.argv[0] == "-m":
            _, *sys.argv = sys.argv
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
            runpy.run_path(sys.argv[0], run_name="__main__")
