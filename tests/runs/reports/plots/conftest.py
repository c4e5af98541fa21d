"""What the tests of pictures share."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from torch import nn

from dlrun.data.batches import MemoryBatches, Order, Place
from dlrun.data.spec import Split, Splits
from dlrun.engine.device import Runtime
from dlrun.engine.objective import Task

Lines = Callable[[Axes], dict[str, list[list[float]]]]


@pytest.fixture
def lines() -> Lines:
    """What axes show as lines with a label: x and y."""

    def found(axes: Axes) -> dict[str, list[list[float]]]:
        labelled = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
        return {str(line.get_label()): np.asarray(line.get_xydata()).T.tolist() for line in labelled}

    return found


@pytest.fixture
def parts_of() -> Callable[[nn.Module, Splits], Any]:
    """As much of a run's parts as a picture looks at, with all training rows in one batch."""

    def made(model: nn.Module, splits: Splits) -> Any:
        assert isinstance(splits.train, Split)
        device = torch.device("cpu")
        order = Order(len(splits.train), len(splits.train))
        batches = MemoryBatches(splits.train, order, Place(device, torch.float32, splits.spec))
        training = SimpleNamespace(train=batches, val=None, progress=SimpleNamespace(epoch=0, step=0))
        runtime = Runtime(device, "fp32", None, False, "")
        task = Task(splits.spec)
        return SimpleNamespace(
            model=model, splits=splits, task=task, runtime=runtime, training=training, test=None, start_parameters={}
        )

    return made
