"""Several outputs at once: one objective whose outputs and targets are those of several, side by side.

A model's outputs are the columns of one tensor, and so are the targets: class numbers are exact as floats up to 2^24.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.core.errors import RequestError, join_names
from dlrun.data.spec import DataSpec, Output
from dlrun.engine import metrics
from dlrun.engine.chosen_metrics import ChosenMetric
from dlrun.engine.metrics import MetricSums
from dlrun.engine.objective import Objective

_ALL = "all_"


@dataclass(frozen=True)
class MultitaskObjective(Objective):
    """The weighted sum of the losses of several outputs.

    losses: name of the loss of an output, its task's own where none is given. weights: of an output's loss, else 1.
    output_metrics: by output, as `metrics` of an Objective; an output without an entry has its task's own.
    output_class_weights: by output, the weights of its classes; class_weights has them all concatenated, for
    checkpoints. Metrics: loss, the weighted sum, and each output's own with its name in front, as in digit_loss and
    digit_accuracy.
    """

    losses: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    output_metrics: Mapping[str, Sequence[str | ChosenMetric]] = field(default_factory=dict)
    output_class_weights: Mapping[str, Sequence[float]] = field(default_factory=dict)
    parts: Mapping[str, Objective] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = {}
        for output in self.spec.outputs:
            try:
                parts[output.name] = Objective(
                    make_spec_of_output(self.spec, output),
                    self.losses.get(output.name),
                    self.reduction,
                    class_weights=self.output_class_weights.get(output.name),
                    metrics=self.output_metrics.get(output.name),
                )
            except RequestError as error:
                # The parts name the key of a task with one output; this one has a key for each.
                message = str(error).replace("task.loss=", f"task.losses.{output.name}=")
                message = message.replace("task.class_weights", f"task.class_weights.{output.name}")
                raise RequestError(message.replace(", or module.function for one of yours", "")) from error

        object.__setattr__(self, "parts", parts)
        # The name of its loss is that of all parts, as there is no loss function of its own.
        object.__setattr__(self, "loss_name", " + ".join(str(part.loss_name) for part in parts.values()))

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Metric names without the split's prefix."""
        names = ["loss"]
        for name, part in self.parts.items():
            names += [f"{name}_{metric}" for metric in part.metric_names]
        return tuple(names)

    def split_outputs(self, outputs: Tensor) -> dict[str, Tensor]:
        """The outputs (N, size) of each part."""
        sizes = [output.size for output in self.spec.outputs]
        return dict(zip(self.parts, torch.split(outputs, sizes, dim=-1), strict=True))

    def split_targets(self, targets: Tensor) -> dict[str, Tensor]:
        """The targets of each part as its task has them: floats (N, size), or class numbers int64 (N,)."""
        columns = torch.split(targets, [output.columns for output in self.spec.outputs], dim=-1)
        by_name = {}
        for output, values in zip(self.spec.outputs, columns, strict=True):
            # The targets of all parts share one tensor of floats, and losses of classes take integers.
            by_name[output.name] = values if output.task == "regression" else values.squeeze(-1).long()
        return by_name

    def compute_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The weighted sum of the parts' losses over one batch; 0 for a batch without targets."""
        if not targets.numel():
            return 0.0 * outputs.sum()
        outputs_by_name = self.split_outputs(outputs)
        targets_by_name = self.split_targets(targets)
        losses = []
        for name, part in self.parts.items():
            # All parts are means, or sums, over the same rows, so the weights alone balance them.
            losses.append(self.weights.get(name, 1.0) * part.compute_loss(outputs_by_name[name], targets_by_name[name]))
        return torch.stack(losses).sum()

    def count_targets(self, targets: Tensor) -> Tensor | int:
        """Weight of a batch in a mean: its rows, as every part has a mean over them."""
        return len(targets)

    def count_targets_of_each(self, batches: Sequence[Tensor], like: Tensor) -> Tensor:
        """`count_targets` of several batches, shape (batches,), with the dtype and device of `like`."""
        return torch.tensor([len(targets) for targets in batches], dtype=like.dtype, device=like.device)

    def predict(self, outputs: Tensor) -> Tensor:
        """Values and class numbers as the targets have them, floats (N, columns)."""
        columns = []
        for name, part_outputs in self.split_outputs(outputs).items():
            predicted = self.parts[name].predict(part_outputs).to(outputs.dtype)
            columns.append(predicted if predicted.dim() == 2 else predicted.unsqueeze(-1))
        return torch.cat(columns, dim=-1)

    def compute_probabilities(self, outputs: Tensor) -> Tensor:
        """Probability of the predicted class of each output, (N, outputs); 1 for values."""
        columns = []
        for name, part_outputs in self.split_outputs(outputs).items():
            part = self.parts[name]
            if part.spec.task == "regression":
                columns.append(torch.ones_like(part_outputs[:, 0]))
            elif part.spec.task == "binary":
                p = part.compute_probabilities(part_outputs)
                columns.append(torch.maximum(p, 1 - p))
            else:
                columns.append(part.compute_probabilities(part_outputs).amax(-1))

        return torch.stack(columns, dim=-1)

    def compute_sums(self, outputs: Tensor, targets: Tensor) -> MetricSums:
        """Sums of each part, its name in front of theirs, and of its loss."""
        sums: MetricSums = {}
        outputs_by_name = self.split_outputs(outputs)
        targets_by_name = self.split_targets(targets)
        for name, part in self.parts.items():
            part_outputs = outputs_by_name[name]
            part_targets = targets_by_name[name]
            weight = torch.as_tensor(part.count_targets(part_targets), device=outputs.device)
            with torch.no_grad():
                loss = metrics.widen(part.compute_loss(part_outputs, part_targets))
            part_sums = part.compute_sums(part_outputs, part_targets)
            part_sums |= {"loss": loss if part.reduction == "sum" else loss * weight, "weight": weight}
            for key, value in part_sums.items():
                sums[_prefix(name, key)] = value

        return sums

    def compute_metrics(self, sums: MetricSums) -> dict[str, float]:
        """The weighted loss first, then the metrics of each part."""
        host = {name: value.cpu() for name, value in sums.items()}
        values = {"loss": metrics.divide(host["loss"], host["weight"])}
        weighted_loss = 0.0
        for name, part in self.parts.items():
            keys = [key for key in host if key.removeprefix(_ALL).startswith(f"{name}/")]
            part_sums = {key.replace(f"{name}/", "", 1): host[key] for key in keys}
            part_values = part.compute_metrics(part_sums)
            weighted_loss += self.weights.get(name, 1.0) * part_values["loss"]
            values |= {f"{name}_{metric}": value for metric, value in part_values.items()}

        if self.output_class_weights and self.reduction == "mean":
            # A mean that weights its rows is not that of the batches' means.
            values["loss"] = weighted_loss
        return values

    def fit_constant_outputs(self, targets: Tensor) -> Tensor:
        """The constant outputs of each part, side by side."""
        columns = []
        for name, part_targets in self.split_targets(targets).items():
            columns.append(self.parts[name].fit_constant_outputs(part_targets).reshape(1, -1).double())
        return torch.cat(columns, dim=-1)


def make_spec_of_output(spec: DataSpec, output: Output) -> DataSpec:
    """The same inputs, with one of the outputs alone."""
    return DataSpec(
        spec.kind, spec.input_shape, output.task, output.size, output.class_names, vocabulary=spec.vocabulary
    )


def _prefix(name: str, key: str) -> str:
    """A key with a part's name in front; what is concatenated is known by how its key begins."""
    return f"{_ALL}{name}/{key.removeprefix(_ALL)}" if key.startswith(_ALL) else f"{name}/{key}"


def join_outputs(spec_outputs: Sequence[Output], _module: nn.Module, _inputs: Any, outputs: Any) -> Any:
    """A forward hook: the tensors of a dict or tuple side by side (N, outputs), in the order of the spec.

    RequestError for other names, or another number of them. A single tensor stays as it is.
    """
    if isinstance(outputs, Tensor):
        return outputs

    names = [output.name for output in spec_outputs]
    if isinstance(outputs, Mapping):
        if set(outputs) != set(names):
            raise RequestError(
                f"the model returns {join_names(sorted(map(str, outputs)))}, and spec.outputs are {join_names(names)}; "
                "return a tensor for each of these names"
            )
        outputs = [outputs[name] for name in names]

    if not isinstance(outputs, list | tuple) or len(outputs) != len(names):
        content = f"{len(outputs)} tensors" if isinstance(outputs, list | tuple) else f"a {type(outputs).__name__}"
        raise RequestError(
            f"the model returns {content}, and spec.outputs are {join_names(names)}; return a dict of these names, or "
            "a tuple in this order"
        )

    columns = []
    for output, tensor in zip(spec_outputs, outputs, strict=True):
        values = tensor.unsqueeze(-1) if tensor.dim() == 1 else tensor
        if values.dim() != 2 or values.shape[1] != output.size:
            raise RequestError(
                f"the model's output {output.name} has the shape {tuple(tensor.shape)}, and {output.task} of size "
                f"{output.size} needs (rows, {output.size})"
            )
        columns.append(values)

    return torch.cat(columns, dim=-1)
