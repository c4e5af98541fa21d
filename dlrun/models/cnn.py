"""A small convolutional net in the manner of LeNet."""

from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from dlrun.core.errors import RequestError
from dlrun.data.spec import DataSpec
from dlrun.models.checks import check_counts, check_image


class CNN(nn.Module):
    """Stages of convolution, 2x2 max pooling and ReLU, then a linear layer: (B, C, H, W) -> (B, output_size).

    channels: output channels of each stage; kernel_size: pixels a side. After LeCun et al. 1998,
    "Gradient-based learning applied to document recognition", in the form a course on PyTorch gives it.
    Raises RequestError on settings below 1, MisfitError on images too small for the stages.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    tasks: ClassVar[tuple[str, ...]] = ("regression", "binary", "multiclass", "multilabel", "multitask")

    def __init__(
        self,
        spec: DataSpec,
        channels: list[int] = [10, 20],  # noqa: B006  (only read; the runner shows it as the default)
        kernel_size: int = 5,
    ) -> None:
        super().__init__()
        check_channels(channels, "[10,20]")
        check_counts("model.kernel_size", [kernel_size], "model.kernel_size=5")

        area = compute_pooled_area(spec, "cnn", kernel_size, stages=len(channels))
        layers: list[nn.Module] = []
        for before, after in pairwise([spec.input_shape[0], *channels]):
            # Pooling before ReLU gives the same values and gradients on a quarter of the pixels.
            layers += [nn.Conv2d(before, after, kernel_size), nn.MaxPool2d(2), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        # Features are flattened, so the images must have one size.
        self.classifier = nn.Linear(channels[-1] * area, spec.output_size)

    def list_layers(self) -> list[nn.Module]:
        """The layers that a forward pass calls, one after the other."""
        return [*self.features, nn.Flatten(), self.classifier]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, output_size)."""
        output: Tensor = self.classifier(self.features(x).flatten(1))
        return output


def check_channels(channels: list[int], example: str) -> None:
    """Raise RequestError unless there is at least one stage and all have at least one channel."""
    if not channels:
        raise RequestError(f"model.channels=[] leaves no convolution: type model.channels={example}.")
    check_counts("model.channels", channels, f"model.channels={example}")


def compute_pooled_area(spec: DataSpec, model: str, kernel_size: int, stages: int) -> int:
    """Number of pixels after stages of unpadded convolution and 2x2 pooling; MisfitError if none are left."""
    # Backwards from a single pixel to the smallest image that keeps one.
    smallest = 1
    for _ in range(stages):
        smallest = 2 * smallest + kernel_size - 1
    check_image(spec, model, smallest)

    _, height, width = spec.input_shape
    for _ in range(stages):
        height = (height - kernel_size + 1) // 2
        width = (width - kernel_size + 1) // 2
    return height * width
