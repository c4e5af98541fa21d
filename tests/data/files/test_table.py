import gzip

import numpy as np
import pytest

from dlrun.core.errors import DataError, DlrunError, RequestError
from dlrun.data.files.table import parse_numbers, read_table


def write(folder, text, name="t.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_reads_quotes_blank_lines_bom_and_crlf(tmp_path):
    text = '\ufeffa,"b, c"\r\n1,2\r\n\r\n 3 , "4"\r\n'
    table = read_table(write(tmp_path, text))
    assert table.names == ("a", "b, c")
    assert table.lines == [2, 4]
    assert table.read_numbers(0).tolist() == [1, 3]
    assert table.read_numbers(1).tolist() == [2, 4]


def test_gzipped_equals_plain(tmp_path):
    plain = read_table(write(tmp_path, "1,2\n3,4\n"))
    packed = read_table(write(tmp_path, gzip.compress(b"1,2\n3,4\n", mtime=0), "t.csv.gz"))
    assert plain.columns == packed.columns


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("a,b\n1,2\n", True),
        ("1,2\n3,4\n", False),
        ("1.5,cat\n2.5,dog\n", False),
        ("size,kind\n1.5,cat\n2.5,dog\n", True),
        ("x,2\n3,4\n", False),  # one stray text is an error in the data, not a header
        ("a,b\nc,d\n", False),
        ("1,2\n", False),
        (",b\n0,2\n", True),
    ],
)
def test_header_is_detected(tmp_path, text, header):
    assert read_table(write(tmp_path, text)).has_header is header


def test_header_can_be_said(tmp_path):
    path = write(tmp_path, "1,2\n3,4\n")
    assert read_table(path, header=True).names == ("1", "2")
    assert read_table(path, header=False).names == ("column_0", "column_1")
    assert read_table(write(tmp_path, "a,b\n1,2\n"), header=False).columns[0] == ("a", "1")


@pytest.mark.parametrize("delimiter", [";", "\t", "\\t"])
def test_delimiter(tmp_path, delimiter):
    text = "1{0}2\n3{0}4\n".format("\t" if "t" in delimiter else delimiter)
    assert read_table(write(tmp_path, text), delimiter=delimiter).read_numbers(1).tolist() == [2, 4]


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        ("", "t.csv", "is empty"),
        ("\n\n", "t.csv", "is empty"),
        ("a,b\n1,2\n3\n", "t.csv", r"line 3: 1 field, where line 1 has 2"),
        ("1,2\n3,4,5\n", "t.csv", r"line 2: 3 fields, where line 1 has 2"),
        ("a,a\n1,2\n", "t.csv", "two columns are named 'a'"),
        ('1,2\n3,"4\n', "t.csv", "line 2: unexpected end of data"),
        (b"a,b\n1,2\n\xff\xfe,3\n", "t.csv", "line 3: not UTF-8"),
        ("a,b\n", "t.csv.gz", "not gzipped"),
        (gzip.compress(b"1,2\n" * 1000, mtime=0)[:-12], "t.csv.gz", "delete it"),
        (b"a\0b,2\n", "t.csv", "line 1: column 'column_0' holds"),
    ],
)
def test_damaged_files(tmp_path, content, name, words):
    with pytest.raises(DataError, match=words) as caught:
        read_table(write(tmp_path, content, name)).read_numbers(0)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_header_without_rows(tmp_path):
    with pytest.raises(DataError, match="header line only"):
        read_table(write(tmp_path, "a,b\n"), header=True)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("abc", "holds 'abc', which is not a finite number"),
        ("nan", "holds 'nan'"),
        ("-inf", "holds '-inf'"),
        ("", "is empty"),
        ("  ", "is empty"),
        ("1_000", "holds '1_000'"),
    ],
)
def test_cells_that_are_no_numbers(tmp_path, cell, words):
    table = read_table(write(tmp_path, f"a,b\n1,2\n3,{cell}\n5,6\n"), header=True)
    with pytest.raises(DataError, match=rf"t\.csv, line 3: column 'b' {words}"):
        table.read_numbers(1)


def test_missing_file_names_a_close_one(tmp_path):
    write(tmp_path, "1,2\n", "table.csv")
    with pytest.raises(DataError, match=r"data\.path=.*tabel\.csv does not exist, did you mean 'table\.csv'\?"):
        read_table(tmp_path / "tabel.csv")
    with pytest.raises(DataError, match="does not exist"):
        read_table(tmp_path / "nowhere" / "t.csv")
    with pytest.raises(DataError, match="is a folder: type"):
        read_table(tmp_path)


@pytest.mark.parametrize("delimiter", ["", ",,", "\n", '"'])
def test_impossible_delimiter(tmp_path, delimiter):
    with pytest.raises(RequestError, match=r"data.delimiter"):
        read_table(write(tmp_path, "1,2\n"), delimiter=delimiter)


def test_columns_by_name_and_number(tmp_path):
    table = read_table(write(tmp_path, "size,price\n1,2\n"))
    assert [table.find_column(i) for i in ("size", "price", 0, 1, -1, -2)] == [0, 1, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("size,price\n1,2\n", "prize", "did you mean 'price'?"),
        ("size,price\n1,2\n", "zzz", "there are size, price"),
        ("size,price\n1,2\n", 2, "type a number from 0 to 1"),
        ("size,price\n1,2\n", -3, "type a number from 0 to 1"),
        ("1,2\n3,4\n", "price", "data.header=true"),
    ],
)
def test_column_that_does_not_exist(tmp_path, text, column, words):
    with pytest.raises(DlrunError) as caught:
        read_table(write(tmp_path, text)).find_column(column)
    assert words in str(caught.value)


def test_parse_tells_numbers_from_text():
    assert np.array_equal(parse_numbers(["1", " 2.5 ", "-3e2"]), [1, 2.5, -300])
    assert parse_numbers(["1", "x"]) is None
    assert parse_numbers([]).shape == (0,)
