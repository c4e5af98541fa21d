"""The loaders read raw input as the run did: pictures, tables, text, and arrays of a user's own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlrun.data.files.picture import read_picture
from dlrun.data.names import encode
from dlrun.inference.export import loaders
from dlrun.inference.saved_model import open_saved_model

pytestmark = pytest.mark.usefixtures("operators")

QUICK = ("tracking.graph=false", "figures=false", "trainer.epochs=1", "data.limit_batches=2", "hydra.run.dir=run")


def read_description(folder: Path) -> Any:
    return json.loads((folder / "model.json").read_text())


@pytest.mark.parametrize("kind", ["picture", "table", "text", "array"])
@pytest.mark.parametrize("task", ["regression", "binary", "multiclass", "tagging"])
def test_a_loader_is_short_and_compiles(kind: str, task: str) -> None:
    text = loaders.render_loader(kind, task)
    compile(text, "load_onnx.py", "exec")
    code = [line for line in text.splitlines() if line and not line.startswith(("import ", "from ", '"""'))]
    assert len(code) <= 23
    assert max(map(len, text.splitlines())) <= 120
    assert ("unicodedata" in text) == (kind == "text")


@pytest.mark.slow
def test_a_table_is_read_as_it_was(dlrun: Callable, tmp_path: Path, loaded: Callable) -> None:
    rows = [f"{i},{100 + i % 7},{'no' if i % 3 else 'yes'}" for i in range(60)]
    (tmp_path / "table.csv").write_text("width,depth,ripe\n" + "\n".join(rows) + "\n")
    assert dlrun("data=csv", "data.path=table.csv", "model=logistic", *QUICK).code == 0
    assert dlrun("export", "run", "format=onnx").code == 0
    folder = tmp_path / "run" / "export" / "onnx"
    assert [column["name"] for column in read_description(folder)["preprocessing"]["columns"]] == ["width", "depth"]
    header, *shown = (folder / "example.csv").read_text().splitlines()
    assert header == "width,depth"
    assert all(any(row.startswith(f"{line},") for row in rows) for line in shown)  # raw, as in the user's table
    (tmp_path / "mine.csv").write_text("w,d\n3,104\n50,101\n")
    lines, outputs = loaded(folder, str(tmp_path / "mine.csv"))
    with open_saved_model("run") as saved:
        spec = saved.spec
        x = (torch.tensor([[3.0, 104.0], [50.0, 101.0]]) - torch.tensor(spec.mean)) / torch.tensor(spec.std)
        with torch.inference_mode():
            expected = saved.model(x)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    assert [line.split()[0] for line in lines] == [("no", "yes")[int(z > 0)] for z in expected]
    assert [float(line.split()[1]) for line in lines] == pytest.approx(
        [float(torch.sigmoid(z.abs())) for z in expected], abs=6e-5
    )


@pytest.mark.slow
def test_a_picture_is_read_as_it_was(dlrun: Callable, real_data: Path, tmp_path: Path, loaded: Callable) -> None:
    assert dlrun("data=mnist", "model=cnn", *QUICK).code == 0
    assert dlrun("export", "run", "format=onnx").code == 0
    folder = tmp_path / "run" / "export" / "onnx"
    with open_saved_model("run") as saved, torch.inference_mode():
        inputs, _ = next(saved.load_held_out()[1].epoch(1))
        expected = saved.model.eval()(inputs[0][:1])
    _, outputs = loaded(folder)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)  # 8 bits hold all that MNIST has
    from PIL import Image

    with Image.open(folder / "example.png") as image:
        image.resize((70, 56)).convert("RGB").save(tmp_path / "large.png")
    _, larger = loaded(folder, str(tmp_path / "large.png"))
    pixels = read_picture(tmp_path / "large.png", 28, grayscale=True).float() / 255
    with open_saved_model("run") as saved, torch.inference_mode():
        expected = saved.model.eval()(((pixels - 0.1307) / 0.3081).unsqueeze(0))
    np.testing.assert_allclose(larger, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_names_are_spelt_as_they_were(dlrun: Callable, real_data: Path, tmp_path: Path, loaded: Callable) -> None:
    assert dlrun("data=names", "model=gru", "model.hidden_size=8", *QUICK).code == 0
    assert dlrun("export", "run", "format=onnx").code == 0
    folder = tmp_path / "run" / "export" / "onnx"
    names = ["O'Neill", "Šimić", "Nuñez Łukasz", "Wolfeschlegelsteinhausenbergerdorff"]
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    lines, outputs = loaded(folder, str(tmp_path / "names.txt"))
    with open_saved_model("run") as saved, torch.inference_mode():
        expected = saved.model.eval()(*encode(names))
        countries = [saved.spec.class_names[i] for i in expected.argmax(1)]
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    assert [line.rpartition(" ")[0] for line in lines] == countries


OWN_DATA = """
import torch
from dlrun.data.spec import DataSpec, Split, Splits

def load():
    x = torch.randn(40, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    return Splits(Split((x,), (x[:, 0, 0, 0] > 0).long()), None, None, DataSpec("image", (2, 5, 5), "multiclass", 2))
"""


@pytest.mark.slow
def test_what_was_done_to_data_of_the_users_is_theirs_to_know(
    dlrun: Callable, tmp_path: Path, loaded: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owndata.py").write_text(OWN_DATA)
    monkeypatch.syspath_prepend(tmp_path)
    assert dlrun("data._target_=owndata.load", "model=linear", *QUICK).code == 0
    outcome = dlrun("export", "run", "format=onnx", "trusted_modules=[owndata]")
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "run" / "export" / "onnx"
    assert np.load(folder / "example.npy").shape == (3, 2, 5, 5)
    assert "owndata.load" in read_description(folder)["preprocessing"]["note"]
    assert read_description(folder)["class_names"] == ["0", "1"]
    _, outputs = loaded(folder)
    np.testing.assert_allclose(outputs, read_description(folder)["example"]["outputs"], rtol=1e-5, atol=1e-6)
