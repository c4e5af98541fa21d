"""A saved model opened again: with its weights, without its data, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dlrun.core.errors import CheckpointError, MisfitError, RequestError
from dlrun.inference.saved_model import open_saved_model, read_run_name
from dlrun.runs import checkpoint

QUICK = ("tracking.graph=false", "figures=false", "trainer.epochs=1", "hydra.run.dir=run")
ROWS = "".join(f"{i},{i % 7},{i % 2}\n" for i in range(40))


@pytest.fixture
def run(dlrun: Callable, tmp_path: Path) -> Path:
    """A run on a table of the user's, which averaged its weights."""
    (tmp_path / "table.csv").write_text(ROWS)
    words = (
        "data=csv",
        "data.path=table.csv",
        "data.batch_size=8",
        "model=mlp",
        "trainer.ema_decay=0.9",
        "checkpoint.format=full",
    )
    assert dlrun(*words, *QUICK).code == 0
    return tmp_path / "run"


@pytest.mark.slow
def test_everything_that_belongs_to_a_checkpoint(run: Path) -> None:
    state = checkpoint.load(run / "checkpoints" / "best.pt")
    with open_saved_model("run") as saved:
        assert saved.folder == run
        assert saved.spec == saved.splits.spec
        assert saved.spec.class_names == ("0", "1")
        assert all(torch.equal(v, state["model"][k]) for k, v in saved.model.state_dict().items())
        assert saved.averaged_weights is not None
        assert any(not torch.equal(v, state["model"][k]) for k, v in saved.averaged_weights.items())
        name, batches, _ = saved.load_held_out()
        assert (name, batches.rows) == ("test", 8)
        assert "accuracy" in saved.objective.metric_names


@pytest.mark.slow
def test_the_model_needs_no_data(run: Path, tmp_path: Path) -> None:
    (tmp_path / "table.csv").unlink()
    with open_saved_model("run") as saved:
        assert saved.model(torch.zeros(3, 2)).shape == (3, 1)
        with pytest.raises(RequestError, match=r"table\.csv"):
            _ = saved.splits


@pytest.mark.slow
def test_a_full_model_is_the_same(run: Path) -> None:
    model = "run/checkpoints/model.pt"
    with pytest.raises(CheckpointError, match="trust=true"), open_saved_model(model):
        pass
    with open_saved_model(model, ["trust=true"]) as full, open_saved_model("run") as weights:
        assert full.spec == weights.spec
        x = torch.ones(3, 2)
        assert torch.equal(full.model(x), weights.model(x))


def test_a_checkpoint_outside_a_run_has_no_folder(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "checkpoints" / "best.pt", tmp_path / "elsewhere.pt")
    with open_saved_model("elsewhere.pt") as saved:
        assert saved.folder is None
        assert saved.model(torch.zeros(1, 2)).shape == (1, 1)


def test_weights_and_data_of_another_kind_are_refused(run: Path, tmp_path: Path) -> None:
    with (
        open_saved_model("run", ["model.hidden_sizes=[3]"]) as saved,
        pytest.raises(RequestError, match="of another model"),
    ):
        _ = saved.model
    (tmp_path / "wide.csv").write_text("".join(f"1,2,{i},{i % 2}\n" for i in range(20)))
    with open_saved_model("run", ["data.path=wide.csv"]) as saved, pytest.raises(MisfitError, match="4 columns, where"):
        _ = saved.splits


@pytest.mark.parametrize("words", [[], [""], ["format=onnx"]])
def test_a_command_without_a_run(words: list[str]) -> None:
    with pytest.raises(RequestError, match=r"which run\? type dlrun export"):
        read_run_name(words, "export")
    assert read_run_name(["here", *words], "export") == "here"
