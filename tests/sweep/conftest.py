"""Finished runs made by hand: in memory, or as run folders."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dlrun.runs.record import RunRecord

GROUPS = {"data": "digits", "model": "mlp", "optimizer": "sgd", "lesson": None}


class Runs:
    """Makes runs from overrides, `runs("optimizer.lr=0.1", seed=2, value=0.3)`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def __call__(
        self, *words: str, value: float | None = 0.5, seed: int = 0, metric: str = "val/loss", **changed: Any
    ) -> RunRecord:
        """changed: entries of result.json, and `config` for values that no override names."""
        choices = dict(GROUPS)
        config: dict[str, Any] = {"seed": seed, "data": {"_target_": "d.digits", "root": "x"}, "model": {}}
        config |= {"optimizer": {"lr": 0.001}, "checkpoint": {"mode": None}, "paths": {"outputs": "o"}}
        config |= changed.pop("config", {})
        for word in words:
            key, _, text = word.lstrip("+").partition("=")
            if key in GROUPS:
                choices[key] = text
            elif not word.startswith("~"):
                *parents, last = key.split(".")
                place = config
                for parent in parents:
                    place = place.setdefault(parent, {})
                place[last] = yaml.safe_load(text)
        split, _, name = metric.partition("/")
        digest = hashlib.sha256(json.dumps([config, choices, metric]).encode()).hexdigest()
        result = {
            "status": "completed",
            "metrics": {metric: value, f"test/{name}": 0.75, f"{split}/macro_f1": 0.5},
            "baseline": {metric: 2.0, f"test/{name}": 2.5, f"{split}/macro_f1": 0.1},
            "best": {"metric": metric, "value": value, "epoch": None if value is None else 3},
            "epochs": 4,
            "train_seconds": 1.5,
            "config_hash": digest,
            "code_hash": "c",
            "error": None,
        } | changed
        named = {group: choice for group, choice in choices.items() if choice is not None}
        return RunRecord.from_parts(self.next_folder(), [*words, f"seed={seed}"], config, named, result)

    def next_folder(self) -> Path:
        """A name of its own for each run."""
        self.count += 1
        return self.folder / f"{self.count}_run"

    def write(self, run: RunRecord, curve: tuple[float, ...] = ()) -> RunRecord:
        """The same as a run folder."""
        hidden = run.folder / ".hydra"
        hidden.mkdir(parents=True)
        (hidden / "config.yaml").write_text(yaml.safe_dump(run.config))
        (hidden / "overrides.yaml").write_text(yaml.safe_dump(run.overrides))
        chosen = {"hydra": {"runtime": {"choices": run.choices | {"debug": None, "hydra/help": "default"}}}}
        (hidden / "hydra.yaml").write_text(yaml.safe_dump(chosen))
        (run.folder / "result.json").write_text(json.dumps(run.result))
        lines = [json.dumps({"epoch": i, "step": i, run.metric: y}) + "\n" for i, y in enumerate(curve, 1)]
        (run.folder / "metrics.jsonl").write_text("".join(lines))
        return run


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """`runs(*overrides, seed=, value=, metric=, ...)` makes a finished run; `runs.write(run)` its folder."""
    return Runs(tmp_path / "sweep")


@pytest.fixture
def wait_for() -> Callable[..., None]:
    """`wait_for(condition, process, seconds=)` waits until the condition holds; fails where the process ends before."""

    def wait(condition: Callable[[], Any], process: Any = None, seconds: float = 300) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert process is None or process.poll() is None, process.out + process.err
            assert time.monotonic() < until, "nothing happened"
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def read_files() -> Callable[[Path], dict[str, bytes]]:
    """`read_files(sweep)`: by folder, what the runs have measured."""

    def read(sweep: Path) -> dict[str, bytes]:
        return {path.parent.name: path.read_bytes() for path in sweep.glob("*/metrics.jsonl")}

    return read
