"""What one run leaves behind."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrun.runs import folder as run_folder

QUICK = ("tracking.graph=false", "figures=false")


def test_run_folder_holds_what_the_design_says(dlrun: Callable) -> None:
    few = ("data.train_rows=128", "model.channels=[2]")
    outcome = dlrun("data=digits", "model=cnn", "trainer.epochs=2", "trainer.log_every_steps=5", *few)
    assert outcome.code == 0, outcome.err
    names = {str(p.relative_to(outcome.folder)) for p in outcome.folder.rglob("*") if p.is_file()}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert sorted(name.endswith(".end") for name in events) == [False, True]
    assert names - events == {
        ".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml", "environment.json", "run.log",
        "metrics.jsonl", "fingerprints.jsonl", "result.json", "report.html", "checkpoints/last.pt",
        "checkpoints/best.pt", "checkpoints/step_00000002.pt",
        "checkpoints/step_00000004.pt", "figures/loss.png", "figures/confusion.png", "figures/samples.png",
        "figures/mistakes.png",
    }  # fmt: skip
    assert outcome.folder.parent.parent.name == "outputs"
    assert outcome.folder.name.endswith("_cnn_digits")


@pytest.mark.slow
def test_result_json(dlrun: Callable) -> None:
    outcome = dlrun("data=digits", "trainer.epochs=2", *QUICK)
    result = outcome.result
    assert set(result) == {
        "status", "metrics", "baseline", "best", "epochs", "steps", "train_seconds", "samples_per_second",
        "compile_seconds", "parameters", "config_hash", "code_hash", "weights_sha256", "warnings", "error",
        "measured", "expected", "name", "parent",
    }  # fmt: skip
    assert result["status"] == "completed"
    assert result["error"] is None
    assert set(result["best"]) == {"metric", "value", "epoch"}
    assert result["parameters"] == 784 * 128 + 128 + 128 * 10 + 10
    assert result["steps"] == 2 * -(-1294 // 64)
    names = {"loss", "accuracy", "macro_f1", "top5_accuracy"}
    assert set(result["metrics"]) == {f"{s}/{n}" for s in ("train", "val", "test") for n in names}
    assert set(result["baseline"]) == set(result["metrics"])
    assert result["baseline"]["test/accuracy"] < 0.2 < result["metrics"]["test/accuracy"]
    assert {k: v for k, v in outcome.rows[-1].items() if "/" in k}.items() <= result["metrics"].items()


@pytest.mark.slow
def test_metrics_jsonl_has_a_row_an_epoch_and_no_timings(dlrun: Callable) -> None:
    rows = dlrun("data=blobs", "trainer.epochs=3", "scheduler=exponential", *QUICK).rows
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert [row["lr"] for row in rows] == pytest.approx([1e-3, 0.95e-3, 0.95**2 * 1e-3])
    assert not any("second" in key or "time" in key for row in rows for key in row)


def test_checkpoint_holds_what_the_design_says_and_its_hash_can_be_recomputed(dlrun: Callable) -> None:
    import hashlib

    outcome = dlrun("data=blobs", "trainer.epochs=1", *QUICK)
    checkpoint_content = torch.load(outcome.folder / "checkpoints" / "last.pt", weights_only=True)
    wanted = {"format_version", "run_id", "model", "config", "spec", "epoch", "step", "metrics", "optimizer"}
    assert wanted | {"scheduler", "scaler", "rng", "early_stopping"} <= set(checkpoint_content)
    assert type(checkpoint_content["config"]) is dict
    state, digest = checkpoint_content["model"], hashlib.sha256()
    for key in sorted(state):
        digest.update(f"{key}|{state[key].dtype}|{tuple(state[key].shape)}|".encode())
        digest.update(state[key].contiguous().numpy().tobytes())
    assert digest.hexdigest() == outcome.result["weights_sha256"]


@pytest.mark.slow
def test_the_same_command_gives_the_same_run(dlrun: Callable) -> None:
    words = ("data=blobs", "model=mlp", "model.dropout=0.5", "trainer.epochs=2", *QUICK)
    first, second = dlrun(*words), dlrun(*words)
    assert first.folder != second.folder
    assert first.result["weights_sha256"] == second.result["weights_sha256"]
    assert first.rows == second.rows
    assert dlrun(*words, "seed=1").result["weights_sha256"] != first.result["weights_sha256"]


def test_two_runs_of_the_same_second_get_two_folders(tmp_path: Path) -> None:
    from dlrun.runs.folder import create_folder

    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(create_folder(tmp_path, "mlp_digits"))) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(folders)) == 16


@pytest.mark.slow
def test_nothing_is_written_for_a_wrong_request(dlrun: Callable, tmp_path: Path) -> None:
    assert dlrun("model=gru", "data=digits").code == 2
    assert dlrun("checkpoint.monitor=val/nothing").code == 2
    assert not (tmp_path / "outputs").exists()


def test_a_failed_run_keeps_its_traceback_and_says_failed(dlrun: Callable, tmp_path: Path) -> None:
    (tmp_path / "brittle.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, spec):\n"
        "        super().__init__(spec.input_size, spec.output_size)\n"
        "        self.calls = 0\n"
        "    def forward(self, x):\n"
        "        self.calls += 1\n"
        "        if self.calls > 5: raise KeyError('lost')\n"
        "        return super().forward(x)\n"
    )
    outcome = dlrun("data=line", "model._target_=brittle.Net", *QUICK)
    assert outcome.code == 1
    assert "KeyError" in outcome.err
    assert "Traceback" not in outcome.err
    (folder,) = (tmp_path / "outputs").glob("*/*")
    assert json.loads((folder / "result.json").read_text())["status"] == "failed"
    assert "Traceback" in (folder / "run.log").read_text()


def test_early_stopping_is_a_status(dlrun: Callable) -> None:
    outcome = dlrun(
        "data=blobs",
        "trainer.epochs=50",
        "trainer.early_stopping.patience=2",
        "optimizer=sgd",
        "optimizer.lr=5",
        *QUICK,
    )
    assert outcome.result["status"] == "early_stopped"
    assert outcome.result["epochs"] == outcome.result["best"]["epoch"] + 2


def test_no_validation_part_makes_the_monitor_fall_back(dlrun: Callable) -> None:
    outcome = dlrun("data=regression", "model=linear", "trainer.epochs=2", *QUICK)
    assert outcome.result["best"]["metric"] == "train/loss"
    assert not any(key.startswith("val/") for key in outcome.rows[0])
    refused = dlrun("data=regression", "model=linear", "checkpoint.monitor=val/loss")
    assert refused.code == 2
    assert "train/loss" in refused.err


@pytest.mark.parametrize(
    "words",
    [
        ("optimizer=lbfgs", "data=regression", "model=linear"),
        pytest.param(("device.precision=bf16",), marks=pytest.mark.slow),
        ("device.precision=fp16", "model=cnn", "model.channels=[2]"),
        pytest.param(("device.precision=fp64", "model=cnn"), marks=pytest.mark.slow),  # test_golden has such a run
        pytest.param(("device.channels_last=false", "model=cnn"), marks=pytest.mark.slow),
        pytest.param(("device.deterministic=true", "device.num_threads=1"), marks=pytest.mark.slow),
        ("debug=one_batch",),
        pytest.param(("debug=overfit", "trainer.epochs=2"), marks=pytest.mark.slow),
        ("data.loader=workers", "data.num_workers=0"),
        pytest.param(("optimizer.groups=[{match: '*.bias', lr: 0.1}]",), marks=pytest.mark.slow),
        pytest.param(("scheduler=one_cycle", "scheduler.warmup_steps=5"), marks=pytest.mark.slow),
        pytest.param(("task.loss=multi_margin", "task.reduction=sum"), marks=pytest.mark.slow),
        ("lesson=resnet_mnist", "data=digits"),
        ("experiment=example",),
    ],
)
def test_choices_train(dlrun: Callable, words: tuple[str, ...]) -> None:
    outcome = dlrun("trainer.max_steps=8", "data.limit_batches=3", *QUICK, *words)
    assert outcome.code == 0, outcome.err
    assert outcome.result["steps"] >= 1


@pytest.mark.slow
def test_linear_regression_finds_least_squares(dlrun: Callable) -> None:
    import numpy as np
    from sklearn.datasets import make_regression

    outcome = dlrun(
        "data=regression", "model=linear", "optimizer=sgd", "trainer.epochs=200", "checkpoint.every_epochs=200", *QUICK
    )
    x, y = make_regression(n_samples=100, n_features=1, noise=10, bias=14.5, random_state=0)
    slope, intercept = np.polyfit(x[:, 0], y, 1)
    weights = torch.load(outcome.folder / "checkpoints" / "last.pt", weights_only=True)["model"]
    assert float(weights["weight"]) == pytest.approx(slope, rel=0.01)
    assert float(weights["bias"]) == pytest.approx(intercept, rel=0.01)


@pytest.mark.slow
def test_a_loss_of_ones_own(dlrun: Callable, tmp_path: Path) -> None:
    (tmp_path / "losses.py").write_text(
        "def mine(outputs, targets):\n    return (outputs - targets).square().mean()\n"
        "def rows(outputs, targets):\n    return (outputs - targets).square()\n"
    )
    words = ("data=line", "model=linear", "trainer.epochs=2", *QUICK)
    own, known = dlrun(*words, "task.loss=losses.mine"), dlrun(*words, "task.loss=mse")
    assert own.code == 0, own.err
    assert own.result["weights_sha256"] == known.result["weights_sha256"]
    assert "'trusted_modules=[losses]'" in own.out
    assert "trusted_modules='[losses]'" in dlrun("eval", str(own.folder)).err
    assert dlrun("eval", str(own.folder), "trusted_modules=[losses]", "figures=false").code == 0
    refused = dlrun("export", str(own.folder), "format=python", "trusted_modules=[losses]")
    assert "cannot write task.loss=losses.mine, as that is code of yours" in refused.err
    for name, message in (("rows", "return their mean"), ("mne", "did you mean losses.mine?"), ("", "type the name")):
        wrong = dlrun(*words, f"task.loss=losses.{name}")
        assert (wrong.code, message in wrong.err) == (2, True), wrong.err


@pytest.mark.slow
def test_own_model_and_data_through_config_alone(dlrun: Callable, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\nfrom dlrun.data.spec import DataSpec, Split, Splits\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, spec, width: int = 4):\n"
        "        super().__init__()\n"
        "        first, last = nn.Linear(spec.input_size, width), nn.Linear(width, spec.output_size)\n"
        "        self.net = nn.Sequential(first, nn.Tanh(), last)\n"
        "    def forward(self, x):\n"
        "        return self.net(x)\n"
        "def waves(rows: int = 50):\n"
        "    x = torch.linspace(0, 6, rows).unsqueeze(1)\n"
        "    part = Split((x,), x.sin())\n"
        "    return Splits(part, None, part, DataSpec('vector', (1,), 'regression', 1))\n"
    )
    for group, text in (("model", "_target_: mine.Net\nwidth: 7\n"), ("data", "_target_: mine.waves\nrows: 60\n")):
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / "own.yaml").write_text(text)
    outcome = dlrun("--config-dir", "conf", "model=own", "data=own", "model.width=9", "trainer.epochs=2", *QUICK)
    assert outcome.code == 0, outcome.err
    assert outcome.result["parameters"] == 9 + 9 + 9 + 1
    assert "'trusted_modules=[mine]'" in outcome.out
    refused = dlrun("eval", str(outcome.folder))
    assert refused.code == 2
    assert "trusted_modules" in refused.err
    allowed = dlrun("eval", str(outcome.folder), "trusted_modules=[mine]", "figures=false")
    assert allowed.code == 0, allowed.err
    named = dlrun("model._target_=mine.Net", "+model.width=3", "data=line", "trainer.epochs=1", *QUICK)
    assert named.code == 0, named.err
    assert named.result["parameters"] == 3 + 3 + 3 + 1
    assert named.folder.name.endswith("_Net_line")


WORKER_DEATH = "DataLoader worker (pid 7) is killed by signal: Killed. "


def raise_worker_death(*_: Any, **__: Any) -> None:
    """As torch's handler of SIGCHLD does, wherever the process is."""
    raise RuntimeError(WORKER_DEATH)


@pytest.mark.parametrize("was_there", [False, True])
def test_a_run_that_fails_before_its_folder_is_described_leaves_none(
    was_there: bool, dlrun: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if was_there:
        (tmp_path / "run").mkdir()
    describe = run_folder.write_description

    def fail(*arguments: Any) -> None:
        describe(*arguments)
        raise_worker_death()

    monkeypatch.setattr(run_folder, "write_description", fail)
    outcome = dlrun("data=blobs", "trainer.max_steps=2", "hydra.run.dir=run", *QUICK)
    assert outcome.code == 2
    assert "a worker process that reads data was killed (Killed)" in outcome.err
    left = list(tmp_path.rglob("*"))
    assert left == [tmp_path / "run"] * was_there


@pytest.mark.parametrize(
    "where",
    [
        "runs.reports.console.Console.open_log",
        "experiment.reports.terminal.print_opening",
        "runs.logger.RunLogger",
        "experiment.recording.CheckpointManager",
    ],
)
def test_every_run_folder_has_a_log_and_a_result(where: str, dlrun: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:

        def fail_once(*_: Any, **__: Any) -> None:
            patch.undo()
            raise_worker_death()

        patch.setattr(f"dlrun.{where}", fail_once)
        outcome = dlrun("data=blobs", "trainer.max_steps=2", "hydra.run.dir=run", *QUICK)
    assert outcome.code == 1
    assert outcome.err.startswith("dlrun: the run run failed: a worker process that reads data was killed")
    assert WORKER_DEATH in Path("run/run.log").read_text()
    assert json.loads(Path("run/result.json").read_text())["status"] == "failed"


def test_a_wrong_request_makes_no_folder(dlrun: Callable, tmp_path: Path) -> None:
    outcome = dlrun("data=blobs", "optimizer.lr=-1", "hydra.run.dir=run")
    assert outcome.code == 2
    assert list(tmp_path.iterdir()) == []
