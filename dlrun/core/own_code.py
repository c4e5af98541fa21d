"""Which code is the user's own, and which of it a config names: loading a run needs permission to import it."""

import types
from collections.abc import Iterator
from typing import Any

from dlrun.core.errors import is_own_code

# Functions from numbers to a number, which need no permission.
PURE_METRICS = "sklearn.metrics."

OURS = ("dlrun", "torch", "torchvision")


def is_ours(name: str) -> bool:
    """Whether a dotted name belongs to dlrun, torch or torchvision."""
    return name.split(".")[0] in OURS


def has_own_file(module: types.ModuleType) -> bool:
    """Whether a module was imported from a file of the user's own."""
    file = getattr(module, "__file__", None)
    return file is not None and is_own_code(file)


def iter_targets(block: Any) -> Iterator[str]:
    """Yield every `_target_` in a block, nested ones too."""
    if isinstance(block, dict):
        if "_target_" in block:
            yield str(block["_target_"])
        for value in block.values():
            yield from iter_targets(value)
    elif isinstance(block, list | tuple):
        for value in block:
            yield from iter_targets(value)


def is_own_name(name: str | None) -> bool:
    """Whether a name in the config, such as that of a loss, is module.name of the user's own code."""
    return name is not None and "." in name and not is_ours(name)


def _iter_task_names(task: Any) -> Iterator[str]:
    """Yield what `task` names of the user's own code without a `_target_`; nothing for what could not be read."""
    if not isinstance(task, dict):
        return
    names = [task.get("loss"), *list_metric_targets(task.get("metrics"))]
    for name in names:
        if isinstance(name, str) and is_own_name(name) and not name.startswith(PURE_METRICS):
            yield name


def list_metric_targets(entries: Any) -> list[str]:
    """What each entry of `task.metrics` names, whether it has arguments or not."""
    targets = []
    # Of several outputs there is a list for each.
    if isinstance(entries, dict):
        entries = [entry for part in entries.values() if isinstance(part, list) for entry in part]
    for entry in entries if isinstance(entries, list) else ():
        target = entry.get("_target_") if isinstance(entry, dict) else entry
        targets.append(str(target))
    return targets


def iter_config_names(plain: dict[str, Any]) -> Iterator[str]:
    """Yield what a config names of dlrun's, torch's and the user's code."""
    # Nothing below `user` is built, and `task` names more than its targets.
    yield from iter_targets({key: value for key, value in plain.items() if key not in ("user", "task")})
    yield from _iter_task_names(plain.get("task"))


def find_own_modules(plain: dict[str, Any]) -> list[str]:
    """Top-level modules of the user's own that a config names, sorted; empty for a config that could not be read."""
    # "None" is the text of a target that is null.
    modules = {name.split(".")[0] for name in iter_config_names(plain)}
    return sorted(modules - {*OURS, "None"})
