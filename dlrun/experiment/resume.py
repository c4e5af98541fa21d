"""Saved runs and checkpoints: finding them, going on with them, taking their weights."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dlrun.config import schema
from dlrun.config.request import Request, from_saved
from dlrun.core import lock
from dlrun.core.errors import CheckpointError, DamageError, DlrunError, RequestError
from dlrun.core.inside import refuse_outside
from dlrun.core.shell import called_from_python, example_command, quote, repeat_command, start_from
from dlrun.core.terminal import escape_line, write_error, write_out
from dlrun.core.yaml import flatten
from dlrun.engine import device
from dlrun.engine.optim.schedule import OF_THE_WHOLE
from dlrun.experiment import sources
from dlrun.runs import checkpoint
from dlrun.runs import folder as run_folder
from dlrun.runs.record import RESULT, RunRecord, read_choices, read_config

MAY_CHANGE = (
    "trainer.epochs", "trainer.max_steps", "trainer.early_stopping.patience", "trainer.log_every_steps",
    "trainer.profile",
    "checkpoint.every_", "checkpoint.keep", "checkpoint.format", "device.", "paths.", "tracking.", "figures",
    "trust", "trusted_modules", "resume", "probes", "expect", "strict", "preflight", "sweep.",
    "data.num_workers", "data.root",
)  # fmt: skip
FINISHED = ("completed", "early_stopped")
_UNREADABLE = (OSError, DamageError, KeyError, TypeError, AttributeError)  # a config that is missing or damaged
TO_EVALUATE = ("config", "choices", "spec", "model")
TO_GO_ON = (
    *TO_EVALUATE, "run_id", "epoch", "step", "metrics", "rng", "optimizer", "scheduler", "scaler", "progress",
    "early_stopping", "totals",
)  # fmt: skip


def find_checkpoint_file(place: str) -> Path:
    """The file that RUN_OR_CHECKPOINT names: best.pt of a run folder, or the file itself."""
    path = Path(place)
    if path.is_file():
        run = path.absolute().parent.parent
        if (run / ".hydra").is_dir():
            refuse_outside(run)
        return path
    refuse_outside(path)
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    for name in ("best.pt", "last.pt"):
        if (folder / name).exists():
            return folder / name
    if not path.exists():
        raise RequestError(f"there is no run or checkpoint {place}; the runs are in outputs/<date>/")
    raise RequestError(f"{place} holds no checkpoint: it is not a run folder, or the run ended before its first save")


def load_newest_state(folder: Path) -> dict[str, Any]:
    """The newest checkpoint of a run that is whole; RequestError says how to begin where there is none."""
    state = find_newest_state(folder)
    if state is None:
        raise RequestError(_how_to_begin(folder))
    return state


def find_newest_state(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run, with all that is needed to go on; None where it has saved none.

    UnreadableError, with the reason of each, where there are checkpoints and none of them can be opened.
    """
    refuse_outside(folder)
    if not run_folder.saved_files(folder):
        return None
    _, state, _ = checkpoint.newest_whole(folder / "checkpoints", TO_GO_ON)
    return state


def _how_to_begin(folder: Path) -> str:
    description = folder / "environment.json"
    if not description.is_file() and any(folder.glob(f"*/{RESULT}")):
        return (
            f"{folder} holds runs but no sweep.jsonl, so it cannot be gone on with; type dlrun compare {quote(folder)}"
        )
    if not description.is_file():
        return f"{folder} is not a run folder with checkpoints; the runs are in outputs/<date>/"
    command = str(RunRecord(folder).environment.get("command"))
    start = "start it again:"
    if "hydra.run.dir=" in command:
        start = f"delete {quote(folder)} and {'call' if called_from_python() else 'type'}"
    again = repeat_command(command)
    return f"{folder} ended before its first checkpoint, so there is nothing to go on from; {start} {again}"


def refuse_incomplete(state: dict[str, Any], keys: Sequence[str], path: Path) -> None:
    """CheckpointError for a checkpoint without some of `keys`."""
    lacking = checkpoint.lacking_keys(state, keys, path)
    if lacking:
        raise CheckpointError(lacking)


def resume_requests(words: list[str]) -> list[Request]:
    """`dlrun resume RUN [key=value ...]`: empty when the run has nothing left to do."""
    if not words or not words[0]:
        raise RequestError(f"which run? type {example_command('resume')}")
    folder = Path(words[0])
    state = load_newest_state(folder)
    request = from_saved(state["config"], state["choices"], words[1:], folder)
    plain = request.config
    refuse_changes(state["config"], plain, folder)
    refuse_shorter(state, plain, folder)
    refuse_other_curve(state, plain, folder)
    status = read_result(folder).get("status")
    if status in FINISHED:
        key = find_reached_limit(state, plain)
        if key is not None:
            print_finished(folder, str(status), key)
            return []
    if not any(word.startswith("device.num_threads=") for word in words):
        plain["device"]["num_threads"] = choose_threads(state, plain)
    return [replace(request, going_on=True, words=["resume", *words], processes=state.get("processes", 1))]


def find_interrupted(requests: list[Request]) -> list[Request]:
    """`resume=auto`: the run of the same config that goes on, or the request as it is where there is none yet.

    Empty, after saying so, where that run is finished. UnreadableError where it has checkpoints and none can be opened.
    """
    if not requests:
        return requests
    request = requests[0]
    if request.sweep is not None:
        raise RequestError("resume=auto is for one run; a sweep goes on by its folder: type sweep.dir=<folder>")

    folder = find_run_of_same_config(request)
    if folder is None:
        return requests

    status = read_result(folder).get("status")
    if status in FINISHED:
        print_finished(folder, str(status), "trainer.epochs")
        return []

    state = find_newest_state(folder)
    if state is not None:
        return [continue_run(request, folder, state)]
    run_folder.begin_again(folder)
    return requests


def print_finished(folder: Path, status: str, key: str) -> None:
    """Say that a run is finished, and how it is made longer."""
    ended = status.replace("_", " ")
    write_out(escape_line(f"{folder} is {ended}; to train longer type {RunRecord(folder).how_to_resume(f'{key}=...')}"))


def continue_run(request: Request, folder: Path, state: dict[str, Any]) -> Request:
    """The request as the continuation of the run in `folder`, which was composed alike, with as many threads."""
    request.config["device"]["num_threads"] = choose_threads(state, request.config)
    # A run of an older dlrun ends where it was to end, see hashes_of; so its schedule stays as long.
    request.config["trainer"]["epochs"] = state["config"]["trainer"]["epochs"]
    return replace(request, folder=folder, going_on=True, processes=state.get("processes", 1))


def find_run_of_same_config(request: Request) -> Path | None:
    """The run that `resume=auto` is about: in the folder asked for, or the newest below paths.outputs.

    None where there is no such run. Of those below paths.outputs it is one that is finished or has saved something.
    A run that another process is at is left alone.
    """
    wanted = compute_config_hashes(request.config)
    if request.folder is not None:
        taken = lock.is_held(request.folder)
        return request.folder if not taken and _is_of_config(request.folder, wanted) else None

    outputs = Path(request.config["paths"]["outputs"])
    folders = sorted((path.parent for path in outputs.glob("*/*/environment.json")), reverse=True)
    for folder in folders:
        if lock.is_held(folder):
            continue
        known = read_result(folder).get("config_hash")
        if known is not None and known not in wanted:  # spares reading its config, which takes milliseconds
            continue
        try:
            same = _is_of_config(folder, wanted)
            begun = read_result(folder).get("status") in FINISHED or bool(run_folder.saved_files(folder))
        except DlrunError as error:
            write_error(escape_line(f"note: whether {folder} is this run cannot be told: {error}"))
            continue
        if same and begun:
            return folder
    return None


def read_result(folder: Path) -> dict[str, Any]:
    """result.json; empty where it is missing or cannot be read: the end of a run can be made again."""
    return RunRecord(folder).result


def compute_config_hashes(plain: dict[str, Any]) -> set[str]:
    """The config_hash of a run, and that which an older dlrun gave it.

    There the epochs by default ended a training as well where only trainer.max_steps was typed.
    """
    hashes = {schema.config_hash(plain)}
    if plain["trainer"]["epochs"] is None:
        trainer = {**plain["trainer"], "epochs": schema.TrainerConfig().epochs}
        hashes.add(schema.config_hash({**plain, "trainer": trainer}))
    return hashes


def _is_of_config(folder: Path, wanted: set[str]) -> bool:
    """Whether a run has one of these config_hashes, by what it began with or what it came to.

    Its newest checkpoint is asked where neither can be read: UnreadableError where that cannot be opened either.
    """
    if read_result(folder).get("config_hash") in wanted:
        return True
    try:
        return schema.config_hash(read_config(folder / ".hydra" / "config.yaml")) in wanted
    except _UNREADABLE:
        state = find_newest_state(folder)
    return state is not None and schema.config_hash(state["config"]) in wanted


def find_reached_limit(state: dict[str, Any], plain: dict[str, Any]) -> str | None:
    """The key whose limit a saved state has reached; null where there is more to do."""
    trainer, patience = plain["trainer"], plain["trainer"]["early_stopping"]["patience"]
    if trainer["epochs"] is not None and state["epoch"] >= trainer["epochs"]:
        return "trainer.epochs"
    if trainer["max_steps"] is not None and state["step"] >= trainer["max_steps"]:
        return "trainer.max_steps"
    waited = state["early_stopping"].get("epochs_without_improvement", 0)
    return "trainer.early_stopping.patience" if patience is not None and waited >= patience else None


def refuse_changes(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Going on under another data, model, optimizer or schedule would be another run."""
    a, b = flatten(before), flatten(now)
    changed = [k for k in sorted({*a, *b}) if a.get(k) != b.get(k) and not k.startswith(MAY_CHANGE)]
    if changed:
        listed = ", ".join(f"{k} ({a.get(k)} -> {b.get(k)})" for k in changed)
        raise RequestError(
            f"a resumed run stays the same run, and this would change {listed}; "
            f"leave that out, or start a new run from its weights: {start_from(folder)}"
        )


def refuse_shorter(state: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """RequestError when the run is to end earlier than it was asked to."""
    a, b = flatten(state["config"]["trainer"]), flatten(now["trainer"])
    made = {"epochs": f" ({state['epoch']} are done)", "max_steps": f" ({state['step']} are done)"}
    for key in ("epochs", "max_steps", "early_stopping.patience"):
        least, value = (math.inf if x.get(key) is None else x[key] for x in (a, b))
        if value < least:
            was, done = "null, no limit," if a.get(key) is None else str(a[key]), made.get(key, "")
            raise RequestError(
                f"trainer.{key}={b[key]} is below the {was} of this run{done}, and a resumed run only gets longer; "
                f"leave that out, or start a new run from its weights: {start_from(folder)}"
            )


def refuse_other_curve(state: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """RequestError for a longer training whose learning rates would all have been others."""
    before = state["config"]
    longer = [k for k in ("epochs", "max_steps") if before["trainer"][k] != now["trainer"][k]]
    spans = [k for k in OF_THE_WHOLE if k in before["scheduler"] and before["scheduler"][k] is None]
    if longer and spans:
        longer_words = [f"trainer.{k}={now['trainer'][k]}" for k in longer]
        asked = " ".join(longer_words)
        raise RequestError(
            f"scheduler={state['choices'].get('scheduler')} spans the whole training, so with {asked} every step until "
            f"now would have had another learning rate; start a new run: {start_from(folder, *longer_words)} "
            f"(a run that is to be made longer later needs scheduler.{spans[0]}=<its length> from its start)"
        )


def choose_threads(state: dict[str, Any], plain: dict[str, Any]) -> int | None:
    """The CPU threads that a run was trained with, as sums round by their number; the config's on a smaller machine."""
    threads, configured = state.get("threads"), plain["device"].get("num_threads")
    return threads if isinstance(threads, int) and threads <= device.cores() else configured


def find_environment_changes(state: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What may make a resumed run differ in the last bits, a sentence each; RequestError for other data.

    now: what this process would write about itself into a checkpoint.
    """
    for key, name in (("spec", "the data's description"), ("rows", "the number of training rows")):
        if key in state and not _agree(state[key], now[key]):
            raise RequestError(f"{name} is {now[key]}, and was {state[key]} when the run began; bring those data back")
    said = []
    for key, name in (("threads", "CPU threads"), ("torch", "torch")):
        if key in state and state[key] != now[key]:
            said.append(f"until now {name} {state[key]}, from here on {now[key]}: results may differ in the last bits")
    return said + sources.find_changes(state.get("sources", {}), now.get("sources", {}))


def _agree(before: Any, now: Any) -> bool:
    """Whether all that was said before is said now; an older dlrun said less."""
    if isinstance(before, dict) and isinstance(now, dict):
        return all(key in now and now[key] == value for key, value in before.items())
    return bool(before == now)


def load_run_config(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Config and choices from the run folder that a full model lies in."""
    hidden = path.resolve().parent.parent / ".hydra"
    if not (hidden / "config.yaml").is_file():
        raise CheckpointError(f"{path} does not lie in a run folder, so there is nothing that says which data it takes")
    try:
        return read_config(hidden / "config.yaml"), read_choices(hidden / "hydra.yaml")
    except (OSError, DamageError) as error:
        raise CheckpointError(f"{hidden} is damaged, so nothing says which data {path} takes ({error})") from error
