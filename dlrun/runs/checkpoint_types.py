"""The type of each key of a checkpoint, checked once, when the file is read."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from dlrun.core.bounded import check_plain, describe, is_number
from dlrun.engine.device import is_rng_state
from dlrun.runs.record import (
    COUNT,
    MAPPING,
    NAMED_TEXTS,
    NUMBER,
    NUMBERS,
    TEXT,
    Check,
    allow_none,
    find_config_error,
    find_type_error,
)

# Larger sizes are damage: a model built from them would only exhaust the memory.
_LARGEST_LAYER = 2**31
# Letters of a NumPy dtype: text of a million letters each would fill the memory.
_LONGEST_KIND = 5
# Suffix of the keys under which modules keep state that is no tensor.
_EXTRA_STATE = "_extra_state"


def find_state_error(state: dict[str, Any]) -> str:
    """Describe the first value of a checkpoint that has a wrong type; "" if there is none."""
    try:
        # Plain first: the checks below, and all readers after them, rely on dictionaries and lists.
        for key in ("config", "choices", "spec"):
            check_plain(_convert_tuples(state.get(key)))
    except ValueError as error:
        return f"{key}: {error}"

    problem = find_type_error(state, _STATE_KEYS)
    if problem:
        return problem
    for key, inside in _INNER_KEYS.items():
        problem = find_type_error(state.get(key, {}), inside, f"{key}.")
        if problem:
            return problem

    if "config" in state:
        problem = find_config_error(state["config"])
        if problem:
            return f"config.{problem}"

    if "spec" in state:
        problem = _find_spec_error(state["spec"])
        if problem:
            return f"spec.{problem}"

    # These marks say which values `plain.decode` rewrites, so that a forged one could change any key.
    if not _are_marks(state.get("numpy", [])):
        return f"numpy is {describe(state['numpy'])}, and says of no value what it was"
    # Written twice, by the checkpoint and by the training: a file in which they differ is not of one moment.
    for key in ("epoch", "step"):
        if key in state.get("progress", {}) and key in state and state["progress"][key] != state[key]:
            return f"{key} is {state[key]}, and progress.{key} is {state['progress'][key]}"
    return ""


def _convert_tuples(value: Any) -> Any:
    """Return a mapping with lists for tuples, as `check_plain` expects."""
    if not isinstance(value, dict):
        return value
    mapping = {}
    for key, part in value.items():
        mapping[key] = list(part) if isinstance(part, tuple) else part
    return mapping


def _find_spec_error(spec: dict[str, Any]) -> str:
    """Describe the first value that a DataSpec cannot have; "" if there is none."""
    unknown = [key for key in spec if key not in _SPEC_KEYS]
    if unknown:
        return f"{unknown[0]} is no key of a data's description"
    problem = find_type_error(spec, _SPEC_KEYS)
    if problem:
        return problem

    # Reports look up names by class number, and would fail at the first class without one.
    names = len(spec.get("class_names", ()))
    # One output tells two classes apart, or a row with its only label from one without.
    classes = max(spec.get("output_size", 0), 1 if spec.get("task") == "multilabel" else 2)
    if names and spec.get("task") != "regression" and names < classes:
        return f"class_names has {names} names for {classes} classes"
    return ""


def _are_outputs(value: Any) -> bool:
    """Whether a value describes the outputs of a multitask."""
    if not isinstance(value, list | tuple):
        return False
    for output in value:
        if not isinstance(output, dict) or set(output) != {"name", "task", "size", "class_names"}:
            return False
        names = output["class_names"]
        is_described = isinstance(output["name"], str) and output["task"] in ("regression", "binary", "multiclass")
        is_sized = isinstance(output["size"], int) and 0 < output["size"] <= 2**31
        if not is_described or not is_sized or not isinstance(names, list | tuple):
            return False
        # A binary output is one logit of two classes.
        classes = 2 if output["task"] == "binary" else output["size"]
        if names and (len(names) != classes or not all(isinstance(name, str) for name in names)):
            return False

    return True


def list_missing_keys(state: dict[str, Any], required_keys: Sequence[str]) -> list[str]:
    """List the keys that a checkpoint lacks, also inside its config and its data's description."""
    missing = [key for key in required_keys if key not in state]
    for key, inside in _NEEDED_INSIDE.items():
        if key in required_keys and key not in missing:
            missing += [f"{key}.{name}" for name in inside if state[key].get(name) is None]
    return missing


def _are_marks(value: Any) -> bool:
    """Whether a value marks NumPy values, all of them the user's: dlrun's own state has none."""
    if not isinstance(value, list):
        return False
    for mark in value:
        if not isinstance(mark, list) or len(mark) != 3 or not isinstance(mark[0], list) or not mark[0]:
            return False
        owner = mark[0][0]
        # Only these may hold values of a user's own class; all else is written by dlrun.
        is_of_user = owner in (
            "model",
            "ema",
            "optimizer",
            "scheduler",
            "scaler",
            "totals",
            "callbacks",
            "others",
            "metrics",
        )
        if not is_of_user and not (owner == "spec" and mark[1] == "scalar"):
            return False
        if not isinstance(mark[2], str) or len(mark[2]) > _LONGEST_KIND:
            return False

    return True


def _are_weights(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return all(
        isinstance(key, str) and (isinstance(part, Tensor) or key.endswith(_EXTRA_STATE)) for key, part in value.items()
    )


def _is_average(value: Any) -> bool:
    return isinstance(value, dict) and COUNT[0](value.get("steps")) and _are_weights(value.get("model"))


def _is_optimizer(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if not value:
        return True
    # An optimizer of the user's own may keep more, as long as torch's two parts are there.
    groups = value.get("param_groups")
    is_list = isinstance(groups, list) and all(isinstance(group, dict) for group in groups)
    return is_list and isinstance(value.get("state"), dict)


def _are_totals(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    waiting = value.get("waiting", [])
    sums = value.get("sums", {})
    if not isinstance(waiting, list) or not isinstance(sums, dict):
        return False
    for entry in waiting:
        if not isinstance(entry, list | tuple) or not all(isinstance(part, Tensor) for part in entry):
            return False
    return all(isinstance(part, Tensor) for part in sums.values())


def _are_logged(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("sums"), dict):
        return False
    counts = value.get("counts")
    if not isinstance(counts, dict) or counts.keys() != value["sums"].keys():
        return False
    are_numbers = all(
        is_number(part) or (isinstance(part, Tensor) and part.dim() == 0) for part in value["sums"].values()
    )
    return are_numbers and all(isinstance(name, str) and COUNT[0](count) for name, count in counts.items())


def _are_callback_states(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(state, dict) for name, state in value.items()
    )


def _is_rank_state(part: Any) -> bool:
    if not isinstance(part, dict) or not is_rng_state(part.get("rng")) or not _are_totals(part.get("totals")):
        return False
    logged = part.get("logged")
    return (logged is None or _are_logged(logged)) and _are_callback_states(part.get("callbacks", {}))


def _are_others(value: Any) -> bool:
    return isinstance(value, list) and all(_is_rank_state(part) for part in value)


def _is_sequence_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(accepts(part) for part in value)


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST_LAYER


def _is_shape(value: Any) -> bool:
    is_sequence = isinstance(value, list | tuple) and all(_is_length(length) for length in value)
    return is_sequence and len(value) > 0 and math.prod(value) <= _LARGEST_LAYER


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


SHAPE: Check = (_is_shape, "a shape")
LENGTH: Check = (_is_length, "a whole number above 0")
NAMES: Check = (_is_sequence_of(lambda value: isinstance(value, str) or is_number(value)), "a list of names")
CONSTANTS: Check = (_is_sequence_of(_is_finite), "a list of numbers")
WEIGHTS: Check = (_are_weights, "tensors by name")

_STATE_KEYS: dict[str, Check] = {
    "run_id": TEXT,
    "model": WEIGHTS,
    "ema": (_is_average, "an average of the weights"),
    # Buffers that the model creates or reshapes in a forward pass, which loading has to do beforehand.
    "made_buffers": (_is_sequence_of(lambda value: isinstance(value, str)), "a list of names"),
    "config": MAPPING,
    "choices": NAMED_TEXTS,
    "spec": MAPPING,
    "epoch": COUNT,
    "step": COUNT,
    "metrics": NUMBERS,
    "rng": (is_rng_state, "the state of the random generators"),
    "optimizer": (_is_optimizer, "the state of an optimizer"),
    "scheduler": MAPPING,
    "scaler": MAPPING,
    "loss": MAPPING,
    "class_weights": (_is_sequence_of(is_number), "a number for each class"),
    "progress": MAPPING,
    "early_stopping": MAPPING,
    "totals": (_are_totals, "sums of metrics"),
    "logged": (_are_logged, "sums of what was logged"),
    "callbacks": (_are_callback_states, "the states of callbacks"),
    "frozen": (_is_sequence_of(lambda value: isinstance(value, str)), "names of parameters"),
    "others": (_are_others, "what other processes have of their own"),
    "rows": COUNT,
    "threads": COUNT,
    "processes": COUNT,
    "torch": TEXT,
    "sources": NAMED_TEXTS,
}
# No reader can do without these. Others may be missing, as older versions wrote fewer keys.
_NEEDED_INSIDE = {
    "spec": ("kind", "input_shape", "task", "output_size"),
    "config": ("data", "model", "optimizer", "scheduler", "trainer", "device", "paths"),
}
_INNER_KEYS: dict[str, dict[str, Check]] = {
    "scheduler": {"steps": COUNT, "scheduler": MAPPING},
    "progress": {
        "epoch": COUNT,
        "batch": COUNT,
        "step": COUNT,
        "first_loss": allow_none(NUMBER),
        "last_finite_loss": NUMBER,
        "bad_gradient_step": allow_none(COUNT),
        "troubles": NAMED_TEXTS,
        "train_seconds": NUMBER,
        "samples": COUNT,
        "is_stopped": (lambda value: isinstance(value, bool), "true or false"),
    },
    "early_stopping": {
        "best_value": allow_none(NUMBER),
        "best_epoch": allow_none(COUNT),
        "best_step": allow_none(COUNT),
        "epochs_without_improvement": COUNT,
    },
}
_SPEC_KEYS: dict[str, Check] = {
    "kind": (lambda value: value in ("vector", "image", "tokens", "series"), "vector, image, tokens or series"),
    "input_shape": SHAPE,
    "task": (
        lambda value: value in ("regression", "binary", "multiclass", "multilabel", "multitask", "tagging"),
        "regression, binary, multiclass, multilabel, multitask or tagging",
    ),
    "output_size": LENGTH,
    "class_names": NAMES,
    "vocabulary": NAMES,
    "feature_names": NAMES,
    "mean": CONSTANTS,
    "std": CONSTANTS,
    "framing": CONSTANTS,
    "pixel_range": CONSTANTS,
    "outputs": (_are_outputs, "a list of outputs, each with name, task, size and class_names"),
    "reconstructs": (lambda value: isinstance(value, bool), "true or false"),
    "target_mean": CONSTANTS,
    "target_std": CONSTANTS,
    "code_counts": (_is_sequence_of(lambda value: isinstance(value, int) and value >= 0), "a list of counts"),
    "preprocessing": MAPPING,
}
