"""Element-wise optimizers of torch on the weights of many members at once, with settings of each member's own.

The formulas are those of torch.optim's documentation, in its order of operations. Members whose optimizer is of the
same kind are neighbours in the stack, and are stepped together.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop


class StackedOptimizer:
    """Steps neighbouring members (m, D) with optimizers of one kind; subclasses define `update`.

    optimizers: of the members, whose settings are read before every step, so that schedules may move them.
    """

    # Names of the state's tensors of one parameter, as torch's optimizer calls them.
    state_names: ClassVar[tuple[str, ...]] = ()
    # Settings besides the learning rate that differ from member to member; the others are None, False or 0 in all.
    settings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, optimizers: Sequence[Optimizer], weights: Tensor) -> None:
        """weights: (m, D), changed in place by `step`."""
        self.optimizers = list(optimizers)
        self.groups = [optimizer.param_groups[0] for optimizer in optimizers]
        self.weights = weights
        self.steps = 0
        self.state = {name: self.make_state(name) for name in self.state_names}
        self.columns = {name: self.make_column(self.list_settings(name)) for name in self.settings}

        weight_decays = self.list_settings("weight_decay")
        self.has_weight_decay = any(weight_decays)
        self.weight_decay = self.make_column(weight_decays)

        for optimizer in self.optimizers:
            # torch's schedulers warn where the optimizer's own `step` was never called.
            vars(optimizer)["_opt_called"] = True

        self._rates: list[float] = []
        self._rate_column = torch.empty(0)

    def make_state(self, name: str) -> Tensor:
        """The first value of a state tensor, (m, D)."""
        return torch.zeros_like(self.weights)

    def list_settings(self, name: str) -> list[float]:
        """A setting of each member."""
        return [float(group[name]) for group in self.groups]

    def make_column(self, values: Sequence[float], dtype: torch.dtype | None = None) -> Tensor:
        """A number of each member as (m, 1), or as one number () where all have the same.

        dtype: None for that of the weights.
        """
        # An operation with one number takes a quarter of the time of one with a column.
        are_equal = len(set(values)) == 1
        column = torch.tensor(values[0] if are_equal else [[value] for value in values], dtype=torch.float64)
        return column.to(self.weights.device, dtype or self.weights.dtype)

    def get_rates(self) -> Tensor:
        """Learning rates (m, 1), copied to the device when a schedule has moved one."""
        # Compared on the host: a copy to the device in every step would cost as much as the step.
        rates = [group["lr"] for group in self.groups]
        if rates != self._rates:
            self._rates = rates
            self._rate_column = self.make_column([float(rate) for rate in rates])
        return self._rate_column

    def step(self, gradient: Tensor) -> None:
        """Make one step by gradients (m, D)."""
        self.steps += 1
        self.update(gradient)

    def update(self, gradient: Tensor) -> None:
        """Change weights and state; `steps` counts this step already."""
        raise NotImplementedError

    def add_weight_decay(self, gradient: Tensor) -> Tensor:
        """Gradients with the L2 penalty of weight decay."""
        if not self.has_weight_decay:
            return gradient
        return gradient + self.weight_decay * self.weights

    def write_states(self) -> None:
        """Give each member's optimizer its state, as torch's optimizer would hold it; copies."""
        if not self.steps:
            return
        for number, optimizer in enumerate(self.optimizers):
            # A row of the weights holds a member's parameters one after the other, flattened.
            begin = 0
            for parameter in optimizer.param_groups[0]["params"]:
                part = slice(begin, begin + parameter.numel())
                state = {
                    name: values[number, part].view_as(parameter).clone()
                    for name, values in self.state.items()
                    if self.is_kept(name)
                } | self.get_counters()
                if state:
                    optimizer.state[parameter] = state
                begin += parameter.numel()

    def read_states(self, steps: int) -> None:
        """The inverse of `write_states`, for members that have made `steps` steps before."""
        self.steps = steps
        for number, optimizer in enumerate(self.optimizers):
            begin = 0
            for parameter in optimizer.param_groups[0]["params"]:
                part = slice(begin, begin + parameter.numel())
                state = optimizer.state.get(parameter, {})
                for name, values in self.state.items():
                    if state.get(name) is not None:
                        values[number, part] = state[name].flatten().to(values)
                begin += parameter.numel()

    def is_kept(self, name: str) -> bool:
        """Whether the optimizers of the members hold this tensor."""
        return True

    def get_counters(self) -> dict[str, Any]:
        """Entries of a parameter's state besides tensors of its shape."""
        return {"step": torch.tensor(float(self.steps))}


class StackedSGD(StackedOptimizer):
    """torch.optim.SGD with and without momentum."""

    state_names = ("momentum_buffer",)
    settings = ("momentum", "dampening")

    def update(self, gradient: Tensor) -> None:
        """Change weights by -lr d, where d is the gradient, or its running sum with momentum."""
        gradient = self.add_weight_decay(gradient)
        if not self.groups[0]["momentum"]:
            self.weights.addcmul_(self.get_rates(), gradient, value=-1)
            return

        buffer = self.state["momentum_buffer"]
        if self.steps == 1:
            # The first gradient is not dampened.
            buffer.copy_(gradient)
        else:
            buffer.mul_(self.columns["momentum"]).addcmul_(1 - self.columns["dampening"], gradient)

        direction = gradient + self.columns["momentum"] * buffer if self.groups[0]["nesterov"] else buffer
        self.weights.addcmul_(self.get_rates(), direction, value=-1)

    def is_kept(self, name: str) -> bool:
        """Whether there is momentum, which needs the buffer."""
        return bool(self.groups[0]["momentum"])

    def get_counters(self) -> dict[str, Any]:
        """No entries: SGD does not count its steps."""
        return {}


class StackedAdagrad(StackedOptimizer):
    """torch.optim.Adagrad."""

    state_names = ("sum",)
    settings = ("eps", "lr_decay", "initial_accumulator_value")

    def make_state(self, name: str) -> Tensor:
        """Sums of squares begin with a setting."""
        values = self.make_column([float(group["initial_accumulator_value"]) for group in self.groups])
        return values.expand_as(self.weights).clone()

    def update(self, gradient: Tensor) -> None:
        """Change weights by -lr g / (sqrt(sum of squares) + eps)."""
        gradient = self.add_weight_decay(gradient)
        rates = self.get_rates() / (1 + (self.steps - 1) * self.columns["lr_decay"])
        sums = self.state["sum"].addcmul_(gradient, gradient)
        self.weights.addcdiv_(rates * gradient, sums.sqrt().add_(self.columns["eps"]), value=-1)


class StackedRMSprop(StackedOptimizer):
    """torch.optim.RMSprop, not centered."""

    state_names = ("square_avg", "momentum_buffer")
    settings = ("alpha", "eps", "momentum")

    def update(self, gradient: Tensor) -> None:
        """Change weights by -lr g / (sqrt(running mean of squares) + eps), or by its running sum with momentum."""
        gradient = self.add_weight_decay(gradient)
        alpha = self.columns["alpha"]
        squares = self.state["square_avg"]
        squares.mul_(alpha).addcmul_((1 - alpha) * gradient, gradient)
        root = squares.sqrt().add_(self.columns["eps"])
        if not self.groups[0]["momentum"]:
            self.weights.addcdiv_(self.get_rates() * gradient, root, value=-1)
            return

        buffer = self.state["momentum_buffer"]
        buffer.mul_(self.columns["momentum"]).addcdiv_(gradient, root)
        self.weights.addcmul_(self.get_rates(), buffer, value=-1)

    def is_kept(self, name: str) -> bool:
        """Whether there is momentum, which needs the buffer."""
        return name != "momentum_buffer" or bool(self.groups[0]["momentum"])


class StackedAdam(StackedOptimizer):
    """torch.optim.Adam and AdamW, without amsgrad."""

    state_names = ("exp_avg", "exp_avg_sq")
    settings = ("eps",)

    def __init__(self, optimizers: Sequence[Optimizer], weights: Tensor) -> None:
        super().__init__(optimizers, weights)
        # In double precision, as torch computes the corrections of the bias.
        columns = zip(*(group["betas"] for group in self.groups), strict=True)
        self._betas = [self.make_column(list(map(float, betas)), torch.float64) for betas in columns]
        self.is_decoupled = bool(self.groups[0].get("decoupled_weight_decay"))

    def update(self, gradient: Tensor) -> None:
        """Change weights by -lr m / (sqrt(v) + eps), with bias-corrected running means m of g and v of its square."""
        rates = self.get_rates()
        if not self.is_decoupled:
            gradient = self.add_weight_decay(gradient)
        elif self.has_weight_decay:
            self.weights.mul_(1 - rates * self.weight_decay)

        dtype = self.weights.dtype
        beta1, beta2 = self._betas
        mean = self.state["exp_avg"].lerp_(gradient, (1 - beta1).to(dtype))
        squares = self.state["exp_avg_sq"]
        squares.mul_(beta2.to(dtype)).addcmul_((1 - beta2).to(dtype) * gradient, gradient)

        step_size = rates / (1 - beta1**self.steps)
        correction = (1 - beta2**self.steps).sqrt().to(dtype)
        root = (squares.sqrt() / correction).add_(self.columns["eps"])
        self.weights.addcdiv_(step_size.to(dtype) * mean, root, value=-1)


STACKED_OPTIMIZERS: dict[type[Optimizer], type[StackedOptimizer]] = {
    SGD: StackedSGD,
    Adagrad: StackedAdagrad,
    RMSprop: StackedRMSprop,
    Adam: StackedAdam,
    AdamW: StackedAdam,
}


def find_obstacle(optimizer: Optimizer) -> str | None:
    """Why an optimizer cannot be stacked, or None."""
    if type(optimizer) not in STACKED_OPTIMIZERS:
        return f"{type(optimizer).__name__} does not treat every weight by itself, or is not known to"
    if len(optimizer.param_groups) > 1:
        return "optimizer.groups gives parts of the net settings of their own"
    group = optimizer.param_groups[0]
    for name in ("maximize", "amsgrad", "centered"):
        if group.get(name):
            return f"optimizer.{name}=true"

    if any(isinstance(part, Tensor) for part in (group["lr"], *group.get("betas", ()))):
        return "a setting of its optimizer is a tensor"
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return "its optimizer has a hook"
    return None


def describe_kind(optimizer: Optimizer) -> tuple[str, bool, bool]:
    """The properties that optimizers which are stepped together share."""
    group = optimizer.param_groups[0]
    kind = STACKED_OPTIMIZERS[type(optimizer)].__name__
    is_decoupled = bool(group.get("decoupled_weight_decay"))
    return f"{kind}{' decoupled' if is_decoupled else ''}", bool(group.get("momentum")), bool(group.get("nesterov"))


def stack_optimizers(optimizers: Sequence[Optimizer], weights: Tensor) -> list[tuple[slice, StackedOptimizer]]:
    """The stacked optimizers of members that are in the order of their kinds, each with the members that it steps."""
    stacked: list[tuple[slice, StackedOptimizer]] = []
    begin = 0
    while begin < len(optimizers):
        end = begin + 1
        while end < len(optimizers) and describe_kind(optimizers[end]) == describe_kind(optimizers[begin]):
            end += 1
        part = slice(begin, end)
        kind = STACKED_OPTIMIZERS[type(optimizers[begin])]
        stacked.append((part, kind(optimizers[part], weights[part])))
        begin = end

    return stacked
