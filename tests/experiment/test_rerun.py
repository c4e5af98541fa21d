"""`dlrun rerun RUN`: a run composed anew with changes, as a new run that names its parent."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.core.yaml import dump_yaml, read_yaml

QUICK = ("data=blobs", "model=mlp", "trainer.epochs=1", "tracking.graph=false", "figures=false")


@pytest.fixture
def run(dlrun: Callable[..., Any]) -> Path:
    outcome = dlrun(*QUICK, "model.hidden_sizes=[3]", "seed=4", "run.name=first", "hydra.run.dir=runs/one")
    assert outcome.code == 0, outcome.err
    return Path("runs/one")


def read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


@pytest.mark.slow
def test_without_changes_it_is_the_same_training(run: Path, dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("rerun", str(run))
    assert outcome.code == 0, outcome.err
    assert outcome.folder.name.endswith("_first")
    before = read_json(run / "result.json")
    for key in ("config_hash", "weights_sha256", "metrics"):
        assert outcome.result[key] == before[key]

    parent = {"folder": "runs/one", "run_id": read_json(run / "environment.json")["run_id"]}
    assert read_json(outcome.folder / "environment.json")["parent"] == parent
    assert outcome.result["parent"] == parent
    assert (before["parent"], read_json(run / "environment.json")["parent"]) == (None, None)

    # A resumed run keeps its parent.
    assert dlrun("resume", str(outcome.folder), "trainer.epochs=2").code == 0
    assert read_json(outcome.folder / "result.json")["parent"] == parent


@pytest.mark.slow
def test_changes_replace_what_was_typed(run: Path, dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("rerun", str(run), "seed=5", "optimizer=sgd", "optimizer.lr=0.5", "run.name=second")
    assert outcome.code == 0, outcome.err
    config = read_yaml((outcome.folder / ".hydra" / "config.yaml").read_text())
    assert (config["seed"], config["optimizer"]["lr"], config["model"]["hidden_sizes"]) == (5, 0.5, [3])
    assert outcome.folder.name.endswith("_second")
    overrides = read_yaml((outcome.folder / ".hydra" / "overrides.yaml").read_text())
    assert "seed=4" not in overrides
    # What is composed of it in turn is the same.
    again = dlrun("rerun", str(outcome.folder))
    assert again.result["config_hash"] == outcome.result["config_hash"]


@pytest.mark.slow
def test_keys_that_a_new_choice_lacks_are_left_out_with_a_note(run: Path, dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("rerun", str(run), "model=logistic")
    assert outcome.code == 0, outcome.err
    assert "note: model.hidden_sizes=[3] of the run is left out: model=logistic has no such key" in outcome.out


@pytest.mark.slow
def test_a_job_of_a_sweep_is_one_run(dlrun: Callable[..., Any]) -> None:
    dlrun("-m", *QUICK, "seed=1,2", "sweep.dir=runs/sweep")
    (job,) = Path("runs/sweep").glob("1_*")
    outcome = dlrun("rerun", str(job))
    assert outcome.code == 0, outcome.err
    assert outcome.folder.parent.parent == Path("outputs")
    assert outcome.result["weights_sha256"] == read_json(job / "result.json")["weights_sha256"]

    sweep = dlrun("rerun", "runs/sweep")
    assert sweep.code == 2
    assert "runs/sweep is a sweep, and dlrun rerun takes one run" in sweep.err


NET = "import torch\n\nclass Net(torch.nn.Linear):\n    def __init__(self, spec):\n        super().__init__(2, 2)\n"


@pytest.mark.slow
def test_permissions_are_not_taken_from_the_run(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "rerun_net.py").write_text(NET)
    words = ("model._target_=rerun_net.Net", "trusted_modules=[rerun_net]", "hydra.run.dir=runs/own")
    assert dlrun(*QUICK[:1], *QUICK[2:], *words).code == 0
    # As a run from elsewhere would name its permissions.
    path = tmp_path / "runs" / "own" / ".hydra" / "overrides.yaml"
    path.write_text(dump_yaml([*read_yaml(path.read_text()), "trusted_modules=[rerun_net]", "trust=true"]))

    refused = dlrun("rerun", "runs/own")
    assert refused.code == 2
    assert "rerun_net" in refused.err
    assert not Path("outputs").exists()
    trusted = dlrun("rerun", "runs/own", "trusted_modules=[rerun_net]")
    assert trusted.code == 0, trusted.err
    retyped = dlrun("rerun", "runs/own", "model._target_=rerun_net.Net")
    assert retyped.code == 0, retyped.err


@pytest.mark.parametrize(
    "word",
    ["run.notes=${oc.env:HOME}", "model=../../evil", "-m", "--config-dir=x", "+model@optimizer=mlp", "optimizer/x=y"],
)
def test_nothing_that_is_loaded_is_evaluated(run: Path, dlrun: Callable[..., Any], word: str) -> None:
    path = run / ".hydra" / "overrides.yaml"
    path.write_text(dump_yaml([*read_yaml(path.read_text()), word]))
    outcome = dlrun("rerun", str(run))
    assert outcome.code == 2
    assert f"was composed with {word}, and nothing that is read from a file is evaluated" in outcome.err
    assert not Path("outputs").exists()


@pytest.mark.slow
def test_config_files_of_the_users_own_are_named_again(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "my" / "optimizer").mkdir(parents=True)
    (tmp_path / "my" / "optimizer" / "mine.yaml").write_text("_target_: torch.optim.SGD\nlr: 0.25\n")
    first = dlrun("--config-dir", "my", "optimizer=mine", *QUICK, "hydra.run.dir=runs/one")
    assert first.code == 0, first.err
    refused = dlrun("rerun", "runs/one")
    assert refused.code == 2
    assert "add --config-dir" in refused.err
    outcome = dlrun("rerun", "runs/one", "--config-dir", "my")
    assert outcome.code == 0, outcome.err
    assert outcome.result["weights_sha256"] == read_json(Path("runs/one/result.json"))["weights_sha256"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which run? type dlrun rerun outputs/"),
        (["nowhere"], "nowhere does not exist"),
        (["runs/one", "seed=1,2"], "seed=1,2 names several values"),
        (["runs/one", "-m", "seed=1,2"], "dlrun rerun trains one run"),
        (["runs/one", "optimizer.rl=1"], "there is no key optimizer.rl"),
        (["runs/one", "sweep.jobs=2"], "sweep.jobs=2 is for a sweep"),
        (["runs/one", "model=nope"], "model=nope"),
    ],
)
@pytest.mark.usefixtures("run")
def test_wrong_words(dlrun: Callable[..., Any], words: list[str], message: str) -> None:
    outcome = dlrun("rerun", *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert not Path("outputs").exists()


def test_a_damaged_run_is_a_sentence(run: Path, dlrun: Callable[..., Any]) -> None:
    (run / ".hydra" / "overrides.yaml").unlink()
    assert "does not have .hydra/overrides.yaml" in dlrun("rerun", str(run)).err
    (run / ".hydra" / "overrides.yaml").write_text("5\n")
    assert "damaged: runs/one/.hydra/overrides.yaml" in dlrun("rerun", str(run)).err
