"""What a user sees in a real terminal while something trains, and what stays when it has ended."""

import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed: no terminal to look into"),
]

SIZES = [(80, 24), (120, 40)]
QUIET = "data=blobs tracking.graph=false figures=false trainer.log_every_steps=1"
BAR = re.compile(r"[━╸╺]{4}")


class Screen:
    """A terminal of tmux, on a server of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tmux(self, *words: str) -> str:
        socket = str(self.folder / "tmux.socket")
        outcome = subprocess.run(["tmux", "-S", socket, *words], capture_output=True, text=True, check=True)
        return outcome.stdout

    def watch(self, command: str, width: int, height: int) -> tuple[list[str], str]:
        """Run a command; returns the screens while it ran, and all that the terminal holds at the end."""
        ended = self.folder / "ended"
        line = f"cd {shlex.quote(str(self.folder))}; {command}; touch {shlex.quote(str(ended))}; sleep 1000"
        self.tmux("new-session", "-d", "-x", str(width), "-y", str(height), line)
        screens = []
        deadline = time.monotonic() + 600
        while not ended.exists() and time.monotonic() < deadline:
            screens.append(self.tmux("capture-pane", "-p"))
            time.sleep(0.05)
        assert ended.exists(), screens[-1]
        return screens, self.tmux("capture-pane", "-p", "-S", "-1000")


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Screen]:
    terminal = Screen(tmp_path)
    yield terminal
    terminal.tmux("kill-server")


@pytest.fixture
def dlrun_command(tmp_path: Path, warm: Any) -> str:
    warm.write_command(tmp_path / "dlrun", "-m", "dlrun")
    return str(tmp_path / "dlrun")


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_line_an_epoch_stays_and_the_bar_goes(screen: Screen, dlrun_command: str, width: int, height: int) -> None:
    words = f"{QUIET} trainer.epochs=10 data.rows_per_class=2000 data.batch_size=16"
    screens, end = screen.watch(f"{dlrun_command} {words}", width, height)

    live = [text for text in screens if BAR.search(text)]
    assert live
    bars = [line for text in live for line in text.splitlines() if BAR.search(line)]
    assert any(re.search(r"epoch \d+/10 .* \d+/\d+ [\d,]+ steps/s \d+:\d\d left loss \d", line) for line in bars), bars[
        -1
    ]
    # The lines above the bar leave none behind.
    assert max(text.count(" steps/s") for text in live) == 1

    assert not BAR.search(end)
    epochs = [int(number) for number in re.findall(r"^epoch +(\d+)/10  train/loss \d", end, re.MULTILINE)]
    assert epochs == [*range(1, 11)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_line_a_job_stays_and_the_table_goes(screen: Screen, dlrun_command: str, width: int, height: int) -> None:
    words = f"-m {QUIET} optimizer.lr=0.1,0.01 model.hidden_sizes=[8],[16] trainer.epochs=4"
    screens, end = screen.watch(f"{dlrun_command} {words}", width, height)
    assert "preparing 4 runs" in end
    assert any("running" in text and BAR.search(text) for text in screens)

    assert not BAR.search(end)
    jobs = re.findall(r"^(\d)/4  .*val/loss|^(\d)/4  .*train/loss", end, re.MULTILINE)
    assert [one or other for one, other in jobs] == ["1", "2", "3", "4"]
    # No line is folded.
    assert len(re.findall(r"^\d/4  .*( s|left)$", end, re.MULTILINE)) == 4
