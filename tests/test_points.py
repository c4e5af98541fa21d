"""sweep.points: lines of overrides become runs, and what the command line says wins."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from dlrun import points

TINY = ("data=blobs", "model=linear", "model.bias=false", "trainer.epochs=1", "figures=false", "tracking.graph=false")


@pytest.mark.parametrize(
    ("lines", "given", "runs"),
    [
        (["a=1", "a=2"], [], [["a=1"], ["a=2"]]),
        (["seed=range(3)"], [], [["seed=0"], ["seed=1"], ["seed=2"]]),
        (["a=1,2 b=x"], [], [["a=1", "b=x"], ["a=2", "b=x"]]),
        (["o=adam o.betas=[0.9,0.99]"], [], [["o=adam", "o.betas=[0.9,0.99]"]]),
        (["o=sgd o.lr=1", "o=adam"], ["o=rmsprop", "z=1"], [[]]),
        (["seed=range(3)"], ["seed=7"], [[]]),
        (["a=1 b=2", "a=1 b=3"], ["b=4"], [["a=1"]]),
        (["a=1", "a=1"], [], [["a=1"]]),
        ([], [], []),
    ],
)
def test_lines_become_runs(lines: list[str], given: list[str], runs: list[list[str]]) -> None:
    assert points.overrides(lines, given, None, 1000) == runs  # type: ignore[arg-type]


def test_words_in_brackets_and_quotes_stay_together() -> None:
    line = "m=[{Linear: [in, 10]}, ReLU] n='a b' o=choice(1, 2)"
    (one, two) = points.overrides([line], [], None, 1000)  # type: ignore[arg-type]
    assert one == ["m=[{Linear: [in, 10]}, ReLU]", "n='a b'", "o=1"]
    assert two[2] == "o=2"


def folders(tmp_path: Path) -> list[str]:
    return sorted(str(p.parent.relative_to(tmp_path)) for p in tmp_path.rglob("result.json"))


def test_one_request_with_points_makes_a_folder_a_run(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    done = dlrun(*TINY, "sweep.points=['seed=1,2']", "expect=[same epochs, 'steps = 4']")
    assert done.code == 0, done.err
    assert [name.split("/")[-1] for name in folders(tmp_path)] == ["0_seed=1", "1_seed=2"]
    assert [name.split("/")[:2] for name in folders(tmp_path)] == [["outputs", "multirun"]] * 2
    assert "2 of 2: 4" in done.out
    (table,) = tmp_path.rglob("expectations.md")
    assert table.read_text().splitlines()[2:] == [
        "| linear_blobs | `same epochs` | largest difference 0 | yes |",
        "| linear_blobs | `steps = 4` | 2 of 2: 4 | yes |",
    ]


def test_points_of_a_job_of_a_sweep_lie_under_the_job(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    done = dlrun("-m", *TINY, "optimizer=sgd,adam", "sweep.points=['seed=1,2']")
    assert done.code == 0, done.err
    names = ["/".join(name.split("/")[4:]) for name in folders(tmp_path)]
    assert [name.split("/")[1] for name in names] == ["0_seed=1", "1_seed=2"] * 2
    assert sum("optimizer=sgd" in name.split("/")[0] for name in names) == 2


def test_a_strict_sweep_that_misses_what_it_expects_fails(dlrun: Callable[..., Any]) -> None:
    words = (*TINY, "sweep.points=['seed=1,2']", "expect=['steps = 5']")
    assert dlrun(*words).code == 0
    assert dlrun(*words, "strict=true").code == 1


def test_a_point_that_cannot_be_composed_leaves_nothing_behind(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    done = dlrun(*TINY, "sweep.points=['seed=1', 'optimizr=adam']")
    assert done.code == 2
    assert "optimizr" in done.err
    assert folders(tmp_path) == []


def test_the_parser_of_hydra_reads_what_is_left_of_a_line() -> None:
    for word in points.overrides(["a=1,2 b=[1, 2]"], [], None, 1000)[0]:  # type: ignore[arg-type]
        assert OverridesParser.create().parse_override(word).value() in (1, [1, 2])
