"""`dlrun check gradients`: hand-written backward passes against autograd and against the central difference."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from dlrun.config import request, schema
from dlrun.config.request import Request
from dlrun.config.schema import CONFIG_DIR
from dlrun.core.errors import RequestError
from dlrun.engine import device, evaluation, untouched
from dlrun.engine.objective import Objective
from dlrun.experiment.context import RunContext
from dlrun.experiment.setup import prepare
from dlrun.runs.reports.console import Console, table

TOLERANCE = 1e-6
_ROWS = 16  # of the batch: every entry costs six forward passes
_ENTRIES = 200  # of a tensor, for the central difference
_STEPS = (1e-3, 1e-4, 1e-5)  # the first for large smooth functions, the last for strongly curved ones
_SCRATCH = "scratch_"

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GradientErrors:
    """The largest relative errors of one gradient of one layer; central is null where no entry could be looked at."""

    layer: str
    kind: str
    of: str  # input, or the parameter's name
    autograd: float
    central: float | None

    @property
    def agrees(self) -> bool:
        """Whether both are within the tolerance; NaN is not."""
        return self.autograd <= TOLERANCE and (self.central is None or self.central <= TOLERANCE)


@dataclass(frozen=True)
class Subject:
    """A function with a hand-written backward, and one input of it."""

    layer: str
    kind: str
    function: Function
    reference: Function  # the same by torch's operations
    x: Tensor
    parameters: dict[str, Tensor]
    unit: Tensor  # of the step for each entry of x
    bends_at_zero: bool = False


def check_gradients(words: list[str]) -> int:
    """Check what a command line chooses, in fp64 on the CPU; returns 0 if all gradients agree, else 1.

    Prints one table. RequestError for a sweep, and where neither the model nor the loss is hand-written.
    """
    asked = parse_one_run(words)
    if asked is None:
        return 0
    composed = asked.config
    composed["device"].update({"name": "cpu", "index": None, "precision": "fp64", "compile": False})
    settings = schema.read(composed, asked.choices)
    with device.device_session(settings.rest.device, settings.rest.seed) as process:
        parts = prepare(settings, process, asked.trusted_modules)
        with untouched.preserve_state(parts.model):
            found = [row for subject in find_subjects(parts) for row in check_subject(subject)]
    if not found:
        raise RequestError(
            f"model={settings.model.choice} has no hand-written layers, so there is no backward of ours to check; "
            f"type {' or '.join(f'model={name}' for name in list_handwritten_models())}"
        )
    return print_verdict(found)


def parse_one_run(words: list[str], check: str = "gradients") -> Request | None:
    """What the command line asks for; null when Hydra itself has answered (--cfg). RequestError for several runs."""
    several = RequestError(
        f"check {check} looks at one run; leave out -m, name one value for each key, "
        "and type sweep.points=[] where a lesson names several runs"
    )
    if {"-m", "--multirun"} & set(words):
        raise several
    asked = request.from_command_line(words)
    if any(one.sweep is not None for one in asked):
        raise several
    return asked[0] if asked else None


def list_handwritten_models() -> list[str]:
    """The shipped models of hand-written layers."""
    targets = {p.stem: OmegaConf.select(OmegaConf.load(p), "_target_") for p in (CONFIG_DIR / "model").glob("*.yaml")}
    return sorted(name for name, target in targets.items() if target.startswith("dlrun.models.scratch."))


def find_subjects(parts: RunContext) -> Iterator[Subject]:
    """Every layer that has a `reference`, with what it gets from one training batch, and the loss if it is ours."""
    batch, targets = evaluation.take_small_batch(parts.training.train, _ROWS)
    layers = {n: m for n, m in parts.model.named_modules() if callable(getattr(m, "reference", None))}
    got: dict[str, Tensor] = {}
    handles = [m.register_forward_pre_hook(_keep(got, name)) for name, m in layers.items()]
    with torch.no_grad():
        outputs = parts.model.train()(*batch)
    for handle in handles:
        handle.remove()
    for name, x in got.items():
        layer = layers[name]
        parameters: dict[str, Tensor] = {n: p for n, p in layer.named_parameters() if p.requires_grad}
        bends = bool(getattr(layer, "bends_at_zero", False))
        yield Subject(name, type(layer).__name__, layer, layer.reference, x, parameters, x.abs().clamp(min=1), bends)
    if parts.task.loss_name is not None and parts.task.loss_name.startswith(_SCRATCH):
        yield _loss(parts.task, outputs, targets)


def _keep(got: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        got.setdefault(name, inputs[0].detach().clone())

    return hook


def _loss(task: Objective, outputs: Tensor, targets: Tensor) -> Subject:
    name = str(task.loss_name)
    by_torch = Objective(task.spec, name.removeprefix(_SCRATCH), task.reduction)
    room = torch.minimum(outputs, 1 - outputs).clamp(min=0)  # a step must not lead out of [0, 1]
    unit = room if name == "scratch_bce" else outputs.abs().clamp(min=1)
    return Subject(
        "loss",
        name,
        lambda x: task.compute_loss(x, targets),
        lambda x: by_torch.compute_loss(x, targets),
        outputs,
        {},
        unit,
    )


def check_subject(subject: Subject) -> Iterator[GradientErrors]:
    """One row for the input and each parameter, for a random dL/d(output)."""
    x = subject.x.clone(memory_format=torch.contiguous_format).requires_grad_()  # entries are set through a flat view
    tensors = {"input": x, **subject.parameters}
    direction = torch.randn_like(subject.function(x))
    ours, torchs = (
        torch.autograd.grad(f(x), list(tensors.values()), direction) for f in (subject.function, subject.reference)
    )
    for (name, tensor), gradient, truth in zip(tensors.items(), ours, torchs, strict=True):
        unit = subject.unit if tensor is x else tensor.detach().abs().clamp(min=1)
        bends = subject.bends_at_zero and tensor is x
        central = _central_error(lambda: subject.function(x), tensor, unit, direction, gradient, bends)
        yield GradientErrors(subject.layer, subject.kind, name, relative_error(gradient, truth), central)


def relative_error(ours: Tensor, truth: Tensor) -> float:
    """The largest |a - b| / (|a| + |b|) of corresponding entries.

    The divisor is at least a thousandth of the largest gradient and 1e-6: a difference quotient cannot tell
    smaller numbers from its own rounding, which is about 1e-13.
    """
    least = max(1e-3 * float(truth.abs().max()), 1e-6)
    return float(((ours - truth).abs() / (ours.abs() + truth.abs()).clamp(min=least)).max())


@torch.no_grad()
def _central_error(
    function: Callable[[], Tensor], tensor: Tensor, unit: Tensor, direction: Tensor, gradient: Tensor, bends: bool
) -> float | None:
    """`relative_error` against (f(w + h) - f(w - h)) / 2h, for each of some entries w at its best step h."""
    values, units = tensor.view(-1), unit.reshape(-1)
    entries = torch.randperm(len(values))[:_ENTRIES]
    quotients = torch.full((len(entries), len(_STEPS)), torch.nan, dtype=tensor.dtype)
    for row, entry in enumerate(entries.tolist()):
        before = values[entry].item()
        for column, step in enumerate(_STEPS):
            h = step * float(units[entry])
            if bends and abs(before) <= h:
                continue
            above, below = (_at(function, values, entry, v) for v in (before + h, before - h))
            quotients[row, column] = ((above - below) * direction).sum() / ((before + h) - (before - h))
        values[entry] = before
    seen = ~quotients.isnan().all(1)  # NaN: left out, or 0 / 0 for a step of 0
    if not seen.any():
        return None
    ours = gradient.reshape(-1)[entries][seen]
    best = (quotients[seen] - ours.unsqueeze(1)).abs().nan_to_num(torch.inf).argmin(1, keepdim=True)
    return relative_error(ours, quotients[seen].gather(1, best).squeeze(1))


def _at(function: Callable[[], Tensor], values: Tensor, entry: int, value: float) -> Tensor:
    values[entry] = value
    return function()


def print_verdict(found: list[GradientErrors]) -> int:
    """The table and the verdict; returns the exit code."""
    console = Console()
    rows = [
        (c.layer, c.kind, c.of, f"{c.autograd:.1e}", "-" if c.central is None else f"{c.central:.1e}") for c in found
    ]
    console.say(
        "hand-written gradients in fp64: the largest relative error against autograd and the central difference"
    )
    console.say(table(("layer", "kind", "of", "autograd", "central"), rows, left=3))
    wrong = [f"{c.layer} ({c.kind}, {c.of})" for c in found if not c.agrees]
    if wrong:
        console.say(f"gradients that do not agree (tolerance {TOLERANCE:.0e}): {', '.join(wrong)}")
        return 1
    console.say(f"all gradients agree (tolerance {TOLERANCE:.0e})")
    return 0
