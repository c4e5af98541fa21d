"""Tables: which columns are the features, and what is wrong with a row."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from dlrun.core.errors import DataError
from dlrun.data.spec import DataSpec
from dlrun.inference.predict.read_table import TableReader
from dlrun.inference.predict.reader import Prepared

SPEC = DataSpec("vector", (2,), "regression", 1, feature_names=("area", "rooms"), mean=(10.0, 2.0), std=(5.0, 1.0))
BARE = DataSpec("vector", (2,), "regression", 1, feature_names=("column_0", "column_1"))


def read(reader: TableReader, word: str) -> list[tuple[str, list[float] | str, str | None]]:
    """Name, inputs or error, and label of each item."""
    results: list[tuple[str, list[float] | str, str | None]] = []
    for item in reader.read_items(word):
        try:
            row_inputs = Prepared(()) if item.error else reader.prepare(item)
            results.append((item.name, item.error or row_inputs.inputs[0].tolist(), item.label))
        except DataError as error:
            results.append((item.name, str(error), item.label))
    return results


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("area,rooms\n20,3\n", None),
        ("rooms,colour,price,area\n3,red,7,20\n", "7"),
        ("20,3\n", None),
        ("20,3,7\n", "7"),
        ("\ufeffarea , rooms\n 20, 3\n", None),
    ],
    ids=["by name", "by name in another order", "by count", "by count with the label", "byte order mark, spaces"],
)
def test_columns_are_found_by_name_or_by_count(tmp_path: Path, text: str, label: str | None) -> None:
    (tmp_path / "t.csv").write_text(text)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode()))
    target = "price" if "price" in text else -1
    for path in (tmp_path / "t.csv", tmp_path / "t.csv.gz"):
        ((_, inputs, note),) = read(TableReader(SPEC, target), str(path))
        assert inputs == [(20 - 10) / 5, (3 - 2) / 1]
        assert note == label


def test_the_label_stands_where_the_training_had_it(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("7,20,3\n")
    assert read(TableReader(SPEC, 0), str(tmp_path / "t.csv"))[0][1:] == ([2.0, 1.0], "7")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("area,room\n1,2\n", "no column rooms; did you mean room?"),
        ("1\n", r"1 column, where the model takes 2 \(area, rooms\)"),
        ("1,2,3,4\n", "4 columns"),
        ("", "is empty"),
        ("\n\n", "is empty"),
        ('1,2\n"3,4\n', "unexpected end of data"),
    ],
)
def test_a_table_that_does_not_fit(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read(TableReader(SPEC, -1), str(tmp_path / "t.csv"))


def test_a_target_known_by_name_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("1,2,3\n")
    with pytest.raises(DataError, match="3 columns"):
        read(TableReader(SPEC, "price"), str(tmp_path / "t.csv"))


def test_a_bad_row_costs_itself_only(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3\n4,x\n5,\n6,nan\n7,1_000\n\n8,9\n")
    rows = read(TableReader(BARE, -1), str(tmp_path / "t.csv"))
    assert [name.rpartition(":")[2] for name, *_ in rows] == ["2", "3", "4", "5", "6", "7", "9"]
    assert [error for _, error, _ in rows] == [
        [1.0, 2.0],
        "1 field, where the table has 2",
        "column 'column_1' holds 'x', which is no finite number",
        "column 'column_1' is empty",
        "column 'column_1' holds 'nan', which is no finite number",
        "column 'column_1' holds '1_000', which is no finite number",
        [8.0, 9.0],
    ]


def test_rows_of_the_command_line_and_arrays(tmp_path: Path) -> None:
    assert read(TableReader(SPEC, -1), "20,3") == [("20,3", [2.0, 1.0], None)]
    assert "1 numbers, where the model takes 2" in str(read(TableReader(SPEC, -1), "-4"))
    np.save(tmp_path / "x.npy", np.array([[20, 3], [10, np.inf]]))
    (_, first, _), (name, second, _) = read(TableReader(SPEC, -1), str(tmp_path / "x.npy"))
    assert (first, second) == ([2.0, 1.0], "it holds what is not a finite number")
    assert name.endswith("x.npy[1]")
    np.save(tmp_path / "wide.npy", np.zeros((4, 3)))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    for word, message in (("wide.npy", "shape 4×3"), ("objects.npy", "array"), ("none.npy", "no such file")):
        with pytest.raises(DataError, match=message):
            read(TableReader(SPEC, -1), str(tmp_path / word))


def test_a_folder_and_what_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no"):
        read(TableReader(SPEC, -1), str(tmp_path))
    (tmp_path / "b.csv").write_text("1,2\n")
    (tmp_path / "a.csv").write_text("3,4\n")
    assert [name.rpartition("/")[2] for name, *_ in read(TableReader(BARE, -1), str(tmp_path))] == [
        "a.csv:1",
        "b.csv:1",
    ]
    with pytest.raises(DataError, match=r"no such file; did you mean a\.csv"):
        read(TableReader(BARE, -1), str(tmp_path / "aa.csv"))
    (tmp_path / "latin.csv").write_bytes(b"1,2\n3,\xe9\n")
    with pytest.raises(DataError, match="UTF-8"):
        read(TableReader(BARE, -1), str(tmp_path / "latin.csv"))
