"""`init_from` and frozen backbones: what is taken over from another run, and what is said of the rest."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrun.experiment.builder.transfer import format_names, format_shapes

QUICK = ("data=digits", "trainer.epochs=1", "tracking.graph=false", "figures=false")


def notes(done: Any) -> list[str]:
    return [line.removeprefix("note: ") for line in done.out.splitlines() if line.startswith("note: ")]


def test_what_matches_and_what_does_not_is_listed_with_shapes(dlrun: Callable[..., Any]) -> None:
    dlrun(*QUICK, "model.hidden_sizes=[32,16]", "hydra.run.dir=run")
    done = dlrun(*QUICK, "init_from=run", "model.hidden_sizes=[32,10,8]")
    assert done.code == 0, done.err
    assert notes(done) == [
        "2 of 8 tensors taken from run: layers.1.weight, layers.1.bias",
        "not taken, as their shapes differ: layers.3.weight (10×32 here, 16×32 there), layers.3.bias (10 here, 16 "
        "there), layers.5.weight (8×10 here, 10×16 there), layers.5.bias (8 here, 10 there)",
        "not taken, as run lacks them: layers.7.weight (10×8), layers.7.bias (10)",
    ]
    back = dlrun(*QUICK, f"init_from={done.folder}/checkpoints/last.pt", "model.hidden_sizes=[32,16]")
    assert notes(back)[2] == "not taken, as this model has none such: layers.7.weight (10×8), layers.7.bias (10)"
    assert [note for note in back.result["warnings"] if "taken" in note] == notes(back)


@pytest.mark.slow
def test_all_of_it_is_said_in_one_line(dlrun: Callable[..., Any]) -> None:
    first = dlrun(*QUICK, "hydra.run.dir=run", "model.hidden_sizes=[16]")
    assert first.code == 0
    done = dlrun(*QUICK, "init_from=run", "model.hidden_sizes=[16]", "hydra.run.dir=next")
    assert len(notes(done)) == 1
    assert notes(done)[0].startswith("4 of 4 tensors taken from run: layers.1.weight, ")
    started = Path("next/fingerprints.jsonl").read_text().splitlines()[0]
    ended = Path("run/fingerprints.jsonl").read_text().splitlines()[-1]
    assert re.findall("[0-9a-f]{64}", started) == re.findall("[0-9a-f]{64}", ended)


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
def test_transfer_from_a_file_of_weights(dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    source = models.resnet18()
    torch.save(source.state_dict(), "resnet18.pth")
    words = ("model=torchvision", "model.name=resnet18", "data.image_size=32", "data.train_rows=64")
    words += ("model.freeze=backbone", "tracking.graph=false", "figures=false", "data=digits")
    done = dlrun(*words, "model.weights=resnet18.pth", "trainer.epochs=2", "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert "parameters, of which 5,130 are trained" in done.out
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
    assert notes(onwards)[0].startswith("122 of 122 tensors taken from run: ")


@pytest.mark.slow
def test_a_download_that_fails_is_a_sentence(dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(Path.cwd()))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody answers there
    done = dlrun(
        "data=digits", "data.image_size=32", "model=torchvision", "model.weights=DEFAULT", "model.freeze=backbone"
    )
    assert done.code == 2
    assert "model.weights=IMAGENET1K_V1 of resnet18 cannot be loaded (" in done.err
    assert "type model.weights=null, or put https://" in done.err
    assert done.err.count("dlrun: ") == 1
    assert not Path("outputs").exists()
