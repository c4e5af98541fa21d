"""The user's images, one folder per class, and the random augmentation of those that train."""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from dlrun.core.errors import DataError, ErrorList, RequestError
from dlrun.data.augmentation import (
    BATCH_TRANSFORMS,
    Augment,
    BatchMix,
    apply_seeded,
    build_augment,
    split_step,
)
from dlrun.data.class_folders import MOST_MISTAKES, Files, LabelColumns, find_files, find_labelled_files, list_tables
from dlrun.data.files.picture import check_background, check_picture, measure_range, read_picture
from dlrun.data.files.pixels import (
    Constants,
    build_image_spec,
    build_image_splits,
    check_image_size,
    choose_channel_constants,
    normalize_,
)
from dlrun.data.spec import Splits

T = TypeVar("T")

# A row, or (epoch seed, row).
Key = int | tuple[int, int]

# Images that need less of the machine's memory than this are kept there.
SHARE_OF_MEMORY = 0.25

_FILES_PER_BLOCK = 1024


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images read from disk one by one, or held in memory: float32 (C, size, size), normalized, and the class.

    targets: int64 (N,), all classes, known without reading an image; augments: whether there is an augmentation.
    dataset[index] is the plain image; dataset[epoch_seed, index] its augmentation in that epoch, the same in any
    order and process. A batch is one read (`__getitems__`, which torch's DataLoader calls). Raises DataError for a
    file that cannot be decoded.
    """

    draws_random_numbers = False

    def __init__(
        self,
        files: Files,
        image_size: int,
        mean: Constants,
        std: Constants,
        grayscale: bool = False,
        augment: Augment | None = None,
        background: str = "white",
        pixel_range: Sequence[float] = (),
        images: Tensor | None = None,
    ) -> None:
        """images: all of them, float32 (N, C, size, size) from 0 to 1 or uint8; None to read the files."""
        self.images = images
        self.paths = files.paths
        self.targets = files.targets
        self.origin = files.origin
        self.image_size = image_size
        self.grayscale = grayscale
        self.background = background
        self.pixel_range = tuple(pixel_range)
        self.augment = augment
        self.augments = augment is not None
        self.mean = mean
        self.std = std

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Key) -> tuple[Tensor, int]:
        inputs, targets = self.__getitems__([index])
        return inputs[0], int(targets[0])

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        """Images (B, C, size, size) and classes int64 (B,)."""
        channels = 1 if self.grayscale else 3
        inputs = torch.empty(len(keys), channels, self.image_size, self.image_size)
        if get_worker_info() is not None:
            # Written where the run reads it: sent later, it would be copied.
            inputs.share_memory_()  # type: ignore[no-untyped-call]

        rows = []
        for key, image in zip(keys, inputs, strict=True):
            epoch_seed, row = key if isinstance(key, tuple) else (None, key)
            _copy_to_unit_range(self._read_image(row, epoch_seed), image)
            # One image at a time stays in a core's cache.
            normalize_(image, self.mean, self.std)
            rows.append(row)
        return inputs, self.targets[rows]

    def _read_image(self, row: int, epoch_seed: int | None) -> Tensor:
        """The image uint8 or from 0 to 1, augmented if there is a seed."""
        if self.images is None:
            path = _to_path(self.paths[row])
            image = read_picture(path, self.image_size, self.grayscale, self.background, self.pixel_range)
        else:
            image = self.images[row]

        if self.augment is None or epoch_seed is None:
            return image
        # A copy of what is in memory, as a transform may change it in place.
        return apply_seeded(self.augment, image.clone() if self.images is not None else image, epoch_seed, row)


def image_folder(
    path: str,
    image_size: int = 64,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    grayscale: bool = False,
    test_fraction: float = 0.2,
    seed: int = 0,
    augment: list[Any] | None = None,
    in_memory: bool | None = None,
    task: Literal["multiclass", "binary"] = "multiclass",
    labels: str | None = None,
    file_column: str | None = None,
    label_column: str | None = None,
    background: str = "white",
    pixel_range: Sequence[float] | None = (),
    normalization: Literal["auto", "images"] = "images",
) -> Splits:
    """Images in path/<class>/, or divided into path/train/<class>/ and path/test/<class>/ (or val/).

    labels: a table in `path` of files and their labels in place of class folders; file_column, label_column: names of
    its columns, the first and the second by default.

    background: colour behind transparent images. pixel_range: the grey values that become 0 and 1 in images of more
    than 8 bits; None: the lowest and highest of the training images; (): 16 bits are scaled to 8, as older runs do.

    normalization: auto lets a net with trained weights choose mean and std, see experiment/builder/normalization.py.

    augment: transforms of torchvision.transforms.v2 by name, or {name: {argument: value}}, for training images; MixUp
    and CutMix for training batches.

    in_memory=None: yes if they need less than a quarter of the memory and there is no augmentation of images. In
    memory the parts are `Split`s, with augmentation `ImageFiles`, and mean, std default to those of the training
    images; else they are `ImageFiles` and the default is 0.5. task=binary: two classes, one output. Raises DataError
    or RequestError, naming the folder, file or key.
    """
    check_image_size(image_size)
    check_background(background)
    steps_of_images, steps_of_batches = _split_augment(augment)
    folder = Path(path).expanduser()
    if labels is None:
        catalogue = find_files(folder, test_fraction, seed)
    else:
        catalogue = find_labelled_files(folder, LabelColumns(labels, file_column, label_column), test_fraction, seed)
    files = catalogue.parts
    class_names = catalogue.class_names
    notes = catalogue.notes

    unheeded = {"test_fraction": f"the folders in {folder} are the parts"} if catalogue.has_own_parts else {}
    if labels is None:
        unheeded |= dict.fromkeys(("file_column", "label_column"), "it is for data.labels=<table>")

    nothing_to_learn = ""
    if len(class_names) == 1:
        what = "class folder" if labels is None else "label"
        nothing_to_learn = (
            f"{catalogue.source} has only one {what}, '{class_names[0]}', so there is nothing to tell apart"
        )
        only = catalogue.source / class_names[0]
        if labels is None and any(path.is_dir() for path in only.iterdir()):
            nothing_to_learn += f"; it holds folders itself, so perhaps type data.path={only}"
        elif labels is None and (tables := list_tables(folder)):
            nothing_to_learn += f"; if {tables[0]} names the files and their classes, type data.labels={tables[0]}"
    # One class is no mistake here: such data can still be evaluated.
    if task == "binary" and len(class_names) > 2:
        raise RequestError(f"data.task=binary: {folder} holds {len(class_names)} classes; type data.task=multiclass")

    if pixel_range is None:
        pixel_range, note = _measure_pixel_range(files["train"])
        notes += note
    else:
        _check_pixel_range(pixel_range)

    def read(path: Path) -> Tensor:
        return read_picture(path, image_size, grayscale, background, pixel_range)

    shape = (1 if grayscale else 3, image_size, image_size)
    # As float32, 4 bytes a value.
    bytes_needed = 4 * sum(len(part.paths) for part in files.values()) * shape[0] * image_size**2
    fits = bytes_needed < SHARE_OF_MEMORY * _memory_bytes()
    mixing = BatchMix(steps_of_batches, len(class_names)) if steps_of_batches else None
    # More than 8 bits would be lost in bytes.
    dtype = torch.float32 if pixel_range else torch.uint8
    transform = build_augment(steps_of_images, shape, dtype) if steps_of_images else None

    if in_memory or (in_memory is None and transform is None and fits):
        images = _decode(files, read)
    else:
        images = {}
        # A broken file is better reported now than in the middle of an epoch.
        _map_in_threads(check_picture, _join_paths(files))

    if images and transform is None:
        labelled = {name: (_to_unit_range(images.pop(name)), part.targets) for name, part in files.items()}
        origins = {name: part.origin for name, part in files.items()}
        splits = build_image_splits(labelled, class_names, None, mean, std, notes, origins)
        spec = splits.spec
    else:
        default = [0.5] * shape[0]
        if images:
            constants = choose_channel_constants(_to_unit_range(images["train"]), mean, std)
        else:
            constants = choose_channel_constants(torch.empty(1, *shape), mean or default, std or default)

        datasets: dict[str, ImageFiles] = {}
        for name, part in files.items():
            # Other parts measure what the model does with images as they are.
            augment_part = transform if name == "train" else None
            datasets[name] = ImageFiles(
                part, image_size, *constants, grayscale, augment_part, background, pixel_range, images.get(name)
            )
        spec = build_image_spec(shape, class_names, *constants)
        splits = Splits(datasets["train"], datasets.get("val"), datasets.get("test"), spec, notes)

    spec = replace(spec, pixel_range=tuple(pixel_range))
    splits = replace(splits, spec=spec, unheeded=unheeded, mixing=mixing)
    return _adapt_to_task(splits, task, nothing_to_learn)


def _split_augment(augment: list[Any] | None) -> tuple[list[Any], list[Any]]:
    """The steps for images, and those for batches."""
    # MixUp and CutMix mix rows of a batch, which a single image does not have.
    steps_of_images: list[Any] = []
    steps_of_batches: list[Any] = []
    for step in augment or ():
        is_of_batch = split_step(step)[0] in BATCH_TRANSFORMS
        (steps_of_batches if is_of_batch else steps_of_images).append(step)
    return steps_of_images, steps_of_batches


def _adapt_to_task(splits: Splits, task: Literal["multiclass", "binary"], nothing_to_learn: str) -> Splits:
    splits = replace(splits, nothing_to_learn=nothing_to_learn)
    if task == "multiclass":
        return splits

    # One output: the logit of the second class.
    return replace(splits, spec=replace(splits.spec, task=task, output_size=1))


def _check_pixel_range(pixel_range: Sequence[float]) -> None:
    """Raise RequestError unless it is empty, or two finite numbers in ascending order."""
    if not len(pixel_range):
        return
    is_finite = all(math.isfinite(value) for value in pixel_range)
    if len(pixel_range) != 2 or not is_finite or not pixel_range[0] < pixel_range[1]:
        raise RequestError(
            f"data.pixel_range={list(pixel_range)} must be the grey value that becomes black and a larger one that "
            "becomes white, as in data.pixel_range=[0,4095]"
        )


def _measure_pixel_range(train: Files) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """The lowest and highest value in images of more than 8 bits, and a note; both empty if there are none."""
    # Of the training images alone: the test part must not decide how it is read.
    ranges = [limits for limits in _map_in_threads(measure_range, train.paths) if limits is not None]
    if not ranges:
        return (), ()

    low = min(limits[0] for limits in ranges)
    high = max(limits[1] for limits in ranges)
    # Images of one grey value cannot be told apart, but can be read.
    high = high if high > low else low + 1.0
    note = (
        f"{len(ranges):,} of {len(train.paths):,} training images have more than 8 bits, with grey values from {low:g} "
        f"to {high:g}, which became 0 to 1; data.pixel_range=[<black>,<white>] says otherwise."
    )
    return (low, high), (note,)


def _to_unit_range(image: Tensor) -> Tensor:
    """Float32 in [0, 1]. Images of more than 8 bits are floats already, and a transform may convert, too."""
    return image.float().div_(255) if image.dtype == torch.uint8 else image.float()


def _copy_to_unit_range(image: Tensor, out: Tensor) -> None:
    """Write what `_to_unit_range` returns into `out`."""
    out.copy_(image)
    if image.dtype == torch.uint8:
        out.div_(255)


def _decode(files: dict[str, Files], read: Callable[[Path], Tensor]) -> dict[str, Tensor]:
    """The images of each part (N, C, H, W): uint8, or float32 from 0 to 1 where some have more than 8 bits."""
    # All parts at once, so that an error names the broken files of all of them.
    everything = _map_in_threads(read, _join_paths(files))
    parts: dict[str, Tensor] = {}
    start = 0
    for name, part in files.items():
        images = everything[start : start + len(part.paths)]
        if any(image.dtype != torch.uint8 for image in images):
            images = [_to_unit_range(image) for image in images]
        parts[name] = torch.stack(images)
        start += len(images)
    return parts


def _join_paths(files: dict[str, Files]) -> NDArray[np.bytes_]:
    return np.concatenate([part.paths for part in files.values()])


def _map_in_threads(function: Callable[[Path], T], paths: NDArray[np.bytes_]) -> list[T]:
    """Apply a function to each path, in order; in threads, as Pillow decodes without the interpreter lock.

    Raises DataError, for up to ten files at once.
    """
    results: list[T] = []
    mistakes = ErrorList(MOST_MISTAKES)

    def apply(path: Path) -> T | DataError:
        try:
            return function(path)
        except DataError as error:
            return error

    with ThreadPoolExecutor() as pool:
        # A pending task takes a kilobyte, so not all are submitted at once.
        for start in range(0, len(paths), _FILES_PER_BLOCK):
            for result in pool.map(apply, map(_to_path, paths[start : start + _FILES_PER_BLOCK])):
                if isinstance(result, DataError):
                    mistakes.add(result)
                elif not mistakes.errors:
                    results.append(result)
    mistakes.raise_if_any()
    return results


def _to_path(name: bytes) -> Path:
    return Path(os.fsdecode(name))


def _memory_bytes() -> int:
    """All memory of this machine: unlike the free memory it is the same for a run and its resumption."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
