"""A model that ends in the activation that its loss applies as well.

Preflight names the layer; the diagnostics of the first epoch see what no layer shows, a function in `forward`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.data.batches import Batch
from dlrun.engine.objective import Objective
from dlrun.engine.preserve import preserve_state, restore_attributes

# Kind of this trouble in Progress.troubles, so that the diagnostics do not repeat a note of preflight.
TROUBLE = "squashed"

_LAYERS: dict[str, tuple[type[nn.Module], ...]] = {
    "binary": (nn.Sigmoid,),
    "multilabel": (nn.Sigmoid,),
    "multiclass": (nn.Softmax, nn.LogSoftmax),
    "tagging": (nn.Softmax, nn.LogSoftmax),
}
_LOSSES_WITH_SOFTMAX = ("cross_entropy", "scratch_cross_entropy")
_LOSSES_WITH_SIGMOID = ("bce_with_logits", "scratch_bce_with_logits")


def find_redundant_layer(model: nn.Module, batch: Batch, objective: Objective, autocast: Any) -> str | None:
    """Return a note if the model's last layer does what the loss does again, else None.

    Sends `batch` through the model in evaluation mode, and restores it.
    """
    kinds = _LAYERS.get(objective.spec.task, ())
    suspects = [module for module in model.modules() if isinstance(module, kinds)]
    takes_logits = any(word in str(objective.loss_name) for word in ("logits", "cross_entropy"))
    if not suspects or not takes_logits:
        return None

    # A suspect may be called inside the model too: the outputs tell which call was the last operation.
    calls: list[tuple[nn.Module, Any]] = []

    def record(module: nn.Module, _inputs: Any, output: Any) -> None:
        calls.append((module, output))

    handles = [module.register_forward_hook(record) for module in suspects]
    try:
        with preserve_state(model), restore_attributes(model), torch.no_grad(), autocast():
            outputs = model.eval()(*batch[0])
    finally:
        for handle in handles:
            handle.remove()

    # A layer that follows and only reshapes hands on the same memory.
    last = None
    for module, output in calls:
        if output.data_ptr() == outputs.data_ptr() and output.numel() == outputs.numel():
            last = module
    if last is None:
        return None
    return _explain_layer(type(last).__name__, str(objective.loss_name))


def _explain_layer(layer: str, loss: str) -> str:
    if layer == "LogSoftmax":
        return f"the model ends in LogSoftmax, and task.loss={loss} takes it once more, for nothing; type task.loss=nll"
    if layer == "Softmax":
        return (
            f"the model ends in Softmax, and task.loss={loss} takes logits and has its own, so it learns slowly; "
            "leave Softmax out, or end in LogSoftmax and type task.loss=nll"
        )
    other = "scratch_bce" if loss.startswith("scratch") else "bce"
    return (
        f"the model ends in {layer}, and task.loss={loss} takes logits and has its own sigmoid, so it learns slowly; "
        f"type task.loss={other}"
    )


def find_redundant_function(outputs: Tensor, loss: str | None, name_last_operation: Callable[[], str]) -> str | None:
    """Return a note if the outputs are those of a softmax or sigmoid that the loss has of its own, else None.

    outputs: of evaluation, (N, C). name_last_operation: returns autograd's name of the model's last operation; called
    only where the numbers alone do not tell.
    """
    if not bool(((outputs >= 0) & (outputs <= 1)).all()):
        return None
    if loss in _LOSSES_WITH_SOFTMAX and torch.allclose(outputs.sum(-1), torch.ones(()).to(outputs), atol=1e-2):
        return _explain_function("a softmax", loss, "LogSoftmax", "nll")
    if loss in _LOSSES_WITH_SIGMOID and name_last_operation().startswith("Sigmoid"):
        return _explain_function("a sigmoid", loss, "Sigmoid", "bce")
    return None


def _explain_function(function: str, loss: str, layer: str, other_loss: str) -> str:
    return (
        f"the model ends in {function}, but task.loss={loss} takes logits and has its own; "
        f"leave it out, or end in {layer} and type task.loss={other_loss}"
    )
