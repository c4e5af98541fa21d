"""`format=onnx`: the network as an ONNX file, checked with ONNX Runtime."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlrun.core.errors import RequestError, RunError
from dlrun.inference.export import graph, onnx_recurrent
from dlrun.inference.export.description import ExportSubject, compare_outputs, prepare_subject, write_companions
from dlrun.inference.saved_model import SavedModel

FILE = "model.onnx"


def write(saved: SavedModel, folder: Path) -> list[Path]:
    """Write model.onnx, model.json, an example and load_onnx.py into `folder`; any number of rows, 32-bit floats.

    RequestError for a model that is no fixed graph, RunError where ONNX Runtime answers something else than torch.
    """
    exported = prepare_subject(saved)
    exported.model.float()
    opset, shapes = _save(exported, folder / FILE)
    checked = compare_outputs(exported, _Session(folder / FILE))
    extra = {"format": "onnx", "opset": opset}
    return [folder / FILE, *write_companions(exported, folder, FILE, checked, extra, shapes)]


def _save(exported: ExportSubject, path: Path) -> tuple[int, list[graph.Shape]]:
    """Write the file; returns its opset and the shapes of the inputs."""
    inputs = exported.sample()
    rebuilt = onnx_recurrent.rebuild(exported.model)
    free = rebuilt is not None
    program = graph.trace(rebuilt or exported.model, inputs, exported.names, free)
    named: dict[str, Any] = {"input_names": list(exported.names), "output_names": ["output"]}
    try:
        with graph.silence():
            made: Any = torch.onnx.export(program, dynamo=True, verbose=False, **named)
    except torch.onnx.OnnxExporterError as error:
        said = str(error.__cause__ or error).strip().splitlines()[0]
        raise RequestError(
            f"{type(exported.model).__name__} uses what ONNX does not have ({said[:200]}); type format=safetensors"
        ) from error
    shapes = graph.describe_shapes(inputs, free)
    _name_dimensions(made.model.graph, shapes)
    made.save(path)
    return int(made.model.opset_imports[""]), shapes


def _name_dimensions(made: Any, shapes: list[graph.Shape]) -> None:
    """`batch` and `length` instead of torch's s77."""
    names: dict[str, str] = {}
    for value, shape in zip(made.inputs, shapes, strict=True):
        for found, wanted in zip(value.shape, shape, strict=True):
            if isinstance(wanted, str):
                names[str(found)] = wanted
    for value in (*made.inputs, *made.outputs):
        value.shape = type(value.shape)([names.get(str(n), n) for n in value.shape])


class _Session:
    """ONNX Runtime on the file, called as the model is; RunError where it cannot take the file or run it."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._open = partial(onnxruntime.InferenceSession, path, options, providers=["CPUExecutionProvider"])
        self.session: Any = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        try:
            self.session = self.session or self._open()
            names = [entry.name for entry in self.session.get_inputs()]
            (found,) = self.session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
        except Exception as error:  # ONNX Runtime has a class an error code, all its own
            said = " ".join(str(error).split())
            raise RunError(f"ONNX Runtime cannot run the exported file ({said[:300]}); nothing was kept") from error
        return torch.from_numpy(found)
