"""What a script of the course does: a Dataset, a DataLoader, one loop, `.item()` after every step.

MNIST is torchvision's with ToTensor and Normalize; names are read as text and turned into tensors batch by batch; a
table is a Dataset of rows. `python -m sides.course ROOT EPOCHS SEED`, in tests/bench, trains the residual
net on MNIST and prints the accuracy on the test images after each epoch.
"""

import csv
import gzip
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pace import Pace
from rows import Row, loss
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class ResNet(nn.Module):
    """The course's residual net for 28x28 images: ReLU before pooling, where dlrun's pools first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 5), nn.Conv2d(16, 32, 5)
        self.block1, self.block2 = Block(16), Block(32)
        self.fc = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(F.max_pool2d(F.relu(self.conv1(x)), 2))
        x = self.block2(F.max_pool2d(F.relu(self.conv2(x)), 2))
        return self.fc(x.flatten(1))


def mnist(root: str, batch_size: int, train: bool = True) -> DataLoader[Any]:
    """Images one by one through transforms."""
    from torchvision import datasets, transforms

    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    return DataLoader(datasets.MNIST(root, train=train, transform=steps), batch_size=batch_size, shuffle=train)


class Names(Dataset[Any]):
    """Names and countries as text."""

    def __init__(self, root: str) -> None:
        with gzip.open(Path(root) / "names_train.csv.gz", "rt", newline="") as file:
            self.rows = list(csv.reader(file))
        self.countries = sorted({country for _, country in self.rows})
        self.numbers = {country: i for i, country in enumerate(self.countries)}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[str, int]:
        return self.rows[i][0], self.numbers[self.rows[i][1]]


class Table(Dataset[Any]):
    """Rows of two tensors."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.inputs[i], self.targets[i]


def to_codes(names: Iterable[str], countries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (B, longest) padded with 0, lengths and countries, the longest name first."""
    codes = [[min(ord(c), 127) for c in name] for name in names]
    lengths = torch.tensor([len(name) for name in codes])
    padded = torch.zeros(len(codes), int(lengths.max()), dtype=torch.long)
    for i, name in enumerate(codes):
        padded[i, : len(name)] = torch.tensor(name)
    lengths, order = lengths.sort(descending=True)
    return padded[order], lengths, countries[order]


def batches_of(row: Row) -> DataLoader[Any]:
    """The row's data as the course reads such data."""
    if row.data == "mnist":
        return mnist(row.root, row.batch_size)
    if row.data == "names":
        return DataLoader(Names(row.root), batch_size=row.batch_size, shuffle=True)
    (inputs,), targets = row.tensors()
    return DataLoader(Table(inputs, targets), batch_size=row.batch_size, shuffle=True)


def train(row: Row, pace: Pace) -> None:
    """See above."""
    net = ResNet() if row.model == "resnet" else row.net()
    batches, optimizer = batches_of(row), row.torch_optimizer(net)
    while True:
        running = 0.0
        for batch in batches:
            *given, wanted = to_codes(*batch) if row.data == "names" else batch
            optimizer.zero_grad()
            value = loss(net(*given), wanted)
            value.backward()
            optimizer.step()
            running += value.item()
            pace.step()


def train_and_test(root: str, epochs: int, seed: int) -> None:
    """Print the accuracy on the test images after each epoch."""
    torch.manual_seed(seed)
    net, criterion = ResNet(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.5)
    training, testing = mnist(root, 64), mnist(root, 64, train=False)
    for _ in range(epochs):
        running = 0.0
        for images, labels in training:
            optimizer.zero_grad()
            value = criterion(net(images), labels)
            value.backward()
            optimizer.step()
            running += value.item()
        right = total = 0
        with torch.no_grad():
            for images, labels in testing:
                right += (net(images).argmax(1) == labels).sum().item()
                total += len(labels)
        print("test accuracy", right / total, flush=True)


if __name__ == "__main__":
    train_and_test(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
