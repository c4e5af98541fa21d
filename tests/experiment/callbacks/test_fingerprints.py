"""fingerprints.jsonl: what the weights were after every epoch, also of a run that was resumed."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

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
    done = dlrun(*SMALL, "trainer.epochs=2", "hydra.run.dir=run")
    fingerprints = lines("run")
    assert [(line["epoch"], line["step"]) for line in fingerprints] == [(0, 0), (1, 4), (2, 8)]
    for line in fingerprints[1:]:
        assert line["weights_sha256"] == sha256(Path(f"run/checkpoints/step_{line['step']:08d}.pt"))
    assert fingerprints[-1]["weights_sha256"] == json.loads(Path("run/result.json").read_text())["weights_sha256"]
    assert len({line["weights_sha256"] for line in fingerprints}) == 3
    assert set(done.rows[0]) >= {"epoch", "step", "train/loss"}
    assert "weights_sha256" not in done.rows[0]


@pytest.mark.slow
def test_a_run_that_is_gone_on_with_has_the_lines_of_one_left_alone(dlrun: Callable[..., Any]) -> None:
    dlrun(*SMALL, "trainer.epochs=4", "hydra.run.dir=whole")
    dlrun(*SMALL, "trainer.epochs=2", "hydra.run.dir=parts")
    with Path("parts/fingerprints.jsonl").open("a") as file:  # of an epoch that was not saved, and of one cut short
        file.write('{"epoch": 3, "step": 12, "weights_sha256": "x"}\n{"epoch": 4, "st')
    assert dlrun("resume", "parts", "trainer.epochs=4").code == 0
    assert Path("parts/fingerprints.jsonl").read_bytes() == Path("whole/fingerprints.jsonl").read_bytes()
