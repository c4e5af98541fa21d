"""A run that was killed at any moment and resumed is, to the last bit, the run that was never killed.

A killed process leaves what lies in its folder at that moment: the tests copy the folder of a run while it trains,
at chosen moments, resume each copy, and compare it with the run itself.
"""

import contextlib
import json
import random
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.optim import SGD

from dlrun.data.batches import EpochOrder, MemoryBatches, Placement
from dlrun.data.spec import DataSpec, Split
from dlrun.engine.objective import Objective
from dlrun.engine.optim.schedule import Schedule
from dlrun.engine.state import Progress, StopRules, TrainState
from dlrun.engine.trainer import Trainer
from dlrun.runs.checkpoint import load
from dlrun.runs.checkpoint_manager import CheckpointManager
from dlrun.runs.logger import RunLogger

QUIET = ("tracking.graph=false", "figures=false", "trainer.log_every_steps=2", "checkpoint.every_steps=1")
DIGITS = ("data=digits", "data.limit_batches=4", "trainer.epochs=3")
TIMED = ("train_seconds", "samples_per_second")
BATCH_NORM = "model.layers=[Flatten,{Linear:[in,8]},{BatchNorm1d:8},ReLU,{Dropout:0.3},{Linear:[8,out]}]"
IMAGES = ("data=image_folder", "data.path=photos", "data.image_size=8", "data.batch_size=5", "trainer.epochs=3")
RUNS: dict[str, tuple[str, ...]] = {
    "mlp": (*DIGITS, "model.dropout=0.3", "optimizer=momentum"),
    "cnn": (*DIGITS, "data.limit_batches=2", "model=cnn", "optimizer=momentum", "scheduler=one_cycle"),
    "gru": (
        *("data=names", "paths.data=data", "model=gru", "model.embedding_size=4", "model.hidden_size=4"),
        *("model.dropout=0.2", "trainer.accumulate_steps=2", "trainer.grad_clip_norm=0.5", "trainer.epochs=3"),
        *("data.batch_size=16", "data.val_fraction=0.2"),
    ),
    "early_stopping": (
        *DIGITS,
        "optimizer=sgd",
        "optimizer.lr=9",
        "trainer.epochs=9",
        "trainer.early_stopping.patience=1",
    ),
    "plateau": (*DIGITS, "scheduler=plateau", "scheduler.patience=0", "scheduler.threshold=0.3", "trainer.epochs=5"),
    "lbfgs": ("data=regression", "model=linear", "optimizer=lbfgs", "data.batch_size=25", "trainer.epochs=3"),
    "exhaustive": (
        *("data=three_points", "model=linear", "optimizer=exhaustive", "data.batch_size=3", "trainer.epochs=4"),
        *("model.bias=false", "optimizer.refine=4", "figures=true"),
    ),
    "batch_norm": (*DIGITS, "model=sequential", BATCH_NORM, "data.loader=workers", "data.num_workers=0"),
    "frozen": (
        *(*DIGITS, "model=sequential", BATCH_NORM, "model.freeze=['layers.[12]*']", "trainer.ema_decay=0.8"),
        *("optimizer=momentum", "optimizer.groups=[{match:'*.bias',lr:0.1}]", "trainer.grad_clip_norm=0.5"),
    ),
    "balanced": (*DIGITS, "data.sampler=balanced", "data.drop_last=true"),
    "max_steps": (*DIGITS, "trainer.max_steps=6", "checkpoint.keep=1"),
    "rare_saves": (*DIGITS, "checkpoint.every_steps=null", "checkpoint.every_epochs=2", "trainer.epochs=5"),
    "pictures": (
        *("data=blobs", "trainer.epochs=3", "figures=true", "tracking.graph=true", "checkpoint.format=full"),
        *("tracking.evolution_every_epochs=1", "tracking.weight_histograms=true"),
    ),
    "tags": ("data=hello", "model=rnn", "trainer.epochs=4", "probes=[hello]"),
    "workers": (*IMAGES, "data.augment=[RandomHorizontalFlip]", "data.loader=workers", "data.num_workers=2"),
    "mixed": (*IMAGES, "data.augment=[TrivialAugmentWide,MixUp,CutMix]", "data.sampler=balanced", "data.num_workers=0"),
    "mixed_in_memory": (*IMAGES, "data.augment=[MixUp]", "trainer.accumulate_steps=2"),
    "own_workers": ("data._target_=noisy.make", "data.loader=workers", "data.num_workers=2", "trainer.epochs=3"),
}
OWN_DATA = """
import random
import numpy, torch
from torch.utils.data import Dataset
from dlrun.data.spec import DataSpec, Split, Splits

class Noisy(Dataset):
    def __len__(self):
        return 300
    def __getitem__(self, row):
        noise = torch.rand(2) + random.random() + numpy.random.rand()
        return (noise + row / 300).float(), torch.tensor([row / 300])

def make():
    return Splits(Noisy(), None, None, DataSpec("vector", (2,), "regression", 1))
"""


@pytest.fixture
def data(tmp_path: Path, formats: ModuleType) -> None:
    """The files that the runs above read."""
    draw = random.Random(0)
    (tmp_path / "data").mkdir()
    (tmp_path / "noisy.py").write_text(OWN_DATA)
    for part, rows in (("train", 120), ("test", 20)):
        names = ("".join(draw.choice("aeioubcd") for _ in range(draw.randint(2, 7))) for _ in range(rows))
        lines = [f'"{name.title()}","{"Vowelia" if name[0] in "aeiou" else "Consonia"}"' for name in names]
        (tmp_path / "data" / f"names_{part}.csv").write_text("\n".join(lines) + "\n")
    formats.write_folder(tmp_path / "photos", {"cats": 12, "dogs": 13})


def copy_folder(folder: Path, target: Path) -> None:
    """Every file, and names of one file as names of one file."""
    known: dict[int, Path] = {}

    def copy(file: str, to: str) -> None:
        first = known.setdefault(Path(file).stat().st_ino, Path(to))
        if first == Path(to):
            shutil.copyfile(file, to)
        else:
            Path(to).hardlink_to(first)

    shutil.copytree(folder, target, copy_function=copy)


def copies(monkeypatch: pytest.MonkeyPatch, run: Path, target: Path) -> dict[str, list[Path]]:
    """Copies of a run's folder, by moment: before and after every rename of a file, and every row and step logged."""
    folders: dict[str, list[Path]] = {}
    # The training and the thread that writes checkpoints come here.
    lock = threading.Lock()

    def copy(moment: str) -> None:
        with lock:
            while any((run / "checkpoints").glob("*.pt")):
                place = target / f"{sum(map(len, folders.values()))}"
                try:
                    copy_folder(run, place)
                except (shutil.Error, FileNotFoundError):
                    # The other one has removed a file meanwhile.
                    shutil.rmtree(place)
                    continue
                folders.setdefault(moment, []).append(place)
                return

    def wrap(owner: Any, name: str, label: Callable[..., str]) -> None:
        real = getattr(owner, name)

        def method(*given: Any) -> Any:
            label_text = label(*given)
            copy(f"before {label_text}")
            result = real(*given)
            copy(f"after {label_text}")
            return result

        monkeypatch.setattr(owner, name, method)

    wrap(Path, "replace", lambda file, to: re.sub(r"\d+", "N", Path(to).name))
    wrap(RunLogger, "log_step", lambda *_: "a step's values")
    wrap(RunLogger, "log_epoch", lambda *_: "an epoch's row")
    return folders


def read_results(folder: Path) -> dict[str, Any]:
    """All of a run that does not tell the time."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0, "histograms": 0})
    tags = events.Reload().Tags()
    result = json.loads((folder / "result.json").read_text())
    best = load(folder / "checkpoints" / "best.pt")
    return {
        "result": {k: v for k, v in result.items() if k not in TIMED},
        "rows": (folder / "metrics.jsonl").read_bytes(),
        "best": {k: v.tolist() for k, v in best["model"].items()} | {"step": best["step"]},
        "files": sorted(p.name for p in (folder / "checkpoints").iterdir()),
        "scalars": {
            tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"] if "time/" not in tag
        },
        # TensorBoard shows the later of two texts of a step; this older reader of its purges scalars and images alone
        "texts": {tag: {e.step: e.tensor_proto for e in events.Tensors(tag)} for tag in tags["tensors"]},
        "images": {tag: [(e.step, e.encoded_image_string) for e in events.Images(tag)] for tag in tags["images"]},
        "histograms": {tag: [e.step for e in events.Histograms(tag)] for tag in tags["histograms"]},
        "pictures": {p.name: p.read_bytes() for p in folder.glob("figures/**/*.*")},
    }


def check(dlrun: Callable[..., Any], tmp_path: Path, words: tuple[str, ...], most: int, *first: str) -> None:
    """Run once, and resume what a kill at `most` moments (`first`, and others by chance) would have left."""
    trust = ("trusted_modules=[noisy]",) if "noisy" in " ".join(words) else ()
    with pytest.MonkeyPatch.context() as patch:
        folders = copies(patch, Path("whole"), tmp_path / "killed")
        assert dlrun(*QUIET, *words, "hydra.run.dir=whole").code == 0
    reference = read_results(tmp_path / "whole")
    draw = random.Random(len(folders))
    moments = [*first, *draw.sample(sorted(set(folders) - set(first)), max(0, min(most - len(first), len(folders))))]
    for moment in moments:
        killed = draw.choice(folders[moment])
        outcome = dlrun("resume", str(killed), *trust)
        assert outcome.code == 0, outcome.err
        left = read_results(killed)
        assert {k: left[k] for k in reference if left[k] != reference[k]} == {}, f"killed {moment}: {killed}"


@pytest.mark.parametrize(
    ("name", "moments"),
    [
        ("mlp", ["before last.pt"]),
        pytest.param("max_steps", ["after best_before.pt"], marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("data")
def test_a_killed_run_ends_as_the_run_itself(
    dlrun: Callable[..., Any], tmp_path: Path, name: str, moments: list[str]
) -> None:
    check(dlrun, tmp_path, RUNS[name], len(moments), *moments)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("data")
def test_every_kind_of_run_that_is_killed_ends_as_the_run_itself(
    dlrun: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    check(dlrun, tmp_path, RUNS[name], 3, "before last.pt", "before result.json")


def small(step: int, best_epoch: int | None) -> TrainState:
    """A run of four steps an epoch that stands after `step` of them, in the middle of its second epoch if that is 6."""
    spec, model = DataSpec("vector", (2,), "regression", 1), nn.Linear(2, 1)
    train = MemoryBatches(
        Split((torch.ones(16, 2),), torch.ones(16, 1)),
        EpochOrder(16, 4),
        Placement(torch.device("cpu"), torch.float32, spec),
    )
    optimizer, scaler = SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", enabled=False)
    state = TrainState(
        *(model, Objective(spec), optimizer, Schedule(optimizer, None), scaler, train, None, StopRules(max_steps=6)),
        *("train/loss", "min", contextlib.nullcontext, lambda: None),
    )
    state.progress = Progress(epoch=step // 4, batch=step % 4, step=step, best_epoch=best_epoch)
    return state


def train_past_best(state: TrainState) -> Trainer:
    trainer = Trainer(state, [], lambda: False)
    trainer.is_best = True
    return trainer


@pytest.mark.parametrize("best_epoch", [1, None])
def test_the_best_of_half_an_epoch_counts_no_more_when_it_goes_on(tmp_path: Path, best_epoch: int | None) -> None:
    saver = CheckpointManager(tmp_path / "checkpoints", {"run_id": "r"}, 1, None, 2)
    best, row = tmp_path / "checkpoints/best.pt", {"epoch": 1, "step": 4, "train/loss": 1.0}
    first, half = small(4, best_epoch), small(6, best_epoch)
    if best_epoch is None:
        half.progress.epoch = 0
    else:
        saver.on_epoch_end(train_past_best(first), row)
    saver.on_interrupt(train_past_best(half))
    saver.on_epoch_end(train_past_best(half), row | {"epoch": 2, "step": 6})
    saver.wait()
    assert torch.equal(load(best)["model"]["weight"], half.model.state_dict()["weight"])
    state = load(tmp_path / "checkpoints/last.pt")
    assert (state["step"], state["progress"]["batch"]) == (6, 2)
    for name in ("step_00000002.pt", "step_00000003.pt", "step_00000008.pt"):  # of a kill before they were forgotten
        shutil.copy(tmp_path / "checkpoints/last.pt", tmp_path / "checkpoints" / name)
    later = CheckpointManager(tmp_path / "checkpoints", {"run_id": "r"}, 1, None, 2)
    later.restore(state)
    if best_epoch is None:
        assert not best.exists()
    else:
        assert torch.equal(load(best)["model"]["weight"], first.model.state_dict()["weight"])
        assert later.row == row
    expected_files = {"last.pt", "step_00000006.pt"} | (
        {"best.pt", "step_00000004.pt"} if best_epoch else {"step_00000003.pt"}
    )
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} >= expected_files
    assert not (tmp_path / "checkpoints/best_before.pt").exists()
    assert not (tmp_path / "checkpoints/step_00000002.pt").exists()
    if best_epoch is not None:  # of a kill between the two
        (tmp_path / "checkpoints/best_before.pt").hardlink_to(best)
        later.restore(state)
        assert not (tmp_path / "checkpoints/best_before.pt").exists()
    assert not (tmp_path / "checkpoints/step_00000008.pt").exists()
