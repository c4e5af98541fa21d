"""What a `_target_` may name, and whether its arguments fit: checked before anything is built."""

import importlib.util
import inspect
import logging
import math
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import hydra.utils
from omegaconf import OmegaConf
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dlrun.config.schema import CONFIG_DIR
from dlrun.config.settings import Component
from dlrun.config.validation import describe_type, format_word
from dlrun.core.errors import RequestError, join_names
from dlrun.core.own_code import OURS
from dlrun.core.search_path import find_shadowing_file
from dlrun.core.shell import suggest_trust
from dlrun.core.suggest import did_you_mean
from dlrun.core.user_code import add_user_line
from dlrun.data.spec import Splits
from dlrun.runs.loggers.base import Logger

# Classes of these packages that a saved run may name without being trusted.
_PACKAGES = ("dlrun", "torch.nn", "torch.optim", "torchvision")
_CLASSES = (nn.Module, Optimizer, LRScheduler, Logger)

# Targets are public: saved runs and config_hash hold them. Prefixes that have moved since keep their old name there.
_MOVED = {"dlrun.optim.": "dlrun.engine.optim."}

_DEFINED_IN_SCRIPT = (
    "{name} is defined in a script or a notebook; load the run there, with dlrun.load(..., "
    "trusted_modules='__main__'), or move {name} into a module, as in mynet.{name}, and train again"
)


def resolve(target: str, where: str, trusted_modules: Sequence[str] | None) -> Callable[..., Any]:
    """Import the class or function that `target` names.

    where: the key that names it, for messages
    trusted_modules: None for a target of the user's own command line or config folder. A list for one of a saved
        run, which is imported only if the object itself is dlrun's, torch's or of a module in the list. The list may
        also hold whole targets, which this command line names: these alone are trusted then, not their modules.

    RequestError where it cannot be imported or is not trusted.
    """
    if trusted_modules is not None and target in trusted_modules:
        trusted_modules = None
    if trusted_modules is not None:
        may_import = _is_inside(target, (*_PACKAGES, *trusted_modules))
        if not may_import or "__" in target.removeprefix("__main__."):
            _refuse(target, where, trusted_modules)

    # Hydra would print to stderr what it raises.
    hydra_log = logging.getLogger("hydra.utils")
    was_disabled = hydra_log.disabled
    hydra_log.disabled = True
    try:
        resolved = hydra.utils.get_object(_replace_moved(target))
    except Exception as error:
        # Importing a user's module runs it, so anything can come.
        raise RequestError(f"{where}={target} cannot be imported: {_explain_import_error(target, error)}") from error
    finally:
        hydra_log.disabled = was_disabled

    if not callable(resolved):
        raise RequestError(f"{where}={target} is of type {type(resolved).__name__}, not a class or a function")
    if trusted_modules is not None and not _is_trustworthy(resolved, trusted_modules):
        _refuse(target, where, trusted_modules)
    return resolved  # type: ignore[no-any-return]


def _replace_moved(target: str) -> str:
    """The path from which a target is imported today."""
    for old, new in _MOVED.items():
        if target.startswith(old):
            return new + target.removeprefix(old)
    return target


def _explain_import_error(target: str, error: Exception) -> str:
    """One sentence in the place of Hydra's message, which holds a traceback."""
    top = target.split(".")[0]
    if top == "__main__":
        return _DEFINED_IN_SCRIPT.format(name=target.partition(".")[2])
    if importlib.util.find_spec(top) is None:
        place = "in the working directory or among the installed ones"
        return f"there is no module {top} {place}; type module.Class, as in mynet.Net for class Net in mynet.py"

    module, _, name = target.rpartition(".")
    if module in sys.modules:
        hidden = find_shadowing_file(top)
        if hidden is not None:
            return f"the installed {top} has no {name}, and hides {hidden} of the working directory; rename that file"
        public = [other for other in dir(sys.modules[module]) if other[0] != "_"]
        hint = did_you_mean(name, public, f"{module}.")
        return f"{module} has no {name}; {hint}type the name of a class in it"

    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    last_line = lines[-1] if lines else "no message"
    return add_user_line(f"{type(cause).__name__}: {last_line}", cause)


def _is_inside(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def _is_trustworthy(resolved: Any, trusted_modules: Sequence[str]) -> bool:
    """Whether an object may run for a saved run: its own module decides, not the path that led to it."""
    module = str(getattr(resolved, "__module__", None) or "")
    if _is_inside(module, tuple(trusted_modules)):
        return True
    if inspect.isfunction(resolved):
        # Only those functions of dlrun.data that return data: others fetch and write files.
        if not _is_inside(module, ("dlrun.data",)):
            return False
        return inspect.signature(resolved, eval_str=True).return_annotation is Splits
    return inspect.isclass(resolved) and issubclass(resolved, _CLASSES) and _is_inside(module, _PACKAGES)


def _refuse(target: str, where: str, trusted_modules: Sequence[str]) -> NoReturn:
    """Raise the RequestError for a target that is not trusted."""
    top = target.split(".")[0]
    if top == "__main__" and not hasattr(sys.modules["__main__"], target.split(".")[1]):
        raise RequestError(f"{where}={target}: {_DEFINED_IN_SCRIPT.format(name=target.partition('.')[2])}")

    message = f"{where}={target} comes from a saved run and would run code that is not dlrun's"
    if not top.isidentifier():
        raise RequestError(f"{message}; it names no module")
    # To trust all of torch would be to trust what fetches and opens files there.
    if _is_inside(top, OURS):
        instead = f"if you trust it type {where}={target}" if " " not in where else "a saved run cannot use that"
        raise RequestError(f"{where}={target} comes from a saved run and is no model, data or optimizer; {instead}")
    # Among the names are addresses for loggers, too.
    modules = [name for name in trusted_modules if not set(name) & set("/:")]
    raise RequestError(f"{message}; if you trust it add {suggest_trust((*modules, top))}")


def check_arguments(
    component: Component[Any], target: Callable[..., Any], own_keys: Sequence[str], positional: int
) -> None:
    """Raise RequestError for an argument that the target does not have, that is missing, or of a wrong type.

    own_keys: keys of the component that are dlrun's; positional: number of positional arguments that dlrun passes.
    """
    try:
        signature = _read_signature(target)
    except (ValueError, TypeError):
        # A C function has none.
        return

    parameters = signature.parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    # Parameters that the config may set.
    open_parameters = dict(list(parameters.items())[positional:])

    for key, value in component.arguments.items():
        if key.startswith("_"):
            continue
        if key not in open_parameters:
            if takes_any:
                continue
            raise RequestError(_explain_unknown_key(component, key, [*open_parameters, *own_keys]))
        parameter = open_parameters[key]
        if not is_accepted(parameter.annotation, value):
            kind = describe_type(parameter.annotation)
            advice = suggest_value(component, key, parameter.default)
            raise RequestError(f"{component.group}.{key}={value!r} must be {kind}{advice}")

    for key, parameter in open_parameters.items():
        is_variadic = parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        is_required = parameter.default is inspect.Parameter.empty and not is_variadic
        if is_required and key not in component.arguments:
            # Hydra takes a key that no config has with a + alone.
            raise RequestError(f"{component.group}.{key} has no value yet; type +{component.group}.{key}=...")


def has_argument(target: Callable[..., Any], name: str) -> bool:
    """Whether a target names an argument in its signature."""
    try:
        return name in _read_signature(target).parameters
    except (ValueError, TypeError):
        # A C function has none.
        return False


def suggest_value(component: Component[Any], key: str, default: Any = inspect.Parameter.empty) -> str:
    """Advice what to type for a key: the value in the option's own file, or else the target's default."""
    path = CONFIG_DIR / component.group / f"{component.choice}.yaml"
    option = OmegaConf.to_container(OmegaConf.load(path), resolve=False) if path.is_file() else {}
    value = option.get(key, default) if isinstance(option, dict) else default
    if isinstance(value, tuple):
        value = list(value)
    is_known = isinstance(value, int | float | str | list | None) and value != "???"
    return f"; type {component.group}.{key}={format_word(value)}" if is_known else ""


def _read_signature(target: Callable[..., Any]) -> inspect.Signature:
    """The signature, with annotations as types where possible; ValueError or TypeError where there is none."""
    # torch imports these for type checkers only.
    names = {"Iterable": Iterable, "Sequence": Sequence, "Callable": Callable}
    try:
        return inspect.signature(target, eval_str=True, locals=names)
    except Exception:
        # Annotations of a user's own target are code, and may raise anything.
        return inspect.signature(target)


def _explain_unknown_key(component: Component[Any], key: str, known: Sequence[str]) -> str:
    hint = did_you_mean(key, known, f"{component.group}.")
    public = join_names(sorted(name for name in known if not name.startswith("_"))) or "none"
    return f"{component.group}={component.choice} has no setting {component.group}.{key}; {hint}it has {public}"


def is_accepted(annotation: Any, value: Any) -> bool:
    """Whether a plain value fits an annotation. Only plain types are checked; anything else accepts all values."""
    origin = get_origin(annotation)
    inner = get_args(annotation)
    if origin in (Union, types.UnionType):
        return _is_accepted_by_any(inner, value)
    if origin is Literal:
        return value in inner
    if annotation in (None, type(None)):
        return value is None

    # In Python True is an int, in a config it is not.
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str):
        return isinstance(value, annotation)

    if origin in (list, tuple, Sequence, Iterable) or annotation in (list, tuple):
        return isinstance(value, list) and _are_accepted(origin, inner, value)
    if origin is dict or annotation is dict:
        return isinstance(value, dict)
    # A Tensor is never written in a config.
    return getattr(annotation, "__module__", None) != "torch"


def _are_accepted(origin: Any, inner: tuple[Any, ...], values: list[Any]) -> bool:
    """Whether the items of a list fit the item types of an annotation; a tuple without ... has a fixed length."""
    if origin is tuple and Ellipsis not in inner and len(values) != len(inner):
        return False
    item_types = [item_type for item_type in inner if item_type is not Ellipsis]
    if not item_types:
        return True
    return all(_is_accepted_by_any(item_types, value) for value in values)


def _is_accepted_by_any(annotations: Iterable[Any], value: Any) -> bool:
    return any(is_accepted(annotation, value) for annotation in annotations)
