"""Loaders are run as their users run them: as scripts of a Python that is not told of dlrun."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WATCHED = (
    "import json, runpy, sys\n"
    "sys.argv = sys.argv[1:]\n"
    "sys.path.insert(0, str(__import__('pathlib').Path(sys.argv[0]).parent))\n"
    "outputs = runpy.run_path(sys.argv[0])['outputs']\n"
    "assert not {'dlrun', 'hydra', 'omegaconf'} & set(sys.modules)\n"
    "print(json.dumps(outputs.tolist()))\n"
)


@pytest.fixture
def loaded() -> Callable[..., tuple[list[str], Any]]:
    """`loaded(folder, *words)`: what its loader prints, a line an input, and the outputs of the network."""

    def run(folder: Path, *words: str) -> tuple[list[str], Any]:
        (loader,) = folder.glob("load_*.py")
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", WATCHED, str(loader), *words],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        *lines, outputs = done.stdout.splitlines()
        return lines, json.loads(outputs)

    return run
