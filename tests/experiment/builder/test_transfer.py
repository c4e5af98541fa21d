"""`init_from` and frozen backbones: what is taken over from another run or a file, and what is said of the rest."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dlrun.experiment.builder.transfer import format_names, format_shapes
from dlrun.runs import checkpoint

QUICK = ("data=digits", "trainer.epochs=1", "tracking.graph=false", "figures=false")


def notes(outcome: Any) -> list[str]:
    return [line.removeprefix("note: ") for line in outcome.out.splitlines() if line.startswith("note: ")]


@pytest.mark.slow
def test_what_matches_and_what_does_not_is_listed_with_shapes(dlrun: Callable[..., Any]) -> None:
    dlrun(*QUICK, "model.hidden_sizes=[32,16]", "hydra.run.dir=run")
    outcome = dlrun(*QUICK, "init_from=run", "model.hidden_sizes=[32,10,8]")
    assert outcome.code == 0, outcome.err
    assert notes(outcome) == [
        "2 of 8 tensors taken from run: layers.1.weight, layers.1.bias",
        "not taken, as their shapes differ: layers.3.weight (10×32 here, 16×32 there), layers.3.bias (10 here, 16 "
        "there), layers.5.weight (8×10 here, 10×16 there), layers.5.bias (8 here, 10 there)",
        "not taken, as run lacks them: layers.7.weight (10×8), layers.7.bias (10)",
    ]
    back = dlrun(*QUICK, f"init_from={outcome.folder}/checkpoints/last.pt", "model.hidden_sizes=[32,16]")
    assert notes(back)[2] == "not taken, as this model has none such: layers.7.weight (10×8), layers.7.bias (10)"
    assert [note for note in back.result["warnings"] if "taken" in note] == notes(back)


@pytest.mark.slow
def test_all_of_it_is_said_in_one_line(dlrun: Callable[..., Any]) -> None:
    first = dlrun(*QUICK, "hydra.run.dir=run", "model.hidden_sizes=[16]")
    assert first.code == 0
    outcome = dlrun(*QUICK, "init_from=run", "model.hidden_sizes=[16]", "hydra.run.dir=next")
    assert len(notes(outcome)) == 1
    assert notes(outcome)[0].startswith("4 of 4 tensors taken from run: layers.1.weight, ")
    started = Path("next/fingerprints.jsonl").read_text().splitlines()[0]
    ended = Path("run/fingerprints.jsonl").read_text().splitlines()[-1]
    assert re.findall("[0-9a-f]{64}", started) == re.findall("[0-9a-f]{64}", ended)


@pytest.mark.slow
def test_nothing_that_fits_is_refused_with_both_sides(dlrun: Callable[..., Any]) -> None:
    dlrun(*QUICK, "model.hidden_sizes=[16]", "hydra.run.dir=run")
    refused = dlrun("data=blobs", "init_from=run", "model.hidden_sizes=[3]")
    assert refused.code == 2
    assert "none of its weights fit this model; here layers.0.weight (3×2), " in refused.err
    assert "there layers.1.weight (16×784), " in refused.err
    assert not list(Path().glob("outputs/*"))


def test_many_names_become_the_parts_of_the_net() -> None:
    keys = [f"net.layer{i}.{j}.conv{k}.weight" for i in (1, 2) for j in range(2) for k in (1, 2)] + ["net.fc.bias"]
    assert format_names(keys) == "net.layer1.0 (2), net.layer1.1 (2), net.layer2.0 (2), net.layer2.1 (2), net.fc (1)"
    many = [f"net.layer{i}.{j}.weight" for i in range(4) for j in range(9)]
    assert format_names(many) == "net.layer0 (9), net.layer1 (9), net.layer2 (9), net.layer3 (9)"
    wide = [f"part{i}.weight" for i in range(40)]
    assert format_names(wide).endswith(" and 34 more")
    assert format_shapes({"a": torch.zeros(()), "b": torch.zeros(2, 3)}, ["a", "b"]) == "a (scalar), b (2×3)"


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_transfer_from_a_file_of_weights(dlrun: Callable[..., Any]) -> None:
    from torchvision import models

    source = models.resnet18()
    torch.save(source.state_dict(), "resnet18.pth")
    words = ("model=torchvision", "model.name=resnet18", "data.image_size=32", "data.train_rows=64")
    words += ("model.freeze=backbone", "tracking.graph=false", "figures=false", "data=digits")
    outcome = dlrun(*words, "model.weights=resnet18.pth", "trainer.epochs=2", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert "parameters, of which 5,130 are trained" in outcome.out
    held = torch.load("run/checkpoints/last.pt", weights_only=True)["model"]
    trained = source.state_dict()
    same = [key for key in trained if torch.equal(held.get(f"net.{key}", torch.zeros(0)), trained[key])]
    assert set(trained) - set(same) == {"fc.weight", "fc.bias", "conv1.weight"}  # gray images: the mean filter
    Path("resnet18.pth").unlink()
    evaluated = dlrun("eval", "run", "figures=false")  # its own weights are all that this takes
    assert evaluated.code == 0, evaluated.err
    assert dlrun(*words, "model.weights=resnet18.pth").code == 2
    assert notes(dlrun("check", *words))[0].startswith("model.freeze: what is frozen has random weights; init_from=")
    misspelt = dlrun("check", *words, "model.freeze=backbne")
    assert "nothing in the model matches 'backbne'; did you mean backbone?" in misspelt.err
    onwards = dlrun(*words, "init_from=run", "trainer.epochs=1")
    assert notes(onwards)[0].startswith(f"{len(trained)} of {len(trained)} tensors taken from run: ")


@pytest.mark.slow
def test_a_download_that_fails_is_a_sentence(dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(Path.cwd()))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody answers there
    outcome = dlrun(
        "data=digits", "data.image_size=32", "model=torchvision", "model.weights=DEFAULT", "model.freeze=backbone"
    )
    assert outcome.code == 2
    assert "model.weights=IMAGENET1K_V1 of resnet18 cannot be loaded (" in outcome.err
    assert "type model.weights=null, or put https://" in outcome.err
    assert outcome.err.count("dlrun: ") == 1
    assert not Path("outputs").exists()


NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.BatchNorm1d(8))
        self.fc = nn.Linear(8, spec.output_size)

    def forward(self, x):
        return self.fc(self.backbone(x))
"""
BLOBS = ("data=blobs", "trainer.epochs=1", "tracking.graph=false", "figures=false", "model._target_=mynet.Net")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A trained net as another project would hold it, with another head; mynet.Net is in the working directory."""
    (tmp_path / "mynet.py").write_text(NET)
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    torch.manual_seed(0)
    net = nn.Sequential()
    net.backbone = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.BatchNorm1d(8))
    net.fc = nn.Linear(8, 5)
    return net


def wrap(state: dict[str, Tensor], before: str) -> dict[str, Tensor]:
    return {before + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "kind",
    [
        "data_parallel",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("plain", "lightning", "compiled", "nested")),
        pytest.param("safetensors", marks=pytest.mark.slow),
    ],
)
def test_files_of_other_projects_are_read_as_they_are(kind: str, dlrun: Callable[..., Any], source: nn.Module) -> None:
    state = source.state_dict()
    file = "weights.pth"
    match kind:
        case "plain":
            torch.save(state, file)
        case "data_parallel":
            torch.save({"model": wrap(state, "module."), "optimizer": {"lr": 0.1}, "epoch": 3}, file)
        case "lightning":
            torch.save({"state_dict": wrap(state, "model."), "pytorch-lightning_version": "2.6"}, file)
        case "compiled":
            torch.save({"model_state_dict": wrap(state, "_orig_mod.")}, file)
        case "nested":
            torch.save({"model": {"state_dict": wrap(state, "net.")}}, file)
        case "safetensors":
            file = "weights.safetensors"
            save_file(state, file)
    outcome = dlrun(*BLOBS, f"init_from={file}", "model.freeze=backbone", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert notes(outcome)[:2] == [
        f"7 of 9 tensors taken from {file}: backbone.0 (2), backbone.2 (5)",
        "not taken, as their shapes differ: fc.weight (2×8 here, 5×8 there), fc.bias (2 here, 5 there)",
    ]
    model = checkpoint.load(Path("run/checkpoints/last.pt"))["model"]
    assert all(torch.equal(model[key], value) for key, value in state.items() if key.startswith("backbone."))


@pytest.mark.slow
def test_names_are_mapped_and_what_is_left_is_told(dlrun: Callable[..., Any], source: nn.Module) -> None:
    state = source.state_dict()
    torch.save(wrap(state, "encoder.trunk.") | {"decoder.weight": torch.zeros(3)}, "other.pth")
    words = (*BLOBS, "init_from=other.pth")
    outcome = dlrun(*words, 'init_map={encoder.trunk.: "", encoder.trunk.fc: null, decoder: null}', "hydra.run.dir=run")
    assert notes(outcome)[:3] == [
        "7 of 9 tensors taken from other.pth: backbone.0 (2), backbone.2 (5)",
        "not taken, as other.pth lacks them: fc.weight (2×8), fc.bias (2)",
        "not taken, as init_map leaves them out: encoder.trunk.fc.weight, encoder.trunk.fc.bias, decoder.weight",
    ]
    again = dlrun(*words, "init_map={encoder.trunk: null, decoder: fc}", "model.freeze=backbone")
    assert again.code == 2
    assert "none of its weights fit this model; here backbone" in again.err
    part = dlrun(*words, "init_map={encoder.trunk.backbone.0: backbone.0}", "model.freeze=backbone")
    assert (
        "model.freeze: frozen with random weights, as they were not taken: backbone.2.weight, backbone.2.bias"
    ) in notes(part)

    # A run that went on has its weights from a checkpoint, and says the same of its words.
    resumed = dlrun("resume", "run", "trainer.epochs=2", "trusted_modules=[mynet]")
    assert resumed.code == 0, resumed.err
    assert "init_map has no effect" not in resumed.out
    assert "init_map has no effect here: it is for init_from=" in dlrun(*BLOBS, "init_map={a: b}").out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("init_from=net.pth",),
            "init_from=net.pth holds torch.nn.modules.container.Sequential besides tensors, and ope",
        ),
        (("init_from=args.pth",), "init_from=args.pth holds argparse.Namespace besides tensors, and opening that can"),
        (("init_from=list.pth",), "init_from=list.pth holds no weights by name"),
        (("init_from=junk.safetensors",), "init_from=junk.safetensors cannot be loaded ("),
        (
            ("init_from=good.pth", "init_map={backbon: a}"),
            "init_map.backbon: no name in init_from begins so; did you m",
        ),
        (("init_from=good.pth", "init_map={fc: 3}"), "init_map.fc=3 must be another prefix, or null"),
        (("init_from=good.pth", "init_map={backbone.0: a, backbone.2: a}"), "gives two tensors the name a.weight"),
    ],
)
def test_files_that_cannot_be_used_are_sentences(
    words: tuple[str, ...], sentence: str, dlrun: Callable[..., Any], source: nn.Module
) -> None:
    torch.save(source, "net.pth")
    torch.save({"model": source.state_dict(), "args": argparse.Namespace(lr=1)}, "args.pth")
    torch.save([1, 2], "list.pth")
    torch.save(source.state_dict(), "good.pth")
    Path("junk.safetensors").write_bytes(b"junk")
    refused = dlrun(*BLOBS, *words)
    assert refused.code == 2
    assert sentence in refused.err
    assert refused.err.count("dlrun: ") == 1
    assert not Path("outputs").exists()


@pytest.mark.slow
def test_two_stages_first_the_head_then_all_of_it(dlrun: Callable[..., Any], source: nn.Module) -> None:
    """The recipe of the docs: the second run begins where the first one ended, and trains what was frozen."""
    torch.save(source.state_dict(), "weights.pth")
    first = dlrun(*BLOBS, "init_from=weights.pth", "model.freeze=backbone", "hydra.run.dir=head")
    assert first.code == 0, first.err
    second = dlrun(
        *("rerun", "head", "init_from=head", "model.freeze=null", "optimizer.lr=0.0001", "trainer.epochs=2"),
        *("hydra.run.dir=all", "trusted_modules=[mynet]"),
    )
    assert second.code == 0, second.err
    assert notes(second)[0].startswith("9 of 9 tensors taken from head: ")
    head, everything = (checkpoint.load(Path(run) / "checkpoints" / "last.pt")["model"] for run in ("head", "all"))
    started = Path("all/fingerprints.jsonl").read_text().splitlines()[0]
    ended = Path("head/fingerprints.jsonl").read_text().splitlines()[-1]
    assert re.findall("[0-9a-f]{64}", started) == re.findall("[0-9a-f]{64}", ended)
    loaded = source.state_dict()
    for key in loaded:
        assert torch.equal(head[key], loaded[key]) == key.startswith("backbone."), key
        assert not torch.equal(everything[key], head[key]), key
