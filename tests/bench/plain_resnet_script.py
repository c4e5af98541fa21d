"""The residual net of the course on MNIST as a student would write it under Hydra: a peer of sweep_overhead.py.

One image at a time through a DataLoader, `.item()` after every step, accuracy on the test images, one state_dict.

python tests/bench/plain_resnet_script.py -m 'lr=0.01,0.1' 'seed=range(4)' root=<folder with MNIST>
"""

from dataclasses import dataclass
from pathlib import Path

import hydra
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from sides.course import ResNet, mnist
from torch import nn
from torch.utils.tensorboard import SummaryWriter


@dataclass
class Settings:
    """What can be set."""

    root: str = "data"
    lr: float = 0.01
    seed: int = 0
    epochs: int = 1
    batch_size: int = 64


ConfigStore.instance().store(name="settings", node=Settings)


@hydra.main(version_base="1.3", config_name="settings")
def main(settings: Settings) -> None:
    """Train one point."""
    torch.manual_seed(settings.seed)
    place = Path(HydraConfig.get().runtime.output_dir)
    train, test = mnist(settings.root, settings.batch_size), mnist(settings.root, 256, train=False)
    model = ResNet()
    loss = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr)

    with SummaryWriter(place) as writer:
        for epoch in range(1, settings.epochs + 1):
            model.train()
            total = 0.0
            for x, y in train:
                optimizer.zero_grad()
                value = loss(model(x), y)
                value.backward()
                optimizer.step()
                total += value.item()
            model.eval()
            with torch.no_grad():
                right = sum(int((model(x).argmax(1) == y).sum()) for x, y in test)
            writer.add_scalar("train/loss", total / len(train), epoch)
            writer.add_scalar("test/accuracy", right / 10_000, epoch)
    torch.save(model.state_dict(), place / "model.pt")


if __name__ == "__main__":
    main()
