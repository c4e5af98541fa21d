"""`dlrun export`: what is written where, and what is refused without leaving anything behind."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.core.errors import RunError
from dlrun.core.new_folder import create_folder
from dlrun.inference.export import command, onnx

WORDS = ("data=csv", "data.path=table.csv", "data.batch_size=8", "model=mlp", "model.hidden_sizes=[3]")
QUICK = ("tracking.graph=false", "figures=false", "trainer.epochs=1", "hydra.run.dir=run")
TRUE_FILES = ["example.csv", "model.json", "model.safetensors"]


def write_table(path: Path) -> None:
    path.write_text("width,depth,kind\n" + "".join(f"{i},{i % 7},{'ab'[i % 2]}\n" for i in range(40)))


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run that all tests here look at is kept."""
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def run(dlrun: Callable, tmp_path: Path, shared_folder: Path) -> Path:
    """A run with averaged weights and a full model: a copy to do anything with."""
    write_table(tmp_path / "table.csv")
    if not shared_folder.exists():
        assert dlrun(*WORDS, *QUICK, "trainer.ema_decay=0.5", "checkpoint.format=full").code == 0
        (tmp_path / "run").rename(shared_folder)
    shutil.copytree(shared_folder, tmp_path / "run")
    return tmp_path / "run"


def read_description(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "model.json").read_text()))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.slow
def test_an_export_lies_in_the_run_and_the_next_one_beside_it(dlrun: Callable, run: Path) -> None:
    first = dlrun("export", "run", "format=safetensors")
    assert first.code == 0, first.err
    assert "weights alone; format=onnx writes the network too" in first.out
    assert "try it" not in first.out
    assert files(run / "export" / "safetensors") == TRUE_FILES
    assert (run / "export" / "safetensors" / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask()
    before = (run / "export" / "safetensors" / "model.json").read_bytes()
    assert dlrun("export", "run", "format=safetensors").code == 0
    assert sorted(path.name for path in (run / "export").iterdir()) == ["safetensors", "safetensors_2"]
    assert (run / "export" / "safetensors" / "model.json").read_bytes() == before


def umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.slow
def test_averaged_weights_are_exported_when_asked_for(dlrun: Callable, run: Path) -> None:
    outputs = []
    for i, words in enumerate(([], ["weights=trained"], ["weights=ema"]), 1):
        assert dlrun("export", "run", "format=safetensors", *words).code == 0
        outputs.append(
            read_description(run / "export" / f"safetensors{'' if i == 1 else f'_{i}'}")["example"]["outputs"]
        )
    assert outputs[0] == outputs[1] != outputs[2]


@pytest.mark.slow
def test_a_checkpoint_elsewhere_and_a_full_model(dlrun: Callable, run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "checkpoints" / "best.pt", tmp_path / "best.pt")
    assert dlrun("export", "best.pt", "format=safetensors").code == 0
    assert files(tmp_path / "export" / "safetensors") == TRUE_FILES
    model = "run/checkpoints/model.pt"
    assert "trust=true" in dlrun("export", model, "format=safetensors").err
    assert dlrun("export", model, "format=safetensors", "trust=true").code == 0
    examples = [
        read_description(tmp_path / place)["example"] for place in ("export/safetensors", "run/export/safetensors")
    ]
    assert examples[0] == examples[1]


@pytest.mark.slow
def test_without_the_data_it_is_checked_on_made_up_rows(dlrun: Callable, run: Path, tmp_path: Path) -> None:
    (tmp_path / "table.csv").unlink()
    outcome = dlrun("export", "run")
    assert outcome.code == 0, outcome.err
    assert "64 random rows, as the data are not here" in outcome.out
    assert "try it      python run/export/onnx/load_onnx.py" in outcome.out
    other_data = dlrun("export", "run", "format=safetensors", "data.path=other.csv")
    assert other_data.code == 2
    assert "data.path=other.csv does not exist" in other_data.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which run? type dlrun export"),
        (["format=onnx"], "which run? type dlrun export"),
        (["nowhere"], "there is no run or checkpoint nowhere"),
        (["."], "holds no checkpoint: it is not a run folder"),
        (["table.csv"], "is not a checkpoint of dlrun"),
        (["run", "format=onx"], "format=onx is not a format; did you mean format=onnx?"),
        (["run", "format="], "format= is not a format; type one of onnx, safetensors, python"),
        (["run", "weights=emma"], "did you mean weights=ema?"),
        (["run", "frmat=onnx"], "there is no key frmat"),
        (["run", "format=safetensors", "model.hidden_sizes=[4]"], "holds the weights of another model"),
        (["run", "format=safetensors", "data=line"], "the model was trained for"),
    ],
)
def test_a_wrong_request_is_a_sentence(dlrun: Callable, run: Path, words: list[str], message: str) -> None:
    before = files(run)
    outcome = dlrun("export", *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert files(run) == before


@pytest.mark.parametrize("damage", ["none yet", "cut short", "changed"])
def test_a_run_without_a_whole_checkpoint(dlrun: Callable, run: Path, damage: str) -> None:
    best = run / "checkpoints" / "best.pt"
    content = best.read_bytes()
    shutil.rmtree(run / "checkpoints")
    if damage != "none yet":
        best.parent.mkdir()
        best.write_bytes(content[:1000] if damage == "cut short" else content[:1000] + b"?" + content[1001:])
    outcome = dlrun("export", "run")
    assert outcome.code == 2
    wanted = {"none yet": "holds no checkpoint", "cut short": "was cut short", "changed": "is damaged"}
    assert wanted[damage] in outcome.err
    assert not (run / "export").exists()


def test_averaged_weights_of_a_run_that_averaged_none(dlrun: Callable, tmp_path: Path) -> None:
    write_table(tmp_path / "table.csv")
    assert dlrun(*WORDS, *QUICK).code == 0
    outcome = dlrun("export", "run", "weights=ema")
    assert outcome.code == 2
    assert "leave out weights=ema" in outcome.err
    assert not (tmp_path / "run" / "export").exists()


@pytest.mark.parametrize(("name", "package"), [("onnx", "onnxscript"), ("safetensors", "safetensors")])
def test_a_missing_package_is_named(
    dlrun: Callable, run: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    outcome = dlrun("export", "run", f"format={name}")
    assert outcome.code == 2
    assert outcome.err == f"dlrun: format={name} needs {package}; type pip install 'dlrun[export]'\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [(RunError("no"), 1), (OSError(28, "No space left on device"), 2), (KeyboardInterrupt(), 130)],
)
def test_an_export_that_fails_leaves_nothing(
    dlrun: Callable, run: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def write(saved: object, folder: Path) -> list[Path]:
        (folder / "half").write_text("half")
        raise error

    monkeypatch.setattr(command, "_import_writer", lambda name: write)
    outcome = dlrun("export", "run")
    assert outcome.code == code
    assert ("cannot write to" in outcome.err) == (code == 2)
    assert not (run / "export").exists()


def test_a_file_in_the_way_is_a_sentence(dlrun: Callable, run: Path) -> None:
    (run / "export").write_text("mine")
    outcome = dlrun("export", "run", "format=safetensors")
    assert outcome.code == 2
    assert "cannot write to" in outcome.err
    assert (run / "export").read_text() == "mine"


@pytest.mark.slow
def test_an_answer_that_is_not_the_models_is_no_export(
    dlrun: Callable, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx._Session, "__call__", lambda self, x: x.sum(1, keepdim=True) + 1000)
    outcome = dlrun("export", "run")
    assert outcome.code == 1
    assert "outputs differ from the model's by up to" in outcome.err
    assert not (run / "export").exists()


def test_two_exports_at_once_get_two_folders(tmp_path: Path) -> None:
    with create_folder(tmp_path, "onnx") as folder:
        (folder.temporary / "mine").write_text("1")
        (tmp_path / "onnx").mkdir()
        (tmp_path / "onnx" / "theirs").write_text("2")  # another process was faster
    assert folder.final == tmp_path / "onnx_2"
    assert files(tmp_path) == ["onnx", "onnx/theirs", "onnx_2", "onnx_2/mine"]
