"""table.onnx takes the columns of a table as they are, and answers as `dlrun predict` does."""

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("operators")

QUIET = ("tracking.graph=false", "figures=false", "trainer.progress=off", "trainer.epochs=2", "hydra.run.dir=run")
# What training did not have: a gap in a column without any, an unknown color, and other spellings of gaps.
NEW = "label,width,color,shop\n1,NA,red,a\n2,3.5,green,\n3,,,b\n4,4.25,NA,n/a\n5,1e3,blue,z\n"


def write_table(path: Path, targets: str) -> None:
    """An input called label, gaps in a column of numbers and in one of text."""
    draw = random.Random(0)
    lines = [f"label,width,color,shop,{targets}"]
    for number in range(80):
        color = draw.choice(["red", "blue", ""])
        width = draw.uniform(1, 9)
        values = {
            "price": f"{100_000 + 5000 * width + 9000 * (color == 'red'):.0f}",
            "kind": draw.choice(["oak", "elm", "ash"]),
            "ripe": "yes" if width > 5 else "no",
        }
        cells = [str(number % 7), f"{width:.2f}" if number % 5 else "", color, draw.choice("abc")]
        lines.append(",".join([*cells, *(values[name] for name in targets.split(","))]))
    path.write_text("\n".join(lines) + "\n")


def run_graph(folder: Path, text: str) -> dict[str, Any]:
    """Answers of the graph as its users call it, with pandas and ONNX Runtime alone."""
    import onnxruntime
    import pandas as pd

    session = onnxruntime.InferenceSession(folder / "table.onnx")
    (folder / "new.csv").write_text(text)
    frame = pd.read_csv(folder / "new.csv", dtype=str, keep_default_na=False)
    feed = {}
    for entry in session.get_inputs():
        column = frame[entry.name]
        if entry.type == "tensor(double)":
            feed[entry.name] = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
        else:
            feed[entry.name] = column.to_numpy(object)
    return dict(zip([entry.name for entry in session.get_outputs()], session.run(None, feed), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("target", "model"), [("price", "tabular"), ("ripe", "mlp"), ("kind", "tabular")])
def test_the_graph_answers_as_predict_does(target: str, model: str, dlrun: Callable, tmp_path: Path) -> None:
    write_table(tmp_path / "table.csv", target)
    assert dlrun("data=table", "data.path=table.csv", f"model={model}", *QUIET).code == 0
    (tmp_path / "new.csv").write_text(NEW)
    predicted = dlrun("predict", "run", "new.csv", "--format", "csv").out.splitlines()
    rows = list(csv.DictReader(predicted))
    assert len(rows) == 5
    assert dlrun("export", "run", "format=onnx").code == 0
    answers = run_graph(tmp_path / "run" / "export" / "onnx", NEW)

    if target == "price":
        np.testing.assert_allclose(answers["value"][:, 0], [float(row["prediction"]) for row in rows], rtol=1e-5)
        return
    # An input has the name of the output.
    assert answers["label_"].tolist() == [row["prediction"] for row in rows]
    best = answers["probabilities"].max(1)
    np.testing.assert_allclose(best, [float(row["probability"]) for row in rows], atol=1e-5)
    np.testing.assert_allclose(answers["probabilities"].sum(1), 1, atol=1e-6)


@pytest.mark.slow
def test_several_targets_are_an_answer_each(dlrun: Callable, tmp_path: Path) -> None:
    write_table(tmp_path / "table.csv", "price,kind")
    words = ("data=table", "data.path=table.csv", "data.target=[price,kind]", "model=mlp")
    assert dlrun(*words, *QUIET).code == 0
    assert dlrun("export", "run", "format=onnx").code == 0
    folder = tmp_path / "run" / "export" / "onnx"
    answers = run_graph(folder, NEW)
    (tmp_path / "new.csv").write_text(NEW)
    predicted = dlrun("predict", "run", "new.csv", "--format", "jsonl").out.splitlines()
    told = [json.loads(line)["prediction"] for line in predicted]
    assert [answer["kind"] for answer in told] == answers["kind label"].tolist()
    prices = [answer["price"] for answer in told]
    np.testing.assert_allclose(answers["price value"][:, 0], prices, rtol=1e-5)


@pytest.mark.slow
def test_dates_are_left_to_the_loader_and_it_is_said(dlrun: Callable, tmp_path: Path) -> None:
    lines = [f"{2000 + n % 20}-0{1 + n % 9}-11,{n % 5},{n}.5" for n in range(60)]
    (tmp_path / "table.csv").write_text("\n".join(["sold,rooms,price", *lines]))
    assert dlrun("data=table", "data.path=table.csv", "model=linear", *QUIET).code == 0
    outcome = dlrun("export", "run", "format=onnx")
    assert outcome.code == 0
    folder = tmp_path / "run" / "export" / "onnx"
    assert not (folder / "table.onnx").exists()
    told = json.loads((folder / "model.json").read_text())["table"]
    assert told == {"model_file": None, "reason": "ONNX reads no dates, as in sold: load_onnx.py does"}
    assert "no dates" in outcome.out
