"""Peak memory of a training on images that are larger than it: anonymous and shared, main process and workers.

python tests/bench/memory.py [--gigabytes 4] [--steps 300] [--loader workers] [--workers 1 4]

The images are a sparse .npy file in the temporary folder, which takes the disk what is written to it, a few pages;
then as many PNG files in a folder a class, hard links to a few.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import describe
from PIL import Image

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


def write_folder(folder: Path, gigabytes: float) -> int:
    """PNG files of noise, which does not compress, as links to a hundred of them; returns how many."""
    originals = []
    for number in range(100):
        originals.append(folder / f"{number}.png")
        Image.fromarray(np.random.default_rng(number).integers(0, 256, SHAPE[::-1], np.uint8)).save(originals[-1])
    files = int(gigabytes * 2**30 / originals[0].stat().st_size)
    for number in range(files):
        path = folder / "images" / str(number % 10) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(originals[number % 100])
    return files


def resident(process: int) -> int:
    """Bytes of a process and all below it that are no file's: a page that two share counts for both."""
    tree, total = [process], 0
    for one in tree:
        try:
            status = Path(f"/proc/{one}/status").read_text().splitlines()
            tree += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
        values = {line.split(":")[0]: line.split()[1] for line in status if line.startswith(("RssAnon", "RssShmem"))}
        total += 1024 * sum(map(int, values.values()))
    return total


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


def measure(gigabytes: float, steps: int, *words: str, folder: bool = False) -> tuple[int, int, int]:
    """Bytes of the images, of the bare imports, and of the training at its peak."""
    with tempfile.TemporaryDirectory() as place:
        rows = (write_folder if folder else write)(Path(place), gigabytes)
        data = ["data=image_folder", f"data.path={place}/images", "data.in_memory=false"]
        data = data if folder else ["data=arrays", f"data.path={place}"]
        train = ["model=cnn", f"trainer.max_steps={steps}", "trainer.epochs=1"]
        small = ["data.test_fraction=0.001", "data.val_fraction=0.001", "tracking.graph=false"]
        most = peak([*data, *train, *small, f"hydra.run.dir={place}/run", *words], Path(place))
    return rows * int(np.prod(SHAPE)), bare(), most


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--loader", default="workers")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4])
    options = parser.parse_args()
    print(f"MB, anonymous and shared, {options.steps} steps, data.loader={options.loader}; {describe()}")
    for workers, folder in itertools.product(options.workers, (False, True)):
        words = (f"data.loader={options.loader}", f"data.num_workers={workers}")
        size, imports, most = (n / 2**20 for n in measure(options.gigabytes, options.steps, *words, folder=folder))
        what = f"{size / 1024:.1f} GB as {'files' if folder else 'an array'}, {workers} workers"
        print(
            f"  {what}: {most:,.0f}, imports {imports:,.0f}, over them {most - imports:,.0f} (bar: 1,024)", flush=True
        )


if __name__ == "__main__":
    main()
