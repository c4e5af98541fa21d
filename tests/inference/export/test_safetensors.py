"""`dlrun export format=safetensors`: the weights as they are, and the network as source that needs torch alone."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dlrun.inference.saved_model import open_saved_model
from dlrun.runs import checkpoint

QUICK = ("tracking.graph=false", "figures=false", "trainer.epochs=1", "data.limit_batches=2", "hydra.run.dir=run")
PAIRS = [
    ("regression", "linear", ("device.precision=fp64",)),
    ("pass_fail", "logistic", ()),
    ("digits", "mlp", ("model.dropout=0.5",)),
    ("digits", "scratch_mlp", ("model.activation=relu",)),
    ("digits", "sequential", ()),
    ("digits", "cnn", ()),
    ("digits", "inception", ("model.bottleneck=false",)),
    ("digits", "resnet", ()),
    ("digits", "torchvision", ("model.name=resnet18", "data.channels=3")),
    ("digits", "torchvision", ("model.name=densenet121", "data.image_size=32")),
    ("names", "rnn", ("model.bidirectional=false",)),
    ("names", "lstm", ("model.dropout=0.3",)),
    ("names", "gru", ("device.precision=fp64", "model.layers=1")),
    ("hello", "lstm", ()),
    ("hello", "rnn_cell", ("device.precision=fp64",)),
    ("hello", "rnn_onehot", ()),
]


def is_as_in_the_run(folder: Path) -> None:
    """The tensors are the checkpoint's, and the source answers as the model does, for several numbers of rows."""
    tensors = load_file(folder / "model.safetensors")
    saved_weights = checkpoint.load(folder.parent.parent / "checkpoints" / "best.pt")["model"]
    assert tensors.keys() == saved_weights.keys()
    assert all(torch.equal(v, saved_weights[k]) and v.dtype == saved_weights[k].dtype for k, v in tensors.items())
    network = runpy.run_path(str(folder / "network.py"))["network"]
    with open_saved_model("run") as saved:
        model = saved.model.eval()
        for rows in (1, 5):
            inputs, _ = next(saved.load_held_out()[1].epoch(1))
            few = tuple(x[:rows].contiguous() for x in inputs)
            with torch.inference_mode():
                torch.testing.assert_close(network(tensors, *few), model(*few), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(("data", "model", "settings"), PAIRS)
def test_every_model_is_written_out(
    dlrun: Callable, real_data: Path, tmp_path: Path, loaded: Callable, data: str, model: str, settings: tuple[str, ...]
) -> None:
    assert dlrun(f"data={data}", f"model={model}", *settings, *QUICK).code == 0
    done = dlrun("export", "run", "format=safetensors")
    assert done.code == 0, done.err
    folder = tmp_path / "run" / "export" / "safetensors"
    is_as_in_the_run(folder)
    lines, outputs = loaded(folder)
    about = json.loads((folder / "model.json").read_text())
    np.testing.assert_allclose(outputs, about["example"]["outputs"], rtol=1e-5, atol=1e-6)
    assert len(lines) == len(outputs)


@pytest.mark.parametrize(("data", "model"), [("blobs", "mlp"), ("hello", "gru"), ("hello", "rnn_cell")])
def test_weights_source_and_what_the_file_says_of_itself(
    dlrun: Callable, tmp_path: Path, data: str, model: str
) -> None:
    assert dlrun(f"data={data}", f"model={model}", *QUICK).code == 0
    assert dlrun("export", "run", "format=safetensors").code == 0
    folder = tmp_path / "run" / "export" / "safetensors"
    is_as_in_the_run(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["spec"]) == checkpoint.load(tmp_path / "run/checkpoints/best.pt")["spec"]
    assert (metadata["model"], metadata["data"], metadata["format"]) == (model, data, "pt")
    assert "dlrun" not in (folder / "network.py").read_text()


TIED = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)
        self.last.weight = self.first.weight
        self.register_buffer("scale", torch.tensor(3.0))

    def forward(self, points):
        return self.last(self.first(points)) * self.scale + torch.arange(2) / points.shape[0]
"""


def test_weights_that_are_shared_and_numbers_of_the_users(
    dlrun: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiednet.py").write_text(TIED)
    monkeypatch.syspath_prepend(tmp_path)
    assert dlrun("data=blobs", "model._target_=tiednet.Net", *QUICK).code == 0
    done = dlrun("export", "run", "format=safetensors", "trusted_modules=[tiednet]")
    assert done.code == 0, done.err
    folder = tmp_path / "run" / "export" / "safetensors"
    tensors = load_file(folder / "model.safetensors")
    assert torch.equal(tensors["first.weight"], tensors["last.weight"])
    network = runpy.run_path(str(folder / "network.py"))["network"]
    x = torch.tensor([[1.0, 2.0]])
    y = x @ tensors["first.weight"].T + tensors["first.bias"]
    y = (y @ tensors["last.weight"].T + tensors["last.bias"]) * 3 + torch.arange(2)
    torch.testing.assert_close(network(tensors, x), y)
