"""`dlrun export format=safetensors`: the weights as they are, and what the file says of itself."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dlrun.runs import checkpoint

QUICK = ("tracking.graph=false", "figures=false", "trainer.epochs=1", "data.limit_batches=2", "hydra.run.dir=run")


@pytest.mark.slow
@pytest.mark.parametrize(("data", "model"), [("blobs", "mlp"), ("hello", "gru"), ("hello", "rnn_cell")])
def test_weights_and_what_the_file_says_of_itself(dlrun: Callable, tmp_path: Path, data: str, model: str) -> None:
    assert dlrun(f"data={data}", f"model={model}", *QUICK).code == 0
    outcome = dlrun("export", "run", "format=safetensors")
    assert outcome.code == 0, outcome.err
    file = tmp_path / "run" / "export" / "safetensors" / "model.safetensors"
    state = checkpoint.load(tmp_path / "run/checkpoints/best.pt")
    tensors = load_file(file)
    assert tensors.keys() == state["model"].keys()
    for name, value in state["model"].items():
        assert torch.equal(tensors[name], value)
        assert tensors[name].dtype == value.dtype
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata["spec"]) == state["spec"]
    assert (metadata["model"], metadata["data"], metadata["format"]) == (model, data, "pt")


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
        return self.last(self.first(points)) * self.scale
"""


@pytest.mark.slow
def test_weights_that_are_shared_are_written_under_both_names(
    dlrun: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiednet.py").write_text(TIED)
    monkeypatch.syspath_prepend(tmp_path)
    assert dlrun("data=blobs", "model._target_=tiednet.Net", *QUICK).code == 0
    outcome = dlrun("export", "run", "format=safetensors", "trusted_modules=[tiednet]")
    assert outcome.code == 0, outcome.err
    tensors = load_file(tmp_path / "run" / "export" / "safetensors" / "model.safetensors")
    assert torch.equal(tensors["first.weight"], tensors["last.weight"])
    assert tensors["scale"] == 3
