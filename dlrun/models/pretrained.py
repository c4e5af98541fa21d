"""Any classification net of torchvision, fitted to the data's channels and outputs."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dlrun.core.errors import MisfitError, RequestError, listed
from dlrun.data.spec import DataSpec
from dlrun.models.checks import first_line, unknown
from dlrun.models.weights_file import put_weights

_SMALL = 64  # pixels a side, below which an untrained vgg gets a head of one linear layer, as is usual for CIFAR
SIDES = (32, 64, 75, 96, 128, 224, 299)  # pixels; what is tried when an image does not fit
_follow: ContextVar[bool] = ContextVar("weights_follow", default=False)


@contextlib.contextmanager
def weights_follow() -> Iterator[None]:
    """Inside it nets are built without reading trained weights: a checkpoint's are put into them next."""
    token = _follow.set(True)
    try:
        yield
    finally:
        _follow.reset(token)


class Torchvision(nn.Module):
    """A net of torchvision.models by name: (B, C, H, W) -> (B, output_size).

    weights: null for random ones; a name such as DEFAULT or IMAGENET1K_V1: trained weights, downloaded once; or a
    file of such weights, as torch.save(net.state_dict()) writes it. The last layer is then new. An untrained vgg has
    one linear layer for images below 64 pixels. With other than 3 channels the first convolution is replaced; of
    trained ones it keeps the mean filter, scaled so that its output keeps its size. Auxiliary heads are off.
    freeze: "backbone" trains the last layer alone: all else keeps its weights, and in training too it works as in
    evaluation (the statistics of batch norm stay, nothing is dropped out).
    Raises RequestError for unknown names, failing downloads and files of other nets, MisfitError for images that do
    not fit.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    tasks: ClassVar[tuple[str, ...]] = ("regression", "binary", "multiclass")

    def __init__(
        self, spec: DataSpec, name: str = "resnet18", weights: str | None = None, freeze: str | None = None
    ) -> None:
        super().__init__()
        _check_name(name)
        if freeze not in (None, "backbone"):
            raise unknown("model.freeze", freeze, ["backbone", "null"])
        trained, file = _weights(name, weights)
        _check_image(spec, name, trained)
        if trained is None:
            net = _untrained(name, spec.input_shape[1:], spec.output_size)
        else:
            net = _architecture(name, trained) if file or _follow.get() else _trained(name, trained)
            if file and not _follow.get():
                put_weights(net, file, f"model.name={name}", _last_layer(net))
            _replace_last_layer(net, spec.output_size)
        _replace_first_conv(net, spec.input_shape[0], trained is not None)
        self.net, self.head = net, _last_layer(net)
        self.is_frozen = freeze is not None
        if self.is_frozen:
            net.requires_grad_(False)
            net.get_submodule(self.head).requires_grad_(True)
        if self.is_frozen and trained is None:
            self.note = "model.freeze=backbone: what is frozen has random weights, unless init_from=<run> brings others"

    def train(self, mode: bool = True) -> "Torchvision":
        """See nn.Module; what is frozen stays in evaluation mode."""
        super().train(mode)
        if self.is_frozen:
            self.net.eval()
            self.net.get_submodule(self.head).train(mode)
        return self

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


def _weights(name: str, weights: str | None) -> tuple[Any, Path | None]:
    """The member of torchvision's weights enum that is meant, or None; for a file the default one, and the file."""
    if weights is None:
        return None, None
    known = _models().get_model_weights(name).__members__
    if weights in known:
        return known[weights], None
    file = Path(weights).expanduser()
    if file.is_file() or (_follow.get() and file.suffix):
        return known["DEFAULT"], file
    if file.suffix or len(file.parts) > 1:
        raise RequestError(f"model.weights={weights}: there is no such file; type its path, or one of {listed(known)}")
    raise unknown("model.weights", weights, [*known, "null", "<file>"])


def _untrained(name: str, size: tuple[int, ...], outputs: int) -> nn.Module:
    """The net with random weights for images of `size` (height, width), on the current default device."""
    settings: dict[str, Any] = {"num_classes": outputs}
    if name.startswith("vit_"):
        settings["image_size"] = size[0]
    elif name.startswith("maxvit_"):
        settings["input_size"] = size
    elif name in ("googlenet", "inception_v3"):
        settings |= {"aux_logits": False, "init_weights": True}
    net = _made(name, settings)
    if name.startswith("vgg") and min(size) >= 32 and max(size) < _SMALL:
        # The usual head is made for 7×7 features: it would repeat a single one 49 times, with 120 million weights.
        net.avgpool = nn.Identity()
        net.classifier = nn.Sequential(nn.Linear(512 * (size[0] // 32) * (size[1] // 32), outputs))
    return net


def _architecture(name: str, weights: Any) -> nn.Module:
    """The net as `_trained` builds it, with random weights."""
    settings: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        settings = {"aux_logits": False, "init_weights": False, "transform_input": True}
    elif name.startswith("vit_"):
        settings = {"image_size": weights.meta["min_size"][0]}
    return _made(name, settings)


def _made(name: str, settings: dict[str, Any]) -> nn.Module:
    """The net as torchvision makes it, on the current default device."""
    net: nn.Module
    if name.startswith("regnet_"):  # computes its widths with tensors, which the meta device cannot
        with torch.device("cpu"):
            net = _models().get_model(name, **settings)
        return net.to(torch.get_default_device())
    net = _models().get_model(name, **settings)
    return net


def _trained(name: str, weights: Any) -> nn.Module:
    """The net with trained weights, as they were published."""
    try:
        # Reads the file for its tensors alone; torchvision below reads it again without that safeguard.
        weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
        net: nn.Module = _models().get_model(name, weights=weights)
    except Exception as error:  # no network, no space, a damaged file, a file that is more than tensors
        raise RequestError(
            f"model.weights={weights.name} of {name} cannot be loaded ({first_line(error)}): type model.weights=null, "
            f"or put {weights.url} into {torch.hub.get_dir()}/checkpoints, or anywhere and type model.weights=<file>."
        ) from error
    if name == "inception_v3":
        net.aux_logits, net.AuxLogits = False, None  # type: ignore[assignment]
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
    try:
        with torch.device("meta"), torch.no_grad():
            net = _untrained(name, (height, width), 1) if weights is None else _architecture(name, weights)
            net.eval()(torch.zeros(1, 3, height, width))
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


def _last_layer(net: nn.Module) -> str:
    """The path of the last linear layer (SqueezeNet: convolution)."""
    layers: list[tuple[str, nn.Module]] = [
        (path, m) for path, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)
    ]
    linear = [(path, m) for path, m in layers if isinstance(m, nn.Linear)]
    path, _ = (linear or layers)[-1]
    return path


def _replace_last_layer(net: nn.Module, outputs: int) -> None:
    """Give the net a new last layer of `outputs`."""
    path = _last_layer(net)
    old: Any = net.get_submodule(path)
    if isinstance(old, nn.Linear):
        _put(net, path, nn.Linear(old.in_features, outputs))
    else:
        _put(net, path, nn.Conv2d(old.in_channels, outputs, kernel_size=1))


def _put(net: nn.Module, path: str, module: nn.Module) -> None:
    """Replace the submodule at a dotted path."""
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, module)
