"""A saved model opened again: its weights, settings, task and data, for what is done after training."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from dlrun import build, checkpoint, config, runtime, saved
from dlrun.config import Settings
from dlrun.data.batches import Batches
from dlrun.data.spec import DataSpec, Splits
from dlrun.errors import MisfitError, RequestError
from dlrun.request import Request, from_saved
from dlrun.runtime import Runtime
from dlrun.task import Task


@dataclass
class SavedModel:
    """A checkpoint, or a pickled full model, with all that belongs to it.

    The data are read and the model is built when they are first asked for; both stay until the object goes.
    """

    path: Path  # the file
    request: Request  # the saved config with this command line's overrides, the choices, the trusted modules
    settings: Settings  # the same config, checked
    state: dict[str, Any]  # the checkpoint as it was read; empty for a full model
    process: Runtime  # device and precision
    full: nn.Module | None = None  # the pickled model, where the file holds one

    @property
    def folder(self) -> Path | None:
        """The run folder that the file lies in; null where it lies elsewhere."""
        folder = self.path.absolute().parent.parent
        return folder if (folder / ".hydra").is_dir() else None

    @property
    def spec(self) -> DataSpec:
        """What the model was trained for. A full model does not say: there it is read off the data."""
        return DataSpec.from_dict(self.state["spec"]) if self.state else self.splits.spec

    @cached_property
    def task(self) -> Task:
        """Loss, predictions and metrics."""
        return build.task(self.settings, self.spec)

    @cached_property
    def splits(self) -> Splits:
        """The data of the run, or those that the command line names; MisfitError when they look otherwise."""
        splits = build.data(self.settings, self.request.trusted_modules)
        if self.state:
            refuse_other_data(self.spec, splits.spec, self.request)
        return splits

    @cached_property
    def model(self) -> nn.Module:
        """The model with its saved weights, on the device; no data are needed but for a full model."""
        if self.full is not None:
            return self.full.to(self.process.device)
        model = build.model(self.settings, self.spec, self.process, self.request.trusted_modules)
        load_weights(model, self.state["model"], self.path)
        return model

    @property
    def average(self) -> dict[str, Any] | None:
        """The weights that trainer.ema_decay averaged, for `load_weights`; null where there are none."""
        found: dict[str, Any] | None = self.state["ema"]["model"] if "ema" in self.state else None
        return found

    def held_out(self) -> tuple[str, Batches]:
        """Name and batches of the test part; of the validation or the training part where there is no test."""
        parts = build.batches(self.settings, self.splits, self.model, self.process)
        named = zip(("train", "val", "test"), parts, strict=True)
        return [(name, batches) for name, batches in named if batches is not None][-1]


@contextlib.contextmanager
def opened(place: str, overrides: Sequence[str] = ()) -> Iterator[SavedModel]:
    """The best checkpoint of a run folder, or the file named; the process is set up for it until this ends.

    overrides: key=value words of this command line, on top of the saved config; `trust=true` opens a pickled full
    model, `trusted_modules=[...]` lets the run use modules of the user's. RequestError or CheckpointError for what
    is no run, a damaged file, and keys that do not exist; Hydra's exceptions pass through.
    """
    path = saved.checkpoint_file(place)
    full = checkpoint.is_full_model(path)
    state = {} if full else checkpoint.load(path)
    if not full:
        saved.refuse_incomplete(state, saved.TO_EVALUATE, path)
    plain, choices = saved.load_run_config(path) if full else (state["config"], state["choices"])
    request = from_saved(plain, choices, list(overrides), None)
    settings = config.read(request.config, request.choices)
    model = checkpoint.load_full_model(path, settings.rest.trust) if full else None
    with runtime.session(settings.rest.device, settings.rest.seed) as process:
        yield SavedModel(path, request, settings, state, process, model)


def run_named(words: Sequence[str], command: str) -> str:
    """The first word behind a command, which names a run; RequestError where there is none."""
    if not words or not words[0] or ("=" in words[0] and not Path(words[0]).exists()):
        raise RequestError(f"which run? type dlrun {command} outputs/<date>/<run>, or a checkpoint file of one")
    return words[0]


def load_weights(model: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Put saved weights into a model; RequestError when they are another model's."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise RequestError(f"{path} holds the weights of another model: {said}") from error


def refuse_other_data(trained: DataSpec, given: DataSpec, request: Request) -> None:
    """Other data must look the same to the model."""
    for name in ("kind", "task", "input_shape", "output_size", "class_names"):
        was, now = getattr(trained, name), getattr(given, name)
        if was != now:
            data = request.choices.get("data")
            raise MisfitError(f"the model was trained for {name} {was}, and data={data} has {now}")
