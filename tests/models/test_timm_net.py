"""Nets of timm, from files made here; skipped where the extra is not installed."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrun.data.spec import DataSpec
from dlrun.experiment.builder.freeze import freeze
from dlrun.models.pretrained import skip_trained_weights
from dlrun.models.timm_net import Timm
from dlrun.runs import checkpoint

WORDS = ("data=digits", "data.train_rows=64", "model=timm", "tracking.graph=false", "figures=false")
SMALL = (*WORDS, "model.name=test_resnet", "data.image_size=32", "trainer.epochs=1")


def needs_timm(test: Any) -> Any:
    """Mark a test that imports timm, which takes seconds, where it is installed."""
    is_missing = importlib.util.find_spec("timm") is None
    return pytest.mark.slow(pytest.mark.skipif(is_missing, reason="timm is not installed: dlrun[timm]")(test))


def make(name: str, **settings: Any) -> torch.nn.Module:
    """A net of timm as it comes, with weights of some training."""
    import timm

    torch.manual_seed(1)
    net: torch.nn.Module = timm.create_model(name, **settings)
    return net


def test_without_timm_a_sentence_says_what_to_install(
    dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    refused = dlrun(*WORDS)
    assert refused.code == 2
    assert "type pip install 'dlrun[timm]'" in refused.err
    assert refused.err.count("dlrun: ") == 1
    assert "timm" in dlrun("ls", "model").out


@needs_timm
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext"])
def test_a_file_brings_all_but_the_head(name: str, channels: int, tmp_path: Path) -> None:
    """What is loaded equals what timm itself makes of the same file."""
    spec = DataSpec("image", (channels, 32, 32), "multiclass", 7)
    size = {"img_size": (32, 32)} if name == "test_vit" else {}
    trained = make(name, **size)
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "net.pth")
    overlay = {"state_dict": trained.state_dict()}
    expected = make(
        name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, in_chans=channels, **size
    ).state_dict()

    torch.manual_seed(0)
    net = Timm(spec, name, weights=str(tmp_path / "net.pth"))
    (head,) = net.last_layers
    state = net.state_dict()
    assert set(state) == {f"net.{key}" for key in expected}
    for key, value in expected.items():
        if not f"net.{key}".startswith(head):
            assert torch.equal(state[f"net.{key}"], value), key
    assert net.eval()(torch.zeros(2, channels, 32, 32)).shape == (2, 7)

    freeze(net, "backbone")
    assert {key for key, p in net.named_parameters() if p.requires_grad} == {f"{head}.weight", f"{head}.bias"}
    # What a checkpoint replaces need not be there.
    with skip_trained_weights():
        again = Timm(spec, name, weights="gone.pth")
    again.load_state_dict(state)


@needs_timm
def test_a_run_is_trained_evaluated_and_resumed(dlrun: Callable[..., Any]) -> None:
    torch.save(make("test_resnet").state_dict(), "net.pth")
    words = (*SMALL, "model.weights=net.pth", "model.freeze=backbone")
    outcome = dlrun(*words, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert "frozen" in outcome.out
    state = checkpoint.load(Path("run/checkpoints/last.pt"))["model"]
    trained = make("test_resnet").state_dict()
    for key, value in trained.items():
        if not key.startswith(("fc.", "conv1.0.")):
            assert torch.equal(state[f"net.{key}"], value), key

    Path("net.pth").unlink()
    assert dlrun("eval", "run", "figures=false").code == 0
    assert dlrun("resume", "run", "trainer.epochs=2").code == 0
    assert dlrun(*SMALL, "hydra.run.dir=plain").code == 0
    refused = dlrun("export", "plain", "format=python")
    assert refused.code == 2
    assert "format=python cannot write model=timm" in refused.err


@needs_timm
def test_init_from_takes_a_file_of_timm(dlrun: Callable[..., Any]) -> None:
    from safetensors.torch import save_file

    save_file(make("test_resnet", in_chans=1).state_dict(), "net.safetensors")
    outcome = dlrun("check", *SMALL, "init_from=net.safetensors")
    assert "not taken, as their shapes differ: net.fc.weight (10×" in outcome.out
    assert "lacks them" not in outcome.out


@needs_timm
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("model.name=resnet81",), "model.name=resnet81 is unknown (did you mean resnet18"),
        (("model.name=resnet18.nowhere",), "model.name=resnet18.nowhere is unknown"),
        (("model.name=hf-hub:someone/net",), "model.name=hf-hub:someone/net is unknown"),
        (("model.weights=other.pth",), "model.weights=other.pth is not of model.name=test_resnet"),
        (("model.weights=gone.pth",), "model.weights=gone.pth cannot be loaded (it is no file)"),
        (("model.weights=other.pth", "model.pretrained=true"), "exclude each other; type one of them"),
        (("model.pretrained=true",), "model.pretrained=true of test_resnet cannot be loaded ("),
    ],
)
def test_mistakes_are_sentences(
    words: tuple[str, ...], sentence: str, dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", no_network)
    torch.save(make("test_efficientnet").state_dict(), "other.pth")
    refused = dlrun("check", *SMALL, *words)
    assert refused.code == 2
    assert sentence in refused.err
    assert refused.err.count("dlrun: ") == 1


def no_network(*_: Any, **__: Any) -> None:
    raise OSError("there is no network")
