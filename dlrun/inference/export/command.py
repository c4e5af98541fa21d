"""`dlrun export RUN_OR_CHECKPOINT [format=...] [weights=...] [key=value ...]`: the model for use elsewhere."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from dlrun.config import unheeded
from dlrun.core.bounded import read_json
from dlrun.core.errors import RequestError
from dlrun.core.files import convert_write_errors
from dlrun.core.new_folder import create_folder
from dlrun.core.shell import quote
from dlrun.inference.saved_model import SavedModel, load_weights, open_saved_model, read_run_name
from dlrun.runs import folder as run_folder
from dlrun.runs.reports.console import Console, format_facts

# Writes its files into an empty folder and returns them.
Writer = Callable[[SavedModel, Path], list[Path]]
_ON_THE_CPU = ("device.name=cpu", "device.index=null", "device.compile=false")


class Format(NamedTuple):
    """Where the `Writer` of a format is, imported on demand, and the packages that it needs."""

    writer: str
    packages: tuple[str, ...] = ()


FORMATS = {
    "onnx": Format("dlrun.inference.export.onnx:write", ("onnx", "onnxscript", "onnxruntime")),
    "safetensors": Format("dlrun.inference.export.safetensors:write", ("safetensors",)),
    "python": Format("dlrun.eject.python:write"),
}


def export(words: list[str], format: str, weights: str) -> None:
    """Export the best weights of a run, or those of the named file, and print what was written."""
    place = read_run_name(words, "export")
    overrides = words[1:]
    # A missing package is reported before the checkpoint is read.
    write = _import_writer(format)
    unheeded.refuse_unheeded(overrides, "dlrun export")

    with open_saved_model(place, [*overrides, *_ON_THE_CPU]) as saved_model:
        if weights == "ema":
            _load_averaged_weights(saved_model)

        # The folder appears under its final name once every file in it is complete.
        parent = (saved_model.folder or saved_model.path.absolute().parent) / "export"
        with (
            convert_write_errors(parent, "make room there, or copy the run"),
            create_folder(parent, format) as folder,
        ):
            files = [path.name for path in write(saved_model, folder.temporary)]
        _print_export(saved_model, format, folder.final, files)


def _import_writer(name: str) -> Writer:
    """Import the writer of a format; RequestError if its packages are not installed."""
    # find_spec does not import the packages, which would take seconds.
    missing = [package for package in FORMATS[name].packages if importlib.util.find_spec(package) is None]
    if missing:
        raise RequestError(f"format={name} needs {', '.join(missing)}; type pip install 'dlrun[export]'")

    module, _, function = FORMATS[name].writer.partition(":")
    writer: Writer = getattr(importlib.import_module(module), function)
    return writer


def _load_averaged_weights(saved_model: SavedModel) -> None:
    if saved_model.averaged_weights is None:
        raise RequestError(
            f"{saved_model.path} holds no averaged weights, as the run had no trainer.ema_decay; leave out weights=ema"
        )
    load_weights(saved_model.model, saved_model.averaged_weights, saved_model.path)


def _print_export(saved_model: SavedModel, name: str, folder: Path, files: Sequence[str]) -> None:
    """Print the files that were written, how they were checked, and the command that tries them."""
    epoch = f" (epoch {saved_model.state['epoch']})" if "epoch" in saved_model.state else ""
    sizes = [f"{file} ({_format_size(folder / file)})" for file in files]
    lines = [
        ("checkpoint", f"{saved_model.path}{epoch}"),
        ("format", name),
        ("folder", run_folder.format_path(folder)),
        ("files", ", ".join(sizes)),
    ]
    if (folder / "model.json").is_file():
        about = read_json(folder / "model.json")
        check = about["checked"]
        lines.append(("checked", str(check["said"])))
        table = about.get("table", {})
        if "reason" in table:
            lines.append(("table", table["reason"]))

    # A loader, or the training script of format=python.
    scripts = [file for file in files if file.startswith(("load_", "train.py"))]
    if scripts:
        lines.append(("try it", f"python {quote(run_folder.format_path(folder / scripts[0]))}"))
    Console().say(format_facts(lines))


def _format_size(path: Path) -> str:
    size = path.stat().st_size
    if size < 10_000:
        return f"{size:,} bytes"
    if size < 1e7:
        return f"{size / 1e3:,.0f} kB"
    return f"{size / 1e6:,.0f} MB"
