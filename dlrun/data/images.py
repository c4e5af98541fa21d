"""The published image sets: digits, MNIST and its relatives, CIFAR."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dlrun.core.errors import DataError, RequestError
from dlrun.data.datasets import partition_by_class
from dlrun.data.files.cifar import read_batch, read_class_names
from dlrun.data.files.download import fetch_images
from dlrun.data.files.idx import find_idx, read_labelled
from dlrun.data.files.pixels import LabelledImages, build_image_splits
from dlrun.data.origin import Origin
from dlrun.data.spec import Splits

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
HIRAGANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")

# Constants of the training images, one value a colour channel.
CIFAR10_MEAN = [0.4914, 0.4822, 0.4465]
CIFAR10_STD = [0.2470, 0.2435, 0.2616]
CIFAR100_MEAN = [0.5071, 0.4865, 0.4409]
CIFAR100_STD = [0.2673, 0.2564, 0.2762]


def digits(
    image_size: int = 28,
    mean: float | None = None,
    std: float | None = None,
    positive: int | None = None,
    channels: Literal[1, 3] = 1,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Splits:
    """scikit-learn's 1,797 handwritten digits, 8x8 with 17 shades, resized; float32 (N, channels, size, size).

    mean, std: None for those of the training images. positive: that digit (1) against the rest (0), a binary task
    on the same rows. channels=3: the grey value three times, for nets made for colours. Raises RequestError for an
    impossible size, std, fraction or digit.
    """
    # scikit-learn takes a second to import.
    from sklearn.datasets import load_digits

    if positive is not None and positive not in range(10):
        raise RequestError(f"data.positive={positive} is no digit: type data.positive=0 to 9, or null for all ten")

    # (1797, 64) values from 0 to 16.
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().div_(16).view(-1, 1, 8, 8).repeat(1, channels, 1, 1)
    targets = torch.from_numpy(labels.astype(np.int64))
    rows_of_parts = partition_by_class(labels, DIGITS, test_fraction, seed, "data=digits")
    origin = Origin.from_position("sklearn.datasets.load_digits", len(images))

    parts = {}
    origins = {}
    for name, rows in zip(("train", "test"), rows_of_parts, strict=True):
        if len(rows):
            parts[name] = (images[rows], targets[rows])
            origins[name] = origin.take(torch.from_numpy(rows))

    means = _repeat_for_channels(mean, channels)
    stds = _repeat_for_channels(std, channels)
    if positive is None:
        return build_image_splits(parts, DIGITS, image_size, means, stds, origins=origins)

    # The rows were drawn by the ten classes, so both tasks have the same test part.
    parts = {name: (x, (y == positive).long()) for name, (x, y) in parts.items()}
    splits = build_image_splits(parts, ("rest", str(positive)), image_size, means, stds, origins=origins)
    return dataclasses.replace(splits, spec=dataclasses.replace(splits.spec, task="binary", output_size=1))


def mnist(root: str, image_size: int | None = None, mean: float = 0.1307, std: float = 0.3081) -> Splits:
    """Handwritten digits, 60,000 + 10,000 grey images 28x28 (LeCun et al. 1998); float32 (N, 1, 28, 28).

    Read from root/MNIST/raw. Raises DataError for a damaged file, or a missing one that cannot be downloaded.
    """
    return _build_idx_splits("mnist", "MNIST", root, DIGITS, image_size, mean, std)


def fashion_mnist(root: str, image_size: int | None = None, mean: float = 0.2860, std: float = 0.3530) -> Splits:
    """Clothes in MNIST's format (Xiao et al. 2017), read from root/FashionMNIST/raw; else as `mnist`."""
    return _build_idx_splits("fashion_mnist", "FashionMNIST", root, CLOTHES, image_size, mean, std)


def kmnist(root: str, image_size: int | None = None, mean: float = 0.1918, std: float = 0.3483) -> Splits:
    """Cursive Japanese in MNIST's format (Clanuwat et al. 2018), from root/KMNIST/raw; else as `mnist`."""
    return _build_idx_splits("kmnist", "KMNIST", root, HIRAGANA, image_size, mean, std)


def cifar10(
    root: str,
    image_size: int | None = None,
    mean: list[float] = CIFAR10_MEAN,
    std: list[float] = CIFAR10_STD,
) -> Splits:
    """50,000 + 10,000 colour images 32x32 of 10 classes (Krizhevsky 2009); float32 (N, 3, 32, 32).

    Read from root/cifar-10-batches-py. Raises DataError for a damaged file, or a missing one that cannot be
    downloaded; a file that would run code counts as damaged.
    """
    # The training part is published in five files.
    train = [f"data_batch_{i}" for i in range(1, 6)]
    folder = _provide_files("cifar10", "CIFAR10", root, "cifar-10-batches-py", [*train, "test_batch", "batches.meta"])
    class_names = read_class_names(folder / "batches.meta", "label_names", 10)
    files = {"train": [folder / name for name in train], "test": [folder / "test_batch"]}
    return _build_cifar_splits(files, "labels", class_names, image_size, mean, std)


def cifar100(
    root: str,
    image_size: int | None = None,
    mean: list[float] = CIFAR100_MEAN,
    std: list[float] = CIFAR100_STD,
) -> Splits:
    """As `cifar10` with 100 classes (the fine labels), read from root/cifar-100-python."""
    folder = _provide_files("cifar100", "CIFAR100", root, "cifar-100-python", ["train", "test", "meta"])
    class_names = read_class_names(folder / "meta", "fine_label_names", 100)
    files = {"train": [folder / "train"], "test": [folder / "test"]}
    return _build_cifar_splits(files, "fine_labels", class_names, image_size, mean, std)


def _build_idx_splits(
    data: str,
    dataset: str,
    root: str,
    class_names: tuple[str, ...],
    image_size: int | None,
    mean: float,
    std: float,
) -> Splits:
    folder = Path(root).expanduser() / dataset / "raw"
    if any(find_idx(folder, name) is None for name in IDX_FILES):
        fetch_images(data, dataset, folder, IDX_FILES)

    # A missing file is reported by its plain name.
    paths = [find_idx(folder, name) or folder / name for name in IDX_FILES]
    train_images, train_labels, test_images, test_labels = paths
    train = read_labelled(train_images, train_labels, len(class_names))
    test = read_labelled(test_images, test_labels, len(class_names))
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(f"{folder} has training and test images of different sizes: delete it and run again")

    # Grey images (N, H, W) get a channel.
    parts = {
        "train": _to_tensors(train[0][:, None], train[1]),
        "test": _to_tensors(test[0][:, None], test[1]),
    }
    origins = {
        "train": Origin.from_position(str(train_images), len(train[0])),
        "test": Origin.from_position(str(test_images), len(test[0])),
    }
    return build_image_splits(parts, class_names, image_size, [mean], [std], origins=origins)


def _provide_files(data: str, dataset: str, root: str, folder: str, files: list[str]) -> Path:
    """root/folder with all `files` in it, downloaded if one is missing."""
    path = Path(root).expanduser() / folder
    if not all((path / name).is_file() for name in files):
        fetch_images(data, dataset, path, files)
    return path


def _build_cifar_splits(
    files: dict[str, list[Path]],
    label_key: str,
    class_names: tuple[str, ...],
    image_size: int | None,
    mean: list[float],
    std: list[float],
) -> Splits:
    parts = {}
    origins = {}
    for part, paths in files.items():
        batches = [read_batch(path, label_key, len(class_names)) for path in paths]
        parts[part] = _to_tensors(
            np.concatenate([images for images, _ in batches]),
            np.concatenate([labels for _, labels in batches]),
        )
        origins[part] = Origin.join(
            [Origin.from_position(str(path), len(x)) for path, (x, _) in zip(paths, batches, strict=True)]
        )
    return build_image_splits(parts, class_names, image_size, mean, std, origins=origins)


def _to_tensors(images: NDArray[np.uint8], labels: NDArray[np.uint8] | NDArray[np.int64]) -> LabelledImages:
    """Bytes (N, C, H, W) to float32 in [0, 1], labels to int64."""
    pixels = torch.from_numpy(images.astype(np.float32)).div_(255)
    return pixels, torch.from_numpy(labels.astype(np.int64))


def _repeat_for_channels(value: float | None, channels: int) -> list[float] | None:
    return None if value is None else [value] * channels
