"""Hashes of the user's own source files, by which a resumed run notes those that have changed."""

import hashlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra.utils

from dlrun.core.own_code import has_own_file, is_ours, iter_config_names
from dlrun.engine.object_state import name_modules
from dlrun.experiment.context import RunContext


def hash_sources(context: RunContext) -> dict[str, str]:
    """Hash the files of all own code that the config names and the model consists of.

    Returns {"own.Loss (own.py)": sha256}; own modules that those import stand under their module's name,
    {"helpers (helpers.py)": sha256}.
    """
    hashes: dict[str, str] = {}
    modules: dict[str, types.ModuleType] = {}
    for name, owner in _iterate_own_objects(context):
        module = sys.modules.get(_get_module_name(owner))
        if module is not None and has_own_file(module):
            modules[module.__name__] = module
            _add_hash(name, module, hashes)

    pending = list(modules.values())
    while pending:
        for imported in _iterate_imports(pending.pop()):
            if imported.__name__ not in modules:
                modules[imported.__name__] = imported
                pending.append(imported)
                _add_hash(imported.__name__, imported, hashes)
    return hashes


def find_changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """A sentence for each file whose hash has changed."""
    names_by_file: dict[str, list[str]] = {}
    for label, digest in now.items():
        if before.get(label, digest) != digest:
            name, _, file = label.partition(" (")
            names_by_file.setdefault(file.rstrip(")"), []).append(name)
    return [
        f"the source of {' and '.join(names)} ({file}) changed since this checkpoint was saved"
        for file, names in names_by_file.items()
    ]


def _iterate_own_objects(context: RunContext) -> Iterator[tuple[str, Any]]:
    """Objects that the config names, and classes of the model's modules, each with its name."""
    for name in dict.fromkeys(iter_config_names(context.settings.plain)):
        if name != "None" and not is_ours(name):
            yield name, hydra.utils.get_object(name)

    for module in name_modules(context.state.model).values():
        kind = type(module)
        if not is_ours(kind.__module__):
            yield f"{kind.__module__}.{kind.__qualname__}", kind


def _get_module_name(owner: Any) -> str:
    return str(getattr(owner, "__module__", None) or type(owner).__module__)


def _add_hash(name: str, module: types.ModuleType, hashes: dict[str, str]) -> None:
    file = Path(str(module.__file__))
    try:
        hashes[f"{name} ({file.name})"] = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        # The file was moved after the import.
        return


def _iterate_imports(module: types.ModuleType) -> Iterator[types.ModuleType]:
    """The user's own modules whose contents a module uses."""
    for value in list(vars(module).values()):
        imported = value if isinstance(value, types.ModuleType) else sys.modules.get(str(_get_defining_module(value)))
        if imported is not None and has_own_file(imported):
            yield imported


def _get_defining_module(value: Any) -> Any:
    if isinstance(value, type | types.FunctionType):
        return getattr(value, "__module__", None)
    return None
