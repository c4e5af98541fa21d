"""The values that a search chooses from: what Hydra's words mean, and what is refused."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from dlrun.config.search_space import Parameter, SearchSpace, read_space
from dlrun.core.errors import RequestError


def read(*words: str) -> SearchSpace:
    return read_space(OverridesParser.create().parse_overrides(list(words)))


@pytest.mark.parametrize(
    ("word", "parameter"),
    [
        ("a.lr=interval(0.1,2)", Parameter("a.lr", (), 0.1, 2.0)),
        ("a=interval(1,5)", Parameter("a", (), 1.0, 5.0)),
        ("a=int(interval(1,5))", Parameter("a", (), 1, 5)),
        ("+a=tag(log,interval(1e-4,1))", Parameter("+a", (), 1e-4, 1.0, None, True)),
        ("a=tag(log,int(interval(8,64)))", Parameter("a", (), 8, 64, None, True)),
        ("a=x,y", Parameter("a", ("a=x", "a=y"))),
        ("a=choice(3,1)", Parameter("a", ("a=3", "a=1"))),
        ("a=[8],[8,8]", Parameter("a", ("a=[8]", "a=[8,8]"))),
        # Hydra's range has no stop in it.
        ("a=range(1,6,2)", Parameter("a", ("a=1", "a=3", "a=5"), 1, 5, 2)),
        ("a=range(3)", Parameter("a", ("a=0", "a=1", "a=2"), 0, 2, 1)),
        ("a=range(5,1,-2)", Parameter("a", ("a=3", "a=5"), 3, 5, 2)),
        ("a=shuffle(range(2))", Parameter("a", ("a=0", "a=1"), 0, 1, 1)),
        ("a=shuffle(3,1,2)", Parameter("a", ("a=3", "a=1", "a=2"))),
    ],
)
def test_words_mean_what_hydra_means(word: str, parameter: Parameter) -> None:
    space = read("model=mlp", word)
    assert space.parameters == [parameter]
    assert space.parts["model"] == "model=mlp"


@pytest.mark.parametrize(
    ("word", "value", "typed"),
    [
        ("a=interval(0.1,2)", 1.23456789, "a=1.2346"),
        ("a=interval(0.99,0.9999)", 0.99612345, "a=0.9961235"),
        ("a=interval(0.12344,2)", 0.123441, "a=0.12344"),
        ("a=tag(log,interval(1e-5,1))", 0.000123456, "a=0.0001235"),
        ("a=int(interval(1,5))", 3, "a=3"),
        ("a=x,y", 1, "a=y"),
        ("a=range(0,0.4,0.1)", 0.30000000000000004, "a=0.3"),
    ],
)
def test_values_are_rounded_to_what_can_be_typed(word: str, value: float, typed: str) -> None:
    (parameter,) = read(word).parameters
    assert parameter.format_word(value) == typed


def test_points_keep_the_order_of_the_words() -> None:
    space = read("model=mlp,cnn", "data=blobs", "a=interval(0,1)")
    assert space.make_words(space.make_point({"a": 0.5, "model": 1})) == ["model=cnn", "data=blobs", "a=0.5"]
    # Every choice, and both ends.
    corners = [["model=mlp", "data=blobs", "a=0.0"], ["model=cnn", "data=blobs", "a=1.0"]]
    assert space.list_corners() == corners


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("a=1",), "finds nothing to vary; type '<key>=interval(<from>,<to>)'"),
        (("seed=0,1",), "type sweep.seeds=<runs a trial>"),
        (("a=interval(2,1)",), "the smaller number first"),
        (("a=tag(log,interval(0,1))",), "a logarithm needs numbers above 0"),
        (("a=tag(fast,interval(0,1))",), "has the tag fast, which says nothing"),
        (("a=tag(log,range(1,5))",), "only an interval has a log"),
        (("a=range(0,1,0)",), "never ends"),
        (("a=1,1",), "twice"),
        (("sweep.jobs=interval(1,2)",), "applies to the whole sweep"),
        (("a=interval(0,inf)",), "has no end"),
    ],
)
def test_what_cannot_be_searched_is_refused(words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(RequestError, match=r"type|tag\(log|leave") as refusal:
        read(*words)
    assert sentence in str(refusal.value)


def test_a_wide_interval_without_log_is_noticed() -> None:
    (even, log, narrow) = read("a=interval(1e-4,1e-1)", "b=tag(log,interval(1e-4,1))", "c=interval(0.1,1)").parameters
    assert "90 % of interval(0.0001,0.1) lie above 0.01" in str(even.describe_trap())
    assert (log.describe_trap(), narrow.describe_trap()) == (None, None)
