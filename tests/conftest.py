"""What every test shares: dlrun's real command line in process, in an empty working directory."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two-threaded torch beside another process is ten times slower

QUIET = ("tracking.graph=false", "figures=false")  # what costs time and is not what most tests look at


@dataclass(frozen=True)
class Done:
    """What a command line left behind."""

    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        """The run folder that the output names."""
        line = next(line for line in self.out.splitlines() if line.startswith("run folder"))
        return Path(line.removeprefix("run folder").strip())

    @property
    def result(self) -> dict[str, Any]:
        """result.json of that run."""
        return dict(json.loads((self.folder / "result.json").read_text()))

    @property
    def rows(self) -> list[dict[str, float]]:
        """metrics.jsonl of that run."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """SIGINT as a terminal's user knows it: a shell that starts the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def dlrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`dlrun(*words)`: run a command line in this process, from an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DLRUN_DATA_DIR", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*words: str) -> Done:
        from dlrun.cli import main

        monkeypatch.setattr(sys, "argv", ["dlrun", *words])
        capfd.readouterr()
        code = main()
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return run


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Done]:
    """`command(*words)`: run `python -m dlrun` as a process of its own, from an empty working directory."""

    def run(*words: str, **settings: Any) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "dlrun", *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=300,
            **settings,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def formats() -> ModuleType:
    """tests/data/published_formats.py, which writes small data sets in their published byte formats."""
    path = Path(__file__).parent / "data" / "published_formats.py"
    spec = importlib.util.spec_from_file_location("published_formats", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def real_data(monkeypatch: pytest.MonkeyPatch, dlrun: Callable[..., Done]) -> Path:
    """The folder of real data sets; the test is skipped where there is none."""
    if not REAL_DATA:
        pytest.skip("DLRUN_DATA_DIR is not set: no real data here")
    monkeypatch.setenv("DLRUN_DATA_DIR", REAL_DATA)
    return Path(REAL_DATA)


REAL_DATA = str(Path(os.environ["DLRUN_DATA_DIR"]).resolve()) if os.environ.get("DLRUN_DATA_DIR") else ""
