"""Plain values as YAML that OmegaConf reads back as they were, written by libyaml: ten times as fast as OmegaConf."""

from typing import Any

import yaml  # type: ignore[import-untyped]

_NOT_TEXT = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "~"}  # in one YAML or another


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes text that a reader of YAML 1.2 would take for a number, as 1e3."""

    def ignore_aliases(self, data: Any) -> bool:
        """Equal parts are written out: an anchor would be read well, but not by people."""
        return True


def _text(dumper: Any, value: str) -> Any:
    quoted = "'" if value.lower() in _NOT_TEXT or _is_number(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=quoted)


_Dumper.add_representer(str, _text)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def as_yaml(value: Any) -> str:
    """Dictionaries, lists, text, numbers, booleans and null as block-style YAML; keys keep their order."""
    return str(yaml.dump(value, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=1000))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def read_yaml(text: str) -> Any:
    """What `as_yaml` wrote, as plain values. ValueError when it is no YAML."""
    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
