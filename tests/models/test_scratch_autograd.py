"""Hand-written derivatives against torch's own operations, difference quotients, and what they may not call."""

import ast
import inspect
import math
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dlrun.core.errors import RequestError
from dlrun.engine import scratch_losses
from dlrun.models import scratch_autograd
from dlrun.models.scratch_autograd import apply_function

Case = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]

ACTIVATIONS: dict[str, Case] = {
    "sigmoid": (lambda z: apply_function(scratch_autograd.Sigmoid, z), torch.sigmoid),
    "tanh": (lambda z: apply_function(scratch_autograd.Tanh, z), torch.tanh),
    "relu": (lambda z: apply_function(scratch_autograd.ReLU, z), F.relu),
    "elu": (lambda z: apply_function(scratch_autograd.ELU, z, 1.0), F.elu),
    "elu with alpha 0.3": (lambda z: apply_function(scratch_autograd.ELU, z, 0.3), lambda z: F.elu(z, 0.3)),
}
LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "mse": (scratch_losses.mse_loss, F.mse_loss),
    "bce": (scratch_losses.bce_loss, F.binary_cross_entropy),
    "bce_with_logits": (scratch_losses.bce_with_logits_loss, F.binary_cross_entropy_with_logits),
    "cross_entropy": (scratch_losses.cross_entropy_loss, F.cross_entropy),
}
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "mse": [(5, 1), (4, 3), (2, 3, 4)],
    "bce": [(6,), (1,)],
    "bce_with_logits": [(6,), (1,)],
    "cross_entropy": [(5, 3), (1, 2), (7, 12)],
}
ON_SHAPES = [(name, shape) for name, shapes in SHAPES.items() for shape in shapes]
SATURATED = [-800.0, -50.0, -20.0, -1e-3, 0.0, 1e-3, 20.0, 50.0, 800.0]


def draw(*shape: int) -> Tensor:
    torch.manual_seed(3)
    return torch.randn(*shape, dtype=torch.float64)


def loss_inputs(name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    z = draw(*shape)
    if name == "cross_entropy":
        return z, torch.arange(shape[0]) % shape[1]
    if name == "mse":
        return z, draw(*shape).flip(0) + 0.5
    return (z.sigmoid() if name == "bce" else z), (torch.arange(shape[0]) % 2).double()


def assert_equal(
    ours: Callable[..., Tensor], torchs: Callable[..., Tensor], *inputs: Tensor, exact: float = 1e-14
) -> None:
    """Equal outputs, and equal gradients for every input that has one, for a random gradient of the output."""
    outputs, wanted = ours(*inputs), torchs(*inputs)
    torch.testing.assert_close(outputs, wanted, rtol=exact, atol=exact)
    leaves = [x for x in inputs if x.requires_grad]
    direction = torch.randn_like(wanted)
    pairs = zip(
        torch.autograd.grad(outputs, leaves, direction), torch.autograd.grad(wanted, leaves, direction), strict=True
    )
    for one, other in pairs:
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=exact, atol=exact)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 3), (1, 3), (2, 5, 3), (3,)])
def test_linear(shape: tuple[int, ...], bias: bool) -> None:
    inputs = [draw(*shape), draw(2, 3), *([draw(2)] if bias else [])]
    inputs = [x.requires_grad_() for x in inputs]

    def ours(x: Tensor, weight: Tensor, b: Tensor | None = None) -> Tensor:
        return apply_function(scratch_autograd.Linear, x, weight, b)

    assert_equal(ours, F.linear, *inputs)
    assert torch.autograd.gradcheck(ours, inputs)


def test_a_linear_layer_gives_its_input_no_gradient_where_nothing_asks_for_one() -> None:
    class Context:
        saved_tensors = (draw(4, 3), draw(2, 3))
        needs_input_grad = (False, True, False)

    to_x, to_weight, to_bias = scratch_autograd.Linear.backward(Context(), draw(4, 2))
    assert (to_x, to_bias) == (None, None)
    torch.testing.assert_close(to_weight, draw(4, 2).T @ draw(4, 3))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(7,), (4, 3), (2, 3, 2, 2)])
def test_activation(name: str, shape: tuple[int, ...]) -> None:
    ours, torchs = ACTIVATIONS[name]
    z = draw(*shape).requires_grad_()
    assert_equal(ours, torchs, z)
    assert torch.autograd.gradcheck(ours, [z])


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activation_far_out_and_at_zero(name: str, dtype: torch.dtype) -> None:
    z = torch.tensor(SATURATED, dtype=dtype, requires_grad=True)
    assert_equal(*ACTIVATIONS[name], z, exact=1e-6 if dtype == torch.float32 else 1e-14)


def test_small_values_keep_their_digits() -> None:
    z = torch.tensor([1e-10, -1e-10], dtype=torch.float64)
    for name in ("tanh", "elu"):
        torch.testing.assert_close(ACTIVATIONS[name][0](z), z, rtol=1e-9, atol=0)
    certain = torch.tensor([50.0, -50.0], dtype=torch.float64)
    loss = scratch_losses.bce_with_logits_loss(certain, torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx(math.exp(-50), rel=1e-12, abs=0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("name", "shape"), ON_SHAPES)
def test_loss(name: str, shape: tuple[int, ...], reduction: str) -> None:
    outputs, targets = loss_inputs(name, shape)
    outputs.requires_grad_()
    ours, torchs = (lambda x, f=f: f(x, targets, reduction=reduction) for f in LOSSES[name])
    assert_equal(ours, torchs, outputs)
    assert torch.autograd.gradcheck(ours, [outputs])


@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_binary_losses_of_a_certain_answer(target: float, dtype: torch.dtype) -> None:
    exact = 1e-6 if dtype == torch.float32 else 1e-8  # torch's smallest slope is an fp32 number: 1e-12 (1 - 4e-9)
    targets = torch.full((len(SATURATED),), target, dtype=dtype)
    z = torch.tensor(SATURATED, dtype=dtype, requires_grad=True)
    assert_equal(
        lambda x: scratch_losses.bce_with_logits_loss(x, targets),
        lambda x: LOSSES["bce_with_logits"][1](x, targets),
        z,
    )
    p = torch.tensor([0.0, 1e-30, 1e-7, 0.5, 1 - 1e-6, 1.0], dtype=dtype, requires_grad=True)
    assert_equal(
        lambda x: scratch_losses.bce_loss(x, targets[:6]),
        lambda x: F.binary_cross_entropy(x, targets[:6]),
        p,
        exact=exact,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_of_a_certain_answer(dtype: torch.dtype) -> None:
    z = torch.tensor([[50.0, -50.0, 0.0], [-50.0, 50.0, 50.0], [800.0, -800.0, 1.0]], dtype=dtype, requires_grad=True)
    targets = torch.tensor([0, 0, 1])
    exact = 1e-6 if dtype == torch.float32 else 1e-14
    assert_equal(
        lambda x: scratch_losses.cross_entropy_loss(x, targets), lambda x: F.cross_entropy(x, targets), z, exact=exact
    )


@pytest.mark.parametrize("bias", [True, False])
def test_under_autocast_the_gradients_keep_the_type_of_the_parameters(bias: bool) -> None:
    x, weight, b = draw(4, 3).float(), draw(2, 3).float().requires_grad_(), draw(2).float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = apply_function(scratch_autograd.Linear, x, weight, b if bias else None)
        outputs = apply_function(scratch_autograd.Linear, hidden, weight.T[:, :2].contiguous(), None)
        loss = scratch_losses.cross_entropy_loss(outputs, torch.tensor([0, 1, 2, 0]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    wide = weight.detach().clone().requires_grad_()
    F.cross_entropy((x @ wide.T + (b.detach() if bias else 0)) @ wide.T[:, :2].T, torch.tensor([0, 1, 2, 0])).backward()
    torch.testing.assert_close(weight.grad, wide.grad, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("name", ["mse", "bce", "bce_with_logits"])
def test_shapes_that_would_broadcast_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"\(4, 1\) and targets \(4,\) differ"):
        LOSSES[name][0](torch.rand(4, 1), torch.rand(4))


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_logit_is_no_probability(value: float) -> None:
    with pytest.raises(RequestError, match=r"type model\.output_activation=sigmoid or task\.loss=scratch_bce_with"):
        scratch_losses.bce_loss(torch.tensor([0.5, value]), torch.tensor([1.0, 0.0]))


ALLOWED = {
    "abs", "add", "amax", "any", "arange", "bitwise_or", "clamp", "detach", "div", "eq", "exp", "expm1", "gather",
    "gt", "log", "log1p", "lt", "mm", "mul", "neg", "reciprocal", "rsub", "sign", "sub", "sum", "where",
    "permute", "t", "transpose", "unsqueeze", "view", "_unsafe_view", "_to_copy", "promote_types",
    "_local_scalar_dense", "scalar_tensor",
}  # fmt: skip


class OnlyArithmetic(TorchDispatchMode):
    """Ends with an AssertionError where an operation is more than arithmetic: sigmoid, softmax, *_backward, ..."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name in ALLOWED, f"{name} is no arithmetic"
        return func(*args, **(kwargs or {}))


def list_passes() -> Iterator[tuple[Callable[[], Tensor], Tensor]]:
    """Each forward, to be called, and a gradient for its backward."""
    inputs = [x.requires_grad_() for x in (draw(4, 3), draw(2, 3), draw(2))]
    yield partial(apply_function, scratch_autograd.Linear, *inputs), draw(4, 2)
    for ours, _ in ACTIVATIONS.values():
        yield partial(ours, draw(4, 3).requires_grad_()), draw(4, 3)
    for name, (loss, _) in LOSSES.items():
        outputs, targets = loss_inputs(name, SHAPES[name][0])
        yield partial(loss, outputs.requires_grad_(), targets), torch.ones((), dtype=torch.float64)


def test_nothing_of_torch_nn_functional_or_autograd_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("not by hand")

    functions = [name for name, f in vars(F).items() if callable(f) and not name.startswith("__")]
    assert {"linear", "relu", "sigmoid", "cross_entropy"} <= set(functions)
    for name in functions:
        monkeypatch.setattr(F, name, fail)
    monkeypatch.setattr(torch.autograd, "grad", fail)
    prepared = list(list_passes())
    with OnlyArithmetic():
        for forward, gradient in prepared:
            forward().backward(gradient)


@pytest.mark.parametrize("module", [scratch_autograd, scratch_losses])
def test_the_source_names_neither(module: ModuleType) -> None:
    tree = ast.parse(inspect.getsource(module))
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {f"{n.module}.{a.name}" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    assert {name for name in imported if name.startswith("torch")} == {
        "torch",
        "torch.Tensor",
        "torch.autograd.Function",
    }
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert not used & {"nn", "functional", "autograd", "grad", "backward", "enable_grad", "vjp", "func", "ops"}
    assert not {name for name in used if "sigmoid" in name or "softmax" in name or name in ("relu", "tanh", "elu")}
