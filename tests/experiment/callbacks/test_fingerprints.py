"""fingerprints.jsonl: what the weights were after every epoch, also of a run that was resumed."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrun.core import files
from dlrun.experiment.callbacks import fingerprints
from dlrun.runs import checkpoint_manager
from dlrun.runs.tensorboard import read_scalars

SMALL = ("data=blobs", "model=mlp", "model.dropout=0.2", "tracking.graph=false", "figures=false", "checkpoint.keep=9")


def lines(folder: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "fingerprints.jsonl").read_text().splitlines()]


def sha256(file: Path) -> str:
    """weights_sha256 as DESIGN describes it, computed anew."""
    digest = hashlib.sha256()
    for key, tensor in sorted(torch.load(file, weights_only=True)["model"].items()):
        digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}|".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def test_a_line_an_epoch_and_one_before_the_first_step(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun(*SMALL, "trainer.epochs=2", "hydra.run.dir=run")
    hashes = lines("run")
    assert [(line["epoch"], line["step"]) for line in hashes] == [(0, 0), (1, 4), (2, 8)]
    for line in hashes[1:]:
        assert line["weights_sha256"] == sha256(Path(f"run/checkpoints/step_{line['step']:08d}.pt"))
    assert hashes[-1]["weights_sha256"] == json.loads(Path("run/result.json").read_text())["weights_sha256"]
    assert len({line["weights_sha256"] for line in hashes}) == 3
    assert set(outcome.rows[0]) >= {"epoch", "step", "train/loss"}
    assert "weights_sha256" not in outcome.rows[0]


@pytest.mark.slow
def test_what_waits_to_be_written_is_on_the_disk_before_a_checkpoint(
    dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "FLUSH_SECONDS", 1e9)
    save = checkpoint_manager.save_encoded
    steps: list[tuple[int, int, int]] = []

    def record(path: Path, content: dict[str, Any]) -> None:
        if path.name.startswith("step_"):
            scalars = read_scalars(Path("run"))["train/loss"]
            steps.append((content["step"], lines("run")[-1]["step"], scalars[-1][0]))
        save(path, content)

    monkeypatch.setattr(checkpoint_manager, "save_encoded", record)
    dlrun(*SMALL, "trainer.epochs=3", "hydra.run.dir=run")
    assert steps == [(4, 4, 4), (8, 8, 8), (12, 12, 12)]


@pytest.mark.slow
def test_a_run_that_is_gone_on_with_has_the_lines_of_one_left_alone(dlrun: Callable[..., Any]) -> None:
    dlrun(*SMALL, "trainer.epochs=4", "hydra.run.dir=whole")
    dlrun(*SMALL, "trainer.epochs=2", "hydra.run.dir=parts")
    with Path("parts/fingerprints.jsonl").open("a") as file:  # of an epoch that was not saved, and of one cut short
        file.write('{"epoch": 3, "step": 12, "weights_sha256": "x"}\n{"epoch": 4, "st')
    assert dlrun("resume", "parts", "trainer.epochs=4").code == 0
    assert Path("parts/fingerprints.jsonl").read_bytes() == Path("whole/fingerprints.jsonl").read_bytes()


@pytest.mark.slow
def test_a_large_model_is_hashed_beside_the_training_and_before_its_checkpoint(
    dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "_LARGE", 0)
    hash_state = fingerprints.hash_state
    early: list[list[str]] = []

    def hash_slowly(state: dict[str, Any]) -> str:
        time.sleep(0.1)
        # What has been saved of the epochs so far.
        early.append(sorted(path.name for path in Path("run/checkpoints").glob("step_*.pt")))
        return hash_state(state)

    monkeypatch.setattr(fingerprints, "hash_state", hash_slowly)
    dlrun(*SMALL, "trainer.epochs=2", "hydra.run.dir=run")
    assert early == [[], ["step_00000004.pt"]]
    hashes = {line["step"]: line["weights_sha256"] for line in lines("run")}
    assert list(hashes) == [0, 4, 8]
    for step in (4, 8):
        assert hashes[step] == sha256(Path(f"run/checkpoints/step_{step:08d}.pt"))
