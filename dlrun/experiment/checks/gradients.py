"""`dlrun check gradients`: hand-written backward passes against autograd and against the central difference."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from dlrun.config.schema import CONFIG_DIR
from dlrun.config.settings import read_settings
from dlrun.core.errors import RequestError
from dlrun.engine import device, evaluation, preserve
from dlrun.engine.objective import Objective
from dlrun.experiment.checks.one_run import parse_one_run
from dlrun.experiment.context import RunContext
from dlrun.experiment.setup import prepare
from dlrun.runs.reports.console import Console, build_table

TOLERANCE = 1e-6

# Rows of the batch: every entry costs six forward passes.
_ROWS = 16

# Entries of a tensor that the central difference is taken for.
_ENTRIES = 200

# The first for large smooth functions, the last for strongly curved ones.
_STEPS = (1e-3, 1e-4, 1e-5)

_SCRATCH = "scratch_"

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GradientErrors:
    """The largest relative errors of one gradient of one layer."""

    layer: str
    kind: str

    # "input", or the parameter's name.
    tensor: str

    autograd: float

    # None where no entry has a difference quotient.
    central: float | None

    @property
    def is_right(self) -> bool:
        """Whether both are within the tolerance; NaN is not."""
        return self.autograd <= TOLERANCE and (self.central is None or self.central <= TOLERANCE)


@dataclass(frozen=True)
class Subject:
    """A function with a hand-written backward, and one input of it."""

    layer: str
    kind: str
    function: Function

    # The same function made of torch's operations.
    reference: Function

    x: Tensor
    parameters: dict[str, Tensor]

    # Scale of the steps of the difference quotient, for each entry of x.
    unit: Tensor

    bends_at_zero: bool = False


def check_gradients(words: list[str]) -> int:
    """Check what a command line chooses, in fp64 on the CPU; returns 0 if all gradients agree, else 1.

    Prints one table. Raises RequestError for a sweep, and if neither the model nor the loss is hand-written.
    """
    request = parse_one_run(words, "gradients")
    if request is None:
        return 0

    config = request.config
    config["device"].update({"name": "cpu", "index": None, "precision": "fp64", "compile": False})
    settings = read_settings(config, request.choices)
    with device.device_session(settings.device, settings.seed) as runtime:
        context = prepare(settings, runtime, request.trusted_modules)
        results: list[GradientErrors] = []
        with preserve.preserve_state(context.state.model):
            for subject in _find_subjects(context):
                results += check_subject(subject)

    if not results:
        raise RequestError(
            f"model={settings.model.choice} has no hand-written layers, so there is no backward of ours to check; "
            f"type {' or '.join(f'model={name}' for name in _list_handwritten_models())}"
        )
    return print_verdict(results)


def _list_handwritten_models() -> list[str]:
    """List the shipped models of hand-written layers."""
    names = []
    for path in (CONFIG_DIR / "model").glob("*.yaml"):
        target = OmegaConf.select(OmegaConf.load(path), "_target_")
        if target.startswith("dlrun.models.scratch."):
            names.append(path.stem)
    return sorted(names)


def _find_subjects(context: RunContext) -> Iterator[Subject]:
    """Yield every layer that has a `reference`, with its input for one training batch, and the loss if it is ours."""
    batch, targets = evaluation.take_small_batch(context.state.train, _ROWS)
    layers = {}
    for name, module in context.state.model.named_modules():
        if callable(getattr(module, "reference", None)):
            layers[name] = module

    inputs: dict[str, Tensor] = {}
    handles = [layer.register_forward_pre_hook(_record_input(inputs, name)) for name, layer in layers.items()]
    with torch.no_grad():
        outputs = context.state.model.train()(*batch)
    for handle in handles:
        handle.remove()

    for name, x in inputs.items():
        layer = layers[name]
        parameters = {key: p for key, p in layer.named_parameters() if p.requires_grad}
        # Steps grow with the entry, so that they are not lost in its rounding.
        unit = x.abs().clamp(min=1)
        bends = bool(getattr(layer, "bends_at_zero", False))
        yield Subject(name, type(layer).__name__, layer, layer.reference, x, parameters, unit, bends)

    loss_name = context.objective.loss_name
    if loss_name is not None and loss_name.startswith(_SCRATCH):
        yield make_loss_subject(context.objective, outputs, targets)


def _record_input(inputs: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def record(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs.setdefault(name, arguments[0].detach().clone())

    return record


def make_loss_subject(objective: Objective, outputs: Tensor, targets: Tensor) -> Subject:
    """Return the hand-written loss as a function of the outputs, beside torch's loss of the same name."""
    name = str(objective.loss_name)
    reference = Objective(objective.spec, name.removeprefix(_SCRATCH), objective.reduction)
    unit = outputs.abs().clamp(min=1)
    if name == "scratch_bce":
        # A step must not lead out of [0, 1].
        unit = torch.minimum(outputs, 1 - outputs).clamp(min=0)
    return Subject(
        layer="loss",
        kind=name,
        function=lambda x: objective.compute_loss(x, targets),
        reference=lambda x: reference.compute_loss(x, targets),
        x=outputs,
        parameters={},
        unit=unit,
    )


def check_subject(subject: Subject) -> Iterator[GradientErrors]:
    """Yield the errors for the input and each parameter, for a random dL/d(output)."""
    # Entries are set through a flat view, which needs contiguous memory.
    x = subject.x.clone(memory_format=torch.contiguous_format).requires_grad_()
    tensors = {"input": x, **subject.parameters}

    # A random direction: an error in any entry shows.
    direction = torch.randn_like(subject.function(x))
    ours = torch.autograd.grad(subject.function(x), list(tensors.values()), direction)
    references = torch.autograd.grad(subject.reference(x), list(tensors.values()), direction)

    for (name, tensor), gradient, reference in zip(tensors.items(), ours, references, strict=True):
        is_input = tensor is x
        unit = subject.unit if is_input else tensor.detach().abs().clamp(min=1)
        bends = subject.bends_at_zero and is_input
        central = _measure_central_error(lambda: subject.function(x), tensor, unit, direction, gradient, bends)
        yield GradientErrors(subject.layer, subject.kind, name, measure_relative_error(gradient, reference), central)


def measure_relative_error(ours: Tensor, truth: Tensor) -> float:
    """Return the largest |a - b| / (|a| + |b|) of corresponding entries.

    The divisor is at least a thousandth of the largest gradient and 1e-6: a difference quotient cannot tell
    smaller numbers from its own rounding, which is about 1e-13.
    """
    least = max(1e-3 * float(truth.abs().max()), 1e-6)
    return float(((ours - truth).abs() / (ours.abs() + truth.abs()).clamp(min=least)).max())


@torch.no_grad()
def _measure_central_error(
    function: Callable[[], Tensor], tensor: Tensor, unit: Tensor, direction: Tensor, gradient: Tensor, bends: bool
) -> float | None:
    """`measure_relative_error` against (f(w + h) - f(w - h)) / 2h, for each of some entries w at its best step h."""
    values = tensor.view(-1)
    units = unit.reshape(-1)

    def call_with(entry: int, value: float) -> Tensor:
        values[entry] = value
        return function()

    entries = torch.randperm(len(values))[:_ENTRIES]
    # (entries, steps)
    quotients = torch.full((len(entries), len(_STEPS)), torch.nan, dtype=tensor.dtype)
    for row, entry in enumerate(entries.tolist()):
        before = values[entry].item()
        for column, step in enumerate(_STEPS):
            h = step * float(units[entry])
            # The step would reach across the kink.
            if bends and abs(before) <= h:
                continue
            above = call_with(entry, before + h)
            below = call_with(entry, before - h)
            quotients[row, column] = ((above - below) * direction).sum() / ((before + h) - (before - h))
        values[entry] = before

    # Each entry is judged by the step that comes nearest: which one that is depends on its curvature.
    # NaN: left out, or 0 / 0 for a step of 0.
    measured = ~quotients.isnan().all(1)
    if not measured.any():
        return None
    ours = gradient.reshape(-1)[entries][measured]
    best = (quotients[measured] - ours.unsqueeze(1)).abs().nan_to_num(torch.inf).argmin(1, keepdim=True)
    return measure_relative_error(ours, quotients[measured].gather(1, best).squeeze(1))


def print_verdict(results: list[GradientErrors]) -> int:
    """Print the table and the verdict; returns the exit code."""
    console = Console()
    rows = []
    for result in results:
        central = "-" if result.central is None else f"{result.central:.1e}"
        rows.append((result.layer, result.kind, result.tensor, f"{result.autograd:.1e}", central))
    console.say(
        "hand-written gradients in fp64: the largest relative error against autograd and the central difference"
    )
    console.say(build_table(("layer", "kind", "of", "autograd", "central"), rows, left=3))

    wrong = [f"{result.layer} ({result.kind}, {result.tensor})" for result in results if not result.is_right]
    if wrong:
        console.say(f"gradients that do not agree (tolerance {TOLERANCE:.0e}): {', '.join(wrong)}")
        return 1
    console.say(f"all gradients agree (tolerance {TOLERANCE:.0e})")
    return 0
