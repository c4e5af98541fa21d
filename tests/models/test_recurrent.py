from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dlrun.core.errors import MisfitError, RequestError
from dlrun.data.spec import DataSpec
from dlrun.models.recurrent import GRU, LSTM, RNN

Make = Callable[..., DataSpec]
CELLS = [RNN, LSTM, GRU]
CODES = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0], [8, 9, 10, 0, 0]])
LENGTHS = torch.tensor([5, 2, 3])


def last_hidden(net: RNN, codes: Tensor) -> Tensor:
    """The top layer's last state on one sequence without padding and packing."""
    outputs, _ = net.recurrent(net.embedding(codes[None]))
    size = net.recurrent.hidden_size
    return torch.cat([outputs[0, -1, :size], outputs[0, 0, size:]])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_last_state_equals_that_of_single_sequences(cell: type[RNN], bidirectional: bool, token_spec: Make) -> None:
    net = cell(token_spec(), embedding_size=6, hidden_size=5, bidirectional=bidirectional)
    scores = net(CODES, LENGTHS)
    for row, codes, length in zip(scores, CODES, LENGTHS, strict=True):
        torch.testing.assert_close(row, net.classifier(last_hidden(net, codes[:length])))


@pytest.mark.parametrize("cell", CELLS)
def test_padding_has_no_influence(cell: type[RNN], token_spec: Make) -> None:
    net = cell(token_spec())
    longer = torch.nn.functional.pad(CODES, (0, 4))
    torch.testing.assert_close(net(longer, LENGTHS), net(CODES, LENGTHS))


@pytest.mark.parametrize("cell", CELLS)
def test_rows_are_answered_in_their_order(cell: type[RNN], token_spec: Make) -> None:
    net = cell(token_spec())
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(net(CODES[order], LENGTHS[order]), net(CODES, LENGTHS)[order])


@pytest.mark.parametrize("cell", CELLS)
def test_tagging_answers_at_every_position(cell: type[RNN], token_spec: Make) -> None:
    net = cell(token_spec(outputs=4, task="tagging"), embedding_size=6, hidden_size=5)
    scores = net(CODES, LENGTHS)
    assert scores.shape == (3, 5, 4)
    assert net(CODES[1:], LENGTHS[1:]).shape == (2, 5, 4)  # as wide as its input, though all are shorter
    for row, codes, length in zip(scores, CODES, LENGTHS, strict=True):
        outputs, _ = net.recurrent(net.embedding(codes[None, :length]))
        torch.testing.assert_close(row[:length], net.classifier(outputs[0]))


@pytest.mark.parametrize(("cell", "gates"), [(RNN, 1), (LSTM, 4), (GRU, 3)])
def test_parameter_count(cell: type[RNN], gates: int, token_spec: Make) -> None:
    first = 2 * gates * 100 * (100 + 100 + 2)  # two directions; weights from input and state, two biases
    second = 2 * gates * 100 * (200 + 100 + 2)
    assert sum(p.numel() for p in cell(token_spec()).parameters()) == 11 * 100 + first + second + 200 * 4 + 4


def test_padding_embedding_is_zero_and_stays_so(token_spec: Make) -> None:
    net = GRU(token_spec())
    net(CODES, LENGTHS).sum().backward()
    assert not net.embedding.weight[0].any()
    assert net.embedding.weight.grad is not None
    assert not net.embedding.weight.grad[0].any()


@pytest.mark.parametrize("task", ["regression", "binary"])
def test_one_value_a_sequence(task: str, token_spec: Make) -> None:
    assert LSTM(token_spec(outputs=1, task=task))(CODES, LENGTHS).shape == (3, 1)


def test_dropout_acts_in_training_only(token_spec: Make) -> None:
    net = GRU(token_spec(), dropout=0.5)
    assert not torch.equal(net(CODES, LENGTHS), net(CODES, LENGTHS))
    net.eval()
    assert torch.equal(net(CODES, LENGTHS), net(CODES, LENGTHS))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"layers": 0}, r"model\.layers holds 0.*type model\.layers=2"),
        ({"hidden_size": -3}, r"model\.hidden_size holds -3.*type model\.hidden_size=100"),
        ({"embedding_size": 0}, r"model\.embedding_size holds 0"),
        ({"dropout": 1.5}, r"model\.dropout=1\.5"),
        ({"dropout": 0.2, "layers": 1}, r"model\.dropout=0\.2 .*model\.layers=1.*type model\.layers=2"),
    ],
)
def test_bad_settings_end_in_a_sentence(settings: dict[str, Any], sentence: str, token_spec: Make) -> None:
    with pytest.raises(RequestError, match=sentence):
        RNN(token_spec(), **settings)


def test_data_without_vocabulary_is_refused(token_spec: Make) -> None:
    with pytest.raises(MisfitError, match="vocabulary"):
        GRU(replace(token_spec(), vocabulary=()))
