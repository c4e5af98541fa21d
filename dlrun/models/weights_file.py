"""Trained weights from a file, for a net that was built as the one that they were trained in."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dlrun.core.errors import RequestError, listed
from dlrun.data.files.tensors import load_weights, unpickle
from dlrun.models.checks import first_line

_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")  # names of before torch 0.4


def put_weights(net: nn.Module, file: Path, name: str, head: str) -> None:
    """Copy all but the layer `head` from a file of a state_dict; RequestError unless it is one of just such a net.

    name: of the net, for that error. Nothing in the file is run. Auxiliary heads in it are left out, and so is the
    count of batches of batch norm, which old files lack.
    """
    theirs = {k: v for k, v in _read(file).items() if not k.startswith(f"{head}.")}
    try:
        result = load_weights(net, theirs, strict=False)
    except RuntimeError as error:  # other shapes
        mismatch = (str(error).splitlines()[1:2] or [first_line(error)])[0].strip().rstrip(".")
        raise RequestError(f"model.weights={file} is not of {name}: {mismatch}") from error
    lacking = [k for k in result.missing_keys if not k.startswith(f"{head}.") and not k.endswith("batches_tracked")]
    other = [k for k in result.unexpected_keys if "aux" not in k.lower()]
    if lacking or other:
        said = f"it lacks {listed(lacking, most=3)}" if lacking else f"it holds {listed(other, most=3)} besides"
        raise RequestError(f"model.weights={file} is not of {name}: {said}")


def _read(file: Path) -> dict[str, Tensor]:
    """A state_dict, also one that lies in the file under `state_dict`, with today's names."""
    try:
        if not file.is_file():
            raise OSError("it is no file")
        held: Any = unpickle(file.read_bytes())
    except Exception as error:  # whatever a foreign or hostile file makes torch raise
        raise RequestError(f"model.weights={file} cannot be loaded ({first_line(error)})") from error
    if isinstance(held, dict) and "format_version" in held:
        raise RequestError(f"model.weights={file} is a checkpoint of dlrun; type init_from={file} instead")
    state = held.get("state_dict", held) if isinstance(held, dict) else held
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise RequestError(
            f"model.weights={file} holds no weights by name, as torch.save(net.state_dict(), ...) writes"
        )
    return {_OLD_DENSENET.sub(r"\1\2.", str(k).removeprefix("module.")): v for k, v in state.items()}
