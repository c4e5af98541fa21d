"""The one-hot nets: numpy's recurrence, with the states as logits."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from dlrun.core.errors import MisfitError
from dlrun.data.spec import DataSpec
from dlrun.models.one_hot import OneHotRNN, OneHotRNNCell

Make = Callable[..., DataSpec]
CODES = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]])
LENGTHS = torch.tensor([5, 2])


@pytest.mark.parametrize("kind", [OneHotRNN, OneHotRNNCell])
def test_states_are_the_recurrence_in_numpy(kind: type[OneHotRNN], token_spec: Make) -> None:
    net = kind(token_spec(outputs=4, task="tagging")).double()
    w, u, b, c = (p.detach().numpy() for p in net.parameters())
    assert (w.shape, u.shape) == ((4, 10), (4, 4))  # ten letters without the padding, a unit a tag
    states = net(CODES, LENGTHS).detach().numpy()
    assert states.shape == (2, 5, 4)
    for row, codes, length in zip(states, CODES.tolist(), LENGTHS.tolist(), strict=True):
        state = np.zeros(4)
        for hidden_state, code in zip(row[:length], codes, strict=False):
            state = np.tanh(w[:, code - 1] + b + u @ state + c)
            np.testing.assert_allclose(hidden_state, state, rtol=1e-12)
    assert np.abs(states).max() < 1


def test_both_are_one_net(token_spec: Make) -> None:
    nets = []
    for kind in (OneHotRNN, OneHotRNNCell):
        torch.manual_seed(5)
        nets.append(kind(token_spec(outputs=4, task="tagging")))
    layer, cell = nets
    pairs = list(zip(layer.parameters(), cell.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    outputs = [net(CODES, LENGTHS) for net in nets]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for a, b in pairs:
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("kind", [OneHotRNN, OneHotRNNCell])
def test_padding_has_no_influence(kind: type[OneHotRNN], token_spec: Make) -> None:
    net = kind(token_spec(task="tagging"))
    longer = torch.nn.functional.pad(CODES, (0, 4))
    torch.testing.assert_close(net(longer, LENGTHS)[:, :5], net(CODES, LENGTHS))
    assert not net.encode_one_hot(torch.zeros(1, 3, dtype=torch.int64)).any()


def test_a_vocabulary_is_needed(token_spec: Make) -> None:
    for vocabulary in ((), ("",)):
        with pytest.raises(MisfitError, match=r"fill DataSpec\.vocabulary"):
            OneHotRNN(replace(token_spec(task="tagging"), vocabulary=vocabulary))
