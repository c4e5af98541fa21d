"""Companions of an exported file: model.json, an example of raw input, and a loader that needs no dlrun."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlrun.core import user_code
from dlrun.core.errors import RequestError, RunError
from dlrun.core.files import write_atomically
from dlrun.data.batches import Batches
from dlrun.data.columns.cells import GAPS
from dlrun.data.columns.preprocessing import GAP
from dlrun.data.tokens import UNKNOWN, WORD_PATTERN
from dlrun.data.windows import SeriesPreprocessing
from dlrun.engine.multitask import MultitaskObjective
from dlrun.engine.objective import Objective
from dlrun.inference.export import loaders
from dlrun.inference.export.example_input import Example, choose_rows, has_words, make_example
from dlrun.inference.saved_model import SavedModel

# Names of the inputs by kind of data; x for all other kinds.
_INPUT_NAMES = {"tokens": ("codes", "lengths")}
# Data whose pixels were 0 to 255: an example of theirs can be a picture file.
_IMAGE_TARGETS = ("dlrun.data.images.", "dlrun.data.folders.")
# A list of plain values in indented JSON, which reads better on one line.
_LIST = re.compile(r'\[\n(?:\s+(?:"(?:[^"\\]|\\.)*"|[^"\s\[\]{}]+),?\n)+\s*\]')
# Share of the largest output, or of 1: rounding stays far below it.
_TOLERANCE = 1e-3


@dataclass
class ExportSubject:
    """The model to export, in evaluation mode on the CPU, and rows to check it with."""

    saved_model: SavedModel
    model: nn.Module
    # A name for the rows, for messages.
    rows: str
    batches: Batches

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inputs."""
        names = _INPUT_NAMES.get(self.saved_model.spec.kind, ("x",))
        # A user's model may take more inputs than its kind of data has.
        count = len(next(self.iterate_inputs()))
        return (*names, *(f"x{number}" for number in range(len(names) + 1, count + 1)))

    def iterate_inputs(self) -> Iterator[tuple[Tensor, ...]]:
        """Iterate over batches in the precision of the model, contiguous in memory."""
        dtype = next(self.model.parameters()).dtype
        for batch, _ in self.batches.epoch(1):
            inputs = [x.to(dtype) if x.is_floating_point() else x for x in batch]
            yield tuple(x.contiguous() for x in inputs)

    def sample(self) -> tuple[Tensor, ...]:
        """Return two rows to trace with, of at least two codes: torch takes a size of one for a constant."""
        # Twice the first rows: a data set may have a single one.
        inputs = [torch.cat([x[:2], x[:2]])[:2] for x in next(self.iterate_inputs())]
        if self.saved_model.spec.kind == "tokens" and inputs[0].shape[1] == 1:
            inputs[0] = functional.pad(inputs[0], (0, 1))
        return tuple(inputs)


def prepare_subject(saved_model: SavedModel) -> ExportSubject:
    """Prepare a saved model for export, in place; RequestError if it does not take the rows to check it with."""
    rows, batches = choose_rows(saved_model)
    model = saved_model.model.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    subject = ExportSubject(saved_model, model, rows, batches)
    try:
        with torch.inference_mode():
            model(*subject.sample())
    except Exception as error:
        # The model may be the user's own and raise anything.
        message = f"the model does not take {rows}: {user_code.get_first_line(error)}"
        raise RequestError(user_code.add_user_line(message, error)) from error
    return subject


@torch.inference_mode()
def compare_outputs(subject: ExportSubject, run_exported: Callable[..., Tensor]) -> dict[str, Any]:
    """Return the difference of the exported file's outputs from the model's, on all rows; RunError if it is too large.

    run_exported: called like the model, with tensors on the CPU.
    """
    difference = 0.0
    largest = 0.0
    count = 0
    for inputs in subject.iterate_inputs():
        expected = subject.model(*inputs)
        # Both run on the CPU in the same precision, so only rounding may differ.
        outputs = run_exported(*inputs)
        difference = max(difference, float((outputs - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
        count += len(expected)

    # Written so that NaN fails too.
    if not difference <= _TOLERANCE * max(1.0, largest):
        raise RunError(
            f"the exported file's outputs differ from the model's by up to {difference:.3g}, so it was not kept"
        )

    rows = subject.rows.replace("rows", "row", count == 1)
    summary = f"{count:,} {rows}: at most {difference:.2g} from torch's outputs, which reach {largest:.3g}"
    return {
        "rows": count,
        "on": subject.rows,
        "max_difference": difference,
        "largest_output": largest,
        "said": summary,
    }


def write_companions(
    subject: ExportSubject,
    folder: Path,
    file: str,
    check: dict[str, Any],
    extra: dict[str, Any],
    shapes: Sequence[Any],
    loader: bool = True,
) -> list[Path]:
    """Write model.json, the example and the loader beside `file`; return their paths.

    extra: entries of model.json that only this format has. shapes: of the inputs, with a name for a free dimension.
    """
    saved_model = subject.saved_model
    spec = saved_model.spec
    has_byte_pixels = str(saved_model.settings.data.target).startswith(_IMAGE_TARGETS)
    example = make_example(spec, has_byte_pixels, next(subject.iterate_inputs()))
    with torch.inference_mode():
        outputs = subject.model(*example.inputs)

    inputs = []
    for name, x, shape in zip(subject.names, example.inputs, shapes, strict=False):
        inputs.append({"name": name, "dtype": _name_dtype(x), "shape": list(shape)})
    # A tagger has an output at each position.
    length = [shapes[0][1]] if spec.task == "tagging" else []
    output_shape = ["batch", *length, spec.output_size]

    description = {
        "model_file": file,
        **extra,
        "from": describe_origin(saved_model),
        "task": spec.task,
        "inputs": inputs,
        "outputs": [{"name": "output", "dtype": _name_dtype(outputs), "shape": output_shape}],
        "output_to_probability": name_probability_function(saved_model),
        # Of a Poisson regression, whose model gives logarithms.
        **({"output_to_value": "exp"} if saved_model.objective.is_exponential else {}),
        # Of several outputs: which columns of the output are whose.
        **({"columns": describe_columns(saved_model)} if spec.outputs else {}),
        # Of an autoencoder: its output is its normalized input, flattened, or logits of that.
        **({"reconstructs": True} if spec.reconstructs else {}),
        **({"output_to_value": "sigmoid"} if saved_model.objective.is_logistic else {}),
        **_describe_target_scale(saved_model),
        "class_names": list_class_names(saved_model),
        "preprocessing": _describe_preprocessing(saved_model, example, shapes[0]),
        # Whoever loads the export elsewhere can compare with these outputs.
        "example": {"file": example.file, "outputs": outputs.tolist()},
        "checked": check,
    }
    text = _LIST.sub(_join_list, json.dumps(description, indent=2))
    files = [folder / "model.json", folder / example.file]
    write_atomically(files[0], text.encode() + b"\n")
    write_atomically(files[1], example.content)

    # No loader can know how the user's own data become several inputs.
    if loader and example.kind != "arrays":
        files.append(folder / "load_onnx.py")
        write_atomically(files[-1], loaders.render_loader(example.kind, spec.task).encode())
    return files


def _describe_target_scale(saved_model: SavedModel) -> dict[str, Any]:
    """The scale of the target of a regression on a table, whose values are output * std + mean."""
    if not saved_model.objective.scales_targets:
        return {}
    spec = saved_model.spec
    return {"output_to_value": {"mean": list(spec.target_mean), "std": list(spec.target_std)}}


def _name_dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _join_list(match: re.Match[str]) -> str:
    """Put a list of plain values, which json.dumps spreads over as many lines, on one line."""
    values = [line.strip() for line in match[0][1:-1].strip().splitlines()]
    return f"[{' '.join(values)}]"


def describe_origin(saved_model: SavedModel) -> dict[str, Any]:
    """Return where the weights come from: checkpoint, run, model, data and versions."""
    choices = saved_model.request.choices
    return {
        "checkpoint": str(saved_model.path),
        "epoch": saved_model.state.get("epoch"),
        "run_id": saved_model.state.get("run_id"),
        "model": choices.get("model"),
        "model_settings": saved_model.settings.model.arguments,
        "data": choices.get("data"),
        "dlrun": version("dlrun"),
        "torch": str(torch.__version__),
    }


def name_probability_function(saved_model: SavedModel) -> str | None:
    """Return the name of the function from outputs to probabilities; None for regression and several outputs."""
    return _name_function(saved_model.objective)


def _name_function(objective: Objective) -> str | None:
    if objective.spec.task in ("regression", "multitask"):
        return None
    if objective.spec.task in ("binary", "multilabel"):
        # A model trained with plain BCE has the sigmoid inside; only the objective knows.
        half = torch.full((1, 1), 0.5)
        is_probability = torch.equal(objective.compute_probabilities(half).flatten(), half.flatten())
        return "identity" if is_probability else "sigmoid"
    return "exp" if objective.loss_name == "nll" else "softmax"


def describe_columns(saved_model: SavedModel) -> list[dict[str, Any]]:
    """Return what the columns of several outputs are: from, up to but not including, and how they are read."""
    objective = saved_model.objective
    assert isinstance(objective, MultitaskObjective)
    columns = []
    start = 0
    for output in saved_model.spec.outputs:
        part = objective.parts[output.name]
        column: dict[str, Any] = {"name": output.name, "task": output.task, "from": start, "to": start + output.size}
        column["output_to_probability"] = _name_function(part)
        column["class_names"] = [output.name_class(number) for number in range(output.class_count)]
        if part.is_exponential:
            column["output_to_value"] = "exp"
        columns.append(column)
        start += output.size
    return columns


def list_class_names(saved_model: SavedModel) -> list[str]:
    """Return the name of each class, its number if the data have no names; empty for regression."""
    spec = saved_model.spec
    if spec.class_names:
        return list(spec.class_names)
    count = {"regression": 0, "multitask": 0, "binary": 2}.get(spec.task, spec.output_size)
    return [str(number) for number in range(count)]


def _describe_preprocessing(saved_model: SavedModel, example: Example, shape: Sequence[int | str]) -> dict[str, Any]:
    """Return what turns raw input into the model's. shape: of the first input."""
    spec = saved_model.spec
    # Without normalization the constants of a loader do nothing: mean 0, std 1.
    description: dict[str, Any] = {"raw_input": example.kind}
    constants = {"mean": list(spec.mean) or [0.0], "std": list(spec.std) or [1.0]}
    if example.kind == "picture":
        channels, height, width = spec.input_shape
        mode = "L" if channels == 1 else "RGB"
        if spec.pixel_range:
            description["pixel_range"] = list(spec.pixel_range)
        return description | {"mode": mode, "height": height, "width": width, "divide_by": 255, **constants}

    if example.kind == "columns":
        # A gap, and the category that it is.
        gaps = {"gaps": sorted(GAPS), "gap_category": GAP}
        return description | gaps | dict(spec.preprocessing)

    if example.kind == "series":
        # The last rows of a table, in the order of time and without gaps.
        fitted = SeriesPreprocessing.from_plain(spec.preprocessing)
        phases = 2 * len(fitted.calendar)
        # Phases of a calendar are columns of the table like others.
        constants = {"mean": [*fitted.mean, *[0.0] * phases], "std": [*fitted.std, *[1.0] * phases]}
        return description | fitted.to_plain() | {"features": list(fitted.input_names), **constants}

    if example.kind == "table":
        return description | {"feature_names": list(spec.feature_names), **constants}

    if example.kind == "document":
        # As a text was cut into tokens; those that are not in the vocabulary have the code `unknown`.
        length = shape[1] if isinstance(shape[1], int) else 0
        tokens = {"pattern": WORD_PATTERN, "unknown": UNKNOWN, "vocabulary": list(spec.vocabulary)}
        return description | dict(spec.preprocessing) | tokens | {"padding": 0, "pad_to": length}

    if example.kind == "text":
        # 0: padded to the longest text of a batch.
        length = shape[1] if isinstance(shape[1], int) else 0
        vocabulary = list(spec.vocabulary)
        return description | {"vocabulary": vocabulary, "words": has_words(spec), "padding": 0, "pad_to": length}

    target = saved_model.settings.data.target
    note = f"the array is what the model takes: what {target} did before is its own"
    return description | {"note": note, **(constants if spec.mean else {})}
