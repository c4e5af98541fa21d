"""The user's images, one folder per class, and the random augmentation of those that train."""

import hashlib
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
from torch.utils.data import Dataset

from dlrun.core.errors import DataError, ErrorList, RequestError
from dlrun.core.suggest import suggest_one
from dlrun.data.class_folders import MOST_MISTAKES, Files, LabelColumns, find_files, find_labelled_files
from dlrun.data.files.picture import check_background, check_picture, measure_range, read_picture
from dlrun.data.files.pixels import (
    Constants,
    LabelledImages,
    build_image_spec,
    build_image_splits,
    check_image_size,
    choose_channel_constants,
    normalize_,
)
from dlrun.data.spec import Splits

T = TypeVar("T")

# uint8 images (C, H, W) to images of the same shape.
Augment = Callable[[Tensor], Tensor]

# Images that need less of the machine's memory than this are kept there.
SHARE_OF_MEMORY = 0.25

_FILES_PER_BLOCK = 1024


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images read from disk one by one: float32 (C, size, size), normalized, and the class.

    targets: int64 (N,), all classes, known without reading an image; augments: whether there is an augmentation.
    dataset[index] is the plain image; dataset[epoch_seed, index] its augmentation in that epoch, the same in any
    order and process. Raises DataError for a file that cannot be decoded.
    """

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
    ) -> None:
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

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, int]:
        epoch_seed, row = index if isinstance(index, tuple) else (None, index)
        path = _to_path(self.paths[row])
        image = read_picture(path, self.image_size, self.grayscale, self.background, self.pixel_range)
        if self.augment is not None and epoch_seed is not None:
            image = apply_seeded(self.augment, image, epoch_seed, row)

        return normalize_(_to_unit_range(image), self.mean, self.std), int(self.targets[row])


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

    in_memory=None: yes if they need less than a quarter of the memory and there is no augmentation. In memory
    the parts are `Split`s and mean, std default to those of the training images; else they are `ImageFiles` and
    the default is 0.5. task=binary: two classes, one output. Raises DataError or RequestError, naming the folder,
    file or key.
    """
    check_image_size(image_size)
    check_background(background)
    if augment and in_memory:
        raise RequestError("data.augment needs images read anew each epoch: leave out data.in_memory=true")

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
    if in_memory or (in_memory is None and not augment and bytes_needed < SHARE_OF_MEMORY * _memory_bytes()):
        images = _decode(files, read)
        origins = {name: part.origin for name, part in files.items()}
        splits = build_image_splits(images, class_names, None, mean, std, notes, origins)
        splits = replace(splits, spec=replace(splits.spec, pixel_range=tuple(pixel_range)), unheeded=unheeded)
        return _adapt_to_task(splits, task, nothing_to_learn)

    default = [0.5] * shape[0]
    constants = choose_channel_constants(torch.empty(1, *shape), mean or default, std or default)
    transform = build_augment(augment, shape) if augment else None
    datasets: dict[str, ImageFiles] = {}
    # A broken file is better reported now than in the middle of an epoch.
    _map_in_threads(check_picture, _join_paths(files))
    for name, part in files.items():
        augment_part = transform if name == "train" else None
        datasets[name] = ImageFiles(part, image_size, *constants, grayscale, augment_part, background, pixel_range)

    spec = replace(build_image_spec(shape, class_names, *constants), pixel_range=tuple(pixel_range))
    splits = Splits(datasets["train"], datasets.get("val"), datasets.get("test"), spec, notes, unheeded=unheeded)
    return _adapt_to_task(splits, task, nothing_to_learn)


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


def _decode(files: dict[str, Files], read: Callable[[Path], Tensor]) -> dict[str, LabelledImages]:
    # All parts at once, so that an error names the broken files of all of them.
    everything = _map_in_threads(read, _join_paths(files))
    parts: dict[str, LabelledImages] = {}
    start = 0
    for name, part in files.items():
        images = everything[start : start + len(part.paths)]
        if any(image.dtype != torch.uint8 for image in images):
            images = [_to_unit_range(image) for image in images]
        parts[name] = (_to_unit_range(torch.stack(images)), part.targets)
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


def build_augment(steps: list[Any], shape: tuple[int, int, int]) -> Augment:
    """Build one function of uint8 images (C, H, W) from the steps; it must keep `shape`.

    A step is a name of torchvision.transforms.v2, or {name: {argument: value}}.
    Raises RequestError for an unknown name, unsuitable arguments or another shape.
    """
    from torchvision.transforms import v2

    augment: Augment = v2.Compose([_build_transform(step) for step in steps])
    try:
        # One black image shows wrong arguments before the first epoch.
        result = apply_seeded(augment, torch.zeros(shape, dtype=torch.uint8), 0, 0)
    except Exception as error:
        # Transforms raise anything when their arguments do not suit the images.
        raise _build_augment_error(f"fails on an image of shape {shape}", error) from error

    if tuple(result.shape) != shape:
        raise RequestError(
            f"data.augment turns images of shape {shape} into {tuple(result.shape)}, but test images stay as "
            f"they are: set data.image_size={result.shape[-1]} or let it end with the size {shape[-1]}"
        )
    return augment


def apply_seeded(augment: Augment, image: Tensor, epoch_seed: int, index: int) -> Tensor:
    """Augment an image as a function of (epoch_seed, index) alone; the global generator keeps its state."""
    digest = hashlib.blake2b(f"{epoch_seed},{index}".encode(), digest_size=7).digest()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the generators of all GPUs as well.
        torch.default_generator.manual_seed(int.from_bytes(digest, "big"))
        return augment(image)


def _build_transform(step: Any) -> Any:
    from torchvision.transforms import v2

    name = step
    arguments: Any = {}
    if isinstance(step, dict) and len(step) == 1:
        name, arguments = next(iter(step.items()))
    if not isinstance(name, str) or not isinstance(arguments, dict | None):
        raise RequestError(
            f"data.augment: {step!r} is neither a name nor name and arguments, "
            "as in [RandomHorizontalFlip, {RandomCrop: {size: 28, padding: 4}}]"
        )

    transforms = []
    for key, value in vars(v2).items():
        if isinstance(value, type) and issubclass(value, v2.Transform):
            transforms.append(key)
    if name not in transforms:
        hint = suggest_one(name, transforms) or " such as RandomHorizontalFlip"
        raise RequestError(f"data.augment: '{name}' is no transform of torchvision.transforms.v2{hint}")

    try:
        return getattr(v2, name)(**(arguments or {}))
    except Exception as error:
        # Constructors raise anything for arguments they do not take.
        raise _build_augment_error(f"{name} does not take {arguments}", error) from error


def _build_augment_error(what: str, error: Exception) -> RequestError:
    return RequestError(f"data.augment: {what} ({' '.join(str(error).split())[:160]})")
