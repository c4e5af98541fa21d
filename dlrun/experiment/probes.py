"""`probes`: inputs to predict before and after training, as a lesson does with "predict 4"."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dlrun.core.errors import RequestError
from dlrun.data.spec import DataSpec
from dlrun.data.tokens import Tokenizer, is_text
from dlrun.engine.device import Runtime
from dlrun.engine.evaluation import evaluation_mode
from dlrun.engine.objective import Objective
from dlrun.engine.preserve import preserve_state
from dlrun.engine.state import TrainState
from dlrun.experiment.context import Answer


@torch.inference_mode()
def predict_probes(probes: Sequence[Any], state: TrainState, runtime: Runtime) -> dict[str, Answer]:
    """Predict each probe: a value, the probability of class 1, the name of a class, or a tagged word.

    A probe is a number, a list of numbers (one per feature, in the data's own units) or a text (token data).
    RequestError where the data are of another kind.
    """
    model = state.model
    answers: dict[str, Answer] = {}
    for number, probe in enumerate(probes):
        row, *lengths = _encode(probe, state.objective.spec, f"probes[{number}]")
        if row.is_floating_point():
            row = row.to(runtime.dtype)
        with preserve_state(model), evaluation_mode(model), runtime.autocast():
            outputs = model(row.to(runtime.device), *lengths)
        answers[_format_probe(probe)] = _decode(state.objective, outputs)
    return answers


def _format_probe(probe: Any) -> str:
    """Format a probe: 4.0 as 4, a list as its numbers, a text as it is."""
    if isinstance(probe, list):
        return ", ".join(_format_probe(value) for value in probe)
    return f"{probe:g}" if isinstance(probe, float) else str(probe)


def _encode(probe: Any, spec: DataSpec, key: str) -> tuple[Tensor, ...]:
    """The arguments of the model for one probe: a row (1, ...), and for a text its length (1,)."""
    if spec.kind == "vector":
        values = probe if isinstance(probe, list) else [probe]
        are_numbers = all(isinstance(value, int | float) for value in values)
        if len(values) != spec.input_size or not are_numbers:
            expected = "a number" if spec.input_size == 1 else f"{spec.input_size} numbers, [...]"
            raise RequestError(f"{key}={probe}: these data have {spec.input_size} feature(s); type {expected}")
        x = torch.tensor([values], dtype=torch.float64)
        # Standardize as the training data were.
        if spec.mean:
            x = (x - torch.tensor(spec.mean)) / torch.tensor(spec.std)
        return (x,)

    if spec.kind == "tokens":
        text = str(probe)
        if is_text(spec.preprocessing):
            return Tokenizer.from_plain(spec.preprocessing, spec.vocabulary).encode_all([text])
        unknown = set(text) - set(spec.vocabulary)
        if unknown or not 0 < len(text) <= spec.input_shape[0]:
            known = "".join(spec.vocabulary)
            raise RequestError(f"{key}={text}: type 1 to {spec.input_shape[0]} of the characters {known}")
        codes = torch.tensor([[spec.vocabulary.index(character) for character in text]])
        return codes, torch.tensor([len(text)])

    raise RequestError(f"{key}: data of kind {spec.kind} cannot be written in a config; type probes=[]")


def _decode(objective: Objective, outputs: Tensor) -> Answer:
    spec = objective.spec
    if spec.reconstructs:
        raise RequestError("probes: an autoencoder answers with as many values as it is asked; type probes=[]")
    if spec.task == "regression":
        values = objective.predict(outputs) if objective.scales_targets else outputs
        return float(values.flatten()[0])
    if spec.task == "binary":
        return float(objective.compute_probabilities(outputs).flatten()[0])

    if spec.outputs:
        raise RequestError("probes: a net of several outputs has no single answer; type probes=[], and dlrun predict")
    if spec.task == "multilabel":
        labels = spec.class_names or [str(number) for number in range(spec.output_size)]
        is_positive = objective.predict(outputs).flatten().tolist()
        return ", ".join(label for label, positive in zip(labels, is_positive, strict=True) if positive)

    # One class, or for tagging one a token.
    classes = objective.predict(outputs).flatten().tolist()
    names = spec.class_names or [str(number) for number in range(spec.output_size)]
    return "".join(names[number] for number in classes)
