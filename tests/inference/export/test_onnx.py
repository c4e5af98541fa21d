"""`dlrun export format=onnx`: every model of ours answers in ONNX Runtime as it does in torch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from dlrun.inference.export import onnx
from dlrun.inference.saved_model import SavedModel, open_saved_model

pytestmark = pytest.mark.usefixtures("operators")

QUICK = ("tracking.graph=false", "figures=false", "trainer.epochs=1", "data.limit_batches=2", "hydra.run.dir=run")
PAIRS = [  # data, model, settings
    ("regression", "linear", ()),
    ("pass_fail", "logistic", ()),
    ("line", "mlp", ("device.precision=fp64",)),
    ("blobs", "scratch_mlp", ("data.task=binary", "model.output_activation=sigmoid", "task.loss=bce")),
    ("flower", "scratch_mlp", ("model.activation=elu", "model.hidden_sizes=[4,4]")),
    ("digits", "sequential", ()),
    ("digits", "cnn", ("device.precision=bf16",)),
    ("digits", "inception", ()),
    ("digits", "resnet", ("data.channels=3",)),
    ("digits", "torchvision", ("model.name=resnet18",)),
    ("digits", "torchvision", ("model.name=mobilenet_v3_small", "data.image_size=32")),
    ("digits", "torchvision", ("model.name=vit_b_16", "data.image_size=32")),
    ("names", "rnn", ("model.layers=1",)),
    ("names", "lstm", ("model.bidirectional=false",)),
    ("names", "gru", ("model.dropout=0.3",)),
    ("hello", "rnn", ("model.bidirectional=false",)),
    ("hello", "lstm", ()),
    ("hello", "gru", ("model.layers=3",)),
    ("hello", "rnn_cell", ()),
    ("hello", "rnn_onehot", ()),
]


def answers(folder: Path, inputs: list[Any]) -> torch.Tensor:
    """What ONNX Runtime says."""
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    named = dict(zip((entry.name for entry in session.get_inputs()), inputs, strict=True))
    return torch.from_numpy(session.run(["output"], named)[0])


def make_inputs(saved: SavedModel, rows: int, longer: int = 0) -> tuple[torch.Tensor, ...]:
    """Random inputs of so many rows; sequences of every length, some of them longer than any that was trained on."""
    torch.manual_seed(rows)
    shape = saved.spec.input_shape
    if saved.spec.kind != "tokens":
        return (torch.randn(rows, *shape),)
    width = shape[0] + longer
    lengths = torch.randint(1, width + 1, (rows,))
    lengths[0] = width
    codes = torch.randint(1, len(saved.spec.vocabulary), (rows, width))
    return codes * (torch.arange(width) < lengths[:, None]), lengths


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(("data", "model", "settings"), PAIRS)
def test_every_model_answers_as_in_torch(
    dlrun: Callable, real_data: Path, tmp_path: Path, loaded: Callable, data: str, model: str, settings: tuple[str, ...]
) -> None:
    assert dlrun(f"data={data}", f"model={model}", *settings, *QUICK).code == 0
    outcome = dlrun("export", "run")
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "run" / "export" / "onnx"
    about = json.loads((folder / "model.json").read_text())
    lines, outputs = loaded(folder)
    np.testing.assert_allclose(outputs, about["example"]["outputs"], rtol=1e-4, atol=1e-5)
    assert len(lines) == len(outputs)
    with open_saved_model("run") as saved:
        network = saved.model.float().eval()
        for rows, longer in ((1, 0), (2, 0), (37, 9)):
            inputs = make_inputs(saved, rows, longer)
            with torch.inference_mode():
                expected = network(*inputs)
            answers_of_onnx = answers(folder, [x.numpy() for x in inputs])
            torch.testing.assert_close(answers_of_onnx, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "gru"])
def test_numbers_of_rows_are_free_and_the_file_says_what_it_takes(
    dlrun: Callable, tmp_path: Path, loaded: Callable, model: str
) -> None:
    data = "blobs" if model == "mlp" else "hello"
    small = ("model.hidden_sizes=[3]",) if model == "mlp" else ("model.hidden_size=3", "model.embedding_size=2")
    assert dlrun(f"data={data}", f"model={model}", *small, *QUICK).code == 0
    outcome = dlrun("export", "run", "format=onnx")
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    folder = tmp_path / "run" / "export" / "onnx"
    about = json.loads((folder / "model.json").read_text())
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for kind, there in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        assert [(e["name"], e["shape"]) for e in about[kind]] == [(e.name, e.shape) for e in there]
    assert about["checked"]["max_difference"] < 1e-5
    assert about["inputs"][0]["shape"] == (["batch", 2] if model == "mlp" else ["batch", "length"])
    with open_saved_model("run") as saved:
        for rows, longer in ((1, 0), (7, 4)):
            inputs = make_inputs(saved, rows, longer)
            with torch.inference_mode():
                expected = saved.model.eval()(*inputs)
            torch.testing.assert_close(answers(folder, [x.numpy() for x in inputs]), expected, rtol=1e-4, atol=1e-6)
    lines, outputs = loaded(folder)
    np.testing.assert_allclose(outputs, about["example"]["outputs"], rtol=1e-5, atol=1e-6)
    if model == "mlp":
        assert [line.split()[0] for line in lines] == [str(int(row[1] > row[0])) for row in outputs]
    else:
        assert lines == [" ".join("ehlo"[max(range(4), key=tag.__getitem__)] for tag in outputs[0])]


OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.first, self.last = nn.Linear(spec.input_size, 4), nn.Linear(4, spec.output_size)

    def forward(self, x):
        return self.last(self.first(x).relu())

class Wild(Net):
    def forward(self, x):
        return self.last(self.first(x) if x.sum() > 0 else -self.first(x))
"""


@pytest.mark.slow
def test_a_model_of_the_users(dlrun: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exportednet.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    assert dlrun("data=blobs", "model._target_=exportednet.Net", *QUICK).code == 0
    refused = dlrun("export", "run")
    assert refused.code == 2
    assert "trusted_modules='[exportednet]'" in refused.err
    outcome = dlrun("export", "run", "trusted_modules=[exportednet]")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "run" / "export" / "onnx" / "model.onnx").is_file()


@pytest.mark.slow
def test_a_model_that_is_no_graph_is_a_sentence(
    dlrun: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wildnet.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    assert dlrun("data=blobs", "model._target_=wildnet.Wild", *QUICK).code == 0
    outcome = dlrun("export", "run", "trusted_modules=[wildnet]")
    assert outcome.code == 2
    assert outcome.out == ""
    assert "Wild cannot be written as a graph of torch's operations" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "run" / "export").exists()
    weights = dlrun("export", "run", "format=safetensors", "trusted_modules=[wildnet]")
    assert weights.code == 0
    assert "weights alone" in weights.out
    folder = tmp_path / "run" / "export" / "safetensors"
    assert sorted(path.name for path in folder.iterdir()) == ["example.csv", "model.json", "model.safetensors"]


@pytest.mark.slow
def test_the_file_holds_no_path_of_this_machine(dlrun: Callable) -> None:
    assert dlrun("data=line", "model=mlp", *QUICK).code == 0
    assert dlrun("export", "run").code == 0
    content = Path("run/export/onnx/model.onnx").read_bytes()
    sources = (Path(onnx.__file__), Path(torch.__file__))
    assert not any(str(source.parent).encode() in content for source in sources)
    assert b"site-packages" not in content
    # Viewers group nodes by the layers of the net.
    assert b"torch.nn.modules.linear.Linear" in content


def test_what_onnx_runtime_cannot_run_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(onnx.RunError, match="ONNX Runtime cannot run the exported file"):
        onnx._Session(tmp_path / "model.onnx")(torch.zeros(1, 2))
