"""`model.freeze`: what is frozen stays as it is to the bit, and the rest learns as in a loop by hand."""

import copy
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dlrun.core.errors import RequestError
from dlrun.data.batches import EpochOrder
from dlrun.data.synthetic import blobs
from dlrun.engine.device import seed_everything
from dlrun.experiment.builder.freeze import freeze
from dlrun.runs import checkpoint

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, spec, width=8):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5))
        self.middle = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())
        self.head = nn.Linear(width, spec.output_size)

    def forward(self, x):
        return self.head(self.middle(self.features(x)))

class Own(Net):
    def __init__(self, spec, freeze=False):
        super().__init__(spec)
        self.head.bias.requires_grad_(not freeze)
"""
WORDS = ("data=blobs", "data.val_fraction=0", "trainer.epochs=3", "tracking.graph=false", "figures=false")


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module mynet of a user."""
    (tmp_path / "mynet.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    import mynet  # type: ignore[import-not-found]

    return mynet


def train_by_hand(net: Any, patterns: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """State before and after three epochs of plain torch on the blobs, with `features` frozen."""
    data = blobs()
    seed_everything(0)
    model = net.Net(data.spec)
    before = copy.deepcopy(model.state_dict())
    trained = [p for name, p in model.named_parameters() if not name.startswith(patterns)]
    for parameter in model.features.parameters():
        parameter.requires_grad_(False)

    optimizer = torch.optim.Adam(trained, lr=1e-3, fused=True)
    inputs = data.train.inputs[0].float()
    order = EpochOrder(len(inputs), 64, shuffle=True)
    for epoch in (1, 2, 3):
        for rows in order.batches(epoch, start=0):
            model.train()
            model.features.eval()
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[rows]), data.train.targets[rows]).backward()
            optimizer.step()
    return before, model.state_dict()


@pytest.mark.slow
def test_a_frozen_part_stays_and_the_rest_learns_as_by_hand(dlrun: Callable[..., Any], net: Any) -> None:
    before, after = train_by_hand(net, ("features.",))
    outcome = dlrun(*WORDS, "model._target_=mynet.Net", "model.freeze=[features.*]", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert "Net: 146 parameters, of which 106 are trained and 40 frozen" in outcome.out
    state = checkpoint.load(Path("run/checkpoints/last.pt"))
    assert state["model"].keys() == after.keys()
    for key, tensor in state["model"].items():
        assert torch.equal(tensor, after[key]), key
        assert torch.equal(tensor, before[key]) == key.startswith("features."), key
    # Adam holds moments of what it trains alone.
    assert len(state["optimizer"]["state"]) == 6
    assert dlrun("eval", "run", "trusted_modules=[mynet]", "figures=false").code == 0


@pytest.mark.slow
def test_every_spelling_freezes_the_same_and_leaves_no_trace_in_other_configs(
    dlrun: Callable[..., Any], net: Any
) -> None:
    plain = (*WORDS[:2], "trainer.epochs=1", *WORDS[3:], "model._target_=mynet.Net", "trainer.ema_decay=0.9")
    spellings = ("features", "[feat*.?]", "['features.*.weight','features.*.bias']")
    results = [dlrun(*plain, f"model.freeze={spelling}").result for spelling in spellings]
    assert len({result["weights_sha256"] for result in results}) == 1
    assert len({result["config_hash"] for result in results}) == 3

    grouped = dlrun(*plain, "model.freeze=features", "optimizer.groups=[{match:'*.bias',weight_decay:0.1}]")
    assert grouped.code == 0, grouped.err
    own = dlrun(*WORDS, "model._target_=mynet.Own", "+model.freeze=true")
    assert "of which 144 are trained and 2 frozen" in own.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("model.freeze=[featurs.*]", "nothing in the model matches 'featurs.*'; did you mean features.*"),
        ("model.freeze=[features,midle]", "nothing in the model matches 'midle'; did you mean middle"),
        ("model.freeze=['*']", "freezes all 10 parameters, so that nothing is left to train; type patterns that do"),
        ("model.freeze=features.2", "what 'features.2' matches has no weights and no statistics; the parameters are"),
        ("model.freeze=3", "model.freeze=3 must be a pattern on names"),
        ("model.freeze=false", "model.freeze=False must be a pattern on names"),
        ("model.freeze=backbone", "nothing in the model matches 'backbone'"),
    ],
)
def test_patterns_that_freeze_nothing_or_all_are_sentences(
    words: str, sentence: str, dlrun: Callable[..., Any], net: Any
) -> None:
    refused = dlrun(*WORDS, "model._target_=mynet.Net", words)
    assert refused.code == 2
    assert sentence in refused.err
    assert refused.err.count("dlrun: ") == 1
    assert not Path("outputs").exists()


def test_a_group_of_frozen_parameters_is_a_sentence(dlrun: Callable[..., Any], net: Any) -> None:
    words = ("model._target_=mynet.Net", "model.freeze=features", "optimizer.groups=[{match:'features.*',lr:0.1}]")
    refused = dlrun(*WORDS, *words)
    assert refused.code == 2
    assert "no parameter is left that matches 'features.*', as features.0.weight, features.0.bias, " in refused.err


def test_the_mode_survives_copies_and_a_pickle_is_a_plain_net(net: Any) -> None:
    model = net.Net(blobs().spec)
    freeze(model, ["features", "middle.1.weight"])
    twin = copy.deepcopy(model)
    for candidate in (model, twin):
        candidate.eval().train()
        modes = {name: module.training for name, module in candidate.named_modules()}
        # Half of the middle's batch norm is trained, so it goes on counting.
        assert [name for name in modes if not modes[name]] == ["features", *(f"features.{i}" for i in range(4))]
    assert twin.features.train() is twin.features
    assert not any(module.training for module in model.eval().modules())

    buffer = io.BytesIO()
    torch.save(model, buffer)
    assert b"dlrun" not in buffer.getvalue()
    buffer.seek(0)
    assert all(module.training for module in torch.load(buffer, weights_only=False).train().modules())


def test_statistics_without_weights_are_frozen_by_name_and_cudnn_can_differentiate() -> None:
    model = nn.ModuleDict({"norm": nn.BatchNorm1d(4, affine=False), "rnn": nn.GRU(4, 4), "last": nn.Linear(4, 2)})
    freeze(model, ["norm", "rnn"])
    model.train()
    assert [module.training for module in model.values()] == [False, True, True]
    # One tensor under two names.
    tied = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    tied["b"].weight = tied["a"].weight
    freeze(tied, "b.weight")
    assert not tied["a"].weight.requires_grad
    with pytest.raises(RequestError, match="freezes all"):
        freeze(tied, ["a", "b.bias"])
