"""The net and the losses whose derivatives are written out."""

from itertools import pairwise

from dlrun.core.errors import RequestError
from dlrun.eject.plain.source import filled, literal, stack
from dlrun.eject.plain.training_run import TrainingRun

_NET = '''\
class Net(nn.Module):
    """Linear layers$between, with the derivatives written out."""

    def __init__(self):
        super().__init__()
        $layers
        self.linear = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        for name, parameter in self.named_parameters():  #? drawn
            nn.init.normal_(parameter, std=$std) if name.endswith("weight") else nn.init.zeros_(parameter)  #? drawn

    @torch.no_grad()
    def forward(self, x):  # $shapes
        self.inputs = [x$flat]  # of each linear layer, for the backward pass
        self.before = []  # the activations  #? elu
        for layer in self.linear[:-1]:  #? hidden
            z = self.inputs[-1] @ layer.weight.T$bias  #? hidden
            self.before.append(z)  #? elu
            $activation
        z = self.inputs[-1] @ self.linear[-1].weight.T$last_bias  #? probability
        self.output = 1 / (1 + torch.exp(-z))  #? probability
        return self.output  #? probability
        return self.inputs[-1] @ self.linear[-1].weight.T$last_bias  #? !probability

    @torch.no_grad()
    def backward(self, grad):
        """Takes dL/doutput. For z = x Wᵀ + b and G = dL/dz: dL/dW = Gᵀ x, dL/db = sum of G, dL/dx = G W."""  #? bias
        """Takes dL/doutput. For z = x Wᵀ and G = dL/dz: dL/dW = Gᵀ x and dL/dx = G W."""  #? !bias
        grad = grad * self.output * (1 - self.output)  # of the sigmoid at the end  #? probability
        for i in reversed(range(len(self.linear))):  #? hidden
            layer, x = self.linear[i], self.inputs[i]  #? hidden
            layer.weight.grad, layer.bias.grad = grad.T @ x, grad.sum(0)  #? hidden & bias
            layer.weight.grad = grad.T @ x  #? hidden & !bias
            if i > 0:  # back through the layer, then through the activation before it  #? hidden
                grad = grad @ layer.weight  #? hidden
                $slope
        self.linear[0].weight.grad = grad.T @ self.inputs[0]  #? !hidden
        self.linear[0].bias.grad = grad.sum(0)  #? !hidden & bias
'''
_FORWARD = {  # z -> y, appended to the inputs of the layers
    "sigmoid": "self.inputs.append(1 / (1 + torch.exp(-z)))",
    "tanh": """\
shrunk = torch.expm1(-2 * z.abs())  # neither overflows nor cancels near 0
self.inputs.append(z.sign() * -shrunk / (shrunk + 2))""",
    "relu": "self.inputs.append(z.clamp(min=0))",
    "elu": "self.inputs.append(torch.where(z > 0, z, torch.expm1(z)))",
}
_BACKWARD = {  # dL/dy -> dL/dz, for the y that is the layer's input x
    "sigmoid": "grad = grad * x * (1 - x)  # y' = y (1 - y)",
    "tanh": "grad = grad * (1 - x * x)  # y' = 1 - y²",
    "relu": "grad = grad * (x > 0)  # y' = 1 where y > 0, else 0",
    "elu": """\
z = self.before[i - 1]
grad = torch.where(z > 0, grad, grad * torch.exp(z))  # y' = 1 where z > 0, else exp(z)""",
}
_CLASSES = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "ReLU", "elu": "ELU"}
LOSSES = {
    "scratch_mse": '''\
def criterion(z, y):
    """L = Σ (z - y)²$over."""
    return ((z - y) * (z - y)).sum()$count

def slope(z, y):
    """dL/dz = 2 (z - y)$over."""
    return 2 * (z - y)$count
''',
    "scratch_bce": '''\
def criterion(p, y):
    """L = -Σ [y log p + (1 - y) log(1 - p)]$over, where a wrong certainty costs 100."""
    yes, no = p.log().clamp(min=-100), torch.log1p(-p).clamp(min=-100)
    return -(y * yes + (1 - y) * no).sum()$count

def slope(p, y):
    """dL/dp = (p - y) / (p (1 - p))$over."""
    return (p - y) / (p * (1 - p)).clamp(min=1e-12)$count
''',
    "scratch_bce_with_logits": '''\
def criterion(z, y):
    """L = Σ [max(z, 0) - z y + log(1 + exp(-|z|))]$over."""
    return (z.clamp(min=0) - z * y + torch.log1p(torch.exp(-z.abs()))).sum()$count

def slope(z, y):
    """dL/dz = (sigmoid(z) - y)$over."""
    return (1 / (1 + torch.exp(-z)) - y)$count
''',
    "scratch_cross_entropy": '''\
def log_softmax(z):
    """The largest output is taken off, so that nothing overflows."""
    shifted = z - z.amax(1, keepdim=True)
    return shifted - shifted.exp().sum(1, keepdim=True).log()

def criterion(z, y):
    """L = -Σ log softmax(z)[y]$over."""
    return -log_softmax(z).gather(1, y.unsqueeze(1)).sum()$count

def slope(z, y):
    """dL/dz = (softmax(z) - onehot(y))$over."""
    return (log_softmax(z).exp() - F.one_hot(y, z.shape[1]))$count
''',
}
TARGET = "dlrun.models.scratch.ScratchMLP"


def net(
    run: TrainingRun,
    hidden_sizes: list[int],
    activation: str,
    bias: bool,
    init_std: float | None,
    output_activation: str | None,
) -> str:
    """See models/scratch.py."""
    image = run.spec.kind == "image"
    sizes, layers = [run.spec.input_size, *hidden_sizes], ["nn.Flatten()"] if image else []
    without = "" if bias else ", bias=False"
    for before, after in pairwise(sizes):
        layers += [f"nn.Linear({before}, {after}{without})", f"nn.{_CLASSES[activation]}()"]
    layers.append(f"nn.Linear({sizes[-1]}, {run.spec.output_size}{without})")
    hidden = bool(hidden_sizes)
    flags = {
        "drawn": init_std is not None,
        "hidden": hidden,
        "elu": hidden and activation == "elu",
        "probability": output_activation is not None,
        "bias": bias,
    }
    return filled(
        _NET,
        flags,
        between=f" with {_CLASSES[activation]} between them" if hidden else "",
        layers=stack("self.layers", layers),
        std=literal(init_std),
        shapes=run.shapes,
        flat=".flatten(1)" if image else "",
        bias=" + layer.bias" if bias else "",
        last_bias=" + self.linear[-1].bias" if bias else "",
        activation=_FORWARD[activation] if hidden else "",
        slope=_BACKWARD[activation] if hidden else "",
    )


def loss(name: str, reduction: str) -> str:
    """Source of a loss and of its slope, by hand."""
    mean = reduction == "mean"
    return filled(LOSSES[name], over=" / n" if mean else "", count=" / y.numel()" if mean else "")


def passes(run: TrainingRun, called: str, targets: str) -> str:
    """Lines of a forward and a backward pass, where net or loss or both have derivatives of their own; else empty.

    called: a call of the net. RequestError for what they are not written for.
    """
    by_hand = run.settings.model.target == TARGET
    slope = str(run.saved.task.loss_name) in LOSSES
    if not by_hand and not slope:
        return ""
    trainer, precision = run.settings.trainer, run.settings.device.precision
    if run.autocast or trainer.accumulate_steps > 1:
        what = f"device.precision={precision}" if run.autocast else f"accumulate_steps={trainer.accumulate_steps}"
        raise RequestError(
            f"format=python cannot write {what} with derivatives by hand; eject a run with device.precision=fp32 and "
            "trainer.accumulate_steps=1, or with a net and a loss of torch.nn"
        )
    lines = [f"z = {called}", f"loss = criterion(z, {targets})"]
    if by_hand and slope:
        lines += [f"net.backward(slope(z, {targets}))"]
    elif slope:
        lines += [f"z.backward(slope(z.detach(), {targets}))"]
    else:
        lines[0] += ".requires_grad_()"
        lines += ["loss.backward()  # of the loss alone, which autograd derives", "net.backward(z.grad)"]
    return "\n".join(lines) + "\n"
