"""Hydra's and OmegaConf's complaints as sentences: what, where, and what to type instead."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from dlrun.config import compose, request, schema
from dlrun.config.schema import CONFIG_DIR
from dlrun.config.validation import find_field, wrong_type_error
from dlrun.core.errors import ErrorList, RequestError, iter_causes, join_names
from dlrun.core.suggest import did_you_mean, edit_distance, find_nearest

# What Hydra and OmegaConf raise where a command line or a saved config does not fit.
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, request.UnknownKey)

VERBS = ("resume", "eval", "compare", "export", "predict", "clean", "completion", "diff", "ls", "check", "help")

# What Hydra says, and what a user can do about it.
_SAID = (
    (r"Ambiguous value for argument '([^=]+)=(.*)'", "{0}={1} names several values; for a run of each type "
     "dlrun -m {0}={1}"),
    (r"Multiple values for (\S+)\. To override", "{0} is chosen already; leave out the + and type {0}=..."),
    (r"force-add of config groups is not supported: '\+*([^']+)'", "leave out the ++ and type {0}"),
    (r"Could not append to config\. An item is already at '([^']+)'", "{0} is there already; leave out the + and "
     "type {0}=..."),
    (r"Could not delete '([^']+)'\. No match in the defaults list", "~{0} is not chosen, so it cannot be taken "
     "away; leave it out"),
    (r"Could not override '([^']+)'\. No match in the defaults list", "{0} is no group; its defaults list may "
     "override those of `dlrun ls`"),
    (r"Cannot merge DictConfig with ListConfig", "the file is a list; type key: value into it"),
    (r"Could not delete from config\. The value of '([^']+)' is (.+) and not", "{0} is {1}; leave out ~{0}"),
    (r"Additional config directory '([^']+)' not found", "--config-dir: there is no folder {0}; type --config-dir "
     "<an existing one>"),
)  # fmt: skip


def explain_all_errors(error: Exception, words: list[str]) -> RequestError:
    """What to tell the user of an exception that composing `words` raised: every mistake in them, not the first only.

    Each word is tried on its own after those that were right, choices before values, and what is left is typed.
    """
    found = ErrorList()
    flags = compose.parse_flags(words)
    if len(flags.overrides) > 1 and not flags.multirun and not flags.config_dir:
        kept: list[str] = []
        for word in sorted(flags.overrides, key=lambda word: word.partition("=")[0] not in compose.GROUPS):
            try:
                compose.compose_config([*kept, word])
                kept.append(word)
            except Exception as one:  # whatever composing raises
                found.add(RequestError(explain_error(one, [word, *kept])))
        if found.errors:
            schema.read_settings(compose.resolve(compose.compose_config(kept)), {}, found)
    if not found.errors:
        return RequestError(explain_error(error, words))
    try:
        found.raise_if_any()
    except RequestError as all_of_them:
        return all_of_them
    raise AssertionError


def explain_error(error: Exception, words: list[str]) -> str:
    """What to tell the user of an exception that composing `words` raised."""
    said = _sentence(error, words)
    place = re.match(r"In '([^']+)'", str(error))
    if place and place.group(1) not in ("config", "config.yaml") and place.group(1) not in said:
        said = f"{place.group(1)}.yaml: {said}"
    return f"sweep.points: {said}" if request.IN_POINTS in getattr(error, "__notes__", ()) else said


def _sentence(error: Exception, words: list[str]) -> str:
    if isinstance(error, request.UnknownKey):
        return explain_unknown_key(error.key, error.known)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return _unparsable(error)
    for pattern, advice in _SAID:
        if match := re.search(pattern, str(error)):
            sentence = advice.format(*match.groups())
            if "names several values" in sentence:
                sentence += _as_list(match[1], match[2], words)
            return sentence
    for word in words:
        if placed := re.match(r"[+~]*([\w/]+)@", word):
            return f"{placed[1]} stands in one place only; leave out the @ and what follows: type {placed[1]}=..."
        if word.startswith("="):
            return f"{word} names no key; type key=value"
    for cause in iter_causes(error):
        mark: Any = getattr(cause, "problem_mark", None)  # of a YAML file that cannot be read
        if mark is not None:
            return f"{mark.name}, line {mark.line + 1}: {getattr(cause, 'problem', cause)}; correct the line"
    deleted = re.search(r"Could not delete from config\. '([^']+)' does not exist", str(error))
    for cause in iter_causes(error):
        if deleted or isinstance(cause, ConfigKeyError) or re.match(r"Key '.*' (is )?not in ", str(cause)):
            return explain_unknown_key(deleted.group(1) if deleted else _key_of(error, cause), _known(words))
    for cause in iter_causes(error):
        if isinstance(cause, OmegaConfBaseException):
            return _mistyped(cause, words)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[:2]) or type(error).__name__
    named = [word for word in words if word.partition("=")[0].lstrip("+~") in said]
    return said if named or not words else f"{said}; look at {' '.join(words)}"


def _key_of(error: Exception, cause: BaseException) -> str:
    """The whole dotted key, which is in Hydra's outer message or in OmegaConf's inner one."""
    found = re.search(r"(?:Could not (?:override|append)|Error merging override) '?\+*([^'=\s]+)", str(error))
    inner = str(getattr(cause, "full_key", None) or getattr(cause, "key", ""))
    outer = found.group(1) if found else ""
    return inner if len(inner) > len(outer) else outer


def _mistyped(cause: OmegaConfBaseException, words: list[str]) -> str:
    """A value that its key does not take."""
    key, text = str(cause.full_key or cause.key or ""), str(cause.msg or cause).splitlines()[0]
    asked = next(
        (word for word in words if key and re.match(rf"[+~]*{re.escape(key)}[=.]|~{re.escape(key)}$", word)), ""
    )
    at = find_field(schema.Config, key)
    if "does not support deletion" in text:
        return f"{key} cannot be taken away; leave out ~{key}, or type {key}=..."
    if "nterpolation" in text or at is None:
        said = next((word for word in words if "${" in word), key)
        return f"{said}: {text}; type a value" if said else text
    if asked.lstrip("+~").startswith(f"{key}."):
        return f"there is no key {asked.lstrip('+~').partition('=')[0]}; {key} holds no keys, type {key}=..."
    quoted = re.search(r"[Vv]alue:? '?(.*?)'? (?:of type|is not)|value: (.*)", text)
    value = asked.partition("=")[2] if asked else quoted.group(1) or quoted.group(2) if quoted else "null"
    return str(wrong_type_error(at[0], at[1], value, at[2]))


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    if not group:
        return f"there is no config {option}; leave out --config-name"
    options = list(error.options or [])
    if not options:
        hint = did_you_mean(group, compose.GROUPS)
        return f"there is no group {group}; {hint}the groups are {', '.join(compose.GROUPS)}"
    hint = did_you_mean(option, options, group + "=") if option else ""
    return f"{group}={option} is not a choice; {hint}type one of {join_names(options, f'dlrun ls {group}')}"


def _unparsable(error: OverrideParseException) -> str:
    word = str(error.override)
    if word in compose.GROUPS:
        return f"{word} needs a choice; type {word}=<one of `dlrun ls {word}`>"
    if re.fullmatch(r"[\w.-]+", word):
        hint = did_you_mean(word, VERBS, "dlrun ")
        keys = list(iter_keys(_known([])))
        if not hint and (word in keys or find_nearest(word, keys)):
            hint = did_you_mean(f"{word}=...", [f"{key}=..." for key in [word, *keys] if key in keys])
        return f"{word!r} is neither a command nor key=value; {hint}dlrun --help shows both"
    if re.search(r"[\[{(]", word):
        example = "'model.hidden_sizes=[64,32]'"
        return f"{word!r} cannot be read as key=value; close brackets and quote them for the shell, as in {example}"
    return f"{word!r} cannot be read as key=value; type it as in optimizer.lr=0.1, with quotes in pairs"


def explain_unknown_key(key: str, known: DictConfig) -> str:
    """A key that does not exist, and the keys that were perhaps meant."""
    key = key.lstrip("+~")
    if key.startswith("hydra"):
        return f"there is no key {key}; dlrun --cfg hydra shows Hydra's own"
    group, _, rest = key.partition(".")
    if owners := _owners(group, rest):
        return f"there is no key {key} with this {group}; {_with(group, owners)} {_have(owners)} it"
    if found := _perhaps(key, list(iter_keys(known))):
        return f"there is no key {key}; did you mean {' or '.join(found)}?"
    others = {other for path in (CONFIG_DIR / group).glob("*.yaml") for other in _plain(path)} if rest else set()
    if meant := find_nearest(rest, sorted(others), 1):
        owners = _owners(group, meant[0])
        return f"there is no key {key} with this {group}; {_with(group, owners)} {_have(owners)} {group}.{meant[0]}"
    parent = key.rpartition(".")[0]
    inside = [k for k in iter_keys(known) if parent and k.startswith(parent + ".")]
    return (
        f"there is no key {key}; {f'{parent} has {join_names(inside)}' if inside else 'dlrun --cfg job shows all keys'}"
    )


def _perhaps(key: str, keys: list[str]) -> list[str]:
    """At most three keys: those within two edits, those of another section that end in the same word, those like it."""
    candidates = [k for k in keys if "." in k] if "." in key else [*keys, *(g for g in compose.GROUPS if g not in keys)]
    close = find_nearest(key, candidates)
    last = key.rpartition(".")[2]
    same_end = [k for k in keys if k.rpartition(".")[2] == last]
    ends = {k.rpartition(".")[2]: k for k in keys}
    similar = [ends[end] for end in find_nearest(last, ends)]
    certain = [k for k in close if edit_distance(key, k) <= 2]
    return list(dict.fromkeys([*certain, *same_end, *close, *similar]))[:3]


def _owners(group: str, rest: str) -> list[str]:
    """The options of a group that have such a key."""
    return [path.stem for path in sorted((CONFIG_DIR / group).glob("*.yaml")) if rest in _plain(path)]


def _with(group: str, owners: list[str]) -> str:
    """The options that have a key, as they are typed."""
    return " and ".join(owners[:4]) + f" (type {group}={owners[0]})"


@cache
def _plain(path: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(path))


def _have(owners: list[str]) -> str:
    return "has" if len(owners) == 1 else "have"


def _as_list(key: str, values: str, words: list[str]) -> str:
    """How several values are typed for a key that may hold a list; "" for one that may not."""
    value = OmegaConf.select(_known(words), key, throw_on_missing=False)
    return f", for a list {key}=[{values}]" if value is None or isinstance(value, ListConfig) else ""


def _known(words: list[str]) -> DictConfig:
    """The config for the groups that were chosen rightly: what the keys could have been."""
    right = []
    for word in words:
        group, _, option = word.partition("=")
        if group in compose.GROUPS and (CONFIG_DIR / group / f"{option}.yaml").is_file():
            right.append(word)
    try:
        return compose.compose_config(right)
    except (HydraException, OmegaConfBaseException):  # the suggestion is a courtesy; without it the sentence stands
        return OmegaConf.create({})


def iter_keys(node: DictConfig) -> Iterator[str]:
    yield from _dotted_plain(OmegaConf.to_container(node, resolve=False), "")


def _dotted_plain(values: Any, prefix: str) -> Iterator[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted_plain(value, f"{prefix}{key}.")
