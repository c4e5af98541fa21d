"""What is trained in each row of the bench: net, data, optimizer and batch, the same for every side."""

import importlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dlrun.data import images, names
from dlrun.data.files.idx import read_labelled
from dlrun.data.spec import DataSpec, Split, Splits

HERE = Path(__file__).resolve().parent
_NETS = {
    "resnet": "resnet:ResNet",
    "inception": "inception:Inception",
    "cnn": "cnn:CNN",
    "mlp": "mlp:MLP",
    "gru": "recurrent:GRU",
}
_OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


@dataclass(frozen=True)
class Row:
    """One training. A measured chunk is `epochs` whole epochs of it, so that what an epoch's end costs is in it."""

    name: str
    model: str  # of dlrun
    data: str  # mnist, names, or vectors: random numbers, which need no file
    rows: int
    batch_size: int = 64
    settings: dict[str, Any] = field(default_factory=dict)  # of the model
    optimizer: str = "sgd"
    rates: dict[str, float] = field(default_factory=lambda: {"lr": 0.01, "momentum": 0.5})
    features: int = 0  # of vectors
    classes: int = 10  # of vectors; 1: binary
    epochs: int = 1
    root: str = ""  # the folder with MNIST and names
    device: str = "cpu"  # or cuda

    @property
    def steps(self) -> int:
        """Of a chunk."""
        return self.epochs * math.ceil(self.rows / self.batch_size)

    @property
    def samples(self) -> int:
        """Of a chunk."""
        return self.epochs * self.rows

    @property
    def spec(self) -> DataSpec:
        """What a net must know of the data, told without reading them."""
        if self.data == "mnist":
            return DataSpec("image", (1, 28, 28), "multiclass", 10)
        if self.data == "names":
            return DataSpec("tokens", (20,), "multiclass", 18, vocabulary=tuple(chr(code) for code in range(128)))
        return DataSpec("vector", (self.features,), "binary" if self.classes == 1 else "multiclass", self.classes)

    def tensors(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """Inputs and targets of the training part, the targets as floats for a binary task, as its loss takes them."""
        if self.data == "mnist":
            raw = Path(self.root) / "MNIST" / "raw"
            pictures, labels = read_labelled(raw / "train-images-idx3-ubyte", raw / "train-labels-idx1-ubyte", 10)
            pixels = torch.tensor(pictures[: self.rows]).float().div_(255).sub_(0.1307).div_(0.3081)
            return (pixels.unsqueeze(1),), torch.tensor(labels[: self.rows]).long()
        part = names.names(self.root).train if self.data == "names" else None
        part = part or vectors(self.rows, self.features, self.classes).train
        assert isinstance(part, Split)
        return part.inputs, part.targets.float() if self.spec.task == "binary" else part.targets

    def net(self) -> nn.Module:
        """dlrun's own module, for every side."""
        module, _, name = _NETS[self.model].partition(":")
        torch.manual_seed(0)
        net: nn.Module = getattr(importlib.import_module(f"dlrun.models.{module}"), name)(self.spec, **self.settings)
        return net

    def torch_optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        """As a script makes it."""
        return _OPTIMIZERS[self.optimizer](net.parameters(), **self.rates)

    def command_line(self, folder: Path) -> list[str]:
        """What a user of dlrun types for this row, training on until it is stopped; no validation part."""
        words = [f"model={self.model}", *(f"model.{k}={v}".replace(" ", "") for k, v in self.settings.items())]
        words += [f"data={self.data}", f"data.batch_size={self.batch_size}", "data.val_fraction=0"]
        if self.data == "vectors":
            words += ["--config-dir", str(HERE / "configs"), f"data.rows={self.rows}"]
            words += [f"data.features={self.features}", f"data.classes={self.classes}"]
        else:
            words += [f"data.train_rows={self.rows}", f"paths.data={self.root}"]
        words += [f"optimizer={self.optimizer}", *(f"optimizer.{k}={v}" for k, v in self.rates.items())]
        return [*words, "trainer.epochs=1000000", f"device={self.device}", f"hydra.run.dir={folder}/run"]


def vectors(rows: int, features: int, classes: int, seed: int = 0) -> Splits:
    """Normal inputs (rows, features), random classes: the arithmetic does not look at them. classes=1: binary."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, features, generator=generator)
    targets = torch.randint(max(classes, 2), (rows,), generator=generator)
    task = "binary" if classes == 1 else "multiclass"
    return Splits(Split((inputs,), targets), None, None, DataSpec("vector", (features,), task, classes))


def mnist_tested(root: str) -> Splits:
    """MNIST, all 60,000 images to train on, evaluated on the test images after each epoch."""
    splits = images.mnist(root)
    return Splits(splits.train, splits.test, splits.test, splits.spec)


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy, or for targets that are floats that of one logit."""
    if targets.is_floating_point():
        return F.binary_cross_entropy_with_logits(outputs.squeeze(-1), targets)
    return F.cross_entropy(outputs, targets)


def loader(inputs: tuple[Tensor, ...], targets: Tensor, row: Row) -> DataLoader[Any]:
    """What the guides of most peers begin with."""
    return DataLoader(TensorDataset(*inputs, targets), batch_size=row.batch_size, shuffle=True)


def list_core_rows(root: str) -> Iterator[Row]:
    """The rows of the core table."""
    for net in ("resnet", "inception", "cnn"):
        yield Row(net, net, "mnist", 25_600, root=root)
    yield Row("mlp", "mlp", "mnist", 25_600, settings={"hidden_sizes": [512, 256, 128, 64]}, epochs=2, root=root)
    yield Row("gru", "gru", "names", 13_374, 256, optimizer="adam", rates={"lr": 0.001}, root=root)
    sgd = Row("overhead", "mlp", "vectors", 51_200, settings={"hidden_sizes": [128]}, features=784)
    yield sgd
    yield Row(**asdict(sgd) | {"name": "overhead-adam", "optimizer": "adam", "rates": {"lr": 0.001}})
    tiny = {"batch_size": 32, "settings": {"hidden_sizes": [6, 4], "activation": "sigmoid"}, "features": 8}
    yield Row("tiny", "mlp", "vectors", 32_000, classes=1, **tiny)
    yield Row("tiny-64", "mlp", "vectors", 32_000, 32, {"hidden_sizes": [64]}, features=64)
    yield Row("tiny-epochs", "mlp", "vectors", 759, classes=1, epochs=40, **tiny)
    yield Row("large-epochs", "mlp", "vectors", 3_200, settings={"hidden_sizes": [1024, 784]}, features=784, epochs=6)
