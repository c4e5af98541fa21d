"""Which saved run and checkpoint a command resumes, and which ones it refuses."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dlrun.config import schema
from dlrun.config.request import Request, from_saved
from dlrun.core import lock
from dlrun.core.errors import CheckpointError, DamageError, DlrunError, RequestError
from dlrun.core.inside import refuse_outside
from dlrun.core.shell import is_called_from_python, quote, suggest_example, suggest_init_from, suggest_repeat
from dlrun.core.terminal import escape_line, write_error, write_out
from dlrun.core.yaml import flatten
from dlrun.engine import device
from dlrun.engine.optim.schedule import LENGTH_ARGUMENTS
from dlrun.experiment import sources
from dlrun.experiment.context import RunContext
from dlrun.runs import folder as run_folder
from dlrun.runs.newest_checkpoint import NewestCheckpoint
from dlrun.runs.record import CONFIG, ENVIRONMENT, RESULT, RunRecord, read_choices, read_config

# Keys, and beginnings of keys, that a resumed run may set anew.
MAY_CHANGE = (
    "trainer.epochs", "trainer.max_steps", "trainer.early_stopping.patience", "trainer.log_every_steps",
    "trainer.profile",
    "checkpoint.every_", "checkpoint.keep", "checkpoint.format", "device.", "paths.", "tracking.", "figures",
    "trust", "trusted_modules", "resume", "probes", "expect", "strict", "preflight", "sweep.",
    "data.num_workers", "data.root", "run.", "logger",
)  # fmt: skip
FINISHED = ("completed", "early_stopped")

# Errors of reading a config that is missing or damaged.
_UNREADABLE = (OSError, DamageError, KeyError, TypeError, AttributeError)

# Keys that a checkpoint must hold to be evaluated, and to be resumed.
KEYS_TO_EVALUATE = ("config", "choices", "spec", "model")
KEYS_TO_RESUME = (
    *KEYS_TO_EVALUATE, "run_id", "epoch", "step", "metrics", "rng", "optimizer", "scheduler", "scaler", "progress",
    "early_stopping", "totals",
)  # fmt: skip


# The checkpoint of the run to resume: the request is made from it first, the train state later.
_opened: NewestCheckpoint | None = None


def find_checkpoint_file(place: str) -> Path:
    """Return the file that RUN_OR_CHECKPOINT names: best.pt of a run folder, else last.pt, or the file itself."""
    path = Path(place)
    if path.is_file():
        # Links inside a run folder must not lead out of it.
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


def find_newest_state(folder: Path) -> dict[str, Any] | None:
    """Load the newest valid checkpoint of a run, with all that resuming needs; None where it has saved none.

    UnreadableError, with the reason of each, where there are checkpoints and none of them can be opened.
    """
    refuse_outside(folder)
    newest = NewestCheckpoint.load(folder, KEYS_TO_RESUME)
    return None if newest is None else newest.state


def _open_newest(folder: Path) -> NewestCheckpoint | None:
    """Load the newest valid checkpoint of a run for `_take_newest`; None where it has saved none."""
    global _opened
    refuse_outside(folder)
    _opened = NewestCheckpoint.load(folder, KEYS_TO_RESUME)
    return _opened


def _take_newest(folder: Path) -> NewestCheckpoint:
    """The checkpoint that `_open_newest` has loaded, or if its files have changed since, the newest of now.

    A large checkpoint is read, hashed and unpickled once only. The folder must be locked. CheckpointError where there
    is none any more.
    """
    global _opened
    newest = _opened
    _opened = None
    if newest is None or newest.folder != folder or not newest.is_current():
        newest = NewestCheckpoint.load(folder, KEYS_TO_RESUME)
    if newest is None:
        raise CheckpointError(f"{folder / 'checkpoints'} holds no checkpoint; start the run again from the beginning")
    return newest


def _explain_missing_checkpoint(folder: Path) -> str:
    is_run = (folder / ENVIRONMENT).is_file()
    if not is_run and any(folder.glob(f"*/{RESULT}")):
        return f"{folder} holds runs but no sweep.jsonl, so it cannot be resumed; type dlrun compare {quote(folder)}"
    if not is_run:
        return f"{folder} is not a run folder with checkpoints; the runs are in outputs/<date>/"

    command = str(RunRecord(folder).environment.get("command"))
    start = "start it again:"
    if "hydra.run.dir=" in command:
        verb = "call" if is_called_from_python() else "type"
        start = f"delete {quote(folder)} and {verb}"
    repetition = suggest_repeat(command)
    return f"{folder} ended before its first checkpoint, so there is nothing to resume from; {start} {repetition}"


def resume_requests(words: list[str]) -> list[Request]:
    """Read `dlrun resume RUN [key=value ...]`; empty where the run has nothing left to do."""
    if not words or not words[0]:
        raise RequestError(f"which run? type {suggest_example('resume')}")
    folder = Path(words[0])
    newest = _open_newest(folder)
    if newest is None:
        raise RequestError(_explain_missing_checkpoint(folder))
    state = newest.state
    request = from_saved(state["config"], state["choices"], words[1:], folder)
    config = request.config

    refuse_changes(state["config"], config, folder)
    refuse_shorter(state, config, folder)
    refuse_other_curve(state, config, folder)

    status = read_result(folder).get("status")
    if status in FINISHED:
        limit = find_reached_limit(state, config)
        if limit is not None:
            _print_finished(folder, str(status), limit)
            return []

    # Keep the number of threads, unless the user types another one.
    if not any(word.startswith("device.num_threads=") for word in words):
        config["device"]["num_threads"] = choose_threads(state, config)
    resumed = replace(request, continues=True, words=["resume", *words], processes=state.get("processes", 1))
    return [resumed]


def find_interrupted(requests: list[Request]) -> list[Request]:
    """Apply `resume=auto`: continue the run of the same config, or start the request where there is none.

    Empty, after a message, where that run is finished. UnreadableError where it has checkpoints and none can be opened.
    """
    if not requests:
        return requests
    request = requests[0]
    if request.sweep is not None:
        raise RequestError("resume=auto is for one run; a sweep is resumed by its folder: type sweep.dir=<folder>")

    folder = find_run_of_same_config(request)
    if folder is None:
        return requests

    status = read_result(folder).get("status")
    if status in FINISHED:
        _print_finished(folder, str(status), "trainer.epochs")
        return []

    newest = _open_newest(folder)
    if newest is not None:
        return [continue_run(request, folder, newest.state)]
    # There is no checkpoint: remove what the first attempt has left, and start anew.
    run_folder.clear_for_restart(folder)
    return requests


def continue_run(request: Request, folder: Path, state: dict[str, Any]) -> Request:
    """Make the request continue the run in `folder`, which has the same config, with as many threads."""
    request.config["device"]["num_threads"] = choose_threads(state, request.config)
    # A run of an older dlrun keeps its number of epochs (see _compute_config_hashes), so that its schedule
    # stays as long.
    request.config["trainer"]["epochs"] = state["config"]["trainer"]["epochs"]
    return replace(request, folder=folder, continues=True, processes=state.get("processes", 1))


def _print_finished(folder: Path, status: str, key: str) -> None:
    """Print that a run is finished, and how to make it longer by `key`."""
    ended = status.replace("_", " ")
    command = RunRecord(folder).advise_resume(f"{key}=...")
    write_out(escape_line(f"{folder} is {ended}; to train longer type {command}"))


def find_run_of_same_config(request: Request) -> Path | None:
    """Find the run that `resume=auto` means: in the requested folder, or the newest below paths.outputs.

    Below paths.outputs only runs count that are finished or have saved a checkpoint. Runs that another process
    is writing are left alone. None where there is no such run.
    """
    hashes = _compute_config_hashes(request.config)
    if request.folder is not None:
        is_running = lock.is_locked(request.folder)
        return request.folder if not is_running and _has_config(request.folder, hashes) else None

    outputs = Path(request.config["paths"]["outputs"])
    # Folders are named by date and time, so the newest come first.
    folders = sorted((path.parent for path in outputs.glob("*/*/environment.json")), reverse=True)
    for folder in folders:
        if lock.is_locked(folder):
            continue
        # Reading the result alone spares reading the config, which takes milliseconds.
        known_hash = read_result(folder).get("config_hash")
        if known_hash is not None and known_hash not in hashes:
            continue
        try:
            is_same = _has_config(folder, hashes)
            has_progress = read_result(folder).get("status") in FINISHED or bool(run_folder.list_saved_files(folder))
        except DlrunError as error:
            write_error(escape_line(f"note: whether {folder} is this run cannot be told: {error}"))
            continue
        if is_same and has_progress:
            return folder
    return None


def read_result(folder: Path) -> dict[str, Any]:
    """Read result.json; empty where it is missing or damaged, as resuming a run writes it again."""
    return RunRecord(folder).result


def _compute_config_hashes(config: dict[str, Any]) -> set[str]:
    """The config_hash of a run, and the one that an older dlrun gave to it.

    In an older dlrun the default number of epochs also ended a training that set trainer.max_steps alone.
    """
    hashes = {schema.hash_config(config)}
    if config["trainer"]["epochs"] is None:
        trainer = {**config["trainer"], "epochs": schema.TrainerConfig().epochs}
        hashes.add(schema.hash_config({**config, "trainer": trainer}))
    return hashes


def _has_config(folder: Path, hashes: set[str]) -> bool:
    """Whether a run has one of these hashes, by its result, else by its config, else by its newest checkpoint.

    UnreadableError where not even a checkpoint can be opened.
    """
    if read_result(folder).get("config_hash") in hashes:
        return True
    try:
        return schema.hash_config(read_config(folder / CONFIG)) in hashes
    except _UNREADABLE:
        state = find_newest_state(folder)
    return state is not None and schema.hash_config(state["config"]) in hashes


def find_reached_limit(state: dict[str, Any], config: dict[str, Any]) -> str | None:
    """The key of the limit that a saved state has reached; None where there is more to train."""
    trainer = config["trainer"]
    if trainer["epochs"] is not None and state["epoch"] >= trainer["epochs"]:
        return "trainer.epochs"
    if trainer["max_steps"] is not None and state["step"] >= trainer["max_steps"]:
        return "trainer.max_steps"

    # A stop that a callback asked for holds until a longer training is requested.
    if state.get("progress", {}).get("is_stopped") and not _is_longer(state, config):
        return "trainer.epochs"

    patience = trainer["early_stopping"]["patience"]
    epochs_waited = state["early_stopping"].get("epochs_without_improvement", 0)
    if patience is not None and epochs_waited >= patience:
        return "trainer.early_stopping.patience"
    return None


def _is_longer(state: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether a config has more epochs or steps than that of a saved state."""
    before = state["config"]["trainer"]
    return any(before[key] != config["trainer"][key] for key in ("epochs", "max_steps"))


def refuse_changes(saved_config: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    """Raise RequestError for other data, another model, optimizer or schedule: that would be another run."""
    before = flatten(saved_config)
    now = flatten(config)
    changes = []
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key) and not key.startswith(MAY_CHANGE):
            changes.append(f"{key} ({before.get(key)} -> {now.get(key)})")
    if changes:
        raise RequestError(
            f"a resumed run stays the same run, and this would change {', '.join(changes)}; "
            f"leave that out, or start a new run from its weights: {suggest_init_from(folder)}"
        )


def refuse_shorter(state: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    """Raise RequestError where the run would end earlier than it was to end."""
    before = flatten(state["config"]["trainer"])
    now = flatten(config["trainer"])
    progress = {"epochs": f" ({state['epoch']} are done)", "max_steps": f" ({state['step']} are done)"}

    for key in ("epochs", "max_steps", "early_stopping.patience"):
        # None is no limit.
        old_limit = math.inf if before.get(key) is None else before[key]
        new_limit = math.inf if now.get(key) is None else now[key]
        if new_limit < old_limit:
            old = "null, no limit," if before.get(key) is None else str(before[key])
            raise RequestError(
                f"trainer.{key}={now[key]} is below the {old} of this run{progress.get(key, '')}, and a resumed run "
                f"only gets longer; leave that out, or start a new run from its weights: {suggest_init_from(folder)}"
            )


def refuse_other_curve(state: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    """Raise RequestError for a longer training under a schedule that spans the whole of it.

    The learning rates of the steps made so far would all have been others.
    """
    before = state["config"]
    changed = [key for key in ("epochs", "max_steps") if before["trainer"][key] != config["trainer"][key]]
    # Lengths left null, which are those of the training.
    spans = [key for key in LENGTH_ARGUMENTS if key in before["scheduler"] and before["scheduler"][key] is None]
    if changed and spans:
        words = [f"trainer.{key}={config['trainer'][key]}" for key in changed]
        raise RequestError(
            f"scheduler={state['choices'].get('scheduler')} spans the whole training, so with {' '.join(words)} every "
            f"step until now would have had another learning rate; start a new run: "
            f"{suggest_init_from(folder, *words)} "
            f"(a run that is to be made longer later needs scheduler.{spans[0]}=<its length> from its start)"
        )


def choose_threads(state: dict[str, Any], config: dict[str, Any]) -> int | None:
    """The number of CPU threads a run was trained with, which decides how sums are rounded.

    The config's number where the checkpoint names none, or more than this machine has cores.
    """
    threads = state.get("threads")
    if isinstance(threads, int) and threads <= device.count_cores():
        return threads
    configured: int | None = config["device"].get("num_threads")
    return configured


def restore_checkpoint(request: Request, context: RunContext) -> dict[str, Any] | None:
    """Load the newest valid checkpoint on rank 0 and broadcast it; None where the run is new.

    Damaged checkpoints that were skipped, and differences in the environment, are noted.
    """
    ranks = context.runtime.ranks
    # Only rank 0 reads the files; the others receive its state.
    state = None
    if request.continues and request.folder is not None and not ranks.rank:
        newest = _take_newest(request.folder)
        state = newest.state
        for reason in newest.skipped:
            context.notes.append(f"{reason}; resuming from step {state['step']} instead")
        context.notes.extend(find_environment_changes(state, describe_process(context)))

    state = ranks.broadcast(state)
    if state is not None:
        context.state.load_state_dict(state, context.runtime.device)
        # A stop that a callback asked for does not hold for a longer training.
        if _is_longer(state, request.config):
            context.state.progress.is_stopped = False
    return state


def describe_process(context: RunContext) -> dict[str, Any]:
    """Entries of a checkpoint about the process that writes it, which a resumed run compares with its own."""
    description = {
        "spec": context.splits.spec.to_dict(),
        "rows": context.state.train.rows,
        "threads": device.count_threads(),
        "processes": context.runtime.batches_per_step,
        # A plain string: torch's own class would be foreign code in a checkpoint.
        "torch": str(torch.__version__),
    }
    hashes = sources.hash_sources(context)
    if hashes:
        description["sources"] = hashes
    return description


def find_environment_changes(state: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A sentence for each difference that may change the last bits of a resumed run; RequestError for other data.

    now: the entries that this process would write about itself into a checkpoint.
    """
    for key, name in (("spec", "the data's description"), ("rows", "the number of training rows")):
        if key in state and not _agrees(state[key], now[key]):
            raise RequestError(f"{name} is {now[key]}, and was {state[key]} when the run began; bring those data back")

    changes = []
    for key, name in (("threads", "CPU threads"), ("torch", "torch")):
        if key in state and state[key] != now[key]:
            changes.append(
                f"until now {name} {state[key]}, from here on {now[key]}: results may differ in the last bits"
            )
    return changes + sources.find_changes(state.get("sources", {}), now.get("sources", {}))


def _agrees(before: Any, now: Any) -> bool:
    """Whether every recorded entry is the same now. An older dlrun recorded fewer."""
    if isinstance(before, dict) and isinstance(now, dict):
        return all(key in now and now[key] == value for key, value in before.items())
    return bool(before == now)


def load_run_config(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read config and choices of the run folder that holds the full model at `path`."""
    hydra = path.resolve().parent.parent / ".hydra"
    if not (hydra / "config.yaml").is_file():
        raise CheckpointError(f"{path} does not lie in a run folder, so there is nothing that says which data it takes")
    try:
        return read_config(hydra / "config.yaml"), read_choices(hydra / "hydra.yaml")
    except (OSError, DamageError) as error:
        raise CheckpointError(f"{hydra} is damaged, so nothing says which data {path} takes ({error})") from error
