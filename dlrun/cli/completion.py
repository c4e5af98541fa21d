"""Shell completion. `eval "$(dlrun completion bash)"`, or zsh, once: the Tab key then asks `dlrun completion words`.

Answers come from the schema and from the YAML files of configs/, without torch and Hydra: each Tab starts a process.
"""

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from dlrun.cli.main import CHECKS, COMMANDS, SAVED_RUN_COMMANDS
from dlrun.cli.pages import TOPICS
from dlrun.config import schema as config
from dlrun.config.compose import GROUPS
from dlrun.core import output_format
from dlrun.core.errors import RequestError
from dlrun.core.terminal import escape_line, write_out
from dlrun.core.yaml import read_yaml
from dlrun.runs import query
from dlrun.runs.record import STATUSES

# Both scripts ask `dlrun completion words` at each Tab, with the line up to the cursor.
SCRIPTS = {
    "bash": r"""
_dlrun() {
    local word
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <("${COMP_WORDS[0]}" completion words bash "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=./] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -o default -o nosort -F _dlrun dlrun 2>/dev/null || complete -o default -F _dlrun dlrun
""",
    "zsh": r"""
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }
_dlrun() {
    local -a matches
    matches=("${(@f)$("${words[1]}" completion words zsh "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    compadd -Q -S '' -- ${(M)matches:#*[=./]}
    compadd -Q -- ${${matches:#*[=./]}:#}
    [[ -n "$matches" ]] || _files
}
compdef _dlrun dlrun
""",
}
# Commands with a list or a table, and its formats.
_TABLE_COMMANDS = ("compare", "diff", "ls", "show")
_FLAGS = ("-m", "--multirun", "--cfg", "--config-dir", "--help", "--version", "--hydra-help", "-v")
_LIST_COMMANDS = ("clean", "ls")

# Commands whose first word is a run, also one of a sweep; a run or a whole sweep; and those that take several.
_RUN_COMMANDS = ("eval", "predict", "export", "diff", "show", "rerun", "watch")
_SWEEP_COMMANDS = ("resume", "compare")
_SEVERAL = ("diff", "compare")

# Formats of `dlrun export`, repeated here because its own list would import torch.
_FORMATS = ("onnx", "safetensors", "python")


def complete(words: Sequence[str]) -> None:
    """`dlrun completion bash|zsh` prints the shell's script, `completion words SHELL LINE` the suggestions."""
    if len(words) == 3 and words[0] == "words" and words[1] in SCRIPTS:
        # An error message amid the user's typing would help nobody.
        with contextlib.suppress(OSError, ValueError):
            for word in complete_line(words[1], words[2]):
                # A word that cannot be typed as it is displayed is left out.
                if escape_line(word) == word:
                    write_out(word)
    elif len(words) == 1 and words[0] in SCRIPTS:
        write_out(SCRIPTS[words[0]].strip())
    else:
        raise RequestError('which shell? type eval "$(dlrun completion bash)", or eval "$(dlrun completion zsh)"')
    sys.stdout.flush()


def complete_line(shell: str, line: str) -> list[str]:
    """Suggest the last word of a command line.

    bash takes only what follows the word's last "=" or colon, at which it splits words.
    """
    words = shlex.split(line)
    # After a blank a new word begins, which is empty yet.
    current = "" if line[-1:].isspace() else words.pop()

    suggestions = []
    for word in dict.fromkeys(suggest_words(words[1:], current)):
        if word.startswith(current):
            suggestions.append(word)

    start = 0
    if shell == "bash":
        start = max(current.rfind("="), current.rfind(":")) + 1
    return [shlex.quote(word[start:]) for word in suggestions]


def suggest_words(before: Sequence[str], current: str) -> Iterator[str]:
    """Words that may replace `current` after the words `before`; not all of them begin with it."""
    command = before[0] if before and before[0] in list_commands() else ""
    takes_runs = command in (*_RUN_COMMANDS, *_SWEEP_COMMANDS)

    # The command decides what its words may be; a word without a command is an override.
    if current.startswith("-"):
        yield from _list_flags(command)
    elif command == "completion":
        yield from SCRIPTS
    elif command == "help":
        if len(before) == 1:
            yield from TOPICS
    elif command == "clean" or (command == "ls" and "runs" in before):
        yield from suggest_filters(current)
        if command == "ls":
            yield from ("sort=", "limit=")
    elif command == "ls":
        yield from (*GROUPS, "runs")
    elif takes_runs and (len(before) == 1 or command in _SEVERAL):
        yield from suggest_folders(current, command in _SWEEP_COMMANDS)
    else:
        if not before:
            yield from list_commands()
        if list(before) == ["check"]:
            yield from CHECKS
        if command == "export":
            yield from suggest_values(current, [f"format={name}" for name in _FORMATS])
        yield from suggest_settings(before, current)

    if command in _TABLE_COMMANDS and current[:1] not in ("", "-"):
        yield from suggest_values(current, [f"format={name}" for name in output_format.FORMATS])


def _list_flags(command: str) -> Sequence[str]:
    if command == "clean":
        return ("--yes", "--last")
    if command == "ls":
        return ("--last", "--format")
    return _FLAGS


def list_commands() -> list[str]:
    """All commands."""
    return sorted({*COMMANDS, *SAVED_RUN_COMMANDS, *_LIST_COMMANDS, "help"})


def suggest_filters(current: str) -> Iterator[str]:
    """Suggest the filters of `ls runs` and `clean`."""
    yield from suggest_values(current, [f"status={status}" for status in STATUSES])
    for group in ("model", "data", "optimizer"):
        yield from suggest_values(current, [f"{group}={name}" for name in list_options(group, [])])
    yield from ("seed=", "name=", "tag=")


def suggest_values(current: str, words: Sequence[str]) -> list[str]:
    """Suggest from key=value words of one key: the key alone until it is typed, then the values.

    Of a list of values the last one is completed.
    """
    key, _, value = current.partition("=")
    if not words or not words[0].startswith(f"{key}=") or "=" not in current:
        return list(dict.fromkeys(f"{word.partition('=')[0]}=" for word in words))

    # "model=mlp,cn" is completed to "model=mlp,cnn".
    finished_values = value[: value.rfind(",") + 1]
    return [f"{key}={finished_values}{word.partition('=')[2]}" for word in words]


def suggest_folders(current: str, with_sweeps: bool) -> Iterator[str]:
    """Suggest run folders in `outputs`, newest first; runs of a sweep after its own folder is typed."""
    runs = query.scan_folders([Path("outputs")])
    for run in sorted(runs, key=lambda run: str(run.folder), reverse=True):
        if run.sweep is None or current.startswith(f"{run.sweep}/"):
            yield str(run.folder)
        else:
            # The slash keeps the shell from closing the word: a run of the sweep follows.
            yield f"{run.sweep}" if with_sweeps else f"{run.sweep}/"


def suggest_settings(before: Sequence[str], current: str) -> Iterator[str]:
    """Suggest choices and config keys; of a section only its name until the dot is typed."""
    for group in list_groups(before):
        yield from suggest_values(current, [f"{group}={name}" for name in list_options(group, before)])

    if current.startswith(("init_from=", "resume=")):
        key, _, place = current.partition("=")
        for folder in suggest_folders(place, with_sweeps=key == "resume"):
            yield f"{key}={folder}"

    for key, values in read_keys(before).items():
        if "=" in current and values:
            yield from suggest_values(current, [f"{key}={value}" for value in values])
        elif "=" not in current and key.startswith(current):
            # "opt" is completed to "optimizer.", and only then to its keys.
            dot = key.find(".", len(current))
            yield key[: dot + 1] if dot >= 0 else f"{key}="


def list_groups(before: Sequence[str]) -> list[str]:
    """The groups for which dlrun or the user's --config-dir has a folder."""
    groups = set[str]()
    for folder in _list_config_dirs(before):
        groups.update(group for group in GROUPS if (folder / group).is_dir())
    return [group for group in GROUPS if group in groups]


def list_options(group: str, before: Sequence[str]) -> list[str]:
    """The options of a group, by name."""
    names = set[str]()
    for folder in _list_config_dirs(before):
        names.update(path.stem for path in (folder / group).glob("*.yaml"))
    return sorted(names)


def _list_config_dirs(before: Sequence[str]) -> list[Path]:
    folders = [config.CONFIG_DIR]
    for flag, folder in pairwise(before):
        if flag in ("--config-dir", "-cd"):
            folders.append(Path(folder).expanduser())
    return folders


def read_keys(before: Sequence[str]) -> dict[str, list[str]]:
    """Every config key for the choices in `before`, with its values if they are few, else an empty list."""
    keys = dict(_list_schema_keys(config.Config, ""))
    for group, schema in config.KEYS.items():
        # Keys that all options of a group have come from the schema, others from the option's YAML.
        keys |= dict(_list_schema_keys(schema, f"{group}."))
        for key, value in _read_option(group, before).items():
            keys[f"{group}.{key}"] = ["true", "false"] if isinstance(value, bool) else []
    return keys


def _list_schema_keys(schema: Any, prefix: str) -> Iterator[tuple[str, list[str]]]:
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(field.type):
            yield from _list_schema_keys(field.type, f"{prefix}{field.name}.")
        # Groups have schemas of their own.
        elif prefix or field.name not in config.KEYS:
            values = [str(choice) for choice in field.metadata.get("choices", ())]
            if field.type is bool:
                values = ["true", "false"]
            yield prefix + field.name, values


def _read_option(group: str, before: Sequence[str]) -> dict[str, Any]:
    """Keys and values of the option of a group that the words choose, else of the default."""
    choices = []
    for entry in read_yaml((config.CONFIG_DIR / "config.yaml").read_text())["defaults"]:
        if isinstance(entry, dict) and group in entry:
            choices.append(entry[group])
            break
    for word in before:
        if word.startswith(f"{group}="):
            choices.append(word.partition("=")[2])

    # dlrun's own option comes before the user's of the same name.
    for folder in _list_config_dirs(before):
        path = folder / group / f"{choices[-1]}.yaml"
        if path.is_file():
            option = read_yaml(path.read_text()) or {}
            return {key: value for key, value in option.items() if key not in ("_target_", "defaults")}
    return {}
