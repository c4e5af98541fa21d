"""Values against a dataclass: types by OmegaConf, ranges by the fields' metadata."""

import dataclasses
import difflib
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from dlrun.errors import RequestError

T = TypeVar("T")


def typed(schema: type[T], values: dict[str, Any], where: str) -> T:
    """`values` as an instance of the dataclass `schema`; `where` is the key that they stand under."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), values)
    except OmegaConfBaseException:
        _find_wrong_type(schema, values, where)  # only now: a merge for each key takes half a second
        raise
    instance = cast(T, OmegaConf.to_object(merged))
    _check_ranges(instance, where)
    return instance


def _find_wrong_type(schema: Any, values: dict[str, Any], where: str) -> None:
    """RequestError for the first key whose value the schema does not take, the innermost one."""
    inner = {f.name: f.default_factory for f in dataclasses.fields(schema)}
    for name, value in values.items():
        key = ".".join(p for p in (where, name) if p)
        nested: Any = inner.get(name)
        if dataclasses.is_dataclass(nested) and isinstance(value, dict):
            _find_wrong_type(nested, value, key)
        _check_type(schema, name, value, key)


def _check_type(schema: Any, name: str, value: Any, key: str) -> None:
    """RequestError when one field does not take the value, or is not there."""
    try:
        OmegaConf.merge(OmegaConf.structured(schema), {name: value})
    except ConfigKeyError as error:
        close = difflib.get_close_matches(name, _names(schema), 1)
        hint = f"did you mean {close[0]}?" if close else "dlrun --cfg job shows all keys"
        raise RequestError(f"there is no key {key}; {hint}") from error
    except OmegaConfBaseException as error:
        said = str(error.msg or error).splitlines()[0]
        said = f"{value!r} is of the wrong kind" if "Config" in said else said.replace("Value '", "the value '")
        raise RequestError(f"{key}: {said}") from error


def _names(schema: Any) -> list[str]:
    """The names of a dataclass's fields, and of those of the dataclasses among them."""
    inner = (f.default_factory for f in dataclasses.fields(schema) if dataclasses.is_dataclass(f.default_factory))
    return [f.name for f in dataclasses.fields(schema)] + [name for made in inner for name in _names(made)]


def _check_ranges(instance: Any, where: str) -> None:
    for f in dataclasses.fields(instance):
        key, value = ".".join(p for p in (where, f.name) if p), getattr(instance, f.name)
        if dataclasses.is_dataclass(value):
            _check_ranges(value, key)
        if value is not None:
            _check_range(key, value, f.metadata)


def _check_range(key: str, value: Any, rule: Any) -> None:
    """One key's value against its rule; NaN fails every comparison, so it is refused too."""
    if "choices" in rule and value not in rule["choices"]:
        raise RequestError(f"{key}={value} is not a choice; type one of {', '.join(rule['choices'])}")
    if "above" in rule and not value > rule["above"]:
        raise RequestError(f"{key}={value} must be above {rule['above']}")
    if "at_least" in rule and not value >= rule["at_least"]:
        raise RequestError(f"{key}={value} must be at least {rule['at_least']}")
    if "below" in rule and not value < rule["below"]:
        raise RequestError(f"{key}={value} must be below {rule['below']}")
    if "at_most" in rule and not value <= rule["at_most"]:
        raise RequestError(f"{key}={value} must be at most {rule['at_most']}")
