"""Checkpoints: written atomically, verified when read, plain Python and tensors only.

A file is what torch.save writes (a zip archive) with the sha256 of everything before it as the archive's
comment, so torch.load opens it too and the checksum cannot get lost.
"""

import contextlib
import functools
import hashlib
import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dlrun.core import user_code
from dlrun.core.bounded import read_bytes
from dlrun.core.errors import CheckpointError, DamageError, RunError, UnreadableError
from dlrun.core.files import write_atomically
from dlrun.data.files.tensors import unpickle
from dlrun.engine import plain
from dlrun.engine.object_state import duplicate
from dlrun.runs.checkpoint_types import find_state_error, list_missing_keys
from dlrun.runs.folder import list_finished_files
from dlrun.runs.record import RunRecord

if TYPE_CHECKING:
    from dlrun.engine.stack.snapshot import MemberWeights

FORMAT_VERSION = 1
# Of fixed length, so that the comment is found from the end without a walk through the archive.
_MARK = b"dlrun sha256 "
_COMMENT_BYTES = len(_MARK) + 64
# A terabyte: no checkpoint should meet this limit, which `read_bytes` asks for.
_MAX_BYTES = 2**40


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (plain Python, tensors and NumPy values) atomically, with its checksum inside.

    RunError for other values, as `load` would refuse the file.
    """
    try:
        content = plain.encode(state)
    except plain.NotPlainError as error:
        raise RunError(f"{path} cannot be written: {error}") from error
    save_encoded(path, content)


def save_encoded(path: Path, content: dict[str, Any]) -> None:
    """Write what `plain.encode` has returned as `save` does."""
    buffer = io.BytesIO()
    # In memory first: file and checksum go to the disk in one atomic write.
    torch.save(content, buffer)
    buffer.seek(-2, io.SEEK_END)
    # The last field of a zip archive is the length of the comment that follows.
    buffer.write(_COMMENT_BYTES.to_bytes(2, "little"))
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.write(_MARK + digest.encode())
    write_atomically(path, buffer.getbuffer())


def load(path: Path, required_keys: Sequence[str] = ()) -> dict[str, Any]:
    """Load a verified checkpoint to the CPU, without running code of the file.

    required_keys: those that it must have. CheckpointError says what is wrong: a missing, damaged or foreign file,
    values of wrong types, or keys that are missing.
    """
    try:
        content = read_bytes(path, _MAX_BYTES)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except DamageError as error:
        raise CheckpointError(f"{path} cannot be read: {error.reason}") from error

    head = memoryview(content)[:-_COMMENT_BYTES]
    comment = content[-_COMMENT_BYTES:]
    if not comment.startswith(_MARK):
        raise CheckpointError(f"{path} is not a checkpoint of dlrun, or was cut short ({len(content):,} bytes)")
    # Before unpickling: a flipped bit is reported as damage, and not by whatever torch stumbles over.
    if hashlib.sha256(head).hexdigest().encode() != comment[len(_MARK) :]:
        raise CheckpointError(f"{path} is damaged: its content does not have the checksum it was written with")

    try:
        state = unpickle(content)
    except ValueError as error:
        raise CheckpointError(f"{path} is not opened: {error}") from error
    except Exception as error:
        # A hostile or foreign archive can make torch raise anything.
        raise CheckpointError(f"{path} holds more than tensors and plain values; it is not opened") from error

    # The version before any other key, whose meaning depends on it.
    version = state.get("format_version") if isinstance(state, dict) else None
    if version != FORMAT_VERSION:
        is_newer = isinstance(version, int) and version > FORMAT_VERSION
        raise CheckpointError(
            f"{path} has checkpoint format {version}; this dlrun reads format {FORMAT_VERSION}, so use the "
            f"{'newer' if is_newer else 'older'} one that wrote it"
        )

    # A file copied from another run is intact, and would resume with the wrong data and seed.
    run_id = _read_run_id(path)
    if run_id is not None and state.get("run_id") != run_id:
        raise CheckpointError(f"{path} is a checkpoint of another run than the one whose folder it lies in")
    # A checksum proves only that the file is as it was written: anyone can write one.
    error_text = find_state_error(state)
    if error_text:
        raise CheckpointError(f"{path} is not opened: {error_text}")
    missing = list_missing_keys(state, required_keys)
    if missing:
        raise CheckpointError(
            f"{path} lacks {', '.join(missing)}: it was written by another dlrun, which alone can read it"
        )

    try:
        return plain.decode(dict(state))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _read_run_id(path: Path) -> str | None:
    """Return the run_id of the run folder around a checkpoint; None if there is none."""
    run_id = RunRecord(path.absolute().parent.parent).environment.get("run_id")
    return None if run_id is None else str(run_id)


def load_full_model(path: Path, trust: bool) -> nn.Module:
    """Load a pickled model of `checkpoint.format=full`. Unpickling can run code, so CheckpointError unless trusted."""
    if not trust:
        raise CheckpointError(f"{path} is a pickled model, and opening it can run code; if you trust it add trust=true")
    try:
        model = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_NamingPickle)
    except _NoSuchClass as error:
        raise CheckpointError(f"{path} {error}") from error
    except Exception as error:
        # The classes of a pickle are the user's own, and run while it is read.
        message = f"{path} cannot be opened: {type(error).__name__}: {error}"
        raise CheckpointError(user_code.add_user_line(message, error)) from error

    if not isinstance(model, nn.Module):
        raise CheckpointError(f"{path} holds a {type(model).__name__}, not a model")
    return model


class _NoSuchClass(Exception):
    """A pickle names something that cannot be imported here."""


class _NamingUnpickler(pickle.Unpickler):
    """Name the class that is missing: pickle's own error names the module alone."""

    def find_class(self, module: str, name: str, /) -> Any:
        """Import `name` from `module`."""
        try:
            return super().find_class(module, name)
        except Exception as error:
            # Importing a user's module runs it, so it can raise anything.
            file = module.replace(".", "/") + ".py"
            place = f"the folder that holds {file}"
            if module == "__main__":
                place = "the script or notebook that defined it"
            raise _NoSuchClass(
                f"needs the class {name} of the module {module}, which cannot be imported here ({error}); run this "
                f"from {place}, under its old name, or evaluate the run folder or its checkpoints/best.pt instead: "
                "those hold weights alone, and take the class's new name as model._target_=<module>.<class>"
            ) from error


class _NamingPickle:
    """The part of the module `pickle` that torch.load uses."""

    Unpickler = _NamingUnpickler
    # For files from before torch 1.6.
    load = staticmethod(pickle.load)


def measure_reload_difference(
    model_path: Path,
    state_path: Path,
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> float:
    """Return the largest absolute difference between the outputs of a model that was saved both ways.

    model_path: the export of this process, and so trusted; state_path: the checkpoint with the same weights,
    which are loaded into a copy of `model`. inputs: one batch on the model's device. `model` is not changed.
    """
    # A copy, since the training that calls this is to end with the weights it has.
    from_state = duplicate(model)
    from_state.load_state_dict(load(state_path)["model"])

    outputs = []
    for candidate in (load_full_model(model_path, trust=True), from_state):
        with torch.inference_mode(), autocast():
            outputs.append(candidate.to(inputs[0].device).eval()(*inputs))
    return float((outputs[0] - outputs[1]).abs().max())


def export_full_model(model: nn.Module, path: Path) -> None:
    """Pickle a model for use without dlrun's configs; no run is resumed from it. RunError if it cannot be pickled."""
    buffer = io.BytesIO()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    try:
        # Saved from the CPU, so that a machine without this device can open the file.
        torch.save(model.cpu(), buffer)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise RunError(
            f"checkpoint.format=full: this model cannot be pickled ({error}); define its class in a module "
            "that can be imported, or type checkpoint.format=state_dict"
        ) from error
    finally:
        model.to(device)

    write_atomically(path, buffer.getvalue())


def is_full_model(path: Path) -> bool:
    """Whether a file is a torch archive without dlrun's checksum: a pickled model, or a foreign file."""
    # Opening a pipe would block.
    if not path.is_file():
        return False
    with contextlib.suppress(OSError), path.open("rb") as file:
        start = file.read(4)
        file.seek(-_COMMENT_BYTES, os.SEEK_END)
        is_unmarked = start == b"PK\x03\x04" and not file.read().startswith(_MARK)
        # A file that was cut short has neither the mark nor a zip directory.
        return is_unmarked and zipfile.is_zipfile(path)

    return False


def has_checksum(path: Path) -> bool:
    """Whether a file ends as dlrun's checkpoints do. Its content is not looked at."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(-_COMMENT_BYTES, os.SEEK_END)
        return file.read().startswith(_MARK)
    return False


def hash_weights(model: nn.Module) -> str:
    """Return the sha256 of a model's state; see `hash_state`."""
    # With the parameters as they are: no view of each is needed.
    return hash_state(model.state_dict(keep_vars=True))


def hash_state(state: Mapping[str, Any]) -> str:
    """Return the sha256 of a state_dict: key, dtype, shape and little-endian bytes of each tensor, by sorted key.

    Extra state (`get_extra_state`) that is no tensor is hashed by its repr.
    """
    digest = hashlib.sha256()
    # By name, as the order in which a module registers its layers does not change what it computes.
    for key in sorted(state):
        if not isinstance(state[key], Tensor):
            digest.update(f"{key}|{state[key]!r}".encode())
            continue

        tensor: Tensor = state[key]
        digest.update(_describe_tensor(key, tensor.dtype, tensor.shape))
        digest.update(_view_bytes(tensor))

    return digest.hexdigest()


def _view_bytes(tensor: Tensor) -> Any:
    """The little-endian bytes of a tensor, without a copy of what may be a gigabyte where that can be."""
    if tensor.dtype == torch.float32 and sys.byteorder == "little":
        # Nearly all are of this kind, and a small net's hash is as fast as the calls for it.
        return tensor.numpy(force=True).ravel()

    # As bytes, since NumPy has no bfloat16.
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    # Turned round, unless they are in this order already.
    return raw.data if sys.byteorder == "little" else raw[::-1].tobytes()


def hash_member(weights: "MemberWeights") -> str:
    """Return what `hash_weights` returns for the model of a stack's member, in a tenth of the time."""
    digest = hashlib.sha256()
    size = weights.row.element_size()
    for key, dtype, shape, begin, end in weights.parts:
        digest.update(_describe_tensor(key, dtype, shape))
        digest.update(weights.content[begin * size : end * size])
    return digest.hexdigest()


@functools.lru_cache
def _describe_tensor(key: str, dtype: torch.dtype, shape: torch.Size) -> bytes:
    return f"{key}|{dtype}|{tuple(shape)}|".encode()


def load_newest(folder: Path, required_keys: Sequence[str] = ("optimizer",)) -> tuple[Path, dict[str, Any], list[str]]:
    """Load the newest checkpoint that a run can resume from: its path, its content, and why newer ones were skipped.

    required_keys: those that it must have. CheckpointError if there is no checkpoint; UnreadableError, with the reason
    for each, if none of them can be used.
    """
    reasons: list[str] = []
    # Steps are padded with zeros, so that the order of names is that of age.
    names = sorted((path.name for path in list_finished_files(folder)), reverse=True)
    steps = [name for name in names if name.startswith("step_") and name.endswith(".pt")]
    last = [name for name in names if name == "last.pt"]

    # last.pt links to the newest step, so it comes first.
    for name in [*last, *steps]:
        path = folder / name
        try:
            return path, load(path, required_keys), reasons
        except CheckpointError as error:
            reasons.append(str(error))

    # best.pt alone, for instance: weights without the optimizer's state.
    others = [name for name in names if name not in (*last, *steps)]
    if not names:
        raise CheckpointError(f"{folder} holds no checkpoint; start the run again from the beginning")
    if not reasons:
        reasons.append(f"{folder} holds {', '.join(others)} alone, and no state to resume from")
    raise UnreadableError(
        f"no checkpoint in {folder} can be resumed from, and everything is left as it was: {'; '.join(reasons)}"
    )
