"""The preprocessing of a table goes with an export: the loader reads what predict reads."""

import csv
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

QUIET = ("tracking.graph=false", "figures=false", "trainer.progress=off", "trainer.epochs=3")


@pytest.mark.slow
@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("model", ["mlp", "tabular"])
def test_an_export_carries_the_preprocessing(model: str, dlrun: Callable, loaded: Callable, tmp_path: Path) -> None:
    draw = random.Random(0)
    lines = ["area;street;sold;sent;created_at;price"]
    for _ in range(80):
        area = draw.uniform(40, 300)
        day = f"{draw.randint(1, 28)}.{draw.randint(1, 12)}.{draw.randint(2010, 2024)}"
        cells = [f"{area:.1f}".replace(".", ","), draw.choice(["Pave", "Grvl", ""]), draw.choice([day, "NA"])]
        stamp = draw.randint(1_600_000_000, 1_700_000_000)
        cells += [datetime.fromtimestamp(stamp, UTC).strftime("%a, %d %b %Y %H:%M:%S +0100"), str(stamp)]
        lines.append(";".join([*cells, f"€ {200 + area:.0f}.000"]))
    (tmp_path / "houses.csv").write_text("\n".join(lines))
    # The loader takes commas between cells.
    quoted = [",".join(f'"{cell}"' for cell in line.split(";")) for line in lines]
    (tmp_path / "commas.csv").write_text("\n".join(quoted))

    outcome = dlrun("data=table", "data.path=houses.csv", f"model={model}", *QUIET, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert dlrun("export", "run", "format=onnx").code == 0
    told, _ = loaded(tmp_path / "run" / "export" / "onnx", str(tmp_path / "commas.csv"))
    predicted = dlrun("predict", "run", "houses.csv", "--format", "csv").out.splitlines()
    values = [float(row["prediction"]) for row in csv.DictReader(predicted)]
    assert len(values) == 80
    assert np.allclose([float(line) for line in told], values, rtol=1e-5)

    assert dlrun("export", "run", "format=safetensors").code == 0
    about = json.loads((tmp_path / "run" / "export" / "safetensors" / "model.json").read_text())
    assert [column["name"] for column in about["preprocessing"]["columns"]] == [
        "area",
        "street",
        "sold",
        "sent",
        "created_at",
    ]
    refused = dlrun("export", "run", "format=python")
    assert refused.code == 2
    assert (
        "format=python cannot write how this table is read: it takes text with points as decimal marks" in refused.err
    )
