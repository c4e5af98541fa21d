"""The net as it starts: its seed, its precision and layout, and the values that the user gave."""

import torch

from dlrun.eject.plain.nets import attribute, made
from dlrun.eject.plain.source import filled, literal
from dlrun.eject.plain.training_run import TrainingRun
from dlrun.experiment.builder.start_values import find_parameters

_NET = """\
torch.set_num_threads(THREADS)
torch.use_deterministic_algorithms(True)  #? deterministic
torch.manual_seed(SEED)
net = $made
with torch.no_grad():  #? given
    $given
"""


def net(run: TrainingRun) -> str:
    """Source that makes `net`."""
    expression = made(run) + (".double()" if run.double else "")
    expression += ".to(memory_format=torch.channels_last)" if run.channels_last else ""
    given = start_values(run)
    flags = {"given": bool(given), "deterministic": run.settings.device.deterministic}
    return filled(_NET, flags, made=expression, given=given)


def start_values(run: TrainingRun) -> str:
    """Lines that fill the parameters of model.init."""
    named, lines = dict(run.model.named_parameters()), []
    for key, value in (run.settings.model.keys.init or {}).items():
        for name in find_parameters(key, list(named)):
            target = f"net.{attribute(name)}"
            if isinstance(value, list):
                rows = torch.as_tensor(value, dtype=torch.float64).reshape(named[name].shape).tolist()
                lines.append(f"{target}.copy_(torch.tensor({literal(rows)}, dtype={run.dtype}))")
            else:
                lines.append(f"{target}.fill_({literal(value)})")
    return "\n".join(lines)
