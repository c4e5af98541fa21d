"""`zero_grad` and `step` of torch's optimizers without what surrounds them, which takes longer than a tiny net's layer.

torch marks both as ranges for a profiler, and `step` looks for hooks: 35 µs together, of 350 µs that a step of a net
with three small layers takes (one core). Where a profiler is on, or anything is hooked in or overridden, they are
called as they are.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer


def zero_grad(optimizer: Optimizer) -> None:
    """Call `optimizer.zero_grad`, or do the same: set all gradients to None."""
    is_own = type(optimizer).zero_grad is not Optimizer.zero_grad or "zero_grad" in vars(optimizer)
    if is_own or _is_profiled():
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def get_step(optimizer: Optimizer) -> Callable[[], Any]:
    """Return `optimizer.step`, or the function that torch has wrapped as it; call it at once, as hooks may come."""
    wrapper = type(optimizer).step
    # Set by Optimizer.profile_hook_step, which wraps the step of each class once.
    function = getattr(wrapper, "__wrapped__", None) if getattr(wrapper, "hooked", False) else None
    # Schedulers of torch count the steps by an attribute of this name.
    if function is None or "step" in vars(optimizer) or _has_hooks(optimizer) or _is_profiled():
        return optimizer.step
    return partial(function, optimizer)


def _is_profiled() -> bool:
    # torch gives no types for it.
    is_profiled: bool = torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
    return is_profiled


def _has_hooks(optimizer: Optimizer) -> bool:
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
    )
