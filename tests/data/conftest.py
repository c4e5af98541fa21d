"""Makes published_formats importable for the tests beside it, and finds the real data."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def real_data() -> str:
    """The folder of the published files; the test is skipped where there is none."""
    root = os.environ.get("DLRUN_DATA_DIR")
    if not root:
        pytest.skip("DLRUN_DATA_DIR is not set to a folder with the published files")
    return root


@pytest.fixture
def refuse_without(dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`refuse_without(library, extra, *words)`: words that need a library end in one sentence that names its extra."""

    def check(library: str, extra: str, *words: str) -> None:
        monkeypatch.setitem(sys.modules, library, None)
        outcome = dlrun(*words)
        assert outcome.code == 2
        assert f"type pip install 'dlrun[{extra}]'" in outcome.err
        assert len(outcome.err.splitlines()) == 1

    return check


@pytest.fixture
def kill_and_resume(
    dlrun: Callable[..., Any], kill_at_save: Callable[..., None], tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """`kill_and_resume(*words)`: killed runs with 0, 1 and 2 workers, resumed, end in the weights of a whole one."""
    import torch

    from dlrun.runs.checkpoint import load

    def check(*words: str) -> dict[str, Any]:
        words = (*words, "tracking.graph=false", "figures=false", "checkpoint.every_steps=1")
        assert dlrun(*words, "data.num_workers=0", "hydra.run.dir=whole").code == 0
        whole = load(tmp_path / "whole" / "checkpoints" / "last.pt")["model"]
        for workers, nth in ((0, 3), (1, 6), (2, 7)):
            kill_at_save(nth, *words, f"data.num_workers={workers}", f"hydra.run.dir=cut{workers}")
            assert dlrun("resume", f"cut{workers}").code == 0
            resumed = load(tmp_path / f"cut{workers}" / "checkpoints" / "last.pt")["model"]
            assert all(torch.equal(whole[name], resumed[name]) for name in whole)
        return dict(whole)

    return check
