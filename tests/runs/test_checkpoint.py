"""Checkpoint files are whole or not there, and run nothing when they are read."""

import contextlib
import hashlib
import importlib
import io
import math
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dlrun.core.errors import CheckpointError, RunError
from dlrun.data.files import tensors
from dlrun.data.files.tensors import load_weights
from dlrun.engine import plain
from dlrun.runs import checkpoint
from dlrun.runs.checkpoint import hash_weights, load, save

STATE = {"format_version": 1, "model": {"w": torch.arange(6.0).view(2, 3)}, "optimizer": {}, "config": {"a": [1, "b"]}}


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def pickle_state(thing: Any) -> bytes:
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save(tmp_path / "step_00000001.pt", STATE)
    return tmp_path / "step_00000001.pt"


@pytest.mark.parametrize("read", [load, lambda path: torch.load(path, weights_only=True)], ids=["dlrun", "torch"])
def test_what_was_saved_comes_back(read: Callable[[Path], Any], path: Path) -> None:
    state = read(path)
    assert torch.equal(state.pop("model")["w"], torch.arange(6.0).view(2, 3))
    assert state == {"format_version": 1, "optimizer": {}, "config": {"a": [1, "b"]}}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut in the middle": lambda content: content[: len(content) // 2],
    "cut by a byte": lambda content: content[:-1],
    "a byte longer": lambda content: content + b"x",
    "a bit of the tensor": lambda content: flip(content, content.index(torch.arange(6.0).numpy().tobytes()) + 9),
    "a bit of the first byte": lambda content: flip(content, 0),
    "a bit of the checksum": lambda content: flip(content, len(content) - 5),
    "text": lambda content: b"epoch,loss\n" * 50,
    "torch's own file": lambda content: pickle_state({"w": torch.ones(1)}),
    "a plain pickle": lambda content: pickle.dumps({"format_version": 1}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_or_foreign_file_is_named(damage: Callable[[bytes], bytes], path: Path) -> None:
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
def test_another_format_is_refused(version: Any, path: Path) -> None:
    save(path, STATE | {"format_version": version})
    with pytest.raises(CheckpointError, match=f"{path} has checkpoint format {version}; this dlrun reads format 1"):
        load(path)


@pytest.mark.parametrize(
    ("environment", "refused"),
    [('{"run_id": "mine"}', True), ('{"run_id": "theirs"}', False), ("{}", False), ("[", False), (None, False)],
)
def test_the_checkpoint_of_another_run_is_named(environment: str | None, refused: bool, tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    path.parent.mkdir(parents=True)
    if environment is not None:
        (tmp_path / "run" / "environment.json").write_text(environment)
    save(path, STATE | {"run_id": "theirs"})
    with pytest.raises(CheckpointError, match="of another run") if refused else contextlib.nullcontext():
        assert load(path)["run_id"] == "theirs"


@pytest.mark.parametrize("content", [[1, 2], torch.ones(2), 3])
def test_a_checkpoint_of_something_else_is_refused(content: Any, path: Path) -> None:
    save(path, content)
    with pytest.raises(CheckpointError, match="checkpoint format None"):
        load(path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"there is no checkpoint {tmp_path / 'none.pt'}"):
        load(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match=f"{tmp_path} cannot be read"):
        load(tmp_path)


def test_reading_runs_no_code(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "bomb"
    with monkeypatch.context() as patched:
        patched.setattr(plain, "encode", lambda state: state)  # which refuses to write it
        save(path, STATE | {"config": Bomb(marker)})  # with the right checksum
    with pytest.raises(CheckpointError, match="holds more than tensors and plain values"):
        load(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # so the bomb was live


def test_a_full_model_is_opened_only_when_trusted(tmp_path: Path) -> None:
    path, model = tmp_path / "model.pt", nn.Linear(2, 1)
    checkpoint.export_full_model(model, path)
    with pytest.raises(CheckpointError, match="if you trust it add trust=true"):
        checkpoint.load_full_model(path, trust=False)
    opened = checkpoint.load_full_model(path, trust=True)
    assert torch.equal(opened(torch.ones(1, 2)), model(torch.ones(1, 2)))
    bomb = tmp_path / "bomb.pt"
    bomb.write_bytes(pickle_state(Bomb(tmp_path / "marker")))
    with pytest.raises(CheckpointError):
        checkpoint.load_full_model(bomb, trust=False)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(("thing", "message"), [({"w": 1}, "holds a dict, not a model"), (b"junk", "cannot be opened")])
def test_a_full_model_must_be_one(thing: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(thing if isinstance(thing, bytes) else pickle_state(thing))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load_full_model(path, trust=True)


def test_a_model_that_cannot_be_pickled_says_so(tmp_path: Path) -> None:
    class Local(nn.Module):
        pass

    with pytest.raises(RunError, match=r"checkpoint\.format=full: this model cannot be pickled"):
        checkpoint.export_full_model(Local(), tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


MYNET = """
from torch import nn
class {name}(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.last = nn.Linear(spec.input_size, spec.output_size)
    def forward(self, x):
        return self.last(x)
"""


@pytest.mark.slow
def test_a_class_that_has_gone_is_named_and_the_weights_still_serve(
    dlrun: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "net_that_goes.py"
    code.write_text(MYNET.format(name="Net"))
    quiet = ("figures=false", "tracking.graph=false", "trainer.epochs=1")
    outcome = dlrun("data=line", "model._target_=net_that_goes.Net", "checkpoint.format=full", *quiet)
    assert outcome.code == 0, outcome.err
    full = outcome.folder / "checkpoints" / "model.pt"

    def fail_to_open() -> str:
        monkeypatch.delitem(sys.modules, "net_that_goes")
        importlib.invalidate_caches()
        answered = dlrun("eval", str(full), "trust=true", "figures=false")
        assert answered.code == 2
        assert answered.err.startswith(f"dlrun: {full} needs the class Net of the module net_that_goes, which cannot")
        assert answered.err.count("\n") == 1
        assert "run this from the folder that holds net_that_goes.py" in answered.err
        return str(answered.err)

    code.write_text(MYNET.format(name="Renamed"))
    assert "Can't get attribute 'Net' on <module 'net_that_goes'" in fail_to_open()
    renamed = dlrun(
        "eval", str(outcome.folder), "model._target_=net_that_goes.Renamed", "figures=false"
    )  # as the sentence says
    assert renamed.code == 0, renamed.err
    code.unlink()
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    assert "No module named 'net_that_goes'" in fail_to_open()


def test_a_class_of_a_notebook_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Net(nn.Module):
        pass

    Net.__module__, Net.__qualname__ = "__main__", "Net"
    monkeypatch.setattr(sys.modules["__main__"], "Net", Net, raising=False)
    checkpoint.export_full_model(Net(), tmp_path / "model.pt")
    assert isinstance(checkpoint.load_full_model(tmp_path / "model.pt", trust=True), Net)
    monkeypatch.delattr(sys.modules["__main__"], "Net")
    with pytest.raises(CheckpointError, match=r"needs the class Net of the module __main__.*the script or notebook"):
        checkpoint.load_full_model(tmp_path / "model.pt", trust=True)


def difference(model: nn.Module, folder: Path) -> float:
    inputs = (torch.rand(4, 2, 5, 5),)
    return checkpoint.measure_reload_difference(
        folder / "model.pt", folder / "best.pt", model, inputs, contextlib.nullcontext
    )


def test_saved_both_ways_the_outputs_are_equal_to_the_bit(tmp_path: Path) -> None:
    model = net()
    model(torch.rand(8, 2, 5, 5))  # batch norm's statistics are part of it
    checkpoint.export_full_model(model, tmp_path / "model.pt")
    save(tmp_path / "best.pt", {"format_version": 1, "model": model.state_dict()})
    other = net(seed=1)  # what it holds now does not matter, and stays
    before = hash_weights(other)
    assert difference(other, tmp_path) == 0.0
    assert hash_weights(other) == before
    assert other.training


def test_saved_both_ways_a_difference_is_measured(tmp_path: Path) -> None:
    model = net().eval()
    checkpoint.export_full_model(model, tmp_path / "model.pt")
    with torch.no_grad():
        model[0].bias[1] += 0.5  # type: ignore[index, operator]
    save(tmp_path / "best.pt", {"format_version": 1, "model": model.state_dict()})
    assert difference(model, tmp_path) == pytest.approx(0.5, abs=1e-5)


def test_a_full_model_is_told_from_a_checkpoint(path: Path, tmp_path: Path) -> None:
    checkpoint.export_full_model(nn.Linear(2, 1), tmp_path / "model.pt")
    (tmp_path / "text").write_text("short")
    actual = {name: checkpoint.is_full_model(tmp_path / name) for name in (path.name, "model.pt", "text", "none")}
    assert actual == {path.name: False, "model.pt": True, "text": False, "none": False}


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))


def test_the_fingerprint_is_sha256_over_keys_types_shapes_and_bytes() -> None:
    model, digest = net(), hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.numpy().astype(tensor.numpy().dtype.newbyteorder("<")).tobytes())
    assert hash_weights(model) == digest.hexdigest()


def test_the_fingerprint_does_not_depend_on_how_the_weights_lie() -> None:
    class Turned(nn.Module):  # the same keys, registered the other way round
        def __init__(self) -> None:
            super().__init__()
            for name, child in reversed(list(net().named_children())):
                self.add_module(name, child)

    wide = net().to(memory_format=torch.channels_last)
    assert not wide.state_dict()["0.weight"].is_contiguous()
    assert list(Turned().state_dict()) != list(net().state_dict())
    assert hash_weights(net()) == hash_weights(Turned()) == hash_weights(wide)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a weight": lambda model: model[0].weight[2, 1, 2, 2].add_(1e-6),
    "a buffer": lambda model: model[1].num_batches_tracked.add_(1),
    "a dtype": lambda model: model.double(),
    "a shape": lambda model: model[0].weight.set_(model[0].weight.view(3, 2, 9, 1)),
    "a key": lambda model: model[1].register_buffer("more", torch.zeros(0)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_fingerprint_sees_every_change(change: Callable[[Any], Any]) -> None:
    model = net()
    with torch.no_grad():
        change(model)
    assert hash_weights(model) != hash_weights(net())


def expand_tensor() -> torch.Tensor:
    return torch.ones(1).expand(10**12)


WRONG: dict[str, Any] = {
    "model a list": {"model": [1]},
    "model of numbers": {"model": {"w": 3}},
    "model by number": {"model": {math.nan: torch.ones(1)}},
    "sparse": {"model": {"w": torch.eye(3).to_sparse()}},
    "meta": {"model": {"w": torch.ones(3, device="meta")}},
    "expanded": {"model": {"w": expand_tensor()}},
    "expanded elsewhere": {"optimizer": {"state": {0: {"m": expand_tensor()}}, "param_groups": []}},
    "epoch -1": {"epoch": -1},
    "epoch true": {"epoch": True},
    "epoch text": {"epoch": "3"},
    "step half": {"step": 1.5},
    "config a list": {"config": [1]},
    "config of lists": {"config": {"data": [1]}},
    "config epochs": {"config": {"trainer": {"epochs": "many"}}},
    "config patience": {"config": {"trainer": {"epochs": 1, "early_stopping": {"patience": "x"}}}},
    "choices": {"choices": {"model": 5}},
    "choices a number": {"choices": 5},
    "spec": {"spec": 5},
    "spec kind": {"spec": {"kind": "odd"}},
    "spec shape": {"spec": {"input_shape": [2**40]}},
    "spec size": {"spec": {"output_size": -1}},
    "spec names": {"spec": {"task": "multiclass", "output_size": 5, "class_names": ["a"]}},
    "spec other": {"spec": {"odd": 1}},
    "ema": {"ema": {"steps": "x", "model": {}}},
    "progress": {"progress": {"step": [1]}},
    "progress apart": {"step": 3, "progress": {"step": 4}},
    "early_stopping": {"early_stopping": {"best_epoch": "x"}},
    "metrics": {"metrics": {"val/loss": "low"}},
    "rng": {"rng": {"python": [3, [1], None]}},
    "optimizer": {"optimizer": {"state": [], "param_groups": 3}},
    "scheduler": {"scheduler": {"steps": -2}},
    "totals": {"totals": {"sums": {"n": 3}}},
    "others": {"others": [{"rng": 3}]},
    "run_id": {"run_id": 5},
    "rows": {"rows": "x"},
    "processes": {"processes": -1},
    "numpy": {"numpy": [[["config", "seed"], "scalar", "<i8"]]},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_whatever_is_not_of_its_type_is_refused(wrong: dict[str, Any], path: Path) -> None:
    file = io.BytesIO()
    torch.save(STATE | wrong, file)
    path.write_bytes(sign(file.getvalue()))
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path} ")
    assert len(str(caught.value)) < 400


def sign(archive: bytes) -> bytes:
    """An archive with the comment and the checksum that dlrun asks for."""
    head = archive[:-2] + checkpoint._COMMENT_BYTES.to_bytes(2, "little")
    return head + checkpoint._MARK + hashlib.sha256(head).hexdigest().encode()


def nest(levels: int) -> list[Any]:
    inside: list[Any] = []
    for _ in range(levels):
        inside = [inside]
    return inside


def nest_twice(levels: int) -> list[Any]:
    inside: list[Any] = []
    for _ in range(levels):
        inside = [inside, inside]
    return inside


@pytest.mark.parametrize("thing", [nest(150), nest_twice(60)], ids=["deep", "wide"])
def test_a_small_file_does_not_stand_for_much(thing: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "_MOST_VALUES", 10_000)  # to count as far as in earnest takes 3 s
    path.write_bytes(sign(pickle_state(STATE | {"scheduler": {"scheduler": {"x": thing}}})))
    with pytest.raises(CheckpointError, match=r"is not opened: it (is nested|holds) more than"):
        load(path)


def test_a_compressed_archive_is_not_unpacked(path: Path) -> None:
    stored, packed = io.BytesIO(pickle_state(STATE | {"model": {"w": torch.zeros(10**6)}})), io.BytesIO()
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    path.write_bytes(sign(packed.getvalue()))
    with pytest.raises(CheckpointError, match=r"is not opened: its [\d,]+ bytes stand for 4,"):
        load(path)


@pytest.mark.parametrize("kind", [torch.complex64, torch.int8, torch.bool])
def test_weights_of_another_kind_are_not_converted(kind: torch.dtype) -> None:
    net = nn.Linear(2, 1)
    weights = {"weight": torch.ones(1, 2, dtype=kind), "bias": torch.ones(1)}
    with pytest.raises(RuntimeError, match=f"weight is {kind} there, and torch.float32 in this model"):
        load_weights(net, weights)
    load_weights(net, {"weight": torch.ones(1, 2, dtype=torch.bfloat16), "bias": torch.ones(1)})
