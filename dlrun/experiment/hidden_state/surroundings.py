"""State of a user's code that lies outside its objects: globals, class attributes, variables of closures."""

import contextlib
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dlrun.core.own_code import has_own_file, is_ours
from dlrun.engine.object_state import PLAIN_TYPES, count_bytes, duplicate, iterate_reachable

# Largest variable that is copied: data that a module holds are left out.
_MOST_BYTES = 2**26


class _Missing:
    """Stands for a variable that is not there."""

    def __deepcopy__(self, _memo: Any) -> "_Missing":
        return self


MISSING = _Missing()

# Tells a variable from all others: id of what holds it, and its name.
Key = tuple[int, str]


@dataclass(frozen=True)
class Variable:
    """The place of one value."""

    # As messages name it: "the global CALLS of mynet.py".
    label: str
    key: Key

    # Returns MISSING if the variable is not there.
    read: Callable[[], Any]
    write: Callable[[Any], None]

    # Whether it belongs to a closure.
    is_enclosed: bool = False


def is_own_class(kind: type) -> bool:
    """Whether a class is neither dlrun's nor torch's nor torchvision's."""
    return kind.__module__ != "builtins" and not is_ours(kind.__module__)


def find_variables(objects: Iterable[Any]) -> dict[Key, Variable]:
    """Find the variables that the user's own code behind some objects may change.

    These are plain values, tensors and small objects in globals, class attributes and closures.
    """
    functions: list[types.FunctionType] = []
    # In order, as all that is derived from it.
    kinds: dict[type, None] = {}
    for reachable in iterate_reachable(list(objects)):
        if isinstance(reachable, types.FunctionType):
            functions.append(reachable)
        kinds |= dict.fromkeys(type(reachable).__mro__)

    modules: dict[str, types.ModuleType] = {}
    for owner in (*kinds, *functions):
        module = sys.modules.get(str(owner.__module__))
        if module is not None and _is_own_module(module):
            modules[module.__name__] = module

    variables: list[Variable] = []
    for module in modules.values():
        variables += _list_globals(module)
    for kind in kinds:
        if kind.__module__ in modules:
            variables += _list_class_attributes(kind)

    for function in functions:
        if function.__module__ in modules:
            variables += _list_closure_variables(function)
    return {variable.key: variable for variable in variables}


def _is_own_module(module: types.ModuleType) -> bool:
    return module.__name__ == "__main__" or has_own_file(module)


def _list_globals(module: types.ModuleType) -> Iterator[Variable]:
    """Yield the globals that some function of the module names."""
    space = module.__dict__
    place = Path(str(getattr(module, "__file__", "") or module.__name__)).name
    for name in sorted(_collect_names(module)):
        if name.startswith("__") or not _can_change(space.get(name, MISSING)):
            continue
        yield Variable(
            f"the global {name} of {place}",
            (id(space), name),
            lambda name=name: space.get(name, MISSING),  # type: ignore[misc]
            lambda value, name=name: _write_item(space, name, value),  # type: ignore[misc]
        )


def _write_item(space: dict[str, Any], name: str, value: Any) -> None:
    if value is MISSING:
        space.pop(name, None)
    else:
        space[name] = value


def _collect_names(module: types.ModuleType) -> set[str]:
    """Names that the functions and methods defined in a module read or write."""
    codes: list[types.CodeType] = []
    for value in list(module.__dict__.values()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        members = [value]
        if inspect.isclass(value):
            members += vars(value).values()
        for member in members:
            # A class method, static method or property holds its function.
            holder = getattr(member, "fget", None) or member
            function = inspect.unwrap(getattr(member, "__func__", holder))
            if isinstance(function, types.FunctionType):
                codes.append(function.__code__)

    names: set[str] = set()
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        # Functions inside functions.
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]

    return names


def _list_class_attributes(kind: type) -> Iterator[Variable]:
    for name, value in list(vars(kind).items()):
        if name.startswith("__") or callable(value) or hasattr(value, "__get__") or not _can_change(value):
            continue
        yield Variable(
            f"the attribute {name} of the class {kind.__qualname__}",
            (id(kind), name),
            lambda name=name: vars(kind).get(name, MISSING),  # type: ignore[misc]
            lambda value, name=name: _write_attribute(kind, name, value),  # type: ignore[misc]
        )


def _write_attribute(kind: type, name: str, value: Any) -> None:
    if value is not MISSING:
        setattr(kind, name, value)
    elif name in vars(kind):
        delattr(kind, name)


def _list_closure_variables(function: types.FunctionType) -> Iterator[Variable]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # nothing has been put there yet
            continue

        if name != "__class__" and _can_change(value):
            yield Variable(
                f"the variable {name} of {function.__qualname__}",
                (id(cell), name),
                lambda cell=cell: cell.cell_contents,  # type: ignore[misc]
                lambda value, cell=cell: setattr(cell, "cell_contents", value),  # type: ignore[misc]
                is_enclosed=True,
            )


def _can_change(value: Any) -> bool:
    """Whether a variable may hold state: no module, class or function, no net, and not too large."""
    if isinstance(value, (*PLAIN_TYPES, _Missing)):
        return True
    if isinstance(value, types.ModuleType | type | nn.Module) or inspect.isroutine(value):
        return False
    return count_bytes(value) <= _MOST_BYTES


class Surroundings:
    """The values of some variables, at one moment."""

    def __init__(self, variables: dict[Key, Variable]) -> None:
        """Copy all values; a variable whose value cannot be copied is left out."""
        self.variables: dict[Key, Variable] = {}
        self.values: dict[Key, Any] = {}
        for key, variable in variables.items():
            try:
                self.values[key] = duplicate(variable.read())
            except Exception:  # an open file, a thread
                continue
            self.variables[key] = variable

    @contextlib.contextmanager
    def put_in_place(self) -> Iterator[None]:
        """Give the variables copies of these values inside the block; on exit they hold their own objects again."""
        before = {key: variable.read() for key, variable in self.variables.items()}
        copies = {key: duplicate(value) for key, value in self.values.items()}
        try:
            for key, variable in self.variables.items():
                variable.write(copies[key])
            yield
        finally:
            for key, variable in self.variables.items():
                variable.write(before[key])

    def mix(self, other: "Surroundings", keys: set[Key]) -> "Surroundings":
        """Return these values, with those of `keys` taken from another moment."""
        mixed = Surroundings({})
        mixed.variables = self.variables | other.variables
        mixed.values = {key: self.values.get(key, MISSING) for key in mixed.variables}
        mixed.values |= {key: other.values.get(key, MISSING) for key in keys}
        return mixed
