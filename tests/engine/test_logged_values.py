"""Scalars that are logged in an epoch: their mean, whatever is interrupted, and what is refused."""

import math
from typing import Any

import pytest
import torch

from dlrun.core.errors import RunError
from dlrun.engine import logged_values
from dlrun.engine.distributed import SINGLE_PROCESS, Distributed
from dlrun.engine.logged_values import LoggedValues

CPU = torch.device("cpu")


def test_the_mean_is_of_all_values_in_float64() -> None:
    logged = LoggedValues()
    values = [0.1 * i for i in range(1000)]
    for value in values:
        logged.add("float", value)
        logged.add("tensor", torch.tensor([value], requires_grad=True))
    means = logged.take_means(SINGLE_PROCESS)
    assert means["float"] == sum(values) / 1000
    # The sum of the float32 values in float64, as exact as theirs can be.
    exact = math.fsum(float(torch.tensor(value)) for value in values) / 1000
    assert math.isclose(means["tensor"], exact, rel_tol=1e-14)
    assert logged.take_means(SINGLE_PROCESS) == {}


def test_a_tensor_that_changes_afterwards_changes_nothing() -> None:
    logged = LoggedValues()
    value = torch.ones((), dtype=torch.float64)
    logged.add("x", value)
    value.mul_(100)
    assert logged.read_newest() == {"x_step": 1.0}
    assert logged.read_newest() == {}
    assert logged.take_means(SINGLE_PROCESS) == {"x": 1.0}


def test_an_epoch_in_two_processes_has_the_same_mean() -> None:
    values = [torch.rand(()) for _ in range(7)]
    one, first, second = LoggedValues(), LoggedValues(), LoggedValues()
    for value in values:
        one.add("x", value)
    for value in values[:3]:
        first.add("x", value)
    second.add_state_dict(first.state_dict(), CPU)
    for value in values[3:]:
        second.add("x", value)
    assert second.take_means(SINGLE_PROCESS) == one.take_means(SINGLE_PROCESS)
    assert one.state_dict() == {}


class TwoRanks(Distributed):
    """The other rank has logged two values of x, and one of a name of its own."""

    def gather(self, value: Any) -> list[Any]:
        return [value, ({"x": 5.0, "y": 4.0}, {"x": 2, "y": 1})]


def test_every_value_of_every_rank_counts_once() -> None:
    logged = LoggedValues()
    logged.add("x", 1.0)
    assert logged.take_means(TwoRanks()) == {"x": 2.0, "y": 4.0}


def test_a_model_logs_in_a_step_alone() -> None:
    logged = LoggedValues()
    logged_values.log("x", 1.0)
    logged_values.set_receiver(logged)
    try:
        logged_values.log("x", 3.0)
    finally:
        logged_values.set_receiver(None)
    logged_values.log("x", 5.0)
    assert logged.take_means(SINGLE_PROCESS) == {"x": 3.0}


@pytest.mark.parametrize(
    ("name", "value"),
    [("x", torch.ones(2)), ("x", "high"), ("x", None), ("x", torch.ones((), dtype=torch.complex64))],
)
def test_what_is_not_one_number_is_refused(name: str, value: Any) -> None:
    with pytest.raises(RunError, match=r"takes one number"):
        LoggedValues().add(name, value)


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31m", 3, "x" * 101])
def test_names_that_no_table_can_show_are_refused(name: Any) -> None:
    with pytest.raises(RunError, match=r"is no name"):
        LoggedValues().add(name, 1.0)
