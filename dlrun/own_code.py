"""Which modules of the user's own a config names: what loads it must be allowed to use them."""

from collections.abc import Iterator
from typing import Any

OURS = ("dlrun", "torch", "torchvision")


def target_names(block: Any) -> Iterator[str]:
    """Every `_target_` in a block, nested ones too."""
    if isinstance(block, dict):
        if "_target_" in block:
            yield str(block["_target_"])
        for value in block.values():
            yield from target_names(value)
    elif isinstance(block, list | tuple):
        for value in block:
            yield from target_names(value)


def own_modules(plain: dict[str, Any]) -> list[str]:
    """The modules of the user's own that a config names, by their first name; none where it could not be read."""
    named = set(target_names(plain))
    loss = (plain.get("task") or {}).get("loss")
    if isinstance(loss, str) and "." in loss:
        named.add(loss)
    return sorted({name.split(".")[0] for name in named} - {*OURS, "None"})
