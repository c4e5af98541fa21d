"""Different optimizer settings for parameters matched by name."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from dlrun.core.errors import RequestError

# In front of the names of a loss's parameters, where the model's have none.
LOSS_PREFIX = "task.loss."


def make_parameter_groups(
    model: nn.Module, groups: Sequence[dict[str, Any]], loss: nn.Module | None = None
) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer: one for each entry of `groups`, then one for the rest.

    An entry is {match: <shell pattern on parameter names>, lr: ..., ...}. The first match wins; an entry that
    matches nothing (or nothing that an earlier one has not taken) is a RequestError. The parameters of a loss that is
    a module come last, and are matched as `task.loss.<name>`.
    """
    remaining = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not remaining:
        raise RequestError("the model has no parameters to train; choose another with model=...")

    if loss is not None:
        remaining |= {LOSS_PREFIX + name: p for name, p in loss.named_parameters() if p.requires_grad}

    names = list(remaining)
    parameter_groups: list[dict[str, Any]] = []
    for i, entry in enumerate(groups):
        if not isinstance(entry, dict) or not isinstance(entry.get("match"), str):
            raise RequestError(
                f"optimizer.groups[{i}] needs a pattern; type optimizer.groups='[{{match: {names[0]}, lr: 0.1}}]'"
            )
        pattern = entry["match"]
        matched = [name for name in remaining if fnmatchcase(name, pattern)]
        if not matched:
            frozen = [
                name for name, p in model.named_parameters() if not p.requires_grad and fnmatchcase(name, pattern)
            ]
            reason = f", as {_join_names(frozen)} is frozen" if frozen else ""
            raise RequestError(
                f"optimizer.groups[{i}]: no parameter is left that matches {pattern!r}{reason}; "
                f"the parameters are {_join_names(names)}"
            )
        settings = {key: value for key, value in entry.items() if key != "match"}
        parameters = [remaining.pop(name) for name in matched]
        parameter_groups.append({"params": parameters, "name": pattern, **settings})

    # The names show up in logs: lr/rest.
    if remaining:
        parameter_groups.append({"params": list(remaining.values()), "name": "rest" if groups else "all"})
    return parameter_groups


def _join_names(names: list[str], max_names: int = 12) -> str:
    more = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return ", ".join(names[:max_names]) + more
