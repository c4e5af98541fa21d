"""Images for a trained net: normalized as those that its weights were trained on."""

import dataclasses

from dlrun.config.settings import Settings
from dlrun.data.targets import PICTURE_TARGETS

_TORCHVISION = "dlrun.models.pretrained.Torchvision"
_TIMM = "dlrun.models.timm_net.Timm"


def choose_normalization(settings: Settings) -> tuple[Settings, tuple[str, ...]]:
    """Settings with mean and std of the model's trained weights, and a note; the same settings if there is no reason.

    Typed constants, and data.normalization=images, win. Runs of before the key was there keep those of their images.
    """
    data = settings.data
    arguments = data.arguments
    is_open = arguments.get("mean") is None and arguments.get("std") is None
    if data.target not in PICTURE_TARGETS or arguments.get("normalization") != "auto" or not is_open:
        return settings, ()

    constants = _find_constants(settings)
    if constants is None:
        return settings, ()

    mean, std = constants
    if arguments.get("grayscale"):
        # The first layer's filters are averaged over the colours.
        mean = [sum(mean) / len(mean)]
        std = [sum(std) / len(std)]
    normalized_data = dataclasses.replace(data, arguments={**arguments, "mean": mean, "std": std})
    note = (
        f"images are normalized as those of the trained weights, by mean {_format(mean)} and std {_format(std)}; "
        "data.normalization=images takes those of your training images."
    )
    return dataclasses.replace(settings, data=normalized_data), (note,)


def _find_constants(settings: Settings) -> tuple[list[float], list[float]] | None:
    """The constants of the weights that the model starts from; None for a net that starts untrained."""
    model = settings.model
    name = str(model.arguments.get("name", "resnet18"))
    weights = model.arguments.get("weights")
    if model.target == _TORCHVISION and weights is not None:
        from dlrun.models import pretrained

        return pretrained.find_constants(name, str(weights))

    if model.target == _TIMM and (weights is not None or model.arguments.get("pretrained")):
        from dlrun.models import timm_net

        return timm_net.find_constants(name)
    return None


def _format(values: list[float]) -> str:
    return f"[{', '.join(f'{value:.3g}' for value in values)}]"
