"""`zero_grad` and `step` of torch's optimizers without what surrounds them, which takes longer than a tiny net's layer.

torch marks both as ranges for a profiler, and `step` looks for hooks: 35 µs together, of 350 µs that a step of a net
with three small layers takes (one core). Where a profiler is on, or anything is hooked in or overridden, they are
called as they are.

Both, and the construction of an optimizer, also import torch's compiler, to keep it from tracing them. That import
takes as long as the one of torch itself (1.8 s), and where nothing is compiled there is nothing to keep from it.
"""

import sys
from collections.abc import Callable
from functools import partial
from types import CodeType
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

# Methods that torch hides from its compiler.
_HIDDEN_METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def spare_compiler_import() -> None:
    """Let optimizers be built, saved and loaded without importing torch._dynamo; without effect once it is imported."""
    if "torch._dynamo" in sys.modules:
        return
    for name in _HIDDEN_METHODS:
        function = getattr(getattr(Optimizer, name), "__wrapped__", None)
        # torch keeps the hidden function here after the first call. Another version of torch that does not look here
        # imports its compiler, as it does by itself.
        if function is not None:
            vars(function).setdefault("__dynamo_disable", function)


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
    own_step = vars(optimizer).get("step")
    # torch's schedulers wrap the step of one optimizer in order to note that it was called.
    is_noted = getattr(own_step, "_wrapped_by_lr_sched", False) and getattr(own_step, "__wrapped__", None) is wrapper
    is_own = own_step is not None and not is_noted
    if function is None or is_own or _has_hooks(optimizer) or _is_profiled():
        return optimizer.step

    if is_noted:
        vars(optimizer)["_opt_called"] = True
    if _GRADIENT_MODE_WRAPPER is not None and function.__code__ is _GRADIENT_MODE_WRAPPER:
        return partial(_step, function.__wrapped__, optimizer)
    return partial(function, optimizer)


def _step(function: Callable[[Optimizer], Any], optimizer: Optimizer) -> Any:
    """Call the innermost `step` in the gradient mode in which torch calls it."""
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(optimizer.defaults["differentiable"])
    try:
        return function(optimizer)
    finally:
        torch.set_grad_enabled(before)


def _find_gradient_mode_wrapper() -> CodeType | None:
    """Code of the wrapper that sets the gradient mode of a step, by which it is known; None if torch has another."""
    make_wrapper = getattr(torch_optimizer, "_use_grad_for_differentiable", None)
    return None if make_wrapper is None else make_wrapper(_step).__code__


_GRADIENT_MODE_WRAPPER = _find_gradient_mode_wrapper()


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
