"""Images held in memory: resizing, scaling, and the splits made of them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dlrun.core.errors import RequestError
from dlrun.data.files.framing import measure_framing
from dlrun.data.origin import Origin
from dlrun.data.spec import DataSpec, Split, Splits

Part = tuple[Tensor, Tensor]  # images float32 (N, C, H, W) in [0, 1], labels int64 (N,)
Constants = tuple[float, ...]  # one value a channel


def build_image_splits(
    parts: Mapping[str, Part],
    class_names: Sequence[str],
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    notes: tuple[str, ...] = (),
    origins: Mapping[str, Origin] | None = None,
) -> Splits:
    """Splits of parts named "train", "val", "test": resized, then (x - mean) / std, in place to save memory.

    mean, std: one value a channel, None for those of the training images (after resizing). origins: of each part.
    Raises RequestError for an image_size < 1, a std <= 0 or a wrong number of values.
    """
    sized = {name: (resize(images, image_size), labels) for name, (images, labels) in parts.items()}
    train = sized["train"][0]
    constants, frame = choose_channel_constants(train, mean, std), measure_framing(train)
    known = origins or {}
    splits = {name: Split((normalize_(x, *constants),), labels, known.get(name)) for name, (x, labels) in sized.items()}
    spec = build_image_spec(tuple(train.shape[1:]), class_names, *constants, frame)
    return Splits(splits["train"], splits.get("val"), splits.get("test"), spec, notes)


def build_image_spec(
    shape: tuple[int, ...], class_names: Sequence[str], mean: Constants, std: Constants, frame: Constants = ()
) -> DataSpec:
    """The spec of images of one shape (C, H, W), each of one class."""
    names = tuple(class_names)
    return DataSpec("image", shape, "multiclass", len(names), class_names=names, mean=mean, std=std, framing=frame)


def resize(images: Tensor, image_size: int | None) -> Tensor:
    """Square images (N, C, image_size, image_size), bilinear, with antialiasing when they shrink."""
    if image_size is None:
        return images
    check_image_size(image_size)
    if tuple(images.shape[2:]) == (image_size, image_size):
        return images
    shrinks = image_size < min(images.shape[2:])
    return functional.interpolate(images, (image_size, image_size), mode="bilinear", antialias=shrinks)


def check_image_size(image_size: int) -> None:
    """Raise RequestError for a size below one pixel."""
    if image_size < 1:
        raise RequestError(f"data.image_size={image_size} must be at least 1 pixel, as in data.image_size=28")


def choose_channel_constants(
    images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Constants, Constants]:
    """The given constants, or those of the images (N, C, H, W); std 1 for a channel of one colour."""
    channels = images.shape[1]
    if mean is None or std is None:
        spread, centre = torch.std_mean(images, dim=(0, 2, 3), correction=0)
        mean = centre.tolist() if mean is None else mean
        std = [s if s > 0 else 1.0 for s in spread.tolist()] if std is None else std
    for key, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise RequestError(f"data.{key} has {len(values)} values but the images have {channels} channels")
    if not min(std) > 0:
        raise RequestError(f"data.std={list(std)} must be above 0, the images are divided by it")
    return tuple(mean), tuple(std)


def normalize_(images: Tensor, mean: Constants, std: Constants) -> Tensor:
    """(x - mean) / std a channel, in place; images (N, C, H, W) or (C, H, W)."""
    shape = (-1, 1, 1)
    images.sub_(images.new_tensor(mean).view(shape)).div_(images.new_tensor(std).view(shape))
    return images
