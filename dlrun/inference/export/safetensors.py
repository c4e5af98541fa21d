"""`format=safetensors`: the weights in a file that holds nothing else, and the network as plain torch source."""

import json
import runpy
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from torch import Tensor

from dlrun.core.errors import RequestError, listed
from dlrun.core.files import write_atomically
from dlrun.inference.export import graph, source
from dlrun.inference.export.description import compare_outputs, describe_origin, prepare_subject, write_companions
from dlrun.inference.saved_model import SavedModel

FILE, NETWORK = "model.safetensors", "network.py"


def write(saved: SavedModel, folder: Path) -> list[Path]:
    """Write model.safetensors, network.py, model.json, an example and load_safetensors.py into `folder`.

    The tensors have the names of the state_dict; one that has two names is written under both. A model that is no
    fixed graph comes without network.py and loader. RunError where network.py answers something else than the model.
    """
    from safetensors.torch import save

    exported = prepare_subject(saved)
    others = [name for name, value in exported.model.state_dict().items() if not isinstance(value, Tensor)]
    if others:
        raise RequestError(
            f"format=safetensors holds tensors alone, and the state of {type(exported.model).__name__} holds "
            f"{listed(others)}; type format=onnx"
        )
    weights = {name: value.detach().contiguous().clone() for name, value in exported.model.state_dict().items()}
    facts = {"spec": saved.spec.to_dict(), **describe_origin(saved)}
    metadata = {"format": "pt", **{k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}}
    write_atomically(folder / FILE, save(weights, metadata))
    inputs, recurrent = exported.sample(), source.is_recurrent(exported.model)
    shapes, files = graph.describe_shapes(inputs, recurrent), [folder / FILE]
    extra: dict[str, str | None] = {"format": "safetensors", "network_file": NETWORK}
    try:
        write_atomically(folder / NETWORK, source.of(exported.model, inputs, exported.names).encode())
        checked = compare_outputs(exported, _Written(folder))
        files.append(folder / NETWORK)
    except RequestError as error:
        (folder / NETWORK).unlink(missing_ok=True)
        extra["network_file"] = None
        checked = {"said": f"weights alone, as the network cannot be written out: {error}"}
    return [*files, *write_companions(exported, folder, FILE, checked, extra, shapes, loader=len(files) > 1)]


class _Written:
    """The network and the weights as they were written, called as the model is; RequestError where that fails."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file

        self.weights, self.path = load_file(folder / FILE), folder / NETWORK

    def __call__(self, *inputs: Tensor) -> Tensor:
        try:
            found: Tensor = self.network(self.weights, *inputs)
        except Exception as error:  # an operation of a user's own, say
            raise RequestError(f"as source it does not run ({type(error).__name__}: {str(error)[:160]})") from error
        return found

    @cached_property
    def network(self) -> Callable[..., Tensor]:
        """What network.py defines."""
        function: Callable[..., Tensor] = runpy.run_path(str(self.path))["network"]
        return function
