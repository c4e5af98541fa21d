"""Random augmentation of training images: of each alone, and of whole batches, whose targets become soft."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dlrun.core.errors import RequestError
from dlrun.core.suggest import suggest_one

# Images (C, H, W), uint8 or floats from 0 to 1, to images of the same shape.
Augment = Callable[[Tensor], Tensor]

# Arguments of the model, and targets, as in data/batches.py.
Batch = tuple[tuple[Tensor, ...], Tensor]

# Transforms of batches, the others are for one image.
BATCH_TRANSFORMS = ("MixUp", "CutMix")

# Draws that are tried before the first epoch: some transforms choose among others.
_TRIALS = 16


class BatchMix:
    """torchvision's MixUp and CutMix on training batches (B, C, H, W) of classes; of several, one is drawn a batch.

    What is drawn depends on seed, epoch and number of the batch alone, so that an epoch can be entered anywhere.
    """

    def __init__(self, steps: list[Any], classes: int) -> None:
        """RequestError for arguments that a transform does not take."""
        self.names = [split_step(step)[0] for step in steps]
        self.transforms = [_build_transform(step, num_classes=classes) for step in steps]

    def mix(
        self, batches: Iterator[Batch], seed: int, epoch: int, first: int, is_part: bool = False
    ) -> Iterator[Batch]:
        """Yield mixed batches: inputs (images, shares of the classes), and the class of the largest share, int64 (B,).

        first: number of the first batch in its epoch. is_part: each batch is a process's part of it behind the row
        before, with which its first row is mixed, as torchvision mixes each row with the one before; that row is
        dropped.
        """
        for number, (inputs, targets) in enumerate(batches, first):
            # A process without a row of a batch has nothing to mix.
            if not targets.numel():
                yield inputs, targets
                continue

            (images,) = inputs
            with seed_generator(f"{seed},{epoch},batch {number}"):
                transform = self.transforms[int(torch.randint(len(self.transforms), ()))]
                mixed, shares = transform(images, targets)
            if is_part:
                images, mixed, shares = images[1:], mixed[1:], shares[1:]
            # Convolutions are faster in the layout of before.
            if mixed.stride() != images.stride():
                mixed = torch.empty_like(images).copy_(mixed)
            yield (mixed, shares.to(images.dtype)), shares.argmax(-1)

    @staticmethod
    def split_inputs(inputs: tuple[Tensor, ...], targets: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The arguments of the model, and what its loss compares with: the shares of a mixed batch."""
        if len(inputs) == 1:
            return inputs, targets
        images, shares = inputs
        return (images,), shares


def build_augment(steps: list[Any], shape: tuple[int, int, int], dtype: torch.dtype = torch.uint8) -> Augment:
    """Build one function of images (C, H, W) from the steps; it must keep `shape`.

    dtype: of the images, uint8, or float32 from 0 to 1.

    A step is a name of torchvision.transforms.v2, or {name: {argument: value}}.
    Raises RequestError for an unknown name, unsuitable arguments or another shape.
    """
    from torchvision.transforms import v2

    augment: Augment = v2.Compose([_build_transform(step) for step in steps])
    try:
        # A black image shows wrong arguments before the first epoch.
        image = torch.zeros(shape, dtype=dtype)
        result = apply_seeded(augment, image, 0, 0)
        for number in range(1, _TRIALS):
            apply_seeded(augment, image, 0, number)
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
    with seed_generator(f"{epoch_seed},{index}"):
        return augment(image)


@contextmanager
def seed_generator(key: str) -> Iterator[None]:
    """Seed the CPU's global generator by a text inside the block, and give it its state back."""
    digest = hashlib.blake2b(key.encode(), digest_size=7).digest()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the generators of all GPUs as well.
        torch.default_generator.manual_seed(int.from_bytes(digest, "big"))
        yield


def split_step(step: Any) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a step; RequestError for what is neither a name nor {name: {argument: value}}."""
    name = step
    arguments: Any = {}
    if isinstance(step, dict) and len(step) == 1:
        name, arguments = next(iter(step.items()))
    if not isinstance(name, str) or not isinstance(arguments, dict | None):
        raise RequestError(
            f"data.augment: {step!r} is neither a name nor name and arguments, "
            "as in [RandomHorizontalFlip, {RandomCrop: {size: 28, padding: 4}}]"
        )
    return name, arguments or {}


def _build_transform(step: Any, **given: Any) -> Any:
    """The transform of a step; given: arguments that dlrun knows."""
    from torchvision.transforms import v2

    name, arguments = split_step(step)
    transforms = []
    for key, value in vars(v2).items():
        if isinstance(value, type) and issubclass(value, v2.Transform):
            transforms.append(key)
    if name not in transforms:
        hint = suggest_one(name, transforms) or " such as RandomHorizontalFlip"
        raise RequestError(f"data.augment: '{name}' is no transform of torchvision.transforms.v2{hint}")

    try:
        return getattr(v2, name)(**arguments, **given)
    except Exception as error:
        # Constructors raise anything for arguments they do not take.
        raise _build_augment_error(f"{name} does not take {arguments}", error) from error


def _build_augment_error(what: str, error: Exception) -> RequestError:
    return RequestError(f"data.augment: {what} ({' '.join(str(error).split())[:160]})")
