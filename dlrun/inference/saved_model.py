"""A saved model opened again: its weights, settings, task and data, for what is done after training."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dlrun.config import schema
from dlrun.config.request import Request, from_saved
from dlrun.config.schema import Settings
from dlrun.core import user_code
from dlrun.core.errors import RequestError
from dlrun.core.shell import example_command
from dlrun.core.terminal import write_error
from dlrun.data.batches import Batches
from dlrun.data.datasets import Part, count_rows, get_origin, join_parts, take
from dlrun.data.files import tensors
from dlrun.data.origin import Origin
from dlrun.data.spec import DataSpec, Splits
from dlrun.engine import device
from dlrun.engine.device import Runtime
from dlrun.engine.made_buffers import BuiltBuffers
from dlrun.engine.objective import Objective
from dlrun.engine.state import MADE_BUFFERS
from dlrun.experiment import resume
from dlrun.experiment.build import build
from dlrun.inference.alignment import align_splits
from dlrun.models.pretrained import weights_follow
from dlrun.runs import checkpoint


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
    full_model: nn.Module | None = None  # the pickled model, where the file holds one

    @property
    def folder(self) -> Path | None:
        """The run folder that the file lies in; null where it lies elsewhere."""
        folder = self.path.absolute().parent.parent
        return folder if (folder / ".hydra").is_dir() else None

    @property
    def spec(self) -> DataSpec:
        """What the model was trained for. A full model does not say: there it is read off the data."""
        return DataSpec.from_dict(self.state["spec"]) if self.state else self.splits.spec

    @property
    def class_names(self) -> list[str]:
        """What each class is called; its number where the data give no names."""
        return [str(name) for name in self.spec.class_names] or [str(i) for i in range(max(self.spec.output_size, 2))]

    @cached_property
    def task(self) -> Objective:
        """Loss, predictions and metrics."""
        return build.build_objective(self.settings, self.spec, self.request.trusted_modules)

    @cached_property
    def raw_splits(self) -> Splits:
        """The data of the run, or those that the command line names, as they are."""
        return build.build_data(self.settings, self.request.trusted_modules)

    @cached_property
    def splits(self) -> Splits:
        """The same as the model knows them: columns, constants and classes of its training; MisfitError if they differ
        otherwise.
        """
        return (
            align_splits(self.raw_splits, self.spec, self.request.choices.get("data"))
            if self.state
            else self.raw_splits
        )

    @property
    def is_training_data(self) -> bool:
        """Whether the data look like those of the training: their description and the number of training rows."""
        said, now = self.state.get("spec", {}), self.raw_splits.spec.to_dict()
        rows = self.state.get("rows", count_rows(self.raw_splits.train))
        return all(now[k] == v for k, v in said.items()) and count_rows(self.raw_splits.train) == rows

    @cached_property
    def model(self) -> nn.Module:
        """The model with its saved weights, on the device; no data are needed but for a full model."""
        if self.full_model is not None:
            return self.full_model.to(self.process.device)
        with weights_follow():
            model = build.build_model(self.settings, self.spec, self.process, self.request.trusted_modules)
        BuiltBuffers(model).fit(self.state["model"], self.state.get(MADE_BUFFERS, []))
        load_weights(model, self.state["model"], self.path)
        return model

    @property
    def averaged_weights(self) -> dict[str, Any] | None:
        """The weights that trainer.ema_decay averaged, for `load_weights`; null where there are none."""
        found: dict[str, Any] | None = self.state["ema"]["model"] if "ema" in self.state else None
        return found

    def load_held_out(self) -> tuple[str, Batches, Origin]:
        """The test part as `load_part` gives it; the validation or the training part where there is no test."""
        return self.load_part(next(name for name in ("test", "val", "train") if getattr(self.splits, name) is not None))

    def load_part(self, name: str) -> tuple[str, Batches, Origin]:
        """`name`, the batches of that part, or of "all" of them, and where its rows are from; RequestError if none."""
        splits = self.splits
        named: dict[str, Part | None] = {"train": splits.train, "val": splits.val, "test": splits.test}
        parts = {k: part for k, part in named.items() if part is not None}
        if name not in (*parts, "all"):
            raise RequestError(f"there is no {name} part; type split={' or split='.join([*parts, 'all'])}")
        chosen = join_parts(parts) if name == "all" else parts[name]
        alone = replace(splits, train=take(chosen, torch.zeros(1).long()), val=None, test=chosen)
        batches = build.build_batches(self.settings, alone, self.model, self.process)[-1]
        assert batches is not None
        return name, batches, get_origin(chosen, name)


@contextlib.contextmanager
def open_saved_model(place: str, overrides: Sequence[str] = ()) -> Iterator[SavedModel]:
    """The best checkpoint of a run folder, or the file named; the process is set up for it until this ends.

    overrides: key=value words of this command line, on top of the saved config; `trust=true` opens a pickled full
    model, `trusted_modules=[...]` lets the run use modules of the user's. RequestError or CheckpointError for what
    is no run, a damaged file, and keys that do not exist; Hydra's exceptions pass through.
    """
    path = resume.find_checkpoint_file(place)
    full = checkpoint.is_full_model(path)
    state = {} if full else checkpoint.load(path)
    if not full:
        resume.refuse_incomplete(state, resume.TO_EVALUATE, path)
    plain, choices = resume.load_run_config(path) if full else (state["config"], state["choices"])
    request = from_saved(plain, choices, list(overrides), None)
    for note in request.notes:
        write_error(f"dlrun: note: {note}")
    restore_training_defaults(request, state, plain)
    settings = schema.read(request.config, request.choices)
    model = checkpoint.load_full_model(path, settings.rest.trust) if full else None
    with device.session(settings.rest.device, settings.rest.seed) as process:
        yield SavedModel(path, request, settings, state, process, model)


def restore_training_defaults(request: Request, state: dict[str, Any], plain: dict[str, Any]) -> None:
    """What the command line leaves open is as it was: sums round by the number of threads, and another table's target
    is of the same kind even if its values look otherwise.
    """
    asked = [word.partition("=")[0] for word in request.overrides]
    if "device.num_threads" not in asked:
        request.config["device"]["num_threads"] = resume.choose_threads(state, plain)
    data = request.config["data"]
    if state and "task" in data and data["task"] is None:
        data["task"] = state["spec"]["task"]


def read_run_name(words: Sequence[str], command: str) -> str:
    """The first word behind a command, which names a run; RequestError where there is none."""
    if not words or not words[0] or ("=" in words[0] and not Path(words[0]).exists()):  # a sweep's run has an =
        raise RequestError(f"which run? type {example_command(command)}, or a checkpoint file of one")
    return words[0]


def load_weights(model: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Put saved weights into a model; RequestError when they are another model's."""
    try:
        tensors.load_weights(model, weights)
    except RuntimeError as error:
        own = user_code.explain(error)
        if own is not None:
            raise RequestError(f"the weights of {path} cannot be loaded: {own}") from error
        said = " ".join(str(error).split())
        raise RequestError(f"{path} holds the weights of another model: {said}") from error
