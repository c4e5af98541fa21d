"""Any list of torch.nn layers, written in the config."""

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dlrun.core.errors import MisfitError, RequestError
from dlrun.core.user_code import get_first_clause
from dlrun.data.spec import DataSpec
from dlrun.models.checks import build_unknown_error

# All public layers of torch.nn by name.
LAYERS: dict[str, type[nn.Module]] = {
    name: value
    for name, value in vars(nn).items()
    if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__.startswith("torch.nn.")
}


class Sequential(nn.Module):
    """A chain of layers: (B, *input_shape) -> (B, output_size).

    layers: an entry is a name (`ReLU`), a name with positional arguments (`{Linear: [in, 64]}`) or with
    named ones (`{Conv2d: {in_channels: in, out_channels: 8, kernel_size: 3}}`). `in` stands for the
    channels in layers on images (Conv..., ...2d) and for the flattened input size in all others, `out`
    for the output size. Lazy layers take their size from their input.
    Raises RequestError for a layer that torch.nn does not have or cannot build, MisfitError for shapes
    that do not fit.
    """

    kinds: ClassVar[tuple[str, ...]] = ("vector", "image", "series")
    tasks: ClassVar[tuple[str, ...]] = ("regression", "binary", "multiclass", "multilabel", "multitask")

    def __init__(
        self,
        spec: DataSpec,
        layers: list[Any] = ["Flatten", {"Linear": ["in", 64]}, "ReLU", {"Linear": [64, "out"]}],  # noqa: B006
    ) -> None:
        super().__init__()
        modules = [_build_layer(f"model.layers[{i}]", entry, spec) for i, entry in enumerate(layers)]
        _try_shapes(modules, spec)
        self.layers = nn.Sequential(*modules)

    def list_layers(self) -> list[nn.Module]:
        """The layers that a forward pass calls, one after the other."""
        return list(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *input_shape) -> (B, output_size)."""
        output: Tensor = self.layers(x)
        return output


def _build_layer(key: str, entry: Any, spec: DataSpec) -> nn.Module:
    """The layer that one entry of the list describes."""
    name, args, kwargs = _parse_entry(key, entry)
    if name not in LAYERS:
        raise build_unknown_error(key, name, LAYERS, "type a layer of torch.nn, such as ReLU or {Linear: [in, 64]}")

    args = _replace_sizes(args, name, spec)
    kwargs = _replace_sizes(kwargs, name, spec)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Lazy modules are a new feature")
            return LAYERS[name](*args, **kwargs)
    except Exception as error:
        # torch's layers reject arguments by many types of exception.
        raise RequestError(
            f"{key} cannot build {name} from {kwargs or args} ({get_first_clause(error)}): change its arguments."
        ) from error


def _parse_entry(key: str, entry: Any) -> tuple[str, list[Any], dict[str, Any]]:
    """Name, positional and named arguments of an entry."""
    if isinstance(entry, str):
        return entry, [], {}
    if isinstance(entry, dict) and len(entry) == 1:
        ((name, settings),) = entry.items()
        if isinstance(settings, dict):
            return str(name), [], settings

        # A single argument needs no list: {LazyLinear: 10}.
        return str(name), settings if isinstance(settings, list) else [settings], {}
    raise RequestError(f"{key}={entry} is no layer: type one name a list entry, such as ReLU or {{Linear: [in, 64]}}.")


def _replace_sizes(value: Any, layer: str, spec: DataSpec) -> Any:
    """`value` with the words `in` and `out` replaced by sizes."""
    if isinstance(value, list):
        return [_replace_sizes(item, layer, spec) for item in value]
    if isinstance(value, dict):
        return {key: _replace_sizes(item, layer, spec) for key, item in value.items()}

    if value == "in":
        takes_channels = spec.kind == "image" and (layer.startswith("Conv") or layer.endswith("2d"))
        return spec.input_shape[0] if takes_channels else spec.input_size
    return spec.output_size if value == "out" else value


def _try_shapes(layers: list[nn.Module], spec: DataSpec) -> None:
    """Send zeros through the layers: gives lazy ones their size, MisfitError for shapes that do not fit."""
    x = torch.zeros(2, *spec.input_shape)
    for i, layer in enumerate(layers):
        shape = list(x.shape[1:])

        # In evaluation mode batch norm keeps its statistics and dropout draws no random numbers.
        layer.eval()
        try:
            with torch.no_grad():
                x = layer(x)
        except Exception as error:
            # torch's layers reject inputs by many types of exception.
            raise MisfitError(
                f"model.layers[{i}] ({type(layer).__name__}) cannot take samples of shape {shape} "
                f"({get_first_clause(error)}): change its arguments or put Flatten before it."
            ) from error
        # Back to the mode that layers are built in.
        layer.train()
        if not isinstance(x, Tensor):
            raise MisfitError(f"model.layers[{i}] ({type(layer).__name__}) gives no tensor: use another layer.")

    # Images that are given back are flattened after the model.
    if spec.reconstructs:
        x = x.flatten(1)
    if list(x.shape) != [2, spec.output_size]:
        raise MisfitError(
            f"model.layers ends with samples of shape {list(x.shape[1:])}, but this data needs "
            f"[{spec.output_size}]: end the list with Flatten and {{LazyLinear: out}}."
        )
