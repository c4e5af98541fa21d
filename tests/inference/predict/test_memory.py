"""However many inputs there are, a batch of them is in memory."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_SCRIPT = """\
import sys
from pathlib import Path
from dlrun.cli.main import main
sys.argv = ["dlrun", *sys.argv[1:]]
code = main()
peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
sys.stderr.write(f"{code} {peak}")
"""
FEW, MANY = 1_000, 60_000
MEGABYTES = 5  # an input that stays in memory takes 100 bytes or more


def predict(warm: Any, folder: Path, *words: str) -> tuple[int, float]:
    """The lines that a process answers, and its peak of memory in megabytes."""
    process = warm.start("-c", _SCRIPT, "predict", *words, "--format", "csv", cwd=folder)
    process.wait(300)
    code, kilobytes = process.err.split()[-2:]
    assert code == "0", process.err
    return process.out.count("\n"), int(kilobytes) / 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("kind", ["rows", "names"])
def test_many_inputs_take_no_more_memory_than_a_thousand(
    trained: Callable[..., Path], warm: Any, tmp_path: Path, kind: str
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
        answers, peak = predict(warm, tmp_path, str(run), str(path))
        assert answers == count + 1
        peaks.append(peak)
    assert peaks[1] - peaks[0] < MEGABYTES
