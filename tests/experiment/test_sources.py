"""A resumed run says which files of the user's own code have changed since its checkpoint."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

QUIET = ("data=blobs", "tracking.graph=false", "figures=false", "trainer.max_steps=3", "trainer.epochs=9")
FILES = {
    "source_net.py": "from torch import nn\nimport source_helper\n\nclass Net(nn.Linear):\n"
    "    def __init__(self, spec):\n        super().__init__(spec.input_size, spec.output_size)\n",
    "source_loss.py": "from torch.nn import functional as F\n\ndef loss(outputs, targets):\n"
    "    return F.cross_entropy(outputs, targets)\n",
    "source_steps.py": "import torch\n\nclass Descent(torch.optim.SGD):\n    pass\n",
    "source_rate.py": "from torch.optim.lr_scheduler import StepLR\n\nclass Halving(StepLR):\n    pass\n",
    "source_helper.py": "WIDTH = 3\n",
}
OWN = (
    "model._target_=source_net.Net", "task.loss=source_loss.loss", "optimizer=sgd",
    "optimizer._target_=source_steps.Descent", "scheduler=step", "scheduler._target_=source_rate.Halving",
    "scheduler.step_size=2",
)  # fmt: skip
TRUST = "trusted_modules=[source_net,source_loss,source_steps,source_rate]"


def forget() -> None:
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


@pytest.fixture
def folder(tmp_path: Path, dlrun: Callable[..., Any]) -> Iterator[Path]:
    """A run with a net, a loss, an optimizer and a schedule of the user's own."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    outcome = dlrun(*QUIET, *OWN, "hydra.run.dir=r")
    assert outcome.code == 0, outcome.err
    forget()
    yield tmp_path
    forget()


def changes(outcome: Any) -> list[str]:
    assert outcome.code == 0, outcome.err
    return [text for text in outcome.result["warnings"] if "changed since this checkpoint" in text]


@pytest.mark.slow
def test_each_part_whose_source_changed_is_named(folder: Path, dlrun: Callable[..., Any]) -> None:
    for name, text in FILES.items():
        (folder / name).write_text(text + "\n# changed\n")
    end = "changed since this checkpoint was saved"
    assert sorted(changes(dlrun("resume", "r", TRUST, "trainer.max_steps=6"))) == [
        f"the source of source_helper (source_helper.py) {end}",
        f"the source of source_loss.loss (source_loss.py) {end}",
        f"the source of source_net.Net (source_net.py) {end}",
        f"the source of source_rate.Halving (source_rate.py) {end}",
        f"the source of source_steps.Descent (source_steps.py) {end}",
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")  # no step was left to make
def test_resume_auto_says_it_too(folder: Path, dlrun: Callable[..., Any]) -> None:
    (folder / "r" / "result.json").unlink()  # as of a run that was killed
    (folder / "source_loss.py").write_text(FILES["source_loss.py"] + "\n# changed\n")
    outcome = dlrun(*QUIET, *OWN, "hydra.run.dir=r", "resume=auto")
    assert changes(outcome) == [
        "the source of source_loss.loss (source_loss.py) changed since this checkpoint was saved"
    ]


@pytest.mark.slow
def test_nothing_is_said_where_nothing_changed(folder: Path, dlrun: Callable[..., Any]) -> None:
    assert changes(dlrun("resume", "r", TRUST, "trainer.max_steps=6")) == []
