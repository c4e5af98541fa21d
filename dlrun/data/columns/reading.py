"""Tables as files have them: text of any separator and encoding, Excel, Parquet and Feather, all as cells of text."""

import codecs
import csv
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from dlrun.core.errors import DataError, RequestError, join_names
from dlrun.core.format import format_count
from dlrun.core.suggest import did_you_mean
from dlrun.data.columns.arrow_text import FEWEST_BYTES, read_columns
from dlrun.data.columns.cells import as_cells, choose_decimal, is_gap
from dlrun.data.files.table import Table, parse_numbers, parse_rows, read_bytes

EXCEL = (".xlsx", ".xlsm", ".xls")
_OLD_EXCEL = b"\xd0\xcf\x11\xe0"
PARQUET = (".parquet", ".pq")
FEATHER = (".feather", ".arrow")

# Other programs' tables, and how they become a file that is read.
_OTHERS = {
    ".ods": "save it as .xlsx or .csv",
    ".numbers": "export it as .xlsx or .csv",
    ".gsheet": "download it as .csv",
    ".sas7bdat": "type pandas.read_sas(file).to_csv(...)",
    ".xpt": "type pandas.read_sas(file).to_csv(...)",
    ".dta": "type pandas.read_stata(file).to_parquet(...)",
    ".sav": "type pandas.read_spss(file).to_parquet(...), after pip install pyreadstat",
    ".rds": "type write.csv(x, 'table.csv') in R",
    ".rdata": "type write.csv(x, 'table.csv') in R",
    ".json": "type pandas.read_json(file).to_csv(...)",
    ".jsonl": "read it by pandas.read_json(file, lines=True), and write that by .to_csv(...)",
    ".xml": "type pandas.read_xml(file).to_csv(...)",
    ".html": "type pandas.read_html(file)[0].to_csv(...)",
    ".orc": "type pandas.read_orc(file).to_parquet(...)",
    ".h5": "type pandas.read_hdf(file).to_parquet(...)",
    ".pkl": "type pandas.read_pickle(file).to_parquet(...), if you trust the file",
    ".db": "type pandas.read_sql(query, connection).to_csv(...)",
    ".sqlite": "type pandas.read_sql(query, connection).to_csv(...)",
    ".zip": "unpack it",
    ".bz2": "unpack it, or pack it as .gz",
    ".xz": "unpack it, or pack it as .gz",
    ".zst": "unpack it, or pack it as .gz",
    ".7z": "unpack it",
}
# Small tables that come with dlrun, for lessons and first tries.
_OWN_PREFIX = "dlrun:"
_OWN_TABLES = Path(__file__).parent.parent / "shipped"

_SEPARATORS = (",", ";", "\t", "|")
_SAMPLE_LINES = 50
_SAMPLE_CHARACTERS = 1_000_000
_YEARS = range(1800, 2201)
# A message lists so many lines or cells at once.
MOST_TROUBLES = 10


@dataclass(frozen=True)
class TextFormat:
    """How a text file is to be read; None is judged by the file itself."""

    separator: str | None = None
    header: bool | None = None
    encoding: str | None = None
    decimal: str | None = None


def unescape_separator(separator: str | None) -> str | None:
    """The separator that a key means: a command line cannot hold a tab conveniently, so it is typed as \\t."""
    return "\t" if separator == "\\t" else separator


@dataclass(frozen=True)
class TableFile:
    """A table with what was judged about its file.

    separator, encoding: of text files, else None; unnamed: positions of columns without a name in the header line;
    sources: files with their numbers of rows, where several were joined; has_lines: whether rows are lines of the file.
    """

    table: Table
    separator: str | None
    encoding: str | None
    decimal: str
    sha256: str
    notes: tuple[str, ...] = ()
    unnamed: frozenset[int] = frozenset()
    sources: tuple[tuple[Path, int], ...] = ()
    has_lines: bool = True

    def find_source(self, row: int) -> Path:
        """The file that a row comes from."""
        for path, count in self.sources:
            if row < count:
                return path
            row -= count
        return self.table.path


def read_file(path: Path, text_format: TextFormat, key: str = "data.path") -> TableFile:
    """Read a table; its format follows from the ending of its name.

    key: of the config, for messages. DataError for a file that is missing, damaged or ragged, RequestError for a
    format that it does not have.
    """
    _check_format(text_format)
    content = read_bytes(locate(path), key)
    sha256 = hashlib.sha256(content).hexdigest()
    ending = path.suffix.lower()
    if ending in _OTHERS:
        raise RequestError(f"{path}: {ending} is no format of tables that is read here; {_OTHERS[ending]}")
    if ending in (*PARQUET, *FEATHER):
        return from_frame(path, _read_arrow(path, content), sha256)

    notes: list[str] = []
    separator = None
    encoding = None
    if ending in EXCEL:
        lines, rows = _read_excel(path, content, notes)
    else:
        text, encoding = decode(path, content, text_format.encoding, notes)
        separator = text_format.separator or choose_separator(path, text, notes)
        if len(content) >= FEWEST_BYTES:
            table_file = _read_large(path, content, text, text_format, separator, encoding, sha256, notes)
            if table_file is not None:
                return table_file
        lines, rows = _parse_text(path, text, separator, notes)

    return _build_from_rows(path, lines, rows, text_format, separator, encoding, sha256, notes)


def _parse_text(path: Path, text: str, separator: str, notes: list[str]) -> tuple[list[int], list[list[str]]]:
    """The lines that rows end in, and the rows; of a tab-separated file quotation marks may be text."""
    try:
        return parse_rows(path, text, separator)
    except DataError:
        if separator != "\t":
            raise
        numbered = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1)]
        rows = [line.split("\t") for _, line in numbered if line]
        if len({len(row) for row in rows}) != 1:
            raise
        notes.append("quotation marks do not pair, and were read as a part of the texts.")
        return [number for number, line in numbered if line], rows


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes; "" where it cannot be read."""
    try:
        return hashlib.sha256(locate(path).read_bytes()).hexdigest()
    except (OSError, RequestError):
        return ""


def locate(path: Path) -> Path:
    """Where a file lies: `dlrun:NAME` is a table that comes with dlrun; RequestError for a name that it lacks."""
    if not str(path).startswith(_OWN_PREFIX):
        return path
    name = str(path).removeprefix(_OWN_PREFIX)
    names = sorted(file.name for file in _OWN_TABLES.glob("*.csv"))
    if name not in names:
        raise RequestError(f"{path} is no table of dlrun's; {did_you_mean(name, names)}there are {join_names(names)}")
    return _OWN_TABLES / name


def _build_from_rows(
    path: Path,
    lines: list[int],
    rows: list[list[str]],
    text_format: TextFormat,
    separator: str | None,
    encoding: str | None,
    sha256: str,
    notes: list[str],
) -> TableFile:
    if not rows:
        raise DataError(f"{path} is empty: it needs a row a sample")

    rows = _fit_header(rows, text_format.header)
    _refuse_ragged(path, lines, rows, separator)
    names, unnamed, has_header = _choose_names(rows, text_format.header, notes)
    if has_header:
        # Data begin one line further down; messages name lines of the file.
        lines = lines[1:]
        rows = rows[1:]

    if not rows:
        raise DataError(f"{path} holds a header line only: add rows, or type data.header=false")

    table = _build_table(path, has_header, names, list(zip(*rows, strict=True)), lines)
    decimal = _choose_decimal(table, text_format, separator, notes)
    return TableFile(table, separator, encoding, decimal, sha256, tuple(notes), unnamed)


def _read_large(
    path: Path,
    content: bytes,
    text: str,
    text_format: TextFormat,
    separator: str,
    encoding: str,
    sha256: str,
    notes: list[str],
) -> TableFile | None:
    """The same by PyArrow, several times as fast; None for a file that is no plain one, or has a mistake somewhere."""
    # Cells that dlrun has guarded, a quotation mark behind a blank, and line ends of old.
    marks = []
    if "'" in text:
        marks += [f"{separator}'", "\n'", "\"'"]
    if '"' in text:
        marks.append(f'{separator} "')
    has_old_ends = "\r" in text and "\r" in text.replace("\r\n", "")
    if has_old_ends or text.startswith(("\n", "\r", "'")) or any(mark in text for mark in marks):
        return None
    head = _cut_lines(text)
    try:
        rows = list(csv.reader(head, delimiter=separator, strict=True))
    except csv.Error:
        return None

    # Separators that end each line are told by the other way of reading.
    if len({len(row) for row in rows}) != 1 or len(rows[0]) < 2 or not any(row[-1].strip() for row in rows):
        return None

    sample_notes: list[str] = []
    names, unnamed, has_header = _choose_names(rows, text_format.header, sample_notes)
    if not encoding.startswith("utf-8"):
        content = text.encode()
    columns = read_columns(content, separator, has_header, rows[has_header:])
    if columns is None:
        return None
    count = len(columns[0])
    # A row over several lines, say, or an empty line.
    if count != text.count("\n") + (not text.endswith("\n")) - has_header:
        return None

    first = 2 if has_header else 1
    table = _build_table(path, has_header, names, columns, range(first, first + count))
    notes += sample_notes
    decimal = _choose_decimal(table, text_format, separator, notes)
    return TableFile(table, separator, encoding, decimal, sha256, tuple(notes), unnamed)


def _choose_names(
    rows: list[list[str]], header: bool | None, notes: list[str]
) -> tuple[list[str], frozenset[int], bool]:
    """Names of the columns, positions of those that have none, and whether the first row holds them."""
    if header is None:
        header = starts_with_names(rows)
        if header and any(parse_numbers([cell]) is not None for cell in rows[0]):
            cells = ", ".join(rows[0][:3])
            notes.append(f"the first line, {cells} …, was taken for names; data.header=false reads it as a row.")

    names = [f"column_{number}" for number in range(len(rows[0]))]
    unnamed = frozenset[int]()
    if header:
        unnamed = frozenset(number for number, cell in enumerate(rows[0]) if not cell.strip())
        names = [cell.strip() or name for cell, name in zip(rows[0], names, strict=True)]
    return names, unnamed, header


def _choose_decimal(table: Table, text_format: TextFormat, separator: str | None, notes: list[str]) -> str:
    if text_format.decimal is not None:
        return text_format.decimal
    # Judged over all columns, as one program wrote them with one mark.
    decimal, example = choose_decimal(table.columns, separator or "")
    if example:
        other = "." if decimal == "," else ","
        value = example.replace(",", "." if decimal == "," else "")
        notes.append(f"cells such as {example} were read as {value}; data.decimal='{other}' reads them otherwise.")
    elif decimal == ",":
        notes.append("the comma was taken for the decimal mark; data.decimal=. says otherwise.")

    return decimal


def _build_table(
    path: Path, header: bool, names: list[str], columns: Sequence[Sequence[str]], lines: Sequence[int]
) -> Table:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: two columns are named '{repeated[0]}' in the header, rename one of them")
    if not lines:
        raise DataError(f"{path} is empty: it needs a row a sample")
    return Table(path, header, tuple(names), [as_cells(column) for column in columns], lines)


def _check_format(text_format: TextFormat) -> None:
    separator = text_format.separator
    if separator is not None and (len(separator) != 1 or separator in '\r\n"'):
        raise RequestError(f"data.separator='{separator}' must be one character, such as ',' or ';' or '\\t'")
    if text_format.decimal not in (None, ".", ","):
        raise RequestError(f"data.decimal={text_format.decimal} is no decimal mark; type data.decimal=. or ','")
    if text_format.encoding is not None:
        try:
            # Before the file is opened: the message is about the setting and not about the file.
            codecs.lookup(text_format.encoding)
        except LookupError:
            raise RequestError(
                f"data.encoding={text_format.encoding} is not known; type utf-8, utf-16 or latin-1"
            ) from None


# Text


def decode(path: Path, content: bytes, encoding: str | None, notes: list[str]) -> tuple[str, str]:
    """The text of a file, and its encoding."""
    name = encoding or judge_encoding(content)
    try:
        text = content.decode(name)
    except UnicodeError as error:
        start = error.start if isinstance(error, UnicodeDecodeError) else 0
        line = content[:start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not {name} text; type data.encoding=<its encoding>") from error

    # Any even number of bytes is UTF-16 text, of letters from everywhere.
    if b"\n" in content and "\n" not in text:
        raise DataError(f"{path} is not {name} text: it has no lines; leave out data.encoding, or type another one")
    if "\0" in text:
        raise DataError(f"{path} is no text: it holds bytes of 0; type data.path=<a table>")
    if encoding is None and not name.startswith("utf-8"):
        notes.append(f"the file was read as {name}, as it is not UTF-8; data.encoding=… says otherwise.")
    return text, name


def judge_encoding(content: bytes) -> str:
    """UTF-16 by its mark, or by its zeros; UTF-8 where that fits; else what Windows and Latin-1 write."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    sample = content[:1000]
    if len(sample) > 3 and len(content) % 2 == 0:
        # Latin letters in UTF-16 have a byte of 0 each.
        if sample[1::2].count(0) > len(sample) // 3 and 0 not in sample[::2]:
            return "utf-16-le"
        if sample[::2].count(0) > len(sample) // 3 and 0 not in sample[1::2]:
            return "utf-16-be"

    for name in ("utf-8-sig", "cp1252"):
        try:
            content.decode(name)
        except UnicodeDecodeError:
            continue
        return name

    return "latin-1"


def choose_separator(path: Path, text: str, notes: list[str]) -> str:
    """The separator that cuts the first lines into equally many cells; the comma where none does."""
    sample = _cut_lines(text)
    best = ((0.0, 0.0, 0), ",")
    for separator in _SEPARATORS:
        score = _score_separator(sample, separator)
        if score > best[0]:
            best = (score, separator)

    # Blanks separate only where nothing else does; the line of names may lack that of the row names.
    fewest = 1 - 1.01 / max(len(sample), 1)
    if best[0] == (0.0, 0.0, 0) and _score_separator(sample, " ")[0] >= max(fewest, 0.5):
        best = ((1.0, 1.0, 2), " ")

    separator = best[1]
    if separator != "," and not (separator == "\t" and ".tsv" in path.name):
        # Told wherever it could be a surprise: a comma, or a tab in a .tsv, is none.
        named = {"\t": "tab", " ": "blank"}.get(separator, f"'{separator}'")
        notes.append(f"columns are separated by {named}, as the lines have it; data.separator=… says otherwise.")
    return separator


def _cut_lines(text: str) -> list[str]:
    """The first lines."""
    # A line that the cut leaves incomplete is not among them, unless there is no other.
    lines = text[:_SAMPLE_CHARACTERS].splitlines()
    is_cut = len(text) > _SAMPLE_CHARACTERS and len(lines) > 1
    return lines[: min(_SAMPLE_LINES, len(lines) - is_cut)]


def _score_separator(sample: list[str], separator: str) -> tuple[float, float, int]:
    """Share of the lines with equally many cells, share of cells without another separator, and their number."""
    try:
        rows = [row for row in csv.reader(sample, delimiter=separator, skipinitialspace=True) if row]
    except csv.Error:
        return (0.0, 0.0, 0)

    if not rows:
        return (0.0, 0.0, 0)
    width, count = Counter(len(row) for row in rows).most_common(1)[0]
    if width < 2:
        return (0.0, 0.0, 0)

    # Commas are in numbers and in sentences, the others rarely.
    others = {";", "\t", "|"} - {separator}
    cells = list(chain.from_iterable(rows))
    pure = sum(others.isdisjoint(cell) for cell in cells)
    return (count / len(rows), pure / len(cells), width)


def _fit_header(rows: list[list[str]], header: bool | None) -> list[list[str]]:
    """The rows without a separator that ends each line; and a name for the column of row names, which has none."""
    below = rows[1:]
    width = len(rows[0])
    if width > 1 and all(len(row) == width and not row[-1].strip() for row in rows):
        return [row[:-1] for row in rows]
    if header is False or not below or any(len(row) != width + 1 for row in below):
        return rows
    if all(not row[-1].strip() for row in below):
        # Each row below ends in a separator, and the header does not.
        return [rows[0], *(row[:-1] for row in below)]
    # R writes a table so: names of rows, without a name of their own.
    if header or all(parse_numbers([cell]) is None for cell in rows[0]):
        return [["", *rows[0]], *below]
    return rows


def _refuse_ragged(path: Path, lines: list[int], rows: list[list[str]], separator: str | None) -> None:
    width = Counter(len(row) for row in rows).most_common(1)[0][0]
    # The first line counts for the header: it decides where there is no majority.
    if len(rows) < 4:
        width = len(rows[0])
    wrong = [(line, len(row)) for line, row in zip(lines, rows, strict=True) if len(row) != width]
    if not wrong:
        return

    descriptions = [
        f"line {line}: {format_count(count, 'field')}, where the others have {width}" for line, count in wrong
    ]
    message = f"{path}, " + "; ".join(descriptions[:MOST_TROUBLES])
    if len(descriptions) > MOST_TROUBLES:
        message += f"; and {format_count(len(descriptions) - MOST_TROUBLES, 'more line')}"
    advice = (
        "correct the lines" if separator is None else f"correct them, or type data.separator=… if not '{separator}'"
    )
    raise DataError(f"{message}; {advice}")


def starts_with_names(rows: list[list[str]]) -> bool:
    """Whether the first row holds names: text above numbers, numbers that only count, or text that comes only once."""
    first = [cell.strip() for cell in rows[0]]
    # A few rows will do: a later gap in a column must not make its header a row.
    below = rows[1:21]
    named = [cell for cell in first if cell]
    if not below or len(named) < len(first) - 1:
        return False
    # Two numbers that count are a row as likely as names, unless the column of the index has none.
    can_be_names = len(named) > 2 or len(named) < len(first)
    if can_be_names and _count_up(named) and int(named[0]) in (0, 1, *_YEARS):
        stripped_rows = [list(filter(None, map(str.strip, row))) for row in below]
        return not any(map(_count_up, stripped_rows))

    above_numbers = []
    for name, cells in zip(first, zip(*below, strict=True), strict=True):
        values = [cell for cell in cells if not is_gap(cell)]
        if values and parse_numbers(values) is not None:
            above_numbers.append(name)

    if above_numbers:
        texts = [name for name in above_numbers if parse_numbers([name]) is None and not is_gap(name)]
        numbers = [name for name in above_numbers if name and parse_numbers([name]) is not None]
        return bool(texts) and all(_is_label(name) for name in numbers)

    # Columns of text alone: names differ from all that stands below them.
    if len(set(named)) < len(named) or any(parse_numbers([name]) is not None or is_gap(name) for name in named):
        return False
    columns = list(zip(*below, strict=True))
    repeats = any(len(set(cells)) < len(cells) for cells in columns)
    return repeats and not any(name in cells for name, cells in zip(first, columns, strict=True))


def _count_up(cells: list[str]) -> bool:
    """Whether cells are consecutive whole numbers."""
    if len(cells) < 2 or not all(cell.isascii() and cell.isdigit() for cell in cells):
        return False
    numbers = [int(cell) for cell in cells]
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _is_label(name: str) -> bool:
    """Whether a number can be the name of a column: a small count, or a year."""
    return name.isascii() and name.isdigit() and int(name) <= 2200


# Files of other programs


def _import_pandas(path: Path, package: str) -> Any:
    try:
        import importlib

        importlib.import_module(package)
        import pandas
    except ImportError:
        install = "xlrd" if package == "xlrd" else "'dlrun[tables]'"
        raise RequestError(
            f"{path} needs pandas and {package} to be read; type pip install {install}, or save it as "
            f"{'.xlsx or ' if package == 'xlrd' else ''}.csv"
        ) from None

    return pandas


def _read_excel(path: Path, content: bytes, notes: list[str]) -> tuple[list[int], list[list[str]]]:
    """The first sheet; lines are the numbers of its rows."""
    # A workbook of before 2007 is another format, unless it is only named so.
    engine = "xlrd" if content.startswith(_OLD_EXCEL) else "openpyxl"
    pandas = _import_pandas(path, engine)
    try:
        with pandas.ExcelFile(io.BytesIO(content), engine=engine) as book:
            sheets = book.sheet_names
            # As objects, so that the rules for text decide on names, kinds and gaps here too.
            frame = pandas.read_excel(book, header=None, dtype=object, keep_default_na=False)
    except Exception as error:
        # openpyxl raises what its parts raise: zipfile, xml, KeyError.
        raise DataError(f"{path} is no Excel workbook that can be read: {error}; save it as .xlsx or .csv") from error

    if len(sheets) > 1:
        notes.append(f"of {len(sheets)} sheets the first, '{sheets[0]}', was read.")

    lines = []
    rows = []
    for number, values in enumerate(frame.itertuples(index=False, name=None), 1):
        cells = [_to_text(value) for value in values]
        if any(cells):
            lines.append(number)
            rows.append(cells)

    return lines, rows


def _read_arrow(path: Path, content: bytes) -> Any:
    """A frame of pandas."""
    pandas = _import_pandas(path, "pyarrow")
    reader = pandas.read_parquet if path.suffix.lower() in PARQUET else pandas.read_feather
    try:
        return reader(io.BytesIO(content))
    except Exception as error:
        # pyarrow has a class for each error, most of them OSError or ValueError.
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}; write the file anew") from error


def from_frame(path: Path, frame: Any, sha256: str) -> TableFile:
    """The table of a frame of pandas, whose rows are counted from 1 and are no lines of a file."""
    names = [str(name) for name in frame.columns]
    # By position, as two columns may have one name.
    columns = [tuple(map(_to_text, frame.iloc[:, i].tolist())) for i in range(len(names))]
    table = _build_table(path, True, names, columns, list(range(1, len(frame) + 1)) if names else [])
    return TableFile(table, None, None, ".", sha256, has_lines=False)


def _to_text(value: Any) -> str:
    """A cell as a text file would have it; a gap is empty."""
    if value is None or value != value or str(value) in ("NaT", "<NA>"):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)
