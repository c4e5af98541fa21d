"""Data and a net of several inputs as users write them; tests copy this file into the working directory."""

import torch
from torch import Tensor, nn

from dlrun.data.spec import DataSpec, Split, Splits


def rows(count: int = 40) -> Splits:
    """Pictures, a table, series and volumes of each row."""
    generator = torch.Generator().manual_seed(0)

    def part(rows: int) -> Split:
        shapes = ((3, 6, 6), (5,), (2, 7), (1, 4, 4, 4))
        inputs = tuple(torch.randn(rows, *shape, generator=generator) for shape in shapes)
        return Split(inputs, (inputs[1].sum(1) > 0).long())

    return Splits(part(count), part(count // 2), part(count // 2), DataSpec("image", (3, 6, 6), "multiclass", 2))


class Net(nn.Module):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.picture = nn.Conv2d(3, 4, 3)
        self.volume = nn.Conv3d(1, 2, 3)
        self.table = nn.Linear(5 + 14, 4)
        self.last = nn.Linear(4 + 2 + 4, spec.output_size)

    def forward(self, picture: Tensor, table: Tensor, series: Tensor, volume: Tensor) -> Tensor:
        features = self.picture(picture).mean((2, 3))
        rest = self.table(torch.cat([table, series.flatten(1)], 1))
        return self.last(torch.cat([features, self.volume(volume).mean((2, 3, 4)), rest], 1))  # type: ignore[no-any-return]
