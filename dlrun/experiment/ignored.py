"""What a user asks for that has no effect: it is refused, or said, but never passed over in silence."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.config.schema import PERMISSIONS
from dlrun.core.errors import RequestError, listed
from dlrun.core.shell import called_from_python
from dlrun.experiment.context import Parts

if TYPE_CHECKING:
    from dlrun.config.files import ConfigFile
    from dlrun.config.request import Request
    from dlrun.data.spec import Splits

# Hydra's own keys that dlrun does not heed, and what to type instead. Others are heeded, or do not exist.
_HYDRA = {
    "hydra.job.chdir": "a run stays in the working directory; leave it out",
    "hydra.job.name": "a run is called after its model and data; type hydra.run.dir=<folder> to choose its folder",
    "hydra.job.id": "leave it out",
    "hydra.job.num": "leave it out",
    "hydra.job.config_name": "type --config-name <file>",
    "hydra.job.override_dirname": "leave it out",
    "hydra.job.env_set": "type it in front of the command, as in NAME=value dlrun ...",
    "hydra.job.env_copy": "leave it out",
    "hydra.env": "leave it out",
    "hydra.output": "leave it out",
    "hydra.output_subdir": "the config always lies in .hydra of the run's folder; leave it out",
    "hydra.overrides": "type key=value words",
    "hydra.runtime": "leave it out",
    "hydra.verbose": "type -v for tracebacks",
    "hydra.job_logging": "run.log in the run's folder has what was said; leave it out",
    "hydra.hydra_logging": "run.log in the run's folder has what was said; leave it out",
    "hydra.callbacks": "leave it out",
    "hydra.launcher": "type sweep.jobs=<runs at a time>",
    "hydra.sweeper": "the values of a sweep are typed as key=a,b or in sweep.points",
    "hydra.help": "dlrun --help shows dlrun's own",
    "hydra.hydra_help": "dlrun --help shows dlrun's own",
}  # fmt: skip

_TRAINING = "it is for training"

# Keys, with all below them, that a command over a saved run does not heed, and why.
_OF_TRAINING = dict.fromkeys(
    ("trainer", "optimizer", "scheduler", "checkpoint", "tracking", "sweep", "expect", "strict", "probes",
     "preflight", "init_from", "resume", "model.init", "data.shuffle", "data.drop_last", "device.cuda_graph",
     "device.compile", "device.timeout_seconds"),
    _TRAINING,
)  # fmt: skip
_OF_SAVED_RUNS = {**_OF_TRAINING, "paths.outputs": "what is written lies in the run's folder"}
_WITHOUT_METRICS = {"figures": "it draws none", "task": "it measures nothing"}
_UNHEEDED = {
    "dlrun eval": {**_OF_SAVED_RUNS, "task.reduction": "the metrics are means over the rows"},
    "dlrun predict": {**_OF_SAVED_RUNS, **_WITHOUT_METRICS},
    "dlrun export": {
        **_OF_SAVED_RUNS,
        "figures": "it draws none",
        "device.name": "an export is made on the CPU",
        "device.index": "an export is made on the CPU",
    },
    "dlrun.load": {**_OF_SAVED_RUNS, **_WITHOUT_METRICS},
}
_DATA_OF_PREDICT = ("target", "delimiter", "batch_size", "eval_batch_size", "root", "_target_")
_SCHEDULES_WITH_RATES = ("OneCycleLR", "CyclicLR")  # optimizer.lr is overwritten by their max_lr


def refuse_hydra(words: Sequence[str]) -> None:
    """RequestError for a key of Hydra's own that is typed and that dlrun does not heed."""
    for word in words:
        instead = _instead_of(key_of(word))
        if instead:
            raise RequestError(f"{word} has no effect in dlrun: {instead}")


def refuse_hydra_in_files(files: "Sequence[ConfigFile]") -> None:
    """RequestError for such a key in a config file of the user's own."""
    for file in files:
        for key in (*sorted(file.keys), *sorted(file.groups)):
            instead = _instead_of(key)
            if instead:
                raise RequestError(f"{key} in {file.path} has no effect in dlrun: {instead}")


def _instead_of(key: str) -> str:
    """What to do instead of setting a key of Hydra's; "" for one that dlrun heeds."""
    dotted = key.replace("/", ".").partition("@")[0]
    for unheeded, instead in _HYDRA.items():
        if dotted == unheeded or dotted.startswith(f"{unheeded}."):
            return instead
    return ""


def refuse_other_folder(words: Sequence[str], is_sweep: bool, has_points: bool) -> None:
    """RequestError for the folder of a sweep that is typed for a single run, and the other way round.

    has_points: whether sweep.points names the runs, which lie in a folder of either kind.
    """
    for word in words:
        key = key_of(word)
        if key.startswith("hydra.sweep.") and not is_sweep and not has_points:
            raise of_a_sweep(word)
        if key == "hydra.run.dir" and is_sweep:
            folder = word.partition("=")[2]
            raise RequestError(f"{word} is for a single run; type sweep.dir={folder} for the folder of a sweep")


def of_a_sweep(word: str, resumes: bool = False) -> RequestError:
    """The refusal of a word that only sweeps heed; resumes: whether the command goes on with a run."""
    if resumes or called_from_python():
        return RequestError(f"{word} is for a sweep, and this is one run; leave it out")
    return RequestError(f"{word} is for a sweep; add -m, or leave it out")


def refuse_sweep_settings(words: Sequence[str]) -> None:
    """RequestError for a setting of sweeps on the command line of a single run, which would not heed it."""
    resumes = list(words[:1]) == ["resume"] or any(word.startswith("resume=") for word in words)
    for word in words:
        if word.startswith("sweep.") and not word.startswith("sweep.points="):
            raise of_a_sweep(word, resumes)


def refuse_unheeded(words: Sequence[str], command: str) -> None:
    """RequestError for a key that is typed for a saved run and that the command does not heed.

    command: "dlrun eval", "dlrun predict", "dlrun export" or "dlrun.load".
    """
    for word in words:
        key = key_of(word)
        if key == "device":
            key = "device.name"
        reasons = dict(_UNHEEDED[command])
        if command == "dlrun predict" and key.startswith("data.") and key.split(".")[1] not in _DATA_OF_PREDICT:
            reasons[key] = "of the data only the inputs that are named are read"
        for unheeded, reason in reasons.items():
            if key != unheeded and not key.startswith(f"{unheeded}."):
                continue
            if reason == _TRAINING:
                raise RequestError(f"{word} is for training, and has no effect on {command}; leave it out")
            raise RequestError(f"{word} has no effect on {command}: {reason}; leave it out")


def find_unheeded_data(splits: "Splits", data_target: str | None, words: Sequence[str]) -> list[str]:
    """A note for each typed key that the data of an evaluation have no use for."""
    keys = {key_of(word) for word in words}
    reasons = {f"data.{name}": reason for name, reason in splits.unheeded.items()}
    if str(data_target).startswith("dlrun."):  # data of the user's own may draw from the global generators
        reasons["seed"] = "it is for training"
    return [_note(key, reason) for key, reason in reasons.items() if key in keys]


def find_without_effect(parts: Parts, request: "Request", words: Iterable[str], files: Mapping[str, str]) -> list[str]:
    """A note for each key that the user sets and that this choice of data, model and device does not read.

    words: those of the command lines; files: the config files of the user's own, by the key that they set.
    """
    typed = {key_of(word) for word in words}
    reasons = {
        **_reasons_of_data(parts),
        **_reasons_of_model(parts),
        **_reasons_of_training(parts),
        **_reasons_of_device(parts),
        **_reasons_of_paths(parts, request),
    }
    notes = [_note(key, reason) for key, reason in reasons.items() if key in typed]
    for key, reason in reasons.items():
        if key in files and key not in typed:
            notes.append(_note(f"{key} in {files[key]}", reason))
    return notes


def _note(key: str, reason: str) -> str:
    return f"{key} has no effect here: {reason}"


def find_repeated(words: Sequence[str]) -> list[str]:
    """A note for each word of one command line whose key a later word names with another value."""
    last = {key_of(word): word for word in words if "=" in word}
    notes = []
    for word in dict.fromkeys(words):
        key = key_of(word)
        later = last.get(key, word)
        # A target of the user's own replaces the option, with all its settings.
        own = last.get(f"{key}._target_")
        if "=" not in word or key in PERMISSIONS:
            continue
        if own is not None:
            notes.append(_note(word, f"{own} stands in its place"))
        elif later != word:
            notes.append(_note(word, f"{later} comes after it"))
    return notes


def _reasons_of_data(parts: Parts) -> dict[str, str]:
    """By key, why these data do not read a setting."""
    from dlrun.data.batches import MemoryBatches

    keys = parts.settings.data_keys
    reasons = {f"data.{name}": reason for name, reason in parts.splits.unheeded.items()}
    batches = (parts.training.train, parts.training.val, parts.test)
    if all(isinstance(part, MemoryBatches) for part in batches if part is not None):
        reasons["data.num_workers"] = "all data are in memory; type data.loader=workers to have them read by processes"
    if keys.loader != "auto":
        reasons["data.memory_share"] = f"data.loader={keys.loader} decides"
    if parts.training.val is None and parts.test is None:
        reasons["data.eval_batch_size"] = "there is no validation or test part"
    return reasons


def _reasons_of_model(parts: Parts) -> dict[str, str]:
    """By key, why this model does not read a setting."""
    arguments = parts.settings.model.arguments
    reasons = _reasons_of_init(parts)
    if str(parts.settings.model.target).startswith("dlrun.") and arguments.get("hidden_sizes") == []:
        reasons["model.activation"] = "there are no hidden layers"
        if arguments.get("dropout"):
            reasons["model.dropout"] = "there are no hidden layers"
    return reasons


def _reasons_of_init(parts: Parts) -> dict[str, str]:
    """By key, why start values are not those that the training begins with."""
    init = parts.settings.model_keys.init or {}
    if _is_exhaustive(parts):
        reason = f"optimizer={parts.settings.optimizer.choice} begins by trying every value"
        return dict.fromkeys(("model.init", *(f"model.init.{name}" for name in init)), reason)

    from dlrun.experiment.build.start_values import find_replaced

    place = parts.settings.rest.init_from
    replaced = find_replaced(parts.model, init) if place is not None else []
    reasons = {f"model.init.{name}": f"init_from={place} brings {name}" for name in replaced}
    if replaced:
        reasons["model.init"] = f"init_from={place} brings {listed(replaced)}"
    return reasons


def _is_exhaustive(parts: Parts) -> bool:
    """Whether the optimizer tries every value of the parameters, and looks at no gradient."""
    return str(parts.settings.optimizer.target) == "dlrun.optim.exhaustive.Exhaustive"


def _reasons_of_training(parts: Parts) -> dict[str, str]:
    """By key, why this training does not read a setting."""
    settings = parts.settings
    rest, optimizer, scheduler = settings.rest, settings.optimizer.arguments, settings.scheduler
    schedule_name = str(scheduler.target).rpartition(".")[2]
    parameters = [p for p in parts.model.parameters() if p.requires_grad]

    reasons: dict[str, str] = {}
    if scheduler.target is None:
        reasons["scheduler.interval"] = "there is no schedule; type scheduler=<one of `dlrun ls scheduler`>"
    if schedule_name in _SCHEDULES_WITH_RATES and scheduler.arguments.get("max_lr") is not None:
        reasons["optimizer.lr"] = f"scheduler={scheduler.choice} sets the learning rate by scheduler.max_lr"
    if optimizer.get("dampening") and not optimizer.get("momentum"):
        reasons["optimizer.dampening"] = "there is no momentum; type optimizer.momentum=0.9 too"
    if "refine" in optimizer and optimizer["refine"] == 1:
        reasons["optimizer.finest"] = "there is one grid; type optimizer.refine=10 too"
    if "low2" in optimizer and sum(p.numel() for p in parameters) == 1:
        reasons["optimizer.low2"] = "the model has one parameter"
        reasons["optimizer.high2"] = "the model has one parameter"
    if rest.trainer.early_stopping.patience is None:
        reasons["trainer.early_stopping.min_delta"] = "type trainer.early_stopping.patience=<epochs> too"
    if not rest.expect:
        reasons["strict"] = "nothing is expected; type expect=[...] too"
    if rest.tracking.samples and parts.splits.spec.kind != "image":
        reasons["tracking.samples"] = "it is for images"
    if _is_exhaustive(parts):
        moves_nothing = f"optimizer={settings.optimizer.choice} has no gradient and no learning rate"
        reasons |= dict.fromkeys(("scheduler", "scheduler.warmup_steps", "trainer.grad_clip_norm"), moves_nothing)
    return reasons | _reasons_of_groups(parts) | _reasons_of_length(parts)


def _reasons_of_groups(parts: Parts) -> dict[str, str]:
    """By key, which settings of the optimizer every group of parameters has of its own."""
    groups = parts.settings.optimizer_keys.groups or []
    if not groups or len(parts.training.optimizer.param_groups) > len(groups):
        return {}
    shared = set.intersection(*(set(group) for group in groups))
    return {f"optimizer.{key}": "each of optimizer.groups has its own" for key in sorted(shared - {"match"})}


def _reasons_of_length(parts: Parts) -> dict[str, str]:
    """By key, what this training ends before."""
    from dlrun.engine.optim.schedule import moves_after_warmup

    limits = parts.training.limits
    steps_per_epoch = math.ceil(len(parts.training.train) / limits.accumulate_steps)
    steps = limits.epochs * steps_per_epoch
    if limits.max_steps is not None:
        steps = min(steps, limits.max_steps)
    epochs = math.ceil(steps / steps_per_epoch)

    rest = parts.settings.rest
    in_steps = f"the training has {_count(steps, 'step')}"
    in_epochs = f"the training has {_count(epochs, 'epoch')}"
    reasons: dict[str, str] = {}
    if limits.log_every_steps > steps:
        reasons["trainer.log_every_steps"] = in_steps
    if rest.trainer.epochs is not None and limits.epochs > epochs:
        reasons["trainer.epochs"] = f"trainer.max_steps={limits.max_steps} ends the training in epoch {epochs}"
    if limits.patience is not None and limits.patience + 1 >= epochs:
        reasons["trainer.early_stopping.patience"] = in_epochs
    if rest.checkpoint.every_epochs > epochs:
        reasons["checkpoint.every_epochs"] = f"{in_epochs}, and is saved at its end"
    if rest.checkpoint.every_steps is not None and rest.checkpoint.every_steps > steps:
        reasons["checkpoint.every_steps"] = in_steps
    if (rest.tracking.evolution_every_epochs or 0) > epochs:
        reasons["tracking.evolution_every_epochs"] = f"{in_epochs}, of which the first is always shown"

    scheduler, keys = parts.settings.scheduler, parts.settings.scheduler_keys
    length = moves_after_warmup(steps, steps_per_epoch, keys.interval, keys.warmup_steps)
    if scheduler.target is not None and keys.warmup_steps >= steps:
        reasons["scheduler"] = f"scheduler.warmup_steps={keys.warmup_steps} takes the whole training"
    elif scheduler.target is not None:
        first = _first_change(scheduler.arguments, str(scheduler.target))
        if first is not None and first[1] >= length:
            reasons["scheduler"] = f"it changes nothing in {_count(length, keys.interval)}; type a smaller {first[0]}"
    return reasons


def _first_change(arguments: Mapping[str, Any], target: str) -> tuple[str, int] | None:
    """Which setting of a scheduler of torch's puts its first change off, and for how many moves; None where none."""
    match target.rpartition(".")[2], arguments:
        case "StepLR", {"step_size": int(size)}:
            return "scheduler.step_size", size
        case "MultiStepLR", {"milestones": [int(), *_] as milestones}:
            return "scheduler.milestones", min(milestones)
        case "ReduceLROnPlateau", {"patience": int(patience)}:
            # The first epoch is always better than none; the rate falls after one more than the patience.
            return "scheduler.patience", patience + 2
    return None


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _reasons_of_device(parts: Parts) -> dict[str, str]:
    """By key, why this device does not read a setting."""
    device = parts.runtime.device.type
    reasons: dict[str, str] = {}
    if device != "cuda":
        reasons["device.cuda_graph"] = f"it is for cuda, and this is {device}"
    if parts.runtime.ranks.count == 1:
        reasons["device.timeout_seconds"] = "there is one process only"
    if parts.splits.spec.kind != "image":
        reasons["device.channels_last"] = "it is for images"
    return reasons


def _reasons_of_paths(parts: Parts, request: "Request") -> dict[str, str]:
    """By key, why a folder that was named is not used."""
    paths = parts.settings.rest.paths
    reasons: dict[str, str] = {}
    if request.going_on:
        reasons["paths.outputs"] = "the run goes on in its folder"
    elif request.folder is not None and request.sweep is None:
        reasons["paths.outputs"] = f"the run lies in {request.folder}"
    elif request.sweep is not None and request.config["sweep"]["dir"] is not None:
        reasons["paths.outputs"] = f"the sweep lies in {request.config['sweep']['dir']}"

    # Downloads and files of a data set lie below its root; data of the user's own may name the folder anywhere.
    if not any(_is_below(value, paths.data) for value in parts.settings.data.arguments.values()):
        reasons["paths.data"] = f"data={parts.settings.data.choice} reads nothing from there"
    return reasons


def _is_below(value: Any, folder: str) -> bool:
    """Whether a setting names a place in a folder."""
    return isinstance(value, str) and (value == folder or Path(folder) in Path(value).parents)


def key_of(word: str) -> str:
    """The key that a word of a command line is about."""
    return word.partition("=")[0].lstrip("+~")
