"""torch.compile's work before the clock starts: nothing of the training changes by it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrun.data.batches import EpochOrder, MemoryBatches, Placement
from dlrun.data.spec import DataSpec, Split
from dlrun.engine.acceleration import compile
from dlrun.engine.evaluation import evaluation_mode

QUIET = ("tracking.graph=false", "figures=false")


def test_the_shapes_of_an_epoch_are_its_full_and_its_last_batch() -> None:
    x = torch.arange(22.0).unsqueeze(1)
    place = Placement(torch.device("cpu"), torch.float32, DataSpec("vector", (1,), "regression", 1))
    for size, sizes in ((8, [8, 6]), (11, [11, 11]), (64, [22])):
        batches = MemoryBatches(Split((x,), x), EpochOrder(22, size), place)
        assert [len(targets) for _, targets in compile._iterate_shapes(batches)] == sizes


@pytest.mark.slow
def test_warming_up_changes_nothing(dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)  # as long as that takes is tried below
    words = ("data=digits", "model=mlp", "model.dropout=0.3", "trainer.epochs=2", *QUIET)
    words = (*words, "device.precision=fp16", "trainer.grad_clip_norm=1")  # the scaler counts what it is asked for
    plain, warmed = dlrun(*words), dlrun(*words, "device.compile=true")
    assert warmed.code == 0, warmed.err
    assert warmed.rows == plain.rows
    assert warmed.result["weights_sha256"] == plain.result["weights_sha256"]
    assert plain.result["compile_seconds"] is None
    assert warmed.result["compile_seconds"] > 0
    assert "note: device.compile: the model was compiled in" in warmed.out


@pytest.mark.slow
@pytest.mark.parametrize("net", ["MadeBuffer", "GrownBuffer", "SetBuffer"])
def test_warming_up_leaves_no_buffers_behind(
    net: str, tmp_path: Path, dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(Path(__file__).parents[2] / "nets_of_users.py", tmp_path / "buffered_nets.py")
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)
    words = ("data=blobs", f"model._target_=buffered_nets.{net}", "trainer.max_steps=3", *QUIET)
    plain = dlrun(*words)
    assert not any("resume" in text for text in plain.result["warnings"])
    warmed = dlrun(*words, "device.compile=true")
    assert warmed.code == 0, warmed.err
    assert warmed.result["weights_sha256"] == plain.result["weights_sha256"]


def test_what_cannot_be_compiled_is_said_before_anything_is_written(
    dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        try:
            raise FileNotFoundError("no C++ compiler here\nand so on")
        except FileNotFoundError as error:
            raise RuntimeError("the backend failed") from error

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: setattr(self, "_compiled_call_impl", fails))
    outcome = dlrun("data=blobs", "model=mlp", "device.compile=true", *QUIET)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "dlrun: device.compile=true: no C++ compiler here; type device.compile=false\n"
    assert not Path("outputs").exists()


def test_pictures_and_probes_take_the_model_as_it_is() -> None:
    """With other shapes than the batches' it would be compiled once more."""
    model = torch.nn.Linear(1, 1)
    model._compiled_call_impl = compiled = lambda *_: "compiled"
    assert model(torch.ones(1, 1)) == "compiled"
    with evaluation_mode(model):
        assert isinstance(model(torch.ones(1, 1)), torch.Tensor)
    assert model._compiled_call_impl is compiled
    assert model.training


@pytest.mark.slow
def test_a_compiled_net_learns_the_same_and_its_start_is_told_apart(
    dlrun: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_stand_in: None
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # else it was compiled by a run before
    words = ("data=blobs", "data.val_fraction=0.2", "data.batch_size=80", "model=mlp", "model.hidden_sizes=[8]")
    words = (*words, "trainer.epochs=2", "tracking.graph=false", "figures=false")  # one size of batches
    plain, compiled = dlrun(*words), dlrun(*words, "device.compile=true", "trainer.profile=true")
    assert compiled.code == 0, compiled.err
    assert compiled.rows[-1]["val/loss"] == pytest.approx(plain.rows[-1]["val/loss"], rel=1e-3)
    assert compiled.result["compile_seconds"] > 1
    assert compiled.result["train_seconds"] < compiled.result["compile_seconds"]
    assert "shows no graph" not in compiled.out
    assert list(compiled.folder.glob("checkpoints/last.pt"))
