"""What a saved model answers to prepared inputs: tensors in, tensors out."""

import inspect

import torch
from torch import Tensor

from dlrun.core.errors import RequestError
from dlrun.core.own_code import own_modules
from dlrun.core.shell import advice, python_calls
from dlrun.data.batches import Placement
from dlrun.engine.evaluation import evaluating
from dlrun.experiment.build import build
from dlrun.inference.saved_model import SavedModel
from dlrun.runs.folder import from_here


def refuse_several_inputs(saved: SavedModel) -> None:
    """RequestError for a net of the user's own that takes more tensors than are read for its kind of data."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = []
    for name, parameter in inspect.signature(saved.model.forward).parameters.items():
        if parameter.kind in positional and parameter.default is inspect.Parameter.empty:
            names.append(name)
    if len(names) <= (2 if saved.spec.kind == "tokens" else 1):
        return

    place = from_here(saved.folder or saved.path)
    with python_calls("load"):
        call = advice("eval", place, modules=own_modules(saved.settings.plain))
    listed = ", ".join(names)
    raise RequestError(
        f"the model takes {len(names)} inputs ({listed}), and predict reads one; give it tensors of rows in Python: "
        f"{call}.model({listed})"
    )


def choose_batch_size(saved: SavedModel) -> int:
    """How many rows an evaluation sends through at a time."""
    keys = saved.settings.data_keys
    return keys.eval_batch_size or max(keys.batch_size, 256)


@torch.inference_mode()
def compute_outputs(saved: SavedModel, inputs: tuple[Tensor, ...]) -> Tensor:
    """The model's outputs on the CPU, float32 or wider, for inputs as it takes them, a row along the first dimension.

    inputs: (x,), normalized, or (codes, lengths), as in a Split; of any float type, on any device. Sent through in
    batches, in evaluation mode, laid out and in the precision of the run; the model's mode is afterwards as it was.
    """
    process, model = saved.process, saved.model
    wide = build.wants_channels_last(model, saved.spec, process)
    place = Placement(process.device, process.dtype, saved.spec, wide)
    found = []
    for part in zip(*(torch.split(x, choose_batch_size(saved)) for x in inputs), strict=True):
        with evaluating(model), process.autocast():
            answers = model(*place.view_channels_first(tuple(place.move_inputs(part))))
        found.append((answers.float() if answers.dtype.itemsize < 4 else answers).cpu())
    return torch.cat(found)
