from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlrun.core.errors import RequestError
from dlrun.data.spec import DataSpec
from dlrun.models.tabular import Tabular, choose_embedding_size

# Two numbers, and columns of 4 and 3 codes between and behind them.
SPEC = DataSpec("vector", (4,), "multiclass", 3, code_counts=(0, 4, 0, 3))
ROWS = torch.tensor([[0.5, 1, -1.0, 2], [1.5, 3, 0.0, 1], [-2.0, 0, 3.0, 0]])


@pytest.mark.parametrize(("codes", "size"), [(2, 2), (10, 6), (100, 21), (1000, 77), (1_000_000, 600)])
def test_size_of_an_embedding_follows_the_rule(codes: int, size: int) -> None:
    assert choose_embedding_size(codes) == size


def compute_by_hand(model: Tabular, x: Tensor) -> Tensor:
    """The output with one-hot rows and matrix products in the place of embeddings."""
    numbers = x[:, [0, 2]]
    wide = numbers @ model.wide_numbers.weight.T  # type: ignore[union-attr]
    parts = [numbers]
    start = 0
    for embedding, column, count in zip(model.embeddings, (1, 3), (4, 3), strict=True):
        hot = nn.functional.one_hot(x[:, column].long(), count).float()
        parts.append(hot @ embedding.weight)  # type: ignore[operator]
        wide = wide + hot @ model.wide_codes.weight[start : start + count]  # type: ignore[union-attr]
        start += count
    return model.head(model.layers(torch.cat(parts, dim=1))) + 10 * wide


@pytest.mark.parametrize("blocks", ["mlp", "resnet"])
def test_codes_are_embedded_as_one_hot_rows_times_a_matrix(blocks: str) -> None:
    torch.manual_seed(0)
    model = Tabular(SPEC, blocks=blocks, hidden_sizes=[8, 5]).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    torch.testing.assert_close(model(ROWS), compute_by_hand(model, ROWS))


def test_a_residual_block_is_that_of_the_paper() -> None:
    torch.manual_seed(0)
    model = Tabular(SPEC, blocks="resnet", hidden_sizes=[6], dropout=0.0, wide=False).eval()
    first, block, norm, _ = model.layers
    x = torch.randn(5, 2 + 2 * 3)
    hidden = first(x)
    normed = nn.functional.layer_norm(hidden, (6,))
    inner = torch.relu(normed @ block.linear1.weight.T + block.linear1.bias)  # type: ignore[union-attr,operator]
    expected = hidden + inner @ block.linear2.weight.T + block.linear2.bias  # type: ignore[union-attr,operator]
    torch.testing.assert_close(model.layers(x), torch.relu(norm(expected)))


def test_a_category_that_training_did_not_have_adds_nothing() -> None:
    model = Tabular(SPEC)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model(ROWS[:2]).square().sum().add(model(ROWS[:2]).sum()).backward()
        optimizer.step()
    for embedding in model.embeddings:
        assert not embedding.weight[0].any()  # type: ignore[index,operator]
        assert embedding.weight[1:].any()  # type: ignore[index,operator]
    assert model.wide_codes is not None
    assert not model.wide_codes.weight[[0, 4]].any()

    # Whatever is out of range is such a category too.
    model.eval()
    beyond = ROWS[2:].clone()
    for codes in ((-1.0, 7.0), (99.0, -5.0)):
        beyond[0, 1], beyond[0, 3] = codes
        assert torch.equal(model(beyond), model(ROWS[2:]))


def test_numbers_alone_need_no_embeddings(vector_spec: Callable[..., DataSpec]) -> None:
    model = Tabular(vector_spec())
    assert len(model.embeddings) == 0
    assert model.wide_codes is None
    assert model(torch.zeros(1, vector_spec().input_size)).shape == (1, vector_spec().output_size)


def test_a_batch_may_have_one_row() -> None:
    assert Tabular(SPEC, blocks="resnet").train()(ROWS[:1]).shape == (1, 3)


def test_an_autoencoder_has_no_way_around_its_layers() -> None:
    spec = DataSpec("vector", (4,), "regression", 4, reconstructs=True)
    assert Tabular(spec).wide_numbers is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": "resnets"}, "model.blocks=resnets is unknown .did you mean resnet"),
        ({"hidden_sizes": [8, 0]}, "model.hidden_sizes holds 0"),
        ({"hidden_sizes": []}, "type model=linear"),
        ({"dropout": 1.0}, "model.dropout=1.0"),
        ({"activation": "rellu"}, "model.activation=rellu"),
        ({"embedding_size": 0}, "model.embedding_size holds 0"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Tabular(SPEC, **settings)
