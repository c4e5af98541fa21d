"""What is minimized: the end of the net section."""

from dlrun.eject.plain import scratch
from dlrun.eject.plain.refusal import cannot
from dlrun.eject.plain.source import Piece
from dlrun.eject.plain.training_run import TrainingRun

_TORCH = {
    "mse": "MSELoss",
    "mae": "L1Loss",
    "huber": "HuberLoss",
    "smooth_l1": "SmoothL1Loss",
    "bce_with_logits": "BCEWithLogitsLoss",
    "bce": "BCELoss",
    "cross_entropy": "CrossEntropyLoss",
    "nll": "NLLLoss",
    "multi_margin": "MultiMarginLoss",
}
_PERCEPTRON = '''\
def criterion(z, y):
    """(step(z) - y) z: its gradient for z = w·x is (step(z) - y) x, the perceptron's update rule."""
    return (((z > 0).to(y.dtype) - y) * z).$reduction()
'''


def criterion(run: TrainingRun) -> Piece:
    """Source that defines `criterion(outputs, targets)`."""
    name, reduction = str(run.saved.task.loss_name), run.saved.task.reduction
    if run.saved.task.own_loss is not None:
        raise cannot(f"task.loss={name}, as that is code of yours")
    if name == "perceptron":
        return Piece(_PERCEPTRON.replace("$reduction", reduction))
    if name in _TORCH:
        given = "" if reduction == "mean" else 'reduction="sum"'
        return Piece(f"criterion = nn.{_TORCH[name]}({given})\n")
    return Piece(scratch.loss(name, reduction))


def outputs(run: TrainingRun, net: str) -> str:
    """The arguments of `criterion` for what a call of the net gives, and y."""
    return f"{net}.flatten(0, 1), y.flatten()" if run.spec.task == "tagging" else f"{net}, y"
