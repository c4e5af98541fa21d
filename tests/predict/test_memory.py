"""However many inputs there are, a batch of them is in memory."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_SCRIPT = """\
import sys
from pathlib import Path
from dlrun.cli import main
sys.argv = ["dlrun", *sys.argv[1:]]
code = main()
peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
sys.stderr.write(f"{code} {peak}")
"""
FEW, MANY = 1_000, 200_000


def peak_megabytes(folder: Path, *words: str) -> float:
    """Of a process that predicts, with an answer to every row."""
    with (folder / "answers.csv").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT, "predict", *words, "--format", "csv"],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
    code, kilobytes = done.stderr.split()[-2:]
    assert code == "0", done.stderr
    return int(kilobytes) / 1024


def lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("kind", ["rows", "names"])
def test_many_inputs_take_no_more_memory_than_a_thousand(
    trained: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    if kind == "rows":
        text = "".join(f"{i},{i % 7},{i % 2}\n" for i in range(40))
        (tmp_path / "table.csv").write_text(text)
        run = trained("rows", "data=csv", f"data.path={tmp_path / 'table.csv'}", "model=mlp", "trainer.epochs=1")
        line, ending = "{},{}", "csv"
    else:
        run = trained("letters", "data=hello", "model=rnn", "trainer.epochs=1")
        line, ending = "hello", "txt"
    peaks = []
    for count in (FEW, MANY):
        path = tmp_path / f"{count}.{ending}"
        path.write_text("".join(f"{line.format(i % 40, i % 7)}\n" for i in range(count)))
        peaks.append(peak_megabytes(tmp_path, str(run), str(path)))
        assert lines(tmp_path / "answers.csv") == count + 1
    assert peaks[1] - peaks[0] < 15
