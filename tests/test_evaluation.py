"""`dlrun eval`: the recorded test metrics again, in a new process, from weights and from a full model."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

QUICK = ("tracking.graph=false", "figures=false", "trainer.epochs=2")


def table(out: str) -> dict[str, list[str]]:
    """Metric -> cells, from the printed table."""
    lines = [line.split() for line in out.splitlines() if re.match(r" (test|val|train)/", line)]
    return {cells[0]: cells[1:] for cells in lines}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run that all tests here look at is kept."""
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def trained(dlrun: Callable, tmp_path: Path, kept: Path) -> Path:
    """A run with a full model beside its checkpoints, whose last epoch is not its best: a copy to do anything with."""
    if not kept.exists():
        train(dlrun, kept)
    shutil.copytree(kept, tmp_path / "run")
    return tmp_path / "run"


def train(dlrun: Callable, folder: Path) -> None:
    done = dlrun(
        "data=digits",
        "data.limit_batches=8",
        "model=cnn",
        "checkpoint.format=full",
        "checkpoint.monitor=train/loss",
        "checkpoint.mode=max",
        *QUICK,
    )
    assert done.result["best"]["epoch"] == 1
    shutil.copytree(done.folder, folder)


@pytest.mark.slow
def test_a_new_process_opens_the_full_model_without_dlrun_and_eval_reproduces_the_recorded_metrics(
    trained: Path, tmp_path: Path
) -> None:
    code = (
        "import json, sys, torch\n"
        "model = torch.load(sys.argv[1] + '/checkpoints/model.pt', weights_only=False)\n"
        "assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)\n"
        "best = torch.load(sys.argv[1] + '/checkpoints/best.pt', weights_only=True)['model']\n"
        "assert all(torch.equal(v, best[k]) for k, v in model.state_dict().items())\n"
        "assert 'hydra' not in sys.modules and 'omegaconf' not in sys.modules\n"
        "from dlrun import evaluation\n"
        "found = evaluation.evaluate(sys.argv[1:])\n"
        "recorded = json.load(open(sys.argv[1] + '/result.json'))['metrics']\n"
        "assert len(found) == 4 and all(recorded[k] == v for k, v in found.items()), (found, recorded)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(trained)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cells = table(done.stdout)
    assert all(now == recorded for now, recorded, _ in cells.values())


def test_eval_of_the_full_model_needs_trust_and_gives_the_same(dlrun: Callable, trained: Path) -> None:
    model = str(trained / "checkpoints" / "model.pt")
    refused = dlrun("eval", model)
    assert refused.code == 2
    assert "trust=true" in refused.err
    trusted = dlrun("eval", model, "trust=true")
    assert trusted.code == 0, trusted.err
    assert table(trusted.out) == table(dlrun("eval", str(trained)).out)


def test_eval_of_one_checkpoint_file(dlrun: Callable, trained: Path) -> None:
    best, last = (table(dlrun("eval", str(trained / "checkpoints" / f"{n}.pt")).out) for n in ("best", "last"))
    assert best["test/accuracy"] != last["test/accuracy"]


def test_eval_on_other_data_of_the_same_kind(dlrun: Callable, trained: Path) -> None:
    done = dlrun("eval", str(trained), "data.seed=3")
    assert done.code == 0, done.err
    refused = dlrun("eval", str(trained), "data=blobs")
    assert refused.code == 2
    assert "does not take data=blobs" in refused.err or "was trained for" in refused.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "there is no run or checkpoint nowhere"),
        ([], "which run?"),
        (["."], "holds no checkpoint"),
        (["junk.pt"], "junk.pt"),
    ],
)
def test_eval_of_what_is_no_run(dlrun: Callable, tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "junk.pt").write_bytes(b"junk")
    done = dlrun("eval", *words)
    assert done.code == 2
    assert said in done.err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("data.batchsize=3", "data.batch_size"),
        ("data=mnst", "did you mean data=mnist"),
        ("data.batch_size=abc", "data.batch_size"),
        ("data.batch_size=1,2", "several values"),
        ("data.batch_size=[1", "cannot be read"),
        ("nonsense", "neither a command nor key=value"),
        ("lesson=resnet_mnist", "makes a new run"),
    ],
)
@pytest.mark.parametrize("verb", ["eval", "resume"])
def test_a_wrong_word_behind_a_run_is_a_sentence(
    dlrun: Callable, trained: Path, verb: str, word: str, said: str
) -> None:
    done = dlrun(verb, str(trained), word)
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) == 1


def test_the_device_can_be_chosen_anew_and_its_precision_stays(dlrun: Callable, trained: Path) -> None:
    done = dlrun("eval", str(trained), "device=cpu", "device.precision=fp64")
    assert done.code == 0, done.err
    assert "fp64" in done.out
    refused = dlrun("eval", str(trained), "device.index=99")
    assert refused.code == 2
    assert "99" in refused.err


def test_data_that_have_moved_are_found(dlrun: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"{i % 7},{i % 3},1,1,1,1,1,1,{i % 2}\n" for i in range(40))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "diabetes.csv").write_text(rows)
    done = dlrun("data=diabetes", "paths.data=old", "hydra.run.dir=run", *QUICK)
    assert done.code == 0, done.err
    (tmp_path / "old").rename(tmp_path / "new")
    assert dlrun("eval", "run", "paths.data=new").code == 0
    monkeypatch.setenv("DLRUN_DATA_DIR", "new")
    assert dlrun("eval", "run").code == 0


def test_a_damaged_checkpoint_is_named(dlrun: Callable, trained: Path) -> None:
    best = trained / "checkpoints" / "best.pt"
    content = bytearray(best.read_bytes())
    content[len(content) // 2] ^= 1
    best.write_bytes(content)
    done = dlrun("eval", str(trained))
    assert done.code == 2
    assert "best.pt is damaged" in done.err
