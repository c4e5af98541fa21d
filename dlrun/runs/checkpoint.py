"""Checkpoints: written whole or not at all, verified when read, plain Python and tensors only.

A file is what torch.save writes (a zip archive) with the sha256 of everything before it as the archive's
comment, so torch.load opens it too and the checksum cannot part from what it sums.
"""

import contextlib
import hashlib
import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.core import user_code
from dlrun.core.bounded import read_bytes
from dlrun.core.errors import CheckpointError, DamageError, RunError, UnreadableError
from dlrun.core.files import write_atomically
from dlrun.data.files.tensors import unpickle
from dlrun.engine.object_state import duplicate
from dlrun.runs import plain
from dlrun.runs.checkpoint_types import lacking_in_state, wrong_in_state
from dlrun.runs.folder import finished_files
from dlrun.runs.record import RunRecord

FORMAT_VERSION = 1
_MARK = b"dlrun sha256 "
_COMMENT_BYTES = len(_MARK) + 64
_LARGEST = 2**40  # bytes


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (plain Python, tensors, and NumPy's values) atomically, with its checksum inside.

    RunError names what else it holds: `load` would refuse the file.
    """
    try:
        encoded = plain.encode(state)
    except plain.NotPlainError as error:
        raise RunError(f"{path} cannot be written: {error}") from error

    buffer = io.BytesIO()
    torch.save(encoded, buffer)
    buffer.seek(-2, io.SEEK_END)
    buffer.write(_COMMENT_BYTES.to_bytes(2, "little"))  # the archive's last field: the comment's length
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.write(_MARK + digest.encode())
    write_atomically(path, buffer.getbuffer())


def load(path: Path) -> dict[str, Any]:
    """A verified checkpoint, on the CPU. CheckpointError says what is wrong with the file; nothing in it is run."""
    try:
        content = read_bytes(path, _LARGEST)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except DamageError as error:
        raise CheckpointError(f"{path} cannot be read: {error.reason}") from error
    head, comment = memoryview(content)[:-_COMMENT_BYTES], content[-_COMMENT_BYTES:]
    if not comment.startswith(_MARK):
        raise CheckpointError(f"{path} is not a checkpoint of dlrun, or was cut short ({len(content):,} bytes)")
    if hashlib.sha256(head).hexdigest().encode() != comment[len(_MARK) :]:
        raise CheckpointError(f"{path} is damaged: its content does not have the checksum it was written with")
    try:
        state = unpickle(content)
    except ValueError as error:
        raise CheckpointError(f"{path} is not opened: {error}") from error
    except Exception as error:  # whatever a hostile or foreign archive makes torch raise
        raise CheckpointError(f"{path} holds more than tensors and plain values; it is not opened") from error
    version = state.get("format_version") if isinstance(state, dict) else None
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        raise CheckpointError(
            f"{path} has checkpoint format {version}; this dlrun reads format {FORMAT_VERSION}, so use the "
            f"{'newer' if newer else 'older'} one that wrote it"
        )
    owner = _owner(path)
    if owner is not None and state.get("run_id") != owner:
        raise CheckpointError(f"{path} is a checkpoint of another run than the one whose folder it lies in")
    wrong = wrong_in_state(state)
    if wrong:
        raise CheckpointError(f"{path} is not opened: {wrong}")
    try:
        return plain.decode(dict(state))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _owner(path: Path) -> str | None:
    """The run_id of the run folder that a checkpoint lies in, if it lies in one that says so."""
    run_id = RunRecord(path.absolute().parent.parent).environment.get("run_id")
    return None if run_id is None else str(run_id)


def load_full_model(path: Path, trust: bool) -> nn.Module:
    """The pickled model of `checkpoint.format=full`; opening a pickle can run code, so only when trusted."""
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
    """Says which class is missing: pickle's own error names the module alone."""

    def find_class(self, module: str, name: str, /) -> Any:
        """The object called `name` in `module`."""
        try:
            return super().find_class(module, name)
        except Exception as error:  # importing a user's module runs it, so anything can come
            file = module.replace(".", "/") + ".py"
            place = (
                "the script or notebook that defined it" if module == "__main__" else f"the folder that holds {file}"
            )
            raise _NoSuchClass(
                f"needs the class {name} of the module {module}, which cannot be imported here ({error}); run this "
                f"from {place}, under its old name, or evaluate the run folder or its checkpoints/best.pt instead: "
                "those hold weights alone, and take the class's new name as model._target_=<module>.<class>"
            ) from error


class _NamingPickle:
    """As much of the module `pickle` as torch.load asks for."""

    Unpickler = _NamingUnpickler
    load = staticmethod(pickle.load)  # files from before torch 1.6


def reload_difference(
    model_path: Path,
    state_path: Path,
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> float:
    """The largest absolute difference between the outputs of a model that was saved both ways: 0 when all is well.

    model_path: its export, just written by this process and so trusted; state_path: the checkpoint with the same
    weights, which go into a fresh copy of `model`. inputs: one batch on the model's device. Nothing is changed.
    """
    from_state = duplicate(model)
    from_state.load_state_dict(load(state_path)["model"])
    outputs = []
    for loaded in (load_full_model(model_path, trust=True), from_state):
        with torch.inference_mode(), autocast():
            outputs.append(loaded.to(inputs[0].device).eval()(*inputs))
    return float((outputs[0] - outputs[1]).abs().max())


def export_full_model(model: nn.Module, path: Path) -> None:
    """`torch.save(model)` for use without dlrun's configs: an export, never what a run is resumed from."""
    buffer = io.BytesIO()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
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
    """Whether a file is a torch archive without our checksum: a pickled model, or a foreign file."""
    if not path.is_file():  # a pipe would be waited for
        return False
    with contextlib.suppress(OSError), path.open("rb") as file:
        start = file.read(4)
        file.seek(-_COMMENT_BYTES, os.SEEK_END)
        unmarked = start == b"PK\x03\x04" and not file.read().startswith(_MARK)
        return unmarked and zipfile.is_zipfile(path)  # one that was cut short is neither
    return False


def weights_sha256(model: nn.Module) -> str:
    """Fingerprint of the weights: key, dtype, shape and little-endian bytes of every tensor, by sorted key.

    The extra state of a module (`get_extra_state`) that is no tensor counts as it is written.
    """
    digest = hashlib.sha256()
    state = model.state_dict()
    for key in sorted(state):
        if not isinstance(state[key], Tensor):
            digest.update(f"{key}|{state[key]!r}".encode())
            continue
        tensor: Tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        raw = tensor.reshape(-1).view(torch.uint8).numpy()
        digest.update((raw if sys.byteorder == "little" else raw[::-1]).tobytes())
    return digest.hexdigest()


def newest_whole(folder: Path, needed: Sequence[str] = ("optimizer",)) -> tuple[Path, dict[str, Any], list[str]]:
    """The newest checkpoint that can be gone on from, its content, and a sentence for each newer one that cannot.

    needed: the keys that it must hold. CheckpointError where there is no checkpoint; UnreadableError, with the reason
    of each, where there are some and none of them will do.
    """
    skipped: list[str] = []
    names = sorted((path.name for path in finished_files(folder)), reverse=True)
    steps = [name for name in names if name.startswith("step_") and name.endswith(".pt")]
    last = [name for name in names if name == "last.pt"]

    for name in [*last, *steps]:
        path = folder / name
        try:
            state = load(path)
        except CheckpointError as error:
            skipped.append(str(error))
            continue
        lacking = lacking_keys(state, needed, path)
        if not lacking:
            return path, state, skipped
        skipped.append(lacking)

    others = [name for name in names if name not in (*last, *steps)]
    if not names:
        raise CheckpointError(f"{folder} holds no checkpoint; start the run again from the beginning")
    if not skipped:
        skipped.append(f"{folder} holds {', '.join(others)} alone, and no state to go on from")
    raise UnreadableError(
        f"no checkpoint in {folder} can be gone on from, and everything is left as it was: {'; '.join(skipped)}"
    )


def lacking_keys(state: dict[str, Any], needed: Sequence[str], path: Path) -> str:
    """A sentence about the keys that a checkpoint lacks; "" where it has them all."""
    lacking = lacking_in_state(state, needed)
    if not lacking:
        return ""
    return f"{path} lacks {', '.join(lacking)}: it was written by another dlrun, which alone can read it"
