"""`dlrun show RUN`: one run in words: what it was, what came of it, its files, and how to continue with it."""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from dlrun.cli.list_runs import describe_run, format_size
from dlrun.config import compose
from dlrun.config.compose import GROUPS, PRESETS
from dlrun.config.overrides import get_key
from dlrun.config.validation import format_value
from dlrun.core.output_format import format_csv, format_json
from dlrun.core.own_code import find_own_modules
from dlrun.core.shell import suggest_command
from dlrun.core.terminal import write_out
from dlrun.core.yaml import flatten
from dlrun.engine.metric_names import select_metrics
from dlrun.runs.query import find_run
from dlrun.runs.record import CUT_SHORT, RESULT, RunRecord
from dlrun.runs.reports.console import Console, build_table, format_facts, format_number

# Where things lie, which is no setting of the experiment; labels are shown apart.
_NOT_SHOWN = ("paths.", "data.root", "run.", "resume", "trust", "sweep.")

_ABSENT = object()


def show_run(words: Sequence[str], format: str) -> None:
    """`dlrun show RUN [format=F]`: print one run; RequestError if the folder holds none."""
    run = find_run(words, "show")
    description = describe(run)
    if format == "json":
        write_out(format_json(description))
    elif format == "csv":
        rows = [{"key": key, "value": value} for key, value in flatten(description).items()]
        write_out(format_csv(("key", "value"), rows))
    else:
        _print_description(run, description, Console())

    sys.stdout.flush()


def describe(run: RunRecord) -> dict[str, Any]:
    """A run as data, for JSON: what a list of runs has of it, and more."""
    listed = describe_run(run)
    damage = listed.pop("damage")
    best_row = next((row for row in run.rows if row["epoch"] == run.best_epoch), {})
    last_row = run.rows[-1] if run.rows else {}
    return {
        **listed,
        "notes": run.notes or None,
        "run_id": run.environment.get("run_id"),
        "command": run.environment.get("command"),
        "ended": _read_end(run),
        "choices": run.choices,
        "settings": list_settings(run),
        "best_epoch_metrics": select_metrics(best_row),
        "last_epoch_metrics": select_metrics(last_row),
        "baseline": run.result.get("baseline", {}),
        "files": list_files(run.folder),
        "warnings": run.result.get("warnings", []),
        "error": run.result.get("error"),
        "commands": _suggest_commands(run),
        # Reading more files may have found more damage.
        "damage": run.damage or damage,
    }


def _read_end(run: RunRecord) -> str | None:
    """When the result was written; None without one."""
    try:
        modified = (run.folder / RESULT).stat().st_mtime
    except OSError:
        return None
    return datetime.fromtimestamp(modified).astimezone().isoformat(timespec="seconds") if run.result else None


def list_settings(run: RunRecord) -> list[dict[str, Any]]:
    """The keys whose values are not the defaults of this version of dlrun, and what set each of them.

    `set_by`: "typed", the choice that brings the value, the file of the user's own, or "" if none of them is known.
    """
    defaults = flatten(compose.resolve(compose.compose_config([])))
    typed = [get_key(word) for word in run.overrides]
    in_files = run.environment.get("keys_in_files", {})
    presets = [f"{preset}={run.choices[preset]}" for preset in PRESETS if preset in run.choices]
    rows = []
    for key, value in run.flat_config.items():
        if key.startswith(_NOT_SHOWN) or key.endswith("_target_") or value == defaults.get(key, _ABSENT):
            continue

        group = key.partition(".")[0]
        if any(key == name or key.startswith(f"{name}.") for name in typed if name not in GROUPS):
            set_by = "typed"
        elif key in in_files:
            set_by = in_files[key]
        elif presets and group not in typed:
            set_by = presets[-1]
        else:
            set_by = f"{group}={run.choices[group]}" if group in run.choices else ""

        rows.append({"key": key, "value": value, "default": defaults.get(key), "set_by": set_by})

    return rows


def list_files(folder: Path) -> list[dict[str, Any]]:
    """The files of a run with their sizes: checkpoints one by one, with the names that share a file; folders as one."""
    files = []
    for entry in _scan(folder):
        if entry.name == "checkpoints" and entry.is_dir(follow_symlinks=False):
            files += _list_checkpoints(Path(entry.path))
        elif entry.is_dir(follow_symlinks=False):
            sizes = list(_iter_sizes(Path(entry.path)))
            files.append({"name": f"{entry.name}/", "files": len(sizes), "bytes": sum(sizes)})
        elif entry.name != ".lock":
            files.append({"name": entry.name, "files": 1, "bytes": _read_size(entry)})

    return files


def _scan(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _read_size(entry: "os.DirEntry[str]") -> int:
    # The file may vanish while it is looked at.
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0


def _iter_sizes(folder: Path) -> Iterator[int]:
    for entry in _scan(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _iter_sizes(Path(entry.path))
        else:
            yield _read_size(entry)


def _list_checkpoints(folder: Path) -> list[dict[str, Any]]:
    """One row for each file; best.pt and last.pt are links to one of the others."""
    names: dict[int, list[str]] = {}
    sizes: dict[int, int] = {}
    for entry in _scan(folder):
        names.setdefault(entry.inode(), []).append(entry.name)
        sizes[entry.inode()] = _read_size(entry)

    rows = []
    for inode, linked in names.items():
        rows.append({"name": f"checkpoints/{' = '.join(linked)}", "files": 1, "bytes": sizes[inode]})
    return rows


def _suggest_commands(run: RunRecord) -> dict[str, str]:
    """The commands that may come next, each under a word for what it does."""
    modules = find_own_modules(run.config)
    status = run.status
    commands = {}
    if status == "running":
        commands["follow"] = suggest_command("watch", run.folder)
    if run.has_checkpoints:
        for name, command in (("evaluate", "eval"), ("predict", "predict"), ("export", "export")):
            inputs = ("INPUT",) if command == "predict" else ()
            commands[name] = suggest_command(command, run.folder, *inputs, modules=modules)

    if run.has_checkpoints and status in (*CUT_SHORT, "failed"):
        commands["resume"] = run.advise_resume()
    elif run.is_done and not _spans_training(run):
        commands["continue"] = run.advise_resume(_choose_longer_training(run))

    if run.config:
        commands["repeat"] = suggest_command("rerun", run.folder, modules=modules)
    return commands


def _spans_training(run: RunRecord) -> bool:
    """Whether the schedule ends with the training, so that more epochs would stretch it: a length of it is null."""
    scheduler = run.config.get("scheduler") or {}
    return any(value is None for key, value in scheduler.items() if key != "_target_")


def _choose_longer_training(run: RunRecord) -> str:
    """The override that makes a finished run twice as long."""
    trainer = run.config.get("trainer") or {}
    patience = (trainer.get("early_stopping") or {}).get("patience")
    # A callback may have ended it, too.
    waited = run.epochs - (run.best_epoch or 0)
    if run.result.get("status") == "early_stopped" and patience is not None and waited >= int(patience):
        return f"trainer.early_stopping.patience={2 * int(patience)}"
    if trainer.get("max_steps") is not None and int(run.result.get("steps", 0)) >= trainer["max_steps"]:
        return f"trainer.max_steps={2 * int(trainer['max_steps'])}"
    return f"trainer.epochs={2 * int(trainer.get('epochs') or run.epochs)}"


def _print_description(run: RunRecord, description: dict[str, Any], console: Console) -> None:
    """Print what `describe` returns."""
    console.say(format_facts(_list_facts(run, description)))

    settings = description["settings"]
    if settings:
        cells = []
        for row in settings:
            default = "-" if row["default"] is None else format_value(row["default"])
            cells.append((str(row["key"]), format_value(row["value"]), default, str(row["set_by"])))
        console.say()
        console.say(build_table(("setting", "value", "default", "set by"), cells, left=4))

    metrics = _list_metric_rows(description)
    if metrics:
        last = run.rows[-1]["epoch"] if run.rows else run.epochs
        best = f"best (epoch {run.best_epoch})" if run.best_epoch is not None else "best"
        console.say()
        console.say(build_table(("metric", best, f"last (epoch {int(last)})", "trivial"), metrics))

    console.say()
    rows = []
    for file in description["files"]:
        name = file["name"] if file["files"] == 1 else f"{file['name']} ({file['files']} files)"
        rows.append((name, format_size(file["bytes"])))
    console.say(build_table(("file", "size"), rows))

    # Each on a line of its own, which a terminal wraps.
    notes = [("warning", text) for text in description["warnings"]]
    if description["error"]:
        notes.append(("error", description["error"]))
    if notes:
        console.say()
    for kind, text in notes:
        console.say(f"{kind}: {text}")
    for text in description["damage"]:
        console.say(text)

    if description["commands"]:
        console.say()
        console.say(format_facts(list(description["commands"].items())))


def _list_facts(run: RunRecord, description: dict[str, Any]) -> list[tuple[str, str]]:
    """Labels, status, times, choices, machine and identity of a run, as far as they are known."""
    steps = description["steps"]
    duration = f"{run.epochs} epochs" if steps is None else f"{run.epochs} epochs, {steps:,} steps"
    seconds = description["train_seconds"]
    parent = run.environment.get("parent") or {}
    choices = [f"{group}={run.choices[group]}" for group in GROUPS if group in run.choices]
    facts = {
        "run": str(run.folder),
        "name": run.name,
        "tags": ", ".join(run.tags),
        "notes": run.notes,
        "status": f"{description['status'].replace('_', ' ')}, {duration}",
        "started": _format_time(description["started"]),
        "ended": _format_time(description["ended"]),
        "trained": None if seconds is None else f"{seconds:.1f} s",
        "size": format_size(description["bytes"]),
        "sweep": description["sweep"],
        "rerun of": parent.get("folder"),
        "choices": " ".join(choices),
        "typed": shlex.join(run.overrides),
        "parameters": None if description["parameters"] is None else format_number(description["parameters"]),
        **run.machine,
    }
    return [(name, value) for name, value in facts.items() if value]


def _format_time(text: str | None) -> str:
    """A time of ISO 8601 without its zone, as a clock on the wall shows it; "" for None."""
    return "" if text is None else text[:19].replace("T", " ")


def _list_metric_rows(description: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """A row for each metric: at the best epoch, at the last one, and of the trivial answer.

    Metrics of the test split are those of the best checkpoint.
    """
    best = description["best_epoch_metrics"]
    last = description["last_epoch_metrics"]
    tests = {key: value for key, value in description["metrics"].items() if key.startswith("test/")}
    rows = []
    for key in {**best, **last, **tests}:
        value = tests.get(key, best.get(key, _ABSENT))
        trivial = description["baseline"].get(key, _ABSENT)
        rows.append((key, _format_cell(value), _format_cell(last.get(key, _ABSENT)), _format_cell(trivial)))
    return rows


def _format_cell(value: Any) -> str:
    if value is _ABSENT:
        return ""
    # null in a file stands for a value that is not finite.
    return "nan" if value is None else format_number(value)
