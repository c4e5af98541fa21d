"""What a `_target_` may name, and whether its arguments fit: checked before anything is built."""

import importlib.util
import inspect
import logging
import math
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Union, get_args, get_origin

import hydra.utils
from omegaconf import OmegaConf
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dlrun.config.schema import CONFIG_DIR, Block
from dlrun.config.validation import as_word, in_words
from dlrun.core.errors import RequestError, did_you_mean, listed
from dlrun.core.own_code import OURS
from dlrun.core.search_path import hidden_file
from dlrun.core.shell import trust_advice
from dlrun.core.user_code import with_place
from dlrun.data.spec import Splits

_PACKAGES = ("dlrun", "torch.nn", "torch.optim", "torchvision")
_CLASSES = (nn.Module, Optimizer, LRScheduler)

# Targets are public: saved runs and config_hash hold them. What has moved since keeps its name there.
_MOVED = {"dlrun.optim.": "dlrun.engine.optim."}


_OF_A_SCRIPT = (
    "{name} is defined in a script or a notebook; load the run there, with dlrun.load(..., "
    "trusted_modules='__main__'), or move {name} into a module, as in mynet.{name}, and train again"
)


def resolve(target: str, where: str, trusted_modules: Sequence[str] | None) -> Callable[..., Any]:
    """The object that `target` names.

    trusted_modules: None when the user's own command line or config folder names the target; a list when it
    comes from a loaded run, whose targets run only when the object itself is ours, torch's or trusted. The list may
    also hold whole targets, which this command line names: these alone are trusted then, not their modules.
    """
    if trusted_modules is not None and target in trusted_modules:
        trusted_modules = None
    if trusted_modules is not None:
        known = _inside(target, (*_PACKAGES, *trusted_modules)) and "__" not in target.removeprefix("__main__.")
        _refuse(target, where, trusted_modules, known)
    log = logging.getLogger("hydra.utils")
    before, log.disabled = log.disabled, True  # it says on stderr what it raises
    try:
        found = hydra.utils.get_object(_place_of(target))
    except Exception as error:  # importing a user's module runs it, so anything can come
        raise RequestError(f"{where}={target} cannot be imported: {_why(target, error)}") from error
    finally:
        log.disabled = before
    if not callable(found):
        raise RequestError(f"{where}={target} is of type {type(found).__name__}, not a class or a function")
    if trusted_modules is not None:
        _refuse(target, where, trusted_modules, _trustworthy(found, trusted_modules))
    return found  # type: ignore[no-any-return]


def _place_of(target: str) -> str:
    """The path at which a target is imported today."""
    for old, new in _MOVED.items():
        if target.startswith(old):
            return new + target.removeprefix(old)
    return target


def _why(target: str, error: Exception) -> str:
    """Hydra's message holds a traceback; a missing top-level module has a plain reason."""
    top = target.split(".")[0]
    if top == "__main__":
        return _OF_A_SCRIPT.format(name=target.partition(".")[2])
    if importlib.util.find_spec(top) is None:
        where = "in the working directory or among the installed ones"
        return f"there is no module {top} {where}; type module.Class, as in mynet.Net for class Net in mynet.py"
    module, _, name = target.rpartition(".")
    if module in sys.modules:
        if (hidden := hidden_file(top)) is not None:
            return f"the installed {top} has no {name}, and hides {hidden} of the working directory; rename that file"
        hint = did_you_mean(name, [other for other in dir(sys.modules[module]) if other[0] != "_"], f"{module}.")
        return f"{module} has no {name}; {hint}type the name of a class in it"
    cause = error.__cause__ or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return with_place(f"{type(cause).__name__}: {lines[-1].strip() if lines else 'no message'}", cause)


def _inside(name: str, packages: Sequence[str]) -> bool:
    return any(name == p or name.startswith(p + ".") for p in packages)


def _trustworthy(found: Any, trusted_modules: Sequence[str]) -> bool:
    """The object itself decides, not the path that led to it: its own module, and what it is or returns."""
    module = str(getattr(found, "__module__", None) or "")
    if _inside(module, tuple(trusted_modules)):
        return True
    if inspect.isfunction(found):  # the other functions of dlrun.data fetch files and write them
        return _inside(module, ("dlrun.data",)) and inspect.signature(found, eval_str=True).return_annotation is Splits
    return inspect.isclass(found) and issubclass(found, _CLASSES) and _inside(module, _PACKAGES)


def _refuse(target: str, where: str, trusted_modules: Sequence[str], allowed: bool) -> None:
    if allowed:
        return
    top = target.split(".")[0]
    said = f"{where}={target} comes from a saved run and would run code that is not dlrun's"
    if top == "__main__" and not hasattr(sys.modules["__main__"], target.split(".")[1]):
        raise RequestError(f"{where}={target}: {_OF_A_SCRIPT.format(name=target.partition('.')[2])}")
    if not top.isidentifier():
        raise RequestError(f"{said}; it names no module")
    if _inside(top, OURS):  # to trust all of torch would be to trust what fetches and opens files there
        instead = f"if you trust it type {where}={target}" if " " not in where else "a saved run cannot use that"
        raise RequestError(f"{where}={target} comes from a saved run and is no model, data or optimizer; {instead}")
    raise RequestError(f"{said}; if you trust it add {trust_advice((*trusted_modules, top))}")


def check_arguments(block: Block, target: Callable[..., Any], ours: Sequence[str], given: int) -> None:
    """RequestError for an argument that the target does not have, that is missing, or of a wrong type.

    ours: keys of the block that are dlrun's; given: how many positional arguments dlrun itself passes.
    """
    try:
        parameters = _signature(target).parameters
    except (ValueError, TypeError):  # a C function
        return
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    own = dict(list(parameters.items())[given:])
    for key, value in block.arguments.items():
        if key.startswith("_"):
            continue
        if key not in own and not open_ended:
            raise RequestError(_unknown(block, key, [*own, *ours]))
        if key in own and not is_accepted(own[key].annotation, value):
            kind, instead = in_words(own[key].annotation), suggest_value(block, key, own[key].default)
            raise RequestError(f"{block.group}.{key}={value!r} must be {kind}{instead}")
    for key, parameter in own.items():
        required = parameter.default is inspect.Parameter.empty and parameter.kind not in (
            inspect.Parameter.VAR_KEYWORD,
            inspect.Parameter.VAR_POSITIONAL,
        )
        if required and key not in block.arguments:
            # Hydra takes a key that no config has with a + alone.
            raise RequestError(f"{block.group}.{key} has no value yet; type +{block.group}.{key}=...")


def suggest_value(block: Block, key: str, default: Any = inspect.Parameter.empty) -> str:
    """What to type for a key instead: what the option's own file says, or else the target's default."""
    path = CONFIG_DIR / block.group / f"{block.choice}.yaml"
    option = OmegaConf.to_container(OmegaConf.load(path), resolve=False) if path.is_file() else {}
    value = option.get(key, default) if isinstance(option, dict) else default
    value = list(value) if isinstance(value, tuple) else value
    known = isinstance(value, int | float | str | list | None) and value != "???"
    return f"; type {block.group}.{key}={as_word(value)}" if known else ""


def _signature(target: Callable[..., Any]) -> inspect.Signature:
    """With annotations that are types, where they can be: torch imports some names for type checkers only."""
    hidden = {"Iterable": Iterable, "Sequence": Sequence, "Callable": Callable}
    try:
        return inspect.signature(target, eval_str=True, locals=hidden)
    except Exception:  # annotations are code of whoever wrote the target
        return inspect.signature(target)


def _unknown(block: Block, key: str, known: Sequence[str]) -> str:
    hint = did_you_mean(key, known, f"{block.group}.")
    there = listed(sorted(k for k in known if not k.startswith("_")))
    return f"{block.group}={block.choice} has no setting {block.group}.{key}; {hint}it has {there}"


def is_accepted(annotation: Any, value: Any) -> bool:
    """Whether a plain value fits an annotation; what the annotation says beyond plain types is not looked at."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(is_accepted(a, value) for a in inner)
    if origin is Literal:
        return value in inner
    if annotation in (None, type(None)):
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str):
        return isinstance(value, annotation)
    if origin in (list, tuple, Sequence, Iterable) or annotation in (list, tuple):
        items = [a for a in inner if a is not Ellipsis]
        if origin is tuple and Ellipsis not in inner and isinstance(value, list) and len(value) != len(inner):
            return False
        return isinstance(value, list) and all(any(is_accepted(a, v) for a in items) for v in value if items)
    if origin is dict or annotation is dict:
        return isinstance(value, dict)
    return getattr(annotation, "__module__", None) != "torch"  # a Tensor is never written in a config
