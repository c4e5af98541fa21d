"""Any image classifier of timm, adapted to the channels, the size and the outputs of the data."""

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from dlrun.core.errors import RequestError
from dlrun.core.user_code import get_first_clause
from dlrun.data.spec import DataSpec
from dlrun.models.checks import build_unknown_error
from dlrun.models.pretrained import are_weights_skipped
from dlrun.models.weights_file import put_weights, read_state_dict


class Timm(nn.Module):
    """A net of timm by name, such as resnet18 or resnet18.a1_in1k: (B, C, H, W) -> (B, output_size).

    pretrained: start from timm's trained weights, downloaded once. weights: a file of such weights instead, as
    torch.save(net.state_dict()) or safetensors writes it. The last layer is then new. With other than 3 channels the
    first convolution's trained kernels are summed or repeated, as timm does it. A net of a fixed image size is built
    for that of the data. Raises RequestError for unknown names, failing downloads and files of other nets.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    tasks: ClassVar[tuple[str, ...]] = ("regression", "binary", "multiclass", "multilabel", "multitask")

    def __init__(
        self, spec: DataSpec, name: str = "resnet18", pretrained: bool = False, weights: str | None = None
    ) -> None:
        super().__init__()
        timm = _import_timm()
        _check_name(timm, name)
        if pretrained and weights is not None:
            raise RequestError(
                f"model.pretrained=true and model.weights={weights} exclude each other; type one of them"
            )

        # Those of a checkpoint are loaded next.
        is_trained = not are_weights_skipped()
        channels, height, width = spec.input_shape
        config = timm.get_pretrained_cfg(name) or timm.get_pretrained_cfg(name.partition(".")[0])
        sizes = {"img_size": (height, width)} if config is not None and config.fixed_input_size else {}
        settings = {"num_classes": spec.output_size, "in_chans": channels, **sizes}
        create = _download if pretrained and is_trained else timm.create_model
        net = create(name, **settings)
        if weights is not None and is_trained:
            _load_file(net, Path(weights).expanduser(), name, channels)

        self.net: nn.Module = net
        # What `model.freeze=backbone` trains alone.
        self.last_layers = tuple(f"net.{layer}" for layer in _find_classifiers(net))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, output_size)."""
        output: Tensor = self.net(x)
        return output


def find_constants(name: str) -> tuple[list[float], list[float]] | None:
    """Mean and std that the images were normalized by on which timm trained a net, a channel; None if unknown."""
    timm = _import_timm()
    config = timm.get_pretrained_cfg(name) or timm.get_pretrained_cfg(name.partition(".")[0])
    if config is None:
        return None
    return [float(value) for value in config.mean], [float(value) for value in config.std]


def _import_timm() -> Any:
    # Takes seconds, so not at the top of the file.
    try:
        import timm
    except ImportError as error:
        raise RequestError(
            f"model=timm cannot import timm ({get_first_clause(error)}); type pip install 'dlrun[timm]'"
        ) from error
    return timm


def _check_name(timm: Any, name: str) -> None:
    """Raise RequestError unless timm itself has a net of this name: never one of a hub or of a folder."""
    base, _, tag = name.partition(".")
    if ":" in name or not timm.is_model(base):
        advice = "type a name that timm.list_models() lists in Python, such as resnet18"
        raise build_unknown_error("model.name", name, timm.list_models(), advice)
    tagged = timm.list_pretrained(f"{base}.*")
    if tag and name not in tagged:
        raise build_unknown_error("model.name", name, [base, *tagged])


def _download(name: str, **settings: Any) -> nn.Module:
    try:
        net: nn.Module = _import_timm().create_model(name, pretrained=True, **settings)
    except Exception as error:
        # No network, no space, no trained weights of this net, or images of a size that it cannot take.
        raise RequestError(
            f"model.pretrained=true of {name} cannot be loaded ({get_first_clause(error)}): "
            "type model.pretrained=false, or model.weights=<file>"
        ) from error

    return net


def _load_file(net: Any, file: Path, name: str, channels: int) -> None:
    """Load the weights of a file, all but those of the last layer, and fit the first layer to other channels."""
    from timm.models import adapt_input_conv

    state = read_state_dict(file, "model.weights")
    first = net.pretrained_cfg.get("first_conv")
    for layer in (first,) if isinstance(first, str) else first or ():
        kernel = state.get(f"{layer}.weight")
        if kernel is not None and kernel.shape[1] == 3 != channels:
            state[f"{layer}.weight"] = adapt_input_conv(channels, kernel)
    put_weights(net, state, file, f"model.name={name}", _find_classifiers(net))


def _find_classifiers(net: Any) -> tuple[str, ...]:
    """Paths of the last layers within the net; distilled nets have two."""
    names = net.pretrained_cfg.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)
