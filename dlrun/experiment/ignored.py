"""Settings that have no effect on the run at hand: each that a user sets is noted."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, ReduceLROnPlateau, StepLR

from dlrun.config.callbacks import get_canonical_key
from dlrun.config.overrides import get_key
from dlrun.config.request import Request
from dlrun.config.unheeded import format_note
from dlrun.core.errors import join_names
from dlrun.core.format import format_count
from dlrun.data.batches import MemoryBatches
from dlrun.data.spec import Splits
from dlrun.engine.optim.exhaustive import Exhaustive
from dlrun.engine.optim.schedule import Schedule, count_scheduler_steps
from dlrun.experiment import simple_models
from dlrun.experiment.builder.start_values import find_replaced
from dlrun.experiment.context import RunContext

# Schedules that overwrite optimizer.lr by their max_lr.
_SCHEDULES_WITH_RATES = ("OneCycleLR", "CyclicLR")


def find_ignored_data_keys(splits: Splits, data_target: str | None, words: Sequence[str]) -> list[str]:
    """A note for each typed key that the data of an evaluation do not read."""
    keys = {get_key(word) for word in words}
    reasons = {f"data.{name}": reason for name, reason in splits.unheeded.items()}
    # Data of the user's own may draw from the global generators.
    if str(data_target).startswith("dlrun."):
        reasons["seed"] = "it is for training"
    return [format_note(key, reason) for key, reason in reasons.items() if key in keys]


def find_ignored_keys(
    context: RunContext, request: Request, words: Iterable[str], files: Mapping[str, str]
) -> list[str]:
    """A note for each key that the user sets and that this choice of data, model and device does not read.

    words: overrides of the command line; files: the user's own config file that sets a key, by key
    """
    # Other spellings of a key are as good as the key.
    typed = {get_canonical_key(get_key(word)) for word in words}
    reasons = {
        **_explain_data(context),
        **_explain_model(context),
        **_explain_training(context),
        **_explain_device(context),
        **_explain_paths(context, request),
    }
    notes = [format_note(key, reason) for key, reason in reasons.items() if key in typed]
    files_by_key = {get_canonical_key(key): file for key, file in files.items()}
    for key, reason in reasons.items():
        if key in files_by_key and key not in typed:
            notes.append(format_note(f"{key} in {files_by_key[key]}", reason))
    return notes


def _explain_data(context: RunContext) -> dict[str, str]:
    """By key, the reason why these data do not read it."""
    keys = context.settings.data.keys
    reasons = {f"data.{name}": reason for name, reason in context.splits.unheeded.items()}
    batches = (context.state.train, context.state.val, context.batches.test)
    present = [part for part in batches if part is not None]
    if all(isinstance(part, MemoryBatches) for part in present):
        reasons["data.num_workers"] = "all data are in memory; type data.loader=workers to have them read by processes"
    if keys.loader != "auto":
        reasons["data.memory_share"] = f"data.loader={keys.loader} decides"
    order = context.state.train.order
    if order.rows % order.batch_size == 0:
        reasons["data.drop_last"] = f"{order.rows:,} training rows fill their batches of {order.batch_size:,}"
    if context.state.val is None and context.batches.test is None:
        reasons["data.eval_batch_size"] = "there is no validation or test part"
    return reasons


def _explain_model(context: RunContext) -> dict[str, str]:
    """By key, the reason why this model does not read it."""
    values = context.settings.hyperparameters
    reasons = _explain_init(context)
    # A resumed run has its weights from a checkpoint, and settings without init_from.
    if context.settings.plain["init_from"] is None:
        reasons["init_map"] = "it is for init_from=<run or file>"
    # A model of the user's own may read its settings in another way.
    if context.splits.spec.kind == "series":
        reasons["model.embedding_size"] = "windows of numbers have no embedding"
    if str(context.settings.model.target).startswith("dlrun.") and values.get("model.hidden_sizes") == []:
        reasons["model.activation"] = "there are no hidden layers"
        if values.get("model.dropout"):
            reasons["model.dropout"] = "there are no hidden layers"
    return reasons


def _explain_init(context: RunContext) -> dict[str, str]:
    """By key, the reason why training does not begin with these start values."""
    init = context.settings.model.keys.init or {}
    if _is_exhaustive(context):
        reason = f"optimizer={context.settings.optimizer.choice} begins by trying every value"
        return dict.fromkeys(("model.init", *(f"model.init.{name}" for name in init)), reason)

    source = context.settings.init_from
    replaced = find_replaced(context.state.model, init) if source is not None else []
    reasons = {f"model.init.{name}": f"init_from={source} brings {name}" for name in replaced}
    if replaced:
        reasons["model.init"] = f"init_from={source} brings {join_names(replaced)}"
    return reasons


def _is_exhaustive(context: RunContext) -> bool:
    """Whether the optimizer tries every value of the parameters and reads no gradient."""
    return isinstance(context.state.optimizer, Exhaustive)


def _explain_training(context: RunContext) -> dict[str, str]:
    """By key, the reason why this training does not read it."""
    settings = context.settings
    values = settings.hyperparameters
    reasons: dict[str, str] = {}

    scheduler = settings.scheduler
    schedule_name = str(scheduler.target).rpartition(".")[2]
    if scheduler.target is None:
        reasons["scheduler.interval"] = "there is no schedule; type scheduler=<one of `dlrun ls scheduler`>"
    if schedule_name in _SCHEDULES_WITH_RATES and "scheduler.max_lr" in values:
        reasons["optimizer.lr"] = f"scheduler={scheduler.choice} sets the learning rate by scheduler.max_lr"

    trainable = [parameter for parameter in context.state.model.parameters() if parameter.requires_grad]
    if values.get("optimizer.dampening") and not values.get("optimizer.momentum"):
        reasons["optimizer.dampening"] = "there is no momentum; type optimizer.momentum=0.9 too"
    if values.get("optimizer.refine") == 1:
        reasons["optimizer.finest"] = "there is one grid; type optimizer.refine=10 too"
    if _is_exhaustive(context) and sum(parameter.numel() for parameter in trainable) == 1:
        reasons["optimizer.low2"] = "the model has one parameter"
        reasons["optimizer.high2"] = "the model has one parameter"

    if settings.trainer.early_stopping.patience is None:
        reasons["trainer.early_stopping.min_delta"] = "type trainer.early_stopping.patience=<epochs> too"
    if not settings.expect:
        reasons["strict"] = "nothing is expected; type expect=[...] too"
    if settings.tracking.samples and context.splits.spec.kind != "image":
        reasons["tracking.samples"] = "it is for images"
    elif settings.tracking.samples and not settings.figures:
        reasons["tracking.samples"] = "it is one of the figures; type figures=true too"

    absence = simple_models.explain_absence(context)
    if settings.tracking.simple_models and absence is not None:
        reasons["tracking.simple_models"] = absence

    if _is_exhaustive(context):
        moves_nothing = f"optimizer={settings.optimizer.choice} has no gradient and no learning rate"
        reasons |= dict.fromkeys(("scheduler", "scheduler.warmup_steps", "trainer.grad_clip_norm"), moves_nothing)
    return reasons | _explain_groups(context) | _explain_length(context)


def _explain_groups(context: RunContext) -> dict[str, str]:
    """By key, settings of the optimizer that every group of parameters overrides."""
    groups = context.settings.optimizer.keys.groups or []
    # With more groups in the optimizer, one of them takes the parameters that no entry matches.
    if not groups or len(context.state.optimizer.param_groups) > len(groups):
        return {}

    shared = set.intersection(*(set(group) for group in groups))
    return {f"optimizer.{key}": "each of optimizer.groups has its own" for key in sorted(shared - {"match"})}


def _explain_length(context: RunContext) -> dict[str, str]:
    """By key, settings that would take effect only after the end of this training."""
    limits = context.state.stop_rules
    steps_per_epoch = math.ceil(len(context.state.train) / limits.accumulate_steps)
    # The length of the training, which either limit may set.
    steps = limits.epochs * steps_per_epoch
    if limits.max_steps is not None:
        steps = min(steps, limits.max_steps)
    epochs = math.ceil(steps / steps_per_epoch)

    steps_reason = f"the training has {format_count(steps, 'step')}"
    epochs_reason = f"the training has {format_count(epochs, 'epoch')}"
    settings = context.settings
    reasons: dict[str, str] = {}
    if limits.log_every_steps > steps:
        reasons["trainer.log_every_steps"] = steps_reason
    if settings.trainer.epochs is not None and limits.epochs > epochs:
        reasons["trainer.epochs"] = f"trainer.max_steps={limits.max_steps} ends the training in epoch {epochs}"
    if limits.patience is not None and limits.patience + 1 >= epochs:
        reasons["trainer.early_stopping.patience"] = epochs_reason
    if settings.checkpoint.every_seconds is not None and settings.checkpoint.every_epochs > 1:
        reasons["checkpoint.every_epochs"] = "checkpoint.every_seconds stands in its place"
    elif settings.checkpoint.every_epochs > epochs:
        reasons["checkpoint.every_epochs"] = f"{epochs_reason}, and is saved at its end"
    if settings.checkpoint.every_steps is not None and settings.checkpoint.every_steps > steps:
        reasons["checkpoint.every_steps"] = steps_reason
    if (settings.tracking.evolution_every_epochs or 0) > epochs:
        reasons["tracking.evolution_every_epochs"] = f"{epochs_reason}, of which the first is always shown"

    return reasons | _explain_schedule(context.state.schedule, steps, steps_per_epoch)


def _explain_schedule(schedule: Schedule, steps: int, steps_per_epoch: int) -> dict[str, str]:
    """By key, the reason why the schedule changes nothing in a training of `steps` steps."""
    if schedule.scheduler is None:
        return {}
    if schedule.warmup_steps >= steps:
        return {"scheduler": f"scheduler.warmup_steps={schedule.warmup_steps} takes the whole training"}

    delay = _find_delay(schedule.scheduler)
    if delay is None:
        return {}
    key, moves = delay
    # A scheduler moves once a step or epoch, and only after the warm-up.
    length = count_scheduler_steps(steps, steps_per_epoch, schedule.interval, schedule.warmup_steps)
    if moves < length:
        return {}
    count = format_count(length, schedule.interval)
    return {"scheduler": f"it changes nothing in {count}; type a smaller {key}"}


def _find_delay(scheduler: LRScheduler) -> tuple[str, int] | None:
    """The setting of a torch scheduler that delays its first change, and by how many moves; None without one."""
    if isinstance(scheduler, StepLR):
        return "scheduler.step_size", scheduler.step_size
    if isinstance(scheduler, MultiStepLR) and scheduler.milestones:
        return "scheduler.milestones", min(scheduler.milestones)
    if isinstance(scheduler, ReduceLROnPlateau):
        # The first epoch is always better than none; the rate falls after one more than the patience.
        return "scheduler.patience", scheduler.patience + 2
    return None


def _explain_device(context: RunContext) -> dict[str, str]:
    """By key, the reason why this device does not read it."""
    device = context.runtime.device.type
    reasons: dict[str, str] = {}
    if device != "cuda":
        reasons["device.cuda_graph"] = f"it is for cuda, and this is {device}"
    if context.runtime.ranks.world_size == 1:
        reasons["device.strategy"] = "there is one process only"
        reasons["device.timeout_seconds"] = "there is one process only"
    if context.splits.spec.kind != "image":
        reasons["device.channels_last"] = "it is for images"
    return reasons


def _explain_paths(context: RunContext, request: Request) -> dict[str, str]:
    """By key, the reason why a named folder is not used."""
    paths = context.settings.paths
    reasons: dict[str, str] = {}
    if request.continues:
        reasons["paths.outputs"] = "the run continues in its folder"
    elif request.folder is not None and request.sweep is None:
        reasons["paths.outputs"] = f"the run lies in {request.folder}"
    elif request.sweep is not None and request.config["sweep"]["dir"] is not None:
        reasons["paths.outputs"] = f"the sweep lies in {request.config['sweep']['dir']}"

    # Downloads and files of a data set lie below its root; data of the user's own may name the folder anywhere.
    values = context.settings.hyperparameters
    if not any(key.startswith("data.") and _is_below(value, paths.data) for key, value in values.items()):
        reasons["paths.data"] = f"data={context.settings.data.choice} reads nothing from there"
    return reasons


def _is_below(value: Any, folder: str) -> bool:
    """Whether a setting names `folder` or a path below it."""
    return isinstance(value, str) and (value == folder or Path(folder) in Path(value).parents)
