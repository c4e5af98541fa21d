"""Buffers that a net makes, or gives another shape, in its forward pass: a net that is built afresh lacks them."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Shape = tuple[int, ...]
Layout = tuple[Shape, torch.dtype, bool]  # shape and type of a buffer, and whether it is saved


class BuiltBuffers:
    """The buffers of a net as it was built, by which those that came later are told."""

    def __init__(self, net: nn.Module) -> None:
        """Look at a net that has met no data yet."""
        self.net = net
        self.shapes = dict(_shapes_of(net))

    def made(self) -> list[str]:
        """Names of the buffers that were made, or were given another shape, since the net was built."""
        return sorted(name for name, shape in _shapes_of(self.net) if shape and shape != self.shapes.get(name))

    def fit(self, weights: Mapping[str, Any], made: Collection[str] = ()) -> None:
        """Give the net the buffers that saved weights of it have, by name and shape; it has parameters as before.

        made: which of them the net that was saved had made in its forward pass. All others stay, as does a buffer of
        torch's own layers: where those differ, the weights are of another net.
        """
        changed = {*made, *self.made()}
        for name in sorted(changed):
            path, _, attribute = name.rpartition(".")
            try:
                owner = self.net.get_submodule(path)
            except AttributeError:  # of another net, as `load_state_dict` then says
                continue
            saved = weights.get(name)
            if isinstance(saved, Tensor):
                _give(owner, attribute, saved)
            elif name not in self.shapes:
                owner._buffers.pop(attribute, None)
            elif self.shapes[name] is None:
                owner._buffers[attribute] = None


def get_layout(net: nn.Module) -> dict[str, Layout | None]:
    """All buffers of a net by name; None for one that is registered and not there."""
    layout: dict[str, Layout | None] = {}
    for path, module in net.named_modules():
        for name, buffer in module._buffers.items():
            is_saved = name not in module._non_persistent_buffers_set
            entry = None if buffer is None else (tuple(buffer.shape), buffer.dtype, is_saved)
            layout[f"{path}.{name}".lstrip(".")] = entry
    return layout


def apply_layout(net: nn.Module, layout: Mapping[str, Layout | None]) -> None:
    """Give a net the buffers that another process's copy of it has; their numbers are still to come."""
    mine = get_layout(net)
    for name in mine.keys() | layout.keys():
        if name in mine and name in layout and mine[name] == layout[name]:
            continue
        path, _, attribute = name.rpartition(".")
        owner = net.get_submodule(path)
        owner._buffers.pop(attribute, None)
        owner._non_persistent_buffers_set.discard(attribute)
        if name not in layout:
            continue
        entry = layout[name]
        if entry is None:
            owner.register_buffer(attribute, None)
        else:
            shape, dtype, is_saved = entry
            empty = torch.empty(shape, dtype=dtype, device=_device_of(net))
            owner.register_buffer(attribute, empty, persistent=is_saved)


def get_extra_states(net: nn.Module) -> dict[str, Any]:
    """What modules keep as extra state, by their names."""
    states: dict[str, Any] = {}
    for name, module in net.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            states[name] = module.get_extra_state()
    return states


def _shapes_of(net: nn.Module) -> Iterator[tuple[str, Shape | None]]:
    """Every buffer that is saved, with its shape; None for one that is registered and has no numbers yet."""
    for path, module in net.named_modules(remove_duplicate=False):
        for name, buffer in module._buffers.items():
            if name in module._non_persistent_buffers_set:
                continue
            is_there = buffer is not None and not is_lazy(buffer)
            yield f"{path}.{name}".lstrip("."), tuple(buffer.shape) if is_there else None


def _give(owner: nn.Module, name: str, like: Tensor) -> None:
    """Give a module a buffer of this shape, unless the name stands for something else in it."""
    if name not in owner._buffers:
        if name.isidentifier() and not hasattr(owner, name):
            owner.register_buffer(name, torch.empty_like(like, device=_device_of(owner)))
        return

    mine = owner._buffers[name]
    is_of_torch = type(owner).__module__.startswith(("torch.", "dlrun."))
    if mine is None or is_lazy(mine):
        if not is_of_torch:
            owner._buffers[name] = torch.empty_like(like, device=_device_of(owner))
    elif mine.shape != like.shape and not is_of_torch:
        owner._buffers[name] = mine.new_empty(like.shape)


def _device_of(module: nn.Module) -> torch.device:
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
