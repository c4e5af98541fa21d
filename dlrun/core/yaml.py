"""Plain values as YAML that OmegaConf reads back as they were, written by libyaml: ten times as fast as OmegaConf."""

import re
from typing import Any

import yaml  # type: ignore[import-untyped]
from yaml.constructor import BaseConstructor  # type: ignore[import-untyped]

# Levels of lists and mappings.
_DEEPEST = 100

# Characters: a longer text is no number, and some would take minutes to evaluate.
_LONGEST_NUMBER = 64

_BRACKETS = re.compile(r"[\[{]")
_INDENTED = re.compile(r"^[ \-?\t]{40}", re.MULTILINE)

# Words that one version of YAML or another takes for a boolean or null.
_NOT_TEXT = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "~"}


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes text that a reader of YAML 1.2 would take for a number, as 1e3."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal parts out: parsers read an anchor well, people do not."""
        return True


def _represent_text(dumper: Any, value: str) -> Any:
    style = "'" if value.lower() in _NOT_TEXT or _is_number(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent_text)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def dump_yaml(value: Any) -> str:
    """Format dictionaries, lists, text, numbers, booleans and None as block-style YAML; keys keep their order."""
    if not isinstance(value, dict) or not value:
        return _dump(value)
    if len(value) == 1:
        return _dump_only_section(value)
    return "".join(_dump_section(key, item) for key, item in value.items())


def _dump(value: Any) -> str:
    # Wide, so that no text is folded over several lines.
    return str(yaml.dump(value, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=1000))


# Sections by their key and their content: the jobs of a sweep differ in a few, and libyaml takes 3 ms for a config.
_sections: dict[tuple[Any, str], str] = {}
_MOST_SECTIONS = 500


def _dump_section(key: Any, value: Any) -> str:
    """The lines of one key of a dictionary."""
    # repr tells 1 from True, 1.0 and "1".
    content = (key, repr(value))
    text = _sections.get(content)
    if text is None:
        text = _dump({key: value})
        if len(_sections) >= _MOST_SECTIONS:
            _sections.clear()
        _sections[content] = text
    return text


def _dump_only_section(value: dict[Any, Any]) -> str:
    """A dictionary of one key, as hydra.yaml is: its sections are those below."""
    ((key, inner),) = value.items()
    # Text of several lines changes where its lines are moved.
    if not isinstance(inner, dict) or not inner or type(key) is not str or "\\n" in repr(inner):
        return _dump(value)
    lines = "".join(_dump_section(*item) for item in inner.items()).splitlines(keepends=True)
    return _dump({key: None}).replace(" null", "") + "".join(f"  {line}" for line in lines)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries into one with dotted keys."""
    flat: dict[str, Any] = {}

    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value

    return flat


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain values only: a key once, and no number that takes long."""

    # Without the merge keys and the = of YAML 1.1, which take a tenth of the time and are never written.
    construct_scalar = BaseConstructor.construct_scalar

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Refuse a mapping that holds a key twice: no reader knows which value counts."""
        values = BaseConstructor.construct_mapping(self, node, deep=deep)

        if len(values) != len(node.value):
            raise yaml.YAMLError(f"line {node.start_mark.line + 1} begins a mapping that holds a key twice")
        return values

    def construct_number(self, node: Any) -> Any:
        """Construct a number as YAML 1.1 writes it."""
        if len(node.value) > _LONGEST_NUMBER:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1} holds a number of {len(node.value):,} digits")
        if node.tag == "tag:yaml.org,2002:int":
            return self.construct_yaml_int(node)
        return self.construct_yaml_float(node)


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_number)


def read_yaml(text: str) -> Any:
    """Parse what `dump_yaml` wrote into plain values. ValueError for other text, or YAML that it never writes.

    It never writes aliases: a few lines of them stand for gigabytes. Nor deep nesting, at which libyaml ends the
    process.
    """
    try:
        _refuse_aliases_and_depth(text)
        sections = _read_sections(text)
        return yaml.load(text, Loader=_Loader) if sections is None else sections
    except (yaml.YAMLError, RecursionError, OverflowError, TypeError, AttributeError) as error:
        raise ValueError(_describe(error)) from error


# Where a key of the outermost mapping begins, and lines there that are no part of such a mapping.
_SECTION = re.compile(r"^(?=[A-Za-z_])", re.MULTILINE)
_NO_SECTION = re.compile(r"^(?![A-Za-z_ \n]|- |-$)(?!\Z)", re.MULTILINE)
_LONGEST_SECTION = 10_000

# What sections hold, by their text: the runs of a sweep share most of theirs, and a config takes 3 ms.
_values: dict[str, Any] = {}


def _read_sections(text: str) -> dict[Any, Any] | None:
    """A mapping, key by key; None for a text that has to be parsed as a whole, as everything wrong is."""
    first, *parts = _SECTION.split(text)
    if first or _NO_SECTION.search(text):
        return None

    values: dict[Any, Any] = {}
    for part in parts:
        section = _values.get(part)
        if section is None:
            try:
                section = yaml.load(part, Loader=_Loader)
            except yaml.YAMLError:
                # Such as a text in quotes that goes on in the next line.
                return None
            if not isinstance(section, dict) or len(section) != 1:
                return None
            if len(part) <= _LONGEST_SECTION:
                if len(_values) >= _MOST_SECTIONS:
                    _values.clear()
                _values[part] = section

        if values.keys() & section.keys():
            return None
        # A copy, as callers may change what they get.
        values |= copy_plain(section)
    return values or None


def copy_plain(value: Any) -> Any:
    """Copy dictionaries and lists; a tenth of what copy.deepcopy takes."""
    if isinstance(value, dict):
        return {key: copy_plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copy_plain(item) for item in value]
    return value


def _refuse_aliases_and_depth(text: str) -> None:
    """YAMLError for an alias or for deep nesting."""
    # The events of a file are looked at only where its characters leave the question open.
    is_flat = len(_BRACKETS.findall(text)) < _DEEPEST and not _INDENTED.search(text)
    if is_flat and "*" not in text:
        return

    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"line {line} holds an alias, *{event.anchor}")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise yaml.YAMLError(f"line {line} is nested more than {_DEEPEST} levels deep")


def _describe(error: Exception) -> str:
    """The problem and its line, on one line of text."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    if mark is not None and problem:
        return f"line {mark.line + 1}: {problem}"
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
