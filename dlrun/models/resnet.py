"""A small net with residual blocks."""

from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from dlrun.data.spec import DataSpec
from dlrun.models.cnn import check_channels, compute_pooled_area


class ResidualBlock(nn.Module):
    """relu(x + conv(relu(conv(x)))) with 3x3 convolutions: (B, channels, H, W) -> the same shape.

    After He et al. 2015, "Deep residual learning for image recognition", figure 2, without batch norm.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, channels, H, W)."""
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class ResNet(nn.Module):
    """Stages of 5x5 convolution, ReLU, 2x2 max pooling and a residual block, then a linear layer.

    (B, C, H, W) -> (B, output_size). channels: output channels of each stage. Raises RequestError on
    channels below 1, MisfitError on images too small for the stages.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    tasks: ClassVar[tuple[str, ...]] = ("regression", "binary", "multiclass", "multilabel", "multitask")

    def __init__(
        self,
        spec: DataSpec,
        channels: list[int] = [16, 32],  # noqa: B006  (only read; the runner shows it as the default)
    ) -> None:
        super().__init__()
        check_channels(channels, "[16,32]")

        # Residual blocks are padded and keep height and width.
        area = compute_pooled_area(spec, "resnet", kernel_size=5, stages=len(channels))
        layers: list[nn.Module] = []
        for before, after in pairwise([spec.input_shape[0], *channels]):
            # Pooling first gives the same values and gradients as ReLU first, on a quarter of the pixels.
            layers += [nn.Conv2d(before, after, 5), nn.MaxPool2d(2), nn.ReLU(), ResidualBlock(after)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels[-1] * area, spec.output_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, output_size)."""
        output: Tensor = self.classifier(self.features(x).flatten(1))
        return output
