"""The input is the target: against principal components and a loop of torch, read by workers, and after a stop."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dlrun as package
from dlrun.runs.checkpoint import load

QUIET = ("tracking.graph=false", "figures=false")
SMALL = ("task=autoencoder", "data=digits", "data.image_size=8", "data.train_rows=200")

# It returns images, as large as its input.
NET = """
from torch import nn


class Repaint(nn.Module):
    def __init__(self, spec, channels=3):
        super().__init__()
        self.down = nn.Conv2d(spec.input_shape[0], channels, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(channels, spec.input_shape[0], 2, stride=2)

    def forward(self, x):
        return self.up(self.down(x).relu())
"""


def weights_of(folder: str) -> dict[str, torch.Tensor]:
    return dict(load(Path(folder) / "checkpoints" / "last.pt")["model"])


@pytest.mark.slow
def test_a_linear_one_finds_the_principal_components(dlrun: Callable[..., Any]) -> None:
    from sklearn.decomposition import PCA

    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 2)) @ generator.normal(size=(2, 6)) + 0.3 * generator.normal(size=(60, 6))
    rows = [",".join(map(str, row)) for row in x.tolist()]
    Path("rows.csv").write_text("\n".join(["a,b,c,d,e,f", *rows]) + "\n")
    words = ("task=autoencoder", "data=csv", "data.path=rows.csv", "data.target=[]", "data.test_fraction=0")
    net = ("model=sequential", "model.layers=[{Linear: [in, 2]}, {Linear: [2, out]}]", "device.precision=fp64")
    more = ("data.val_fraction=0", "optimizer=lbfgs", "trainer.epochs=60")
    outcome = dlrun(*QUIET, *words, *net, *more, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err

    standard = (x - x.mean(0)) / x.std(0)
    pca = PCA(2).fit(standard)
    given_back = pca.inverse_transform(pca.transform(standard))
    last = outcome.rows[-1]
    assert last["train/mse"] == pytest.approx(((standard - given_back) ** 2).mean(), rel=1e-6)
    assert last["train/r2"] == pytest.approx(pca.explained_variance_ratio_.sum(), rel=1e-6)
    baseline = outcome.result["baseline"]
    assert (baseline["train/mse"], baseline["train/r2"]) == (pytest.approx(1), pytest.approx(0, abs=1e-12))

    # In the data's own units.
    assert dlrun("eval", "run", "split=train", "figures=false").code == 0
    (folder,) = Path("run/eval").iterdir()
    with (folder / "predictions.csv").open() as file:
        table = list(csv.DictReader(file))
    values = np.array([[float(row[f"reconstructed_{name}"]) for name in "abcdef"] for row in table])
    assert np.allclose(values, given_back * x.std(0) + x.mean(0), atol=1e-3)
    errors = [float(row["mse"]) for row in table]
    assert errors == pytest.approx(((standard - given_back) ** 2).mean(1).tolist(), rel=1e-2, abs=1e-5)
    lines = dlrun("predict", "run", "rows.csv", "--format", "jsonl").out.splitlines()
    first = json.loads(lines[0])
    assert first["mse"] == pytest.approx(errors[0], rel=1e-5)
    assert first["prediction"] == pytest.approx(values[0].tolist(), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "loss", "activation"),
    [
        ((), nn.MSELoss(), nn.Identity()),
        (("task.loss=l1",), nn.L1Loss(), nn.Identity()),
        (("task.loss=bce_with_logits", "data.mean=0", "data.std=1"), nn.BCELoss(), nn.Sigmoid()),
    ],
    ids=["mse", "l1", "bce_with_logits"],
)
def test_it_trains_as_a_loop_of_torch(
    words: tuple[str, ...], loss: nn.Module, activation: nn.Module, dlrun: Callable[..., Any]
) -> None:
    common = ("data.val_fraction=0", "data.shuffle=false", "data.batch_size=200", "device.precision=fp64")
    common += ("model.hidden_sizes=[8]", "optimizer=sgd", "optimizer.lr=0.1", "trainer.epochs=20")
    outcome = dlrun(*QUIET, *SMALL, *common, *words, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err

    x = package.load("run").splits.train.inputs[0].double().flatten(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 64)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    expected = []
    for _ in range(20):
        value = loss(activation(net(x)), x)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        expected.append(value.item())
    assert [row["train/loss"] for row in outcome.rows] == pytest.approx(expected, rel=1e-9)
    for mine, theirs in zip(weights_of("run").values(), net.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-10)


@pytest.mark.slow
def test_a_net_that_returns_images_is_read_by_workers_cut_off_and_exported(dlrun: Callable[..., Any]) -> None:
    Path("repaint_net.py").write_text(NET)
    Path("scans").mkdir()
    np.save("scans/x.npy", np.random.default_rng(0).integers(0, 256, (70, 8, 8)).astype(np.uint8))
    words = ("task=autoencoder", "data=arrays", "data.path=scans", "model._target_=repaint_net.Repaint")
    words = (*QUIET, *words, "data.batch_size=10", "trainer.epochs=2")
    for name, more in (("memory", "data.loader=memory"), ("workers", "data.loader=workers")):
        outcome = dlrun(*words, more, "data.num_workers=0", f"hydra.run.dir={name}")
        assert outcome.code == 0, outcome.err
    assert Path("memory/metrics.jsonl").read_text() == Path("workers/metrics.jsonl").read_text()

    assert dlrun(*words, "trainer.max_steps=7", "hydra.run.dir=cut").code == 0
    outcome = dlrun("resume", "cut", "trainer.max_steps=null", "trusted_modules=[repaint_net]")
    assert outcome.code == 0, outcome.err
    one, two = weights_of("cut"), weights_of("memory")
    assert all(torch.equal(one[key], two[key]) for key in two)

    outcome = dlrun("eval", "cut", "trusted_modules=[repaint_net]")
    assert "the same as recorded in training, to the last bit" in outcome.out, outcome.err
    assert [path.name for path in Path("cut").glob("eval/*/figures/*")] == ["reconstructions.png"]
    saved = package.load("cut", trusted_modules="repaint_net")
    assert saved.predict(torch.zeros(2, 1, 8, 8)).values.shape == (2, 64)
    outcome = dlrun("export", "cut", "format=safetensors", "trusted_modules=[repaint_net]")
    assert outcome.code == 0, outcome.err
    about = json.loads(Path("cut/export/safetensors/model.json").read_text())
    assert (about["reconstructs"], about["outputs"][0]["shape"]) == (True, ["batch", 64])
    outcome = dlrun("export", "cut", "format=python", "trusted_modules=[repaint_net]")
    assert (outcome.code, "the training of an autoencoder" in outcome.err) == (2, True)


@pytest.mark.slow
def test_the_picture_shows_images_above_their_reconstructions(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("tracking.graph=false", *SMALL, "trainer.epochs=1", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert "image 1×8×8 -> itself" in outcome.out
    assert {path.name for path in Path("run/figures").iterdir()} >= {"reconstructions.png"}

    from dlrun.data.spec import DataSpec
    from dlrun.runs.reports.plots.reconstruction import draw_reconstructions

    spec = DataSpec("image", (1, 2, 2), "regression", 4, reconstructs=True)
    inputs = torch.rand(11, 4)
    figure = draw_reconstructions(inputs, inputs / 2, spec, "test")
    images = [image.get_array() for image in figure.axes[0].images]
    # One whole line of eight, and one below it.
    assert len(images) == 16
    for number in range(8):
        assert np.allclose(images[number].ravel(), inputs[number])
        assert np.allclose(images[8 + number].ravel(), inputs[number] / 2)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("data=hello", "task=autoencoder", "model=rnn"),
            "gives vectors and images back, and data=hello has sequences",
        ),
        ((*SMALL, "task.loss=bce_with_logits"), "is for inputs of 0 to 1, and these are -"),
        ((*SMALL, "task.loss=bce", "data.mean=0", "data.std=1"), "type task.loss=bce_with_logits"),
        ((*SMALL, "task.loss=cross_entropy"), "is no loss for regression; type one of mse, mae"),
        ((*SMALL, "task.class_weights=balanced"), "is for classes, and these targets are numbers"),
        ((*SMALL, "model=logistic"), "model=logistic does not take data=digits"),
        (("data=csv", "data.path=rows.csv", "data.target=[]"), "names no column; type data.target=<column>, or task="),
        (("data=digits", "task.kind=autoencode"), "did you mean autoencoder"),
    ],
)
def test_a_mistake_is_a_sentence(words: tuple[str, ...], sentence: str, dlrun: Callable[..., Any]) -> None:
    Path("rows.csv").write_text("a,b\n" + "1,2\n2,1\n" * 4)
    outcome = dlrun(*QUIET, *words, "hydra.run.dir=run")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
    assert sentence in outcome.err
    assert not Path("run").exists()


@pytest.mark.slow
def test_the_network_in_onnx_gives_flat_values(dlrun: Callable[..., Any]) -> None:
    Path("repaint_net.py").write_text(NET)
    assert (
        dlrun(*QUIET, *SMALL, "model._target_=repaint_net.Repaint", "trainer.epochs=1", "hydra.run.dir=run").code == 0
    )
    outcome = dlrun("export", "run", "format=onnx", "trusted_modules=[repaint_net]")
    assert outcome.code == 0, outcome.err
    assert "rows of test: at most" in outcome.out
