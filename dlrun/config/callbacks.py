"""Section `callbacks` of the config: callbacks of the user's own, and other spellings of keys for dlrun's.

configs/callbacks/default.yaml lists dlrun's own callbacks; each of their keys stands for one of another section, which
is the one that a run records.
"""

from collections.abc import Collection
from typing import Any

from dlrun.config.validation import format_value
from dlrun.core.errors import RequestError, join_names
from dlrun.core.suggest import did_you_mean

SECTION = "callbacks"

# The key that each one stands for, by name of the callback.
ALIASES: dict[str, dict[str, str]] = {
    "early_stopping": {
        "patience": "trainer.early_stopping.patience",
        "min_delta": "trainer.early_stopping.min_delta",
    },
    "ema": {"decay": "trainer.ema_decay"},
    "checkpoint": {
        "monitor": "checkpoint.monitor",
        "mode": "checkpoint.mode",
        "every_epochs": "checkpoint.every_epochs",
        "every_steps": "checkpoint.every_steps",
        "every_seconds": "checkpoint.every_seconds",
        "keep": "checkpoint.keep",
    },
    "progress": {"display": "trainer.progress"},
    "weight_histograms": {"enabled": "tracking.weight_histograms"},
    "evolution": {"every_epochs": "tracking.evolution_every_epochs"},
    "diagnostics": {"enabled": "tracking.diagnose"},
    "profiler": {"enabled": "trainer.profile"},
}

# What `~callbacks.<name>` sets those keys to.
_OFF: dict[str, dict[str, Any]] = {
    "early_stopping": {"patience": None},
    "ema": {"decay": None},
    "progress": {"display": "off"},
    "weight_histograms": {"enabled": False},
    "evolution": {"every_epochs": None},
    "diagnostics": {"enabled": False},
    "profiler": {"enabled": False},
}


def get_canonical_key(key: str) -> str:
    """The key that callbacks.<name>.<key> of one of dlrun's own callbacks stands for; any other key as it is."""
    section, _, rest = key.partition(".")
    name, _, inner = rest.partition(".")
    if section != SECTION or name not in ALIASES:
        return key
    return ALIASES[name].get(inner, key)


def resolve_aliases(config: dict[str, Any], typed: Collection[str]) -> None:
    """Move the settings of dlrun's own callbacks to the keys that they stand for, in place.

    Callbacks of the user's own are left; without any the section goes, so that configs look as they always did.
    typed: keys of the command line. RequestError where it has both spellings of one setting, for keys that do not
    exist, and for an entry without a `_target_`.
    """
    if SECTION not in config:
        return

    entries = config.pop(SECTION) or {}
    for name, keys in ALIASES.items():
        if name not in entries:
            _switch_off(config, name, typed)
            continue

        values = entries.pop(name)
        if not isinstance(values, dict):
            raise RequestError(f"{SECTION}.{name}={format_value(values)} names none of its keys; {_advise_key(name)}")

        for inner, value in values.items():
            if inner not in keys:
                hint = did_you_mean(inner, keys, f"{SECTION}.{name}.")
                raise RequestError(f"there is no key {SECTION}.{name}.{inner}; {hint}{_advise_key(name)}")
            _set_value(config, f"{SECTION}.{name}.{inner}", keys[inner], value, typed)

    for name, values in entries.items():
        if not isinstance(values, dict) or not values.get("_target_"):
            raise RequestError(
                f"{SECTION}.{name} has no class; type +{SECTION}.{name}._target_=module.Class, where dlrun's own are "
                f"{join_names(list(ALIASES))}"
            )

    if entries:
        config[SECTION] = entries


def _set_value(config: dict[str, Any], spelling: str, key: str, value: Any, typed: Collection[str]) -> None:
    """Set the key that an alias stands for; RequestError where both are typed, with different values."""
    *sections, last = key.split(".")
    block = _descend(config, sections)
    if block[last] == value:
        return
    if key in typed and spelling in typed:
        raise RequestError(
            f"{key}={format_value(block[last])} and {spelling}={format_value(value)} are one setting; leave one out"
        )
    block[last] = value


def _switch_off(config: dict[str, Any], name: str, typed: Collection[str]) -> None:
    """Set the keys of a callback that is not among those chosen. Checkpoints are always saved."""
    if name not in _OFF:
        # An option of the user's own need not list it, but nobody is to believe that it is off.
        if f"{SECTION}.{name}" in typed:
            raise RequestError(f"~{SECTION}.{name}: every run has checkpoints; leave it out")
        return

    for inner, value in _OFF[name].items():
        *sections, last = ALIASES[name][inner].split(".")
        _descend(config, sections)[last] = value


def _descend(config: dict[str, Any], sections: list[str]) -> dict[str, Any]:
    block = config
    for section in sections:
        block = block[section]
    return block


def _advise_key(name: str) -> str:
    keys = list(ALIASES[name])
    return f"type {SECTION}.{name}.{keys[0]}=..." if len(keys) == 1 else f"its keys are {join_names(keys)}"
