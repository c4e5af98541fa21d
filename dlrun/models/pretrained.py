"""Any classification net of torchvision, fitted to the data's channels and outputs."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dlrun.data.spec import DataSpec
from dlrun.errors import MisfitError, RequestError
from dlrun.models.settings import first_line, unknown

_SMALL = 64  # pixels a side, below which an untrained vgg gets a head of one linear layer, as is usual for CIFAR
SIDES = (32, 64, 75, 96, 128, 224, 299)  # pixels; what is tried when an image does not fit


class Torchvision(nn.Module):
    """A net of torchvision.models by name: (B, C, H, W) -> (B, output_size).

    weights: null for random ones, or a name such as DEFAULT or IMAGENET1K_V1: trained weights, downloaded
    once; the last layer is then new. An untrained vgg has one linear layer for images below 64 pixels. With
    other than 3 channels the first convolution is replaced; of trained ones it keeps the mean filter, scaled
    so that its output keeps its size. Auxiliary heads are off.
    Raises RequestError for unknown names and failing downloads, MisfitError for images that do not fit.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    tasks: ClassVar[tuple[str, ...]] = ("regression", "binary", "multiclass")

    def __init__(self, spec: DataSpec, name: str = "resnet18", weights: str | None = None) -> None:
        super().__init__()
        _check_name(name)
        trained = _weights(name, weights)
        _check_image(spec, name, trained)
        if trained is None:
            net = _untrained(name, spec.input_shape[1:], spec.output_size)
        else:
            net = _trained(name, trained, spec.output_size)
        _replace_first_conv(net, spec.input_shape[0], trained is not None)
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, output_size)."""
        output: Tensor = self.net(x)
        return output


def _models() -> Any:
    """torchvision.models, imported here because it takes seconds."""
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        raise RequestError(
            f"model=torchvision cannot import torchvision ({first_line(error)}): install torch and torchvision "
            "together from the package index, as a CPU-only torch does not go with the ordinary torchvision."
        ) from error
    return models


def _check_name(name: str) -> None:
    """Raise RequestError unless torchvision has a classification net of this name."""
    models = _models()
    names = models.list_models(module=models)
    if name not in names:
        raise unknown("model.name", name, names)


def _weights(name: str, weights: str | None) -> Any:
    """The member of torchvision's weights enum that is meant, or None."""
    if weights is None:
        return None
    known = _models().get_model_weights(name).__members__
    if weights not in known:
        raise unknown("model.weights", weights, [*known, "null"])
    return known[weights]


def _untrained(name: str, size: tuple[int, ...], outputs: int) -> nn.Module:
    """The net with random weights for images of `size` (height, width), on the current default device."""
    settings: dict[str, Any] = {"num_classes": outputs}
    if name.startswith("vit_"):
        settings["image_size"] = size[0]
    elif name.startswith("maxvit_"):
        settings["input_size"] = size
    elif name in ("googlenet", "inception_v3"):
        settings |= {"aux_logits": False, "init_weights": True}
    net: nn.Module
    if name.startswith("regnet_"):  # computes its widths with tensors, which the meta device cannot
        with torch.device("cpu"):
            net = _models().get_model(name, **settings)
        return net.to(torch.get_default_device())
    net = _models().get_model(name, **settings)
    if name.startswith("vgg") and min(size) >= 32 and max(size) < _SMALL:
        # The usual head is made for 7×7 features: it would repeat a single one 49 times, with 120 million weights.
        net.avgpool = nn.Identity()
        net.classifier = nn.Sequential(nn.Linear(512 * (size[0] // 32) * (size[1] // 32), outputs))
    return net


def _trained(name: str, weights: Any, outputs: int) -> nn.Module:
    """The net with trained weights and a new last layer of `outputs`."""
    try:
        # Reads the file for its tensors alone; torchvision below reads it again without that safeguard.
        weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
        net: nn.Module = _models().get_model(name, weights=weights)
    except Exception as error:  # no network, no space, a damaged file, a file that is more than tensors
        raise RequestError(
            f"model.weights={weights.name} of {name} cannot be loaded ({first_line(error)}): type model.weights=null, "
            f"or put {weights.url} into {torch.hub.get_dir()}/checkpoints."
        ) from error
    if name == "inception_v3":
        net.aux_logits, net.AuxLogits = False, None  # type: ignore[assignment]
    _replace_last_layer(net, outputs)
    return net


def _check_image(spec: DataSpec, name: str, weights: Any) -> None:
    """Raise MisfitError if the net cannot take the images, found out on the meta device: no arithmetic."""
    height, width = spec.input_shape[1:]
    problem = _refusal(name, weights, height, width)
    if problem is None:
        return
    sides = SIDES if weights is None else (*SIDES, weights.meta["min_size"][0])
    fitting = next((side for side in sorted(sides) if _refusal(name, weights, side, side) is None), None)
    if fitting is None:
        raise MisfitError(f"model.name={name} takes no image of any size ({problem}): type model.name=resnet18.")
    raise MisfitError(
        f"model.name={name} cannot take images of {height}x{width} pixels: type data.image_size={fitting}."
    )


def _refusal(name: str, weights: Any, height: int, width: int) -> str | None:
    """What torch says against one black image of this size, or None when it goes through."""
    built_for = (height, width) if weights is None else tuple(weights.meta["min_size"])
    try:
        with torch.device("meta"), torch.no_grad():
            _untrained(name, built_for, outputs=1).eval()(torch.zeros(1, 3, height, width))
    except (AssertionError, RuntimeError, ValueError) as error:
        return first_line(error)
    return None


def _replace_first_conv(net: nn.Module, channels: int, trained: bool) -> None:
    """Let the first convolution take `channels`; does nothing when it does already."""
    path, old = next((path, m) for path, m in net.named_modules() if isinstance(m, nn.Conv2d))
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
    if trained:
        mean = old.weight.detach().mean(dim=1, keepdim=True) * old.in_channels / channels
        new.weight = nn.Parameter(mean.repeat(1, channels, 1, 1))
        new.bias = old.bias
    if getattr(net, "transform_input", False):
        net.transform_input = False  # type: ignore[assignment]  # it would read channels 0, 1 and 2
    _put(net, path, new)


def _replace_last_layer(net: nn.Module, outputs: int) -> None:
    """Give the net a new last linear layer (SqueezeNet: convolution) of `outputs`."""
    layers = [(path, m) for path, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    linear = [(path, m) for path, m in layers if isinstance(m, nn.Linear)]
    path, old = (linear or layers)[-1]
    if isinstance(old, nn.Linear):
        _put(net, path, nn.Linear(old.in_features, outputs))
    else:
        _put(net, path, nn.Conv2d(old.in_channels, outputs, kernel_size=1))


def _put(net: nn.Module, path: str, module: nn.Module) -> None:
    """Replace the submodule at a dotted path."""
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, module)
