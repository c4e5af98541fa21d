"""What a course's script does for the same job: torchvision's MNIST, transforms, a DataLoader, one loop.

Prints samples per second of training. Run by resnet_mnist.py, beside dlrun.
"""

import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class Net(nn.Module):
    """The course's residual net for 28x28 images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 5), nn.Conv2d(16, 32, 5)
        self.block1, self.block2 = Block(16), Block(32)
        self.fc = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(F.max_pool2d(F.relu(self.conv1(x)), 2))
        x = self.block2(F.max_pool2d(F.relu(self.conv2(x)), 2))
        return self.fc(x.flatten(1))


def main(root: str, steps: int) -> None:
    """Train `steps` steps and print how many samples a second went by."""
    normalize = transforms.Normalize((0.1307,), (0.3081,))
    dataset = datasets.MNIST(root, train=True, transform=transforms.Compose([transforms.ToTensor(), normalize]))
    loader = DataLoader(dataset, batch_size=64, shuffle=True)
    model, criterion = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    running, samples, started = 0.0, 0, 0.0
    for step, (images, labels) in enumerate(loader):
        if step == steps // 10:  # the first steps warm up
            samples, started = 0, time.perf_counter()
        if step == steps:
            break
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        running += loss.item()
        samples += len(labels)
    print(samples / (time.perf_counter() - started))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
