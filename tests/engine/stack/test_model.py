"""What a stack sees of the layers of its members, against hooks in each net alone."""

import torch
from torch import Tensor, nn

from dlrun.engine.stack.model import StackedModel


def build_net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 1))
    with torch.no_grad():
        # Other units of each net are dead.
        net[0].bias[seed] = -100.0
        net[3].bias[: seed + 1] = -100.0
    return net


def test_awake_units_are_those_that_hooks_see() -> None:
    nets = [build_net(seed) for seed in range(3)]
    rows = torch.randn(3, 5, 2, 4)
    expected: list[dict[int, Tensor]] = []
    outputs = []
    for net, x in zip(nets, rows, strict=True):
        awake = {}
        for number, layer in enumerate(net):
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                others = [dimension for dimension in range(x.dim()) if dimension != 1]
                awake[number] = (x > 0).amax(others)
        expected.append(awake)
        outputs.append(x)

    model = StackedModel(nets, [torch.Generator() for _ in nets])
    stacked, uses = model.find_awake_units(rows, (nn.ReLU,), units_are_last=False)
    torch.testing.assert_close(stacked, torch.stack(outputs))
    assert list(uses) == ["1", "4"]
    for number, awake in enumerate(expected):
        for layer, units in awake.items():
            ((mask),) = uses[str(layer)]
            assert mask[number].tolist() == units.tolist()
            assert not units.all()
