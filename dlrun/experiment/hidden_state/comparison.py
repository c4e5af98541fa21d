"""State that resume cannot see: does what is loaded from a checkpoint do what the objects in training do?

Looked at for a few checkpoints of a run until a difference is found, and only where the data, net, loss, optimizer or
schedule are of the user's own: dlrun's and torch's keep all that they need in the checkpoint. Copies alone are called,
so that the training goes on as if nothing had happened.
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

from dlrun.config.schema import Settings
from dlrun.core.own_code import is_ours
from dlrun.core.user_code import first_line
from dlrun.data.batches import Batch, LoaderBatches, measure_free_memory
from dlrun.data.files.tensors import load_weights
from dlrun.engine import device as runtime
from dlrun.engine import evaluation
from dlrun.engine.made_buffers import BuiltBuffers
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
from dlrun.engine.state import MADE_BUFFERS
from dlrun.engine.trainer import requires_closure
from dlrun.experiment.build import build
from dlrun.experiment.context import RunContext
from dlrun.experiment.hidden_state.surroundings import MISSING, Surroundings, find_variables, is_own_class
from dlrun.models.pretrained import weights_follow

KIND = "hidden state"  # of what is noted, in Progress.troubles
_OF_STEPS = "return it from state_dict"
NOT_SAVED = "is not in the checkpoint: resume will not end in the same weights"
_NOT_CHECKED = "whether a resumed run ends in the same weights could not be checked"

# Relative to the largest number. Matrix products round by the address of their operands.
_TOLERANCE = 1e-5
# A larger difference than rounding makes in a deep net is spoken of also where nothing shows what it comes from.
_CLEAR = 1e-3
_MOST_NAMED = 3
# What a net counts may act every few calls only: so many calls in training are compared where they take little time.
_MOST_CALLS = 24
_FEW_BYTES = 2**24
_MOST_ROWS_READ = 8
_MOST_TRIALS = 20
_SECONDS = 60.0  # a constructor may wait for a lock that this very process holds

Answers = dict[str, list[Tensor]]


@dataclass
class Difference:
    """A value that the net in training holds and the loaded one does not."""

    sentence: str
    give: Callable[[Any], None] | None = None  # hands the value on to a copy of what was loaded
    variable: tuple[int, str] | None = None  # or the variable outside, which is left as it is
    is_enclosed: bool = False  # a closure's


class _TooLong(BaseException):
    """The check has taken as long as it may. No Exception: a user's own `except Exception` must not swallow it."""


class ReloadCheck:
    """Compares the net in training with one that is loaded from a checkpoint; each difference is said once."""

    def __init__(self, parts: RunContext, trusted_modules: Sequence[str] | None, say: Callable[[str], None]) -> None:
        """parts: before the first step, or where an earlier process stood."""
        self.parts = parts
        self.trusted_modules = trusted_modules
        self.say = say
        self.sample = parts.sample
        self.autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
        self.is_done = False
        self.loss_at_start = _copy_or_none(parts.task.own_loss)
        self.start = Surroundings({})
        self.obstacle: Exception | None = None
        try:
            if self.sample is None and _trains_own_code(parts.settings, parts.model):
                # Nothing was to be looked at before the first step.
                self.sample = _read_sample(parts)
            self.start = Surroundings(find_variables(self._find_roots()))
        except Exception as error:  # a user's own class may answer anything when it is looked at
            self.obstacle = error

    def __call__(self, state: dict[str, Any]) -> None:
        """state: of a checkpoint, as it was read back. Whatever goes wrong here is a note, never the run's end."""
        if self.is_done:
            return
        generators = runtime.get_rng_state()
        try:
            if self.obstacle is not None:
                raise self.obstacle
            with _time_limit(_SECONDS), _eagerly():
                notes = self._find_notes(state)
        except _TooLong:
            notes = [f"{_NOT_CHECKED}: it took more than {_SECONDS:.0f} seconds"]
        except (Exception, SystemExit) as error:  # the net is the user's own
            notes = [f"{_NOT_CHECKED}: {type(error).__name__}: {first_line(error)}"]
        finally:
            runtime.set_rng_state(generators)

        self.is_done = bool(notes)
        troubles = self.parts.training.progress.troubles
        for number, note in enumerate(notes, 1):
            troubles[f"{KIND} {number}"] = note
            self.say(note)

    def _find_roots(self) -> list[Any]:
        """The objects that the user's own code is reached from."""
        training = self.parts.training
        roots: list[Any] = [self.parts.model, self.parts.task.own_loss]
        if has_own_steps(self.parts.settings):
            roots += [training.optimizer, training.schedule.scheduler]
        return roots

    def _find_notes(self, state: dict[str, Any]) -> list[str]:
        parts = self.parts
        notes = [] if is_ours(str(parts.settings.data.target)) else self._check_rows()
        if not _trains_own_code(parts.settings, parts.model):
            return notes
        self._refuse_large()
        enclosing = find_enclosing_function(self._find_roots())
        if enclosing is not None:
            # A call of any copy would reach, and perhaps change, the net in training.
            return [
                *notes,
                f"{_NOT_CHECKED}: {enclosing.__qualname__} holds a module, so that no copy can stand for the net; "
                "make it a method",
            ]
        now = Surroundings(find_variables(self._find_roots()))
        if _has_own_code(parts.settings, parts.model):
            notes += self._check_model(state, now)
        if parts.task.own_loss is not None:
            notes += [note for note in self._check_loss(state, now) if note not in notes]
        if has_own_steps(parts.settings):
            notes += [note for note in self._check_steps(state, now) if note not in notes]
        if len(notes) > _MOST_NAMED:
            notes = [*notes[:_MOST_NAMED], f"{len(notes) - _MOST_NAMED} more attributes are not in the checkpoint"]
        return notes

    def _refuse_large(self) -> None:
        """MemoryError where two more copies of the net would not fit beside it."""
        device = self.parts.runtime.device
        needed = 3 * count_bytes(self._find_roots())
        if needed > measure_free_memory(device):
            raise MemoryError(f"a copy of the net takes {needed / 3 / 2**20:,.0f} MB, and there is too little left")

    def _check_model(self, state: dict[str, Any], now: Surroundings) -> list[str]:
        live = self.parts.model
        try:
            loaded = self._load(state)
        except _LoadError as error:
            return [str(error)]

        def answer(net: nn.Module, surroundings: Surroundings) -> Answers:
            return self._answer(duplicate(net), surroundings)

        try:
            expected = answer(live, now)
        except Exception:
            # It may rely on the precision of the training, in which rounding would hide small differences.
            self.autocast = self.parts.training.autocast
            expected = answer(live, now)
        found = answer(loaded, self.start)
        if _distance(expected, found) <= _TOLERANCE:
            return []

        differences = [*_differing_attributes(live, loaded), *_differing_variables(self.start, now)][:_MOST_TRIALS]

        def is_mended(given: list[Difference]) -> bool:
            trial = duplicate(loaded)
            for difference in given:
                if difference.give is not None:
                    difference.give(trial)
            left = {difference.variable for difference in given if difference.variable is not None}
            return _distance(expected, self._answer(trial, self.start.mix(now, left))) <= _TOLERANCE

        culprits = _find_culprits(differences, is_mended)
        if culprits:
            return [difference.sentence for difference in culprits]
        if _distance(expected, found) <= _CLEAR:
            return []
        # A closure of the loaded net holds variables of its own, which no trial can exchange.
        enclosed = [difference.sentence for difference in differences if difference.is_enclosed]
        if enclosed:
            return enclosed
        if _distance(found, answer(loaded, self.start)) > _CLEAR:
            return [
                f"{_describe('', live)} gives other outputs when it is called again with the same inputs and the same "
                "random numbers: a resumed run will not end in the same weights"
            ]
        name, module = self._find_module(live, loaded, now)
        return [f"{_describe(name, module)}: a part of its state that dlrun cannot name {NOT_SAVED}; {_advice(module)}"]

    def _load(self, state: dict[str, Any]) -> nn.Module:
        """The net that a resumed run would begin with; _LoadError where the checkpoint does not fit it."""
        settings = self.parts.settings
        runtime.seed_everything(settings.rest.seed)
        with weights_follow(), self.start.put_in_place():
            loaded = build.build_model(settings, self.parts.splits.spec, self.parts.runtime, self.trusted_modules)
            try:
                BuiltBuffers(loaded).fit(state["model"], state.get(MADE_BUFFERS, []))
                load_weights(loaded, state["model"])
            except Exception as error:  # set_extra_state is the user's own
                raise _LoadError(
                    f"{_describe('', loaded)}: a net built anew does not take the checkpoint's weights, so that resume "
                    f"will fail: {first_line(error)}"
                ) from error
        return loaded

    def _answer(self, net: nn.Module, surroundings: Surroundings) -> Answers:
        """What a net, which is changed by this, says to the sample: evaluated, trained, and its gradients."""
        assert self.sample is not None
        inputs, _ = self.sample
        runtime.seed_everything(0)
        with surroundings.put_in_place(), self.autocast():
            with torch.no_grad():
                evaluated = net.eval()(*inputs).detach().clone()
            net.train()
            with torch.enable_grad():
                trained = net(*inputs)
                gradients = _gradients(net, trained)
                rates = [torch.tensor([float(p.requires_grad) for p in net.parameters()])]
                later = [net(*inputs).detach().clone() for _ in range(self._count_calls())]
        return {
            "evaluated": [evaluated],
            "trained": [trained.detach().clone()],
            "gradients": gradients,
            "on": rates,
            "later": later,
        }

    def _count_calls(self) -> int:
        """How many more calls of the net are compared: as many as take little time."""
        assert self.sample is not None
        work = sum(layer.multiply_adds for layer in self.parts.layers) * len(self.sample[1])
        return min(_MOST_CALLS, int(_MOST_WORK / work / 4)) if work else 0

    def _check_steps(self, state: dict[str, Any], now: Surroundings) -> list[str]:
        """The optimizer and its schedule as they are against those that a resumed run would begin with."""
        parts = self.parts
        training = parts.training
        try:
            loaded = self._load(state)
        except _LoadError as error:
            return [str(error)]
        with self.start.put_in_place():
            optimizer = build.build_optimizer(parts.settings, loaded, self.trusted_modules)
            schedule = build.build_schedule(
                parts.settings, optimizer, training.train, training.mode, self.trusted_modules
            )
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["scheduler"])

        expected = _make_steps(*_copy_steps(training.optimizer, training.schedule), now)
        if _distance(expected, _make_steps(*_copy_steps(optimizer, schedule), self.start)) <= _TOLERANCE:
            return []

        differences = _differing_steps(parts.settings, training.schedule, schedule)
        differences += _differing_variables(self.start, now)

        def is_mended(given: list[Difference]) -> bool:
            trial = _copy_steps(optimizer, schedule)
            for difference in given:
                if difference.give is not None:
                    difference.give(trial)
            left = {difference.variable for difference in given if difference.variable is not None}
            return _distance(expected, _make_steps(*trial, self.start.mix(now, left))) <= _TOLERANCE

        culprits = _find_culprits(differences[:_MOST_TRIALS], is_mended)
        if culprits:
            return [difference.sentence for difference in culprits]
        return [f"optimizer or scheduler: a part of their state that dlrun cannot name {NOT_SAVED}; {_OF_STEPS}"]

    def _find_module(self, live: nn.Module, loaded: nn.Module, now: Surroundings) -> tuple[str, nn.Module]:
        """The innermost module whose output is the first to differ."""
        outputs = []
        for net, surroundings in ((live, now), (loaded, self.start)):
            copy = duplicate(net)
            seen: list[tuple[str, list[Tensor]]] = []
            for name, module in copy.named_modules():
                module.register_forward_hook(_recorder(name, seen))
            self._answer(copy, surroundings)
            outputs.append(seen)
        modules = dict(live.named_modules())
        for (name, one), (other, two) in zip(*outputs, strict=False):
            if name != other or _distance({"": one}, {"": two}) > _TOLERANCE:
                return name, modules.get(name, live)
        return "", live

    def _check_loss(self, state: dict[str, Any], now: Surroundings) -> list[str]:
        """The loss as it is now against the one that the run began with, on the same outputs."""
        assert self.sample is not None
        task = self.parts.task
        owner = _owner_of(task.own_loss)
        at_start = _owner_of(self.loss_at_start)
        if isinstance(at_start, nn.Module) and "loss" in state:
            load_weights(at_start, state["loss"])
        where = f"task.loss={task.loss_name}" + ("" if owner is None else f" ({type(owner).__name__})")
        inputs, targets = self.sample
        with now.put_in_place(), torch.no_grad(), self.autocast():
            outputs = duplicate(self.parts.model).eval()(*inputs).detach().clone()

        def answer(loss: Any, surroundings: Surroundings) -> Answers:
            trial = dataclasses.replace(task, own_loss=duplicate(loss))
            with surroundings.put_in_place(), self.autocast():
                return _answer_of_loss(trial, outputs, targets, _MOST_CALLS)

        expected = answer(task.own_loss, now)
        if _distance(expected, answer(self.loss_at_start, self.start)) <= _TOLERANCE:
            return []

        differences = [] if owner is None else _differing_values(where, owner, at_start)
        differences += _differing_variables(self.start, now)

        def is_mended(given: list[Difference]) -> bool:
            trial = duplicate(self.loss_at_start)
            for difference in given:
                if difference.give is not None:
                    difference.give(_owner_of(trial))
            left = {difference.variable for difference in given if difference.variable is not None}
            return _distance(expected, answer(trial, self.start.mix(now, left))) <= _TOLERANCE

        culprits = _find_culprits(differences[:_MOST_TRIALS], is_mended)
        if culprits:
            return [difference.sentence for difference in culprits]
        return [f"{where}: a part of its state that dlrun cannot name {NOT_SAVED}; keep it in the model, as a buffer"]

    def _check_rows(self) -> list[str]:
        """Whether a data set of the user's own gives the same rows when it is read twice, with the same generators."""
        train = self.parts.training.train
        if not isinstance(train, LoaderBatches) or count_bytes(train.dataset) > _FEW_BYTES:
            return []
        try:
            dataset = duplicate(train.dataset)
            reads = []
            for _ in range(2):
                runtime.seed_everything(0)
                reads.append([dataset[row] for row in range(min(_MOST_ROWS_READ, train.rows))])
        except Exception:  # an open file cannot be copied, and what cannot be read ends the run by itself
            return []
        if find_difference(reads[0], reads[1]) is None:
            return []
        return [
            f"data={self.parts.settings.data.choice}: a row that is read again with the same random numbers is another "
            "one: a resumed run will not end in the same weights; keep no count or generator in the data set"
        ]


class _LoadError(Exception):
    """A checkpoint does not fit the net that is built anew."""


def is_needed(settings: Settings, model: nn.Module) -> bool:
    """Whether a run has code of the user's own that could hold state outside the checkpoint."""
    return not is_ours(str(settings.data.target)) or _trains_own_code(settings, model)


def _trains_own_code(settings: Settings, model: nn.Module) -> bool:
    """Whether net, loss, optimizer or schedule are of the user's own."""
    own_loss = "." in (settings.rest.task.loss or "")
    return own_loss or has_own_steps(settings) or _has_own_code(settings, model)


def has_own_steps(settings: Settings) -> bool:
    """Whether the optimizer or its schedule is of the user's own."""
    targets = [str(block.target) for block in (settings.optimizer, settings.scheduler) if block.target is not None]
    return not all(map(is_ours, targets))


def _copy_steps(optimizer: Optimizer, schedule: Schedule) -> tuple[Optimizer, Schedule]:
    """Copies with all attributes, of which torch's own copies of optimizers lack some."""
    twin = type(optimizer).__new__(type(optimizer))
    # A scheduler puts a `step` into its optimizer that moves that very one, whoever holds it.
    attributes = {name: value for name, value in vars(optimizer).items() if name != "step"}
    memo: dict[int, Any] = {id(optimizer): twin}
    twin.__dict__.update(duplicate(attributes, memo))
    return twin, duplicate(schedule, memo)


def _differing_steps(settings: Settings, live: Schedule, loaded: Schedule) -> list[Difference]:
    """Attributes of an optimizer and a scheduler of the user's own that differ from those of loaded ones."""
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
            differences.append(
                Difference(
                    f"{block.group}={block.choice} ({type(one).__name__}): attribute '{key}{suffix}' {NOT_SAVED}; "
                    f"{_OF_STEPS}",
                    lambda steps, group=block.group, key=key, value=value: setattr(  # type: ignore[misc]
                        steps[0] if group == "optimizer" else steps[1].scheduler, key, duplicate(value)
                    ),
                )
            )
    return differences


def _make_steps(optimizer: Optimizer, schedule: Schedule, surroundings: Surroundings) -> Answers:
    """What an optimizer and its schedule, which are changed by this, make of the same gradients."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    needs_closure = requires_closure(optimizer)
    runtime.seed_everything(0)
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
            schedule.step_end()
            schedule.epoch_end(0.0)
            rates += [float(rate) for rate in schedule.learning_rates().values()]
    return {"parameters": [parameter.detach() for parameter in parameters], "rates": [torch.tensor(rates)]}


def _has_own_code(settings: Settings, model: nn.Module) -> bool:
    own_target = not is_ours(str(settings.model.target))
    return own_target or any(is_own_class(type(module)) for module in name_modules(model).values())


# A forward pass of so many multiply-adds takes about a tenth of a second.
_MOST_WORK = 4e9
_MOST_ROWS = 32


def take_sample(batch: Batch, work: int) -> Batch:
    """A copy of some rows of a batch. work: multiply-adds for one row."""
    rows = min(_MOST_ROWS, max(2, int(_MOST_WORK / max(work, 1))))
    inputs, targets = evaluation.take_rows(batch, rows)
    return tuple(x.clone() for x in inputs), targets.clone()


def _read_sample(parts: "RunContext") -> Batch:
    """Some rows of the first batch; the generators are afterwards as they were."""
    generators = runtime.get_rng_state()
    try:
        return take_sample(next(parts.training.train.epoch(1)), 0)
    finally:
        runtime.set_rng_state(generators)


def _copy_or_none(value: Any) -> Any:
    """A deep copy; the value itself where there can be none: its state is then compared with itself."""
    try:
        return duplicate(value)
    except Exception:  # the loss is the user's own
        return value


def _find_culprits(differences: list[Difference], is_mended: Callable[[list[Difference]], bool]) -> list[Difference]:
    """The smallest set of differences that, given to the loaded net, makes it answer like the live one.

    Empty if even all of them together do not.
    """
    if not differences or not is_mended(differences):
        return []
    needed = list(differences)
    for difference in differences:
        others = [other for other in needed if other is not difference]
        if is_mended(others):
            needed = others
    return needed


def _differing_attributes(live: nn.Module, loaded: nn.Module) -> Iterator[Difference]:
    """What the modules of two nets hold that is not the same, in the order of the modules."""
    registered = {name for name, _ in live.named_modules()}
    twins = name_modules(loaded)
    for name, module in name_modules(live).items():
        twin = twins.get(name)
        if twin is None:
            continue
        where = _describe(name, module)
        advice = "" if name in registered else "hold its module in an nn.ModuleList or nn.ModuleDict"
        yield from _differing_values(where, module, twin, name, advice)
        for kind, ours, theirs in (
            ("parameter", module._parameters, twin._parameters),
            ("buffer", module._buffers, twin._buffers),
        ):
            for key, value in ours.items():
                if find_difference(value, theirs.get(key)) is None:
                    continue
                how = advice or ("register it with persistent=True" if kind == "buffer" else _advice(module))
                yield Difference(
                    f"{where}: {kind} '{key}' {NOT_SAVED}; {how}",
                    lambda net, name=name, registry=f"_{kind}s", key=key, value=value: (  # type: ignore[misc]
                        name_modules(net)[name].__dict__[registry].update({key: duplicate(value)})
                    ),
                )
        for key, parameter in module._parameters.items():
            other = twin._parameters.get(key)
            if parameter is not None and other is not None and parameter.requires_grad != other.requires_grad:
                yield Difference(
                    f"{where}: requires_grad of '{key}' {NOT_SAVED}; set it in forward, from a number that is a buffer",
                    lambda net, name=name, key=key, on=parameter.requires_grad: (  # type: ignore[misc]
                        name_modules(net)[name].__dict__["_parameters"][key].requires_grad_(on)
                    ),
                )


def _differing_values(where: str, owner: Any, twin: Any, name: str = "", advice: str = "") -> list[Difference]:
    """Attributes of one object, a module or not, that differ from those of another of its class."""
    left_out = TORCH_ATTRIBUTES if isinstance(owner, nn.Module) else frozenset[str]()
    differences = []
    for key in (*owner.__dict__, *(key for key in twin.__dict__ if key not in owner.__dict__)):
        if key in left_out:
            continue
        value = owner.__dict__.get(key, getattr(type(owner), key, MISSING))
        other = twin.__dict__.get(key, getattr(type(twin), key, MISSING))
        suffix = find_difference(value, other)
        if suffix is None:
            continue
        how = advice or _advice(owner, value)
        differences.append(
            Difference(
                f"{where}: attribute '{key}{suffix}' {NOT_SAVED}; {how}",
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


def _differing_variables(start: Surroundings, now: Surroundings) -> list[Difference]:
    """Variables outside the net whose values are no longer those of the start."""
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


def _advice(owner: Any, value: Any = None) -> str:
    if not isinstance(owner, nn.Module):
        return "make its class an nn.Module, and register it as a buffer"
    if get_generator_state(value) is not None:
        return "return its state from get_extra_state"
    return "register it as a buffer, or return it from get_extra_state"


def _owner_of(loss: Any) -> Any:
    """The object whose state a loss may keep; None for a plain function."""
    if isinstance(loss, functools.partial):
        return _owner_of(loss.func)
    if inspect.ismethod(loss):
        return loss.__self__
    return None if inspect.isroutine(loss) or not hasattr(loss, "__dict__") else loss


def _gradients(net: nn.Module, outputs: Tensor) -> list[Tensor]:
    """Of a sum of the outputs in which each counts differently."""
    if not outputs.requires_grad:
        return []
    net.zero_grad(set_to_none=True)
    _weighted_sum(outputs).backward()  # type: ignore[no-untyped-call]
    return [p.grad.detach().clone() for p in net.parameters() if p.grad is not None]


def _weighted_sum(outputs: Tensor) -> Tensor:
    weights = torch.linspace(0.5, 1.5, outputs.numel(), device=outputs.device, dtype=outputs.dtype)
    return (outputs * weights.reshape(outputs.shape)).sum()


def _answer_of_loss(task: Objective, outputs: Tensor, targets: Tensor, calls: int) -> Answers:
    """What a loss, which is changed by this, says to outputs: its value, as in training and as in evaluation.

    calls: how many more values, as in training, are asked for.
    """
    runtime.seed_everything(0)
    with torch.enable_grad():
        answered = outputs.clone().requires_grad_(True)
        value = task.compute_loss(answered, targets)
        gradients = torch.autograd.grad(value, [answered], allow_unused=True)
        later = [task.compute_loss(answered, targets).detach() for _ in range(calls)]
    with torch.no_grad():
        evaluated = task.compute_loss(outputs, targets)
    present = [gradient for gradient in gradients if gradient is not None]
    return {"value": [value.detach()], "gradients": present, "evaluated": [evaluated], "later": later}


def _recorder(name: str, seen: list[tuple[str, list[Tensor]]]) -> Callable[..., None]:
    def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen.append((name, [output.detach().clone()] if isinstance(output, Tensor) else []))

    return record


def _distance(expected: Answers, found: Answers) -> float:
    """The largest difference between two sets of answers, relative to the largest number of its kind."""
    largest = 0.0
    for kind, ours in expected.items():
        theirs = found[kind]
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


@contextlib.contextmanager
def _eagerly() -> Iterator[None]:
    """What has been compiled is called as it was written: other shapes and modes would be compiled anew."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """_TooLong inside after so long, where signals reach this thread and nobody else has set an alarm."""
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
