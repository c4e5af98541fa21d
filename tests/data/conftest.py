"""Makes published_formats importable for the tests beside it, and finds the real data."""

import os
import sys
from collections.abc import Callable, Sequence
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
    """`kill_and_resume(*words)`: killed runs with 0, 1 and 2 workers, resumed, end in the weights of a whole one.

    `workers=(2,)` kills one run, with 2 workers.
    """
    import torch

    from dlrun.runs.checkpoint import load

    # The save of a run at which it is killed, by its workers.
    saves = {0: 3, 1: 6, 2: 7}

    def check(*words: str, workers: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
        words = (*words, "tracking.graph=false", "figures=false", "checkpoint.every_steps=1")
        assert dlrun(*words, "data.num_workers=0", "hydra.run.dir=whole").code == 0
        whole = load(tmp_path / "whole" / "checkpoints" / "last.pt")["model"]
        for count in workers:
            kill_at_save(saves[count], *words, f"data.num_workers={count}", f"hydra.run.dir=cut{count}")
            assert dlrun("resume", f"cut{count}").code == 0
            resumed = load(tmp_path / f"cut{count}" / "checkpoints" / "last.pt")["model"]
            assert all(torch.equal(whole[name], resumed[name]) for name in whole)
        return dict(whole)

    return check
