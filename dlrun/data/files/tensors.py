"""Tensors from files of unknown origin: no code in them is run, and none fills the memory or changes silently."""

import contextlib
import io
import threading
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Levels of lists and mappings.
_MOST_LEVELS = 100
_MOST_VALUES = 5_000_000

# Total size of tensors that share their storage, as a multiple of the file's size.
_MOST_SHARED = 16


def unpickle(content: bytes) -> Any:
    """Load bytes written by torch.save, on the CPU. ValueError for content that takes far more memory than the file.

    Any other exception that torch raises for a damaged or foreign file passes through.
    """
    # torch.save writes zip archives; before version 1.6 it wrote bare pickles.
    if content.startswith(b"PK"):
        refuse_compressed(content)

    with contextlib.ExitStack() as stack:
        # Filters are the whole process's: a thread that sets them would undo what the main one does meanwhile.
        if threading.current_thread() is threading.main_thread():
            stack.enter_context(warnings.catch_warnings())
            # torch warns about odd pickles, and then refuses them.
            warnings.simplefilter("ignore")
        value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    refuse_odd_tensors(value, len(content))
    return value


def refuse_compressed(content: bytes) -> None:
    """Raise ValueError for an archive that expands to more than its size: torch itself never compresses."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()

    total = sum(entry.file_size for entry in entries)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or total > len(content):
        raise ValueError(f"its {len(content):,} bytes stand for {total:,}")


def refuse_odd_tensors(value: Any, size: int) -> None:
    """Raise ValueError for content far larger than its file of `size` bytes, and for tensors of an odd kind.

    Sparse, quantized and meta tensors, and those that repeat their numbers, are never saved.
    """
    # Level by level, without recursion: nesting may be deeper than Python's stack.
    level = [value]
    count = 0
    total = 0
    for _ in range(_MOST_LEVELS):
        below: list[Any] = []
        for part in level:
            if isinstance(part, Tensor):
                _refuse_odd_tensor(part)
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
    raise ValueError(f"it is nested more than {_MOST_LEVELS} levels deep")


def _refuse_odd_tensor(tensor: Tensor) -> None:
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise ValueError(f"it holds a tensor of an odd kind ({tensor.layout}, {tensor.dtype}, {tensor.device})")

    # An expanded tensor is larger than its storage.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"it holds a tensor {tuple(tensor.shape)} that repeats its numbers")


def load_weights(net: nn.Module, weights: Mapping[str, Any], strict: bool = True) -> Any:
    """Load weights into a net, as load_state_dict does. RuntimeError for weights of another net.

    Numbers of another kind (complex, or whole ones for floats) are refused too: torch would convert them silently.
    """
    state = net.state_dict()
    for key, tensor in weights.items():
        own = state.get(key)
        if not isinstance(tensor, Tensor) or not isinstance(own, Tensor):
            # load_state_dict reports missing and unexpected keys.
            continue
        if get_number_kind(own) != get_number_kind(tensor):
            raise RuntimeError(f"{key} is {tensor.dtype} there, and {own.dtype} in this model")
    return net.load_state_dict(weights, strict=strict)


def get_number_kind(tensor: Tensor) -> str:
    """Kind of a tensor's numbers: "complex", "float" or "whole"."""
    if tensor.is_complex():
        return "complex"
    return "float" if tensor.is_floating_point() else "whole"
