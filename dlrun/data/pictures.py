"""Encoded pictures with a class each, in files, archives or tables, read one by one or held in memory."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import torch
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
from dlrun.data.class_numbers import Answers
from dlrun.data.columns.preprocessing import Scale
from dlrun.data.files.picture import check_background, check_picture, measure_range, read_picture
from dlrun.data.files.pixels import (
    Constants,
    build_image_spec,
    build_image_splits,
    check_image_size,
    choose_channel_constants,
    normalize_,
)
from dlrun.data.origin import Origin
from dlrun.data.spec import Splits

T = TypeVar("T")

# A row, or (epoch seed, row).
Key = int | tuple[int, int]

# Images that need less of the machine's memory than this are kept there.
SHARE_OF_MEMORY = 0.25

_MOST_MISTAKES = 10
_PICTURES_PER_BLOCK = 1024


class EncodedPictures(Protocol):
    """Pictures as they are stored, and their targets: classes int64 (N,), or values float32 (N, 1)."""

    @property
    def targets(self) -> Tensor: ...

    @property
    def origin(self) -> Origin: ...

    def __len__(self) -> int: ...

    def open(self, row: int) -> tuple[Path, BinaryIO | None]:
        """The name of a picture, and its bytes; None where the name is that of a file. DataError if it is missing."""
        ...


@dataclass(frozen=True)
class PictureOptions:
    """How pictures become tensors.

    augment: transforms of torchvision.transforms.v2 by name, or {name: {argument: value}}, for training images; MixUp
    and CutMix for training batches. background: colour behind transparent images. pixel_range: the grey values that
    become 0 and 1 in images of more than 8 bits; (): 16 bits are scaled to 8.
    in_memory=None: yes if they need less than a quarter of the memory and there is no augmentation of images.
    reads_once: pictures are not to be opened before they are needed, so that broken ones are found only then.
    """

    image_size: int = 64
    mean: list[float] | None = None
    std: list[float] | None = None
    grayscale: bool = False
    augment: list[Any] | None = None
    in_memory: bool | None = None
    background: str = "white"
    pixel_range: Sequence[float] = ()
    task: str | None = "multiclass"
    reads_once: bool = False

    def check(self) -> None:
        """Raise RequestError for values that suit no picture."""
        check_image_size(self.image_size)
        check_background(self.background)
        _check_pixel_range(self.pixel_range)
        _split_augment(self.augment)

    def read(self, pictures: EncodedPictures, row: int) -> Tensor:
        """One picture (C, size, size): uint8, or float32 from 0 to 1."""
        path, file = pictures.open(row)
        return read_picture(path, self.image_size, self.grayscale, self.background, self.pixel_range, file)


class Pictures(Dataset[tuple[Tensor, int | Tensor]]):
    """Images read one by one, or held in memory: float32 (C, size, size), normalized, and the class, or value (1,).

    targets: int64 (N,), all classes, or values float32 (N, 1), known without reading an image; augments: whether there
    is an augmentation.
    dataset[index] is the plain image; dataset[epoch_seed, index] its augmentation in that epoch, the same in any
    order and process. A batch is one read (`__getitems__`, which torch's DataLoader calls). Raises DataError for a
    picture that cannot be decoded.
    """

    draws_random_numbers = False

    def __init__(
        self,
        encoded: EncodedPictures,
        options: PictureOptions,
        mean: Constants,
        std: Constants,
        augment: Augment | None = None,
        images: Tensor | None = None,
    ) -> None:
        """images: all of them, float32 (N, C, size, size) from 0 to 1 or uint8; None to read them one by one."""
        self.images = images
        self.encoded = encoded
        self.options = options
        self.targets = encoded.targets
        self.origin = encoded.origin
        self.augment = augment
        self.augments = augment is not None
        self.mean = mean
        self.std = std

        # Where rows lie side by side: see data/blocks.py.
        self.blocks = getattr(encoded, "blocks", None)

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: Key) -> tuple[Tensor, int | Tensor]:
        inputs, targets = self.__getitems__([index])
        return inputs[0], int(targets[0]) if targets.ndim == 1 else targets[0]

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        """Images (B, C, size, size) and classes int64 (B,), or values (B, 1)."""
        channels = 1 if self.options.grayscale else 3
        size = self.options.image_size
        inputs = torch.empty(len(keys), channels, size, size)
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
        image = self.options.read(self.encoded, row) if self.images is None else self.images[row]
        if self.augment is None or epoch_seed is None:
            return image
        # A copy of what is in memory, as a transform may change it in place.
        return apply_seeded(self.augment, image.clone() if self.images is not None else image, epoch_seed, row)


def build_picture_splits(
    parts: Mapping[str, EncodedPictures],
    answers: Answers,
    options: PictureOptions,
    notes: tuple[str, ...] = (),
    unheeded: Mapping[str, str] | None = None,
) -> Splits:
    """Splits of parts named "train", "val", "test".

    In memory the parts are `Split`s, with augmentation `Pictures`, and mean, std default to those of the training
    images; else they are `Pictures` and the default is 0.5. Raises DataError for up to ten pictures at once.
    """
    options.check()
    class_names = answers.class_names
    notes += answers.notes
    steps_of_images, steps_of_batches = _split_augment(options.augment)
    if steps_of_batches and answers.task == "regression":
        raise RequestError(
            f"data.augment={options.augment} mixes classes, and this is regression; leave out MixUp and CutMix"
        )
    shape = (1 if options.grayscale else 3, options.image_size, options.image_size)
    # As float32, 4 bytes a value.
    bytes_needed = 4 * sum(len(part) for part in parts.values()) * math.prod(shape)
    fits = bytes_needed < SHARE_OF_MEMORY * _memory_bytes()
    mixing = BatchMix(steps_of_batches, len(class_names)) if steps_of_batches else None
    # More than 8 bits would be lost in bytes.
    dtype = torch.float32 if options.pixel_range else torch.uint8
    transform = build_augment(steps_of_images, shape, dtype) if steps_of_images else None

    images: dict[str, Tensor] = {}
    if options.in_memory or (options.in_memory is None and transform is None and fits):
        images = _decode(parts, options)
    elif not options.reads_once:
        # A broken file is better reported now than in the middle of an epoch.
        _map_in_threads(lambda pictures, row: check_picture(*pictures.open(row)), parts.values())

    if images and transform is None:
        labelled = {name: (_to_unit_range(images.pop(name)), part.targets) for name, part in parts.items()}
        origins = {name: part.origin for name, part in parts.items()}
        splits = build_image_splits(labelled, class_names, None, options.mean, options.std, notes, origins)
        spec = splits.spec
    else:
        default = [0.5] * shape[0]
        if images:
            constants = choose_channel_constants(_to_unit_range(images["train"]), options.mean, options.std)
        else:
            empty = torch.empty(1, *shape)
            constants = choose_channel_constants(empty, options.mean or default, options.std or default)

        datasets: dict[str, Pictures] = {}
        for name, part in parts.items():
            # Other parts measure what the model does with images as they are.
            augment_part = transform if name == "train" else None
            datasets[name] = Pictures(part, options, *constants, augment_part, images.get(name))
        spec = build_image_spec(shape, class_names, *constants)
        splits = Splits(datasets["train"], datasets.get("val"), datasets.get("test"), spec, notes)

    spec = replace(spec, pixel_range=tuple(options.pixel_range))
    if answers.task == "binary":
        # One output: the logit of the second class.
        spec = replace(spec, task="binary", output_size=1)
    elif answers.task == "regression":
        values = parts["train"].targets.double()
        scale = Scale.fit(values[:, 0].numpy(), True)
        spec = replace(spec, task="regression", output_size=1, target_mean=(scale.mean,), target_std=(scale.std,))
    nothing_to_learn = answers.nothing_to_learn
    return replace(splits, spec=spec, unheeded=unheeded or {}, mixing=mixing, nothing_to_learn=nothing_to_learn)


def _split_augment(augment: list[Any] | None) -> tuple[list[Any], list[Any]]:
    """The steps for images, and those for batches."""
    # MixUp and CutMix mix rows of a batch, which a single image does not have.
    steps_of_images: list[Any] = []
    steps_of_batches: list[Any] = []
    for step in augment or ():
        is_of_batch = split_step(step)[0] in BATCH_TRANSFORMS
        (steps_of_batches if is_of_batch else steps_of_images).append(step)
    return steps_of_images, steps_of_batches


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


def measure_pixel_range(train: EncodedPictures) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """The lowest and highest value in images of more than 8 bits, and a note; both empty if there are none."""
    # Of the training images alone: the test part must not decide how it is read.
    measured = _map_in_threads(lambda pictures, row: measure_range(*pictures.open(row)), [train])
    ranges = [limits for limits in measured if limits is not None]
    if not ranges:
        return (), ()

    low = min(limits[0] for limits in ranges)
    high = max(limits[1] for limits in ranges)
    # Images of one grey value cannot be told apart, but can be read.
    high = high if high > low else low + 1.0
    note = (
        f"{len(ranges):,} of {len(train):,} training images have more than 8 bits, with grey values from {low:g} "
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


def _decode(parts: Mapping[str, EncodedPictures], options: PictureOptions) -> dict[str, Tensor]:
    """The images of each part (N, C, H, W): uint8, or float32 from 0 to 1 where some have more than 8 bits."""
    # All parts at once, so that an error names the broken pictures of all of them.
    everything = _map_in_threads(options.read, parts.values())
    decoded: dict[str, Tensor] = {}
    start = 0
    for name, part in parts.items():
        images = everything[start : start + len(part)]
        if any(image.dtype != torch.uint8 for image in images):
            images = [_to_unit_range(image) for image in images]
        decoded[name] = torch.stack(images)
        start += len(images)
    return decoded


def _map_in_threads(function: Callable[[EncodedPictures, int], T], parts: Iterable[EncodedPictures]) -> list[T]:
    """Apply a function to each picture, in order; in threads, as Pillow decodes without the interpreter lock.

    Raises DataError, for up to ten pictures at once.
    """
    results: list[T] = []
    mistakes = ErrorList(_MOST_MISTAKES)

    def apply(picture: tuple[EncodedPictures, int]) -> T | DataError:
        try:
            return function(*picture)
        except DataError as error:
            return error

    pictures = ((part, row) for part in parts for row in range(len(part)))
    with ThreadPoolExecutor() as pool:
        # A pending task takes a kilobyte, so not all are submitted at once.
        while block := list(islice(pictures, _PICTURES_PER_BLOCK)):
            for result in pool.map(apply, block):
                if isinstance(result, DataError):
                    mistakes.add(result)
                elif not mistakes.errors:
                    results.append(result)
    mistakes.raise_if_any()
    return results


def _memory_bytes() -> int:
    """All memory of this machine: unlike the free memory it is the same for a run and its resumption."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
