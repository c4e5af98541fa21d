"""Checks values against a dataclass: types by OmegaConf, ranges by the fields' metadata."""

import copy
import dataclasses
import functools
import json
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from dlrun.core.errors import ErrorList, RequestError, join_names
from dlrun.core.literals import Literals
from dlrun.core.shell import quote
from dlrun.core.suggest import did_you_mean

T = TypeVar("T")

# Instances of values that were right before: the jobs of a sweep differ in little, and each check takes 2 ms.
_MOST_CACHED = 64
_cache: dict[tuple[Any, str], Any] = {}

_TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    Any: "...",
}


def validate(schema: type[T], values: dict[str, Any], where: str, problems: ErrorList | None = None) -> T:
    """Check values and return them as an instance of the dataclass `schema`.

    where: the key that the values stand under. A wrong value is added to `problems`, and the default taken in its
    place; without `problems`, all of them are raised.
    """
    errors = ErrorList() if problems is None else problems
    dataclass_type = cast(Any, schema)
    # As text: dictionaries cannot be keys.
    cache_key = (dataclass_type, json.dumps(values, default=str))
    if cache_key in _cache:
        return cast(T, copy.deepcopy(_cache[cache_key]))

    count_before = len(errors.errors)
    literals = Literals()
    schema_config = _structure(dataclass_type)
    try:
        # The config is resolved already, so that `${` in it is text.
        config = OmegaConf.merge(schema_config, literals.hide(values))
    except OmegaConfBaseException:
        # Only now one by one: a merge for each key takes half a second.
        valid_values = _select_valid(schema, values, where, errors)
        config = OmegaConf.merge(schema_config, literals.hide(valid_values))

    instance = cast(T, _restore(OmegaConf.to_object(config), literals))
    _check_ranges(instance, where, errors)

    if problems is None:
        errors.raise_if_any()
    # An error has to be reported each time, and is not cached.
    if len(errors.errors) == count_before:
        # The oldest go first. A copy is stored and a copy returned, as callers change what they get.
        while len(_cache) >= _MOST_CACHED:
            _cache.pop(next(iter(_cache)))
        _cache[cache_key] = copy.deepcopy(instance)

    return instance


def _restore(instance: Any, literals: Literals) -> Any:
    """Put the own text back in place of all placeholders, in nested dataclasses too."""
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        plain_value = _restore(value, literals) if dataclasses.is_dataclass(value) else literals.restore(value)
        setattr(instance, field.name, plain_value)
    return instance


@functools.cache
def _structure(schema: Any) -> Any:
    """OmegaConf's form of a dataclass; merging copies it."""
    return OmegaConf.structured(schema)


def _select_valid(schema: Any, values: dict[str, Any], where: str, errors: ErrorList) -> dict[str, Any]:
    """The values that the schema takes; the innermost key of each other one is added to the errors."""
    factories = {field.name: field.default_factory for field in dataclasses.fields(schema)}
    valid_values = {}
    for name, value in values.items():
        nested_schema: Any = factories.get(name)
        if dataclasses.is_dataclass(nested_schema) and isinstance(value, dict):
            # Most sections are valid: a merge for each of their keys would take most of the time.
            if _is_valid(nested_schema, value):
                valid_values[name] = value
                continue
            valid_values[name] = _select_valid(nested_schema, value, _join_key(where, name), errors)
        elif errors.collect(_check_type, schema, name, value, where):
            valid_values[name] = value

    return valid_values


def _is_valid(schema: Any, values: dict[str, Any]) -> bool:
    """Whether the schema takes all the values of a section."""
    try:
        OmegaConf.merge(_structure(schema), Literals().hide(values))
    except OmegaConfBaseException:
        return False
    return True


def _check_type(schema: Any, name: str, value: Any, where: str) -> bool:
    """Return True. RequestError if the field does not take the value, or does not exist."""
    key = _join_key(where, name)
    try:
        OmegaConf.merge(_structure(schema), {name: Literals().hide(value)})
    except ConfigKeyError as error:
        keys = [_join_key(where, other) for other in _iter_field_names(schema)]
        # Of the whole section, since a key is mistyped more often than misplaced.
        hint = did_you_mean(key, keys).rstrip() or "dlrun --cfg job shows all keys"
        raise RequestError(f"there is no key {key}; {hint}") from error
    except OmegaConfBaseException as error:
        raise build_wrong_type_error(schema, name, value, where) from error

    return True


def build_wrong_type_error(schema: Any, name: str, value: Any, where: str) -> RequestError:
    """Error for a field that does not take the value: what it takes, and what to type."""
    key = _join_key(where, name)
    text = format_value(value)
    field = schema.__dataclass_fields__[name]
    if dataclasses.is_dataclass(field.default_factory):
        # A section takes no value of its own; one of its keys shows what it does take.
        first = dataclasses.fields(field.default_factory)[0]
        advice = _advise_default(f"{key}.{first.name}", first)
        return RequestError(f"{key}={text} names none of its keys; {advice}")

    kind = describe_type(get_type_hints(schema)[name])
    return RequestError(f"{key}={text} must be {kind}; {_advise_default(key, field)}")


def _advise_default(key: str, field: Any) -> str:
    """Advice to type the default."""
    default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    return f"type {key}={format_word(default)}"


def format_value(value: Any) -> str:
    """Format a value as it is typed on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def format_word(value: Any) -> str:
    """Format a value as one word of a shell: without blanks, and in quotes where the shell would expand it."""
    text = _format_compact(value)
    return quote(text) if set(text) & set("{}$ ()'\"") else text


def _format_compact(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_format_compact, value))}]"
    if isinstance(value, dict):
        items = [f"{key}:{_format_compact(item)}" for key, item in value.items()]
        return "{" + ",".join(items) + "}"
    return format_value(value)


def _join_key(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _iter_field_names(schema: Any) -> Iterator[str]:
    """Yield the dotted names of a dataclass's fields, and of those in nested dataclasses and default dictionaries."""
    for field in dataclasses.fields(schema):
        yield field.name
        factory: Any = field.default_factory
        if dataclasses.is_dataclass(factory):
            for name in _iter_field_names(factory):
                yield f"{field.name}.{name}"
        elif factory is not dataclasses.MISSING:
            default = factory()
            if isinstance(default, dict):
                for name in default:
                    yield f"{field.name}.{name}"


def find_field(schema: Any, key: str) -> tuple[Any, str, str] | None:
    """Find the field of a dotted key: its dataclass, name and section; None if the schema does not type the key."""
    section, _, last = key.rpartition(".")
    for name in section.split(".") if section else ():
        field = getattr(schema, "__dataclass_fields__", {}).get(name)
        if field is None or not dataclasses.is_dataclass(field.default_factory):
            return None
        schema = field.default_factory
    return (schema, last, section) if last in schema.__dataclass_fields__ else None


def describe_type(annotation: Any) -> str:
    """Describe a type annotation in words."""
    origin = get_origin(annotation)
    inner = get_args(annotation)
    if origin in (Union, types.UnionType):
        # Tensors and generators cannot be typed.
        typeable = [item for item in inner if getattr(item, "__module__", "") != "torch"]
        return " or ".join(describe_type(item) for item in typeable)

    if origin is Literal:
        return "one of " + join_names([format_value(item) for item in inner])
    if origin in (list, tuple, Sequence, Iterable):
        items = [describe_type(item).split(" ")[-1] for item in inner if item is not Ellipsis]
        return f"a list like [{', '.join(items)}]"
    if origin is dict:
        return "values by name, {name: value}"
    return _TYPE_NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _check_ranges(instance: Any, where: str, errors: ErrorList) -> None:
    """Add an error for every value that is out of its range, and put the default in its place."""
    for field in dataclasses.fields(instance):
        key = _join_key(where, field.name)
        value = getattr(instance, field.name)
        if dataclasses.is_dataclass(value):
            _check_ranges(value, key, errors)

        problem = None if value is None else _find_range_error(value, field.metadata)
        if problem:
            advice = "" if "choices" in field.metadata else f"; {_advise_default(key, field)}"
            errors.add(RequestError(f"{key}={format_value(value)} {problem}{advice}"))
            # With the default in its place, the rest of the config can be checked as well.
            setattr(instance, field.name, field.default)


def _find_range_error(value: Any, rule: Any) -> str | None:
    """What a value violates of its rule; NaN fails every comparison, so it is refused too."""
    if "choices" in rule and value not in rule["choices"]:
        hint = did_you_mean(str(value), rule["choices"])
        return f"is not a choice; {hint}type one of {', '.join(rule['choices'])}"
    if "mapping" in rule and not isinstance(value, dict):
        return "must be values by name, {name: value}"
    if "number_or" in rule:
        is_positive = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if is_positive or value == rule["number_or"]:
            return None
        return f"must be above 0, null, or {rule['number_or']}"

    if "above" in rule and not value > rule["above"]:
        return f"must be above {rule['above']}"
    if "at_least" in rule and not value >= rule["at_least"]:
        return f"must be at least {rule['at_least']}"
    if "below" in rule and not value < rule["below"]:
        return f"must be below {rule['below']}"
    if "at_most" in rule and not value <= rule["at_most"]:
        return f"must be at most {rule['at_most']}"
    return None
