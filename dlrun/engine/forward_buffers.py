"""Buffers that a model creates or reshapes in its forward pass: a model that was just built lacks them."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Shape = tuple[int, ...]

# Shape and type of a buffer, and whether it is saved in checkpoints.
Layout = tuple[Shape, torch.dtype, bool]


class BuiltBuffers:
    """The buffers that a model had when it was built, to find those that it creates later."""

    def __init__(self, net: nn.Module) -> None:
        """Record the buffers of a model that has met no data yet."""
        self.net = net
        self.shapes = dict(_iterate_shapes(net))

    def list_created(self) -> list[str]:
        """Names of the buffers that were created or reshaped since the model was built."""
        return sorted(name for name, shape in _iterate_shapes(self.net) if shape and shape != self.shapes.get(name))

    def fit(self, weights: Mapping[str, Any], created: Collection[str] = ()) -> None:
        """Give the model the buffers of saved weights, by name and shape; parameters are not touched.

        created: names of the buffers that the saved model had created in its forward pass. All others stay, and so do
        buffers of torch's own layers: where those differ, the weights are of another model.
        """
        for name in sorted({*created, *self.list_created()}):
            path, _, attribute = name.rpartition(".")
            try:
                owner = self.net.get_submodule(path)
            except AttributeError:
                # The weights are of another model, as `load_state_dict` will say.
                continue

            saved = weights.get(name)
            if isinstance(saved, Tensor):
                _register_like(owner, attribute, saved)
            elif name not in self.shapes:
                owner._buffers.pop(attribute, None)
            elif self.shapes[name] is None:
                owner._buffers[attribute] = None


def get_layout(net: nn.Module) -> dict[str, Layout | None]:
    """Layout of all buffers of a model by name; None for one that is registered as None."""
    layout: dict[str, Layout | None] = {}
    for path, module in net.named_modules():
        for name, buffer in module._buffers.items():
            entry = None
            if buffer is not None:
                is_saved = name not in module._non_persistent_buffers_set
                entry = (tuple(buffer.shape), buffer.dtype, is_saved)
            layout[f"{path}.{name}".lstrip(".")] = entry

    return layout


def apply_layout(net: nn.Module, layout: Mapping[str, Layout | None]) -> None:
    """Give a model the buffers that another rank's copy of it has; their values are not set yet."""
    current = get_layout(net)
    for name in current.keys() | layout.keys():
        if name in current and name in layout and current[name] == layout[name]:
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
            continue

        shape, dtype, is_saved = entry
        empty = torch.empty(shape, dtype=dtype, device=_get_device(net))
        owner.register_buffer(attribute, empty, persistent=is_saved)


def get_extra_states(net: nn.Module) -> dict[str, Any]:
    """Extra state of the modules that define it, by module name."""
    states: dict[str, Any] = {}
    for name, module in net.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            states[name] = module.get_extra_state()
    return states


def _iterate_shapes(net: nn.Module) -> Iterator[tuple[str, Shape | None]]:
    """Name and shape of every buffer that is saved; None for one that is registered without values."""
    # A shared module has all its names in a state_dict.
    for path, module in net.named_modules(remove_duplicate=False):
        for name, buffer in module._buffers.items():
            if name in module._non_persistent_buffers_set:
                continue
            shape = None
            if buffer is not None and not is_lazy(buffer):
                shape = tuple(buffer.shape)
            yield f"{path}.{name}".lstrip("."), shape


def _register_like(owner: nn.Module, name: str, saved: Tensor) -> None:
    """Give a module a buffer of the saved one's shape, unless the name stands for something else in it."""
    if name not in owner._buffers:
        if name.isidentifier() and not hasattr(owner, name):
            owner.register_buffer(name, torch.empty_like(saved, device=_get_device(owner)))
        return

    # A layer of torch's or dlrun's knows its shapes.
    if type(owner).__module__.startswith(("torch.", "dlrun.")):
        return
    current = owner._buffers[name]
    if current is None or is_lazy(current):
        owner._buffers[name] = torch.empty_like(saved, device=_get_device(owner))
    elif current.shape != saved.shape:
        owner._buffers[name] = current.new_empty(saved.shape)


def _get_device(module: nn.Module) -> torch.device:
    """Device of a module's first parameter or buffer; the CPU without any."""
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
