"""`init_from`: initial weights from another run, and which of them do not match the model."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from dlrun.core.errors import RequestError, join_names
from dlrun.data.files.tensors import get_number_kind
from dlrun.experiment.resume import find_checkpoint_file, refuse_incomplete
from dlrun.runs import checkpoint

# The most names in a sentence.
_MOST = 6


def load_matching_weights(model: nn.Module, source: Path) -> list[str]:
    """Copy the weights of a run or checkpoint that match the model by name, shape and kind of number.

    Returns notes on the weights that were taken and those that were not. RequestError where none match.
    """
    path = find_checkpoint_file(str(source))
    state = checkpoint.load(path)
    refuse_incomplete(state, ("model",), path)

    theirs = {key: value for key, value in state["model"].items() if isinstance(value, Tensor)}
    ours = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    matching = {key: value for key, value in theirs.items() if key in ours and _matches(value, ours[key])}
    if not matching:
        raise RequestError(
            f"init_from={source}: none of its weights fit this model; here {format_shapes(ours, list(ours))}, "
            f"there {format_shapes(theirs, list(theirs))}"
        )
    # Tensors that do not match keep their initial values.
    model.load_state_dict(matching, strict=False)

    notes = [f"{len(matching)} of {len(ours)} tensors taken from {source}: {format_names(list(matching))}"]
    only_ours = [key for key in ours if key not in theirs]
    only_theirs = [key for key in theirs if key not in ours]
    for reason, tensors in (
        ("their shapes differ", _format_other_shapes(ours, theirs)),
        (f"{source} lacks them", format_shapes(ours, only_ours)),
        ("this model has none such", format_shapes(theirs, only_theirs)),
    ):
        if tensors:
            notes.append(f"not taken, as {reason}: {tensors}")
    return notes


def _matches(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.shape == ours.shape and get_number_kind(theirs) == get_number_kind(ours)


def _format_other_shapes(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str:
    differing = [key for key in ours if key in theirs and ours[key].shape != theirs[key].shape]
    both_shapes = [f"{key} ({_format_shape(ours[key])} here, {_format_shape(theirs[key])} there)" for key in differing]
    return join_names(both_shapes, most=_MOST)


def format_shapes(state: dict[str, Tensor], keys: Sequence[str]) -> str:
    """ "fc.weight (10×64), fc.bias (10)"; of many tensors only the layers that hold them."""
    if len(keys) > _MOST:
        return format_names(keys)
    return join_names([f"{key} ({_format_shape(state[key])})" for key in keys])


def format_names(keys: Sequence[str]) -> str:
    """The names; of many the modules that hold them, with their number: "net.layer1 (30), net.fc (2)"."""
    if len(keys) <= _MOST:
        return join_names(keys)

    # The deepest level of modules at which the sentence stays short.
    for depth in (3, 2, 1):
        counts: dict[str, int] = {}
        for key in keys:
            module = ".".join(key.split(".")[:-1][:depth]) or key
            counts[module] = counts.get(module, 0) + 1
        if len(counts) <= _MOST:
            break
    return join_names([f"{module} ({count})" for module, count in counts.items()], most=_MOST)


def _format_shape(tensor: Tensor) -> str:
    return "×".join(str(size) for size in tensor.shape) or "scalar"
