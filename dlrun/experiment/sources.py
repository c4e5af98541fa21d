"""The source files of a user's own code in a run: a resumed run says which of them have changed."""

import hashlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra.utils

from dlrun.core.own_code import has_own_file, is_ours, target_names
from dlrun.engine.object_state import name_modules
from dlrun.experiment.context import RunContext


def hash_sources(parts: RunContext) -> dict[str, str]:
    """{"own.Loss (own.py)": sha256 of the file} of all that the config names and the net consists of.

    Modules of the user's own that those import stand there by their own name: {"helpers (helpers.py)": ...}.
    """
    hashes: dict[str, str] = {}
    modules: dict[str, types.ModuleType] = {}
    for name, owner in _own_parts(parts):
        module = sys.modules.get(_module_name(owner))
        if module is not None and has_own_file(module):
            modules[module.__name__] = module
            _note(name, module, hashes)

    waiting = list(modules.values())
    while waiting:
        for other in _imports_of(waiting.pop()):
            if other.__name__ not in modules:
                modules[other.__name__] = other
                waiting.append(other)
                _note(other.__name__, other, hashes)
    return hashes


def find_changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """A sentence for each file whose content is not what it was."""
    changed: dict[str, list[str]] = {}
    for label, digest in now.items():
        if before.get(label, digest) != digest:
            name, _, file = label.partition(" (")
            changed.setdefault(file.rstrip(")"), []).append(name)
    return [
        f"the source of {' and '.join(names)} ({file}) changed since this checkpoint was saved"
        for file, names in changed.items()
    ]


def _own_parts(parts: RunContext) -> Iterator[tuple[str, Any]]:
    """What the config names, and the classes of the net's modules, each with its name."""
    named = dict.fromkeys(target_names(parts.settings.plain))
    loss = parts.settings.rest.task.loss
    if loss and "." in loss:
        named[loss] = None
    for name in named:
        if name != "None" and not is_ours(name):
            yield name, hydra.utils.get_object(name)
    for module in name_modules(parts.model).values():
        kind = type(module)
        if not is_ours(kind.__module__):
            yield f"{kind.__module__}.{kind.__qualname__}", kind


def _module_name(owner: Any) -> str:
    return str(getattr(owner, "__module__", None) or type(owner).__module__)


def _note(name: str, module: types.ModuleType, hashes: dict[str, str]) -> None:
    file = Path(str(module.__file__))
    try:
        hashes[f"{name} ({file.name})"] = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:  # moved away since it was imported
        return


def _imports_of(module: types.ModuleType) -> Iterator[types.ModuleType]:
    """Modules of the user's own whose contents a module uses."""
    for value in list(vars(module).values()):
        other = value if isinstance(value, types.ModuleType) else sys.modules.get(str(_defining_module(value)))
        if other is not None and has_own_file(other):
            yield other


def _defining_module(value: Any) -> Any:
    return getattr(value, "__module__", None) if isinstance(value, type | types.FunctionType) else None
