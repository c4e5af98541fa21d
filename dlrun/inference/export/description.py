"""What goes with an exported file: model.json, an example of raw input, and a loader that needs no dlrun."""

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
from dlrun.inference.export import loaders
from dlrun.inference.export.example_input import Example, choose_rows, has_words, make_example
from dlrun.inference.saved_model import SavedModel

INPUT_NAMES = {"tokens": ("codes", "lengths")}  # of other kinds: x
_PICTURES = ("dlrun.data.images.", "dlrun.data.folders.")  # whose pixels were 0 to 255
_LIST = re.compile(r'\[\n(?:\s+(?:"(?:[^"\\]|\\.)*"|[^"\s\[\]{}]+),?\n)+\s*\]')  # of plain values, in indented JSON
_ALLOWED = 1e-3  # of the largest answer, or of 1: rounding stays far below it


@dataclass
class ExportSubject:
    """The model that is exported, in evaluation mode on the CPU, and rows to try it on."""

    saved: SavedModel
    model: nn.Module
    rows: str  # what the rows are
    batches: Batches

    @property
    def names(self) -> tuple[str, ...]:
        """Of the inputs."""
        named = INPUT_NAMES.get(self.saved.spec.kind, ("x",))
        more = range(len(named), len(next(self.inputs())))  # of a net of the user's own
        return (*named, *(f"x{number + 1}" for number in more))

    def inputs(self) -> Iterator[tuple[Tensor, ...]]:
        """Batches in the precision of the model, laid out plainly."""
        dtype = next(self.model.parameters()).dtype
        for inputs, _ in self.batches.epoch(1):
            yield tuple((x.to(dtype) if x.is_floating_point() else x).contiguous() for x in inputs)

    def sample(self) -> tuple[Tensor, ...]:
        """Two rows to trace with, of two codes at least: torch takes a size of one for a constant."""
        inputs = [torch.cat([x[:2], x[:2]])[:2] for x in next(self.inputs())]
        if self.saved.spec.kind == "tokens" and inputs[0].shape[1] == 1:
            inputs[0] = functional.pad(inputs[0], (0, 1))
        return tuple(inputs)


def prepare_subject(saved: SavedModel) -> ExportSubject:
    """What is to be exported; the saved model itself is brought into its shape."""
    rows, batches = choose_rows(saved)
    model = saved.model.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    exported = ExportSubject(saved, model, rows, batches)
    try:
        with torch.inference_mode():
            model(*exported.sample())
    except Exception as error:  # the model may be the user's own
        sentence = f"the model does not take {rows}: {user_code.first_line(error)}"
        raise RequestError(user_code.with_place(sentence, error)) from error
    return exported


@torch.inference_mode()
def compare_outputs(subject: ExportSubject, answers: Callable[..., Tensor]) -> dict[str, Any]:
    """How far the answers of the exported file are from the model's, on all rows; RunError where it is too far.

    answers: called as the model is, with tensors on the CPU.
    """
    difference = largest = 0.0
    count = 0
    for inputs in subject.inputs():
        expected, found = subject.model(*inputs), answers(*inputs)
        difference = max(difference, float((found - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
        count += len(expected)
    if not difference <= _ALLOWED * max(1.0, largest):
        raise RunError(f"the exported file answers up to {difference:.3g} from what the model does, so it was not kept")
    rows = subject.rows.replace("rows", "row", count == 1)
    said = f"{count:,} {rows}: at most {difference:.2g} from torch's outputs, which reach {largest:.3g}"
    return {"rows": count, "on": subject.rows, "max_difference": difference, "largest_output": largest, "said": said}


def write_companions(
    subject: ExportSubject,
    folder: Path,
    file: str,
    checked: dict[str, Any],
    extra: dict[str, Any],
    shapes: Sequence[Any],
    loader: bool = True,
) -> list[Path]:
    """Write model.json, the example and the loader beside `file`; returns their paths.

    extra: what only this format says. shapes: of the inputs, with names where any number will do.
    """
    saved, spec = subject.saved, subject.saved.spec
    pictures = str(saved.settings.data.target).startswith(_PICTURES)
    shown = make_example(spec, pictures, next(subject.inputs()))
    if shown.kind == "arrays":
        loader = False  # none knows how somebody's own data become several inputs
    with torch.inference_mode():
        outputs = subject.model(*shown.inputs)
    dtypes = [str(x.dtype).removeprefix("torch.") for x in (*shown.inputs, outputs)]
    named = zip(subject.names, dtypes, shapes, strict=False)
    length = [shapes[0][1]] if spec.task == "tagging" else []
    about = {
        "model_file": file,
        **extra,
        "from": describe_origin(saved),
        "task": spec.task,
        "inputs": [{"name": name, "dtype": dtype, "shape": list(shape)} for name, dtype, shape in named],
        "outputs": [{"name": "output", "dtype": dtypes[-1], "shape": ["batch", *length, spec.output_size]}],
        "output_to_probability": name_probability_function(saved),
        "class_names": list_class_names(saved),
        "preprocessing": describe_preprocessing(saved, shown, shapes[0]),
        "example": {"file": shown.file, "outputs": outputs.tolist()},
        "checked": checked,
    }
    write_atomically(folder / "model.json", _LIST.sub(_one_line, json.dumps(about, indent=2)).encode() + b"\n")
    write_atomically(folder / shown.file, shown.content)
    files = [folder / "model.json", folder / shown.file]
    if loader:
        files.append(folder / f"load_{extra['format']}.py")
        write_atomically(files[-1], loaders.render_loader(extra["format"], shown.kind, spec.task).encode())
    return files


def _one_line(found: re.Match[str]) -> str:
    values = [line.strip() for line in found[0][1:-1].strip().splitlines()]
    return f"[{' '.join(values)}]"


def describe_origin(saved: SavedModel) -> dict[str, Any]:
    """Where the weights come from."""
    plain, choices = saved.settings, saved.request.choices
    return {
        "checkpoint": str(saved.path),
        "epoch": saved.state.get("epoch"),
        "run_id": saved.state.get("run_id"),
        "model": choices.get("model"),
        "model_settings": plain.model.arguments,
        "data": choices.get("data"),
        "dlrun": version("dlrun"),
        "torch": str(torch.__version__),
    }


def name_probability_function(saved: SavedModel) -> str | None:
    """The function that makes probabilities of the outputs; null for quantities."""
    task = saved.task
    if task.spec.task == "regression":
        return None
    if task.spec.task == "binary":
        half = torch.full((1, 1), 0.5)
        return "identity" if torch.equal(task.compute_probabilities(half), half[0]) else "sigmoid"
    return "exp" if task.loss_name == "nll" else "softmax"


def list_class_names(saved: SavedModel) -> list[str]:
    """What each class is called; its number where the data give no names."""
    spec = saved.spec
    count = {"regression": 0, "binary": 2}.get(spec.task, spec.output_size)
    return list(spec.class_names) or [str(i) for i in range(count)]


def describe_preprocessing(saved: SavedModel, shown: Example, shape: Sequence[int | str]) -> dict[str, Any]:
    """What becomes of raw input before the model sees it. shape: of the first input."""
    spec = saved.spec
    about: dict[str, Any] = {"raw_input": shown.kind}
    constants = {"mean": list(spec.mean) or [0.0], "std": list(spec.std) or [1.0]}
    if shown.kind == "picture":
        channels, height, width = spec.input_shape
        mode = "L" if channels == 1 else "RGB"
        return about | {"mode": mode, "height": height, "width": width, "divide_by": 255, **constants}
    if shown.kind == "table":
        return about | {"feature_names": list(spec.feature_names), **constants}
    if shown.kind == "text":
        width = shape[1] if isinstance(shape[1], int) else 0  # 0: as long as the longest
        return about | {"vocabulary": list(spec.vocabulary), "words": has_words(spec), "padding": 0, "pad_to": width}
    made_by = saved.settings.data.target
    known = constants if spec.mean else {}
    return about | {"note": f"the array is what the model takes: what {made_by} did before is its own", **known}
