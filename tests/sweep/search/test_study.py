"""The study of a search: what a sampler proposes follows from the seed, the number and the results alone."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

optuna = pytest.importorskip("optuna")
pytest.importorskip("cmaes")

from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: E402

from dlrun.config.schema import SweepConfig  # noqa: E402
from dlrun.config.search_space import read_space  # noqa: E402
from dlrun.core.errors import RequestError  # noqa: E402
from dlrun.sweep.search.objectives import Objective, read_objectives  # noqa: E402
from dlrun.sweep.search.study import JOURNAL, Result, Study  # noqa: E402

WORDS = ("optimizer.lr=tag(log,interval(1e-4,1))", "model.width=int(interval(1,9))", "model=mlp,cnn")
NUMBERS = WORDS[:2]
LOSS = (Objective("min", "val/loss"),)
TWO = (Objective("min", "val/loss"), Objective("max", "val/accuracy"))


def make(
    search: str,
    words: Sequence[str] = WORDS,
    objectives: Sequence[Objective] = LOSS,
    seed: int = 0,
    pruner: str = "none",
) -> Study:
    space = read_space(OverridesParser.create().parse_overrides(list(words)))
    return Study(space, SweepConfig(search=search, pruner=pruner), objectives, seed, 9)


def compute_loss(point: Sequence[str]) -> float:
    """A bowl around 0.03 and 4."""
    values = dict(word.split("=") for word in point)
    rate = math.log10(float(values["optimizer.lr"])) + 1.5
    return rate**2 + (float(values["model.width"]) - 4) ** 2 / 10 + (values.get("model") == "cnn") / 5


def go_on(study: Study, count: int) -> None:
    for _ in range(count):
        point = study.propose()
        if len(study.results) == 5:
            study.tell(Result("FAIL"))
            continue
        loss = compute_loss(point)
        curve = [(epoch, loss + 1 / epoch) for epoch in range(1, 10)]
        study.tell(Result("COMPLETE", [loss, -loss][: len(study.objectives)], curve if study.pruner != "none" else ()))


@pytest.mark.parametrize("search", ["tpe", "random", "cmaes", "qmc"])
def test_a_study_that_is_told_everything_again_goes_the_same_way(search: str) -> None:
    words = NUMBERS if search == "cmaes" else WORDS
    reference = make(search, words)
    go_on(reference, 15)
    for cut in (1, 12):
        again = make(search, words)
        # Another process has no memory of the first: only points and results are the same.
        for number in range(cut):
            assert again.propose() == reference.points[number]
            state = reference.results[number].state.name
            again.tell(Result(state, [compute_loss(reference.points[number])] if state == "COMPLETE" else ()))
        go_on(again, 15 - cut)
        assert again.points == reference.points

    assert make(search, words, seed=1).propose() != reference.points[0]


def test_a_grid_has_all_points_in_the_order_of_the_words() -> None:
    study = make("grid", ["a=range(0,0.4,0.2)", "b=x,y"])
    assert study.grid_size == 4
    assert [study.propose() for _ in range(4)] == [
        ["a=0.0", "b=x"],
        ["a=0.0", "b=y"],
        ["a=0.2", "b=x"],
        ["a=0.2", "b=y"],
    ]


def test_recorded_points_take_the_place_of_proposals() -> None:
    study = make("tpe")
    point = ["optimizer.lr=0.01235", "model.width=7", "model=cnn"]
    assert study.propose(study.parse_point(point)) == point


@pytest.mark.parametrize("pruner", ["median", "hyperband", "halving"])
def test_a_run_is_judged_alike_in_one_piece_and_in_two(pruner: str) -> None:
    study = make("random", pruner=pruner)
    go_on(study, 12)
    study.propose()
    good = [{"epoch": epoch, "val/loss": 1e-3 / epoch} for epoch in range(1, 10)]
    bad = [{"epoch": epoch, "val/loss": 1e3 / epoch} for epoch in range(1, 10)]

    judge = study.make_pruner(12)
    assert judge is not None
    assert [judge.judge(row) for row in good] == [False] * 9

    ends = [study.make_pruner(12).judge(row) for row in bad[:1]]  # type: ignore[union-attr]
    reference = study.make_pruner(12)
    assert reference is not None
    verdicts = [reference.judge(row) for row in bad]
    assert any(verdicts)
    assert verdicts[:1] == ends
    end = verdicts.index(True) + 1
    again = study.make_pruner(12)
    assert again is not None
    again.catch_up(bad[:end])
    assert again.is_pruned


def test_the_median_pruner_is_optunas() -> None:
    study = make("random", pruner="median")
    go_on(study, 8)
    study.propose()
    ours = study.make_pruner(8)
    theirs = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_warmup_steps=2))
    theirs.add_trials(study.results)
    trial = theirs.ask()
    assert ours is not None
    for epoch, value in enumerate((30.0, 20.0, 2.5, 0.1, 5.0), 1):
        trial.report(value, epoch)
        assert ours.judge({"epoch": epoch, "val/loss": value}) == trial.should_prune(), epoch


def test_the_file_for_other_programs_is_mended(tmp_path: Path) -> None:
    study = make("cmaes", NUMBERS)
    go_on(study, 6)
    study.write_journal(tmp_path)
    path = tmp_path / JOURNAL
    content = path.read_bytes()
    # The state of CMA-ES is pickled, and stays in memory.
    assert b"cma:" not in content

    path.write_bytes(content[:-40])
    go_on(study, 1)
    again = make("cmaes", NUMBERS)
    go_on(again, 7)
    again.write_journal(tmp_path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 2 + 7

    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    read = optuna.load_study(study_name=None, storage=storage)
    assert [trial.params for trial in read.trials] == [trial.params for trial in again.results]
    assert read.best_value == min(trial.value for trial in again.results if trial.value is not None)


@pytest.mark.parametrize(
    ("search", "words", "objectives", "pruner", "sentence"),
    [
        ("grid", WORDS, LOSS, "none", "takes no interval; type 'optimizer.lr=range(<from>,<to>,<step>)'"),
        ("cmaes", WORDS[:1], LOSS, "none", "type sweep.search=tpe"),
        ("cmaes", WORDS, TWO, "none", "has one objective"),
        ("tpe", WORDS, TWO, "median", "judges by one objective; type sweep.pruner=none"),
        ("tpe", WORDS, (Objective("min", "parameters"),), "median", "parameters is no metric of an epoch"),
    ],
)
def test_what_does_not_go_together_is_refused(
    search: str, words: Sequence[str], objectives: Sequence[Objective], pruner: str, sentence: str
) -> None:
    with pytest.raises(RequestError, match="type") as refusal:
        make(search, words, objectives, pruner=pruner)
    assert sentence in str(refusal.value)


def test_objectives_are_read() -> None:
    checkpoint = {"monitor": None, "mode": None}
    assert read_objectives(None, checkpoint) == [Objective("min", "")]
    assert read_objectives(None, {"monitor": "val/accuracy", "mode": None}) == [Objective("max", "val/accuracy")]
    assert read_objectives(["min val/loss", "min parameters"], checkpoint) == [LOSS[0], Objective("min", "parameters")]
    for line, sentence in (
        ("val/loss", "type 'sweep.objectives=[min val/loss]'"),
        ("max test/accuracy", "type max val/accuracy"),
        ("min parameter", "did you mean parameters?"),
    ):
        with pytest.raises(RequestError) as refusal:
            read_objectives([line], checkpoint)
        assert sentence in str(refusal.value)
