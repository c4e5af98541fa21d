"""Values against a dataclass: types by OmegaConf, ranges by the fields' metadata."""

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


def validate(schema: type[T], values: dict[str, Any], where: str, problems: ErrorList | None = None) -> T:
    """`values` as an instance of the dataclass `schema`; `where` is the key that they stand under.

    What is wrong is noted in `problems`, and the default taken in its place; raised where that is left out.
    """
    found, known = ErrorList() if problems is None else problems, cast(Any, schema)
    text = json.dumps(values, default=str)
    if (known, text) in _seen:
        return cast(T, copy.deepcopy(_seen[known, text]))
    before = len(found.errors)
    literals = Literals()
    try:
        merged = OmegaConf.merge(_structured(known), literals.hide(values))
    except OmegaConfBaseException:  # only now one by one: a merge for each key takes half a second
        merged = OmegaConf.merge(_structured(known), literals.hide(_accepted(schema, values, where, found)))
    instance = cast(T, _restored(OmegaConf.to_object(merged), literals))
    _check_ranges(instance, where, found)
    if problems is None:
        found.raise_if_any()
    if len(found.errors) == before:
        while len(_seen) >= _MOST_SEEN:
            _seen.pop(next(iter(_seen)))
        _seen[known, text] = copy.deepcopy(instance)
    return instance


def _restored(instance: Any, literals: Literals) -> Any:
    """The dataclass with its own text in place of all stand-ins, in nested ones too."""
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        restored = _restored(value, literals) if dataclasses.is_dataclass(value) else literals.restore(value)
        setattr(instance, field.name, restored)
    return instance


_MOST_SEEN = 64
_seen: dict[tuple[Any, str], Any] = {}  # what was right before: the jobs of a sweep differ in little, at 2 ms each


@functools.cache
def _structured(schema: Any) -> Any:
    """OmegaConf's form of a dataclass; merging copies it."""
    return OmegaConf.structured(schema)


def _accepted(schema: Any, values: dict[str, Any], where: str, problems: ErrorList) -> dict[str, Any]:
    """The values that the schema takes; the others are noted, the innermost key of each."""
    inner = {f.name: f.default_factory for f in dataclasses.fields(schema)}
    kept = {}
    for name, value in values.items():
        nested: Any = inner.get(name)
        if dataclasses.is_dataclass(nested) and isinstance(value, dict):
            kept[name] = _accepted(nested, value, _dotted(where, name), problems)
        elif problems.collect(_check_type, schema, name, value, where):
            kept[name] = value
    return kept


def _check_type(schema: Any, name: str, value: Any, where: str) -> bool:
    """True; RequestError when the field does not take the value, or is not there."""
    try:
        OmegaConf.merge(OmegaConf.structured(schema), {name: Literals().hide(value)})
    except ConfigKeyError as error:
        known = [_dotted(where, key) for key in iter_field_names(schema)]
        hint = did_you_mean(_dotted(where, name), known).rstrip()
        raise RequestError(
            f"there is no key {_dotted(where, name)}; {hint or 'dlrun --cfg job shows all keys'}"
        ) from error
    except OmegaConfBaseException as error:
        raise wrong_type_error(schema, name, value, where) from error
    return True


def wrong_type_error(schema: Any, name: str, value: Any, where: str) -> RequestError:
    """The error for a field that does not take the value."""
    key, field = _dotted(where, name), schema.__dataclass_fields__[name]
    if dataclasses.is_dataclass(field.default_factory):
        first = dataclasses.fields(field.default_factory)[0]
        return RequestError(
            f"{key}={format_value(value)} names none of its keys; {_advice(f'{key}.{first.name}', first)}"
        )
    return RequestError(
        f"{key}={format_value(value)} must be {describe_type(get_type_hints(schema)[name])}; {_advice(key, field)}"
    )


def _advice(key: str, field: Any) -> str:
    """What to type instead: the default."""
    default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    return f"type {key}={format_word(default)}"


def format_value(value: Any) -> str:
    """A value as it is typed on a command line."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def format_word(value: Any) -> str:
    """The same as one word of a shell: without blanks, and in quotes where the shell would look inside."""
    text = _compact(value)
    return quote(text) if set(text) & set("{}$ ()'\"") else text


def _compact(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_compact, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_compact(item)}" for key, item in value.items()) + "}"
    return format_value(value)


def _dotted(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def iter_field_names(schema: Any) -> Iterator[str]:
    """The dotted names of a dataclass's fields, those of the dataclasses and dictionaries among them too."""
    for f in dataclasses.fields(schema):
        yield f.name
        factory: Any = f.default_factory
        if dataclasses.is_dataclass(factory):
            yield from (f"{f.name}.{name}" for name in iter_field_names(factory))
        elif factory is not dataclasses.MISSING and isinstance(made := factory(), dict):
            yield from (f"{f.name}.{name}" for name in made)


def find_field(schema: Any, key: str) -> tuple[Any, str, str] | None:
    """The dataclass, name and section of a dotted key that it types; null where it types none."""
    section, _, last = key.rpartition(".")
    for name in section.split(".") if section else ():
        known = getattr(schema, "__dataclass_fields__", {}).get(name)
        if known is None or not dataclasses.is_dataclass(known.default_factory):
            return None
        schema = known.default_factory
    return (schema, last, section) if last in schema.__dataclass_fields__ else None


def describe_type(annotation: Any) -> str:
    """An annotation for people."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(a) for a in inner if getattr(a, "__module__", "") != "torch")
    if origin is Literal:
        return "one of " + join_names([format_value(a) for a in inner])
    if origin in (list, tuple, Sequence, Iterable):
        return "a list like [" + ", ".join(describe_type(a).split(" ")[-1] for a in inner if a is not Ellipsis) + "]"
    if origin is dict:
        return "values by name, {name: value}"
    plain = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "null",
        Any: "...",
    }
    return plain.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _check_ranges(instance: Any, where: str, problems: ErrorList) -> None:
    """Note every value that is out of its range, and put the default in its place."""
    for f in dataclasses.fields(instance):
        key, value = _dotted(where, f.name), getattr(instance, f.name)
        if dataclasses.is_dataclass(value):
            _check_ranges(value, key, problems)
        wrong = None if value is None else _out_of_range(value, f.metadata)
        if wrong:
            advice = "" if "choices" in f.metadata else f"; {_advice(key, f)}"
            problems.add(RequestError(f"{key}={format_value(value)} {wrong}{advice}"))
            setattr(instance, f.name, f.default)


def _out_of_range(value: Any, rule: Any) -> str | None:
    """What a value breaks of its rule; NaN fails every comparison, so it is refused too."""
    if "choices" in rule and value not in rule["choices"]:
        close = did_you_mean(str(value), rule["choices"])
        return f"is not a choice; {close}type one of {', '.join(rule['choices'])}"
    if "number_or" in rule:
        is_number = isinstance(value, int) and not isinstance(value, bool) and value > 0
        return None if is_number or value == rule["number_or"] else f"must be above 0, null, or {rule['number_or']}"
    if "above" in rule and not value > rule["above"]:
        return f"must be above {rule['above']}"
    if "at_least" in rule and not value >= rule["at_least"]:
        return f"must be at least {rule['at_least']}"
    if "below" in rule and not value < rule["below"]:
        return f"must be below {rule['below']}"
    if "at_most" in rule and not value <= rule["at_most"]:
        return f"must be at most {rule['at_most']}"
    return None
