"""Different optimizer settings for parameters matched by name."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from dlrun.core.errors import RequestError


def make_parameter_groups(model: nn.Module, groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer: one for each entry of `groups`, then one for the rest.

    An entry is {match: <shell pattern on parameter names>, lr: ..., ...}. The first match wins; an entry that
    matches nothing (or nothing that an earlier one has not taken) is a RequestError.
    """
    left = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not left:
        raise RequestError("the model has no parameters to train; choose another with model=...")
    names = list(left)
    made = []
    for i, entry in enumerate(groups):
        if not isinstance(entry, dict) or not isinstance(entry.get("match"), str):
            raise RequestError(
                f"optimizer.groups[{i}] needs a pattern; type optimizer.groups='[{{match: {names[0]}, lr: 0.1}}]'"
            )
        taken = [name for name in left if fnmatchcase(name, entry["match"])]
        if not taken:
            raise RequestError(
                f"optimizer.groups[{i}]: no parameter is left that matches {entry['match']!r}; "
                f"the parameters are {_listed(names)}"
            )
        settings = {k: v for k, v in entry.items() if k != "match"}
        made.append({"params": [left.pop(name) for name in taken], "name": entry["match"], **settings})
    rest = [{"params": list(left.values()), "name": "rest" if groups else "all"}] if left else []
    return made + rest


def _listed(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
