"""Errors of Hydra and OmegaConf as sentences: what, where, and what to type instead."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from dlrun.config import compose, request, schema
from dlrun.config.listing import list_options
from dlrun.config.overrides import get_key
from dlrun.config.schema import CONFIG_DIR
from dlrun.config.settings import read_settings
from dlrun.config.validation import build_wrong_type_error, find_field
from dlrun.core.errors import ErrorList, RequestError, iter_causes, join_names
from dlrun.core.suggest import compute_edit_distance, did_you_mean, find_nearest
from dlrun.core.yaml import flatten

# Exceptions of Hydra and OmegaConf on a wrong command line or a saved config that it does not fit.
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, request.UnknownKey)

_VERBS = ("resume", "eval", "compare", "export", "predict", "clean", "completion", "diff", "ls", "check", "help",
         "show", "rerun", "watch", "new")  # fmt: skip

_NO_OPTION = r"Config group override must be a string or a list"
_SEVERAL_VALUES = r"Ambiguous value for argument '([^=]+)=(.*)'"

# Patterns of Hydra's messages, and the sentence for each.
_SENTENCES = (
    (_SEVERAL_VALUES, "{0}={1} names several values; for a run of each type dlrun -m {0}={1}"),
    (r"Multiple values for (\S+)\. To override", "{0} is chosen already; leave out the + and type {0}=..."),
    (r"force-add of config groups is not supported: '\+*([^']+)'", "leave out the ++ and type {0}"),
    (r"Could not append to config\. An item is already at '([^']+)'", "{0} is there already; leave out the + and "
     "type {0}=..."),
    (r"Could not delete '([^']+)'\. No match in the defaults list", "~{0} is not chosen, so it cannot be "
     "removed; leave it out"),
    (r"Could not override '([^']+)'\. No match in the defaults list", "{0} is no group; its defaults list may "
     "override those of `dlrun ls`"),
    (r"Cannot merge DictConfig with ListConfig", "the file is a list; type key: value into it"),
    (r"Could not delete from config\. The value of '([^']+)' is (.+) and not", "{0} is {1}; leave out ~{0}"),
    (r"Additional config directory '([^']+)' not found", "--config-dir: there is no folder {0}; type --config-dir "
     "<an existing one>"),
)  # fmt: skip


def explain_all_errors(error: Exception, words: list[str]) -> RequestError:
    """Make an error for the user of an exception that composing `words` raised, with every mistake in them.

    Each word is tried on its own on top of the words that were right, choices before values; then types and ranges of
    the result are checked.
    """
    errors = ErrorList()
    flags = compose.parse_flags(words)
    if len(flags.overrides) > 1 and not flags.multirun and not flags.config_dir:
        # A word may set a key that only the option chosen by another word has.
        choices_first = sorted(flags.overrides, key=lambda word: word.partition("=")[0] not in compose.GROUPS)
        valid_words: list[str] = []
        for word in choices_first:
            try:
                compose.compose_config([*valid_words, word])
                valid_words.append(word)
            except Exception as word_error:
                # Whatever Hydra, its parser and OmegaConf raise.
                errors.add(RequestError(explain_error(word_error, [word, *valid_words])))
        if errors.errors:
            read_settings(compose.resolve(compose.compose_config(valid_words)), {}, errors)

    if not errors.errors:
        return RequestError(explain_error(error, words))
    try:
        errors.raise_if_any()
    except RequestError as all_errors:
        return all_errors
    raise AssertionError


def explain_error(error: Exception, words: list[str]) -> str:
    """Explain an exception that composing `words` raised in one sentence."""
    sentence = _explain(error, words)

    # The file that the error is in, unless the sentence names it or it is config.yaml.
    place = re.match(r"In '([^']+)'", str(error))
    if place and place.group(1) not in ("config", "config.yaml") and place.group(1) not in sentence:
        sentence = f"{place.group(1)}.yaml: {sentence}"
    if request.IN_POINTS in getattr(error, "__notes__", ()):
        return f"sweep.points: {sentence}"
    return sentence


def _explain(error: Exception, words: list[str]) -> str:
    if isinstance(error, request.UnknownKey):
        return explain_unknown_key(error.key, error.config)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _explain_missing_option(error)
    if isinstance(error, OverrideParseException):
        return _explain_unparsable(error)

    # Hydra's message does not tell which word it is about.
    if re.search(_NO_OPTION, str(error)):
        return _explain_no_option(words)

    for pattern, sentence in _SENTENCES:
        match = re.search(pattern, str(error))
        if match:
            advice = _advise_list(match[1], match[2], words) if pattern == _SEVERAL_VALUES else ""
            return sentence.format(*match.groups()) + advice

    for word in words:
        package = re.match(r"[+~]*([\w/]+)@", word)
        if package:
            key = package[1]
            return f"{key} stands in one place only; leave out the @ and what follows: type {key}=..."
        if word.startswith("="):
            return f"{word} names no key; type key=value"

    causes = list(iter_causes(error))
    for cause in causes:
        # PyYAML marks the line of a file that it cannot read.
        mark: Any = getattr(cause, "problem_mark", None)
        if mark is not None:
            return f"{mark.name}, line {mark.line + 1}: {getattr(cause, 'problem', cause)}; correct the line"

    deletion = re.search(r"Could not delete from config\. '([^']+)' does not exist", str(error))
    for cause in causes:
        if deletion:
            return explain_unknown_key(deletion.group(1), _compose_valid_choices(words))
        if isinstance(cause, ConfigKeyError) or re.match(r"Key '.*' (is )?not in ", str(cause)):
            key = _find_key(error, cause)
            if key.startswith("user."):
                return _explain_unknown_own_key(key, getattr(cause, "parent_node", None))
            return explain_unknown_key(key, _compose_valid_choices(words))
    # Unknown keys come first: a value cannot be wrong for a key that is not there.
    for cause in causes:
        if isinstance(cause, OmegaConfBaseException):
            return _explain_wrong_value(cause, words)

    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = " ".join(lines[:2]) or type(error).__name__
    is_named = any(get_key(word) in message for word in words)
    if is_named or not words:
        return message
    return f"{message}; look at {' '.join(words)}"


def _find_key(error: Exception, cause: BaseException) -> str:
    """The whole dotted key, which is in Hydra's outer message or in OmegaConf's inner one."""
    match = re.search(r"(?:Could not (?:override|append)|Error merging override) '?\+*([^'=\s]+)", str(error))
    outer = match.group(1) if match else ""
    inner = str(getattr(cause, "full_key", None) or getattr(cause, "key", ""))
    return inner if len(inner) > len(outer) else outer


def _explain_wrong_value(cause: OmegaConfBaseException, words: list[str]) -> str:
    """Explain a value that its key does not take."""
    key = str(cause.full_key or cause.key or "")
    text = str(cause.msg or cause).splitlines()[0]
    word = _find_word(key, words)
    field = find_field(schema.Config, key)

    if "does not support deletion" in text:
        return f"{key} cannot be removed; leave out ~{key}, or type {key}=..."
    if "nterpolation" in text or field is None:
        place = next((word for word in words if "${" in word), key)
        return f"{place}: {text}; type a value" if place else text
    if word.lstrip("+~").startswith(f"{key}."):
        return f"there is no key {get_key(word)}; {key} holds no keys, type {key}=..."

    value: str | None = "null"
    quotation = re.search(r"[Vv]alue:? '?(.*?)'? (?:of type|is not)|value: (.*)", text)
    if word:
        value = word.partition("=")[2]
    elif quotation:
        value = quotation.group(1) or quotation.group(2)
    schema_of_field, name, section = field
    return str(build_wrong_type_error(schema_of_field, name, value, section))


def _find_word(key: str, words: list[str]) -> str:
    """The first word that sets or deletes a key, or one below it; "" if there is none."""
    if not key:
        return ""
    pattern = rf"[+~]*{re.escape(key)}[=.]|~{re.escape(key)}$"
    return next((word for word in words if re.match(pattern, word)), "")


def _explain_missing_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    if not group:
        return f"there is no config {option}; leave out --config-name"

    options = list(error.options or [])
    if not options and group in compose.GROUPS:
        # Hydra names no options where one of several does not exist.
        options = [name for name, _ in list_options(group, CONFIG_DIR)]
    if not options:
        hint = did_you_mean(group, compose.GROUPS)
        return f"there is no group {group}; {hint}the groups are {', '.join(compose.GROUPS)}"

    hint = did_you_mean(option, options, group + "=") if option else ""
    return f"{group}={option} is not a choice; {hint}type one of {join_names(options, f'dlrun ls {group}')}"


def _explain_no_option(words: list[str]) -> str:
    """Explain a choice that is a number or null."""
    for word in words:
        group, _, option = word.partition("=")
        if group in compose.GROUPS and (option == "null" or not re.search(r"[A-Za-z]", option)):
            has_none = (CONFIG_DIR / group / "none.yaml").is_file()
            instead = f"{group}=none" if has_none and option == "null" else f"{group}=<one of `dlrun ls {group}`>"
            return f"{word} is not a choice; type {instead}"
    return f"a choice is the name of an option; type one, as in model=mlp, in place of {' '.join(words)}"


def _explain_unparsable(error: OverrideParseException) -> str:
    # A word without a value may be a command, a group or a key.
    word = str(error.override)
    if word in compose.GROUPS:
        return f"{word} needs a choice; type {word}=<one of `dlrun ls {word}`>"

    if re.fullmatch(r"[\w.-]+", word):
        hint = did_you_mean(word, _VERBS, "dlrun ")
        keys = list(iter_keys(_compose_valid_choices([])))
        if not hint and (word in keys or find_nearest(word, keys)):
            # The word itself comes first if it is a key.
            candidates = [f"{key}=..." for key in [word, *keys] if key in keys]
            hint = did_you_mean(f"{word}=...", candidates)
        return f"{word!r} is neither a command nor key=value; {hint}dlrun --help shows both"

    if re.search(r"[\[{(]", word):
        example = "'model.hidden_sizes=[64,32]'"
        return f"{word!r} cannot be read as key=value; close brackets and quote them for the shell, as in {example}"
    return f"{word!r} cannot be read as key=value; type it as in optimizer.lr=0.1, with quotes in pairs"


def explain_unknown_key(key: str, config: DictConfig) -> str:
    """Explain that a key does not exist, and name the keys that were perhaps meant."""
    key = key.lstrip("+~")
    if key.startswith("hydra"):
        return f"there is no key {key}; dlrun --cfg hydra shows Hydra's own"

    group, _, rest = key.partition(".")
    if group == "user" and rest:
        return _explain_unknown_own_key(key, OmegaConf.select(config, key.rpartition(".")[0]))

    if group == "callbacks" and rest.endswith("._target_"):
        return f"there is no key {key}; to add a callback of your own type +{key}=module.Class"

    owners = _find_owners(group, rest)
    if owners:
        return f"there is no key {key} with this {group}; {_format_owners(group, owners)} it"

    suggestions = _suggest_keys(key, list(iter_keys(config)))
    if suggestions:
        return f"there is no key {key}; did you mean {' or '.join(suggestions)}?"

    nearest = find_nearest(rest, _list_option_keys(group), 1) if rest else []
    if nearest:
        owners = _find_owners(group, nearest[0])
        return f"there is no key {key} with this {group}; {_format_owners(group, owners)} {group}.{nearest[0]}"

    parent = key.rpartition(".")[0]
    siblings = [other for other in iter_keys(config) if parent and other.startswith(parent + ".")]
    if siblings:
        return f"there is no key {key}; {parent} has {join_names(siblings)}"
    return f"there is no key {key}; dlrun --cfg job shows all keys"


def _explain_unknown_own_key(key: str, block: Any) -> str:
    """Explain that the block `user` lacks a key, which anyone may add; block: the part of it that was looked in."""
    parent = key.rpartition(".")[0]
    names = [str(name) for name in block] if isinstance(block, DictConfig) else []
    hint = did_you_mean(key, [f"{parent}.{name}" for name in names])
    return f"there is no key {key} yet; {hint}type +{key}=... to add it"


def suggest_keys(key: str) -> list[str]:
    """At most three keys of the config that such a word may mean, the likeliest first."""
    return _suggest_keys(key, list(iter_keys(_compose_valid_choices([]))))


def _suggest_keys(key: str, keys: list[str]) -> list[str]:
    """At most three keys: those within two edits, those of another section that end in the same word, those like it."""
    if "." in key:
        # A dotted word means a key of a section, an undotted one may mean a group too.
        candidates = [other for other in keys if "." in other]
    else:
        candidates = keys + [group for group in compose.GROUPS if group not in keys]
    close = find_nearest(key, candidates)
    # `find_nearest` also returns keys that merely contain the word; a mistyped key comes before them.
    certain = [other for other in close if compute_edit_distance(key, other) <= 2]

    last = key.rpartition(".")[2]
    same_end = [other for other in keys if other.rpartition(".")[2] == last]
    key_by_end = {other.rpartition(".")[2]: other for other in keys}
    similar_end = [key_by_end[end] for end in find_nearest(last, key_by_end)]

    unique = dict.fromkeys([*certain, *same_end, *close, *similar_end])
    return list(unique)[:3]


def _find_owners(group: str, rest: str) -> list[str]:
    """The options of a group that have such a key."""
    owners = []
    for path in sorted((CONFIG_DIR / group).glob("*.yaml")):
        values = _read_plain(path)
        # The options of `logger` hold a block each.
        if rest in values or rest in flatten(values):
            owners.append(path.stem)
    return owners


def _format_owners(group: str, owners: list[str]) -> str:
    """Name the options that have a key, and how they are chosen: "adam (type optimizer=adam) has"."""
    verb = "has" if len(owners) == 1 else "have"
    return f"{' and '.join(owners[:4])} (type {group}={owners[0]}) {verb}"


def _list_option_keys(group: str) -> list[str]:
    """Top-level keys of all options of a group, sorted."""
    keys: set[str] = set()
    for path in (CONFIG_DIR / group).glob("*.yaml"):
        keys.update(_read_plain(path))
    return sorted(keys)


@cache
def _read_plain(path: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(path))


def _advise_list(key: str, values: str, words: list[str]) -> str:
    """How to type several values for a key that may hold a list; "" for one that may not."""
    value = OmegaConf.select(_compose_valid_choices(words), key, throw_on_missing=False)
    return f", for a list {key}=[{values}]" if value is None or isinstance(value, ListConfig) else ""


def _compose_valid_choices(words: list[str]) -> DictConfig:
    """Compose the config of the choices that exist, to look up which keys there are."""
    choices = []
    for word in words:
        group, _, option = word.partition("=")
        if group in compose.GROUPS and (CONFIG_DIR / group / f"{option}.yaml").is_file():
            choices.append(word)
    try:
        return compose.compose_config(choices)
    except (HydraException, OmegaConfBaseException):
        # The suggestion is a courtesy; without it the sentence stands.
        return OmegaConf.create({})


def iter_keys(node: DictConfig) -> Iterator[str]:
    """Yield the dotted names of all keys of a config, those of sections too."""
    yield from _iter_plain_keys(OmegaConf.to_container(node, resolve=False), "")


def _iter_plain_keys(values: Any, prefix: str) -> Iterator[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _iter_plain_keys(value, f"{prefix}{key}.")
