"""What a student would write under Hydra: the plainer peer of sweep_overhead.py, run by Hydra's own launcher with -m.

Diabetes table, MLP 8-128-1, SGD, batch 32 from a DataLoader; TensorBoard scalars an epoch, one state_dict at the end.

python tests/bench/plain_script.py -m 'lr=0.1,0.01' 'seed=range(8)' root=<folder with diabetes.csv.gz>
"""

from dataclasses import dataclass
from pathlib import Path

import hydra
import numpy as np
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter


@dataclass
class Settings:
    """What can be set."""

    root: str = "data"
    lr: float = 0.01
    seed: int = 0
    epochs: int = 50
    batch_size: int = 32


ConfigStore.instance().store(name="settings", node=Settings)


@hydra.main(version_base="1.3", config_name="settings")
def main(settings: Settings) -> None:
    """Train one point."""
    torch.manual_seed(settings.seed)
    place = Path(HydraConfig.get().runtime.output_dir)
    table = torch.from_numpy(np.loadtxt(Path(settings.root) / "diabetes.csv.gz", delimiter=",", dtype=np.float32))
    train, val = TensorDataset(table[:607, :-1], table[:607, -1:]), table[607:]
    loader = DataLoader(train, settings.batch_size, shuffle=True)
    model = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 1))
    loss = nn.BCEWithLogitsLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr)

    with SummaryWriter(place) as writer:
        for epoch in range(1, settings.epochs + 1):
            model.train()
            total = 0.0
            for x, y in loader:
                optimizer.zero_grad()
                value = loss(model(x), y)
                value.backward()
                optimizer.step()
                total += value.item() * len(y)
            model.eval()
            with torch.no_grad():
                outputs = model(val[:, :-1])
            writer.add_scalar("train/loss", total / len(train), epoch)
            writer.add_scalar("val/loss", loss(outputs, val[:, -1:]).item(), epoch)
            right = ((outputs > 0) == (val[:, -1:] > 0.5)).float().mean()
            writer.add_scalar("val/accuracy", right.item(), epoch)
    torch.save(model.state_dict(), place / "model.pt")


if __name__ == "__main__":
    main()
