"""Peak memory of a training on images that are larger than it: anonymous and shared, main process and workers.

python tests/bench/memory.py [--gigabytes 4] [--steps 300] [--loader workers]

The images are a sparse .npy file in the temporary folder: it takes the disk what is written to it, a few pages.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SHAPE = (3, 64, 64)
BARE = "import torch, torchvision, time; print(1, flush=True); time.sleep(60)"


def write(folder: Path, gigabytes: float) -> int:
    """x.npy and y.npy; returns the rows."""
    rows = int(gigabytes * 2**30 / np.prod(SHAPE))
    x = np.lib.format.open_memmap(folder / "x.npy", mode="w+", dtype=np.uint8, shape=(rows, *SHAPE))
    x[:: max(rows // 100, 1)] = np.random.default_rng(0).integers(0, 256, SHAPE)
    x.flush()
    np.save(folder / "y.npy", np.arange(rows) % 10)
    return rows


def resident(process: int) -> int:
    """Bytes of a process and all below it that are no file's: a page that two share counts for both."""
    tree, found = [process], 0
    for one in tree:
        try:
            status = Path(f"/proc/{one}/status").read_text().splitlines()
            tree += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
        values = {line.split(":")[0]: line.split()[1] for line in status if line.startswith(("RssAnon", "RssShmem"))}
        found += 1024 * sum(map(int, values.values()))
    return found


def peak(words: list[str], folder: Path) -> int:
    """The most that a command holds at once, looked at every 20 ms."""
    most = 0
    with subprocess.Popen([sys.executable, "-m", "dlrun", *words], cwd=folder, stdout=subprocess.DEVNULL) as running:
        while running.poll() is None:
            most = max(most, resident(running.pid))
            time.sleep(0.02)
    if running.returncode:
        raise SystemExit(f"dlrun {' '.join(words)} failed")
    return most


def bare() -> int:
    """What the imports alone hold."""
    with subprocess.Popen([sys.executable, "-c", BARE], stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        held = resident(running.pid)
        running.kill()
    return held


def measured(gigabytes: float, steps: int, *words: str) -> tuple[int, int, int]:
    """Bytes of the images, of the bare imports, and of the training at its peak."""
    with tempfile.TemporaryDirectory() as place:
        rows = write(Path(place), gigabytes)
        train = ["data=arrays", f"data.path={place}", "model=cnn", f"trainer.max_steps={steps}", "trainer.epochs=1"]
        small = ["data.test_fraction=0.001", "data.val_fraction=0.001", "tracking.graph=false"]
        most = peak([*train, *small, f"hydra.run.dir={place}/run", *words], Path(place))
    return rows * int(np.prod(SHAPE)), bare(), most


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--loader", default="workers")
    asked = parser.parse_args()
    size, imports, most = measured(asked.gigabytes, asked.steps, f"data.loader={asked.loader}")
    mb = 2**20
    print(f"{size / 2**30:.1f} GB of images, {asked.steps} steps, data.loader={asked.loader}, anonymous and shared:")
    print(f"  import torch, torchvision  {imports / mb:7,.0f} MB")
    print(f"  dlrun with its workers     {most / mb:7,.0f} MB")
    print(f"  over the imports           {(most - imports) / mb:7,.0f} MB (bar: 1,024)")


if __name__ == "__main__":
    main()
