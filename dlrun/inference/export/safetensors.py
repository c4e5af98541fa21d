"""`format=safetensors`: the weights, in a file that can hold nothing else."""

import json
from pathlib import Path

from torch import Tensor

from dlrun.core.errors import RequestError, join_names
from dlrun.core.files import write_atomically
from dlrun.inference.export import graph
from dlrun.inference.export.description import describe_origin, prepare_subject, write_companions
from dlrun.inference.export.onnx_recurrent import takes_any_length
from dlrun.inference.saved_model import SavedModel

FILE = "model.safetensors"


def write(saved_model: SavedModel, folder: Path) -> list[Path]:
    """Write model.safetensors, model.json and an example into `folder`.

    The tensors have their names in the state_dict; one that has two names is written under both. RequestError for a
    state_dict that holds more than tensors.
    """
    from safetensors.torch import save

    subject = prepare_subject(saved_model)
    weights = {}
    others = []
    for name, value in subject.model.state_dict().items():
        if isinstance(value, Tensor):
            # Cloned, as safetensors refuses tensors that share memory.
            weights[name] = value.detach().contiguous().clone()
        else:
            others.append(name)
    if others:
        raise RequestError(
            f"format=safetensors holds tensors alone, and the state of {type(subject.model).__name__} holds "
            f"{join_names(others)}; type format=onnx"
        )

    # The metadata of the format are strings.
    metadata = {"format": "pt"}
    for key, value in {"spec": saved_model.spec.to_dict(), **describe_origin(saved_model)}.items():
        metadata[key] = value if isinstance(value, str) else json.dumps(value)
    write_atomically(folder / FILE, save(weights, metadata))

    check = {"said": "weights alone; format=onnx writes the network too"}
    # Only our own nets are known to take other lengths.
    shapes = graph.describe_shapes(subject.sample(), takes_any_length(subject.model, saved_model.spec))
    companions = write_companions(subject, folder, FILE, check, {"format": "safetensors"}, shapes, loader=False)
    return [folder / FILE, *companions]
