"""Random changes to training images, named as torchvision.transforms.v2 names them."""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlrun.core.errors import RequestError
from dlrun.core.suggest import did_you_mean

Augment = Callable[[Tensor], Tensor]


def build_augment(steps: list[Any], shape: tuple[int, int, int]) -> Augment:
    """The steps as one function on uint8 images of that shape (C, H, W), which it must keep.

    A step is a name of torchvision.transforms.v2, or {name: {argument: value}}.
    Raises RequestError for an unknown name, unsuitable arguments or another shape.
    """
    from torchvision.transforms import v2

    augment: Augment = v2.Compose([_step(step) for step in steps])
    try:
        result = seeded(augment, torch.zeros(shape, dtype=torch.uint8), 0, 0)
    except Exception as error:  # whatever the transform raises when its arguments do not suit the images
        raise _refused(f"fails on an image of shape {shape}", error) from error
    if tuple(result.shape) != shape:
        raise RequestError(
            f"data.augment turns images of shape {shape} into {tuple(result.shape)}, but test images stay as "
            f"they are: set data.image_size={result.shape[-1]} or let it end with the size {shape[-1]}"
        )
    return augment


def seeded(augment: Augment, image: Tensor, epoch_seed: int, index: int) -> Tensor:
    """The augmented image, a function of (epoch_seed, index) alone; the global generator is left alone."""
    digest = hashlib.blake2b(f"{epoch_seed},{index}".encode(), digest_size=7).digest()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the generators of all GPUs as well.
        torch.default_generator.manual_seed(int.from_bytes(digest, "big"))
        return augment(image)


def _step(step: Any) -> Any:
    from torchvision.transforms import v2

    name, arguments = next(iter(step.items())) if isinstance(step, dict) and len(step) == 1 else (step, {})
    if not isinstance(name, str) or not isinstance(arguments, dict | None):
        raise RequestError(
            f"data.augment: {step!r} is neither a name nor name and arguments, "
            "as in [RandomHorizontalFlip, {RandomCrop: {size: 28, padding: 4}}]"
        )
    known = [n for n, v in vars(v2).items() if isinstance(v, type) and issubclass(v, v2.Transform)]
    if name not in known:
        hint = did_you_mean(name, known) or " such as RandomHorizontalFlip"
        raise RequestError(f"data.augment: '{name}' is no transform of torchvision.transforms.v2{hint}")
    try:
        return getattr(v2, name)(**(arguments or {}))
    except Exception as error:  # its constructors raise what they like
        raise _refused(f"{name} does not take {arguments}", error) from error


def _refused(what: str, error: Exception) -> RequestError:
    return RequestError(f"data.augment: {what} ({' '.join(str(error).split())[:160]})")
