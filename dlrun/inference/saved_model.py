"""A saved model opened again: its weights, settings, objective and data, for all that happens after training."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dlrun.config.request import Request, from_saved
from dlrun.config.settings import Settings, read_settings
from dlrun.core import user_code
from dlrun.core.errors import RequestError
from dlrun.core.shell import suggest_example
from dlrun.core.terminal import write_error
from dlrun.data.batches import Batches
from dlrun.data.datasets import Part, count_rows, get_origin, join_parts, take
from dlrun.data.files import tensors
from dlrun.data.origin import Origin
from dlrun.data.spec import DataSpec, Splits
from dlrun.data.targets import HUGGINGFACE_TARGET, SERIES_TARGET, TABLE_TARGET, TEXT_TARGET
from dlrun.data.tokens import is_text
from dlrun.engine import device
from dlrun.engine.device import Runtime
from dlrun.engine.forward_buffers import BuiltBuffers
from dlrun.engine.objective import Objective
from dlrun.engine.state import CREATED_BUFFERS
from dlrun.experiment import resume
from dlrun.experiment.builder import build, objectives
from dlrun.inference.alignment import align_splits
from dlrun.models.pretrained import skip_trained_weights
from dlrun.runs import checkpoint

# Data that a trained model's preprocessing is applied to.
_READ_AS_TRAINED = (TABLE_TARGET, TEXT_TARGET, SERIES_TARGET, HUGGINGFACE_TARGET)


@dataclass
class SavedModel:
    """A checkpoint or a pickled full model, with everything needed to use it.

    The data are read and the model is built on first access; both are then held as long as this object.
    """

    # Checkpoint file, or the pickled model.
    path: Path
    # Saved config with the overrides of this command line, config choices, trusted modules.
    request: Request
    # The same config, validated.
    settings: Settings
    # The loaded checkpoint; empty for a full model.
    state: dict[str, Any]
    # Device and precision.
    runtime: Runtime
    # The unpickled model, if `path` holds one.
    full_model: nn.Module | None = None

    @property
    def folder(self) -> Path | None:
        """Run folder that contains the file; None for a file elsewhere."""
        folder = self.path.absolute().parent.parent
        return folder if (folder / ".hydra").is_dir() else None

    @property
    def is_data_named(self) -> bool:
        """Whether this command line names the data, or one of their keys."""
        return any(word.lstrip("+").startswith("data") for word in self.request.overrides)

    @property
    def spec(self) -> DataSpec:
        """Data that the model was trained for. A full model does not record it, so there it is that of the data."""
        return DataSpec.from_dict(self.state["spec"]) if self.state else self.splits.spec

    @property
    def class_names(self) -> list[str]:
        """Name of each class; its number if the data have no names."""
        if self.spec.class_names:
            return [str(name) for name in self.spec.class_names]

        # A binary model has one output and two classes.
        count = self.spec.output_size if self.spec.task == "multilabel" else max(self.spec.output_size, 2)
        return [str(number) for number in range(count)]

    @cached_property
    def objective(self) -> Objective:
        """Loss, predictions and metrics."""
        # Balanced weights are those of the rows of training, which need not be at hand.
        if objectives.has_balanced_weights(self.settings):
            weights = self.state.get("class_weights")
            if weights is None:
                weights = objectives.compute_class_weights(self.settings, self.spec, self.splits.train)
        else:
            weights = objectives.compute_class_weights(self.settings, self.spec, None)
        trusted_modules = self.request.trusted_modules
        objective = objectives.build_objective(self.settings, self.spec, self.runtime, trusted_modules, weights)
        if objective.loss_module is not None and "loss" in self.state:
            load_weights(objective.loss_module, self.state["loss"], self.path)
        return objective

    @cached_property
    def raw_splits(self) -> Splits:
        """The data of the run, or those named by the command line, before alignment."""
        return build.build_data(self._pass_preprocessing(), self.request.trusted_modules)

    def _pass_preprocessing(self) -> Settings:
        """Settings under which a table is read as the model was trained to read one."""
        spec = self.state.get("spec", {})
        preprocessing = spec.get("preprocessing")
        if not preprocessing or self.settings.data.target not in _READ_AS_TRAINED:
            return self.settings
        if is_text(preprocessing):
            preprocessing = {**preprocessing, "vocabulary": spec["vocabulary"]}
        arguments = {**self.settings.data.arguments, "preprocessing": preprocessing}
        return replace(self.settings, data=replace(self.settings.data, arguments=arguments))

    @cached_property
    def splits(self) -> Splits:
        """The data with the columns, normalization and class numbers of training; MisfitError if they cannot be."""
        if not self.state:
            return self.raw_splits
        return align_splits(self.raw_splits, self.spec, self.request.choices.get("data"))

    @property
    def is_training_data(self) -> bool:
        """Whether the data look like those of training: same spec, same number of training rows."""
        recorded_spec = self.state.get("spec", {})
        spec = self.raw_splits.spec.to_dict()
        rows = count_rows(self.raw_splits.train)
        # Empty fields may be left out.
        has_same_spec = all((spec.get(key) or None) == (value or None) for key, value in recorded_spec.items())
        return has_same_spec and rows == self.state.get("rows", rows)

    @cached_property
    def model(self) -> nn.Module:
        """The model with its saved weights, on the device. Only a full model needs the data for it."""
        if self.full_model is not None:
            return self.full_model.to(self.runtime.device)

        # Pretrained weights are not downloaded: the checkpoint replaces them.
        with skip_trained_weights():
            model = build.build_model(self.settings, self.spec, self.runtime, self.request.trusted_modules)
        # A net may create or grow buffers in its forward pass; load_state_dict needs them to exist.
        BuiltBuffers(model).fit(self.state["model"], self.state.get(CREATED_BUFFERS, []))
        load_weights(model, self.state["model"], self.path)
        return model

    @property
    def averaged_weights(self) -> dict[str, Any] | None:
        """Weights averaged by trainer.ema_decay, for `load_weights`; None without averaging."""
        if "ema" not in self.state:
            return None
        weights: dict[str, Any] = self.state["ema"]["model"]
        return weights

    def load_held_out(self) -> tuple[str, Batches, Origin]:
        """Load the test part as `load_part` does; the validation or training part if there is no test part."""
        splits = self.splits
        if splits.test is not None:
            return self.load_part("test")
        if splits.val is not None:
            return self.load_part("val")
        return self.load_part("train")

    def load_part(self, name: str) -> tuple[str, Batches, Origin]:
        """Return `name`, the batches of that part (of every part for "all") and the origin of its rows.

        RequestError if there is no such part.
        """
        splits = self.splits
        candidates: dict[str, Part | None] = {"train": splits.train, "val": splits.val, "test": splits.test}
        parts = {key: part for key, part in candidates.items() if part is not None}
        if name not in (*parts, "all"):
            raise RequestError(f"there is no {name} part; type split={' or split='.join([*parts, 'all'])}")
        part = join_parts(parts) if name == "all" else parts[name]

        # The builder makes batches of three splits: the chosen rows stand for the test split, and the train split,
        # which is required but not used, shrinks to one row.
        first_row = take(part, torch.zeros(1).long())
        only_test = replace(splits, train=first_row, val=None, test=part)
        batches = build.build_batches(self.settings, only_test, self.model, self.runtime).test
        assert batches is not None
        return name, batches, get_origin(part, name)


@contextlib.contextmanager
def open_saved_model(place: str, overrides: Sequence[str] = ()) -> Iterator[SavedModel]:
    """Open the best checkpoint of a run folder, or the named file; the process is set up for it until this exits.

    overrides: key=value words of this command line, on top of the saved config. `trust=true` opens a pickled full
    model, `trusted_modules=[...]` lets the run use the user's own modules. Raises RequestError or CheckpointError for
    a place without a run, a damaged file and unknown keys; Hydra's exceptions pass through.
    """
    path = resume.find_checkpoint_file(place)
    is_full_model = checkpoint.is_full_model(path)
    state: dict[str, Any] = {}
    if is_full_model:
        plain, choices = resume.load_run_config(path)
    else:
        state = checkpoint.load(path, resume.KEYS_TO_EVALUATE)
        plain = state["config"]
        choices = state["choices"]

    request = from_saved(plain, choices, list(overrides), None)
    # For example permissions in the saved config, which only a command line can give.
    for note in request.notes:
        write_error(f"dlrun: note: {note}")
    _restore_training_defaults(request, state, plain)
    settings = read_settings(request.config, request.choices)

    full_model = checkpoint.load_full_model(path, settings.trust) if is_full_model else None
    with device.device_session(settings.device, settings.seed) as runtime:
        yield SavedModel(path, request, settings, state, runtime, full_model)


def _restore_training_defaults(request: Request, state: dict[str, Any], plain: dict[str, Any]) -> None:
    """Set in the request's config what training had and this command line leaves open: threads, kind of target, and
    range of grey values."""
    # The number of threads decides how sums round.
    overridden_keys = [word.partition("=")[0] for word in request.overrides]
    if "device.num_threads" not in overridden_keys:
        request.config["device"]["num_threads"] = resume.choose_threads(state, plain)

    # Another table's target is of the same kind, even if its values alone suggest a different one.
    data = request.config["data"]
    is_autoencoder = bool(state) and state["spec"].get("reconstructs", False)
    if state and "task" in data and data["task"] is None and not is_autoencoder:
        data["task"] = state["spec"]["task"]

    # Other images are as bright as those of training if their grey values are read alike.
    if state and "pixel_range" in data and data["pixel_range"] is None:
        data["pixel_range"] = list(state["spec"].get("pixel_range", ()))


def read_run_name(words: Sequence[str], command: str) -> str:
    """Return the first word after a command, which names a run; RequestError if there is none."""
    # The folder of a sweep's run has an = in its name: an existing path is no override.
    if not words or not words[0] or ("=" in words[0] and not Path(words[0]).exists()):
        raise RequestError(f"which run? type {suggest_example(command)}, or a checkpoint file of one")
    return words[0]


def load_weights(model: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Load saved weights into a model; RequestError if they belong to another model."""
    try:
        tensors.load_weights(model, weights)
    except RuntimeError as error:
        # The user's own load hooks may have failed, which says nothing about the weights.
        own = user_code.explain(error)
        if own is not None:
            raise RequestError(f"the weights of {path} cannot be loaded: {own}") from error
        message = " ".join(str(error).split())
        raise RequestError(f"{path} holds the weights of another model: {message}") from error
