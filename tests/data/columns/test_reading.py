"""Files of tables: encodings, separators, headers, and the sentences for what cannot be read."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from dlrun.core.errors import DataError, RequestError
from dlrun.data.columns.cells import find_gaps, parse_column
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
        ("a,b\n1,2\n3\n4,5\n6,7,8\n9,1\n", {}, "line 3: 1 field, where the others have 2; .*line 5: 3 fields"),
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


@pytest.mark.parametrize("ending", [".ods", ".sas7bdat", ".dta", ".json", ".zip", ".xz"])
def test_formats_that_are_not_read_are_named_with_what_to_type(tmp_path: Path, ending: str) -> None:
    with pytest.raises(RequestError, match=rf"{ending} is no format of tables that is read here; (save|type|unpack)"):
        read(tmp_path / f"t{ending}", b"1")


def test_a_workbook_of_old_excel_says_what_to_install(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    with pytest.raises((RequestError, DataError), match=r"pip install xlrd|save it as .xlsx or .csv"):
        read(tmp_path / "t.xls", b"\xd0\xcf\x11\xe0" + bytes(600))


def test_a_separator_may_end_each_line(tmp_path: Path) -> None:
    file = read(tmp_path / "t.csv", "a,b,\n1,2,\n3,4,\n")
    assert file.table.names == ("a", "b")
    assert list(map(tuple, file.table.columns)) == [("1", "3"), ("2", "4")]


def write_large(changes: dict[int, str] | None = None) -> str:
    """More than a megabyte of numbers, gaps, categories and dates, some rows in another way."""
    rows = ["number,text,gap,day,whole"]
    for i in range(40_000):
        rows.append(f"{i / 7:.4f},level {i % 5},{'' if i % 9 else i / 3:.5},2024-01-{i % 28 + 1:02},{i % 100}")
    for line, row in (changes or {}).items():
        rows[line - 1] = row
    return "\n".join(rows) + "\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {20_000: '1.5,"a, b",NA,2024-01-01,3'},
        {20_000: '1.5,"two\nlines",NA,2024-01-01,3'},
        {20_000: "$1,x,n/a,?,+3"},
        {20_000: "1.5,'=x,1,2024-01-01,3"},
        {20_000: "", 30_000: "  1.5, b ,NaN,2024-01-01, 3"},
        {20_000: "inf,x,1e3,2024-01-01,1_000"},
        # Whole numbers are read as such, and these are not, or not plainly.
        {20_000: "1.5,x,1,2024-01-01,5.0"},
        {20_000: '"1.5",x,"",2024-01-01,007', 30_000: "1.5,x,.,2024-01-01,-"},
        {20_000: "+1.5,x,1,2024-01-01,12345678901234567890"},
    ],
)
def test_large_files_are_read_as_small_ones(
    changes: dict[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    text = write_large(changes)
    fast = read(tmp_path / "t.csv", text)
    monkeypatch.setattr("dlrun.data.columns.reading.FEWEST_BYTES", 10**9)
    slow = read(tmp_path / "t.csv", text)
    assert (fast.table.names, fast.decimal, fast.notes) == (slow.table.names, slow.decimal, slow.notes)
    assert list(fast.table.lines) == slow.table.lines
    for one, other in zip(fast.table.columns, slow.table.columns, strict=True):
        assert [cell.strip() for cell in one] == [cell.strip() for cell in other]
        assert find_gaps(one).tolist() == find_gaps(other).tolist()
        numbers, wrong = parse_column(one, ".")
        expected, expected_wrong = parse_column(other, ".")
        np.testing.assert_array_equal(numbers, expected)
        assert wrong.tolist() == expected_wrong.tolist()


@pytest.mark.slow
def test_a_mistake_in_a_large_file_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 20000: 2 fields, where the others have 5"):
        read(tmp_path / "t.csv", write_large({20_000: "1,2"}))
