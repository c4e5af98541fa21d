"""From a command line to requests: how often Hydra composes for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf.errors import InterpolationKeyError

from dlrun.config import request
from dlrun.config.schema import CONFIG_DIR

SWEPT = """# @package _global_
hydra: {mode: MULTIRUN}
"""


@pytest.fixture
def compositions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The overrides of each composition that Hydra makes."""
    compositions_seen: list[Any] = []
    compose = ConfigLoaderImpl.load_configuration

    def count(self: Any, config_name: str, overrides: list[str], *more: Any, **named: Any) -> Any:
        compositions_seen.append(list(overrides))
        return compose(self, config_name, overrides, *more, **named)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", count)
    return compositions_seen


def test_a_run_is_composed_once(compositions: list[Any]) -> None:
    (one_request,) = request.from_command_line(["data=blobs", "seed=3"])
    assert (one_request.config["seed"], one_request.choices["data"]) == (3, "blobs")
    assert len(compositions) == 1


def test_a_run_does_not_see_hydras_part_which_sees_the_run() -> None:
    (one_request,) = request.from_command_line(["data=blobs", "hydra.run.dir=${hydra.job.name}/${data.batch_size}"])
    assert one_request.folder == Path("dlrun/64")
    assert "hydra" not in one_request.config
    with pytest.raises(InterpolationKeyError, match=r"hydra\.job\.name"):
        request.from_command_line(["data=blobs", "run.name=${hydra.job.name}"])


@pytest.mark.slow
def test_a_config_of_the_users_own_may_make_a_sweep_of_it(tmp_path: Path, compositions: list[Any]) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "swept.yaml").write_text(SWEPT)
    requests = request.from_command_line(["--config-dir", str(tmp_path), "experiment=swept", "seed=3,4"])
    assert [one.config["seed"] for one in requests] == [3, 4]


def test_no_config_of_ours_makes_a_sweep_of_a_run() -> None:
    assert not [path for path in CONFIG_DIR.rglob("*.yaml") if "mode: MULTIRUN" in path.read_text()]


def test_the_mode_can_be_typed(compositions: list[Any]) -> None:
    requests = request.from_command_line(["hydra.mode=MULTIRUN", "seed=1,2"])
    assert [one.config["seed"] for one in requests] == [1, 2]


@pytest.mark.slow
def test_values_in_letters_of_any_language_need_no_quotes(dlrun: Callable, tmp_path: Path) -> None:
    lines = [f"{i % 7},{i % 5},{'红蓝'[i % 2]}色" for i in range(40)]
    (tmp_path / "花.csv").write_text("\n".join(["长度,宽度,种类", *lines]), encoding="utf-8")
    words = ("data=csv", "data.path=花.csv", "data.target=种类", "trainer.max_steps=2", "tracking.graph=false")
    outcome = dlrun(*words, "figures=false", "hydra.run.dir=结果")
    assert outcome.code == 0, outcome.err
    assert dlrun("eval", "结果", "data.path=花.csv", "figures=false").code == 0
    assert dlrun("resume", "结果", "trainer.max_steps=4").code == 0


@pytest.mark.parametrize(
    ("words", "optimizer", "lr", "rows"),
    [
        (["model=linear"], "lbfgs_full", 1.0, 65536),
        (["model=logistic", "data.batch_size=32", "optimizer.lr=0.5"], "lbfgs_full", 0.5, 32),
        (["model=linear", "optimizer=adamw"], "adamw", 0.001, 64),
        (["model=linear", "optimizer=lbfgs"], "lbfgs", 1.0, 64),
        (["model=mlp"], "adamw", 0.001, 64),
        ([], "adamw", 0.001, 64),
    ],
)
@pytest.mark.parametrize("data", ["table", "csv"])
def test_the_optimizer_of_a_table_goes_with_the_model(
    data: str, words: list[str], optimizer: str, lr: float, rows: int
) -> None:
    (composed,) = request.from_command_line([f"data={data}", "data.path=x.csv", *words])
    assert composed.choices["optimizer"] == optimizer
    assert composed.config["optimizer"]["lr"] == lr
    assert composed.config["data"]["batch_size"] == rows
    assert composed.config["trainer"]["epochs"] == 200


def test_each_point_of_a_sweep_over_models_has_the_optimizer_of_its_model() -> None:
    requests = request.from_command_line(["-m", "data=table", "data.path=x.csv", "model=linear,tabular"])
    assert [one.choices["optimizer"] for one in requests] == ["lbfgs_full", "adamw"]
