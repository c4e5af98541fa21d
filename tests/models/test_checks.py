import pytest

from dlrun.core.errors import MisfitError, RequestError
from dlrun.data.spec import DataSpec
from dlrun.models.checks import build_unknown_error, check_counts, check_dropout, check_image


def test_unknown_offers_the_nearest_and_all_choices() -> None:
    assert str(build_unknown_error("model.activation", "rleu", ["relu", "tanh"])) == (
        "model.activation=rleu is unknown (did you mean relu?): type one of relu, tanh."
    )


def test_unknown_without_a_near_choice_makes_no_guess() -> None:
    assert str(build_unknown_error("k", "zzz", ["relu"], "type a layer")) == "k=zzz is unknown: type a layer."


def test_unknown_ignores_case_but_answers_in_the_right_one() -> None:
    assert "did you mean ReLU?" in str(build_unknown_error("k", "relu", ["ReLU", "Tanh"]))


@pytest.mark.parametrize("counts", [[0], [3, -1], [2.5], [True], ["8"]])
def test_counts_below_one_or_not_whole_are_refused(counts: list[int]) -> None:
    with pytest.raises(RequestError, match=r"model\.x holds .*: type model\.x=\[1\]"):
        check_counts("model.x", counts, "model.x=[1]")


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_dropout_outside_its_range_is_refused(dropout: float) -> None:
    with pytest.raises(RequestError, match=r"model\.dropout="):
        check_dropout(dropout)


@pytest.mark.parametrize(("smallest", "advised"), [(16, 28), (28, 28), (29, 32), (36, 36)])
def test_small_image_gets_a_size_to_type(smallest: int, advised: int) -> None:
    spec = DataSpec("image", (1, smallest, smallest - 1), "multiclass", 10)
    with pytest.raises(MisfitError, match=rf"{smallest}x{smallest} .*data\.image_size={advised} .* model=mlp"):
        check_image(spec, "cnn", smallest)


def test_image_of_the_smallest_size_passes() -> None:
    check_image(DataSpec("image", (1, 16, 16), "multiclass", 10), "cnn", 16)
