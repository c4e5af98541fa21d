"""`format=safetensors`: the weights in a file that holds nothing else, and the network as plain torch source."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from dlrun.disk import write_atomically
from dlrun.errors import RequestError
from dlrun.export import graph, source
from dlrun.export.description import accompany, compared, origin, subject
from dlrun.saved_model import SavedModel

FILE = "model.safetensors"


def write(saved: SavedModel, folder: Path) -> list[Path]:
    """Write model.safetensors, network.py, model.json, an example and load_safetensors.py into `folder`.

    The tensors have the names of the state_dict; one that has two names is written under both. A model that is no
    fixed graph comes without network.py and loader. RunError where network.py answers something else than the model.
    """
    from safetensors.torch import save

    exported = subject(saved)
    weights = {name: value.detach().contiguous().clone() for name, value in exported.model.state_dict().items()}
    facts = {"spec": saved.spec.to_dict(), **origin(saved)}
    metadata = {"format": "pt", **{k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}}
    write_atomically(folder / FILE, save(weights, metadata))
    inputs, recurrent = exported.sample(), source.is_recurrent(exported.model)
    shapes, files = graph.shapes(inputs, recurrent), [folder / FILE]
    try:
        text = source.of(exported.model, inputs, exported.names)
    except RequestError as error:
        checked = {"said": f"weights alone, as the network cannot be written out: {error}"}
        return files + accompany(exported, folder, FILE, checked, {"format": "safetensors"}, shapes, loader=False)
    write_atomically(folder / "network.py", text.encode())
    checked = compared(exported, _written(folder))
    extra = {"format": "safetensors", "network_file": "network.py"}
    return [*files, folder / "network.py", *accompany(exported, folder, FILE, checked, extra, shapes)]


def _written(folder: Path) -> Callable[..., Tensor]:
    """The network that was just written, with the weights that were just written."""
    from safetensors.torch import load_file

    weights = load_file(folder / FILE)
    network: Callable[..., Tensor] = runpy.run_path(str(folder / "network.py"))["network"]
    return lambda *inputs: network(weights, *inputs)
