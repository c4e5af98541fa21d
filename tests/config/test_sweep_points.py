"""sweep.points: lines of overrides become runs, and what the command line says wins."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from dlrun.config import request, sweep_points
from dlrun.core.errors import RequestError

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
    assert sweep_points.expand_points(lines, given, None, 1000) == runs  # type: ignore[arg-type]


def test_words_in_brackets_and_quotes_stay_together() -> None:
    line = "m=[{Linear: [in, 10]}, ReLU] n='a b' o=choice(1, 2)"
    (one, two) = sweep_points.expand_points([line], [], None, 1000)  # type: ignore[arg-type]
    assert one == ["m=[{Linear: [in, 10]}, ReLU]", "n='a b'", "o=1"]
    assert two[2] == "o=2"


def folders(tmp_path: Path) -> list[str]:
    return sorted(str(p.parent.relative_to(tmp_path)) for p in tmp_path.rglob("result.json"))


@pytest.mark.slow
def test_one_request_with_points_makes_a_folder_a_run(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    outcome = dlrun(*TINY, "sweep.points=['seed=1,2']", "expect=[same epochs, 'steps = 4']")
    assert outcome.code == 0, outcome.err
    assert [name.split("/")[-1] for name in folders(tmp_path)] == ["0_seed=1", "1_seed=2"]
    assert [name.split("/")[:2] for name in folders(tmp_path)] == [["outputs", "multirun"]] * 2
    assert "2 of 2: 4" in outcome.out
    (table,) = tmp_path.rglob("expectations.md")
    assert table.read_text().splitlines()[2:] == [
        "| linear_blobs | same epochs | largest difference 0 | yes |",
        "| linear_blobs | steps = 4 | 2 of 2: 4 | yes |",
    ]


@pytest.mark.slow
def test_points_of_a_job_of_a_sweep_lie_under_the_job(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    outcome = dlrun("-m", *TINY, "optimizer=sgd,adam", "sweep.points=['seed=1,2']")
    assert outcome.code == 0, outcome.err
    names = ["/".join(name.split("/")[4:]) for name in folders(tmp_path)]
    assert [name.split("/")[1] for name in names] == ["0_seed=1", "1_seed=2"] * 2
    assert sum("optimizer=sgd" in name.split("/")[0] for name in names) == 2


@pytest.mark.slow
def test_a_strict_sweep_that_misses_what_it_expects_fails(dlrun: Callable[..., Any]) -> None:
    words = (*TINY, "sweep.points=['seed=1,2']", "expect=['steps = 5']")
    assert dlrun(*words).code == 0
    assert dlrun(*words, "strict=true").code == 1


@pytest.mark.slow
def test_a_point_that_cannot_be_composed_leaves_nothing_behind(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    outcome = dlrun(*TINY, "sweep.points=['seed=1', 'optimizr=adam']")
    assert outcome.code == 2
    assert "optimizr" in outcome.err
    assert folders(tmp_path) == []


def test_the_parser_of_hydra_reads_what_is_left_of_a_line() -> None:
    for word in sweep_points.expand_points(["a=1,2 b=[1, 2]"], [], None, 1000)[0]:  # type: ignore[arg-type]
        assert OverridesParser.create().parse_override(word).value() in (1, [1, 2])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("seed=range(0)", "names no value at all; type one or more, as in seed=a,b"),
        ("seed=range(5,0)", "names no value at all"),
        ("seed=range(0,5,0)", "never ends; type seed=range(<from>,<to>,<step>)"),
        ("optimizer.lr=range(0.,1.,0.)", "never ends"),
        ("seed=range(0,inf)", "never ends"),
        ("seed=range(0,nan)", "never ends"),
        ("optimizer.lr=interval(0,1)", "names no single values; type optimizer.lr=range(<from>,<to>,<step>)"),
        ("seed=1,2,1", "names seed=1 twice; leave one out"),
        ("optimizer.lr=0.001,1e-3", "twice"),
        ("seed=range(1000000)", "the sweep has 1,000,000 points and sweep.max_jobs=1000; type sweep.max_jobs=1000000"),
        ("seed=range(1000000000000)", "the sweep has 1,000,000,000,000 points"),
        ("seed=range(1000000) optimizer.lr=range(0.,1.,1e-6)", "the sweep has 1,000,000,000,000 points"),
        ("seed=range(1000000000000) optimizer.lr=range(0,0)", "the sweep has 1,000,000,000,000 points"),
        ("seed=shuffle(range(1000000000000))", "the sweep has 1,000,000,000,000 points"),
        ("seed=range(1001)", "the sweep has 1,001 points"),
    ],
)
def test_points_that_cannot_be_meant_are_a_sentence(words: str, message: str) -> None:
    with pytest.raises(RequestError) as refused:
        sweep_points.expand_points([words], [], None, 1000)  # type: ignore[arg-type]
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_many_lines_are_counted_together() -> None:
    lines = [f"seed=range({i},{i + 600})" for i in (0, 600)]
    with pytest.raises(RequestError, match="1,200 points"):
        sweep_points.expand_points(lines, [], None, 1199)  # type: ignore[arg-type]
    assert len(sweep_points.expand_points(lines, [], None, 1200)) == 1200  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("a=range(5,0,-2)", ["a=5", "a=3", "a=1"]),
        ("a=range(-1,2)", ["a=-1", "a=0", "a=1"]),
        ("a=sort(3,1,2)", ["a=1", "a=2", "a=3"]),
        ("a=1,2 a=3", ["a=3"]),
        ("+a=1,2", ["+a=1", "+a=2"]),
        ("a=[1,2],[3]", ["a=[1,2]", "a=[3]"]),
        ("a=choice({b: 1},{b: 2})", ["a={b:1}", "a={b:2}"]),
    ],
)
def test_the_values_of_a_word(words: str, values: list[str]) -> None:
    split = [words] if "{" in words else words.split()
    assert sweep_points.combine(OverridesParser.create().parse_overrides(split)) == [[word] for word in values]


def test_the_last_word_varies_fastest() -> None:
    parsed = OverridesParser.create().parse_overrides(["a=1,2", "c=x", "b=3,4"])
    assert sweep_points.combine(parsed) == [[f"a={a}", "c=x", f"b={b}"] for a in (1, 2) for b in (3, 4)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sedd=0,1"], "did you mean seed"),
        (["optimizer=sgd,adm"], "did you mean optimizer=adam"),
        (["optimizer=glob(nothing*)"], "names no value at all"),
        (["seed=range(1000000000000)"], "type sweep.max_jobs=1000000000000"),
        (["optimizer=sgd,adam", "sweep.points=['seed=range(600)','seed=range(600,1200)']"], "1,200 points"),
        (
            ["optimizer=sgd,adam", "sweep.points=['seed=range(3)']", "sweep.max_jobs=5"],
            "the sweep has 6 points and more",
        ),
    ],
)
@pytest.mark.slow
def test_a_wrong_sweep_is_a_sentence_and_writes_nothing(
    words: list[str], message: str, dlrun: Callable[..., Any], tmp_path: Path
) -> None:
    outcome = dlrun("-m", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_group_chosen_beside_the_points_does_not_swallow_them() -> None:
    words = ["model=mlp", "optimizer=sgd", "sweep.points=['model.dropout=0.1','model.dropout=0.2 optimizer=adam']"]
    requests = request.from_command_line(words)
    assert [one.config["model"]["dropout"] for one in requests] == [0.1, 0.2]
    assert [one.choices["optimizer"] for one in requests] == ["sgd", "adam"]


def test_one_point_is_a_sweep_too() -> None:
    (one,) = request.from_command_line(["-m", "seed=4"])
    assert one.overrides == ["seed=4"]
    assert one.sweep is not None
