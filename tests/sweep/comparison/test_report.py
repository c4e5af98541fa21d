"""`dlrun compare`: said on the terminal and left in a folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.core.errors import RequestError
from dlrun.sweep.comparison import report
from dlrun.sweep.comparison.report import compare_runs

FILES = ["comparison.csv", "comparison.md", "figures", "report.html"]


@pytest.fixture
def sweep(runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four runs in a folder `sweep`, which is the working directory's."""
    monkeypatch.chdir(tmp_path)
    for i, lr in enumerate((0.1, 0.01)):
        for seed in range(2):
            runs.write(runs(f"optimizer.lr={lr}", value=0.2 + i / 10 + seed / 100, seed=seed))
    return Path("sweep")


@pytest.mark.slow
def test_runs_are_compared_in_a_new_folder(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"device": "cpu", "precision": "fp32", "threads": 1, "cpu_count": 2, "git_commit": "abc"}
    environment["versions"] = {"python": "3.11", "platform": "Linux"}
    (sweep / "1_run" / "environment.json").write_text(json.dumps(environment))
    (sweep / "2_run" / "environment.json").write_text("{")
    assert compare_runs([str(sweep), "paths.outputs=out"]) == 0
    (folder,) = Path("out/comparisons").glob("*/*_4_runs")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    out = capsys.readouterr().out
    assert "best: lr=0.1, val/loss 0.2050 ± 0.0071 (n = 2)" in out
    assert f"open        {folder}/report.html" in out
    markdown = (folder / "comparison.md").read_text()
    assert "| 0.1 | 2 | 0.2050 ± 0.0071 |" in markdown
    assert "    dlrun compare sweep paths.outputs=out\n" in markdown
    page = (folder / "report.html").read_text()
    for fact in ("Linux; cpu, fp32, 1 of 2 threads", "python 3.11", "abc"):
        assert fact in page
    assert 'src="data:image/png;base64,' in page
    assert 'href="../../../../sweep/1_run/"' in page


@pytest.mark.slow
def test_a_sweep_is_compared_in_its_own_folder(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / "sweep.jsonl").write_text("")
    (sweep / "1_run" / "result.json").write_text("{")
    assert compare_runs([str(sweep)]) == 0
    assert set(FILES) < {path.name for path in sweep.iterdir()}
    assert not Path("outputs").exists()
    assert "no result: sweep/1_run (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs a run, a sweep, or a folder of them; type dlrun compare outputs"),
        (["nowhere"], "there is no folder nowhere"),
        (["seed=1"], "takes folders, and paths.outputs=<folder>; leave out seed=1"),
        (["--all"], "leave out --all"),
    ],
)
def test_wrong_words_are_a_sentence(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=message):
        compare_runs(words)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_nothing_is_a_sentence(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write_text", full)
    with pytest.raises(RequestError, match=r"\(No space left on device\); type paths.outputs=<folder>"):
        compare_runs([str(sweep)])


@pytest.mark.slow
def test_real_runs_are_compared(dlrun: Callable[..., Any], capfd: pytest.CaptureFixture[str]) -> None:
    quiet = ("trainer.epochs=2", "figures=false", "tracking.graph=false", "hydra.sweep.dir=real")
    assert dlrun("-m", "data=blobs", "optimizer=sgd,adam", "optimizer.lr=0.1,0.01", "seed=range(3)", *quiet).code == 0
    assert compare_runs([".", "paths.outputs=out"]) == 0
    out = capfd.readouterr().out
    assert "ranked by the training loss: there is no validation part" in out
    (folder,) = Path("out/comparisons").glob("*/*_12_runs")
    assert len((folder / "comparison.csv").read_text().splitlines()) == 1 + 4 + 1
    pictures = sorted(path.name for path in (folder / "figures").iterdir())
    assert pictures == ["compared_curves.png", "compared_lr.png", "compared_optimizer_lr.png"]
