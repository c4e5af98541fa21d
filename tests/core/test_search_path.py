"""The working directory comes behind everything installed: a torch.py that lies there does not run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.core.search_path import put_own_last

NAMES = ("torch", "numpy", "random", "typing", "hydra", "yaml", "json", "socket", "tempfile", "matplotlib", "pathlib")
NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.layer = nn.Linear(spec.input_size, spec.output_size)

    def forward(self, x):
        return self.layer(x)
"""
WORDS = (
    "data=line", "model._target_=mynet.Net", "trainer.max_steps=3", "tracking.graph=false", "figures=false",
)  # fmt: skip
WORKERS = ("data.loader=workers", "data.num_workers=1")
SCRIPT = f"import dlrun\nif __name__ == '__main__': dlrun.train(*{(*WORDS, *WORKERS)!r}, quiet=True)\n"
MODULE = (sys.executable, "-m", "dlrun")
# Each start of an interpreter takes seconds. The sweep is the training of `python -m dlrun`, its jobs are processes of
# another server; the script has workers; torchrun's one process is a rank like any other.
STYLES = {
    "sweep": (*MODULE, "-m", *WORDS, "seed=0,1", "sweep.jobs=2"),
    "script": (sys.executable, "train_mine.py"),
    "torchrun": (
        sys.executable,
        "-P",
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=1",
        *MODULE[1:],
        *WORDS,
    ),
}


@pytest.fixture
def crowded_folder(tmp_path: Path) -> Path:
    """A working directory with files named like installed modules, and a net of its own."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"open('ran', 'w').write('{name}')\nraise SystemExit('{name} ran')\n")
    (tmp_path / "mynet.py").write_text(NET)
    (tmp_path / "train_mine.py").write_text(SCRIPT)
    return tmp_path


def run(words: tuple[str, ...], folder: Path) -> None:
    outcome = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=600)
    assert outcome.returncode == 0, outcome.stderr
    assert not (folder / "ran").exists()


@pytest.mark.slow
def test_a_module_run_by_name_does_not_import_from_the_working_directory(crowded_folder: Path) -> None:
    run((*MODULE, "ls"), crowded_folder)


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_what_lies_in_the_working_directory_does_not_run_but_for_own_modules(style: str, crowded_folder: Path) -> None:
    run(STYLES[style], crowded_folder)


def test_what_pythonpath_names_stays_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "/elsewhere"])
    put_own_last()
    assert sys.path == ["/elsewhere", str(tmp_path)]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}/more")
    sys.path[:] = [str(tmp_path), "/more", "/elsewhere"]
    put_own_last()
    assert sys.path == [str(tmp_path), "/more", "/elsewhere"]


def test_an_own_file_that_an_installed_module_hides_is_named(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(NET)
    outcome = dlrun("data=line", "model._target_=json.Net")
    assert outcome.code == 2
    assert "the installed json has no Net, and hides json.py of the working directory; rename that file" in outcome.err
