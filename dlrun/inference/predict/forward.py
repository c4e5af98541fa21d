"""Forward pass of a saved model on prepared inputs: tensors in, tensors out."""

import inspect

import torch
from torch import Tensor

from dlrun.core.errors import RequestError
from dlrun.core.own_code import find_own_modules
from dlrun.core.shell import advise_in_python, suggest_command
from dlrun.data.batches import Placement
from dlrun.engine.evaluation import evaluation_mode
from dlrun.experiment.builder import build
from dlrun.inference.saved_model import SavedModel
from dlrun.runs.folder import format_path


def refuse_several_inputs(saved_model: SavedModel) -> None:
    """Raise RequestError for a user's model that takes more tensors than are read for its kind of data."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = []
    for name, parameter in inspect.signature(saved_model.model.forward).parameters.items():
        if parameter.kind in positional and parameter.default is inspect.Parameter.empty:
            names.append(name)
    # Sequences come as codes and lengths.
    if len(names) <= (2 if saved_model.spec.kind == "tokens" else 1):
        return

    place = format_path(saved_model.folder or saved_model.path)
    # The advice is a Python call, even when asked for in a terminal.
    with advise_in_python("load"):
        call = suggest_command("eval", place, modules=find_own_modules(saved_model.settings.plain))
    arguments = ", ".join(names)
    raise RequestError(
        f"the model takes {len(names)} inputs ({arguments}), and predict reads one; give it tensors of rows in Python: "
        f"{call}.model({arguments})"
    )


def choose_batch_size(saved_model: SavedModel) -> int:
    """Return the number of rows of an evaluation batch."""
    keys = saved_model.settings.data.keys
    # As in evaluation: without gradients larger batches than in training fit into memory.
    return keys.eval_batch_size or max(keys.batch_size, 256)


@torch.inference_mode()
def compute_outputs(saved_model: SavedModel, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return the model's outputs on the CPU, float32 or wider, for a row along the first dimension of each input.

    inputs: (x,), normalized, or (codes, lengths), as in a Split; of any float type, on any device. They pass through
    the model in batches, in evaluation mode, with the memory format and precision of the run; the mode of the model is
    restored afterwards.
    """
    runtime = saved_model.runtime
    model = saved_model.model
    is_channels_last = build.wants_channels_last(model, saved_model.spec, runtime)
    placement = Placement(runtime.device, runtime.dtype, saved_model.spec, is_channels_last)

    batch_size = choose_batch_size(saved_model)
    batches = zip(*(torch.split(x, batch_size) for x in inputs), strict=True)
    blocks = []
    for batch in batches:
        with evaluation_mode(model), runtime.autocast():
            outputs = model(*placement.view_channels_first(tuple(placement.move_inputs(batch))))
        # Half precision ends here: probabilities are computed in float32 at least.
        if outputs.dtype.itemsize < 4:
            outputs = outputs.float()
        blocks.append(outputs.cpu())
    return torch.cat(blocks)
