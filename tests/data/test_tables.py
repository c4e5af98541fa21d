"""`data=table`: the same inputs as scikit-learn's, parts as they are asked for, and sentences."""

import csv
import gzip
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrun.core.errors import DataError, RequestError
from dlrun.data.spec import Split, Splits
from dlrun.data.tables import table


def write_rows(path: Path, header: Sequence[str] | None, rows: Sequence[Sequence[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if header is not None:
            writer.writerow(header)
        writer.writerows(rows)
    return path


def passengers(path: Path, count: int = 120) -> Path:
    """Rows of our own in the shape of the Titanic's table."""
    draw = random.Random(0)
    rows = []
    for number in range(1, count + 1):
        sex = draw.choice(["male", "female"])
        survived = int(draw.random() < (0.8 if sex == "female" else 0.2))
        age = "" if draw.random() < 0.2 else round(draw.uniform(1, 70), 1)
        cabin = draw.choice(["", "", "C1", "C2"])
        row = [number, survived, draw.choice([1, 2, 3]), f"No. {number}", sex, age, draw.uniform(5, 90), cabin]
        rows.append([*row, draw.choice("SSCQ")])
    header = ["PassengerId", "Survived", "Pclass", "Name", "Sex", "Age", "Fare", "Cabin", "Embarked"]
    return write_rows(path, header, rows)


def rows_of(part: Any) -> list[int]:
    """The lines of a part."""
    assert isinstance(part, Split)
    assert part.origin is not None
    assert part.origin.line is not None
    return [int(line) for line in part.origin.line]


def test_inputs_are_those_of_scikit_learn(tmp_path: Path) -> None:
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    path = passengers(tmp_path / "t.csv")
    splits = table(str(path), target="Survived", val_fraction=0.1)
    cells = np.array(list(csv.reader(path.read_text().splitlines()))[1:], dtype=object)
    numbers = cells[:, [2, 5, 6]]
    numbers[numbers == ""] = np.nan
    texts = np.where(cells[:, [4, 7, 8]] == "", "(missing)", cells[:, [4, 7, 8]])
    x = np.concatenate([numbers.astype(object), texts], axis=1)
    scale = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    truth = ColumnTransformer(
        [("n", scale, [0, 1, 2]), ("c", OneHotEncoder(handle_unknown="ignore", sparse_output=False), [3, 4, 5])]
    )
    train = np.array(rows_of(splits.train)) - 2
    truth.fit(x[train])

    names = list(splits.spec.feature_names)
    order = ["Pclass", "Age", "Fare", "Sex=female", "Sex=male", "Cabin=(missing)", "Cabin=C1", "Cabin=C2"]
    order += ["Embarked=C", "Embarked=Q", "Embarked=S"]
    assert sorted(names) == sorted([*order, "Age missing"])
    for part in (splits.train, splits.val, splits.test):
        assert isinstance(part, Split)
        index = np.array(rows_of(part)) - 2
        mine = part.inputs[0].numpy()
        assert np.allclose(mine[:, [names.index(name) for name in order]], truth.transform(x[index]))
        assert (mine[:, names.index("Age missing")] == (cells[index, 5] == "")).all()
        assert (part.targets.numpy() == cells[index, 1].astype(int)).all()
    assert [row[0] for row in splits.columns if row[4].startswith("out")] == ["PassengerId", "Name"]
    assert any("left out: PassengerId (numbers the rows); Name (all different)" in note for note in splits.notes)


def test_parts_have_the_same_mix_and_no_row_twice(tmp_path: Path) -> None:
    rows = [(i % 7, "abc"[0 if i % 10 < 6 else 1 if i % 10 < 9 else 2]) for i in range(200)]
    splits = table(str(write_rows(tmp_path / "t.csv", ["x", "y"], rows)), val_fraction=0.25)
    parts = [splits.train, splits.val, splits.test]
    assert sorted(line for part in parts for line in rows_of(part)) == list(range(2, 202))
    shares = [np.bincount(part.targets.numpy()) for part in parts if isinstance(part, Split)]
    assert [list(share) for share in shares] == [[72, 36, 12], [24, 12, 4], [24, 12, 4]]


def test_many_small_classes_do_not_fill_the_test_part(tmp_path: Path) -> None:
    rows = [(i, f"class {i % 28}") for i in range(60)]
    splits = table(str(write_rows(tmp_path / "t.csv", ["x", "y"], rows)), kinds={"x": "number"})
    assert len(rows_of(splits.test)) == 12
    assert isinstance(splits.train, Split)
    assert len(set(splits.train.targets.tolist())) == 28
    assert any(
        note.startswith("28 classes in 60 rows are too many for a test part of 12 rows") for note in splits.notes
    )
    assert any("the test part has no row of" in note for note in splits.notes)


def test_folds_cover_every_row_once(tmp_path: Path) -> None:
    path = str(passengers(tmp_path / "t.csv"))
    tested = []
    for fold in range(5):
        splits = table(path, target="Survived", folds=5, fold=fold, val_fraction=0.1)
        assert isinstance(splits.test, Split)
        assert 0.3 < float(splits.test.targets.double().mean()) < 0.7
        assert "test_fraction" in splits.unheeded
        tested += rows_of(splits.test)
    assert sorted(tested) == list(range(2, 122))


def test_time_and_groups_and_given_files(tmp_path: Path) -> None:
    days = [(f"{1 + i % 28}.{1 + i // 28}.2024", i % 5, i * 1.5) for i in range(100)]
    random.Random(1).shuffle(days)
    path = str(write_rows(tmp_path / "t.csv", ["day", "group", "y"], days))
    splits = table(path, split="time", split_column="day", val_fraction=0.1)
    y = [part.targets.flatten() for part in (splits.train, splits.val, splits.test) if isinstance(part, Split)]
    assert y[0].max() < y[1].min()
    assert y[1].max() < y[2].min()

    splits = table(path, split="group", split_column="group", val_fraction=0.25)
    groups = [{days[line - 2][1] for line in rows_of(part)} for part in (splits.train, splits.val, splits.test)]
    assert sorted(group for part in groups for group in part) == [0, 1, 2, 3, 4]
    assert "group" not in splits.spec.feature_names

    other = write_rows(tmp_path / "test.csv", ["y", "day", "group"], [(3.5, "1.1.2024", 2), (4.5, "2.1.2024", 3)])
    splits = table(path, test_path=str(other), val_fraction=0.1)
    assert isinstance(splits.test, Split)
    assert splits.test.targets.flatten().tolist() == [3.5, 4.5]
    assert splits.test.origin is not None
    assert splits.test.origin.format_label(1) == f"line 3 of {other}"
    assert sorted(rows_of(splits.train) + rows_of(splits.val)) == list(range(2, 102))


def test_targets_with_signs_are_numbers(tmp_path: Path) -> None:
    rows = [(i, f"${1000 * i + 500:,}") for i in range(40)]
    splits = table(str(write_rows(tmp_path / "t.csv", ["x", "price"], rows)))
    assert splits.spec.task == "regression"
    assert isinstance(splits.train, Split)
    assert splits.train.targets.max() == 39_500
    train = splits.train.targets.numpy()
    assert splits.spec.target_mean == (pytest.approx(train.mean()),)
    assert splits.spec.target_std == (pytest.approx(train.std()),)
    assert any("$500 is 500" in note for note in splits.notes)


def test_a_few_texts_among_numbers_are_mistakes_and_many_are_names(tmp_path: Path) -> None:
    rows = [[str(i % 10), i] for i in range(40)]
    rows[6][0] = "l0"
    path = str(write_rows(tmp_path / "t.csv", ["x", "y"], rows))
    with pytest.raises(DataError, match=r"line 8: column 'x' holds 'l0', which is no .* data.kinds=\{x: category\}"):
        table(path)
    for i in range(0, 40, 4):
        rows[i][0] = f"A{i % 3}"
    write_rows(tmp_path / "t.csv", ["x", "y"], rows)
    assert "x=A1" in table(path).spec.feature_names


def test_kinds_are_chosen_by_key(tmp_path: Path) -> None:
    path = str(passengers(tmp_path / "t.csv"))
    names = table(path, target="Survived", columns=["Pclass", "Sex"], categorical=["Pclass"]).spec.feature_names
    assert names == ("Pclass=1", "Pclass=2", "Pclass=3", "Sex=female", "Sex=male")
    names = table(path, target=1, drop=["Cabin", "Age"], kinds={"Fare": "drop"}).spec.feature_names
    assert names == ("Pclass", "Sex=female", "Sex=male", "Embarked=C", "Embarked=Q", "Embarked=S")


def test_all_kinds_of_bad_cells_are_listed_with_their_lines(tmp_path: Path) -> None:
    rows = [["1", "2"] for _ in range(30)]
    rows[3][0] = "x"
    rows[7][0] = "y"
    path = str(write_rows(tmp_path / "t.csv", ["a", "y"], rows))
    message = r"line 5: column 'a' holds 'x', which is no finite number; line 9: column 'a' holds 'y'"
    with pytest.raises(DataError, match=message):
        table(path, kinds={"a": "number"})
    for i in range(4, 25):
        rows[i][1] = ""
    write_rows(tmp_path / "t.csv", ["a", "y"], rows)
    with pytest.raises(
        DataError, match=r"line 6: column 'y' is empty; .*; and 11 more cells; the target must be there"
    ):
        table(path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"missing": "eror"}, "data.missing=eror is no choice; did you mean"),
        ({"missing": "error"}, r"line \d+: column 'Age' is empty; .*data.missing=impute fills gaps"),
        ({"split": "time"}, "data.split=time needs a column"),
        ({"split": "group", "split_column": "Survived"}, "data.split_column=Survived is the target"),
        ({"split": "group", "split_column": "Sex", "folds": 3}, "number of groups: 2; type a smaller number"),
        ({"separator": ";"}, "has one column only, .* something else than ';'"),
        ({"encoding": "utf-16"}, "is not utf-16 text"),
        ({"split_column": "Age"}, "data.split_column=Age is for data.split=time or group"),
        ({"folds": 5, "fold": 5}, "data.fold=5 must be a number from 0 to 4"),
        ({"fold": 1}, "data.fold=1 is for cross-validation"),
        ({"folds": 5, "test_path": "x.csv"}, "leave out one of them"),
        ({"drop": ["Agee"]}, "data.drop=Agee is no column of .*, did you mean 'Age'"),
        ({"kinds": {"Age": "numbers"}}, "data.kinds.Age=numbers is no kind"),
        ({"columns": ["Survived"]}, "data.columns names the target"),
        ({"drop": ["Pclass", "Sex", "Age", "Fare", "Cabin", "Embarked"]}, "no column is left to learn from"),
        ({"target": "Surviver"}, "data.target=Surviver is no column of"),
        ({"kinds": {"Sex": "number"}}, "column 'Sex' holds '(fe)?male', which is no finite number"),
        ({"task": "some"}, "data.task=some is not known"),
        ({"val_path": "nosuch.csv"}, "data.val_path=nosuch.csv does not exist"),
    ],
)
def test_what_cannot_be_is_a_sentence(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    path = str(passengers(tmp_path / "t.csv"))
    with pytest.raises((DataError, RequestError), match=message):
        table(path, **{"target": "Survived", **keys})


def test_another_table_is_encoded_as_in_training(tmp_path: Path) -> None:
    path = passengers(tmp_path / "t.csv")
    trained: Splits = table(str(path), target=1)
    other = write_rows(
        tmp_path / "new.csv",
        ["Embarked", "Sex", "Survived", "Fare", "Pclass", "extra"],
        [("S", "female", 1, 10, 2, "a"), ("X", "male", 0, "", 3, "b")],
    )
    splits = table(str(other), target=1, test_fraction=0.0, preprocessing=dict(trained.spec.preprocessing))
    assert splits.spec.feature_names == trained.spec.feature_names
    assert isinstance(splits.train, Split)
    values = dict(zip(splits.spec.feature_names, splits.train.inputs[0].T.tolist(), strict=True))
    assert values["Sex=female"] == [1, 0]
    assert [values[f"Embarked={name}"] for name in "CQS"] == [[0, 0], [0, 0], [1, 0]]
    assert values["Age missing"] == [1, 1]
    columns = {column["name"]: column for column in trained.spec.preprocessing["columns"]}
    fill, mean, std = columns["Fare"]["scale"]
    assert values["Fare"] == pytest.approx([(10 - mean) / std, (fill - mean) / std])
    assert splits.train.targets.tolist() == [1, 0]
    notes = " ".join(splits.notes)
    assert "Age, Cabin are missing" in notes
    assert "extra is left out" in notes
    assert "in another order" in notes
    assert "'Embarked' holds what training did not have, and counts as none of its categories: X." in notes


def test_diabetes_as_published_is_read_as_it_is(tmp_path: Path) -> None:
    """Numbers alone, no header: the inputs are those of data=csv before."""
    draw = np.random.default_rng(0)
    rows = [[*row, int(row.sum() > 0)] for row in draw.normal(size=(80, 8)).round(6)]
    path = tmp_path / "diabetes.csv.gz"
    path.write_bytes(gzip.compress("\n".join(",".join(map(str, row)) for row in rows).encode()))
    splits = table(str(path), normalize=False, test_fraction=0.0)
    assert isinstance(splits.train, Split)
    assert np.allclose(splits.train.inputs[0].numpy(), np.array(rows)[:, :8])
    assert splits.spec.class_names == ("0", "1")
    assert splits.spec.feature_names == tuple(f"column_{number}" for number in range(8))


def test_several_targets_are_values_or_labels(tmp_path: Path) -> None:
    rows = [(i, 100 * i + 0.5, i + 0.5, i % 2, int(i % 3 == 0)) for i in range(30)]
    path = str(write_rows(tmp_path / "t.csv", ["x", "a", "b", "even", "third"], rows))
    splits = table(path, target=["a", "b"], test_fraction=0.0)
    assert (splits.spec.task, splits.spec.output_size) == ("regression", 2)
    assert isinstance(splits.train, Split)
    assert splits.train.targets[3].tolist() == [300.5, 3.5]
    assert splits.spec.target_mean == (pytest.approx(1450.5), pytest.approx(15.0))

    splits = table(path, target=["even", "third"])
    assert (splits.spec.task, splits.spec.class_names) == ("multilabel", ("even", "third"))
    assert splits.spec.target_mean == ()
    splits = table(path, target=[])
    assert (splits.spec.output_size, splits.spec.feature_names) == (0, ("x", "a", "b", "even", "third"))
    with pytest.raises(RequestError, match="names column 'a' twice"):
        table(path, target=["a", "a"])
    with pytest.raises(DataError, match=r"line 2: column 'a' holds 0.5, and multilabel takes 0 and 1"):
        table(path, target=["a", "even"], task="multilabel")


def test_a_target_that_is_another_in_each_row_is_no_class(tmp_path: Path) -> None:
    splits = table(str(passengers(tmp_path / "t.csv")), target="Name")
    assert "column 'Name', is another class in each row" in splits.nothing_to_learn


def test_dates_of_mails_and_unix_stamps_are_dates(tmp_path: Path) -> None:
    """Name and size must both say that a number is a stamp; pandas tells the parts."""
    import pandas

    stamps = [1_700_000_000 + 40_000 * number for number in range(30)]
    moments = pandas.to_datetime(stamps, unit="s")
    mails = [moment.strftime("%a, %d %b %Y %H:%M:%S +0100") for moment in moments]
    rows = [[stamp, stamp * 1000, stamp, mail, stamp / 7] for stamp, mail in zip(stamps, mails, strict=True)]
    names = ["created_at", "eventTime", "revenue", "sent", "y"]
    path = str(write_rows(tmp_path / "t.csv", names, rows))
    splits = table(path, target="y", test_fraction=0.0, normalize=False)
    assert isinstance(splits.train, Split)
    assert "'created_at' was read as Unix time, in UTC; data.kinds={created_at: number}" in " ".join(splits.notes)
    values = dict(zip(splits.spec.feature_names, splits.train.inputs[0].T.tolist(), strict=True))
    for name in ("created_at", "eventTime", "sent"):
        assert values[f"{name} day"] == moments.day.tolist()
        assert values[f"{name} hour"] == moments.hour.tolist()
    assert values["revenue"] == stamps

    as_typed = table(path, target="y", test_fraction=0.0, kinds={"created_at": "number"})
    assert "created_at" in as_typed.spec.feature_names
    assert "created_at" not in " ".join(as_typed.notes)
