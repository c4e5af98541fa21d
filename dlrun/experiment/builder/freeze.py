"""`model.freeze`: parts of a model that keep their weights and statistics while the rest is trained."""

import functools
import weakref
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from dlrun.core.errors import RequestError, join_names
from dlrun.core.suggest import did_you_mean

# Pattern for all but the new last layer of a net (model=torchvision, model=timm).
BACKBONE = "backbone"


class EvaluationMode:
    """Stands for the method `train` of a frozen module, which it leaves in evaluation mode."""

    def __init__(self, module: nn.Module) -> None:
        # A strong reference would be a cycle, which keeps the net in memory until the garbage collector runs.
        self._module = weakref.ref(module)

    def __call__(self, mode: bool = True) -> nn.Module:
        """Set the mode of the modules below; those that are frozen too do not take it."""
        module = self._get_module()
        module.training = False
        for child in module.children():
            child.train(mode)
        return module

    def __deepcopy__(self, memo: dict[int, Any]) -> "EvaluationMode":
        # The copy of the module is in `memo` before its attributes are copied.
        module = self._get_module()
        return EvaluationMode(memo.get(id(module), module))

    def __reduce__(self) -> Any:
        # A pickled model opens without dlrun, and is trained like any other.
        module = self._get_module()
        return functools.partial, (type(module).train, module)

    def _get_module(self) -> nn.Module:
        module = self._module()
        assert module is not None
        return module


def freeze(model: nn.Module, patterns: Any) -> None:
    """Freeze the parameters that patterns match: no gradients, and no place in the optimizer.

    patterns: shell patterns on the full names of parameters, or of modules, which freeze all below them; one of them
    or a list. A module whose parameters are all frozen, or that is matched itself, stays in evaluation mode with all
    that it holds. RequestError for a pattern that matches nothing, and where nothing is left to train.
    """
    pattern_list = _check_patterns(patterns)
    modules = dict(model.named_modules())
    last_layers = _get_last_layers(model)
    if patterns == BACKBONE and last_layers and BACKBONE not in modules:
        frozen_modules = [name for name in modules if name and not _is_inside_any(name, last_layers)]
        names = [name for name, _ in model.named_parameters() if not _is_inside_any(name, last_layers)]
    else:
        frozen_modules = _match_modules(modules, pattern_list)
        names = _match_parameters(model, pattern_list, frozen_modules)

    # A parameter with two names is frozen under both.
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in names:
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise RequestError(
            f"model.freeze={_format(patterns)} freezes all {len(parameters)} parameters, so that nothing is left to "
            f"train; type patterns that do not match {join_names(list(parameters)[-2:])}"
        )

    frozen_ids = {id(parameters[name]) for name in names}
    fully_frozen = [name for name, module in modules.items() if name and _is_fully_frozen(module, frozen_ids)]
    for name, module in modules.items():
        if name in frozen_modules or _is_inside_any(name, fully_frozen):
            _hold_in_evaluation_mode(module)


def _get_last_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of the new last layers of a net that has others from elsewhere; empty for any other net."""
    names: Any = getattr(model, "last_layers", None)
    is_listed = isinstance(names, tuple) and all(isinstance(name, str) for name in names)
    return names if is_listed else ()


def _check_patterns(patterns: Any) -> list[str]:
    listed = [patterns] if isinstance(patterns, str) else patterns
    is_list = isinstance(listed, list) and bool(listed)
    if not is_list or not all(isinstance(pattern, str) and pattern for pattern in listed):
        raise RequestError(
            f"model.freeze={_format(patterns)} must be a pattern on names of parameters or modules, or a list of them; "
            "type model.freeze='[features.*]'"
        )
    return list(listed)


def _match_modules(modules: dict[str, nn.Module], patterns: Sequence[str]) -> list[str]:
    """Names of the modules that a pattern matches, and of those below them; never the model itself."""
    matched = [name for name in modules if name and any(fnmatchcase(name, pattern) for pattern in patterns)]
    return [name for name in modules if _is_inside_any(name, matched)]


def _match_parameters(model: nn.Module, patterns: Sequence[str], frozen_modules: Sequence[str]) -> list[str]:
    """Names of the parameters that a pattern matches, or that are inside a frozen module."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    modules = [name for name, _ in model.named_modules() if name]
    stateful = [name for name, module in model.named_modules() if name and module.state_dict()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in (*names, *modules)):
            words = [BACKBONE] if _get_last_layers(model) else []
            hint = did_you_mean(pattern, [*words, *modules, *(f"{name}.*" for name in modules), *names])
            raise RequestError(
                f"model.freeze: nothing in the model matches {pattern!r}; {hint}its parameters are {join_names(names)}"
            )
        if not any(fnmatchcase(name, pattern) for name in (*names, *stateful)):
            raise RequestError(
                f"model.freeze: what {pattern!r} matches has no weights and no statistics; the parameters are "
                f"{join_names(names)}"
            )

    frozen = []
    for name in names:
        is_matched = any(fnmatchcase(name, pattern) for pattern in patterns)
        if is_matched or _is_inside_any(name, frozen_modules):
            frozen.append(name)
    return frozen


def _is_inside(name: str, module: str) -> bool:
    """Whether a dotted name is that of a module, or of something below it."""
    return name == module or name.startswith(f"{module}.")


def _is_inside_any(name: str, modules: Sequence[str]) -> bool:
    return any(_is_inside(name, module) for module in modules)


def _is_fully_frozen(module: nn.Module, frozen_ids: set[int]) -> bool:
    """Whether a module has parameters, all of them frozen; frozen_ids: ids of those that model.freeze has frozen."""
    parameters = list(module.parameters())
    if any(parameter.requires_grad for parameter in parameters):
        return False
    return any(id(parameter) in frozen_ids for parameter in parameters)


def _hold_in_evaluation_mode(module: nn.Module) -> None:
    """Keep a module in evaluation mode, whatever `train` is called on; modules inside it have modes of their own."""
    # cuDNN computes no gradients through recurrent layers in evaluation mode. They have no statistics.
    if not isinstance(module, nn.RNNBase):
        module.training = False
        module.__dict__["train"] = EvaluationMode(module)


def _format(patterns: Any) -> str:
    if isinstance(patterns, list):
        return f"[{','.join(map(str, patterns))}]"
    return str(patterns)
