"""Classes of unequal size: drawn equally often, or noted, or refused; on the real command line."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import WeightedRandomSampler

from dlrun.data.batches import EpochOrder

QUIET = ("tracking.graph=false", "figures=false", "trainer.epochs=2")
NOTE = "the classes differ in size, in training rows: a 20, b 4; data.sampler=balanced draws"


def test_rows_are_drawn_as_torch_draws_them() -> None:
    targets = torch.tensor([0] * 90 + [1] * 9 + [2])
    weights = (1 / targets.bincount().double())[targets]
    order = EpochOrder(100, 8, shuffle=True, seed=3, weights=weights)
    generator = torch.Generator().manual_seed((3 * 0x9E3779B97F4A7C15 + 2) % 2**63)
    sampler = WeightedRandomSampler(weights.tolist(), 100, generator=generator)
    assert order.permutation(2).tolist() == list(sampler)
    assert not torch.equal(order.permutation(2), order.permutation(3))

    # An epoch can be entered at any batch, and is as long as without weights.
    assert len(order) == len(EpochOrder(100, 8, shuffle=True))
    entered = torch.cat(order.batches(2, 5))
    assert torch.equal(entered, order.permutation(2)[40:])

    # 60,000 draws: a share of a third has a standard deviation of 0.002.
    drawn = torch.cat([targets[order.permutation(epoch)] for epoch in range(600)])
    shares = drawn.bincount().double() / len(drawn)
    assert (shares - 1 / 3).abs().max() < 0.01


@pytest.fixture
def unequal_classes(tmp_path: Path, formats: ModuleType) -> dict[str, tuple[str, ...]]:
    """20 rows of class a and 4 of b, as images, as a table and as arrays."""
    formats.write_folder(tmp_path / "photos", {"a": 20, "b": 4}, (8, 8))
    rows = [f"{i % 7},{i % 5},{'b' if i % 6 == 0 else 'a'}" for i in range(24)]
    (tmp_path / "table.csv").write_text("x,y,kind\n" + "\n".join(rows) + "\n")
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "x.npy", np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32))
    np.save(tmp_path / "arrays" / "y.npy", (np.arange(24) % 6 == 0).astype(np.int64))
    without_splits = ("data.test_fraction=0", "data.val_fraction=0", "data.batch_size=5")
    return {
        "image_folder": ("data=image_folder", "data.path=photos", "data.image_size=8", *without_splits),
        "table": ("data=table", "data.path=table.csv", *without_splits),
        "csv": ("data=csv", "data.path=table.csv", *without_splits),
        "arrays": ("data=arrays", "data.path=arrays", "data.class_names=[a,b]", *without_splits),
    }


@pytest.mark.parametrize(
    "data",
    [
        "image_folder",
        pytest.param("table", marks=pytest.mark.slow),
        pytest.param("csv", marks=pytest.mark.slow),
        pytest.param("arrays", marks=pytest.mark.slow),
    ],
)
def test_files_of_ones_own_are_noted_and_balanced(
    data: str, dlrun: Callable[..., Any], unequal_classes: dict[str, tuple[str, ...]]
) -> None:
    plain = dlrun(*unequal_classes[data], *QUIET)
    assert plain.code == 0, plain.err
    assert NOTE in " ".join(plain.out.split())

    balanced = dlrun(*unequal_classes[data], *QUIET, "data.sampler=balanced")
    assert balanced.code == 0, balanced.err
    assert "differ in size" not in balanced.out
    assert balanced.result["steps"] == plain.result["steps"] == 10
    assert balanced.result["weights_sha256"] != plain.result["weights_sha256"]
    again = dlrun(*unequal_classes[data], *QUIET, "data.sampler=balanced", "data.loader=workers", "data.num_workers=0")
    assert again.result["weights_sha256"] == balanced.result["weights_sha256"]
    evaluated = dlrun("eval", str(balanced.folder), "split=all", "figures=false")
    assert evaluated.code == 0, evaluated.err
    assert "24 rows" in evaluated.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("data=line", "data.sampler=balanced"), "this task is regression; leave it out"),
        (("data.sampler=balanced", "data.shuffle=false"), "data.shuffle=false keeps their order"),
        (("data.sampler=balance"), "data.sampler=balance"),
    ],
)
def test_what_cannot_be_balanced(
    words: tuple[str, ...] | str, sentence: str, dlrun: Callable[..., Any], tmp_path: Path
) -> None:
    outcome = dlrun(*((words,) if isinstance(words, str) else words))
    assert (outcome.code, outcome.out) == (2, "")
    assert sentence in outcome.err
    assert not (tmp_path / "outputs").exists()
