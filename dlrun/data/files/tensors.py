"""Tensors from files of others: nothing in them is run, and none fills the memory or changes unseen."""

import io
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_DEEPEST = 100  # levels of lists and mappings
_MOST_VALUES = 5_000_000
_MOST_SHARED = 16  # times the size of the file: so much may tensors stand for that share their numbers


def unpickle(content: bytes) -> Any:
    """What torch.save wrote, on the CPU. ValueError for what would take far more memory than the file.

    Whatever else a damaged or foreign file makes torch raise passes through.
    """
    if content.startswith(b"PK"):
        refuse_compressed(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch remarks on odd pickles, and then refuses them
        value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    refuse_odd_tensors(value, len(content))
    return value


def refuse_compressed(content: bytes) -> None:
    """ValueError for an archive that stands for more than it holds: torch itself writes none that is compressed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
    total = sum(entry.file_size for entry in entries)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or total > len(content):
        raise ValueError(f"its {len(content):,} bytes stand for {total:,}")


def refuse_odd_tensors(value: Any, size: int) -> None:
    """ValueError for what would take far more memory than the file of `size` bytes, or is no ordinary tensor.

    Sparse, quantized and meta tensors, and those that repeat their numbers, are never saved.
    """
    level = [value]
    count = 0
    total = 0
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for part in level:
            if isinstance(part, Tensor):
                _refuse_odd(part)
                total += part.numel() * part.element_size()
            elif isinstance(part, Mapping):
                below += part.keys()
                below += part.values()
            elif isinstance(part, list | tuple | set | frozenset):
                below += part
        count += len(below)
        if count > _MOST_VALUES:
            raise ValueError(f"it holds more than {_MOST_VALUES:,} values")
        if total > _MOST_SHARED * size:
            raise ValueError(f"its {size:,} bytes stand for tensors of {total:,}")
        if not below:
            return
        level = below
    raise ValueError(f"it is nested more than {_DEEPEST} levels deep")


def _refuse_odd(tensor: Tensor) -> None:
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise ValueError(f"it holds a tensor of an odd kind ({tensor.layout}, {tensor.dtype}, {tensor.device})")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"it holds a tensor {tuple(tensor.shape)} that repeats its numbers")


def load_weights(net: nn.Module, weights: Mapping[str, Any], strict: bool = True) -> Any:
    """Put weights into a net, as load_state_dict does. RuntimeError where they are of another net.

    Numbers of another kind (complex, or whole ones for floats) are refused too: torch would convert them unseen.
    """
    ours = net.state_dict()
    for key, tensor in weights.items():
        mine = ours.get(key)
        if isinstance(tensor, Tensor) and isinstance(mine, Tensor) and get_number_kind(mine) != get_number_kind(tensor):
            raise RuntimeError(f"{key} is {tensor.dtype} there, and {mine.dtype} in this model")
    return net.load_state_dict(weights, strict=strict)


def get_number_kind(tensor: Tensor) -> str:
    """Complex numbers, floats, or whole numbers."""
    if tensor.is_complex():
        return "complex"
    return "float" if tensor.is_floating_point() else "whole"
