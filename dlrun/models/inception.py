"""A small net with two Inception blocks."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from dlrun.data.spec import DataSpec
from dlrun.models.cnn import compute_pooled_area


class InceptionA(nn.Module):
    """Four branches of different reach, side by side: (B, in_channels, H, W) -> (B, 88, H, W).

    Concatenated in the order 1x1 (16 channels), 5x5 (24), 3x3 twice (24), pooling (24). After Szegedy
    et al. 2014, "Going deeper with convolutions", figure 2; as in the course there is no ReLU inside.
    bottleneck: a 1x1 convolution to 16 channels comes before the 5x5 and the 3x3 ones.
    """

    out_channels = 16 + 3 * 24

    def __init__(self, in_channels: int, bottleneck: bool = True) -> None:
        super().__init__()
        # Input channels of the 5x5 and 3x3 convolutions.
        width = 16 if bottleneck else in_channels
        self.branch1x1 = nn.Conv2d(in_channels, 16, 1)
        self.branch5x5 = nn.Sequential(nn.Conv2d(width, 24, 5, padding=2))
        self.branch3x3 = nn.Sequential(
            nn.Conv2d(width, 24, 3, padding=1),
            nn.Conv2d(24, 24, 3, padding=1),
        )
        if bottleneck:
            self.branch5x5.insert(0, nn.Conv2d(in_channels, 16, 1))
            self.branch3x3.insert(0, nn.Conv2d(in_channels, 16, 1))
        self.branch_pool = nn.Sequential(
            nn.AvgPool2d(3, stride=1, padding=1),
            nn.Conv2d(in_channels, 24, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, 88, H, W)."""
        # Saved weights of the next layer depend on this order.
        branches = (self.branch1x1, self.branch5x5, self.branch3x3, self.branch_pool)
        return torch.cat([branch(x) for branch in branches], dim=1)


class Inception(nn.Module):
    """Twice convolution, pooling, ReLU and an Inception block, then a linear layer.

    (B, C, H, W) -> (B, output_size). bottleneck=False leaves out the 1x1 convolutions, which shows what they
    save in parameters and time. Raises MisfitError on images below 16x16 pixels.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image",)
    tasks: ClassVar[tuple[str, ...]] = ("regression", "binary", "multiclass", "multilabel", "multitask")

    def __init__(self, spec: DataSpec, bottleneck: bool = True) -> None:
        super().__init__()
        # The blocks keep height and width, so only the two convolutions with pooling count.
        area = compute_pooled_area(spec, "inception", kernel_size=5, stages=2)
        self.features = nn.Sequential(
            nn.Conv2d(spec.input_shape[0], 10, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            InceptionA(10, bottleneck),
            nn.Conv2d(InceptionA.out_channels, 20, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            InceptionA(20, bottleneck),
        )
        self.classifier = nn.Linear(InceptionA.out_channels * area, spec.output_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, output_size)."""
        output: Tensor = self.classifier(self.features(x).flatten(1))
        return output
