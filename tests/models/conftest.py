"""Specs that the model tests build their nets on."""

from collections.abc import Callable
from typing import Any

import pytest

from dlrun.data.spec import DataSpec


@pytest.fixture
def image_spec() -> Callable[..., DataSpec]:
    def make(*shape: int, outputs: int = 10) -> DataSpec:
        return DataSpec("image", shape or (1, 28, 28), "multiclass", outputs)

    return make


@pytest.fixture
def vector_spec() -> Callable[..., DataSpec]:
    def make(features: int = 8, outputs: int = 3, task: Any = "multiclass") -> DataSpec:
        return DataSpec("vector", (features,), task, outputs)

    return make


@pytest.fixture
def token_spec() -> Callable[..., DataSpec]:
    def make(outputs: int = 4, task: Any = "multiclass") -> DataSpec:
        return DataSpec("tokens", (9,), task, outputs, vocabulary=("", *"abcdefghij"))

    return make
