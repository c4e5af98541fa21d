"""Trained weights from a file, for a net of the same architecture or a similar one."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dlrun.core.errors import RequestError, join_names
from dlrun.core.user_code import get_first_clause
from dlrun.data.files.tensors import load_weights, unpickle

# Names of layers in files from before torch 0.4.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")

# Keys under which training scripts store a state_dict beside other things.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")

# What DataParallel and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")

# torch's message about a pickle that would call something.
_REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+) was not an allowed global")


def put_weights(
    net: nn.Module, state: Mapping[str, Tensor], file: Path, name: str, head: str | tuple[str, ...]
) -> None:
    """Load all weights but those of the layer `head` (or several) from the state_dict that a file holds.

    name: of the net, for errors. Auxiliary heads in it are ignored, and so is batch
    norm's count of batches, which old files lack. Raises RequestError unless the file is of just such a net.
    """
    heads = (head,) if isinstance(head, str) else head
    prefixes = tuple(f"{layer}." for layer in heads)
    # The head is new: its classes are those of other data.
    weights = {key: tensor for key, tensor in state.items() if not key.startswith(prefixes)}

    try:
        result = load_weights(net, weights, strict=False)
    except RuntimeError as error:
        # The second line of torch's message names the first tensor of another shape.
        lines = str(error).splitlines()[1:2] or [get_first_clause(error)]
        mismatch = lines[0].strip().rstrip(".")
        raise RequestError(f"model.weights={file} is not of {name}: {mismatch}") from error

    missing = []
    for key in result.missing_keys:
        if not key.startswith(prefixes) and not key.endswith("batches_tracked"):
            missing.append(key)

    unexpected = [key for key in result.unexpected_keys if "aux" not in key.lower()]
    if missing:
        raise RequestError(f"model.weights={file} is not of {name}: it lacks {join_names(missing, most=3)}")
    if unexpected:
        raise RequestError(f"model.weights={file} is not of {name}: it holds {join_names(unexpected, most=3)} besides")


def read_state_dict(file: Path, key: str) -> dict[str, Tensor]:
    """Read the tensors of a state_dict by name, from what torch.save has written or from a .safetensors file.

    key: the key of the config that names the file, for errors. A state_dict may be stored under a key such as
    `state_dict` or `model`. Names are those of layers today, without what DataParallel and torch.compile put before
    them. No code in the file is run; RequestError for a file that holds more, or no weights by name.
    """
    content: Any = _read_safetensors(file, key) if file.suffix == ".safetensors" else _read_pickle(file, key)
    if isinstance(content, dict) and "format_version" in content and key != "init_from":
        raise RequestError(f"{key}={file} is a checkpoint of dlrun; type init_from={file} instead")

    state = _unwrap(content)
    if not state:
        raise RequestError(f"{key}={file} holds no weights by name, as torch.save(net.state_dict(), ...) writes")
    return {_simplify_name(name): tensor for name, tensor in state.items()}


def _read_pickle(file: Path, key: str) -> Any:
    try:
        if not file.is_file():
            raise OSError("it is no file")
        return unpickle(file.read_bytes())
    except Exception as error:
        # torch raises many types of exception for a foreign or hostile file.
        refused = _REFUSED_GLOBAL.search(str(error))
        if refused is None:
            raise RequestError(f"{key}={file} cannot be loaded ({get_first_clause(error)})") from error
        raise RequestError(
            f"{key}={file} holds {refused[1]} besides tensors, and opening that can run code; write its weights alone, "
            "as torch.save(net.state_dict(), ...) does"
        ) from error


def _read_safetensors(file: Path, key: str) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise RequestError(f"{key}={file} needs safetensors; type pip install 'dlrun[export]'") from error

    try:
        tensors: dict[str, Tensor] = load_file(file)
    except Exception as error:
        # Of the system, or of the library's own kind for a damaged file.
        raise RequestError(f"{key}={file} cannot be loaded ({get_first_clause(error)})") from error

    return tensors


def _unwrap(content: Any) -> dict[str, Tensor]:
    """The tensors by name, also those stored under a usual key beside other things; empty if there are none."""
    if not isinstance(content, dict):
        return {}
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    inner = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), dict)), None)
    return tensors if tensors or inner is None else _unwrap(inner)


def _simplify_name(name: str) -> str:
    """A tensor's name without what wrappers put before it, and in the spelling of today."""
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return _OLD_DENSENET.sub(r"\1\2.", name)
