"""Layers and losses with their derivatives written out."""

from itertools import pairwise

from dlrun.export.plain.source import filled, literal, stack
from dlrun.export.plain.training_run import TrainingRun

_LINEAR = '''\
class LinearFunction(Function):
    """y = x Wᵀ + b. With G = dL/dy as rows: dL/dx = G W, dL/dW = Gᵀ x, dL/db = the sum of G."""

    @staticmethod
    def forward(ctx, x, weight$bias):
        ctx.save_for_backward(x, weight)
        return x @ weight.T$plus_bias

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.T @ x$to_bias

class Linear(nn.Linear):
    """The start values and the names of torch's layer, the arithmetic of ours."""

    def forward(self, x):
        return LinearFunction.apply(x, self.weight$self_bias)
'''
_SIGMOID = '''\
class SigmoidFunction(Function):
    """y = 1 / (1 + exp(-z)), so y' = y (1 - y)."""

    @staticmethod
    def forward(ctx, z):
        y = 1 / (1 + torch.exp(-z))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * y * (1 - y)
'''
_TANH = '''\
class TanhFunction(Function):
    """y = tanh z by exp(-2|z|) - 1, which neither overflows nor cancels near 0; y' = 1 - y²."""

    @staticmethod
    def forward(ctx, z):
        shrunk = torch.expm1(-2 * z.abs())
        y = z.sign() * -shrunk / (shrunk + 2)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * (1 - y * y)
'''
_RELU = '''\
class ReLUFunction(Function):
    """y = max(z, 0), so y' = 1 where z > 0, else 0."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        return grad * (z > 0)
'''
_ELU = '''\
class ELUFunction(Function):
    """y = z where z > 0, else exp(z) - 1, so y' = 1 or exp(z)."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return torch.where(z > 0, z, torch.expm1(z))

    @staticmethod
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        return torch.where(z > 0, grad, grad * torch.exp(z))
'''
_LAYER = """\
class $name(nn.Module):
    def forward(self, z):
        return ${name}Function.apply(z)
"""
_NET = '''\
class Net(nn.Module):
    """Linear layers with an activation between them, all by hand."""

    def __init__(self):
        super().__init__()
        $layers
        for name, parameter in self.named_parameters():  #? drawn
            nn.init.normal_(parameter, std=$std) if name.endswith("weight") else nn.init.zeros_(parameter)  #? drawn

    def forward(self, x):  # $shapes
        return self.layers(x)
'''
_ACTIVATIONS = {
    "tanh": ("Tanh", _TANH),
    "sigmoid": ("Sigmoid", _SIGMOID),
    "relu": ("ReLU", _RELU),
    "elu": ("ELU", _ELU),
}

LOSSES = {
    "scratch_mse": '''\
class MeanSquaredError(Function):
    """L = Σ (z - y)²$over, so dL/dz = 2 (z - y)$over."""

    @staticmethod
    def forward(ctx, z, y):
        off = z - y
        ctx.save_for_backward(off)
        return (off * off).sum()$over_numel

    @staticmethod
    def backward(ctx, grad):
        (off,) = ctx.saved_tensors
        return grad * 2 * off$by_numel, None
''',
    "scratch_bce": '''\
class BinaryCrossEntropy(Function):
    """L = -Σ [y log p + (1 - y) log(1 - p)]$over, so dL/dp = (p - y) / (p (1 - p))$over."""

    @staticmethod
    def forward(ctx, p, y):
        ctx.save_for_backward(p, y)
        yes, no = p.log().clamp(min=-100), torch.log1p(-p).clamp(min=-100)  # a wrong certainty costs 100
        return -(y * yes + (1 - y) * no).sum()$over_numel

    @staticmethod
    def backward(ctx, grad):
        p, y = ctx.saved_tensors
        return grad * (p - y) / (p * (1 - p)).clamp(min=1e-12)$by_numel, None
''',
    "scratch_bce_with_logits": '''\
class BinaryCrossEntropyWithLogits(Function):
    """L = Σ [max(z, 0) - z y + log(1 + exp(-|z|))]$over, so dL/dz = (sigmoid(z) - y)$over."""

    @staticmethod
    def forward(ctx, z, y):
        ctx.save_for_backward(z, y)
        return (z.clamp(min=0) - z * y + torch.log1p(torch.exp(-z.abs()))).sum()$over_numel

    @staticmethod
    def backward(ctx, grad):
        z, y = ctx.saved_tensors
        return grad * (1 / (1 + torch.exp(-z)) - y)$by_numel, None
''',
    "scratch_cross_entropy": '''\
class CrossEntropy(Function):
    """L = -Σ log softmax(z)[y]$over, so dL/dz = (softmax(z) - onehot(y))$over."""

    @staticmethod
    def forward(ctx, z, y):
        shifted = z - z.amax(1, keepdim=True)  # so that nothing overflows
        logs = shifted - shifted.exp().sum(1, keepdim=True).log()
        ctx.save_for_backward(logs, y)
        return -logs.gather(1, y.unsqueeze(1)).sum()$over_numel

    @staticmethod
    def backward(ctx, grad):
        logs, y = ctx.saved_tensors
        return grad * (logs.exp() - F.one_hot(y, logs.shape[1]))$by_numel, None
''',
}
_COUNTED = {"scratch_mse": "off", "scratch_cross_entropy": "y"}  # of what the numbers are counted; else y


def mlp(
    run: TrainingRun,
    hidden_sizes: list[int],
    activation: str,
    bias: bool,
    init_std: float | None,
    output_activation: str | None,
) -> str:
    """See models/scratch.py."""
    sizes, layers = [run.spec.input_size, *hidden_sizes], ["nn.Flatten()"] if run.spec.kind == "image" else []
    name, _ = _ACTIVATIONS[activation]
    without = "" if bias else ", bias=False"
    for before, after in pairwise(sizes):
        layers += [f"Linear({before}, {after}{without})", f"{name}()"]
    layers.append(f"Linear({sizes[-1]}, {run.spec.output_size}{without})")
    layers += ["Sigmoid()"] if output_activation else []
    used = [activation] if hidden_sizes else []
    used += ["sigmoid"] if output_activation and used != ["sigmoid"] else []
    code = filled(
        _LINEAR,
        bias=", bias" if bias else "",
        plus_bias=" + bias" if bias else "",
        to_bias=", grad.sum(0)" if bias else "",
        self_bias=", self.bias" if bias else "",
    )
    for kind in used:
        layer, function = _ACTIVATIONS[kind]
        code += f"\n{function}\n" + _LAYER.replace("${name}", layer).replace("$name", layer)
    flags = {"drawn": init_std is not None}
    net = filled(_NET, flags, layers=stack("self.layers", layers), std=literal(init_std), shapes=run.shapes)
    return f"{code}\n{net}"


def loss(name: str, reduction: str) -> tuple[str, str]:
    """Source of a loss by hand, and the expression that is called with outputs and targets."""
    mean = reduction == "mean"
    counted = _COUNTED.get(name, "y")
    code = filled(
        LOSSES[name],
        over=" / n" if mean else "",
        over_numel=f" / {counted}.numel()" if mean else "",
        by_numel=f" / {counted}.numel()" if mean else "",
    )
    return code, f"{code.partition('class ')[2].partition('(')[0]}.apply"
