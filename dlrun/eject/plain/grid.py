"""Training without gradients: every value on a grid is tried."""

import math

from dlrun.core.errors import RequestError
from dlrun.eject.plain import start
from dlrun.eject.plain.losses import outputs
from dlrun.eject.plain.source import Constant, Piece, filled
from dlrun.eject.plain.training_run import TrainingRun

_AXIS = '''\
def axis(low, high):
    """low, low + STEP, ..., high: in decimals, so that 3 · 0.1 is 0.3."""
    count = int((Decimal(high) - Decimal(low)) / Decimal(STEP)) + 1
    return [float(Decimal(low) + k * Decimal(STEP)) for k in range(count)]
'''
_FINER = '''\
def around(centre, low, high, spacing):
    """The values of a finer grid, as many on each side as reach the neighbours, within the first range."""
    half = math.ceil(int((Decimal(high) - Decimal(low)) / Decimal(STEP)) / 2)
    values = (float(Decimal(str(centre)) + k * spacing) for k in range(-half, half + 1))
    return [value for value in values if float(low) <= value <= float(high)]
'''
_LOSS = '''\
@torch.no_grad()
def loss_at(point):
    """The loss with these values as parameters, which they stay."""
    for p, value in zip(net.parameters(), point, strict=True):  #? !joint
        p.fill_(value)  #? !joint
    for p in net.parameters():  #? joint
        p.copy_(torch.tensor(point).view_as(p))  #? joint
    return float(criterion($called))
'''
_SEARCH = """\
points = list(product($axes))
best = min(points, key=loss_at)  # the first among equals
"""
_REFINE = """\
for grid in range(1, $more):
    spacing = Decimal(STEP) / Decimal(REFINE) ** grid
    points += product($around)
    best = min(points, key=loss_at)
"""
_END = """\
print(f"{len(points)} points were tried; the best is {best} with a loss of {loss_at(best):.6g}")
"""


def training(run: TrainingRun) -> Piece:
    """Source that searches the grid; RequestError where a step does not see all rows."""
    if not run.whole:
        raise RequestError(
            "format=python writes optimizer=exhaustive for all rows in one batch in their order, without validation "
            "and test part; eject a run with data.shuffle=false and a data.batch_size as large as the data"
        )
    group, count = run.optimizer.param_groups[0], sum(p.numel() for p in run.model.parameters())
    names = [("LOW", "HIGH"), ("LOW_2", "HIGH_2")][:count]
    constants = {
        name: Constant(str(value))
        for pair, ends in zip(names, group["ranges"], strict=False)
        for name, value in zip(pair, ends, strict=True)
    }
    constants |= {"STEP": Constant(str(group["step"]), "between the values of the first grid")}
    constants |= {"REFINE": Constant(str(group["refine"]), "what divides the spacing in each finer grid")}
    code = _AXIS
    grids = _grids(run)
    if grids > 1:
        code += f"\n{_FINER}"
    code += "\n" + filled(
        _LOSS, {"joint": any(p.numel() > 1 for p in run.model.parameters())}, called=outputs(run, f"net({run.inputs})")
    )
    code += f"\n{start.net(run)}"
    code += filled(_SEARCH, axes=", ".join(f"axis({low}, {high})" for low, high in names))
    if grids > 1:
        around = ", ".join(f"around(best[{i}], {low}, {high}, spacing)" for i, (low, high) in enumerate(names))
        code += filled(_REFINE, more=grids, around=around)
    return Piece(code + _END, constants)


def _grids(run: TrainingRun) -> int:
    """How many grids there were: one a step, until the spacing is fine enough."""
    group, trainer = run.optimizer.param_groups[0], run.settings.trainer
    epochs = trainer.limit_epochs(1)
    steps = min(epochs, trainer.max_steps or epochs)
    if group["refine"] <= 1:
        return 1
    spacing, grids = group["step"], 1
    while grids < steps and spacing > group["finest"] and not math.isclose(spacing, group["finest"]):
        spacing, grids = spacing / group["refine"], grids + 1
    return grids
