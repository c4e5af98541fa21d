"""Tries a stack out before it trains: does it compute for each member what the member's own net computes?"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.core.user_code import get_first_clause
from dlrun.data.batches import Batch
from dlrun.engine import logged_values
from dlrun.engine.device import get_rng_state, set_rng_state
from dlrun.engine.logged_values import LoggedValues
from dlrun.engine.object_state import TORCH_ATTRIBUTES, duplicate, find_difference
from dlrun.engine.stack.member import Member
from dlrun.engine.stack.model import StackedModel, describe_structure
from dlrun.engine.stack.objective import StackedObjective
from dlrun.engine.stack.trainer import gather

# Outputs and losses differ by at most this, relative to the largest of a member; gradients by ten times as much.
TOLERANCE = 1e-4

# Nets of one structure are computed alike, so that a few speak for all.
_MOST_MEMBERS = 4
_MOST_ROWS = 8


@dataclass
class _Results:
    """Results of the net of one member, or of the stack with a leading dimension (M, ...)."""

    # In the second pass of training, so that what the first one leaves behind shows.
    outputs: Tensor
    loss: Tensor
    # By the name of the parameter.
    gradient: dict[str, Tensor]
    buffers: dict[str, Tensor]
    # In evaluation mode, after training.
    evaluated: Tensor


class _DifferenceError(Exception):
    """Says what a stack would compute in another way."""


def compare_with_alone(members: Sequence[Member]) -> str | None:
    """Why members cannot train as one stack although `find_obstacle` finds nothing in any of them, or None.

    Compares outputs, losses, gradients, buffers and drawn random numbers of a few members on small batches, in
    training and in evaluation mode, and changes nothing of the members. It finds nets that keep values of their own,
    that draw random numbers elsewhere than in nn.Dropout, and those that torch.func cannot compute.
    """
    if len({describe_structure(member.model) for member in members}) > 1:
        return "the nets differ in more than their weights and rates of dropout"

    step = max(1, (len(members) - 1) // (_MOST_MEMBERS - 1))
    sample = list(members[::step][:_MOST_MEMBERS])
    rng = get_rng_state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _compare(sample)
    except _DifferenceError as difference:
        return str(difference)
    except Exception as error:
        # Code of the user's may raise anything, torch.func among it.
        sentence = get_first_clause(error).removeprefix("vmap: ").partition(". ")[0]
        return f"its net cannot be computed for several members at once: {sentence}"
    finally:
        logged_values.set_receiver(None)
        set_rng_state(rng)

    return None


def _compare(members: Sequence[Member]) -> None:
    """Compute all of it alone and stacked; _DifferenceError says what differs."""
    # Different rows in each pass, so that a net which keeps some shows.
    batches = [_pick_batch(members, first) for first in (0, _MOST_ROWS)]
    alone = []
    generators = []
    for number, member in enumerate(members):
        member_batches = []
        for inputs, targets in batches:
            member_inputs = tuple(column[number] for column in inputs)
            member_batches.append((member_inputs, targets[number]))
        alone.append(_compute_alone(member, member_batches))
        generators.append(_get_generator_state(get_rng_state(), member.device))

    stacked, stacked_generators = _compute_stacked(members, batches)
    for number, results in enumerate(alone):
        _check_member(results, stacked, number)
        if not torch.equal(generators[number], stacked_generators[number]):
            raise _DifferenceError("its net draws random numbers in a way that members cannot share")


def _pick_batch(members: Sequence[Member], first: int) -> Batch:
    """Inputs and targets (M, B, ...) of the first rows of the first epoch, or of those from `first` on."""
    data: Any = members[0].state.train
    rows = torch.stack([member.state.train.order.permutation(1) for member in members]).to(data.targets.device)
    # With too few rows the first ones are taken again.
    first = first if rows.shape[1] >= 2 * _MOST_ROWS else 0
    return gather(data, rows[:, first : first + _MOST_ROWS])


def _compute_alone(member: Member, batches: Sequence[Batch]) -> _Results:
    """Results of a copy of a member's own net, computed as in a training alone."""
    model: nn.Module = duplicate(member.model)
    structure = describe_structure(model)
    attributes = _copy_attributes(model)
    logged = LoggedValues()
    set_rng_state(member.get_rng_state())
    before = get_rng_state()

    model.train()
    logged_values.set_receiver(logged)
    for inputs, targets in batches:
        outputs = model(*inputs)
        loss = member.state.objective.compute_loss(outputs, targets)
        parameters = dict(model.named_parameters())
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)

    logged_values.set_receiver(None)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.eval()
    with torch.inference_mode():
        evaluated = model(*batches[-1][0])

    if logged.counts:
        raise _DifferenceError("its net logs values")
    if describe_structure(model) != structure:
        raise _DifferenceError("its net changes its layers, buffers or settings in a forward pass")
    difference = find_difference(attributes, _copy_attributes(model))
    if difference is not None:
        raise _DifferenceError(f"its net keeps values of its own in a forward pass: {difference}")
    after = get_rng_state()
    if find_difference([before["python"], before["numpy"]], [after["python"], after["numpy"]]) is not None:
        raise _DifferenceError("its net draws random numbers from Python's or NumPy's generator")
    unused = [name for name, part in zip(parameters, gradients, strict=True) if part is None]
    if unused:
        raise _DifferenceError(f"its parameter {unused[0]} has no gradient")
    return _Results(outputs, loss, dict(zip(parameters, gradients, strict=True)), buffers, evaluated)


def _copy_attributes(model: nn.Module) -> dict[str, Any]:
    """Copies of the attributes of all modules besides parameters, buffers and submodules, by module name."""
    attributes = {}
    for name, module in model.named_modules():
        own_attributes = {key: value for key, value in vars(module).items() if key not in TORCH_ATTRIBUTES}
        # Modules stay out of the copies: describe_structure compares them.
        memo: dict[int, Any] = {id(part): part for part in model.modules()}
        attributes[name] = duplicate(own_attributes, memo)
    return attributes


def _compute_stacked(members: Sequence[Member], batches: Sequence[Batch]) -> tuple[_Results, list[Tensor]]:
    """Results (M, ...) of a stack of copies of the members' nets, and the states of the members' generators."""
    generators = []
    for member in members:
        generators.append(torch.Generator(member.device))
        generators[-1].set_state(member.generator.get_state())

    model = StackedModel([duplicate(member.model) for member in members], generators)
    objective = StackedObjective(members[0].state.objective)
    before = get_rng_state()

    model.train()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for inputs, targets in batches:
            outputs = model(*inputs)
            losses = objective.compute_losses(outputs, targets)
            model.compute_gradient(losses)

    # The results would be right, but slower than alone.
    if any("performance drop" in str(warning.message) for warning in warned):
        raise _DifferenceError("torch.func computes a part of its net member by member")
    begin = 0
    gradient = {}
    for name, parameter in model.parameters.items():
        size = parameter[0].numel()
        gradient[name] = model.gradient[:, begin : begin + size].view_as(parameter)
        begin += size

    buffers = {name: buffer.clone() for name, buffer in model.buffers.items()}

    model.train(False)
    with torch.inference_mode():
        # An expanded view, as in StackTrainer.evaluate.
        shared = [column[:1].expand_as(column) for column in batches[-1][0]]
        model(*shared)
        evaluated = model(*batches[-1][0])

    if find_difference(before, get_rng_state()) is not None:
        raise _DifferenceError("a layer of its net draws random numbers for all members together")
    states = [generator.get_state() for generator in generators]
    return _Results(outputs, losses, gradient, buffers, evaluated), states


def _check_member(alone: _Results, stacked: _Results, number: int) -> None:
    """Raise _DifferenceError unless one of the stacked results is that of the member alone."""
    largest = max(float(part.abs().max()) for part in alone.gradient.values())
    if not _are_close(alone.outputs, stacked.outputs[number]) or not _are_close(alone.loss, stacked.loss[number]):
        raise _DifferenceError("its net gives other outputs in a stack than alone, in training")
    for name, part in alone.gradient.items():
        # A bias in front of a batch norm has a gradient of rounding alone.
        if not _are_close(part, stacked.gradient[name][number], 10 * TOLERANCE, largest):
            raise _DifferenceError(f"its parameter {name} has another gradient in a stack than alone")

    for name, buffer in alone.buffers.items():
        if not _are_close(buffer, stacked.buffers[name][number]):
            raise _DifferenceError(f"its buffer {name} has other values in a stack than alone")

    if not _are_close(alone.evaluated, stacked.evaluated[number]):
        raise _DifferenceError("its net gives other outputs in a stack than alone, in evaluation")


def _are_close(one: Tensor, other: Tensor, tolerance: float = TOLERANCE, largest: float | None = None) -> bool:
    """Whether two tensors agree, relative to `largest`, by default the largest number of the first."""
    if one.shape != other.shape:
        return False
    if not one.numel():
        return True
    one = one.detach().double()
    scale = float(one.nan_to_num(0, 0, 0).abs().max()) if largest is None else largest
    return torch.allclose(other.detach().double(), one, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def _get_generator_state(rng: dict[str, Any], device: torch.device) -> Tensor:
    """State of the generator that a training on this device draws from, of the states of all."""
    state: Tensor = rng["cuda"][device.index or 0] if device.type == "cuda" else rng["torch"]
    return state
