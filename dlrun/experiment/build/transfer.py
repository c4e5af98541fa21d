"""`init_from`: the weights of another run to begin with, and what of the two models does not match."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from dlrun.core.errors import RequestError, listed
from dlrun.data.files.tensors import get_number_kind
from dlrun.experiment.resume import find_checkpoint_file, refuse_incomplete
from dlrun.runs import checkpoint

_MOST = 6  # names in a sentence


def take_weights(model: nn.Module, place: Path) -> list[str]:
    """Copy the weights of a run or checkpoint that fit by name and shape; returns what was taken and what not.

    RequestError when nothing fits.
    """
    path = find_checkpoint_file(str(place))
    state = checkpoint.load(path)
    refuse_incomplete(state, ("model",), path)
    theirs = {key: value for key, value in state["model"].items() if isinstance(value, Tensor)}
    ours = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    fitting = {key: value for key, value in theirs.items() if key in ours and _fits(value, ours[key])}
    if not fitting:
        raise RequestError(
            f"init_from={place}: none of its weights fit this model; here {format_shapes(ours, list(ours))}, "
            f"there {format_shapes(theirs, list(theirs))}"
        )
    model.load_state_dict(fitting, strict=False)
    return [f"{len(fitting)} of {len(ours)} tensors taken from {place}: {format_names(list(fitting))}"] + [
        f"not taken, as {why}: {said}"
        for why, said in (
            ("their shapes differ", _differing(ours, theirs)),
            (f"{place} lacks them", format_shapes(ours, [k for k in ours if k not in theirs])),
            ("this model has none such", format_shapes(theirs, [k for k in theirs if k not in ours])),
        )
        if said
    ]


def _fits(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.shape == ours.shape and get_number_kind(theirs) == get_number_kind(ours)


def _differing(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str:
    both = [k for k in ours if k in theirs and ours[k].shape != theirs[k].shape]
    return listed([f"{k} ({_shape(ours[k])} here, {_shape(theirs[k])} there)" for k in both], most=_MOST)


def format_shapes(state: dict[str, Tensor], keys: Sequence[str]) -> str:
    """ "fc.weight (10×64), fc.bias (10)"; of many the layers that they are in."""
    return listed([f"{k} ({_shape(state[k])})" for k in keys]) if len(keys) <= _MOST else format_names(keys)


def format_names(keys: Sequence[str]) -> str:
    """The names; of many the parts of the net that they are in, with how many: "net.layer1 (30), net.fc (2)"."""
    if len(keys) <= _MOST:
        return listed(keys)
    for depth in (3, 2, 1):
        counts: dict[str, int] = {}
        for key in keys:
            part = ".".join(key.split(".")[:-1][:depth]) or key
            counts[part] = counts.get(part, 0) + 1
        if len(counts) <= _MOST:
            break
    return listed([f"{part} ({count})" for part, count in counts.items()], most=_MOST)


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"
