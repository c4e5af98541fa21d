"""Loaders are run as their users run them: as scripts of a Python that is not told of dlrun."""

import functools
import inspect
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
        done = plain(WATCHED, str(loader), *words)
        assert done.code == 0, done.err
        *lines, outputs = done.out.splitlines()
        return lines, json.loads(outputs)

    return run


@pytest.fixture(scope="session")
def operators() -> Iterator[None]:
    """torch's table of 500 ONNX operators, which it makes anew for each export: that takes a second."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nets of torchvision with layers of every kind that they have, but few: the others only repeat them."""
    from torchvision.models import densenet, mobilenetv3, resnet, vision_transformer

    blocks, _ = mobilenetv3._mobilenet_v3_conf("mobilenet_v3_small")
    cut(monkeypatch, resnet, "_resnet", layers=[1, 1, 1, 1])
    cut(monkeypatch, densenet, "_densenet", block_config=(2, 2))
    cut(monkeypatch, mobilenetv3, "_mobilenet_v3", inverted_residual_setting=blocks[:4])
    cut(
        monkeypatch,
        vision_transformer,
        "_vision_transformer",
        num_layers=2,
        num_heads=2,
        hidden_dim=24,
        mlp_dim=48,
    )


def cut(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, **settings: Any) -> None:
    """Let a function of a module take these settings, whatever it is called with."""
    function = getattr(module, name)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def make_smaller(*args: Any, **others: Any) -> Any:
        call = signature.bind(*args, **others)
        call.arguments.update(settings)
        return function(*call.args, **call.kwargs)

    monkeypatch.setattr(module, name, make_smaller)
