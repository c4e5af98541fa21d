"""`dlrun ls runs`: a line a run, on a terminal of 80 columns and in a pipe."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.cli.list_runs import format_columns, format_size

QUICK = ("data=blobs", "trainer.epochs=1", "tracking.graph=false", "figures=false")


@pytest.mark.slow
def test_runs_and_sweeps_in_a_pipe(dlrun: Callable[..., Any]) -> None:
    assert dlrun("ls", "runs").out == "there is no run in outputs\n"
    alone = dlrun(*QUICK, "model=mlp", "optimizer.lr=0.5").folder
    dlrun("-m", *QUICK, "model=mlp", "optimizer=sgd", "optimizer.lr=0.1,1e30")
    (sweep,) = Path("outputs/multirun").glob("*/*")
    outcome = dlrun("ls", "runs")
    header, first, second = outcome.out.splitlines()
    assert (outcome.code, outcome.err, header.split()) == (0, "", ["run", "status", "epochs", "best", "size", "choice"])
    assert first.startswith(f"{sweep}  ")
    assert "  1/2 done  " in first
    assert " sweep, 1 failed: -m " in first
    assert second.split()[:5] == [str(alone), "completed", "1", "train/loss", second.split()[4]]
    assert second.endswith("adam trainer.epochs=1 tracking.graph=false figures=false optimizer.lr=0.5")
    jobs = dlrun("ls", "runs", str(sweep)).out.splitlines()[1:]
    assert sorted(line.split()[0] for line in jobs) == sorted(str(p) for p in sweep.glob("*/") if p.name[0].isdigit())
    assert all(line.endswith("mlp blobs sgd") for line in jobs)
    failed = dlrun("ls", "runs", "status=failed").out
    assert f"{sweep}/" in failed
    assert str(alone) not in failed
    assert [line.split() for line in dlrun("ls", "runs", "--last", "1").out.splitlines()[1:]] == [first.split()]
    assert dlrun("ls", "runs", "resume=null").out.splitlines()[1:] != []
    assert dlrun("ls", "runs", "model=cnn").out == "no run matches in outputs\n"
    assert dlrun("ls", "runs", "model").code == 2


LINES = [
    (Path("outputs/2026-11-21/04-28-19_resnet_digits"), ["completed", "20", "val/loss 0.0109", "1.2 MB", "adam x=1"]),
    (Path("outputs/2026-11-20/04-28-19_inception_fashion_mnist"), ["failed", "0", "-", "9.7 kB", "sgd " + "y" * 90]),
    (Path("outputs/2026-11-20/03-28-19_mlp_digits"), ["running", "3", "-", "1.0 MB", "adam"]),
]


def test_a_terminal_has_folders_as_headings_and_lines_that_fit() -> None:
    text = format_columns(LINES, 80)
    assert max(map(len, text)) <= 80
    assert [line for line in text if not line.startswith(" ")] == [
        text[0], "outputs/2026-11-21", "outputs/2026-11-20",
    ]  # fmt: skip
    assert [line.split()[0] for line in text if line.startswith("  ")] == [folder.name for folder, _ in LINES]
    wide = format_columns(LINES, 100)
    assert max(map(len, wide)) <= 100
    assert wide[4].endswith("y…")


def test_a_pipe_has_whole_lines() -> None:
    text = format_columns(LINES, None)
    assert [line.split()[0] for line in text] == ["run", *(str(folder) for folder, _ in LINES)]
    assert all(line.endswith(cells[-1]) for line, (_, cells) in zip(text[1:], LINES, strict=True))
    assert len({line.index(cells[0]) for line, (_, cells) in zip(text[1:], LINES, strict=True)}) == 1


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, "0.0 kB"),
        (1500, "1.5 kB"),
        (999_949, "999.9 kB"),
        (999_951, "1.0 MB"),
        (2.5e9, "2.5 GB"),
        (3e13, "30,000.0 GB"),
    ],
)
def test_sizes(count: float, message: str) -> None:
    assert format_size(count) == message


@pytest.mark.slow
def test_a_real_terminal(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    folder = dlrun(*QUICK, "model=mlp").folder
    ours, theirs = pty.openpty()
    code = "import sys; from dlrun.cli.main import main; c = main(); assert 'torch' not in sys.modules; sys.exit(c)"
    words = [sys.executable, "-c", code, "ls", "runs"]
    outcome = subprocess.run(words, stdout=theirs, cwd=tmp_path, env={**os.environ, "COLUMNS": "80"})
    os.close(theirs)
    output = os.read(ours, 10_000).decode().replace("\r\n", "\n")
    assert outcome.returncode == 0
    assert output.splitlines()[1:2] == [str(folder.parent)]
    assert output.splitlines()[2].startswith(f"  {folder.name}  completed ")
    assert "\x1b" not in output


@pytest.mark.slow
def test_tags_have_a_column_and_a_mistyped_one_its_neighbours(dlrun: Callable[..., Any]) -> None:
    tagged = dlrun(*QUICK, "model=mlp", "run.tags=[baseline, long]").folder
    plain = dlrun(*QUICK, "model=mlp").folder
    header, *lines = dlrun("ls", "runs").out.splitlines()
    assert header.split() == ["run", "status", "epochs", "best", "size", "tags", "choice"]
    cells = {line.split()[0]: line[header.index("tags") : header.index("choice")].strip() for line in lines}
    assert cells == {str(tagged): "baseline,long", str(plain): ""}
    # On a terminal the choice gives way, and the tags stay.
    narrow = format_columns(
        [(tagged, ["completed", "1", "-", "1 kB", "baseline", "adam " + "y" * 90])], 80, header.split()
    )
    assert max(map(len, narrow)) <= 80
    assert "baseline  adam y" in narrow[2]

    mistyped = dlrun("ls", "runs", "tag=basline,long")
    assert (mistyped.code, mistyped.err) == (0, "note: no run has the tag basline; did you mean tag=baseline?\n")
    assert len(mistyped.out.splitlines()) == 2
    far = dlrun("ls", "runs", "tag=xyz", "format=json")
    assert (far.out, far.err) == ("[]\n", "note: no run has the tag xyz; the tags are baseline, long\n")
    assert dlrun("ls", "runs", "tag=base*").err == ""
