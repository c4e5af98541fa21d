"""Shell completion. `eval "$(dlrun completion bash)"`, or zsh, once: the Tab key then asks `dlrun completion words`.

Answers come from the schema and from the YAML files of configs/: neither torch is imported nor Hydra asked.
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
from dlrun.config.request import GROUPS
from dlrun.core.errors import RequestError
from dlrun.core.terminal import escape_line, write_out
from dlrun.core.yaml import read_yaml
from dlrun.runs import query
from dlrun.runs.record import STATUSES

SCRIPTS = {
    "bash": r"""
_dlrun() {
    local found
    COMPREPLY=()
    while IFS= read -r found; do
        COMPREPLY+=("$found")
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
    local -a found
    found=("${(@f)$("${words[1]}" completion words zsh "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    compadd -Q -S '' -- ${(M)found:#*[=./]}
    compadd -Q -- ${${found:#*[=./]}:#}
    [[ -n "$found" ]] || _files
}
compdef _dlrun dlrun
""",
}
_FLAGS = ("-m", "--multirun", "--cfg", "--config-dir", "--help", "--version", "--hydra-help", "-v")
_OF_RUNS = ("eval", "predict", "export", "diff")  # their first words are runs, jobs of sweeps among them
_OF_SWEEPS = ("resume", "compare")  # or whole sweeps
_SEVERAL = ("diff", "compare")
_LISTS = ("clean", "ls")
_FORMATS = ("onnx", "safetensors", "python")  # of export; its own list would import torch


def answer(words: Sequence[str]) -> None:
    """`dlrun completion bash|zsh` prints the shell's script, `completion words SHELL LINE` how the line may go on."""
    if len(words) == 3 and words[0] == "words" and words[1] in SCRIPTS:
        with contextlib.suppress(OSError, ValueError):  # whoever presses Tab wants no message
            # A name that cannot be typed as it is shown is left out.
            for word in complete_line(words[1], words[2]):
                if escape_line(word) == word:
                    write_out(word)
    elif len(words) == 1 and words[0] in SCRIPTS:
        write_out(SCRIPTS[words[0]].strip())
    else:
        raise RequestError('which shell? type eval "$(dlrun completion bash)", or eval "$(dlrun completion zsh)"')
    sys.stdout.flush()


def complete_line(shell: str, line: str) -> list[str]:
    """How the last word of a command line may go on; for bash without what stands before its last = or colon."""
    words = shlex.split(line)
    now = "" if line[-1:].isspace() else words.pop()
    found = [word for word in dict.fromkeys(suggest_words(words[1:], now)) if word.startswith(now)]
    done = max(now.rfind("="), now.rfind(":")) + 1 if shell == "bash" else 0
    return [shlex.quote(word[done:]) for word in found]


def suggest_words(before: Sequence[str], now: str) -> Iterator[str]:
    """What could stand in place of the word `now`, behind the words `before`; more than what begins like it."""
    verb = before[0] if before and before[0] in list_commands() else ""
    if now.startswith("-"):
        yield from ("--yes", "--last") if verb == "clean" else ("--last",) if verb == "ls" else _FLAGS
    elif verb == "completion":
        yield from SCRIPTS
    elif verb == "help":
        yield from () if len(before) > 1 else TOPICS
    elif verb in _LISTS and (verb == "clean" or "runs" in before):
        yield from suggest_filters(now)
    elif verb == "ls":
        yield from (*GROUPS, "runs")
    elif verb in (*_OF_RUNS, *_OF_SWEEPS) and (len(before) == 1 or verb in _SEVERAL):
        yield from suggest_folders(now, verb in _OF_SWEEPS)
    else:
        yield from () if before else list_commands()
        yield from CHECKS if list(before) == ["check"] else ()
        yield from suggest_values(now, [f"format={name}" for name in _FORMATS if verb == "export"])
        yield from suggest_settings(before, now)


def list_commands() -> list[str]:
    """The commands."""
    return sorted({*COMMANDS, *SAVED_RUN_COMMANDS, *_LISTS, "help"})


def suggest_filters(now: str) -> Iterator[str]:
    """What `ls runs` and `clean` look for."""
    yield from suggest_values(now, [f"status={status}" for status in STATUSES])
    for group in ("model", "data", "optimizer"):
        yield from suggest_values(now, [f"{group}={name}" for name in list_options(group, [])])
    yield "seed="


def suggest_values(now: str, whole: Sequence[str]) -> list[str]:
    """key=value words, of which only the key is shown before it is there; of a list of values the last goes on."""
    key, _, value = now.partition("=")
    if not whole or not whole[0].startswith(f"{key}=") or "=" not in now:
        return list(dict.fromkeys(f"{word.partition('=')[0]}=" for word in whole))
    others = value[: value.rfind(",") + 1]
    return [f"{key}={others}{word.partition('=')[2]}" for word in whole]


def suggest_folders(now: str, with_sweeps: bool) -> Iterator[str]:
    """Run folders in `outputs`, newest first; the jobs of a sweep once its own folder is typed."""
    for run in sorted(query.folders([Path("outputs")]), key=lambda run: str(run.folder), reverse=True):
        if run.sweep is None or now.startswith(f"{run.sweep}/"):
            yield str(run.folder)
        else:
            yield f"{run.sweep}" if with_sweeps else f"{run.sweep}/"


def suggest_settings(before: Sequence[str], now: str) -> Iterator[str]:
    """Choices and keys; of a section only its name, until the dot is typed."""
    for group in list_groups(before):
        yield from suggest_values(now, [f"{group}={name}" for name in list_options(group, before)])
    if now.startswith(("init_from=", "resume=")):
        key = now.partition("=")[0]
        yield from (f"{key}={place}" for place in suggest_folders(now.partition("=")[2], with_sweeps=key == "resume"))
    for key, known in read_keys(before).items():
        if "=" in now and known:
            yield from suggest_values(now, [f"{key}={value}" for value in known])
        elif "=" not in now and key.startswith(now):
            dot = key.find(".", len(now))
            yield key[: dot + 1] if dot >= 0 else f"{key}="


def list_groups(before: Sequence[str]) -> list[str]:
    """Those of dlrun and of the user's own --config-dir."""
    return [group for group in GROUPS if any((folder / group).is_dir() for folder in _config_dirs(before))]


def list_options(group: str, before: Sequence[str]) -> list[str]:
    """What can be chosen of a group."""
    return sorted({path.stem for folder in _config_dirs(before) for path in (folder / group).glob("*.yaml")})


def _config_dirs(before: Sequence[str]) -> list[Path]:
    own = [Path(folder).expanduser() for flag, folder in pairwise(before) if flag in ("--config-dir", "-cd")]
    return [config.CONFIG_DIR, *own]


def read_keys(before: Sequence[str]) -> dict[str, list[str]]:
    """Every key of the config with these choices, and its values where there are only a few."""
    found = dict(_of_schema(config.Config, ""))
    for group, schema in config.KEYS.items():
        found |= dict(_of_schema(schema, f"{group}."))
        for key, value in _of_option(group, before).items():
            found[f"{group}.{key}"] = ["true", "false"] if isinstance(value, bool) else []
    return found


def _of_schema(schema: Any, prefix: str) -> Iterator[tuple[str, list[str]]]:
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(field.type):
            yield from _of_schema(field.type, f"{prefix}{field.name}.")
        elif prefix or field.name not in config.KEYS:
            known = ["true", "false"] if field.type is bool else [str(c) for c in field.metadata.get("choices", ())]
            yield prefix + field.name, known


def _of_option(group: str, before: Sequence[str]) -> dict[str, Any]:
    """The YAML of the option that the words choose, else of the default."""
    asked = [word.partition("=")[2] for word in before if word.startswith(f"{group}=")]
    first = read_yaml((config.CONFIG_DIR / "config.yaml").read_text())["defaults"]
    chosen = asked[-1:] or [entry[group] for entry in first if isinstance(entry, dict) and group in entry]
    for folder in _config_dirs(before):
        path = folder / group / f"{chosen[0]}.yaml"
        if path.is_file():
            return {k: v for k, v in (read_yaml(path.read_text()) or {}).items() if k not in ("_target_", "defaults")}
    return {}
