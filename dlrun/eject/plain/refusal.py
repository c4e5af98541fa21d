"""What one plain file cannot express, each said in a sentence."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from dlrun.config import schema
from dlrun.config.settings import Component
from dlrun.core.errors import RequestError
from dlrun.inference.saved_model import SavedModel
from dlrun.runs.record import RunRecord

_WRITTEN = {  # of each group of keys those that the file takes account of, and those that change nothing in it
    schema.DataKeys: (
        "batch_size eval_batch_size val_fraction shuffle drop_last train_rows limit_batches "
        "loader num_workers memory_share"
    ),
    schema.ModelKeys: "init",
    schema.OptimizerKeys: "groups",
    schema.SchedulerKeys: "interval warmup_steps",
    schema.TaskConfig: "loss reduction",
    schema.TrainerConfig: "epochs max_steps accumulate_steps grad_clip_norm log_every_steps profile early_stopping",
    schema.EarlyStoppingConfig: "patience min_delta",
    schema.DeviceConfig: "name index precision tf32 cuda_graph channels_last deterministic timeout_seconds num_threads",
}
_WHY = {
    "ema_decay": "averaged weights take more than a plain loop",
    "compile": "compiled kernels round otherwise than the plain ones",
}


def cannot(what: str) -> RequestError:
    """The error for something that has no template."""
    return RequestError(f"format=python cannot write {what}; format=onnx and format=safetensors take the model itself")


def refuse(saved: SavedModel) -> None:
    """RequestError for a file that does not tell of a finished training, and for settings that have no template."""
    if not saved.state:
        raise RequestError(f"{saved.path} is a model alone, and format=python writes its training; name the run folder")
    plain, asked = saved.settings.plain, saved.state["config"]
    if schema.hash_config(plain) != schema.hash_config(asked):
        words = " ".join(word for word in saved.request.overrides if not word.startswith(("device.", "paths.")))
        raise RequestError(f"format=python writes the run as it was trained; leave out {words}, and change the file")
    _refuse_unfinished(saved)
    if saved.state.get("processes", 1) > 1:
        raise cannot(f"a training on {saved.state['processes']} processes")
    if saved.settings.init_from:
        raise cannot(f"init_from={saved.settings.init_from}, as that run's weights are in a file of their own")
    for keys, where in _groups(saved):
        for field in dataclasses.fields(keys):
            value = getattr(keys, field.name)
            if field.name not in _WRITTEN[type(keys)].split() and value != field.default:
                why = f", as {_WHY[field.name]}" if field.name in _WHY else ""
                raise cannot(f"{where}.{field.name}={value}{why}")


def _refuse_unfinished(saved: SavedModel) -> None:
    if saved.folder is None:
        return  # a checkpoint alone does not say
    run = RunRecord(saved.folder)
    status = str(run.result.get("status", "interrupted"))
    if run.damage:
        raise RequestError(run.damage[0])
    if status not in ("completed", "early_stopped"):
        raise RequestError(
            f"{saved.folder} is {status}, so there are no final weights to come to; "
            + ("start it again" if status == "failed" else f"type {run.advise_resume()}")
        )


def _groups(saved: SavedModel) -> list[tuple[Any, str]]:
    """The groups of keys, with what each stands under. Those of the device are as they were in the run."""
    settings = saved.settings
    device = schema.DeviceConfig(**saved.state["config"]["device"])
    return [
        (settings.data.keys, "data"),
        (settings.model.keys, "model"),
        (settings.optimizer.keys, "optimizer"),
        (settings.scheduler.keys, "scheduler"),
        (settings.task, "task"),
        (settings.trainer, "trainer"),
        (settings.trainer.early_stopping, "trainer.early_stopping"),
        (device, "device"),
    ]


def only_known(block: Component[Any], templates: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The template of a block's target; RequestError where there is none, or where it does not know an argument."""
    if block.target is None or block.target not in templates:
        raise cannot(f"{block.group}={block.choice} ({block.target})")
    template = templates[block.target]
    known = list(inspect.signature(template).parameters)[1:]
    for name, value in block.arguments.items():
        if name not in known:
            raise cannot(f"{block.group}.{name}={value}")
    return template
