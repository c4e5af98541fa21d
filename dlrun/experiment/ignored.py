"""What a user asks for that has no effect: it is refused, or said, but never passed over in silence."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrun.config.request import Request
from dlrun.config.unheeded import key_of, note_of
from dlrun.core.errors import listed
from dlrun.data.spec import Splits
from dlrun.experiment.context import RunContext

_SCHEDULES_WITH_RATES = ("OneCycleLR", "CyclicLR")  # optimizer.lr is overwritten by their max_lr


def find_unheeded_data(splits: Splits, data_target: str | None, words: Sequence[str]) -> list[str]:
    """A note for each typed key that the data of an evaluation have no use for."""
    keys = {key_of(word) for word in words}
    reasons = {f"data.{name}": reason for name, reason in splits.unheeded.items()}
    if str(data_target).startswith("dlrun."):  # data of the user's own may draw from the global generators
        reasons["seed"] = "it is for training"
    return [note_of(key, reason) for key, reason in reasons.items() if key in keys]


def find_without_effect(
    parts: RunContext, request: Request, words: Iterable[str], files: Mapping[str, str]
) -> list[str]:
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
    notes = [note_of(key, reason) for key, reason in reasons.items() if key in typed]
    for key, reason in reasons.items():
        if key in files and key not in typed:
            notes.append(note_of(f"{key} in {files[key]}", reason))
    return notes


def _reasons_of_data(parts: RunContext) -> dict[str, str]:
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


def _reasons_of_model(parts: RunContext) -> dict[str, str]:
    """By key, why this model does not read a setting."""
    arguments = parts.settings.model.arguments
    reasons = _reasons_of_init(parts)
    if str(parts.settings.model.target).startswith("dlrun.") and arguments.get("hidden_sizes") == []:
        reasons["model.activation"] = "there are no hidden layers"
        if arguments.get("dropout"):
            reasons["model.dropout"] = "there are no hidden layers"
    return reasons


def _reasons_of_init(parts: RunContext) -> dict[str, str]:
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


def _is_exhaustive(parts: RunContext) -> bool:
    """Whether the optimizer tries every value of the parameters, and looks at no gradient."""
    return str(parts.settings.optimizer.target) == "dlrun.optim.exhaustive.Exhaustive"


def _reasons_of_training(parts: RunContext) -> dict[str, str]:
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


def _reasons_of_groups(parts: RunContext) -> dict[str, str]:
    """By key, which settings of the optimizer every group of parameters has of its own."""
    groups = parts.settings.optimizer_keys.groups or []
    if not groups or len(parts.training.optimizer.param_groups) > len(groups):
        return {}
    shared = set.intersection(*(set(group) for group in groups))
    return {f"optimizer.{key}": "each of optimizer.groups has its own" for key in sorted(shared - {"match"})}


def _reasons_of_length(parts: RunContext) -> dict[str, str]:
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


def _reasons_of_device(parts: RunContext) -> dict[str, str]:
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


def _reasons_of_paths(parts: RunContext, request: Request) -> dict[str, str]:
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
