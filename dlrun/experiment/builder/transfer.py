"""`init_from`: initial weights from another run or a file, and which of them do not match the model."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dlrun.core.errors import RequestError, join_names
from dlrun.core.suggest import did_you_mean
from dlrun.data.files.tensors import get_number_kind
from dlrun.experiment.resume import find_checkpoint_file
from dlrun.models.weights_file import read_state_dict
from dlrun.runs import checkpoint

# The most names in a sentence.
_MOST = 6

# Prefixes of names when another module holds the net: dlrun's own (`net.`) and Lightning's (`model.`), for example.
_HOLDERS = ("net.", "model.")


def load_matching_weights(model: nn.Module, source: Path, name_map: Mapping[str, Any] | None = None) -> list[str]:
    """Copy the weights of a run, a checkpoint or a file that match the model by name, shape and kind of number.

    A name matches too if it lacks, or has besides, the `net.` or `model.` of a module that holds the net.
    name_map: other prefixes for the names in the source; null leaves out what has the prefix.

    Returns notes on the weights that were taken and those that were not. RequestError where none match.
    """
    # Extra state may hold anything, which no other model has a use for.
    ours = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    read, dropped = _apply_map(_read_weights(source), name_map or {})
    theirs = _match_names(read, ours)
    matching = {key: theirs[key] for key, own in ours.items() if key in theirs and _matches(theirs[key], own)}
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
        ("their kinds of number differ", _format_other_kinds(ours, theirs)),
        (f"{source} lacks them", format_shapes(ours, only_ours)),
        ("this model has none such", format_shapes(theirs, only_theirs)),
        ("init_map leaves them out", format_names(dropped)),
    ):
        if tensors:
            notes.append(f"not taken, as {reason}: {tensors}")

    frozen = [key for key, value in model.named_parameters() if not value.requires_grad and key not in matching]
    if frozen:
        notes.append(f"model.freeze: frozen with random weights, as they were not taken: {format_names(frozen)}")
    return notes


def _read_weights(source: Path) -> dict[str, Tensor]:
    """All tensors by name, of a run or a checkpoint of dlrun, or of a file that anything else has written."""
    if source.is_file() and not _is_checkpoint(source):
        return read_state_dict(source, "init_from")
    path = find_checkpoint_file(str(source))
    state = checkpoint.load(path, ("model",))
    return {key: value for key, value in state["model"].items() if isinstance(value, Tensor)}


def _is_checkpoint(file: Path) -> bool:
    """Whether a file is dlrun's, be it damaged."""
    run = file.absolute().parent.parent
    is_in_run = (run / ".hydra").is_dir() and file.suffix == ".pt" and file.name != "model.pt"
    return is_in_run or checkpoint.has_checksum(file)


def _apply_map(weights: Mapping[str, Tensor], name_map: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under their mapped names, and the names of those that the map leaves out.

    A prefix ends where a part of a name ends, so that fc is not fc2; of several that fit the longest counts.
    RequestError for a prefix that no name has, and for two tensors of one name.
    """
    prefixes = sorted((key.rstrip("."), value) for key, value in name_map.items())
    for prefix, value in prefixes:
        if value is not None and not isinstance(value, str):
            raise RequestError(f"init_map.{prefix}={value} must be another prefix, or null to leave out what has it")
        if not any(_has_prefix(name, prefix) for name in weights):
            known = list(dict.fromkeys(_list_prefixes(weights)))
            hint = did_you_mean(prefix, known)
            raise RequestError(
                f"init_map.{prefix}: no name in init_from begins so; {hint}they begin with {join_names(known)}"
            )

    mapped: dict[str, Tensor] = {}
    dropped = []
    for name, tensor in weights.items():
        # The longest prefix is the most specific one.
        fitting = [(prefix, value) for prefix, value in prefixes if _has_prefix(name, prefix)]
        other = name
        if fitting:
            prefix, value = max(fitting, key=lambda item: len(item[0]))
            if value is None:
                dropped.append(name)
                continue
            rest = name[len(prefix) :].lstrip(".")
            other = ".".join(part for part in (value.rstrip("."), rest) if part)

        if other in mapped:
            raise RequestError(f"init_map gives two tensors the name {other}; map one of them to null")
        mapped[other] = tensor

    return mapped, dropped


def _has_prefix(name: str, prefix: str) -> bool:
    return not prefix or name == prefix or name.startswith(f"{prefix}.")


def _list_prefixes(names: Collection[str]) -> list[str]:
    """The modules at the top that names belong to, and those below them."""
    tops = [name.partition(".")[0] for name in names]
    return tops + [name.rpartition(".")[0] for name in names if "." in name]


def _match_names(theirs: Mapping[str, Tensor], ours: Collection[str]) -> dict[str, Tensor]:
    """Their tensors by the names that they have here; those that have none keep their own."""
    # Names that are the same need no guess, and nothing else takes them.
    matched = {name: tensor for name, tensor in theirs.items() if name in ours}
    for name, tensor in theirs.items():
        if name in matched:
            continue
        bare = next((name.removeprefix(holder) for holder in _HOLDERS if name.startswith(holder)), name)
        candidates = [bare, *(holder + bare for holder in _HOLDERS)]
        own = next((key for key in candidates if key in ours and key not in matched), name)
        matched[own] = tensor

    return matched


def _matches(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.shape == ours.shape and get_number_kind(theirs) == get_number_kind(ours)


def _format_other_kinds(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str:
    shared = [key for key in ours if key in theirs and ours[key].shape == theirs[key].shape]
    differing = [key for key in shared if get_number_kind(ours[key]) != get_number_kind(theirs[key])]
    return join_names([f"{key} ({ours[key].dtype} here, {theirs[key].dtype} there)" for key in differing], most=_MOST)


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
