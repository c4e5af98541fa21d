"""`dlrun rerun RUN [key=value ...]`: the choices and overrides of a run, composed anew into a new run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dlrun.config import compose, request
from dlrun.config.compose import GROUPS
from dlrun.config.overrides import get_key
from dlrun.config.request import Request
from dlrun.config.schema import strip_permission_words
from dlrun.core.errors import RequestError
from dlrun.core.own_code import list_metric_targets
from dlrun.core.shell import quote, suggest_example
from dlrun.core.yaml import flatten
from dlrun.runs.query import find_run
from dlrun.runs.record import CONFIG, ENVIRONMENT, OVERRIDES, RunRecord


def read_requests(words: Sequence[str]) -> list[Request]:
    """Read `dlrun rerun RUN [key=value ...]`; empty where Hydra itself answers, as to --cfg.

    RequestError for a folder that holds no run or a damaged one, and for words of a sweep. Hydra's exceptions pass
    through.
    """
    if not words:
        raise RequestError(f"which run? type {suggest_example('rerun')}")
    run = find_run(words[:1], "rerun")
    changes = list(words[1:])
    flags = compose.parse_flags(changes)
    if flags.multirun or any(get_key(word) == "sweep.points" for word in flags.overrides):
        raise RequestError("dlrun rerun trains one run; type dlrun -m with the run's choices for a sweep")

    # Words of a file are data: they are checked before Hydra sees any of them.
    saved_words = read_overrides(run)
    refuse_other_configs(run, flags.config_dir)
    remaining_words, notes = _drop_replaced(saved_words, flags.overrides)
    refuse_evaluation(remaining_words, run)

    # Flags such as --cfg come first, as they would be typed.
    flag_words = [word for word in changes if word not in flags.overrides]
    requests = request.from_command_line([*flag_words, *remaining_words, *flags.overrides])
    parent = {"folder": str(run.folder), "run_id": str(run.environment.get("run_id", ""))}
    return [
        replace(
            composed,
            parent=parent,
            words=["rerun", *words],
            trusted_modules=_list_trusted_names(composed, flags.overrides),
            notes=[*composed.notes, *notes],
        )
        for composed in requests
    ]


def read_overrides(run: RunRecord) -> list[str]:
    """The overrides that a run was composed of, without those that concern its own process, folder or sweep."""
    # Reading the files notes their damage.
    for name in ("overrides", "config", "environment"):
        getattr(run, name)
    damage = run.find_damage((OVERRIDES, CONFIG, ENVIRONMENT))
    if damage:
        raise RequestError(damage)
    if not (run.folder / OVERRIDES).is_file():
        raise RequestError(f"{run.folder} does not have {OVERRIDES}, so its choices are not known")

    overrides = []
    for word in strip_permission_words(run.overrides):
        key = get_key(word)
        if key != "resume" and not key.startswith(("sweep.", "hydra")):
            overrides.append(word)
    return overrides


def refuse_other_configs(run: RunRecord, config_dir: str | None) -> None:
    """RequestError if the run was composed with config files of the user's own, and this command names none.

    A folder that a loaded run names is not read.
    """
    files = run.environment.get("keys_in_files", {})
    if files and config_dir is None:
        place = str(Path(next(iter(files.values()))).parent.parent)
        raise RequestError(f"{run.folder} was composed with config files in {place}; add --config-dir {quote(place)}")


def _drop_replaced(saved_words: Sequence[str], changes: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of the run that the changes leave in force, and notes on those that a new choice has no key for."""
    new_keys = {get_key(word) for word in changes}
    new_choices = {}
    for word in changes:
        if get_key(word) in GROUPS:
            new_choices[get_key(word)] = word

    remaining_words = []
    notes = []
    for word in saved_words:
        key = get_key(word)
        group = key.partition(".")[0]
        # The new word for this key is the one that counts.
        if key in new_keys:
            continue
        if group in new_choices and key != group and not _has_key(new_choices[group], key):
            notes.append(f"{word} of the run is left out: {new_choices[group]} has no such key")
            continue
        remaining_words.append(word)

    return remaining_words, notes


def _has_key(choice: str, key: str) -> bool:
    """Whether the config with a choice has a key; True if that cannot be told, as with options of the user's own."""
    try:
        return key in flatten(compose.resolve(compose.compose_config([choice])))
    except Exception:
        # Hydra's many exceptions: composing the whole command line explains what is wrong.
        return True


def refuse_evaluation(words: Sequence[str], run: RunRecord) -> None:
    """RequestError for words that Hydra would evaluate, or that name files: what is loaded is data."""
    for word in words:
        key, _, value = word.partition("=")
        names_file = "/" in key or "@" in key or (get_key(word) in GROUPS and "/" in value)
        if "${" in word or names_file or word.startswith("-"):
            raise RequestError(
                f"{run.folder} was composed with {word}, and nothing that is read from a file is evaluated; type it "
                "again behind this command, with the value that it is to have"
            )


def _list_trusted_names(composed: Request, changes: Sequence[str]) -> list[str]:
    """Modules and targets that this command itself names: a loaded run gives itself no permission."""
    names = [str(name) for name in composed.config["trusted_modules"]]
    flat = flatten(composed.config)
    typed = [get_key(word) for word in changes]
    for key in (*typed, *composed.keys_in_files):
        if key == "task.metrics":
            names += [name for name in list_metric_targets(flat.get(key)) if "." in name]
        is_code = key.endswith("_target_") or key == "task.loss"
        if (is_code and flat.get(key) is not None) or request.is_logger_address(key, flat.get(key)):
            names.append(str(flat[key]))

    return names
