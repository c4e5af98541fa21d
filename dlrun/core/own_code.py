"""Which code is the user's own, and which of it a config names: loading a run needs permission to import it."""

import types
from collections.abc import Iterator
from typing import Any

from dlrun.core.errors import is_own_code

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


def iter_task_names(task: Any) -> Iterator[str]:
    """Yield what `task` names of the user's own code without a `_target_`; nothing for what could not be read."""
    loss = task.get("loss") if isinstance(task, dict) else None
    if isinstance(loss, str) and is_own_name(loss):
        yield loss


def find_own_modules(plain: dict[str, Any]) -> list[str]:
    """Top-level modules of the user's own that a config names, sorted; empty for a config that could not be read."""
    # Nothing below `user` is built.
    names = set(iter_targets({key: value for key, value in plain.items() if key != "user"}))
    names.update(iter_task_names(plain.get("task")))

    # "None" is the text of a target that is null.
    modules = {name.split(".")[0] for name in names}
    return sorted(modules - {*OURS, "None"})
