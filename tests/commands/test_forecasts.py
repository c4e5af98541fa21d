"""Series of the user's own through the whole command line: train, evaluate, forecast, export, kill."""

import csv
import json
import math
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrun.cli.main import main

QUIET = ("tracking.graph=false", "figures=false", "trainer.progress=off")
POWER = ("data=series", "data.path=power.csv", "data.target=load", "data.window=24", "data.horizon=6", *QUIET)


def write_power(path: Path, count: int = 400, sites: str = "") -> None:
    """Hours of a load that follows the day, and the temperature; for each site, if there are any."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        file.write("date,temperature,load" + (",site\n" if sites else "\n"))
        for site in sites or " ":
            for number in range(count):
                hour = datetime(2024, 1, 1) + timedelta(hours=number)
                angle = 2 * math.pi * number / 24
                load = 500 + 100 * math.sin(angle) + draw.gauss(0, 20)
                temperature = 10 + 8 * math.cos(angle)
                file.write(f"{hour:%Y-%m-%d %H:%M},{temperature:.2f},{load:.2f}" + (f",{site}\n" if sites else "\n"))


@pytest.fixture(scope="module")
def folder_with_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with power.csv and a run that has learnt it."""
    folder = tmp_path_factory.mktemp("series")
    write_power(folder / "power.csv")
    words = (*POWER, "model=linear", "trainer.epochs=25", "optimizer.lr=0.01", "hydra.run.dir=run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["dlrun", *words])
        assert main() == 0
    return folder


@pytest.fixture
def run(folder_with_run: Path, tmp_path: Path) -> Path:
    """A copy of them in the working directory."""
    shutil.copytree(folder_with_run, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


@pytest.mark.slow
def test_forecasts_beat_the_day_before_and_are_told_with_their_times(dlrun: Callable[..., Any], run: Path) -> None:
    from sklearn.metrics import mean_absolute_error

    result = json.loads((run / "result.json").read_text())
    assert result["metrics"]["test/mae"] < 0.9 * result["baseline"]["test/mae"]
    line = next(line for line in (run / "run.log").read_text().splitlines() if "on the test windows" in line)
    assert f"the value 24 steps before gets {result['baseline']['test/mae']:.4f}, and this net " in line
    outcome = dlrun("eval", "run", "figures=false")
    assert "the same as recorded in training, to the last bit" in outcome.out
    (path,) = run.glob("eval/*/predictions.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    true = np.array([[float(row[f"true_load_{step}"]) for step in range(1, 7)] for row in rows])
    predicted = np.array([[float(row[f"predicted_load_{step}"]) for step in range(1, 7)] for row in rows])
    assert result["metrics"]["test/mae"] == pytest.approx(mean_absolute_error(true, predicted), rel=1e-4)

    # The table holds what came at the time that a row names; the trivial forecast is that of a day before.
    table = list(csv.DictReader((run.parent / "power.csv").read_text().splitlines()))
    place = {row["date"]: number for number, row in enumerate(table)}
    load = np.array([float(row["load"]) for row in table])
    places = np.array([place[row["time"]] for row in rows])
    ahead = places[:, None] + np.arange(6)
    assert true == pytest.approx(load[ahead], rel=1e-6)
    assert result["baseline"]["test/mae"] == pytest.approx(np.abs(load[ahead - 24] - load[ahead]).mean(), rel=1e-6)


@pytest.mark.slow
def test_predict_forecasts_what_follows_a_table(dlrun: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    lines = (tmp_path / "power.csv").read_text().splitlines()
    (tmp_path / "new.csv").write_text("\n".join([lines[0], *lines[101:141]]))
    (tmp_path / "short.csv").write_text("\n".join([lines[0], *lines[101:111]]))
    outcome = dlrun("predict", "run", "new.csv", "short.csv", "--format", "csv")
    rows = list(csv.DictReader(outcome.out.splitlines()))
    start = datetime.fromisoformat(lines[140].split(",")[0])
    times = [f"{start + timedelta(hours=step):%Y-%m-%d %H:%M}" for step in range(1, 7)]
    assert [row["input"] for row in rows] == [*times, "short.csv"]
    assert rows[-1]["error"] == "10 rows, and the model looks at 24"
    # What the evaluation of the training table has for the same rows.
    assert dlrun("eval", "run", "split=all", "figures=false").code == 0
    (path,) = run.glob("eval/*/predictions.csv")
    same = next(row for row in csv.DictReader(path.read_text().splitlines()) if row["time"] == times[0])
    forecasts = [float(row["prediction"]) for row in rows[:-1]]
    assert forecasts == pytest.approx([float(same[f"predicted_load_{step}"]) for step in range(1, 7)], rel=1e-5)


def test_other_tables_are_evaluated_whole(dlrun: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    write_power(tmp_path / "other.csv", 60)
    outcome = dlrun("eval", "run", "data.path=other.csv", "figures=false")
    assert outcome.code == 0, outcome.err
    assert "all, as the run has not seen them, 31 rows" in outcome.out
    (tmp_path / "other.csv").write_text("date,load\n2024-01-01,3\n")
    outcome = dlrun("eval", "run", "data.path=other.csv")
    assert outcome.code == 2
    assert "there is no column temperature" in outcome.err


@pytest.mark.slow
def test_exports_forecast_as_the_run_does(dlrun: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    assert dlrun("export", "run", "format=onnx").code == 0
    loader = run / "export" / "onnx" / "load_onnx.py"
    printed = subprocess.run(
        [sys.executable, str(loader), "power.csv"], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout.split()
    outcome = dlrun("predict", "run", "power.csv", "--format", "csv")
    forecasts = [float(row["prediction"]) for row in csv.DictReader(outcome.out.splitlines())]
    assert list(map(float, printed)) == pytest.approx(forecasts, rel=1e-4)
    assert dlrun("export", "run", "format=safetensors").code == 0
    outcome = dlrun("export", "run", "format=python")
    assert outcome.code == 2
    assert "format=python cannot write data=series" in outcome.err


@pytest.mark.slow
def test_folds_are_swept_and_phases_of_the_calendar_are_columns_of_exports(
    dlrun: Callable[..., Any], tmp_path: Path
) -> None:
    write_power(tmp_path / "power.csv")
    words = (*POWER, "model=linear", "trainer.epochs=2", "data.calendar=auto", "data.folds=3", "data.fold=range(3)")
    outcome = dlrun("-m", *words, "sweep.dir=folds")
    assert outcome.code == 0, outcome.err
    assert "all runs  3" in outcome.out
    run = next(path.parent for path in (tmp_path / "folds").glob("*/result.json"))
    assert dlrun("export", str(run), "format=onnx").code == 0
    loader = run / "export" / "onnx" / "load_onnx.py"
    printed = subprocess.run([sys.executable, str(loader)], capture_output=True, text=True, check=True).stdout.split()
    assert len(printed) == 6
    header = (loader.parent / "example.csv").read_text().splitlines()[0]
    assert header == "load,temperature,hour_sin,hour_cos"


@pytest.mark.slow
def test_nets_of_every_kind_take_several_series(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    write_power(tmp_path / "power.csv", 120, sites="ab")
    words = (*POWER, "data.group=site", "trainer.max_steps=2")
    outcome = dlrun("-m", *words, "model=gru,lstm,rnn,transformer,mlp,linear", "sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    assert len(list((tmp_path / "sweep").glob("*/result.json"))) == 6
    outcome = dlrun(*words, "model=gru", "model.embedding_size=7", "figures=true", "hydra.run.dir=one")
    assert outcome.code == 0, outcome.err
    assert "model.embedding_size has no effect here: windows of numbers have no embedding" in outcome.out
    assert (tmp_path / "one" / "figures" / "forecast.png").exists()
    outcome = dlrun("predict", "one", "power.csv", "--format", "csv")
    names = [row["input"] for row in csv.DictReader(outcome.out.splitlines())]
    assert names[0] == "a 2024-01-06 00:00"
    assert names[6] == "b 2024-01-06 00:00"
    outcome = dlrun("check", *words, "model=lstm")
    assert outcome.code == 0
    assert "ready" in outcome.out


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(
    dlrun: Callable[..., Any], kill_at_save: Callable[..., None], tmp_path: Path
) -> None:
    write_power(tmp_path / "power.csv", 150)
    net = ("model=gru", "model.hidden_size=8", "model.dropout=0.2")
    words = [*POWER, *net, "trainer.epochs=4", "checkpoint.every_steps=1"]
    assert dlrun(*words, "hydra.run.dir=whole").code == 0
    kill_at_save(4, *words, "hydra.run.dir=killed")
    assert not (tmp_path / "killed" / "result.json").exists()
    assert dlrun("resume", "killed").code == 0
    reference, killed = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "killed"))
    assert reference["weights_sha256"] == killed["weights_sha256"]
    assert reference["metrics"] == killed["metrics"]


def test_a_window_longer_than_the_series_is_a_sentence(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    write_power(tmp_path / "power.csv", 20)
    outcome = dlrun(*POWER, "model=gru")
    assert outcome.code == 2
    assert "data.window=24 and data.horizon=6 take 30 rows without a gap, and the longest series has 20" in outcome.err
    assert not (tmp_path / "outputs").exists()
