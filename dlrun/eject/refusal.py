"""What one plain file cannot express, each told in a sentence."""

import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from dlrun.config import schema
from dlrun.config.settings import Component
from dlrun.core.errors import RequestError
from dlrun.inference.saved_model import SavedModel
from dlrun.runs.record import RunRecord

# Of each group of keys those that the script takes account of, and those that change nothing in it.
_HEEDED_KEYS = {
    schema.DataKeys: (
        "batch_size eval_batch_size val_fraction shuffle drop_last train_rows limit_batches "
        "loader num_workers memory_share"
    ),
    schema.ModelKeys: "init",
    schema.OptimizerKeys: "groups",
    schema.SchedulerKeys: "interval warmup_steps",
    schema.TaskConfig: "loss loss_args reduction",
    schema.TrainerConfig: (
        "epochs max_steps accumulate_steps grad_clip_norm log_every_steps profile progress early_stopping"
    ),
    schema.EarlyStoppingConfig: "patience min_delta",
    schema.DeviceConfig: (
        "name index precision tf32 cuda_graph channels_last deterministic strategy timeout_seconds num_threads"
    ),
}
_REASONS = {
    "ema_decay": "averaged weights take more than a plain loop",
    "sampler": "its script takes each row once an epoch",
    "freeze": "frozen parts stay in evaluation mode, which a plain loop does not do",
    "compile": "compiled kernels round otherwise than the plain ones",
}


def cannot(what: str) -> RequestError:
    """The error for something that has no template."""
    return RequestError(f"format=python cannot write {what}; format=onnx and format=safetensors take the model itself")


def refuse(saved: SavedModel) -> None:
    """RequestError for a file that does not tell of a finished training, and for settings that have no template."""
    if not saved.state:
        raise RequestError(f"{saved.path} is a model alone, and format=python writes its training; name the run folder")

    # Words about the device and the folders change nothing in the script.
    overrides = saved.request.overrides
    words = " ".join(word for word in overrides if not word.startswith(("device.", "paths.")))
    if words and schema.hash_config(saved.settings.plain) != schema.hash_config(saved.state["config"]):
        raise RequestError(f"format=python writes the run as it was trained; leave out {words}, and change the file")

    _refuse_unfinished(saved)
    if saved.state.get("processes", 1) > 1:
        raise cannot(f"a training on {saved.state['processes']} processes")
    if saved.settings.init_from:
        raise cannot(f"init_from={saved.settings.init_from}, as that run's weights are in a file of their own")

    if saved.spec.task == "multilabel":
        raise cannot("a training for several labels a row")
    if saved.spec.outputs:
        raise cannot("a training of several outputs")
    if saved.spec.reconstructs:
        raise cannot("the training of an autoencoder")

    for name in saved.settings.callbacks:
        raise cannot(f"callbacks.{name}, which may change anything")

    for name, keys in _collect_keys(saved).items():
        for field in dataclasses.fields(keys):
            value = getattr(keys, field.name)
            if field.name not in _HEEDED_KEYS[type(keys)].split() and value != field.default:
                reason = f", as {_REASONS[field.name]}" if field.name in _REASONS else ""
                raise cannot(f"{name}.{field.name}={value}{reason}")


def _refuse_unfinished(saved: SavedModel) -> None:
    # A checkpoint alone does not tell.
    if saved.folder is None:
        return

    run = RunRecord(saved.folder)
    if run.damage:
        raise RequestError(run.damage[0])

    status = str(run.result.get("status", "interrupted"))
    if status not in ("completed", "early_stopped"):
        advice = "start it again" if status == "failed" else f"type {run.advise_resume()}"
        raise RequestError(f"{saved.folder} is {status}, so it has no final weights yet; {advice}")


def _collect_keys(saved: SavedModel) -> dict[str, Any]:
    settings = saved.settings
    components: list[Component[Any]] = [settings.data, settings.model, settings.optimizer, settings.scheduler]
    keys: dict[str, Any] = {component.group: component.keys for component in components}
    keys["task"] = settings.task
    keys["trainer"] = settings.trainer
    keys["trainer.early_stopping"] = settings.trainer.early_stopping
    # The device as it was in the run: an export opens the model on the CPU.
    keys["device"] = schema.DeviceConfig(**saved.state["config"]["device"])
    return keys


def find_template(component: Component[Any], templates: Mapping[str, tuple[str, str]]) -> str:
    """The template of a target, from a table of templates and the arguments that each knows.

    RequestError for a target without a template, and for an argument that it does not know.
    """
    if component.target is None or component.target not in templates:
        raise cannot(f"{component.group}={component.choice} ({component.target})")

    # An argument that a later dlrun adds is refused until the template heeds it.
    template, arguments = templates[component.target]
    for name, value in component.arguments.items():
        if name not in arguments.split():
            raise cannot(f"{component.group}.{name}={value}")
    return template


def complete_arguments(component: Component[Any]) -> dict[str, Any]:
    """The arguments of one of dlrun's own targets, those included that the config leaves at their defaults."""
    module, _, name = str(component.target).rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {**defaults, **component.arguments}
