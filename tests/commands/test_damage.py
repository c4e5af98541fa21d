"""Hundreds of damaged, foreign and hostile checkpoints: named, never loaded, never run."""

import builtins
import hashlib
import io
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrun.core.errors import CheckpointError
from dlrun.runs import checkpoint
from dlrun.runs.checkpoint import load, load_newest

QUIET = ("figures=false", "tracking.graph=false", "trainer.epochs=3", "checkpoint.keep=3")
MODELS = {"linear": ("data=blobs", "model=linear"), "cnn": ("data=digits", "model=cnn", "data.limit_batches=2")}


def sign(archive: bytes) -> bytes:
    """An archive with the comment and the checksum that dlrun asks for: what somebody who means harm would write."""
    head = archive[:-2] + checkpoint._COMMENT_BYTES.to_bytes(2, "little")
    return head + checkpoint._MARK + hashlib.sha256(head).hexdigest().encode()


def write_archive(thing: Any) -> bytes:
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


class Call:
    """Calls `function` when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def bombs(canary: Path, intact: bytes) -> Iterator[bytes]:
    """Pickles that would make the file `canary`, each bare, as torch's archive, and with the right checksum."""
    inner = canary.with_name("inner.pt")
    calls = [
        Call(os.system, f"touch {canary}"),
        Call(builtins.eval, f"__import__('os').system('touch {canary}')"),
        Call(builtins.exec, f"open({str(canary)!r}, 'w')"),
        Call(getattr(builtins, "open"), str(canary), "w"),  # noqa: B009
        Call(Path.touch, canary),
        Call(torch.load, str(inner), "cpu", None),
        Call(torch.save, {}, str(canary)),
        Call(shutil.copy, str(inner), str(canary)),
        Call(torch.nn.Module.__setattr__, torch.nn.Identity(), "forward", os.system),
    ]
    state = torch.load(io.BytesIO(intact), weights_only=True)
    for call in calls:
        yield pickle.dumps(call)
        for thing in (call, state | {"optimizer": call}, state | {"config": {"model": [call]}}):
            yield write_archive(thing)
            yield sign(write_archive(thing))
    yield sign(replace_content(intact, pickle.dumps(calls[0])))


def replace_content(intact: bytes, content: bytes) -> bytes:
    """A checkpoint whose data.pkl is another one, all else as it was."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(intact)) as old, zipfile.ZipFile(file, "w") as new:
        for item in old.infolist():
            new.writestr(item, content if item.filename.endswith("data.pkl") else old.read(item))
    return file.getvalue()


def make_foreign_files(intact: bytes) -> Iterator[bytes]:
    """Files of other kinds, and other things in the same wrapping."""
    yield from (b"", b"\0", b"PK", b"PK\x03\x04" * 9, b"\x89PNG\r\n\x1a\n" + bytes(99), b"epoch,loss\n" * 99)
    others: list[Any] = [torch.ones(3), {"w": torch.ones(2)}, [1, 2], "text", None, torch.nn.Linear(2, 1)]
    for thing in others:
        yield write_archive(thing)
        yield sign(write_archive(thing))
        yield pickle.dumps(thing)
    yield torch_of_old({"format_version": 1, "model": {}, "optimizer": {}})
    yield intact + intact
    yield intact + b"\n"
    yield b"\n" + intact
    yield intact.replace(checkpoint._MARK, b"other sha256 ")
    yield sign(intact[: len(intact) // 2])


def torch_of_old(thing: Any) -> bytes:
    file = io.BytesIO()
    torch.save(thing, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def iterate_damage(intact: bytes, chance: random.Random) -> Iterator[bytes]:
    """Truncations and flipped bits anywhere, more of them in the zip directory and the comment at the end."""
    size = len(intact)
    for _ in range(90):
        yield intact[: chance.randrange(size)]
    for _ in range(10):
        yield intact[: size - chance.randrange(1, 200)]
    for count, most in ((70, size), (40, 400), (30, 77)):  # from the end
        for _ in range(count):
            yield flip(intact, [size - 1 - chance.randrange(most)], chance)
    for _ in range(40):
        yield flip(intact, [chance.randrange(size) for _ in range(chance.randrange(2, 50))], chance)
    for _ in range(10):
        start = chance.randrange(size - 64)
        yield intact[:start] + bytes(64) + intact[start + 64 :]  # a block that never reached the disk
        yield intact[:start] + intact[start + 64 :]


def flip(intact: bytes, places: list[int], chance: random.Random) -> bytes:
    content = bytearray(intact)
    for place in set(places):
        content[place] ^= 1 << chance.randrange(8)
    return bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_no_damaged_checkpoint_is_loaded_or_run(model: str, dlrun: Callable[..., Any], tmp_path: Path) -> None:
    assert dlrun(*MODELS[model], *QUIET, "hydra.run.dir=run").code == 0
    folder, canary, chance = tmp_path / "run/checkpoints", tmp_path / "canary", random.Random(0)
    intact = (folder / "last.pt").read_bytes()
    (tmp_path / "inner.pt").write_bytes(write_archive(Call(Path.touch, canary)))
    files = [*iterate_damage(intact, chance), *make_foreign_files(intact), *bombs(canary, intact)]
    files = [content for content in files if content != intact]
    assert len(files) >= 350
    before = load(folder / "step_00000000.pt".replace("00000000", steps(folder)[1]))
    (folder / "last.pt").unlink()
    newest = folder / f"step_{steps(folder)[0]}.pt"
    newest.unlink()
    through_cli = set(chance.sample(range(len(files)), 12))
    for number, content in enumerate(files):
        newest.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            load(newest)
        assert str(newest) in str(caught.value)
        path, state, skipped = load_newest(folder)
        assert (path.name, state["step"], len(skipped)) == (f"step_{before['step']:08d}.pt", before["step"], 1)
        if number in through_cli:
            refused = dlrun("eval", str(newest))
            assert refused.code == 2, (number, refused.err)
            assert newest.name in refused.err
            assert len(refused.err.splitlines()) == 1
    assert not canary.exists()
    torch.load(tmp_path / "inner.pt", weights_only=False)
    assert canary.exists()  # so the bombs were live


def steps(folder: Path) -> list[str]:
    """The steps that have been saved, newest first."""
    return sorted((file.stem.removeprefix("step_") for file in folder.glob("step_*.pt")), reverse=True)


@pytest.fixture
def run(dlrun: Callable[..., Any], tmp_path: Path) -> Path:
    assert dlrun(*MODELS["linear"], *QUIET, "hydra.run.dir=run").code == 0
    return tmp_path / "run"


def break_newest(run: Path) -> str:
    newest = run / "checkpoints" / f"step_{steps(run / 'checkpoints')[0]}.pt"
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])  # last.pt and best.pt are names of the same file
    return newest.name


@pytest.mark.slow
def test_the_one_before_is_gone_on_with_and_the_run_says_so(run: Path, dlrun: Callable[..., Any]) -> None:
    intact = (run / "metrics.jsonl").read_bytes()
    name = break_newest(run)
    before = int(steps(run / "checkpoints")[1])
    outcome = dlrun("resume", "run", "trainer.epochs=4")
    assert outcome.code == 0, outcome.err
    assert (run / "metrics.jsonl").read_bytes().startswith(intact)
    messages = [note for note in outcome.result["warnings"] if "resuming from step" in note]
    assert any(name in note for note in messages)
    for note in messages:
        assert note.endswith(
            f"was cut short ({note.split('(')[1].split()[0]} bytes); resuming from step {before} instead"
        )
        assert note in (run / "run.log").read_text()
        assert note in outcome.out


@pytest.mark.slow
def test_when_none_is_whole_it_says_what_is_wrong(run: Path, dlrun: Callable[..., Any]) -> None:
    for file in (run / "checkpoints").iterdir():
        file.write_bytes(b"")
    for words in (("resume", "run", "trainer.epochs=4"), ("eval", "run"), ("data=blobs", "init_from=run")):
        outcome = dlrun(*words)
        assert outcome.code == (1 if words[0] == "resume" else 2)  # there is a run, but nothing of it can be opened
        assert "was cut short (0 bytes)" in outcome.err
        assert len(outcome.err.splitlines()) == 1


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_not_gone_on_with(run: Path, dlrun: Callable[..., Any]) -> None:
    assert dlrun(*MODELS["linear"], *QUIET, "seed=1", "hydra.run.dir=other").code == 0
    for name in ("last.pt", "best.pt"):
        (run / "checkpoints" / name).unlink()
        shutil.copy(run.parent / "other/checkpoints/last.pt", run / "checkpoints" / name)
    refused = dlrun("eval", "run")
    assert refused.code == 2
    assert "run/checkpoints/best.pt is a checkpoint of another run than the one whose folder it lies in" in refused.err
    outcome = dlrun("resume", "run", "trainer.epochs=4")
    assert outcome.code == 0, outcome.err
    assert load(run / "checkpoints/last.pt")["config"]["seed"] == 0
    assert any("last.pt is a checkpoint of another run" in note for note in outcome.result["warnings"])
