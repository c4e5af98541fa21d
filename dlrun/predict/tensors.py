"""What a saved model answers to prepared inputs: tensors in, tensors out."""

import torch
from torch import Tensor

from dlrun import build
from dlrun.data.batches import Place
from dlrun.outputs import evaluating
from dlrun.saved_model import SavedModel


def rows_at_once(saved: SavedModel) -> int:
    """How many rows an evaluation sends through at a time."""
    keys = saved.settings.data_keys
    return keys.eval_batch_size or max(keys.batch_size, 256)


@torch.inference_mode()
def outputs(saved: SavedModel, inputs: tuple[Tensor, ...]) -> Tensor:
    """The model's outputs on the CPU, float32 or wider, for inputs as it takes them, a row along the first dimension.

    inputs: (x,), normalized, or (codes, lengths), as in a Split; of any float type, on any device. Sent through in
    batches, in evaluation mode, laid out and in the precision of the run; the model's mode is afterwards as it was.
    """
    process, model = saved.process, saved.model
    wide = build.wants_channels_last(model, saved.spec, process)
    place = Place(process.device, process.dtype, saved.spec, wide)
    found = []
    for part in zip(*(torch.split(x, rows_at_once(saved)) for x in inputs), strict=True):
        with evaluating(model), process.autocast():
            answers = model(*place.view(tuple(place.inputs(part))))
        found.append((answers.float() if answers.dtype.itemsize < 4 else answers).cpu())
    return torch.cat(found)
