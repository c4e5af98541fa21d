"""Loaders are run as their users run them: as scripts of a Python that is not told of dlrun."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

WATCHED = """
import json, pathlib, runpy, warnings
warnings.simplefilter("error")
sys.argv = sys.argv[1:]
sys.path.insert(0, str(pathlib.Path(sys.argv[0]).parent))
outputs = runpy.run_path(sys.argv[0])["outputs"]
print(json.dumps(outputs.tolist()))
"""


@pytest.fixture
def loaded(plain: Callable[..., Any]) -> Callable[..., tuple[list[str], Any]]:
    """`loaded(folder, *words)`: what its loader prints, a line an input, and the outputs of the network."""

    def run(folder: Path, *words: str) -> tuple[list[str], Any]:
        (loader,) = folder.glob("load_*.py")
        outcome = plain(WATCHED, str(loader), *words)
        assert outcome.code == 0, outcome.err
        *lines, outputs = outcome.out.splitlines()
        return lines, json.loads(outputs)

    return run


@pytest.fixture(scope="session")
def operators() -> Iterator[None]:
    """torch's table of 500 ONNX operators, which it makes anew for each export: that takes a second."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield
