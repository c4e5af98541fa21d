"""Loaders are run as their users run them: as scripts of a Python that is not told of dlrun."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PLAIN = """
import sys

OURS = ("dlrun", "hydra", "omegaconf")


class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OURS:
            raise ImportError(f"{name} is imported")


for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
    del sys.modules[name]
sys.meta_path.insert(0, Refusing())
"""
WATCHED = """
import json, pathlib, runpy, warnings
warnings.simplefilter("error")
sys.argv = sys.argv[1:]
sys.path.insert(0, str(pathlib.Path(sys.argv[0]).parent))
outputs = runpy.run_path(sys.argv[0])["outputs"]
print(json.dumps(outputs.tolist()))
"""


@pytest.fixture
def plain(python: Callable[..., Any]) -> Callable[..., Any]:
    """`plain(code, *words)`: run code as a process in which neither dlrun nor Hydra can be imported."""

    def run(code: str, *words: str) -> Any:
        return python("-c", PLAIN + code, *words, timeout=600)

    return run


@pytest.fixture
def loaded(plain: Callable[..., Any]) -> Callable[..., tuple[list[str], Any]]:
    """`loaded(folder, *words)`: what its loader prints, a line an input, and the outputs of the network."""

    def run(folder: Path, *words: str) -> tuple[list[str], Any]:
        (loader,) = folder.glob("load_*.py")
        done = plain(WATCHED, str(loader), *words)
        assert done.code == 0, done.err
        *lines, outputs = done.out.splitlines()
        return lines, json.loads(outputs)

    return run
