"""Where a sweep lies: a new folder, the one to resume, and which folders are refused."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dlrun.config.request import Request
from dlrun.core.errors import RequestError
from dlrun.runs.record import LEDGER
from dlrun.sweep.continuation import choose_folder, merge_words, read_fixed_words
from dlrun.sweep.jobs import build_jobs
from dlrun.sweep.ledger import Ledger

BEGUN = ("-m", "data=blobs", "optimizer.lr=0.1,0.2", "seed=0,1")


def request(words: Sequence[str], sweep_dir: Path | None, sweep: Path) -> Request:
    """The first point of a command line, with as much of a config as `place` looks at."""
    plain = {
        "seed": 0,
        "data": {},
        "model": {},
        "task": {},
        "trainer": {},
        "sweep": {"dir": str(sweep_dir) if sweep_dir else None},
    }
    return Request(plain, {}, ["seed=0"], folder=sweep / "0", sweep=sweep, words=list(words))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A folder in which a sweep was begun."""
    folder = tmp_path / "sweep"
    folder.mkdir()
    Ledger(folder).add(build_jobs([request(BEGUN, None, folder)], folder), BEGUN)
    return folder


def test_every_start_is_a_new_sweep_unless_a_folder_is_named(sweep: Path) -> None:
    folder, ledger = choose_folder([request(BEGUN, None, sweep)])
    assert (folder, ledger.entries) == (sweep.with_name("sweep_2"), {})
    assert not folder.exists()
    folder, ledger = choose_folder([request(BEGUN, sweep, sweep)])
    assert (folder, len(ledger.entries)) == (sweep, 1)
    folder, ledger = choose_folder([request([*BEGUN, f"hydra.sweep.dir={sweep}"], None, sweep)])
    assert (folder, len(ledger.entries)) == (sweep, 1)


@pytest.mark.parametrize(
    "words",
    [
        BEGUN,
        ("-m", "seed=range(9)", "optimizer.lr=0.3,0.4", "data=blobs"),
        ("data=blobs", "optimizer.lr=0.1,0.2", "seed=0,1", "-m"),
        (*BEGUN, "sweep.jobs=2", "figures=false", "device=cpu", "tracking.graph=false", "paths.data=x", "strict=true"),
        (*BEGUN, "--config-dir", "mine"),
    ],
)
def test_more_values_and_other_ways_to_run_are_the_same_sweep(words: Sequence[str], sweep: Path) -> None:
    assert len(choose_folder([request(words, sweep, sweep)])[1].entries) == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("-m", "data=blobs", "optimizer.lr=0.1,0.2"), "it was over seed"),
        ((*BEGUN, "model=linear,mlp"), "it was not over model"),
        (("-m", "data=digits", "optimizer.lr=0.1,0.2", "seed=0,1"), "with data=blobs, not data=digits"),
        (("-m", "data=blobs,digits", "optimizer.lr=0.1,0.2", "seed=0,1"), None),
        ((*BEGUN, "sweep.points=['seed=1']"), "it was not over sweep.points"),
        ((*BEGUN, "+x.y=1"), "it was not over x.y"),
        ((*BEGUN, "~model.dropout"), "it was not over model.dropout"),
    ],
)
def test_another_sweep_is_refused(words: Sequence[str], why: str | None, sweep: Path) -> None:
    before = (sweep / LEDGER).read_bytes()
    if why is None:
        choose_folder([request(words, sweep, sweep)])
    else:
        with pytest.raises(RequestError, match=re.escape(f"holds another sweep ({why}); type another sweep.dir")):
            choose_folder([request(words, sweep, sweep)])
    assert (sweep / LEDGER).read_bytes() == before


@pytest.mark.parametrize("name", ["result.json", "notes.txt", "sweep.jsonl.bak", "0_seed=0/metrics.jsonl"])
def test_a_folder_with_something_else_in_it_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "full" / name
    path.parent.mkdir(parents=True)
    path.write_text("x")
    with pytest.raises(RequestError, match=r"full holds something, but no sweep \(sweep.jsonl\); type sweep.dir="):
        choose_folder([request(BEGUN, tmp_path / "full", tmp_path)])


def test_an_empty_folder_is_taken_and_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in (".lock", ".sweep.jsonl.123.tmp"):  # of one that was killed as it began
        (tmp_path / "empty" / name).touch()
    assert choose_folder([request(BEGUN, tmp_path / "empty", tmp_path)])[1].entries == {}
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="file holds something, but no sweep"):
        choose_folder([request(BEGUN, tmp_path / "file", tmp_path)])


@pytest.mark.parametrize("words", [("resume", "x"), BEGUN])
def test_a_ledger_that_is_damaged_is_refused(words: Sequence[str], sweep: Path) -> None:
    (sweep / LEDGER).write_bytes((sweep / LEDGER).read_bytes()[:-3])
    with pytest.raises(RequestError, match=r"sweep\.jsonl is cut short or damaged in line 3"):
        choose_folder([request(words, None if words[0] == "resume" else sweep, sweep)])


def test_words_that_replace_others_and_words_that_name_values() -> None:
    assert merge_words(BEGUN, ["seed=2", "+a=1"]) == ["data=blobs", "optimizer.lr=0.1,0.2", "seed=2", "+a=1"]
    assert merge_words(["-m", "hydra.sweep.dir=x", "~a", "seed=0"], ["a=3"]) == ["seed=0", "a=3"]
    assert read_fixed_words([*BEGUN, "figures=false"]) == {"data": "data=blobs", "optimizer.lr": "", "seed": ""}


SWEEP = ("-m", "data=blobs", "model=linear", "optimizer=sgd", "trainer.epochs=1", "figures=false")


@pytest.fixture
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlrun.sweep.comparison.plots.draw_all", lambda comparison, folder: [])


@pytest.mark.slow
@pytest.mark.usefixtures("_no_pictures")
def test_points_that_are_added_are_numbered_on_and_what_is_finished_is_kept(dlrun: Callable, tmp_path: Path) -> None:
    words = (*SWEEP, "tracking.graph=false", "optimizer.lr=0.1,0.2", "sweep.dir=s")
    assert dlrun(*words, "seed=0").code == 0
    finished = {path: path.stat().st_mtime_ns for path in Path("s").glob("*/result.json")}
    assert len(finished) == 2
    more = dlrun("resume", "s", "seed=range(2)")
    assert more.code == 0, more.err
    assert "4 runs: 2 settings × 2 seeds, 2 of them finished before" in more.out
    assert "is the same run" not in more.out
    again = dlrun(*words, "seed=0,1,2")
    assert "6 runs: 2 settings × 3 seeds, 4 of them finished before" in again.out
    names = sorted(path.parent.name for path in Path("s").glob("*/result.json"))
    assert [name.split("_")[0] for name in names] == [str(i) for i in range(6)]
    assert [name.rpartition("seed=")[2] for name in names[2:]] == ["1", "1", "2", "2"]
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert len(Ledger.read(Path("s")).entries) == 6
    nothing = dlrun("resume", "s")
    assert nothing.code == 0
    assert "nothing is left to do" in nothing.out
