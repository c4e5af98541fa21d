"""The ledger of a sweep: what is written is read again, damage is a sentence, a full disk costs no line."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from dlrun.config.request import Request
from dlrun.core.errors import RequestError
from dlrun.runs.record import LEDGER
from dlrun.sweep.jobs import Job
from dlrun.sweep.ledger import Ledger

WORDS = ["-m", "seed=0,1"]


def job(folder: Path, number: int) -> Job:
    config = {"seed": number, "data": {"path": "é\n"}, "model": {}, "task": {}, "trainer": {}}
    request = Request(config, {"data": "blobs"}, [f"seed={number}"], folder=folder / f"{number}_seed={number}")
    return Job(number, request, f"seed={number}", f"key {number}")


@pytest.fixture
def half_ledger(tmp_path: Path) -> Ledger:
    """Two jobs, then a third; one is done, one failed."""
    ledger = Ledger(tmp_path)
    ledger.add([job(tmp_path, 0), job(tmp_path, 1)], WORDS)
    ledger.record_status("key 0", "running")
    ledger.record_status("key 0", "completed", seconds=1.5)
    ledger.add([job(tmp_path, 0), job(tmp_path, 1), job(tmp_path, 2)], ["resume", "x", "seed=2"])
    ledger.record_status("key 1", "failed", "ValueError: no\nsuch thing", 0.25)
    return ledger


def read_or_why(folder: Path) -> Ledger | str:
    """The ledger, or the sentence that refuses it."""
    try:
        return Ledger.read(folder)
    except RequestError as error:
        return str(error)


def test_what_is_noted_is_read(half_ledger: Ledger) -> None:
    outcome = Ledger.read(half_ledger.folder)
    assert outcome.words == WORDS
    assert outcome.entries == half_ledger.entries
    done, failed, new = outcome.entries.values()
    assert (done.status, done.seconds, done.folder) == ("completed", 1.5, "0_seed=0")
    assert (failed.status, failed.error) == ("failed", "ValueError: no\nsuch thing")
    assert (new.status, new.overrides, new.config["data"]) == ("pending", ["seed=2"], {"path": "é\n"})


def test_adding_what_is_there_writes_nothing(half_ledger: Ledger) -> None:
    before = half_ledger.path.read_bytes()
    half_ledger.add([job(half_ledger.folder, 0)], ["other"])
    assert half_ledger.path.read_bytes() == before


@pytest.mark.slow
def test_a_ledger_cut_anywhere_is_a_sentence_or_an_earlier_ledger(half_ledger: Ledger) -> None:
    content, complete_ends = half_ledger.path.read_bytes(), set()
    ends = {i + 1 for i, byte in enumerate(content) if byte == ord("\n")}
    for length in range(len(content)):
        half_ledger.path.write_bytes(content[:length])
        outcome = read_or_why(half_ledger.folder)
        if isinstance(outcome, Ledger):
            assert length in ends, length
            complete_ends.add((length, len(outcome.entries)))
        else:
            assert LEDGER in outcome, length
            assert "\n" not in outcome, length
    lines = content.splitlines(keepends=True)
    line_starts = [i for i in range(len(lines)) if (sum(map(len, lines[:i])), 2) in complete_ends]
    assert [next(iter(json.loads(lines[i - 1]))) for i in line_starts] == ["jobs", "key", "key"]  # and not between jobs
    assert len(complete_ends) == len(line_starts) + 1
    assert {count for _, count in complete_ends} == {2, 3}


def test_what_a_sentence_says_of_a_damaged_line_mends_it(half_ledger: Ledger) -> None:
    content = half_ledger.path.read_bytes()
    half_ledger.path.write_bytes(content[:-7])  # in the last line
    with pytest.raises(RequestError, match=r"line 9, which holds the status of a job; delete that line"):
        Ledger.read(half_ledger.folder)
    half_ledger.path.write_bytes(b"".join(content.splitlines(keepends=True)[:8]))
    assert Ledger.read(half_ledger.folder).entries["key 1"].status == "pending"


@pytest.mark.slow
def test_a_flipped_bit_is_a_sentence_or_leaves_a_ledger_of_the_right_types(half_ledger: Ledger) -> None:
    content = half_ledger.path.read_bytes()
    refused = 0
    for place in range(0, len(content), 3):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        half_ledger.path.write_bytes(flipped)
        outcome = read_or_why(half_ledger.folder)
        if isinstance(outcome, str):
            assert LEDGER in outcome
            refused += 1
        else:
            assert all(isinstance(e.number, int) and isinstance(e.config, dict) for e in outcome.entries.values())
            assert {type(e.folder) for e in outcome.entries.values()} == {str}
    assert refused > len(content) / 6


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"\x00\xff\xfe",
        b"null\n",
        b"[]\n{}\n",
        b'{"a": 1}\n',
        b'{"version": 2, "words": []}\n',
        b'{"version": 1, "words": ["-m"]}\n',
        b'{"version": 1, "words": ["-m"]}\n{"jobs": 1}\n',
        b'{"version": 1, "words": ["-m"]}\n{"config": {}, "key": "a"}\n{"jobs": 1}\n',
        b'{"version": 1, "words": ["-m"]}\n{"key": "a", "status": "running"}\n',
        b'{"version": 1, "words": ["-m"]}\n{"jobs": null}\n',
        b'{"epoch": 1, "step": 2, "train/loss": 0.5}\n',
    ],
)
def test_other_files_of_that_name_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_bytes(content)
    with pytest.raises(RequestError, match=LEDGER):
        Ledger.read(tmp_path)


def test_no_ledger_and_a_folder_of_that_name(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"sweep\.jsonl cannot be read"):
        Ledger.read(tmp_path)
    (tmp_path / LEDGER).mkdir()
    with pytest.raises(RequestError, match=r"sweep\.jsonl cannot be read"):
        Ledger.read(tmp_path)


def test_jobs_are_added_all_or_none(half_ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    before = half_ledger.path.read_bytes()

    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        half_ledger.add([job(half_ledger.folder, 3), job(half_ledger.folder, 4)], WORDS)
    assert half_ledger.path.read_bytes() == before
    assert [path.name for path in half_ledger.folder.iterdir()] == [LEDGER]
    assert len(Ledger.read(half_ledger.folder).entries) == 3


@pytest.mark.parametrize("taken", [0, 1, 20])
def test_a_full_disk_leaves_whole_lines(taken: int, half_ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    before, write = half_ledger.path.read_bytes(), os.write

    def write_little(handle: int, content: bytes) -> int:
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, content[:taken])

    monkeypatch.setattr(os, "write", write_little)
    with pytest.raises(OSError, match="No space"):
        half_ledger.record_status("key 2", "running")
    monkeypatch.undo()
    assert half_ledger.path.read_bytes() == before
    half_ledger.record_status("key 2", "completed", seconds=1.0)  # there is room again
    assert Ledger.read(half_ledger.folder).entries["key 2"].status == "completed"


@pytest.mark.parametrize(
    ("noted", "result", "status"),
    [
        ("pending", None, "pending"),
        ("failed", None, "failed"),
        ("running", None, "interrupted"),
        ("completed", None, "interrupted"),
        ("running", {"status": "completed"}, "completed"),
        ("failed", {"status": "early_stopped"}, "early_stopped"),
        ("running", {"status": "failed"}, "failed"),
        ("completed", {"status": "interrupted"}, "interrupted"),
        ("completed", "{", "interrupted"),
        ("completed", "[1]", "interrupted"),
        ("completed", {}, "interrupted"),
    ],
)
def test_the_result_of_a_job_has_the_last_word(noted: str, result: Any, status: str, half_ledger: Ledger) -> None:
    half_ledger.record_status("key 2", noted)
    entry = half_ledger.entries["key 2"]
    if result is not None:
        folder = half_ledger.folder / entry.folder
        folder.mkdir()
        (folder / "result.json").write_text(result if isinstance(result, str) else json.dumps(result))
    assert half_ledger.read_status(entry) == status


@pytest.mark.parametrize("place", ["../victim", "/tmp/victim", "a/../../victim"])
def test_a_job_that_is_said_to_lie_outside_is_refused(place: str, half_ledger: Ledger) -> None:
    text = half_ledger.path.read_text()
    inside = json.loads(text.splitlines()[1])["folder"]
    half_ledger.path.write_text(text.replace(json.dumps(inside), json.dumps(place), 1))
    with pytest.raises(RequestError, match="outside"):
        Ledger.read(half_ledger.folder)
