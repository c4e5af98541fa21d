"""`format=onnx`: the network as an ONNX file, checked with ONNX Runtime."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlrun.core.errors import RequestError, RunError
from dlrun.inference.export import graph, onnx_recurrent, onnx_table
from dlrun.inference.export.description import ExportSubject, compare_outputs, prepare_subject, write_companions
from dlrun.inference.saved_model import SavedModel

FILE = "model.onnx"


def write(saved_model: SavedModel, folder: Path) -> list[Path]:
    """Write model.onnx, model.json, an example and load_onnx.py into `folder`; any number of rows, 32-bit floats.

    RequestError for a model that is no fixed graph, RunError if ONNX Runtime's outputs differ from torch's.
    """
    subject = prepare_subject(saved_model)
    # ONNX Runtime lacks many operators in float64 and half precision.
    subject.model.float()
    opset, shapes = _save_model(subject, folder / FILE)
    check = compare_outputs(subject, _Session(folder / FILE))
    extra: dict[str, Any] = {"format": "onnx", "opset": opset}
    files = [folder / FILE]
    # What a graph cannot read is left to the loader, and said in model.json.
    absence = onnx_table.explain_absence(saved_model)
    if absence is None:
        extra["table"] = onnx_table.write(subject, folder / FILE, folder, _run_named)
        files.append(folder / onnx_table.FILE)
    elif saved_model.spec.preprocessing:
        extra["table"] = {"model_file": None, "reason": absence}
    return [*files, *write_companions(subject, folder, FILE, check, extra, shapes)]


def _save_model(subject: ExportSubject, path: Path) -> tuple[int, list[graph.Shape]]:
    """Write the ONNX file; return its opset and the shapes of the inputs."""
    inputs = subject.sample()

    # Recurrent nets are written in ONNX's own operators.
    recurrent_net = onnx_recurrent.rebuild(subject.model)
    any_length = onnx_recurrent.takes_any_length(subject.model, subject.saved_model.spec)
    program = graph.trace(recurrent_net or subject.model, inputs, subject.names, any_length)
    try:
        with graph.silence():
            onnx_program: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=list(subject.names), output_names=["output"]
            )
    except torch.onnx.OnnxExporterError as error:
        message = str(error.__cause__ or error).strip().splitlines()[0]
        raise RequestError(
            f"{type(subject.model).__name__} uses what ONNX does not have ({message[:200]}); type format=safetensors"
        ) from error

    shapes = graph.describe_shapes(inputs, any_length)
    # Shown by viewers, and by ONNX Runtime when an input does not fit.
    _name_dimensions(onnx_program.model.graph, shapes)
    _remove_stack_traces(onnx_program.model)
    onnx_program.save(path)
    return int(onnx_program.model.opset_imports[""]), shapes


def _name_dimensions(onnx_graph: Any, shapes: list[graph.Shape]) -> None:
    """Rename free dimensions from torch's symbols, like s77, to `batch` and `length`."""
    names: dict[str, str] = {}
    for value, shape in zip(onnx_graph.inputs, shapes, strict=True):
        for symbol, name in zip(value.shape, shape, strict=True):
            if isinstance(name, str):
                names[str(symbol)] = name

    for value in (*onnx_graph.inputs, *onnx_graph.outputs):
        dimensions = [names.get(str(size), size) for size in value.shape]
        value.shape = type(value.shape)(dimensions)


def _remove_stack_traces(model: Any) -> None:
    """Remove the paths of source files on this machine, which torch notes at each node."""
    for onnx_graph in (model.graph, *model.functions.values()):
        for node in onnx_graph.all_nodes():
            node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)


class _Session:
    """ONNX Runtime on the file, called like the model; RunError if it cannot load the file or run it."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # By default it would take all cores, whatever the run was told.
        options.intra_op_num_threads = torch.get_num_threads()
        self._open = partial(onnxruntime.InferenceSession, path, options, providers=["CPUExecutionProvider"])
        self.session: Any = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        try:
            # Opened by the first call, so that its errors are explained here too.
            if self.session is None:
                self.session = self._open()
            names = [entry.name for entry in self.session.get_inputs()]
            arrays = [x.numpy() for x in inputs]
            (outputs,) = self.session.run(None, dict(zip(names, arrays, strict=True)))
        except Exception as error:
            # ONNX Runtime has an exception class per error code, without a common base.
            raise _make_error(error) from error
        return torch.from_numpy(outputs)

    def run_named(self, feed: dict[str, Any]) -> dict[str, Any]:
        """All outputs by name, of inputs by name."""
        try:
            self.session = self._open()
            outputs = self.session.run(None, feed)
        except Exception as error:
            # ONNX Runtime has an exception class per error code, without a common base.
            raise _make_error(error) from error
        return dict(zip([entry.name for entry in self.session.get_outputs()], outputs, strict=True))


def _run_named(path: Path, feed: dict[str, Any]) -> dict[str, Any]:
    return _Session(path).run_named(feed)


def _make_error(error: Exception) -> RunError:
    message = " ".join(str(error).split())
    return RunError(f"ONNX Runtime cannot run the exported file ({message[:300]}); nothing was kept")
