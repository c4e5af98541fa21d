"""`dlrun export RUN_OR_CHECKPOINT [format=...] [weights=...] [key=value ...]`: the model for use elsewhere."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from dlrun.config import unheeded
from dlrun.core.bounded import read_json
from dlrun.core.errors import RequestError, did_you_mean
from dlrun.core.new_folder import new_folder
from dlrun.core.shell import quote
from dlrun.inference.saved_model import SavedModel, load_weights, open_saved_model, read_run_name
from dlrun.runs import folder as run_folder
from dlrun.runs.reports.console import Console, facts

Writer = Callable[[SavedModel, Path], list[Path]]  # writes its files into an empty folder and returns them
ON_THE_CPU = ("device.name=cpu", "device.index=null", "device.compile=false")


class Format(NamedTuple):
    """Where a format's `Writer` is, imported when it is asked for, and the packages that it needs."""

    writer: str
    packages: tuple[str, ...] = ()


FORMATS = {
    "onnx": Format("dlrun.inference.export.onnx:write", ("onnx", "onnxscript", "onnxruntime")),
    "safetensors": Format("dlrun.inference.export.safetensors:write", ("safetensors",)),
    "python": Format("dlrun.eject.python:write"),
}
DEFAULT = "onnx"


def export(words: list[str]) -> None:
    """Write the best weights of a run, or those of the file named, and say where they are."""
    place, rest = read_run_name(words, "export"), words[1:]
    name, rest = _taken("format", rest, DEFAULT, tuple(FORMATS))
    which, rest = _taken("weights", rest, "trained", ("trained", "ema"))
    writer = _writer(name)
    unheeded.refuse_unheeded(rest, "dlrun export")
    with open_saved_model(place, [*rest, *ON_THE_CPU]) as saved:
        if which == "ema":
            _take_average(saved)
        target = (saved.folder or saved.path.absolute().parent) / "export"
        with new_folder(target, name) as folder:
            files = [path.name for path in writer(saved, folder.temporary)]
        print_export(saved, name, folder.final, files)


def _taken(key: str, words: Sequence[str], default: str, known: tuple[str, ...]) -> tuple[str, list[str]]:
    """The value of `key=value` among the words, and the other words; RequestError for one that is not known."""
    given = [word.partition("=")[2] for word in words if word.startswith(f"{key}=")]
    value = given[-1] if given else default
    if given and value not in known:
        hint = did_you_mean(value, known, f"{key}=")
        raise RequestError(f"{key}={value} is not known; {hint}type {key}=<one of {', '.join(known)}>")
    return value, [word for word in words if not word.startswith(f"{key}=")]


def _writer(name: str) -> Writer:
    """The format's writer; RequestError where its packages are not installed."""
    lacking = [package for package in FORMATS[name].packages if importlib.util.find_spec(package) is None]
    if lacking:
        raise RequestError(f"format={name} needs {', '.join(lacking)}; type pip install 'dlrun[export]'")
    module, _, function = FORMATS[name].writer.partition(":")
    found: Writer = getattr(importlib.import_module(module), function)
    return found


def _take_average(saved: SavedModel) -> None:
    if saved.averaged_weights is None:
        raise RequestError(
            f"{saved.path} holds no averaged weights, as the run had no trainer.ema_decay; leave out weights=ema"
        )
    load_weights(saved.model, saved.averaged_weights, saved.path)


def print_export(saved: SavedModel, name: str, folder: Path, files: Sequence[str]) -> None:
    """What was written where, and how it compares with the model."""
    epoch = f" (epoch {saved.state['epoch']})" if "epoch" in saved.state else ""
    lines = [("checkpoint", f"{saved.path}{epoch}"), ("format", name), ("folder", run_folder.from_here(folder))]
    lines += [("files", ", ".join(f"{file} ({_size(folder / file)})" for file in files))]
    if (folder / "model.json").is_file():
        checked = read_json(folder / "model.json")["checked"]
        lines += [("checked", str(checked["said"]))]
    loader = next((file for file in files if file.startswith(("load_", "train.py"))), None)
    if loader:
        lines += [("try it", f"python {quote(run_folder.from_here(folder / loader))}")]
    Console().say(facts(lines))


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size:,} bytes" if size < 10_000 else f"{size / 1e3:,.0f} kB" if size < 1e7 else f"{size / 1e6:,.0f} MB"
