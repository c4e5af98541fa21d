"""Shell completion by click: `eval "$(dlrun completion bash)"`, or zsh, fish, once; each Tab then asks dlrun itself.

Answers come from the schema and from the YAML files of configs/, without torch and without composing a config: each Tab
starts a process.
"""

import contextlib
import dataclasses
import os
import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem, ShellComplete, split_arg_string

from dlrun.cli.command import Suggest, suggest_values
from dlrun.config import listing, project
from dlrun.config import schema as config
from dlrun.config.callbacks import ALIASES
from dlrun.core.errors import DlrunError
from dlrun.core.terminal import escape_line, write_out
from dlrun.core.yaml import read_yaml
from dlrun.runs import query
from dlrun.runs.record import STATUSES

# The environment variable by which a shell's script asks: "bash_complete".
VARIABLE = "_DLRUN_COMPLETE"
# Flags that Hydra reads.
_FLAGS = ("-m", "--multirun", "--cfg", "--config-dir", "--hydra-help", "-v")

# Shells


class LineComplete(ShellComplete):
    """Completes the last word of the line up to the cursor, which the script hands over in COMP_WORDS.

    click's own scripts take the words as the shell splits them, bash at "=" too, and end each with a blank.
    """

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words after the program's name, and the incomplete one."""
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)
        # After a blank a new word begins, which is empty yet.
        incomplete = "" if line[-1:].isspace() else words.pop()
        return words[1:], incomplete

    # As text: below click 8.5 the class takes no parameter.
    def get_completions(self, args: list[str], incomplete: str) -> "list[CompletionItem[str]]":
        """The completed words, without those that hold control characters, which are displayed as something else."""
        items = super().get_completions(args, incomplete)
        # Of --format=js click completes what stands behind the "=".
        flag, equals, _ = incomplete.partition("=")
        prefix = f"{flag}=" if equals and flag.startswith("-") else ""
        words = [f"{prefix}{item.value}" for item in items]
        return [CompletionItem(self.cut(word, incomplete)) for word in words if escape_line(word) == word]

    def cut(self, word: str, _incomplete: str) -> str:
        """The part of a completed word that takes the place of the shell's own word."""
        return word

    def format_completion(self, item: "CompletionItem[str]") -> str:
        """The word as it is typed."""
        return shlex.quote(item.value)


class Bash(LineComplete):
    """bash takes only what follows the word's last "=" or colon, at which it splits words."""

    name = "bash"
    source_template = r"""
_dlrun() {
    local word
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <(COMP_WORDS="${COMP_LINE:0:COMP_POINT}" %(complete_var)s=bash_complete "${COMP_WORDS[0]}" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=./] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -o default -o nosort -F _dlrun dlrun 2>/dev/null || complete -o default -F _dlrun dlrun
"""

    def cut(self, word: str, incomplete: str) -> str:
        """The rest of the word after the last break."""
        return word[max(incomplete.rfind("="), incomplete.rfind(":")) + 1 :]


class Zsh(LineComplete):
    """zsh; no blank follows a word that goes on."""

    name = "zsh"
    source_template = r"""
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }
_dlrun() {
    local -a matches
    local line="${(j: :)words[1,CURRENT-1]} $PREFIX"
    matches=("${(@f)$(COMP_WORDS="$line" %(complete_var)s=zsh_complete "${words[1]}" 2>/dev/null)}")
    compadd -Q -S '' -- ${(M)matches:#*[=./]}
    compadd -Q -- ${${matches:#*[=./]}:#}
    [[ -n "$matches" ]] || _files
}
compdef _dlrun dlrun
"""


class Fish(LineComplete):
    """fish quotes words itself, and adds no blank after = and /."""

    name = "fish"
    source_template = r"""
function _dlrun
    set -l matches (COMP_WORDS=(commandline -cp) %(complete_var)s=fish_complete dlrun 2>/dev/null)
    if set -q matches[1]
        string join \n -- $matches
    else
        __fish_complete_path (commandline -ct)
    end
end
complete --no-files --keep-order --command dlrun --arguments "(_dlrun)"
"""

    def format_completion(self, item: "CompletionItem[str]") -> str:
        """The word itself."""
        return item.value


SHELLS: dict[str, type[LineComplete]] = {"bash": Bash, "zsh": Zsh, "fish": Fish}


def make_completion(shell: str, command: click.Command) -> LineComplete:
    """The completion of a command in a shell."""
    return SHELLS[shell](command, {}, "dlrun", VARIABLE)


def print_suggestions(command: click.Command) -> None:
    """Print suggestions for the shell that asks; nothing for a line that cannot be completed."""
    shell = os.environ[VARIABLE].partition("_")[0]
    # An error message amid the user's typing would help nobody.
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError, DlrunError):
        text = make_completion(shell, command).complete()
        if text:
            write_out(text)


# Words


def suggest_runs(with_sweeps: bool = False, several: bool = False, settings: bool = True) -> Suggest:
    """Suggest one run or several, and settings after one.

    with_sweeps: suggest whole sweeps too.
    """

    def suggest(before: Sequence[str], current: str) -> Iterator[str]:
        if several or not before:
            yield from _suggest_folders(current, with_sweeps)
        elif settings:
            yield from suggest_settings(before, current)

    return suggest


def suggest_filters(_before: Sequence[str], current: str) -> Iterator[str]:
    """Suggest the filters of `ls runs` and `clean`."""
    yield from suggest_values(current, [f"status={status}" for status in STATUSES])
    for group in ("model", "data", "optimizer"):
        yield from suggest_values(current, [f"{group}={name}" for name in _list_options(group, [])])
    yield from ("seed=", "name=", "tag=")


def _suggest_folders(current: str, with_sweeps: bool) -> Iterator[str]:
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
    if current.startswith("-"):
        yield from _FLAGS
        return

    for group in _list_groups(before):
        yield from suggest_values(current, [f"{group}={name}" for name in _list_options(group, before)])

    if current.startswith(("init_from=", "resume=")):
        key, _, place = current.partition("=")
        for folder in _suggest_folders(place, with_sweeps=key == "resume"):
            yield f"{key}={folder}"

    for key, values in read_keys(before).items():
        if "=" in current and values:
            yield from suggest_values(current, [f"{key}={value}" for value in values])
        elif "=" not in current and key.startswith(current):
            # "opt" is completed to "optimizer.", and only then to its keys.
            dot = key.find(".", len(current))
            yield key[: dot + 1] if dot >= 0 else f"{key}="


def _list_groups(before: Sequence[str]) -> list[str]:
    """The groups for which dlrun or the user's --config-dir has a folder."""
    return listing.list_groups(*_list_config_dirs(before))


def _list_options(group: str, before: Sequence[str]) -> list[str]:
    """The options of a group, by name."""
    return sorted(listing.find_options(group, *_list_config_dirs(before)))


def _list_config_dirs(before: Sequence[str]) -> list[Path]:
    folders = [config.CONFIG_DIR]
    own_folder = project.find_configs()
    if own_folder is not None:
        folders.append(own_folder)
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

    # A logger stands under its name.
    for name, block in _read_option("logger", before).items():
        keys[f"logger.{name}"] = []
        for key, value in block.items():
            if key != "_target_":
                keys[f"logger.{name}.{key}"] = ["true", "false"] if isinstance(value, bool) else []

    # Other spellings of the same keys.
    for name, spellings in ALIASES.items():
        for inner, key in spellings.items():
            keys[f"callbacks.{name}.{inner}"] = keys[key]
    return keys


def _list_schema_keys(schema: Any, prefix: str) -> Iterator[tuple[str, list[str]]]:
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(field.type):
            yield from _list_schema_keys(field.type, f"{prefix}{field.name}.")
        # Groups have schemas of their own.
        elif prefix or field.name not in config.KEYS:
            values = [str(choice) for choice in field.metadata.get("choices", ())]
            if field.type in (bool, bool | None):
                values = ["true", "false"]
            yield prefix + field.name, values


def _read_option(group: str, before: Sequence[str]) -> dict[str, Any]:
    """Keys and values of the option of a group that the words choose, or of several, else of the default."""
    choices = []
    for entry in read_yaml((config.CONFIG_DIR / "config.yaml").read_text())["defaults"]:
        if isinstance(entry, dict) and group in entry:
            choices.append(entry[group])
            break
    for word in before:
        if word.startswith(f"{group}="):
            choices.append(word.partition("=")[2])

    values: dict[str, Any] = {}
    for name in str(choices[-1]).strip("[]").split(","):
        # dlrun's own option comes before the user's of the same name.
        for folder in _list_config_dirs(before):
            path = folder / group / f"{name.strip()}.yaml"
            if path.is_file():
                values |= read_yaml(path.read_text()) or {}
                break
    return {key: value for key, value in values.items() if key not in ("_target_", "defaults")}
