"""The best run of a sweep is drawn at its end, exactly as a run alone draws itself; the other jobs only train."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dlrun.config.request import from_command_line
from dlrun.config.settings import read_settings
from dlrun.runs.record import END_SUFFIX

WORDS = ("data=blobs", "model=mlp", "data.val_fraction=0.2", "trainer.epochs=2", "optimizer.lr=0.05")
# Raises after as many training steps as the file `limit` says.
NET = """
from pathlib import Path
from torch import nn

class Net(nn.Module):
    def __init__(self, spec, width: int = 2):
        super().__init__()
        self.layer, self.steps = nn.Linear(spec.input_size, spec.output_size), 0

    def forward(self, x):
        self.steps += self.training
        if self.steps > int(Path("limit").read_text()):
            raise ValueError("broken on purpose")
        return self.layer(x)
"""


@pytest.mark.parametrize("is_alone", [True, False])
@pytest.mark.parametrize("word", ["", "figures=true", "figures=false", "tracking.graph=true", "tracking.graph=false"])
def test_only_what_the_config_leaves_open_is_decided(word: str, is_alone: bool) -> None:
    (request,) = from_command_line(["data=line", *([word] if word else [])])
    settings = read_settings(request.config, request.choices).decide_pictures(is_alone)
    value = word.endswith("true")
    assert settings.figures is (value if word.startswith("figures") else is_alone)
    assert settings.tracking.graph is (value if word.startswith("tracking") else is_alone)


def read_events(folder: Path, suffix: str = "") -> EventAccumulator:
    """The events of a run, or those of its file with a suffix."""
    files = sorted(folder.glob(f"events.out.tfevents.*{suffix}"))
    events = EventAccumulator(str(files[-1] if suffix else folder), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    return events


def list_pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "figures").glob("*.png")}


@pytest.mark.slow
@pytest.mark.usefixtures("comparison_without_pictures")
def test_the_best_run_is_drawn_as_if_it_had_trained_alone(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    outcome = dlrun("-m", *WORDS, "seed=0,1", "sweep.dir=s")
    assert outcome.code == 0, outcome.err
    folders = sorted((tmp_path / "s").glob("*/result.json"))
    values = [json.loads(path.read_text())["best"]["value"] for path in folders]
    best, other = (path.parent for path in sorted(folders, key=lambda path: values[folders.index(path)]))

    # The other one has paid for no picture, graph or page.
    assert not (other / "figures").exists()
    assert not (other / "report.html").exists()
    assert not read_events(other).Tags()["images"]
    assert not read_events(other).Tags()["graph"]

    alone = dlrun(*WORDS, f"seed={best.name[-1]}", "hydra.run.dir=alone")
    assert alone.code == 0, alone.err
    pictures = list_pictures(tmp_path / "alone")
    assert {"loss.png", "confusion.png", "decision.png"} <= pictures.keys()
    assert list_pictures(best) == pictures

    events, expected = read_events(best), read_events(tmp_path / "alone")
    assert events.Tags()["images"] == expected.Tags()["images"]
    assert events.Tags()["tensors"] == expected.Tags()["tensors"]  # with the precision-recall curves
    assert events.Graph() == expected.Graph()
    assert f"best run  {best.relative_to(tmp_path)}/report.html" in outcome.out
    assert (best / "report.html").read_text().count("<img") == len(pictures)

    # A longer training drops them, as it drops a run's own end.
    assert read_events(best, END_SUFFIX).Tags()["images"]
    assert dlrun("resume", str(best), "trainer.epochs=3", "figures=false").code == 0
    assert not read_events(best).Tags()["images"]


@pytest.mark.slow
@pytest.mark.usefixtures("comparison_without_pictures")
def test_a_request_for_pictures_or_against_them_counts_for_every_job(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "drawn.yaml").write_text("# @package _global_\nfigures: true\n")
    tiny = ("data=line", "model=linear", "optimizer=sgd", "trainer.epochs=1", "seed=0,1")
    assert dlrun("-m", *tiny, "experiment=drawn", "--config-dir", "mine", "sweep.dir=asked").code == 0
    assert len(list(tmp_path.glob("asked/*/figures/fit.png"))) == 2
    assert len(list(tmp_path.glob("asked/*/report.html"))) == 2

    assert dlrun("-m", *tiny, "figures=false", "sweep.dir=refused").code == 0
    assert not list(tmp_path.glob("refused/*/report.html"))
    assert not list(tmp_path.glob("refused/*/figures"))


@pytest.mark.slow
@pytest.mark.usefixtures("comparison_without_pictures")
def test_a_failed_run_shows_its_losses_and_a_best_run_that_cannot_be_drawn_costs_no_sweep(
    dlrun: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "breaking.py").write_text(NET)
    (tmp_path / "limit").write_text("50")
    words = ("data=blobs", "trainer.epochs=3", "data.batch_size=10", "model._target_=breaking.Net")
    # 20 steps an epoch: the training breaks in epoch 3, where there is one.
    outcome = dlrun("-m", *words, "trainer.epochs=3,1", "sweep.dir=s")
    assert outcome.code == 1
    failed, finished = sorted((tmp_path / "s").glob("[01]_*"))
    assert set(list_pictures(failed)) == {"loss.png"}
    assert (finished / "report.html").is_file()

    (tmp_path / "s" / "report.html").unlink()
    (finished / "report.html").unlink()
    for file in (finished / "checkpoints").iterdir():
        file.write_bytes(b"")
    (tmp_path / "limit").write_text("10")
    outcome = dlrun("resume", "s", "trusted_modules=[breaking]")
    assert outcome.code == 1
    assert "note: the best run could not be drawn (" in outcome.out
    assert "its pictures: dlrun eval s/1_" in outcome.out
    assert (tmp_path / "s" / "report.html").is_file()
