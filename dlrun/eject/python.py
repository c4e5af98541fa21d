"""`format=python`: the training of a run as one plain file of PyTorch, which ends in the same weights."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dlrun.config import listing
from dlrun.config.schema import CONFIG_DIR
from dlrun.core.errors import RequestError
from dlrun.core.files import write_atomically
from dlrun.core.own_code import is_own_name
from dlrun.eject import source
from dlrun.eject.data import DATA_TEMPLATES, describe_data
from dlrun.eject.nets import NET_TEMPLATES, describe_net, list_start_values
from dlrun.eject.optimizers import describe_optimizer, describe_scheduler
from dlrun.eject.refusal import cannot, complete_arguments, find_template, refuse
from dlrun.eject.source import Code
from dlrun.eject.training_run import TrainingRun
from dlrun.engine.losses import ALIASES
from dlrun.inference.saved_model import SavedModel

FILE = "train.py"

# torch's class of each of dlrun's losses that scripts are written for.
_TORCH_LOSSES = {
    name: alias
    for alias, name in ALIASES.items()
    if alias.endswith("Loss") and name not in ("poisson_nll", "soft_margin")
}

# What the function evaluate() of a script measures.
_METRICS = {
    "regression": ("loss", "mse", "mae", "r2"),
    "binary": ("loss", "accuracy", "precision", "recall", "f1"),
    "multiclass": ("loss", "accuracy", "macro_f1"),
    "tagging": ("loss", "accuracy", "exact_match"),
}


def write(saved: SavedModel, folder: Path) -> list[Path]:
    """Write train.py into `folder`. RequestError for a run that is not finished, or that cannot be written so."""
    refuse(saved)
    path = folder / FILE
    write_atomically(path, write_script(saved).encode())
    return [path]


def write_script(saved: SavedModel) -> str:
    """The text of train.py; RequestError for a run that cannot be written so."""
    settings = saved.settings
    # What has no template is refused before the data are read and the model is built.
    loss = _describe_loss(saved)
    data_template = find_template(settings.data, DATA_TEMPLATES)
    net_template = find_template(settings.model, NET_TEMPLATES)

    arguments = complete_arguments(settings.data)
    data = describe_data(saved.spec, str(settings.data.target), data_template, arguments)
    # Published sets, which have no such fraction, come with a test part.
    is_published = data_template in ("images", "names")
    run = TrainingRun(saved, has_test=arguments.get("test_fraction", is_published) > 0)
    model = describe_net(run, net_template, complete_arguments(settings.model))
    optimizer = describe_optimizer(run)
    scheduler = describe_scheduler(run)
    _refuse_training(run, has_slopes=loss["has_slope"] or model["is_by_hand"])

    values: dict[str, Any] = {
        "run": run,
        "data": data,
        "model": model,
        "loss": loss,
        "optimizer": optimizer,
        "scheduler": scheduler,
    }
    values["start_values"] = list_start_values(run)
    values["batch"] = partial(name_batch, run)
    values["length"] = _measure_length(run)
    values["title"] = _write_title(saved.request.choices)
    values["torch_version"] = str(saved.state.get("torch", torch.__version__))
    return source.render("train.py.j2", values, _collect_constants(run, data, optimizer))


def _describe_loss(saved: SavedModel) -> dict[str, Any]:
    name = str(saved.objective.loss_name)
    if saved.objective.own_loss is not None:
        reason = ", as that is code of yours" if is_own_name(saved.settings.task.loss) else ""
        raise cannot(f"task.loss={name}{reason}")
    if name not in _TORCH_LOSSES and not name.startswith("scratch_") and name != "perceptron":
        raise cannot(f"task.loss={name}")
    for key in saved.objective.loss_args:
        # These are tensors in torch's losses.
        if key in ("weight", "pos_weight"):
            raise cannot(f"task.loss_args.{key}")

    loss: dict[str, Any] = {"name": name, "has_slope": name.startswith("scratch_")}
    arguments = [f"{key}={value!r}" for key, value in saved.objective.loss_args.items()]
    if saved.objective.reduction == "sum":
        arguments.append('reduction="sum"')
    loss["arguments"] = Code(", ".join(arguments))
    loss["torch_class"] = Code(_TORCH_LOSSES[name]) if name in _TORCH_LOSSES else None
    return loss


def _measure_length(run: TrainingRun) -> dict[str, Any]:
    """How many epochs begin, whether the last of them ends before its time, and how seldom epochs are printed."""
    # Steps of an epoch.
    steps = -(-run.batches // run.trainer.accumulate_steps)
    epochs = run.trainer.limit_epochs(steps)
    is_limited = False
    max_steps = run.trainer.max_steps
    if max_steps is not None and max_steps < epochs * steps:
        epochs = -(-max_steps // steps)
        is_limited = max_steps % steps != 0

    # Between ten and a hundred lines in all.
    print_every = 10 ** (len(str(epochs)) - 2) if epochs > 60 else None
    return {"epochs": epochs, "is_limited": is_limited, "print_every": print_every}


def _refuse_training(run: TrainingRun, has_slopes: bool) -> None:
    """RequestError for settings that the loop is not written for; has_slopes: derivatives by hand."""
    if has_slopes and (run.autocast or run.trainer.accumulate_steps > 1):
        setting = f"accumulate_steps={run.trainer.accumulate_steps}"
        if run.autocast:
            setting = f"device.precision={run.settings.device.precision}"
        raise RequestError(
            f"format=python cannot write {setting} with derivatives by hand; eject a run with device.precision=fp32 "
            "and trainer.accumulate_steps=1, or with a net and a loss of torch.nn"
        )

    # Nothing else of a training part is measured in each epoch.
    part, _, metric = run.monitor.partition("/")
    metrics = _METRICS[run.spec.task] if part == "val" else ("loss",)
    if run.has_parts and metric not in metrics:
        raise cannot(f"checkpoint.monitor={run.monitor}")


def name_batch(run: TrainingRun, rows: str = "") -> dict[str, Code]:
    """How the script names a batch, its size and its loss.

    rows: the name of the batch's rows, where they are picked from the columns in place.
    """
    names = ("codes", "lengths", "y") if run.spec.kind == "tokens" else ("x", "y")
    columns = [f"{name}[{source.write_name(rows)}]" if rows else name for name in names]
    inputs = ", ".join(columns[:-1])
    targets = columns[-1]

    size = f"len({rows or 'y'})"
    # A mean over all numbers of the targets, of which a row may have several.
    if run.spec.task == "tagging" or (run.spec.task == "regression" and run.spec.output_size > 1):
        size = f"{targets}.numel()"

    loss = f"criterion(net({inputs}), {targets})"
    # Sequences of tags are taken apart into tags.
    if run.spec.task == "tagging":
        loss = f"criterion(net({inputs}).flatten(0, 1), {targets}.flatten())"

    batch = {"columns": ", ".join(columns), "inputs": inputs, "targets": targets, "size": size, "loss": loss}
    return {name: Code(code) for name, code in batch.items()}


def _write_title(choices: Mapping[str, str]) -> str:
    """The first line of the lesson, or the names of model and data."""
    # A choice of an old or a foreign run may be no lesson of today.
    lessons = dict(listing.list_options("lesson", CONFIG_DIR))
    title = lessons.get(choices.get("lesson", "")) or f"{choices.get('model')} on {choices.get('data')}"
    return title[:1].upper() + title[1:]


def _collect_constants(run: TrainingRun, data: Mapping[str, Any], optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """Whatever the templates may name in capitals, in the order of the script, which takes what it needs."""
    constants = {"seed": run.settings.seed, **optimizer, **(optimizer["grid"] or {})}
    for keys in (run.trainer, run.trainer.early_stopping, run.settings.scheduler.keys, run.keys):
        constants |= vars(keys)
    constants |= data
    constants["threads"] = int(run.saved.state["threads"])

    # Where null stood in the config, the script has the number that was used.
    constants["epochs"] = _measure_length(run)["epochs"]
    constants["eval_batch_size"] = run.eval_batch_size
    return {name.upper(): value for name, value in constants.items()}
