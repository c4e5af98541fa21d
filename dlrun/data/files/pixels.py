"""Images held in memory: resizing, scaling, and the splits made of them."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dlrun.core.errors import RequestError
from dlrun.data.files.framing import measure_framing
from dlrun.data.origin import Origin
from dlrun.data.spec import DataSpec, Split, Splits

# Images float32 (N, C, H, W) in [0, 1], labels int64 (N,).
LabelledImages = tuple[Tensor, Tensor]

# One value a channel.
Constants = tuple[float, ...]


def build_image_splits(
    parts: Mapping[str, LabelledImages],
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
    resized = {name: (resize(images, image_size), labels) for name, (images, labels) in parts.items()}

    # Both are measured before the training images are normalized in place.
    train = resized["train"][0]
    mean_of_channels, std_of_channels = choose_channel_constants(train, mean, std)
    framing = measure_framing(train)

    splits = {}
    for name, (images, labels) in resized.items():
        inputs = normalize_(images, mean_of_channels, std_of_channels)
        origin = origins.get(name) if origins else None
        splits[name] = Split((inputs,), labels, origin)

    spec = build_image_spec(tuple(train.shape[1:]), class_names, mean_of_channels, std_of_channels, framing)
    return Splits(splits["train"], splits.get("val"), splits.get("test"), spec, notes)


def build_image_spec(
    shape: tuple[int, ...], class_names: Sequence[str], mean: Constants, std: Constants, framing: Constants = ()
) -> DataSpec:
    """The spec of a multiclass task on images of shape (C, H, W)."""
    names = tuple(class_names)
    return DataSpec("image", shape, "multiclass", len(names), class_names=names, mean=mean, std=std, framing=framing)


def resize(images: Tensor, image_size: int | None) -> Tensor:
    """Resize to square images (N, C, image_size, image_size), bilinear, with antialiasing when they shrink."""
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
    """The given mean and std, or those of the images (N, C, H, W); std 1 for a channel of one colour.

    Raises RequestError for a wrong number of values, one that is no finite number, or a std <= 0.
    """
    channels = images.shape[1]
    if mean is None or std is None:
        measured_std, measured_mean = torch.std_mean(images, dim=(0, 2, 3), correction=0)
        if mean is None:
            mean = measured_mean.tolist()
        if std is None:
            std = [value if value > 0 else 1.0 for value in measured_std.tolist()]

    for key, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise RequestError(f"data.{key} has {len(values)} values but the images have {channels} channels")
        if not all(math.isfinite(value) for value in values):
            raise RequestError(f"data.{key}={list(values)} must be finite numbers, one for each channel")
    if not min(std) > 0:
        raise RequestError(f"data.std={list(std)} must be above 0, the images are divided by it")
    return tuple(mean), tuple(std)


def normalize_(images: Tensor, mean: Constants, std: Constants) -> Tensor:
    """Compute (x - mean) / std per channel, in place; images (N, C, H, W) or (C, H, W)."""
    shape = (-1, 1, 1)
    images.sub_(images.new_tensor(mean).view(shape)).div_(images.new_tensor(std).view(shape))
    return images
