"""The peer of sweep_overhead.py: a usual Hydra script, run by Hydra's own basic launcher with -m.

Diabetes table, MLP 8-128-1, Adam, batch 64; each epoch it evaluates, writes TensorBoard scalars and a row of
metrics.jsonl, and saves last and best with torch.save; at the end it tests the best weights and writes result.json.

python tests/bench/hydra_script.py -m 'lr=0.1,0.01' 'seed=range(8)' root=<folder with diabetes.csv.gz>
"""

import json
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
    lr: float = 0.001
    seed: int = 0
    epochs: int = 50
    batch_size: int = 64


ConfigStore.instance().store(name="settings", node=Settings)


def parts(root: str) -> list[TensorDataset]:
    """Training, validation and test rows, in the sizes that dlrun takes."""
    table = np.loadtxt(Path(root) / "diabetes.csv.gz", delimiter=",", dtype=np.float32)
    rows = torch.from_numpy(table)[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
    x, y = rows[:, :-1], rows[:, -1:]
    return [TensorDataset(x[a:b], y[a:b]) for a, b in ((0, 546), (546, 607), (607, None))]


@torch.no_grad()
def evaluate(model: nn.Module, data: DataLoader, loss: nn.Module) -> dict[str, float]:
    """Loss and accuracy of a split."""
    model.eval()
    total, right, count = 0.0, 0, 0
    for x, y in data:
        out = model(x)
        total += loss(out, y).item() * len(y)
        right += int(((out > 0) == (y > 0.5)).sum())
        count += len(y)
    return {"loss": total / count, "accuracy": right / count}


@hydra.main(version_base="1.3", config_name="settings")
def main(settings: Settings) -> None:
    """Train one point."""
    torch.manual_seed(settings.seed)
    place = Path(HydraConfig.get().runtime.output_dir)
    train, val, test = parts(settings.root)
    loader = DataLoader(train, settings.batch_size, shuffle=True)
    others = [DataLoader(part, 256) for part in (val, test)]
    model = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 1))
    loss, optimizer = nn.BCEWithLogitsLoss(), torch.optim.Adam(model.parameters(), lr=settings.lr)
    best, step = float("inf"), 0
    with SummaryWriter(place) as writer, (place / "metrics.jsonl").open("w") as rows:
        for epoch in range(1, settings.epochs + 1):
            model.train()
            total = 0.0
            for x, y in loader:
                optimizer.zero_grad()
                value = loss(model(x), y)
                value.backward()
                optimizer.step()
                total += value.item() * len(y)
                step += 1
            row = {"train/loss": total / len(train)}
            row |= {f"val/{k}": v for k, v in evaluate(model, others[0], loss).items()}
            for tag, number in row.items():
                writer.add_scalar(tag, number, step)
            writer.flush()
            rows.write(json.dumps({"epoch": epoch, "step": step} | row) + "\n")
            rows.flush()
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
            torch.save(state, place / "last.pt")
            if row["val/loss"] < best:
                best = row["val/loss"]
                torch.save(state, place / "best.pt")
        model.load_state_dict(torch.load(place / "best.pt", weights_only=True)["model"])
        tested = evaluate(model, others[1], loss)
        writer.add_hparams({"lr": settings.lr, "seed": settings.seed}, {f"hparam/{k}": v for k, v in tested.items()})
    (place / "result.json").write_text(json.dumps({"test": tested, "best": best}))


if __name__ == "__main__":
    main()
