"""`probes`: inputs to ask the model before and after training, as a course does with "predict 4"."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dlrun.core.errors import RequestError
from dlrun.data.spec import DataSpec
from dlrun.engine.evaluation import evaluating
from dlrun.engine.untouched import untouched
from dlrun.experiment.context import Answer, RunContext


@torch.inference_mode()
def predict_probes(parts: RunContext, probes: Sequence[Any]) -> dict[str, Answer]:
    """The answer to each probe: a value, the probability of class 1, the class's name, or a tagged word.

    A probe is a number, a list of numbers (one a feature, in the data's own units) or a text (token data).
    RequestError when the data are of another kind.
    """
    found: dict[str, Answer] = {}
    for i, probe in enumerate(probes):
        inputs = _inputs(probe, parts.splits.spec, f"probes[{i}]")
        first = inputs[0].to(parts.runtime.dtype) if inputs[0].is_floating_point() else inputs[0]
        with untouched(parts.model), evaluating(parts.model), parts.runtime.autocast():
            outputs = parts.model(first.to(parts.runtime.device), *inputs[1:])
        found[_name(probe)] = _answer(parts, outputs)
    return found


def _name(probe: Any) -> str:
    """4.0 as 4, a list as its numbers, a text as it is."""
    if isinstance(probe, list):
        return ", ".join(_name(value) for value in probe)
    return f"{probe:g}" if isinstance(probe, float) else str(probe)


def _inputs(probe: Any, spec: DataSpec, key: str) -> tuple[Tensor, ...]:
    """One row (1, ...) of what the model is called with, the lengths of a text besides."""
    if spec.kind == "vector":
        values = probe if isinstance(probe, list) else [probe]
        if len(values) != spec.input_size or not all(isinstance(v, int | float) for v in values):
            wanted = "a number" if spec.input_size == 1 else f"{spec.input_size} numbers, [...]"
            raise RequestError(f"{key}={probe}: these data have {spec.input_size} feature(s); type {wanted}")
        x = torch.tensor([values], dtype=torch.float64)
        if spec.mean:
            x = (x - torch.tensor(spec.mean)) / torch.tensor(spec.std)
        return (x,)
    if spec.kind == "tokens":
        text = str(probe)
        unknown = sorted(set(text) - set(spec.vocabulary))
        if unknown or not 0 < len(text) <= spec.input_shape[0]:
            known = "".join(spec.vocabulary)
            raise RequestError(f"{key}={text}: type 1 to {spec.input_shape[0]} of the characters {known}")
        codes = torch.tensor([[spec.vocabulary.index(character) for character in text]])
        return codes, torch.tensor([len(text)])
    raise RequestError(f"{key}: data of kind {spec.kind} cannot be written in a config; type probes=[]")


def _answer(parts: RunContext, outputs: Tensor) -> Answer:
    spec, task = parts.splits.spec, parts.task
    if spec.task == "regression":
        return float(outputs.flatten()[0])
    if spec.task == "binary":
        return float(task.probabilities(outputs).flatten()[0])
    predicted = task.predictions(outputs).flatten().tolist()
    names = spec.class_names or [str(i) for i in range(spec.output_size)]
    return "".join(names[i] for i in predicted)
