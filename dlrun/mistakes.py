"""Hydra's and OmegaConf's complaints as sentences: what, where, and what to type instead."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from dlrun import request
from dlrun.config import CONFIG_DIR


def sentence(error: Exception, words: list[str]) -> str:
    """What to tell the user of an exception that composing `words` raised."""
    if isinstance(error, request.UnknownKey):
        return unknown_key(error.key, error.known)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return _unparsable(error)
    for cause in _chain(error):
        if isinstance(cause, ConfigKeyError) or re.match(r"Key '.*' (is )?not in ", str(cause)):
            return unknown_key(_key_of(error, cause), _known(words))
    for cause in _chain(error):
        if isinstance(cause, OmegaConfBaseException):
            key = cause.full_key or cause.key
            text = str(cause.msg or cause).splitlines()[0]
            return f"{key}: {text}" if key and str(key) not in text else text
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _key_of(error: Exception, cause: BaseException) -> str:
    """The whole dotted key, which only Hydra's outer message has."""
    quoted = re.search(r"Could not (?:override|append) '([^']+)'", str(error))
    override = re.search(r"Error merging override \+*([^=\s]+)", str(error))
    found = quoted or override
    return found.group(1) if found else str(getattr(cause, "full_key", None) or getattr(cause, "key", ""))


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    options = list(error.options or [])
    if not options:
        close = difflib.get_close_matches(group, request.GROUPS, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"there is no group {group}; {hint}the groups are {', '.join(request.GROUPS)}"
    hint = _did_you_mean(option, options, group + "=")
    return f"{group}={option} is not a choice; {hint}type one of {', '.join(options)}"


def _did_you_mean(wrong: str, known: list[str], before: str = "") -> str:
    close = difflib.get_close_matches(wrong, known, 3, 0.5)
    return f"did you mean {' or '.join(before + c for c in close)}? " if close else ""


def _unparsable(error: OverrideParseException) -> str:
    words = str(error.override)
    if re.fullmatch(r"[\w-]+", words):
        verbs = difflib.get_close_matches(words, ("resume", "eval", "ls"), 1)
        hint = f"did you mean dlrun {verbs[0]}? " if verbs else ""
        return f"{words!r} is neither a command nor key=value; {hint}dlrun --help shows both"
    if re.search(r"[\[{(]", words):
        example = "'model.hidden_sizes=[64,32]'"
        return f"{words!r} cannot be read as key=value; quote brackets for the shell, for example {example}"
    return f"{words!r} cannot be read as key=value"


def unknown_key(key: str, known: DictConfig) -> str:
    """A key that does not exist, and the keys that were perhaps meant."""
    key = key.lstrip("+~")
    keys = list(dotted(known))
    groups = [group for group in request.GROUPS if group not in keys]
    group, _, rest = key.partition(".")
    if owners := [path.stem for path in sorted((CONFIG_DIR / group).glob("*.yaml")) if rest in _plain(path)]:
        return f"there is no key {key} with this {group}; {' and '.join(owners[:4])} {_have(owners)} it"
    last = key.rpartition(".")[2]
    same_end = [k for k in keys if k.rpartition(".")[2] == last]
    close = difflib.get_close_matches(key, keys + groups, 3, 0.75)
    ends = {k.rpartition(".")[2]: k for k in keys}
    similar = [ends[e] for e in difflib.get_close_matches(last, ends, 3, 0.75)]
    found = list(dict.fromkeys([*same_end, *close, *similar]))[:3]
    if found:
        return f"there is no key {key}; did you mean {' or '.join(found)}?"
    parent = key.rpartition(".")[0]
    inside = [k for k in keys if parent and k.startswith(parent + ".")]
    listed = f"{parent} has {', '.join(inside)}" if inside else "dlrun --cfg job shows all keys"
    return f"there is no key {key}; {listed}"


def _plain(path: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(path))


def _have(owners: list[str]) -> str:
    return "has" if len(owners) == 1 else "have"


def _known(words: list[str]) -> DictConfig:
    """The config for the groups that were chosen rightly: what the keys could have been."""
    right = []
    for word in words:
        group, _, option = word.partition("=")
        if group in request.GROUPS and (CONFIG_DIR / group / f"{option}.yaml").is_file():
            right.append(word)
    try:
        return request.compose(right)
    except Exception:  # the suggestion is a courtesy; without it the sentence still stands
        return OmegaConf.create({})


def dotted(node: DictConfig) -> Iterator[str]:
    yield from _dotted_plain(OmegaConf.to_container(node, resolve=False), "")


def _dotted_plain(values: Any, prefix: str) -> Iterator[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted_plain(value, f"{prefix}{key}.")
