"""Trained weights from a file, for a net of the same architecture."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dlrun.core.errors import RequestError, join_names
from dlrun.core.user_code import get_first_clause
from dlrun.data.files.tensors import load_weights, unpickle

# Names of layers in files from before torch 0.4.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")


def put_weights(net: nn.Module, file: Path, name: str, head: str) -> None:
    """Load all weights but those of the layer `head` from the file of a state_dict.

    name: of the net, for errors. No code in the file is run. Auxiliary heads in it are ignored, and so is batch
    norm's count of batches, which old files lack. Raises RequestError unless the file is of just such a net.
    """
    # The head is new: its classes are those of other data.
    weights = {}
    for key, tensor in _read_state_dict(file).items():
        if not key.startswith(f"{head}."):
            weights[key] = tensor

    try:
        result = load_weights(net, weights, strict=False)
    except RuntimeError as error:
        # The second line of torch's message names the first tensor of another shape.
        lines = str(error).splitlines()[1:2] or [get_first_clause(error)]
        mismatch = lines[0].strip().rstrip(".")
        raise RequestError(f"model.weights={file} is not of {name}: {mismatch}") from error

    missing = []
    for key in result.missing_keys:
        if not key.startswith(f"{head}.") and not key.endswith("batches_tracked"):
            missing.append(key)
    unexpected = [key for key in result.unexpected_keys if "aux" not in key.lower()]
    if missing:
        raise RequestError(f"model.weights={file} is not of {name}: it lacks {join_names(missing, most=3)}")
    if unexpected:
        raise RequestError(f"model.weights={file} is not of {name}: it holds {join_names(unexpected, most=3)} besides")


def _read_state_dict(file: Path) -> dict[str, Tensor]:
    """Read a state_dict, also one stored under the key `state_dict`, with today's names of layers."""
    try:
        if not file.is_file():
            raise OSError("it is no file")
        content: Any = unpickle(file.read_bytes())
    except Exception as error:
        # torch raises many types of exception for a foreign or hostile file.
        raise RequestError(f"model.weights={file} cannot be loaded ({get_first_clause(error)})") from error

    if isinstance(content, dict) and "format_version" in content:
        raise RequestError(f"model.weights={file} is a checkpoint of dlrun; type init_from={file} instead")
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise RequestError(
            f"model.weights={file} holds no weights by name, as torch.save(net.state_dict(), ...) writes"
        )

    # DataParallel puts "module." before every name.
    return {_OLD_DENSENET.sub(r"\1\2.", str(key).removeprefix("module.")): value for key, value in state.items()}
