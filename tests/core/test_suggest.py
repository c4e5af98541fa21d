import pytest

from dlrun.core.suggest import build_missing_path_error, suggest_one


@pytest.mark.parametrize(
    ("word", "hint"), [("prize", ", did you mean 'price'?"), ("price", ", did you mean 'price'?"), ("zzz", "")]
)
def test_did_you_mean(word, hint):
    assert suggest_one(word, ["size", "price"]) == hint


def test_missing_says_where_and_what_to_type(tmp_path):
    (tmp_path / "photos").mkdir()
    assert str(build_missing_path_error(tmp_path / "photo", "data.path")).endswith(
        "photo does not exist, did you mean 'photos'?"
    )
    error = build_missing_path_error(tmp_path / "no" / "such", "data.path")
    assert str(error) == f"data.path={tmp_path}/no/such does not exist: type data.path=<an existing path>"
