"""Pictures a second that each side reads from JPEG files, decodes, crops to 224 pixels and normalizes.

python tests/bench/image_reading.py [--pictures 320] [--rounds 5] [--workers 1 2]

Sides: dlrun as `data=image_folder` trains; torchvision's ImageFolder in torch's DataLoader, with Pillow and with
torchvision.io's decoder; timm's loader, if timm is installed. Each takes the same files, batches of 32, the shorter
side to 224 and the centre of it; the test images first, then training images with a random flip. What is read is
thrown away. CPU time counts the workers, and is what to compare where other programs run.
"""

import argparse
import functools
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from PIL import Image, ImageFilter

SIZE = 224
BATCH = 32
MEAN = [0.485, 0.456, 0.406]
STD = [0.229, 0.224, 0.225]
FLIP = "RandomHorizontalFlip"

# Width and height of the files: about ImageNet's, and files that were cut to size before.
FILES = {"500×375": (500, 375), "224×224": (224, 224)}

# A pass over all files: yields batches.
Side = Callable[[Path, int, bool], Iterable[Any]]


def write(folder: Path, count: int, size: tuple[int, int]) -> None:
    """JPEG files of smooth noise, quality 90, in ten class folders."""
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8))
        image = coarse.resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.DETAIL)
        path = folder / str(number % 10) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=90)


def read_with_dlrun(folder: Path, workers: int, augments: bool) -> Iterator[Any]:
    """As the builder of a run puts it together."""
    from dlrun.data.batches import EpochOrder, LoaderBatches, Placement
    from dlrun.data.folders import image_folder
    from dlrun.data.inspection import BatchCheck, Inspection

    splits = _list_once(image_folder, folder, augments)
    placement = Placement(torch.device("cpu"), torch.float32, splits.spec)
    order = EpochOrder(len(splits.train), BATCH, shuffle=augments)
    check = BatchCheck(Inspection("image_folder", splits.spec), splits.train.origin)
    return LoaderBatches(splits.train, order, placement, workers, check).epoch(1)


@functools.cache
def _list_once(image_folder: Any, folder: Path, augments: bool) -> Any:
    augment = [FLIP] if augments else None
    splits = image_folder(str(folder), SIZE, MEAN, STD, test_fraction=0, augment=augment, in_memory=False)
    # A run reads a picture before its workers start, which spares them the imports.
    splits.train[0]
    return splits


def read_with_torchvision(folder: Path, workers: int, augments: bool, decoder: str = "Pillow") -> Iterable[Any]:
    """ImageFolder and v2's transforms, as torchvision's own references have them."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    def read(path: str) -> torch.Tensor:
        return decode_image(path, ImageReadMode.RGB)

    to_tensor = [v2.PILToTensor()] if decoder == "Pillow" else []
    steps = [v2.Resize(SIZE), v2.CenterCrop(SIZE), *[v2.RandomHorizontalFlip()] * augments, *to_tensor]
    transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    loader = {} if decoder == "Pillow" else {"loader": read}
    dataset = ImageFolder(str(folder), transform, **loader)
    return DataLoader(dataset, BATCH, shuffle=augments, num_workers=workers)


def read_with_timm(folder: Path, workers: int, augments: bool) -> Iterable[Any]:
    """timm's dataset and loader; it normalizes in the batch, on the CPU here."""
    from timm.data import create_dataset, create_loader

    return create_loader(
        create_dataset("", str(folder)),
        (3, SIZE, SIZE),
        BATCH,
        is_training=augments,
        # timm's random crop would be other work than that of the other sides.
        no_aug=False,
        train_crop_mode="rkrc",
        scale=(1.0, 1.0),
        ratio=(1.0, 1.0),
        hflip=0.5,
        color_jitter=None,
        crop_pct=1.0,
        interpolation="bilinear",
        mean=tuple(MEAN),
        std=tuple(STD),
        num_workers=workers,
        persistent_workers=False,
        device=torch.device("cpu"),
    )


def list_sides() -> dict[str, Side]:
    """The sides that are installed."""
    sides: dict[str, Side] = {
        "dlrun": read_with_dlrun,
        "ImageFolder, Pillow": read_with_torchvision,
        "ImageFolder, torchvision.io": functools.partial(read_with_torchvision, decoder="torchvision.io"),
    }
    try:
        import timm  # noqa: F401
    except ImportError:
        print("timm is not installed: pip install timm", file=sys.stderr)
    else:
        sides["timm"] = read_with_timm
    return sides


def measure(side: Side, folder: Path, workers: int, augments: bool) -> tuple[int, float, float]:
    """Pictures, wall seconds and CPU seconds of one pass; a pass starts its workers, as an epoch does."""
    wall = time.perf_counter()
    cpu = _cpu_seconds()
    pictures = 0
    for inputs, *_ in side(folder, workers, augments):
        images = inputs[0] if isinstance(inputs, tuple) else inputs
        assert images.dtype == torch.float32
        assert images.shape[1:] == (3, SIZE, SIZE)
        pictures += len(images)
    return pictures, time.perf_counter() - wall, _cpu_seconds() - cpu


def _cpu_seconds() -> float:
    """Of this process and of its workers that have ended."""
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    print(describe())
    print(f"pictures a second, median of {arguments.rounds} interleaved rounds (lowest to highest); CPU ms a picture")

    with tempfile.TemporaryDirectory() as place:
        for name, size in FILES.items():
            folder = Path(place) / name
            write(folder, arguments.pictures, size)
            for workers in arguments.workers:
                for augments in (False, True):
                    print(f"\nfiles {name}, {workers} worker{'s' * (workers > 1)}{', random flip' * augments}")
                    _compare(folder, workers, augments, arguments.rounds)


def _compare(folder: Path, workers: int, augments: bool, rounds: int) -> None:
    sides = list_sides()
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    costs: dict[str, list[float]] = {name: [] for name in sides}
    # The first round warms up the imports and the file cache.
    for number in range(rounds + 1):
        for name in random.Random(number).sample(list(sides), len(sides)):
            pictures, wall, cpu = measure(sides[name], folder, workers, augments)
            if number:
                speeds[name].append(pictures / wall)
                costs[name].append(1000 * cpu / pictures)

    for name, values in speeds.items():
        cost = statistics.median(costs[name])
        ratio = statistics.median([a / b for a, b in zip(costs["dlrun"], costs[name], strict=True)])
        beside = "" if name == "dlrun" else f"   dlrun takes {ratio:.2f} × its CPU time"
        span = f"{min(values):,.0f} to {max(values):,.0f}"
        print(f"  {name:<28} {statistics.median(values):>6,.0f} ({span})   {cost:.2f} ms{beside}", flush=True)


if __name__ == "__main__":
    main()
