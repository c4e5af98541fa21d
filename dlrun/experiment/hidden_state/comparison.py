"""State outside the checkpoint: do objects loaded from a checkpoint behave like those in training?

Checked at a few checkpoints of a run until a difference is found, and only where the data, net, loss, optimizer or
schedule are of the user's own: dlrun's and torch's keep all that they need in the checkpoint. Copies alone are called,
so that the training continues as if nothing had happened.
"""

import contextlib
import dataclasses
import functools
import inspect
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dlrun.config.settings import Settings
from dlrun.core.own_code import is_ours, is_own_name
from dlrun.core.user_code import get_first_line
from dlrun.data.batches import Batch, LoaderBatches, measure_free_memory
from dlrun.data.files.tensors import load_weights
from dlrun.engine import evaluation
from dlrun.engine.device import preserve_rng_state, seed_everything
from dlrun.engine.forward_buffers import BuiltBuffers
from dlrun.engine.object_state import (
    TORCH_ATTRIBUTES,
    count_bytes,
    duplicate,
    find_difference,
    find_enclosing_function,
    get_generator_state,
    name_modules,
)
from dlrun.engine.objective import Objective
from dlrun.engine.optim.schedule import Schedule
from dlrun.engine.state import CREATED_BUFFERS
from dlrun.engine.trainer import requires_closure
from dlrun.experiment.builder import build
from dlrun.experiment.context import RunContext
from dlrun.experiment.hidden_state.surroundings import MISSING, Key, Surroundings, find_variables, is_own_class
from dlrun.models.pretrained import skip_trained_weights

# In front of the kinds of these notes in Progress.troubles.
KIND = "hidden state"

NOT_SAVED = "is not in the checkpoint: resume will not end in the same weights"
_NOT_CHECKED = "whether a resumed run ends in the same weights could not be checked"
_OF_STEPS = "return it from state_dict"

# Relative to the largest number. Matrix products round by the address of their operands.
_TOLERANCE = 1e-5
# A difference that rounding cannot make, even in a deep net, is reported also if its cause is not found.
_CLEAR = 1e-3

_MOST_NAMED = 3
_MOST_TRIALS = 20
# A counter in a net may act only every few calls: so many calls in training are compared, if they take little time.
_MOST_CALLS = 24
# A forward pass of so many multiply-adds takes about a tenth of a second.
_MOST_WORK = 4e9
_MOST_ROWS = 32
_MOST_ROWS_READ = 8
# Objects up to this size are copied or stepped often.
_FEW_BYTES = 2**24
# A constructor may wait for a lock that this very process holds.
_SECONDS = 60.0

# Tensors that an object computes from the same inputs, by kind; two objects are compared by them.
Responses = dict[str, list[Tensor]]


@dataclass
class Difference:
    """A value that the net in training holds and the loaded one does not."""

    sentence: str

    # Hands the value on to a copy of what was loaded ...
    give: Callable[[Any], None] | None = None

    # ... or the variable outside, which is left as it is.
    variable: Key | None = None

    # Whether the variable belongs to a closure.
    is_enclosed: bool = False


class _TooLong(BaseException):
    """The check has taken as long as it may. No Exception: a user's own `except Exception` must not swallow it."""


class _LoadError(Exception):
    """A checkpoint does not fit the net that is built anew."""


class ReloadCheck:
    """Compares the net in training with one that is loaded from a checkpoint, and reports each difference once."""

    def __init__(self, context: RunContext, trusted_modules: Sequence[str] | None, say: Callable[[str], None]) -> None:
        """context: before the first step, or as an interrupted process left it."""
        self.context = context
        self.trusted_modules = trusted_modules
        self.say = say
        self.sample = context.preflight.sample
        self.autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
        self.is_done = False
        self.loss_at_start = _copy_or_share(context.objective.own_loss)
        self.start = Surroundings({})
        self.obstacle: Exception | None = None
        try:
            if self.sample is None and _has_own_training_code(context.settings, context.state.model):
                # Preflight is off.
                self.sample = _read_sample(context)
            self.start = Surroundings(find_variables(self._list_roots()))
        except Exception as error:  # a user's own class may do anything when it is looked at
            self.obstacle = error

    def __call__(self, state: dict[str, Any]) -> None:
        """Check a checkpoint. An error in here is a note, never the run's end.

        state: of the checkpoint, as it was read back.
        """
        if self.is_done:
            return

        try:
            if self.obstacle is not None:
                raise self.obstacle
            with preserve_rng_state(), _limit_time(_SECONDS), _disable_compilation():
                notes = self._find_notes(state)
        except _TooLong:
            notes = [f"{_NOT_CHECKED}: it took more than {_SECONDS:.0f} seconds"]
        except (Exception, SystemExit) as error:  # the net is the user's own
            notes = [f"{_NOT_CHECKED}: {type(error).__name__}: {get_first_line(error)}"]

        self.is_done = bool(notes)
        troubles = self.context.state.progress.troubles
        for number, note in enumerate(notes, 1):
            troubles[f"{KIND} {number}"] = note
            self.say(note)

    def _list_roots(self) -> list[Any]:
        """The objects that the user's own code is reached from."""
        state = self.context.state
        roots: list[Any] = [state.model, self.context.objective.own_loss]
        if _has_own_steps(self.context.settings):
            roots += [state.optimizer, state.schedule.scheduler]
        return roots

    def _find_notes(self, state: dict[str, Any]) -> list[str]:
        context = self.context
        settings = context.settings
        notes = [] if is_ours(str(settings.data.target)) else self._check_rows()
        if not _has_own_training_code(settings, context.state.model):
            return notes

        self._refuse_large()
        enclosing = find_enclosing_function(self._list_roots())
        if enclosing is not None:
            # A call of any copy would reach, and perhaps change, the net in training.
            return [
                *notes,
                f"{_NOT_CHECKED}: {enclosing.__qualname__} holds a module, so that no copy can stand for the net; "
                "make it a method",
            ]

        now = Surroundings(find_variables(self._list_roots()))
        if _has_own_code(settings, context.state.model):
            notes += self._check_model(state, now)
        if context.objective.own_loss is not None:
            notes += [note for note in self._check_loss(state, now) if note not in notes]
        if _has_own_steps(settings):
            notes += [note for note in self._check_steps(state, now) if note not in notes]

        if len(notes) > _MOST_NAMED:
            notes = [*notes[:_MOST_NAMED], f"{len(notes) - _MOST_NAMED} more attributes are not in the checkpoint"]
        return notes

    def _refuse_large(self) -> None:
        """Raise MemoryError where two more copies of the net would not fit beside it."""
        device = self.context.runtime.device
        needed = 3 * count_bytes(self._list_roots())
        if needed > measure_free_memory(device):
            raise MemoryError(f"a copy of the net takes {needed / 3 / 2**20:,.0f} MB, and there is too little left")

    def _check_model(self, state: dict[str, Any], now: Surroundings) -> list[str]:
        """Compare the net in training with one that is loaded, on the sample."""
        live = self.context.state.model
        try:
            loaded = self._load(state)
        except _LoadError as error:
            return [str(error)]

        def respond(net: nn.Module, surroundings: Surroundings) -> Responses:
            return self._respond(duplicate(net), surroundings)

        # Without autocast first: full precision shows small differences.
        try:
            expected = respond(live, now)
        except Exception:
            # The net may rely on the precision of the training, in which rounding hides them.
            self.autocast = self.context.state.autocast
            expected = respond(live, now)
        actual = respond(loaded, self.start)
        if _measure_distance(expected, actual) <= _TOLERANCE:
            return []

        differences = [*_find_attribute_differences(live, loaded), *_find_variable_differences(self.start, now)]
        differences = differences[:_MOST_TRIALS]

        def is_mended(trial_differences: list[Difference]) -> bool:
            trial = duplicate(loaded)
            variables = _apply(trial_differences, trial)
            mended = self._respond(trial, self.start.mix(now, variables))
            return _measure_distance(expected, mended) <= _TOLERANCE

        culprits = _find_culprits(differences, is_mended)
        if culprits:
            return [difference.sentence for difference in culprits]
        if _measure_distance(expected, actual) <= _CLEAR:
            return []

        # A closure of the loaded net holds variables of its own, which no trial can exchange.
        enclosed = [difference.sentence for difference in differences if difference.is_enclosed]
        if enclosed:
            return enclosed
        if _measure_distance(actual, respond(loaded, self.start)) > _CLEAR:
            return [
                f"{_describe('', live)} gives other outputs when it is called again with the same inputs and the same "
                "random numbers: a resumed run will not end in the same weights"
            ]
        name, module = self._find_module(live, loaded, now)
        return [f"{_describe(name, module)}: a part of its state that dlrun cannot name {NOT_SAVED}; {_advise(module)}"]

    def _load(self, state: dict[str, Any]) -> nn.Module:
        """Build the net that a resumed run would begin with; _LoadError if the checkpoint does not fit it."""
        settings = self.context.settings
        seed_everything(settings.seed)
        with skip_trained_weights(), self.start.put_in_place():
            loaded = build.build_model(settings, self.context.splits.spec, self.context.runtime, self.trusted_modules)

            try:
                BuiltBuffers(loaded).fit(state["model"], state.get(CREATED_BUFFERS, []))
                load_weights(loaded, state["model"])
            except Exception as error:  # set_extra_state is the user's own
                raise _LoadError(
                    f"{_describe('', loaded)}: a net built anew does not take the checkpoint's weights, so that resume "
                    f"will fail: {get_first_line(error)}"
                ) from error
        return loaded

    def _respond(self, net: nn.Module, surroundings: Surroundings) -> Responses:
        """Outputs of a net for the sample, evaluated and in training, and its gradients. Changes the net."""
        assert self.sample is not None
        inputs, _ = self.sample
        seed_everything(0)
        with surroundings.put_in_place(), self.autocast():
            with torch.no_grad():
                evaluated = net.eval()(*inputs).detach().clone()

            net.train()
            with torch.enable_grad():
                training_outputs = net(*inputs)
                gradients = _compute_gradients(net, training_outputs)
                requires_grad = torch.tensor([float(p.requires_grad) for p in net.parameters()])
                later = [net(*inputs).detach().clone() for _ in range(self._count_calls())]

        return {
            "evaluated": [evaluated],
            "trained": [training_outputs.detach().clone()],
            "gradients": gradients,
            "on": [requires_grad],
            "later": later,
        }

    def _count_calls(self) -> int:
        """Number of further calls of the net to compare: as many as take little time."""
        assert self.sample is not None
        work = self.context.preflight.multiply_adds * len(self.sample[1])
        return min(_MOST_CALLS, int(_MOST_WORK / work / 4)) if work else 0

    def _find_module(self, live: nn.Module, loaded: nn.Module, now: Surroundings) -> tuple[str, nn.Module]:
        """Find the innermost module whose output is the first to differ."""
        live_calls = self._record_calls(live, now)
        loaded_calls = self._record_calls(loaded, self.start)
        modules = dict(live.named_modules())
        for (name, expected), (other, actual) in zip(live_calls, loaded_calls, strict=False):
            if name != other or _measure_distance({"": expected}, {"": actual}) > _TOLERANCE:
                return name, modules.get(name, live)
        return "", live

    def _record_calls(self, net: nn.Module, surroundings: Surroundings) -> list[tuple[str, list[Tensor]]]:
        """Module name and output of each call inside a copy of the net, innermost first."""
        copy = duplicate(net)
        calls: list[tuple[str, list[Tensor]]] = []

        def record(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
            calls.append((name, [output.detach().clone()] if isinstance(output, Tensor) else []))

        for name, module in copy.named_modules():
            module.register_forward_hook(functools.partial(record, name))
        self._respond(copy, surroundings)
        return calls

    def _check_loss(self, state: dict[str, Any], now: Surroundings) -> list[str]:
        """Compare the loss as it is now with the one that the run began with, on the same outputs."""
        assert self.sample is not None
        objective = self.context.objective
        owner = _find_owner(objective.own_loss)
        owner_at_start = _find_owner(self.loss_at_start)
        # A loss that is a module has weights and buffers in the checkpoint.
        if isinstance(owner_at_start, nn.Module) and "loss" in state:
            load_weights(owner_at_start, state["loss"])

        where = f"task.loss={objective.loss_name}" + ("" if owner is None else f" ({type(owner).__name__})")

        inputs, targets = self.sample
        with now.put_in_place(), torch.no_grad(), self.autocast():
            outputs = duplicate(self.context.state.model).eval()(*inputs).detach().clone()

        def respond(loss: Any, surroundings: Surroundings) -> Responses:
            trial = dataclasses.replace(objective, own_loss=duplicate(loss))
            with surroundings.put_in_place(), self.autocast():
                return _respond_as_loss(trial, outputs, targets, _MOST_CALLS)

        expected = respond(objective.own_loss, now)
        if _measure_distance(expected, respond(self.loss_at_start, self.start)) <= _TOLERANCE:
            return []

        differences = [] if owner is None else _find_value_differences(where, owner, owner_at_start)
        differences += _find_variable_differences(self.start, now)

        def is_mended(trial_differences: list[Difference]) -> bool:
            trial = duplicate(self.loss_at_start)
            variables = _apply(trial_differences, _find_owner(trial))
            return _measure_distance(expected, respond(trial, self.start.mix(now, variables))) <= _TOLERANCE

        culprits = _find_culprits(differences[:_MOST_TRIALS], is_mended)
        if culprits:
            return [difference.sentence for difference in culprits]
        return [f"{where}: a part of its state that dlrun cannot name {NOT_SAVED}; keep it in the model, as a buffer"]

    def _check_steps(self, state: dict[str, Any], now: Surroundings) -> list[str]:
        """Compare the optimizer and its schedule with those that a resumed run would begin with."""
        settings = self.context.settings
        current = self.context.state
        try:
            loaded = self._load(state)
        except _LoadError as error:
            return [str(error)]

        with self.start.put_in_place():
            loss = duplicate(self.context.objective.loss_module)
            optimizer = build.build_optimizer(settings, loaded, self.trusted_modules, loss)
            schedule = build.build_schedule(settings, optimizer, current.train, current.mode, self.trusted_modules)
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["scheduler"])

        expected = _respond_with_steps(*_copy_steps(current.optimizer, current.schedule), now)
        actual = _respond_with_steps(*_copy_steps(optimizer, schedule), self.start)
        if _measure_distance(expected, actual) <= _TOLERANCE:
            return []

        differences = _find_step_differences(settings, current.schedule, schedule)
        differences += _find_variable_differences(self.start, now)

        def is_mended(trial_differences: list[Difference]) -> bool:
            trial = _copy_steps(optimizer, schedule)
            variables = _apply(trial_differences, trial)
            mended = _respond_with_steps(*trial, self.start.mix(now, variables))
            return _measure_distance(expected, mended) <= _TOLERANCE

        culprits = _find_culprits(differences[:_MOST_TRIALS], is_mended)
        if culprits:
            return [difference.sentence for difference in culprits]
        return [f"optimizer or scheduler: a part of their state that dlrun cannot name {NOT_SAVED}; {_OF_STEPS}"]

    def _check_rows(self) -> list[str]:
        """Check that a data set of the user's own gives the same rows when it is read twice with the same seed."""
        train = self.context.state.train
        if not isinstance(train, LoaderBatches) or count_bytes(train.dataset) > _FEW_BYTES:
            return []

        try:
            dataset = duplicate(train.dataset)
            reads = []
            for _ in range(2):
                seed_everything(0)
                reads.append([dataset[row] for row in range(min(_MOST_ROWS_READ, train.rows))])
        except Exception:  # an open file cannot be copied, and what cannot be read ends the run by itself
            return []
        if find_difference(reads[0], reads[1]) is None:
            return []
        return [
            f"data={self.context.settings.data.choice}: a row that is read again with the same random numbers is "
            "another one: a resumed run will not end in the same weights; keep no count or generator in the data set"
        ]


def is_needed(settings: Settings, model: nn.Module) -> bool:
    """Whether a run has code of the user's own that could hold state outside the checkpoint."""
    return not is_ours(str(settings.data.target)) or _has_own_training_code(settings, model)


def _has_own_training_code(settings: Settings, model: nn.Module) -> bool:
    """Whether net, loss, optimizer or schedule are of the user's own."""
    return is_own_name(settings.task.loss) or _has_own_steps(settings) or _has_own_code(settings, model)


def _has_own_steps(settings: Settings) -> bool:
    """Whether the optimizer or its schedule is of the user's own."""
    targets = [block.target for block in (settings.optimizer, settings.scheduler)]
    return not all(is_ours(str(target)) for target in targets if target is not None)


def _has_own_code(settings: Settings, model: nn.Module) -> bool:
    own_target = not is_ours(str(settings.model.target))
    return own_target or any(is_own_class(type(module)) for module in name_modules(model).values())


def take_sample(batch: Batch, work: int) -> Batch:
    """Return a copy of some rows of a batch. work: multiply-adds for one row."""
    rows = min(_MOST_ROWS, max(2, int(_MOST_WORK / max(work, 1))))
    inputs, targets = evaluation.take_rows(batch, rows)
    return tuple(x.clone() for x in inputs), targets.clone()


def _read_sample(context: RunContext) -> Batch:
    """Some rows of the first batch; reading them does not advance the generators."""
    with preserve_rng_state():
        return take_sample(next(context.state.train.epoch(1)), 0)


def _copy_or_share(value: Any) -> Any:
    """A deep copy; the value itself where there can be none: its state is then compared with itself."""
    try:
        return duplicate(value)
    except Exception:  # the loss is the user's own
        return value


# --- What nets, losses and optimizers compute ---


def _compute_gradients(net: nn.Module, outputs: Tensor) -> list[Tensor]:
    """Gradients of a sum of the outputs in which each counts differently."""
    if not outputs.requires_grad:
        return []
    net.zero_grad(set_to_none=True)
    weights = torch.linspace(0.5, 1.5, outputs.numel(), device=outputs.device, dtype=outputs.dtype)
    (outputs * weights.reshape(outputs.shape)).sum().backward()  # type: ignore[no-untyped-call]
    return [p.grad.detach().clone() for p in net.parameters() if p.grad is not None]


def _respond_as_loss(objective: Objective, outputs: Tensor, targets: Tensor, calls: int) -> Responses:
    """The loss of outputs, as in training and as in evaluation, and its gradients. Changes the loss.

    calls: number of further values, as in training.
    """
    seed_everything(0)
    with torch.enable_grad():
        leaf = outputs.clone().requires_grad_(True)
        value = objective.compute_loss(leaf, targets)
        gradients = torch.autograd.grad(value, [leaf], allow_unused=True)
        later = [objective.compute_loss(leaf, targets).detach() for _ in range(calls)]
    with torch.no_grad():
        evaluated = objective.compute_loss(outputs, targets)
    present = [gradient for gradient in gradients if gradient is not None]
    return {"value": [value.detach()], "gradients": present, "evaluated": [evaluated], "later": later}


def _respond_with_steps(optimizer: Optimizer, schedule: Schedule, surroundings: Surroundings) -> Responses:
    """Parameters and rates after some steps with the same gradients. Changes optimizer and schedule."""
    parameters = []
    for group in optimizer.param_groups:
        parameters += group["params"]
    needs_closure = requires_closure(optimizer)

    seed_everything(0)
    rates: list[float] = []
    calls = _MOST_CALLS if count_bytes(parameters) < _FEW_BYTES else 2
    with surroundings.put_in_place(), warnings.catch_warnings():
        # The copy of a scheduler does not see the steps of its optimizer's copy.
        warnings.simplefilter("ignore")
        for _ in range(calls):
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)

            if needs_closure:
                optimizer.step(lambda: 0.0)
            else:
                optimizer.step()

            schedule.advance_step()
            schedule.advance_epoch(0.0)
            rates += [float(rate) for rate in schedule.get_learning_rates().values()]
    return {"parameters": [parameter.detach() for parameter in parameters], "rates": [torch.tensor(rates)]}


def _copy_steps(optimizer: Optimizer, schedule: Schedule) -> tuple[Optimizer, Schedule]:
    """Copies with all attributes, of which torch's own copies of optimizers lack some."""
    twin = type(optimizer).__new__(type(optimizer))
    # A scheduler puts a `step` into its optimizer that moves that very one, whoever holds it.
    attributes = {name: value for name, value in vars(optimizer).items() if name != "step"}
    memo: dict[int, Any] = {id(optimizer): twin}
    twin.__dict__.update(duplicate(attributes, memo))
    return twin, duplicate(schedule, memo)


def _measure_distance(expected: Responses, actual: Responses) -> float:
    """The largest difference between two sets of responses, relative to the largest number of its kind."""
    largest = 0.0
    for kind, ours in expected.items():
        theirs = actual[kind]
        if [x.shape for x in ours] != [x.shape for x in theirs]:
            return float("inf")
        if not ours:
            continue

        one = torch.cat([_flatten(x) for x in ours])
        two = torch.cat([_flatten(x) for x in theirs])
        same = (one == two) | (one.isnan() & two.isnan())
        if same.all():
            continue

        difference = (one - two)[~same].abs()
        if not difference.isfinite().all():
            return float("inf")
        scale = one[one.isfinite()].abs().max().clamp_min(torch.finfo(one.dtype).tiny)
        largest = max(largest, float(difference.max() / scale))
    return largest


def _flatten(tensor: Tensor) -> Tensor:
    dense = tensor.to_dense() if tensor.layout != torch.strided else tensor
    return dense.flatten().double().cpu()


# --- What differs between them, and which difference matters ---


def _find_culprits(differences: list[Difference], is_mended: Callable[[list[Difference]], bool]) -> list[Difference]:
    """Find a smallest set of differences that, given to the loaded object, make it respond like the live one.

    Empty if even all of them together do not.
    """
    if not differences or not is_mended(differences):
        return []

    # Leave out one after another; those without which it fails are needed.
    needed = list(differences)
    for difference in differences:
        others = [other for other in needed if other is not difference]
        if is_mended(others):
            needed = others
    return needed


def _apply(differences: list[Difference], target: Any) -> set[Key]:
    """Give values to a copy of what was loaded; returns the keys of the variables outside it that differ."""
    for difference in differences:
        if difference.give is not None:
            difference.give(target)

    return {difference.variable for difference in differences if difference.variable is not None}


def _find_attribute_differences(live: nn.Module, loaded: nn.Module) -> Iterator[Difference]:
    """Yield what the modules of two nets hold that is not the same, in the order of the modules."""
    registered = {name for name, _ in live.named_modules()}
    twins = name_modules(loaded)
    for name, module in name_modules(live).items():
        twin = twins.get(name)
        if twin is None:
            continue

        where = _describe(name, module)
        advice = "" if name in registered else "hold its module in an nn.ModuleList or nn.ModuleDict"
        yield from _find_value_differences(where, module, twin, name, advice)

        parameter_advice = advice or _advise(module)
        buffer_advice = advice or "register it with persistent=True"
        yield from _find_tensor_differences(where, name, module, twin, "parameter", parameter_advice)
        yield from _find_tensor_differences(where, name, module, twin, "buffer", buffer_advice)
        yield from _find_frozen_differences(where, name, module, twin)


def _find_tensor_differences(
    where: str, name: str, module: nn.Module, twin: nn.Module, kind: str, advice: str
) -> Iterator[Difference]:
    """Yield the parameters or buffers of one module that differ. kind: parameter or buffer."""
    registry = f"_{kind}s"
    theirs = getattr(twin, registry)
    for key, value in getattr(module, registry).items():
        if find_difference(value, theirs.get(key)) is None:
            continue
        yield Difference(
            f"{where}: {kind} '{key}' {NOT_SAVED}; {advice}",
            lambda net, key=key, value=value: (  # type: ignore[misc]
                name_modules(net)[name].__dict__[registry].update({key: duplicate(value)})
            ),
        )


def _find_frozen_differences(where: str, name: str, module: nn.Module, twin: nn.Module) -> Iterator[Difference]:
    """Yield the parameters that only one of two modules has frozen."""
    for key, parameter in module._parameters.items():
        other = twin._parameters.get(key)
        if parameter is not None and other is not None and parameter.requires_grad != other.requires_grad:
            yield Difference(
                f"{where}: requires_grad of '{key}' {NOT_SAVED}; set it in forward, from a number that is a buffer",
                lambda net, key=key, on=parameter.requires_grad: (  # type: ignore[misc]
                    name_modules(net)[name].__dict__["_parameters"][key].requires_grad_(on)
                ),
            )


def _find_value_differences(where: str, owner: Any, twin: Any, name: str = "", advice: str = "") -> list[Difference]:
    """List the attributes of one object, a module or not, that differ from those of another of its class.

    name: of the module inside its net. advice: what to do; by default by the kind of the value.
    """
    of_torch = TORCH_ATTRIBUTES if isinstance(owner, nn.Module) else frozenset[str]()
    only_of_twin = [key for key in twin.__dict__ if key not in owner.__dict__]
    differences = []
    for key in (*owner.__dict__, *only_of_twin):
        if key in of_torch:
            continue
        value = owner.__dict__.get(key, getattr(type(owner), key, MISSING))
        other = twin.__dict__.get(key, getattr(type(twin), key, MISSING))
        suffix = find_difference(value, other)
        if suffix is None:
            continue

        differences.append(
            Difference(
                f"{where}: attribute '{key}{suffix}' {NOT_SAVED}; {advice or _advise(owner, value)}",
                lambda net, key=key, value=value: _give_attribute(net, name, key, value),  # type: ignore[misc]
            )
        )
    return differences


def _give_attribute(net: Any, name: str, key: str, value: Any) -> None:
    owner = name_modules(net)[name] if isinstance(net, nn.Module) else net
    if value is MISSING:
        owner.__dict__.pop(key, None)
    else:
        owner.__dict__[key] = duplicate(value)


def _find_step_differences(settings: Settings, live: Schedule, loaded: Schedule) -> list[Difference]:
    """List the attributes of an own optimizer and an own scheduler that differ from those of loaded ones."""
    differences = []
    for block, one, two in (
        (settings.optimizer, live.optimizer, loaded.optimizer),
        (settings.scheduler, live.scheduler, loaded.scheduler),
    ):
        if one is None or two is None or is_ours(str(block.target)):
            continue
        for key, value in vars(one).items():
            suffix = find_difference(value, vars(two).get(key, MISSING))
            if suffix is None or isinstance(value, Optimizer) or inspect.isroutine(value):
                continue

            where = f"{block.group}={block.choice} ({type(one).__name__})"
            differences.append(
                Difference(
                    f"{where}: attribute '{key}{suffix}' {NOT_SAVED}; {_OF_STEPS}",
                    lambda steps, group=block.group, key=key, value=value: setattr(  # type: ignore[misc]
                        steps[0] if group == "optimizer" else steps[1].scheduler, key, duplicate(value)
                    ),
                )
            )
    return differences


def _find_variable_differences(start: Surroundings, now: Surroundings) -> list[Difference]:
    """List the variables outside the net whose values are no longer those of the start."""
    differences = []
    for key, variable in (start.variables | now.variables).items():
        suffix = find_difference(start.values.get(key, MISSING), now.values.get(key, MISSING))
        if suffix is not None:
            differences.append(
                Difference(
                    f"{variable.label} {NOT_SAVED}; keep it in a module, as a buffer",
                    variable=key,
                    is_enclosed=variable.is_enclosed,
                )
            )
    return differences


def _describe(name: str, module: nn.Module) -> str:
    return f"{name or 'the model'} ({type(module).__name__})"


def _advise(owner: Any, value: Any = None) -> str:
    """What to do with an attribute of `owner`."""
    if not isinstance(owner, nn.Module):
        return "make its class an nn.Module, and register it as a buffer"
    if get_generator_state(value) is not None:
        return "return its state from get_extra_state"
    return "register it as a buffer, or return it from get_extra_state"


def _find_owner(loss: Any) -> Any:
    """The object whose state a loss may keep; None for a plain function."""
    if isinstance(loss, functools.partial):
        return _find_owner(loss.func)
    if inspect.ismethod(loss):
        return loss.__self__
    return None if inspect.isroutine(loss) or not hasattr(loss, "__dict__") else loss


# --- Around the check ---


@contextlib.contextmanager
def _disable_compilation() -> Iterator[None]:
    """Call compiled functions as they were written: other shapes and modes would be compiled anew."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextlib.contextmanager
def _limit_time(seconds: float) -> Iterator[None]:
    """Raise _TooLong inside after so long, if signals reach this thread and nobody else has set an alarm."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not hasattr(signal, "setitimer") or signal.getitimer(signal.ITIMER_REAL) != (0.0, 0.0):
        yield
        return

    def give_up(_number: int, _frame: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
