"""W&B without a network: an offline run that is killed and resumed, an address where nobody listens, no key."""

import importlib.util
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed"),
]

QUICK = ("data=digits", "data.limit_batches=2", "tracking.graph=false", "figures=false", "hydra.run.dir=run")


def start_dlrun(folder: Path, *words: str, **variables: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    # A home without a key.
    environment |= {"HOME": str(folder), "NETRC": str(folder / "netrc"), **variables}
    return subprocess.Popen(
        [sys.executable, "-m", "dlrun", *words],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def read_rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "run" / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")]


def read_records(path: Path) -> list[bytes]:
    """The records of a .wandb file: LevelDB's log format behind 7 bytes; a last one cut short is left out."""
    content = path.read_bytes()
    records = []
    parts = b""
    place = 7
    while place + 7 <= len(content):
        # No record begins in the last bytes of a block of 32 KiB.
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        part = content[place + 7 : place + 7 + length]
        if len(part) < length:
            break
        parts += part
        place += 7 + length
        if kind in (1, 4):
            records.append(parts)
            parts = b""
    return records


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of an offline file, in the order of their writing."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in read_records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def test_a_killed_offline_run_goes_on_under_its_id(tmp_path: Path) -> None:
    words = (*QUICK, "trainer.epochs=150", "logger=wandb", "logger.wandb.mode=offline", "run.tags=[a]")
    process = start_dlrun(tmp_path, *words)
    deadline = time.monotonic() + 120
    while len(read_rows(tmp_path)) < 6:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # wandb's own process ends once it has written what it was sent.
    time.sleep(3)
    resumed = start_dlrun(tmp_path, "resume", "run")
    out, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, out
    assert "not logged" not in out

    run_id = json.loads((tmp_path / "run" / "environment.json").read_text())["run_id"]
    oldest, newest = sorted(tmp_path.glob("outputs/wandb/wandb/offline-run-*/run-*.wandb"))
    assert oldest.stem == newest.stem == f"run-{run_id}"

    rows = {row["step"]: row for row in read_rows(tmp_path)}
    assert len(rows) == 150
    expected = {step: row["val/loss"] for step, row in rows.items()}
    history = [row for row in read_history(newest) if "epoch" in row]
    assert len(history) == 150
    assert {row["_step"]: row["val/loss"] for row in history} == expected
    # What the killed process has written is the same, as far as it goes.
    for row in read_history(oldest):
        if "epoch" in row:
            assert expected[row["_step"]] == row["val/loss"]


def test_an_address_where_nothing_listens_costs_a_note(tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{sock.getsockname()[1]}"
    words = (*QUICK, "trainer.epochs=3", "logger=wandb")
    process = start_dlrun(tmp_path, *words, WANDB_BASE_URL=address, WANDB_API_KEY="a" * 40)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert out.count("note: logger wandb:") == 1
    assert "Traceback" not in out


def test_without_a_key_nothing_begins(tmp_path: Path) -> None:
    process = start_dlrun(tmp_path, *QUICK, "logger=wandb")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "type wandb login, or logger.wandb.mode=offline" in out
    assert not (tmp_path / "run").exists()
