"""Every trainable parameter is in exactly one group, and the first pattern has it."""

from typing import Any

import pytest
import torch
from torch import nn

from dlrun.core.errors import RequestError
from dlrun.engine.optim.groups import make_parameter_groups


class Net(nn.Module):
    """Parameters: first.weight, first.bias, second.weight, second.bias, scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 2), nn.Linear(2, 1)
        self.scale = nn.Parameter(torch.ones(1))


def name_groups(net: nn.Module, groups: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Group name -> parameter names."""
    names = {id(p): name for name, p in net.named_parameters()}
    return {group["name"]: [names[id(p)] for p in group["params"]] for group in groups}


def test_without_groups_there_is_one_of_all() -> None:
    net = Net()
    assert name_groups(net, make_parameter_groups(net, [])) == {"all": [name for name, _ in net.named_parameters()]}


def test_the_first_match_wins_and_nothing_is_lost_or_doubled() -> None:
    net = Net()
    groups = [{"match": "first.*", "lr": 0.5}, {"match": "*.bias", "lr": 0.1, "weight_decay": 0.0}]
    parameter_groups = make_parameter_groups(net, groups)
    assert name_groups(net, parameter_groups) == {
        "first.*": ["first.weight", "first.bias"],
        "*.bias": ["second.bias"],
        "rest": ["scale", "second.weight"],
    }
    settings = [{k: v for k, v in g.items() if k not in ("params", "name")} for g in parameter_groups]
    assert settings == [{"lr": 0.5}, {"lr": 0.1, "weight_decay": 0.0}, {}]
    optimizer = torch.optim.SGD(parameter_groups, lr=0.01)
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.1, 0.01]
    held = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())


def test_no_rest_where_everything_is_matched() -> None:
    net = Net()
    assert name_groups(net, make_parameter_groups(net, [{"match": "*"}])).keys() == {"*"}


def test_frozen_parameters_are_left_out() -> None:
    net = Net()
    net.first.requires_grad_(False)
    assert name_groups(net, make_parameter_groups(net, [{"match": "*.weight"}])) == {
        "*.weight": ["second.weight"],
        "rest": ["scale", "second.bias"],
    }


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([{"match": "third.*"}], "optimizer.groups[0]: no parameter is left that matches 'third.*'"),
        ([{"match": "first.*"}, {"match": "first.bias"}], "optimizer.groups[1]: no parameter is left"),
        ([{"lr": 0.1}], "optimizer.groups[0] needs a pattern"),
        ([{"match": "scale"}, "second.*"], "optimizer.groups[1] needs a pattern"),
        ([{"match": 3}], "optimizer.groups[0] needs a pattern"),
        ([{"match": "Scale"}], "matches 'Scale'; the parameters are scale, first.weight, first.bias"),
    ],
)
def test_a_group_that_matches_nothing_is_refused(groups: list[Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        make_parameter_groups(Net(), groups)
    assert message in str(caught.value)


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(RequestError, match="no parameters to train"):
        make_parameter_groups(nn.Flatten(), [])


def test_many_names_are_cut_short() -> None:
    net = nn.Sequential(*(nn.Linear(1, 1) for _ in range(10)))
    with pytest.raises(RequestError, match=r"5\.bias and 8 more$"):
        make_parameter_groups(net, [{"match": "nothing"}])
