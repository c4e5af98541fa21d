"""How much memory a training takes, and what is said when there is not enough."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dlrun.config import compose
from dlrun.config.settings import Settings, read_settings
from dlrun.engine import device
from dlrun.experiment.preflight import memory
from dlrun.experiment.preflight.memory import Estimate

QUIET = ("tracking.graph=false", "figures=false")
HUNGRY = """
import torch
from torch import nn

class Hungry(nn.Module):
    def __init__(self, spec, gigabytes=0):
        super().__init__()
        self.layer, self.gigabytes, self.calls = nn.Linear(spec.input_size, spec.output_size), gigabytes, 0

    def forward(self, x):
        self.calls += self.training
        if self.calls > 3:
            if self.gigabytes == 0:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            x = x + torch.ones(self.gigabytes * 2**28).sum() * 0
        return self.layer(x.flatten(1))
"""


def settings(*words: str) -> Settings:
    return read_settings(compose.resolve(compose.compose_config([*words])), {})


def catch(make: Callable[[], Any]) -> BaseException:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        make()
    return caught.value


def test_what_torch_and_numpy_raise_without_memory_is_known() -> None:
    assert device.is_out_of_memory(catch(lambda: torch.empty(2**50)))
    assert device.is_out_of_memory(catch(lambda: np.empty(2**50)))
    assert device.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not device.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_an_error_that_came_from_another_is_known_too_and_a_circle_of_them_ends() -> None:
    error = ValueError("could not be built")
    error.__cause__ = MemoryError()
    assert device.is_out_of_memory(error)
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert not device.is_out_of_memory(first)


@pytest.mark.parametrize(("precision", "wide"), [("fp32", 4), ("fp64", 8), ("bf16", 2)])
def test_the_estimate_is_the_sum_by_hand(precision: str, wide: int) -> None:
    model = nn.Sequential(nn.Linear(10, 5), nn.BatchNorm1d(5))
    model[0].bias.requires_grad_(False)
    estimate = memory.estimate_memory(model, 2, 30, settings("data.batch_size=7", f"device.precision={precision}"))
    weights = 4 * (50 + 5) + 4 * (5 + 5)  # of both layers
    buffers = 4 * (5 + 5) + 8  # running mean and variance, and how many batches there were
    assert estimate == Estimate(weights + buffers, 4 * 60, 8 * 60, 30 * 7 * wide)
    assert estimate.total == sum((estimate.weights, estimate.gradients, estimate.optimizer, estimate.activations))


def test_two_processes_share_out_gradients_and_optimizer() -> None:
    model = nn.Linear(10, 5)
    shared = memory.estimate_memory(model, 2, 30, settings("device.strategy=fsdp2"), world_size=2)
    assert (shared.weights, shared.gradients, shared.optimizer) == (4 * 55, 4 * 55 // 2, 8 * 55 // 2)
    whole = memory.estimate_memory(model, 2, 30, settings(), world_size=2)
    assert (whole.gradients, whole.optimizer) == (4 * 55, 8 * 55)


def test_the_activations_are_what_the_layers_put_out(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("check", "model=mlp", "model.activation=sigmoid", "data.batch_size=1000", "data.image_size=8")
    activation_bytes = 1000 * (64 + 128 + 128 + 10) * 4  # flattened, hidden before and after the sigmoid, output
    assert f"activations of 1000 rows {activation_bytes / 2**20:.1f} MB" in outcome.out
    # No batch is larger than the training part.
    outcome = dlrun("check", "data=line", "model=linear", "optimizer=lbfgs_full")
    assert "activations of 500 rows 2.0 kB" in outcome.out


def test_a_step_that_may_not_fit_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = Estimate(2**20, 2**20, 2**20, 2**20)
    chosen, cpu = settings("data.batch_size=64"), torch.device("cpu")
    monkeypatch.setattr(memory, "measure_free_memory", lambda device: 4 * 2**20)
    assert memory.note_shortage(needed, chosen, cpu) == []
    monkeypatch.setattr(memory, "measure_free_memory", lambda device: 4 * 2**20 - 1)
    (note,) = memory.note_shortage(needed, chosen, cpu)
    assert note.startswith(
        "a step takes about 4 MB, and cpu has 4 MB left; if it runs out of memory try data.batch_size="
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["data.batch_size=64"],
            "try data.batch_size=32 trainer.accumulate_steps=2 (the same steps), device.precision=",
        ),
        (["data.batch_size=9", "trainer.accumulate_steps=3"], "try data.batch_size=4 trainer.accumulate_steps=6"),
        (
            ["data.batch_size=1", "device.precision=bf16", "data=line"],
            "=1; try data.loader=workers, or a smaller model",
        ),
    ],
)
def test_the_sentence_says_what_to_type(words: list[str], message: str) -> None:
    assert message in memory.explain_out_of_memory(settings(*words), "cuda:0")


@pytest.mark.parametrize("word", ["model.hidden_sizes=[1000000000,1000000000]", "data.image_size=100000"])
def test_too_large_to_be_built_is_a_sentence_before_anything_is_written(
    dlrun: Callable[..., Any], tmp_path: Path, word: str, device: str
) -> None:
    outcome = dlrun(word)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    place = {"cpu": "cpu", "cuda": "cuda:0"}[device]
    assert outcome.err.startswith(f"dlrun: out of memory on {place} with data.batch_size=64; try data.batch_size=32 ")
    assert not list(tmp_path.iterdir())


def check_failed(outcome: Any, tmp_path: Path, message: str) -> None:
    """A run that ran out of memory in its fourth step, with a checkpoint a step."""
    assert (outcome.code, outcome.err.count("Traceback")) == (1, 0)
    assert (
        "out of memory on cpu with data.batch_size=64; try data.batch_size=32 trainer.accumulate_steps=2" in outcome.err
    )
    assert outcome.result["status"] == "failed"
    assert "data.batch_size=64" in outcome.result["error"]
    log = (tmp_path / outcome.folder / "run.log").read_text()
    assert "Traceback" in log
    assert message in log
    assert (tmp_path / outcome.folder / "checkpoints" / "step_00000003.pt").exists()


WORDS = ("model._target_=hungry_net.Hungry", "checkpoint.every_steps=1", "device=cpu", *QUIET)


@pytest.mark.slow
def test_out_of_memory_in_training_keeps_what_was_saved(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "hungry_net.py").write_text(HUNGRY)
    try:
        check_failed(dlrun(*WORDS), tmp_path, "OutOfMemoryError: CUDA out of memory")
    finally:
        sys.modules.pop("hungry_net", None)


@pytest.mark.slow
def test_a_model_that_really_takes_too_much(
    python: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hungry_net.py").write_text(HUNGRY)
    limit = 24 * 2**30  # of addresses: torch alone reserves several GB
    code = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))\n"
    code += "import sys; from dlrun.cli.main import main; sys.exit(main())"
    outcome = python("-c", code, *WORDS, "+model.gigabytes=32")
    monkeypatch.chdir(tmp_path)
    check_failed(outcome, tmp_path, "DefaultCPUAllocator: can't allocate memory")
