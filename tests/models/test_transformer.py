import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlrun.core.errors import MisfitError, RequestError
from dlrun.data.spec import DataSpec
from dlrun.models.recurrent import GRU, LSTM, RNN
from dlrun.models.transformer import Transformer, encode_positions

Make = Callable[..., DataSpec]
CODES = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0], [8, 9, 10, 0, 0]])
LENGTHS = torch.tensor([5, 2, 3])
SERIES = DataSpec("series", (6, 3), "regression", 2)
POOLINGS = ["mean", "cls", "last"]


def attend(layer: nn.TransformerEncoderLayer, x: Tensor) -> Tensor:
    """One encoder layer on a single sequence (T, size), written out with the norm first."""
    attention = layer.self_attn
    heads, size = attention.num_heads, x.shape[1]
    normed = layer.norm1(x)
    queries, keys, values = (normed @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=1)
    mixed = []
    for q, k, v in zip(*(part.split(size // heads, dim=1) for part in (queries, keys, values)), strict=True):
        mixed.append(torch.softmax(q @ k.T / math.sqrt(size // heads), dim=1) @ v)
    x = x + attention.out_proj(torch.cat(mixed, dim=1))
    return x + layer.linear2(nn.functional.gelu(layer.linear1(layer.norm2(x))))


def answer_by_hand(net: Transformer, rows: Tensor) -> Tensor:
    """The answer to one sequence without padding: codes (T,) or numbers (T, F)."""
    x = net.embedding(rows)
    size = x.shape[1]
    for position in range(len(x)):
        for pair in range(size // 2):
            angle = position / 10_000 ** (2 * pair / size)
            x[position, 2 * pair] += math.sin(angle)
            x[position, 2 * pair + 1] += math.cos(angle)
    if net.pooling == "cls":
        x = torch.cat([net.cls[None], x])
    for layer in net.encoder.layers:
        x = attend(layer, x)
    x = net.encoder.norm(x)
    pooled = {"mean": x.mean(0), "cls": x[0], "last": x[-1]}[net.pooling]
    return net.classifier(pooled)


@torch.no_grad()
@pytest.mark.parametrize("pooling", POOLINGS)
def test_equals_the_formulas_of_the_paper_written_out(pooling: str, token_spec: Make) -> None:
    net = Transformer(token_spec(), hidden_size=8, heads=2, feedforward_size=16, pooling=pooling).eval()
    scores = net(CODES, LENGTHS)
    for row, codes, length in zip(scores, CODES, LENGTHS, strict=True):
        torch.testing.assert_close(row, answer_by_hand(net, codes[:length]), rtol=1e-4, atol=1e-5)
    net = Transformer(SERIES, hidden_size=8, heads=2, feedforward_size=16, pooling=pooling).eval()
    x = torch.randn(3, 6, 3)
    torch.testing.assert_close(net(x)[1], answer_by_hand(net, x[1]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_changes_nothing_but_rounding(pooling: str, token_spec: Make) -> None:
    net = Transformer(token_spec(), pooling=pooling).eval()
    longer = nn.functional.pad(CODES, (0, 40))
    # The codes behind the end of a text do not matter either.
    filled = torch.where(longer == 0, 7, longer)
    expected = net(CODES, LENGTHS)
    torch.testing.assert_close(net(longer, LENGTHS), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net(filled, LENGTHS), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net(CODES[1:2, :2], LENGTHS[1:2]), expected[1:2], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_tagging_answers_at_every_position(token_spec: Make) -> None:
    net = Transformer(token_spec(outputs=4, task="tagging")).eval()
    scores = net(CODES, LENGTHS)
    assert scores.shape == (3, 5, 4)
    torch.testing.assert_close(net(CODES[1:2, :2], LENGTHS[1:2])[0], scores[1, :2], rtol=1e-5, atol=1e-6)


def test_positions_are_those_of_the_paper() -> None:
    positions = encode_positions(50, torch.zeros(1, 16))
    assert positions.shape == (50, 16)
    assert float(positions[7, 4]) == pytest.approx(math.sin(7 / 10_000 ** (4 / 16)), abs=1e-6)
    assert float(positions[7, 5]) == pytest.approx(math.cos(7 / 10_000 ** (4 / 16)), abs=1e-6)


@pytest.mark.parametrize("cell", [RNN, LSTM, GRU])
def test_recurrent_nets_take_windows_of_numbers(cell: type[RNN]) -> None:
    net = cell(SERIES, hidden_size=5, layers=1)
    x = torch.randn(4, 6, 3)
    outputs, _ = net.recurrent(x)
    expected = net.classifier(torch.cat([outputs[:, -1, :5], outputs[:, 0, 5:]], dim=1))
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"heads": 3}, r"model\.hidden_size=64 must be even and a multiple of model\.heads=3: type .*=66"),
        ({"hidden_size": 5, "heads": 1}, r"model\.hidden_size=5 must be even"),
        ({"layers": 0}, r"model\.layers holds 0"),
        ({"dropout": 1.0}, r"model\.dropout=1\.0"),
        ({"pooling": "maen"}, r"model\.pooling=maen is unknown \(did you mean mean"),
    ],
)
def test_bad_settings_end_in_a_sentence(settings: dict[str, Any], sentence: str, token_spec: Make) -> None:
    with pytest.raises(RequestError, match=sentence):
        Transformer(token_spec(), **settings)


def test_codes_without_a_vocabulary_are_refused() -> None:
    with pytest.raises(MisfitError, match="vocabulary"):
        Transformer(DataSpec("tokens", (5,), "binary", 1))
