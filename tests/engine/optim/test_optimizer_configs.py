"""The files of our own optimizers hold the defaults of their targets, and open with what they are."""

import inspect
from pathlib import Path

import pytest
import yaml

from dlrun.experiment.builder.targets import resolve

CONFIGS = Path(__file__).parents[3] / "configs" / "optimizer"
OURS = [path for path in sorted(CONFIGS.glob("*.yaml")) if "_target_: dlrun" in path.read_text()]


def test_there_are_three() -> None:
    assert [path.stem for path in OURS] == ["exhaustive", "manual_sgd", "numeric_gradient"]


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_file_says_what_its_target_takes(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    parameters = list(
        inspect.signature(resolve(config.pop("_target_"), "optimizer._target_", None)).parameters.values()
    )
    assert config == {p.name: p.default for p in parameters[1:]}
    first, second = path.read_text().splitlines()[:2]
    assert first.startswith("# ")
    assert second.startswith("# dlrun ")
    assert f"optimizer={path.stem}" in second
