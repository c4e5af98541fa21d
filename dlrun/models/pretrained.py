"""Any classification net of torchvision, adapted to the channels and outputs of the data."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dlrun.core.errors import MisfitError, RequestError, join_names
from dlrun.core.user_code import get_first_clause
from dlrun.data.spec import DataSpec
from dlrun.models.checks import build_unknown_error
from dlrun.models.weights_file import put_weights, read_state_dict

# Pixels a side, below which an untrained vgg gets a head of one linear layer, as is usual for CIFAR.
_SMALL = 64

# Pixels a side, tried in turn for an advice when an image does not fit.
SIDES = (32, 64, 75, 96, 128, 224, 299)

_weights_follow: ContextVar[bool] = ContextVar("weights_follow", default=False)


@contextlib.contextmanager
def skip_trained_weights() -> Iterator[None]:
    """Build nets without reading trained weights inside the block: those of a checkpoint are loaded next."""
    token = _weights_follow.set(True)
    try:
        yield
    finally:
        _weights_follow.reset(token)


def are_weights_skipped() -> bool:
    """Whether nets are built without reading trained weights, as `skip_trained_weights` asks."""
    return _weights_follow.get()


class Torchvision(nn.Module):
    """A net of torchvision.models by name: (B, C, H, W) -> (B, output_size).

    weights: None for random ones; a name such as DEFAULT or IMAGENET1K_V1: trained weights, downloaded once; or a
    file of such weights, as torch.save(net.state_dict()) writes it. The last layer is then new. An untrained vgg has
    one linear layer for images below 64 pixels. With other than 3 channels the first convolution is replaced; a
    trained one keeps its mean filter, scaled so that its output keeps its size. Auxiliary heads are off.
    Raises RequestError for unknown names, failing downloads and files of other nets, MisfitError for images that do
    not fit.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    tasks: ClassVar[tuple[str, ...]] = ("regression", "binary", "multiclass", "multilabel", "multitask")

    def __init__(self, spec: DataSpec, name: str = "resnet18", weights: str | None = None) -> None:
        super().__init__()
        _check_name(name)
        published, file = _find_weights(name, weights)
        _check_image(spec, name, published)
        if published is None:
            net = _build_untrained(name, spec.input_shape[1:], spec.output_size)
        elif _weights_follow.get():
            net = _build_architecture(name, published)
        elif file:
            net = _build_architecture(name, published)
            put_weights(net, read_state_dict(file, "model.weights"), file, f"model.name={name}", _find_last_layer(net))
        else:
            net = _load_trained(name, published)

        # Nets without trained weights are built with the right number of outputs.
        if published is not None:
            _replace_last_layer(net, spec.output_size)
        _replace_first_conv(net, spec.input_shape[0], published is not None)

        self.net = net
        self.head = _find_last_layer(net)

    @property
    def last_layers(self) -> tuple[str, ...]:
        """Name of the layer that is new, which `model.freeze=backbone` trains alone."""
        return (f"net.{self.head}",)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, output_size)."""
        output: Tensor = self.net(x)
        return output


def _import_models() -> Any:
    # Takes seconds, so not at the top of the file.
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        raise RequestError(
            f"model=torchvision cannot import torchvision ({get_first_clause(error)}): install torch and torchvision "
            "together from the package index, as a CPU-only torch does not go with the ordinary torchvision."
        ) from error
    return models


def _check_name(name: str) -> None:
    """Raise RequestError unless torchvision has a classification net of this name."""
    models = _import_models()
    names = models.list_models(module=models)
    if name not in names:
        raise build_unknown_error("model.name", name, names)


def _find_weights(name: str, weights: str | None) -> tuple[Any, Path | None]:
    """The member of torchvision's weights enum, or None without weights; for a file the default one, and the file."""
    if weights is None:
        return None, None

    published = _import_models().get_model_weights(name).__members__
    if weights in published:
        return published[weights], None

    # A file whose weights a checkpoint replaces need not exist any more.
    file = Path(weights).expanduser()
    if file.is_file() or (_weights_follow.get() and file.suffix):
        return published["DEFAULT"], file
    if file.suffix or len(file.parts) > 1:
        raise RequestError(
            f"model.weights={weights}: there is no such file; type its path, or one of {join_names(published)}"
        )
    raise build_unknown_error("model.weights", weights, [*published, "null", "<file>"])


def find_constants(name: str, weights: str) -> tuple[list[float], list[float]] | None:
    """Mean and std that the images were normalized by on which weights of torchvision were trained, for each channel.

    None for a name that does not exist. Those of a file are taken for the net's default ones.
    """
    models = _import_models()
    if name not in models.list_models(module=models):
        return None
    published = models.get_model_weights(name).__members__
    transforms = published[weights if weights in published else "DEFAULT"].transforms()
    return [float(value) for value in transforms.mean], [float(value) for value in transforms.std]


def _build_untrained(name: str, size: tuple[int, ...], outputs: int) -> nn.Module:
    """The net with random weights for images of `size` (height, width), on the current default device."""
    settings: dict[str, Any] = {"num_classes": outputs}
    if name.startswith("vit_"):
        settings["image_size"] = size[0]
    elif name.startswith("maxvit_"):
        settings["input_size"] = size
    elif name in ("googlenet", "inception_v3"):
        settings |= {"aux_logits": False, "init_weights": True}

    net = _build_net(name, settings)
    if name.startswith("vgg") and min(size) >= 32 and max(size) < _SMALL:
        # The usual head is made for 7×7 features: it would repeat a single one 49 times, with 120 million weights.
        net.avgpool = nn.Identity()
        net.classifier = nn.Sequential(nn.Linear(512 * (size[0] // 32) * (size[1] // 32), outputs))
    return net


def _build_architecture(name: str, weights: Any) -> nn.Module:
    """The net as `_load_trained` builds it, with random weights."""
    settings: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        settings = {"aux_logits": False, "init_weights": False, "transform_input": True}
    elif name.startswith("vit_"):
        settings = {"image_size": weights.meta["min_size"][0]}
    return _build_net(name, settings)


def _build_net(name: str, settings: dict[str, Any]) -> nn.Module:
    """The net by torchvision's own function, on the current default device."""
    models = _import_models()
    net: nn.Module
    if name.startswith("regnet_"):
        # Its widths are computed with tensors, which the meta device cannot.
        with torch.device("cpu"):
            net = models.get_model(name, **settings)
        return net.to(torch.get_default_device())

    net = models.get_model(name, **settings)
    return net


def _load_trained(name: str, weights: Any) -> nn.Module:
    """The net with trained weights, as they were published."""
    try:
        # Loads the tensors of the file alone; torchvision below reads it again without that safeguard.
        weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
        net: nn.Module = _import_models().get_model(name, weights=weights)
    except Exception as error:
        # No network, no space, a damaged file, a file that holds more than tensors.
        raise RequestError(
            f"model.weights={weights.name} of {name} cannot be loaded ({get_first_clause(error)}): "
            f"type model.weights=null, or put {weights.url} into {torch.hub.get_dir()}/checkpoints, "
            "or anywhere and type model.weights=<file>."
        ) from error

    if name == "inception_v3":
        net.aux_logits = False  # type: ignore[assignment]
        net.AuxLogits = None  # type: ignore[assignment]
    return net


def _check_image(spec: DataSpec, name: str, weights: Any) -> None:
    """Raise MisfitError if the net cannot take the images, tried on the meta device: no arithmetic."""
    height, width = spec.input_shape[1:]
    problem = _find_problem(name, weights, height, width)
    if problem is None:
        return

    sides = SIDES if weights is None else (*SIDES, weights.meta["min_size"][0])
    fitting = next((side for side in sorted(sides) if _find_problem(name, weights, side, side) is None), None)
    if fitting is None:
        raise MisfitError(f"model.name={name} takes no image of any size ({problem}): type model.name=resnet18.")
    raise MisfitError(
        f"model.name={name} cannot take images of {height}x{width} pixels: type data.image_size={fitting}."
    )


def _find_problem(name: str, weights: Any, height: int, width: int) -> str | None:
    """torch's message about one black image of this size, or None if the net takes it."""
    try:
        with torch.device("meta"), torch.no_grad():
            net = _build_untrained(name, (height, width), 1) if weights is None else _build_architecture(name, weights)
            net.eval()(torch.zeros(1, 3, height, width))
    except (AssertionError, RuntimeError, ValueError) as error:
        return get_first_clause(error)
    return None


def _replace_first_conv(net: nn.Module, channels: int, is_trained: bool) -> None:
    """Give the net a first convolution of `channels` inputs, unless it has one."""
    path, old = next((path, module) for path, module in net.named_modules() if isinstance(module, nn.Conv2d))
    if old.in_channels == channels:
        return

    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    if is_trained:
        # The mean filter, scaled so that a grey image gives the same output.
        mean = old.weight.detach().mean(dim=1, keepdim=True) * old.in_channels / channels
        new.weight = nn.Parameter(mean.repeat(1, channels, 1, 1))
        new.bias = old.bias

    # torchvision's transform would read channels 0, 1 and 2.
    if getattr(net, "transform_input", False):
        net.transform_input = False  # type: ignore[assignment]
    _replace_module(net, path, new)


def _find_last_layer(net: nn.Module) -> str:
    """The path of the last linear layer (SqueezeNet: convolution)."""
    linear: list[str] = []
    convolutions: list[str] = []
    for path, module in net.named_modules():
        if isinstance(module, nn.Linear):
            linear.append(path)
        elif isinstance(module, nn.Conv2d):
            convolutions.append(path)
    return (linear or convolutions)[-1]


def _replace_last_layer(net: nn.Module, outputs: int) -> None:
    """Give the net a new last layer of `outputs`."""
    path = _find_last_layer(net)
    old: Any = net.get_submodule(path)
    if isinstance(old, nn.Linear):
        _replace_module(net, path, nn.Linear(old.in_features, outputs))
    else:
        _replace_module(net, path, nn.Conv2d(old.in_channels, outputs, kernel_size=1))


def _replace_module(net: nn.Module, path: str, module: nn.Module) -> None:
    """Replace the submodule at a dotted path."""
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, module)
