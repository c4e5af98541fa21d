"""Files of tables: encodings, separators, headers, and the sentences for what cannot be read."""

import gzip
from pathlib import Path

import pytest

from dlrun.core.errors import DataError, RequestError
from dlrun.data.columns.reading import TableFile, TextFormat, read_file

TEXT = "größe;preis;ort\n1,5;10;Köln\n2,5;20;Bonn\n3,5;30;Köln\n"


def read(path: Path, content: bytes | str, **keys: str | bool) -> TableFile:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_file(path, TextFormat(**keys))  # type: ignore[arg-type]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_encodings_and_separators_are_judged(tmp_path: Path, encoding: str) -> None:
    file = read(tmp_path / "t.csv", TEXT.encode(encoding))
    assert file.table.names == ("größe", "preis", "ort")
    assert tuple(file.table.columns[0]) == ("1,5", "2,5", "3,5")
    assert tuple(file.table.columns[2]) == ("Köln", "Bonn", "Köln")
    assert (file.separator, file.decimal, file.table.lines) == (";", ",", [2, 3, 4])
    assert any("separated by ';'" in note for note in file.notes)
    assert any("was read as" in note for note in file.notes) != encoding.startswith("utf-8")


@pytest.mark.parametrize("mark", [",", ";", "\t", "|", " "])
def test_any_separator_plain_or_packed(tmp_path: Path, mark: str) -> None:
    text = "a,b,c\n1,2,x\n3,4,y\n5,6,x\n".replace(",", mark)
    for name, content in (("t.csv", text.encode()), ("t.csv.gz", gzip.compress(text.encode()))):
        assert list(map(tuple, read(tmp_path / name, content).table.columns)) == [
            ("1", "3", "5"),
            ("2", "4", "6"),
            ("x", "y", "x"),
        ]


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("0,1,2\n0.5,1.5,2.5\n3.5,1.5,7\n", True),  # as pandas writes columns without names
        (",0,1\n0,0.5,1.5\n1,3.5,1.5\n", True),
        ("2019,2020,2021\n5,3,8\n1,2,9\n", True),
        ("1990,1991,y\n5,3,8\n1,2,9\n", True),
        ("1,2,3\n2,3,4\n3,4,5\n", False),  # rows that count, too
        ("5,3,8\n1,2,9\n", False),
        ("city,color\nBonn,red\nKiel,blue\nBonn,red\n", True),  # text alone, which never comes again
        ("Bonn,red\nKiel,blue\nBonn,red\n", False),
        ("1,a\n2,b\n", False),
        ("NA,1\n3,4\n5,6\n", False),  # a gap is no name
    ],
)
def test_the_header_is_judged(tmp_path: Path, text: str, header: bool) -> None:
    file = read(tmp_path / "t.csv", text)
    assert file.table.has_header is header
    assert len(file.table.lines) == len(text.splitlines()) - header
    assert read(tmp_path / "t.csv", text, header=not header).table.has_header is not header


def test_separators_that_end_lines_and_names_of_rows(tmp_path: Path) -> None:
    assert list(map(tuple, read(tmp_path / "t.csv", "a,b\n1,2,\n3,4,\n").table.columns)) == [("1", "3"), ("2", "4")]
    file = read(tmp_path / "r.csv", '"mpg" "cyl"\n"Mazda" 21 6\n"Fiat" 32 4\n')  # R's write.table
    assert file.table.names == ("column_0", "mpg", "cyl")
    assert file.unnamed == {0}


@pytest.mark.parametrize(
    ("content", "keys", "message"),
    [
        ("a,b\n1,2\n3\n4,5\n6,7,8\n9,1\n", {}, "line 3: 1 fields, where the others have 2; .*line 5: 3 fields"),
        ("", {}, "is empty"),
        ("a,b\n", {"header": True}, "a header line only"),
        ("a,a\n1,2\n", {}, "two columns are named 'a'"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00,1", {}, "is no text"),
        (b"a,\xfc\n1,2\n", {"encoding": "utf-8"}, "line 1: not utf-8 text; type data.encoding="),
        ('a,b\n1,"2\n', {}, "line 2: unexpected end"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | str, keys: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / "t.csv", content, **keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"separator": "ab"}, "data.separator='ab' must be one character"),
        ({"decimal": "x"}, "data.decimal=x is no decimal mark"),
        ({"encoding": "utf-9"}, "data.encoding=utf-9 is not known; type utf-8"),
    ],
)
def test_a_format_that_is_none(tmp_path: Path, keys: dict[str, str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read(tmp_path / "t.csv", "a,b\n1,2\n", **keys)


@pytest.mark.parametrize("name", ["t.xlsx", "t.parquet", "t.feather"])
@pytest.mark.slow
def test_tables_of_other_programs_are_the_same_cells(tmp_path: Path, name: str) -> None:
    pandas = pytest.importorskip("pandas", reason="the extra tables is not installed")
    pytest.importorskip("openpyxl" if name == "t.xlsx" else "pyarrow")
    frame = pandas.DataFrame(
        {
            "n": [1.0, None, 2.5],
            "k": [1, 2, 3],
            "s": ["a", None, "b"],
            "d": pandas.to_datetime(["2024-01-02", None, "2024-05-06 07:00"], format="ISO8601"),
        }
    )
    path = tmp_path / name
    getattr(frame, {"t.xlsx": "to_excel", "t.parquet": "to_parquet", "t.feather": "to_feather"}[name])(
        path, **({"index": False} if name == "t.xlsx" else {})
    )
    file = read_file(path, TextFormat())
    assert file.table.names == ("n", "k", "s", "d")
    assert list(map(tuple, file.table.columns[:3])) == [("1", "", "2.5"), ("1", "2", "3"), ("a", "", "b")]
    assert tuple(file.table.columns[3]) == ("2024-01-02 00:00:00", "", "2024-05-06 07:00:00")
    path.write_bytes(b"junk")
    with pytest.raises(DataError, match=f"{name} "):
        read_file(path, TextFormat())
