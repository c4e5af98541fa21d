"""Which of a run's checkpoints are kept, which are best and last, and which one is resumed from."""

import contextlib
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlrun.core.errors import CheckpointError, RunError, UnreadableError
from dlrun.core.files import DiskProblems
from dlrun.data.batches import EpochOrder, MemoryBatches, Placement
from dlrun.data.spec import DataSpec, Split
from dlrun.engine.objective import Objective
from dlrun.engine.optim.schedule import Schedule
from dlrun.engine.state import StopRules, TrainState
from dlrun.engine.trainer import Trainer
from dlrun.runs import checkpoint, checkpoint_manager
from dlrun.runs.checkpoint import load, save
from dlrun.runs.checkpoint_manager import CheckpointManager


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of microseconds are saved as those of seconds are."""
    monkeypatch.setattr(checkpoint_manager, "_LONGEST_REST", 0.0)


STATE = {"format_version": 1, "model": {}, "optimizer": {}}


def training(**limits: Any) -> TrainState:
    """Four steps an epoch; the validation loss of a model that is not trained is the same every epoch."""
    torch.manual_seed(0)
    spec, model = DataSpec("vector", (2,), "regression", 1), nn.Linear(2, 1)
    split = Split((torch.randn(16, 2),), torch.randn(16, 1))
    order = EpochOrder(16, 4, shuffle=True)
    train = MemoryBatches(split, order, Placement(torch.device("cpu"), torch.float32, spec))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    schedule, ends = Schedule(optimizer, None), StopRules(**{"epochs": 5} | limits)
    nothing = contextlib.nullcontext
    return TrainState(
        model,
        Objective(spec),
        optimizer,
        schedule,
        scaler,
        train,
        None,
        ends,
        "train/loss",
        "min",
        nothing,
        lambda: None,
    )


def make_manager(
    folder: Path,
    stop_at: int = 10**6,
    every_epochs: int = 1,
    every_steps: int | None = None,
    keep: int = 2,
    **limits: Any,
) -> TrainState:
    t = training(**limits)
    saver = CheckpointManager(folder / "checkpoints", {"run_id": "r", "spec": {}}, every_epochs, every_steps, keep)
    Trainer(t, [saver], lambda: t.progress.step >= stop_at).fit()
    return t


def end_epoch(saver: CheckpointManager, t: TrainState, epoch: int, is_best: bool) -> None:
    trainer = Trainer(t, [], lambda: False)
    trainer.is_best = is_best
    saver.on_epoch_end(trainer, {"epoch": epoch, "step": 4 * epoch, "train/loss": 1.0})
    saver.wait()


def steps(folder: Path) -> list[int]:
    return sorted(int(file.stem.removeprefix("step_")) for file in (folder / "checkpoints").glob("step_*.pt"))


@pytest.mark.parametrize(
    ("settings", "files"),
    [
        ({"keep": 2}, [16, 20]),
        ({"keep": 1}, [20]),
        ({"keep": 9}, [4, 8, 12, 16, 20]),
        ({"keep": 9, "every_epochs": 2}, [8, 16, 20]),
        ({"keep": 9, "every_steps": 3, "epochs": 2}, [3, 4, 6, 8]),
        ({"keep": 9, "every_steps": 2, "stop_at": 7}, [2, 4, 6, 7]),
    ],
)
def test_the_newest_files_stay(settings: dict[str, Any], files: list[int], tmp_path: Path) -> None:
    make_manager(tmp_path, **settings)
    assert steps(tmp_path) == files
    folder = tmp_path / "checkpoints"
    assert (folder / "last.pt").samefile(folder / f"step_{files[-1]:08d}.pt")
    assert not list(folder.glob(".*"))


def test_the_best_stays_besides_the_newest(tmp_path: Path) -> None:
    t = training()
    saver = CheckpointManager(tmp_path / "checkpoints", {"run_id": "r"}, 1, None, 2)
    weights: dict[int, Tensor] = {}
    for epoch in range(1, 6):
        t.progress.epoch, t.progress.step = epoch, 4 * epoch
        with torch.no_grad():
            t.model.state_dict()["weight"].fill_(epoch)
        weights[epoch] = t.model.state_dict()["weight"].clone()
        end_epoch(saver, t, epoch, is_best=epoch in (1, 2))
    folder = tmp_path / "checkpoints"
    assert steps(tmp_path) == [8, 16, 20]
    assert (folder / "best.pt").samefile(folder / "step_00000008.pt")
    best, last = load(folder / "best.pt"), load(folder / "last.pt")
    assert (best["epoch"], best["step"], best["metrics"]["epoch"]) == (2, 8, 2)
    assert torch.equal(best["model"]["weight"], weights[2])
    assert torch.equal(last["model"]["weight"], weights[5])
    assert {"optimizer", "scheduler", "scaler", "rng", "progress", "totals"} <= last.keys()
    assert all(link.stat().st_nlink == 2 for link in (folder / "best.pt", folder / "last.pt"))


@pytest.mark.parametrize("stop_at", [4, 6, 12])
def test_a_stopped_run_is_saved_where_it_stands(stop_at: int, tmp_path: Path) -> None:
    t = make_manager(tmp_path, stop_at=stop_at, every_epochs=100)
    state = load(tmp_path / "checkpoints" / "last.pt")
    assert (state["step"], state["epoch"]) == (stop_at, stop_at // 4)
    assert torch.equal(state["model"]["weight"], t.model.state_dict()["weight"])
    best = load(tmp_path / "checkpoints" / "best.pt") if stop_at >= 4 else None
    assert best is None or best["epoch"] == t.progress.best_epoch


def test_where_there_are_no_hard_links_there_are_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    make_manager(tmp_path)
    folder = tmp_path / "checkpoints"
    assert (folder / "last.pt").read_bytes() == (folder / "step_00000020.pt").read_bytes()


def save_at(saver: CheckpointManager, t: TrainState, epoch: int, is_best: bool) -> None:
    t.progress.epoch, t.progress.step = epoch, 4 * epoch
    t.progress.best_epoch = epoch if is_best else t.progress.best_epoch
    with torch.no_grad():
        t.model.state_dict()["weight"].fill_(epoch)
    end_epoch(saver, t, epoch, is_best)


@pytest.mark.parametrize("dies_at", ["write", "link", "best"])
def test_a_save_that_fails_leaves_what_was_and_the_next_one_brings_all(
    dies_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    t, saver = (
        training(),
        CheckpointManager(tmp_path / "checkpoints", {"run_id": "r"}, 2, None, 2, DiskProblems(messages.append)),
    )
    folder = tmp_path / "checkpoints"
    save_at(saver, t, 2, is_best=True)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(path: Path, *_: Any) -> None:
        if dies_at == "write" or path.name == "best.pt":
            raise OSError(28, "No space left on device")
        save(path, *_)

    def no_link(file: Path, name: Path) -> None:
        raise OSError(122, "Disk quota exceeded")

    if dies_at == "link":
        monkeypatch.setattr(checkpoint_manager, "link", no_link)
    else:
        monkeypatch.setattr(checkpoint_manager, "save_encoded", full)
    save_at(saver, t, 3, is_best=True)
    for epoch in (4, 6):  # the best one has passed, and is held in memory
        save_at(saver, t, epoch, is_best=False)
    after = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert {name for name in before | after if before.get(name) != after.get(name)} == (
        {"best.pt"} if dies_at == "link" else set()  # written in one piece before last.pt could not be
    )
    assert len(messages) == 1
    assert "Disk quota" in messages[0] if dies_at == "link" else "No space" in messages[0]
    best = (saver.load_best_weights(t) or {})["model"]
    assert best is not None
    assert best["weight"].unique().item() == 3
    monkeypatch.undo()
    save_at(saver, t, 8, is_best=False)
    assert saver.disk_problems.summary() == ""
    assert (load(folder / "last.pt")["epoch"], load(folder / "best.pt")["epoch"], len(messages)) == (8, 3, 1)
    assert torch.equal(load(folder / "best.pt")["model"]["weight"], best["weight"])


def test_best_weights_that_have_gone_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As large weights are, which are read from the disk.
    monkeypatch.setattr(checkpoint_manager, "_SMALL_BYTES", 0)
    messages: list[str] = []
    t, saver = (
        training(),
        CheckpointManager(tmp_path / "checkpoints", {"run_id": "r"}, 1, None, 2, DiskProblems(messages.append)),
    )
    assert saver.load_best_weights(t) is None  # no epoch was best: nothing to say
    save_at(saver, t, 1, is_best=True)
    assert saver.load_best_weights(t) is not None
    assert not messages
    (tmp_path / "checkpoints" / "best.pt").unlink()
    assert saver.load_best_weights(t) is None
    assert "there is no checkpoint" in messages[0]
    assert "of the last weights, not the best" in messages[0]


def test_small_best_weights_are_not_read_back(tmp_path: Path) -> None:
    t = training()
    saver = CheckpointManager(tmp_path / "checkpoints", {"run_id": "r"}, 1, None, 2)
    save_at(saver, t, 1, is_best=True)
    saved = load(tmp_path / "checkpoints" / "best.pt")
    (tmp_path / "checkpoints" / "best.pt").unlink()
    best = saver.load_best_weights(t) or {}
    assert best["epoch"] == saved["epoch"] == 1
    assert torch.equal(best["model"]["weight"], saved["model"]["weight"])


@pytest.mark.parametrize(("broken", "step"), [([], 20), ([20], 16), ([20, 16], 12)])
def test_the_one_before_is_used_when_the_newest_is_damaged(broken: list[int], step: int, tmp_path: Path) -> None:
    make_manager(tmp_path, keep=3)
    folder = tmp_path / "checkpoints"
    for number in broken:
        file = folder / f"step_{number:08d}.pt"
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])  # last.pt is the same file
    path, state, skipped = checkpoint.load_newest(folder)
    assert (state["step"], load(path)["step"]) == (step, step)
    assert len(skipped) == (len(broken) + 1 if broken else 0)
    assert all("cut short" in message for message in skipped)


def test_weights_alone_are_not_gone_on_with(tmp_path: Path) -> None:
    save(tmp_path / "step_00000009.pt", {k: v for k, v in STATE.items() if k != "optimizer"})
    save(tmp_path / "step_00000005.pt", STATE)
    assert checkpoint.load_newest(tmp_path)[0].name == "step_00000005.pt"


def test_nothing_whole_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint; start the run again"):
        checkpoint.load_newest(tmp_path)
    (tmp_path / "last.pt").write_bytes(b"")
    with pytest.raises(UnreadableError, match=r"last\.pt is not a checkpoint of dlrun, or was cut short \(0 bytes\)"):
        checkpoint.load_newest(tmp_path)


class Killed(BaseException):
    """Here the process dies."""


@pytest.mark.parametrize("every_epochs", [1, 3])
@pytest.mark.parametrize("dies_at", range(4))
def test_killed_anywhere_in_the_first_save_it_has_the_best_or_nothing_to_go_on_from(
    every_epochs: int, dies_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def make_dying(real: Any) -> Any:
        def call(*arguments: Any) -> None:
            nonlocal calls
            calls += 1
            if calls > dies_at:
                raise Killed
            real(*arguments)

        return call

    for name in ("save_encoded", "link"):
        monkeypatch.setattr(checkpoint_manager, name, make_dying(getattr(checkpoint_manager, name)))
    t, folder = training(), tmp_path / "checkpoints"
    saver = CheckpointManager(folder, {"run_id": "r"}, every_epochs, None, 2)
    with contextlib.suppress(Killed):
        for epoch in range(1, every_epochs + 1):
            save_at(saver, t, epoch, is_best=epoch == 1)
    monkeypatch.undo()
    if not any(folder.glob("step_*.pt")):
        assert dies_at < (1 if every_epochs == 1 else 2)
        return
    _, state, _ = checkpoint.load_newest(folder)
    CheckpointManager(folder, {"run_id": "r"}, every_epochs, None, 2).restore(state)
    assert load(folder / "best.pt")["epoch"] == 1


# --- The thread that writes ---


class SlowDisk:
    """In the place of `save`: writes only while `gate` is open, and counts those who write at the same time."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.began = threading.Event()
        self.at_once = 0
        self.most_at_once = 0
        self.files: list[str] = []
        self.error: Exception | None = None

    def save(self, path: Path, state: dict[str, Any]) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.began.set()
        assert self.gate.wait(30)
        try:
            if self.error is not None:
                raise self.error
            save(path, state)
            self.files.append(path.name)
        finally:
            self.at_once -= 1


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    slow = SlowDisk()
    monkeypatch.setattr(checkpoint_manager, "save_encoded", slow.save)
    return slow


def pass_epoch(saver: CheckpointManager, t: TrainState, epoch: int, is_best: bool = False) -> None:
    """As `saved`, but the training goes on while the thread writes."""
    t.progress.epoch, t.progress.step = epoch, 4 * epoch
    t.progress.best_epoch = epoch if is_best else t.progress.best_epoch
    with torch.no_grad():
        t.model.state_dict()["weight"].fill_(epoch)
    trainer = Trainer(t, [], lambda: False)
    trainer.is_best = is_best
    saver.on_epoch_end(trainer, {"epoch": epoch, "step": 4 * epoch, "train/loss": 1.0})


def weight(path: Path) -> float:
    return float(load(path)["model"]["weight"].unique())


def test_the_training_goes_on_while_a_checkpoint_of_before_is_written(tmp_path: Path, disk: SlowDisk) -> None:
    t, folder = training(epochs=100), tmp_path / "checkpoints"
    saver = CheckpointManager(folder, {"run_id": "r"}, 1, None, 2)
    pass_epoch(saver, t, 1, is_best=True)
    assert disk.began.wait(30)
    # While it is written: epochs 2 to 4 are not saved, the best of them is kept in memory.
    for epoch in (2, 3, 4):
        pass_epoch(saver, t, epoch, is_best=epoch == 3)
    assert not list(folder.glob("*.pt"))
    disk.gate.set()
    saver.wait()
    assert (steps(tmp_path), weight(folder / "last.pt"), weight(folder / "best.pt")) == ([4], 1, 1)
    assert (saver.load_best_weights(t) or {})["epoch"] == 3

    pass_epoch(saver, t, 5)
    saver.wait()
    assert (steps(tmp_path), weight(folder / "last.pt"), weight(folder / "best.pt")) == ([4, 20], 5, 3)
    assert load(folder / "best.pt")["step"] == 12
    assert saver.best is None
    assert disk.most_at_once == 1


def test_epochs_that_end_soon_after_a_save_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_manager, "_LONGEST_REST", 1000.0)
    monkeypatch.setattr(checkpoint_manager, "_REST", 1e9)
    clock = SimpleNamespace(**vars(time))
    monkeypatch.setattr(checkpoint_manager, "time", clock)
    t = training(epochs=100)
    saver = CheckpointManager(tmp_path / "checkpoints", {"run_id": "r"}, 1, None, 2)
    for epoch in (1, 2, 3):
        save_at(saver, t, epoch, is_best=epoch == 1)
    assert steps(tmp_path) == [4]
    now = time.monotonic()
    clock.monotonic = lambda: now + 1001
    save_at(saver, t, 4, is_best=False)
    save_at(saver, t, 5, is_best=False)
    assert steps(tmp_path) == [4, 16]
    # The last `keep` ones are there whatever the clock says.
    for epoch in (98, 99, 100):
        save_at(saver, t, epoch, is_best=False)
    assert steps(tmp_path) == [4, 396, 400]
    assert weight(tmp_path / "checkpoints" / "best.pt") == 1


@pytest.mark.parametrize(
    ("settings", "files"),
    [
        ({"keep": 9}, [4, 8, 12, 16, 20]),
        ({"keep": 9, "every_epochs": 2}, [8, 16, 20]),
        ({"keep": 2, "every_steps": 4}, [16, 20]),
    ],
)
def test_what_a_user_has_asked_for_is_saved_however_soon_it_comes(
    settings: dict[str, Any], files: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_manager, "_LONGEST_REST", 1000.0)
    monkeypatch.setattr(checkpoint_manager, "_REST", 1e9)
    written: list[str] = []
    monkeypatch.setattr(
        checkpoint_manager, "save_encoded", lambda path, state: (written.append(path.name), save(path, state))
    )
    make_manager(tmp_path, **settings)
    assert steps(tmp_path) == files
    count = 3 if "every_epochs" in settings else 5
    assert len([name for name in written if name.startswith("step_")]) == count


def test_an_interruption_waits_for_the_file_and_saves_what_came_after(tmp_path: Path, disk: SlowDisk) -> None:
    t, folder = training(epochs=100), tmp_path / "checkpoints"
    saver = CheckpointManager(folder, {"run_id": "r"}, 1, None, 2)
    pass_epoch(saver, t, 1)
    pass_epoch(saver, t, 2)
    assert disk.began.wait(30)
    threading.Timer(0.05, disk.gate.set).start()
    saver.on_interrupt(Trainer(t, [], lambda: True))
    assert disk.files == ["step_00000004.pt", "step_00000008.pt"]
    assert (steps(tmp_path), weight(folder / "last.pt")) == ([4, 8], 2)

    # What the end of the epoch has saved is not written again.
    other = CheckpointManager(tmp_path / "other", {"run_id": "r"}, 1, None, 2)
    pass_epoch(other, t, 3)
    other.on_interrupt(Trainer(t, [], lambda: True))
    assert disk.files[2:] == ["step_00000012.pt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RunError("no checkpoint can hold it")])
def test_an_error_of_the_thread_comes_with_the_next_step(error: Exception, tmp_path: Path, disk: SlowDisk) -> None:
    messages: list[str] = []
    t = training(epochs=100)
    saver = CheckpointManager(tmp_path / "checkpoints", {"run_id": "r"}, 1, None, 2, DiskProblems(messages.append))
    disk.error = error
    pass_epoch(saver, t, 1, is_best=True)
    trainer = Trainer(t, [], lambda: False)
    assert disk.began.wait(30)
    saver.on_step_end(trainer)
    assert not messages

    disk.gate.set()
    assert saver._call is not None
    assert saver._call._thread is not None
    saver._call._thread.join()
    if isinstance(error, RunError):
        with pytest.raises(RunError, match="can hold it"):
            saver.on_step_end(trainer)
        return

    saver.on_step_end(trainer)
    assert messages == [
        "the checkpoint could not be saved (No space left on device); the run continues, and the next save tries again"
    ]
    assert saver.disk_problems.summary() == "the checkpoint (No space left on device)"
    assert (saver.load_best_weights(t) or {})["epoch"] == 1
    disk.error = None
    pass_epoch(saver, t, 2)
    saver.wait()
    assert saver.disk_problems.summary() == ""
    assert weight(tmp_path / "checkpoints" / "best.pt") == 1


def test_a_folder_that_goes_away_meanwhile_is_recorded(tmp_path: Path, disk: SlowDisk) -> None:
    messages: list[str] = []
    t, run = training(epochs=100), tmp_path / "run"
    run.mkdir()
    saver = CheckpointManager(run / "checkpoints", {"run_id": "r"}, 1, None, 2, DiskProblems(messages.append))
    pass_epoch(saver, t, 1)
    assert disk.began.wait(30)
    (run / "checkpoints").rmdir()
    run.rmdir()
    disk.gate.set()
    saver.wait()
    assert len(messages) == 1
    assert "No such file or directory" in messages[0]


def test_without_a_thread_the_training_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    make_manager(tmp_path)
    assert steps(tmp_path) == [16, 20]


def test_workers_are_forked_without_another_thread(tmp_path: Path, disk: SlowDisk) -> None:
    t = training(epochs=100)
    t.train.workers = 2  # type: ignore[attr-defined]
    saver = CheckpointManager(tmp_path / "checkpoints", {"run_id": "r"}, 1, None, 2)
    threading.Timer(0.05, disk.gate.set).start()
    pass_epoch(saver, t, 1)
    assert disk.files == ["step_00000004.pt"]
    assert saver._call is None


def test_saves_by_the_clock_come_in_the_middle_of_epochs_and_not_at_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(**vars(time))
    ticks = iter(range(10**6))
    clock.monotonic = lambda: float(next(ticks))
    monkeypatch.setattr(checkpoint_manager, "time", clock)
    written: list[int] = []

    def record(path: Path, state: dict[str, Any]) -> None:
        if path.name.startswith("step_"):
            written.append(state["step"])
        save(path, state)

    monkeypatch.setattr(checkpoint_manager, "save_encoded", record)
    t = training(epochs=5)
    saver = CheckpointManager(tmp_path / "checkpoints", {"run_id": "r"}, 1, None, 2, every_seconds=7)
    Trainer(t, [saver], lambda: False).fit()
    assert written[-1] == 20
    assert any(step % 4 for step in written)
    assert 2 <= len(written) <= 5
