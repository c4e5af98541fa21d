"""Data that are read from files of their own: the data section for each."""

from pathlib import Path

from dlrun.core.errors import RequestError
from dlrun.data.files.download import fetch_course_table
from dlrun.data.files.table import parse_numbers, read_table
from dlrun.data.names import TEST_SHA256, TRAIN_SHA256
from dlrun.data.tabular import DIABETES_SHA256
from dlrun.eject.plain import data_rows
from dlrun.eject.plain.data_formulas import column
from dlrun.eject.plain.source import Constant, Piece, filled, literal
from dlrun.eject.plain.training_run import TrainingRun

_DIABETES = """\
table = np.loadtxt(TABLE, delimiter=",")  # a row a patient: 8 measurements, and whether it is diabetes
features, labels = table[:, :-1], table[:, -1].astype(np.int64)
"""
_CSV = """\
with $open as file:
    rows = [row for row in csv.reader(file$delimiter, skipinitialspace=True) if row]$body
features = np.array([[float(cell) for cell in $others] for row in rows])
$target
"""
_TENSORS = """\
mean, std = features[$rows].mean(0), features[$rows].std(0)  #? normalize
std[(features[$rows] == features[$rows][0]).all(0)] = 1  # of a column that is constant  #? normalize & constant
features = (features - mean) / std  #? normalize
x = torch.tensor(features, dtype=$dtype)
y = torch.tensor($values)$column
"""
_NAMES = '''\
def read(part):
    """The names of one file, and their countries."""
    with $open as file:
        rows = [(name.strip(), country) for name, country in csv.reader(file, skipinitialspace=True)]
    return list(zip(*rows, strict=True))

def encoded(names, countries):
    """ASCII codes (N, longest) padded with 0, lengths (N,) and the numbers of the countries (N,)."""
    codes = torch.zeros(len(names), longest, dtype=torch.int64)
    for row, name in zip(codes, names, strict=True):
        row[: len(name)] = torch.tensor(list(name.encode("ascii")))
    return codes, torch.tensor([len(name) for name in names]), torch.tensor([number[c] for c in countries])

names, countries = read("train")
test_names, test_countries = read("test")
longest = max(map(len, names + test_names))
number = {country: i for i, country in enumerate(sorted(set(countries)))}
codes, lengths, y = encoded(names, countries)
test = encoded(test_names, test_countries)
'''


def diabetes(run: TrainingRun, root: str, test_fraction: float, normalize: bool, seed: int) -> Piece:
    """See data/tabular.py."""
    path = fetch_course_table("diabetes", root, "diabetes", DIABETES_SHA256)
    if run.spec.class_names != ("0", "1") or path.suffix not in (".gz", ".csv"):
        raise RequestError(f"{path} is not the published table, so format=python cannot write how it is read")
    constants = {"TABLE": Constant(path.resolve())}
    return _parted(run, _DIABETES, constants, "len(features)", False)


def csv(
    run: TrainingRun,
    path: str,
    target: str | int,
    task: str | None,
    header: bool | None,
    delimiter: str,
    test_fraction: float,
    normalize: bool,
    seed: int,
) -> Piece:
    """See data/tabular.py; DataError where the file is not there."""
    file = Path(path).expanduser()
    table = read_table(file, header, delimiter)
    index, last = table.find_column(target), len(table.names) - 1
    cell = "row[-1]" if index == last else f"row[{index}]"
    others = "row[:-1]" if index == last else "row[1:]" if index == 0 else f"row[:{index}] + row[{index + 1}:]"
    code = filled(
        _CSV,
        open=_open("TABLE", file),
        delimiter="" if delimiter == "," else f", delimiter={_delimiter(delimiter)}",
        body="[1:]  # behind the header" if table.has_header else "",
        others=others,
        target=_target(run, cell, parse_numbers(table.columns[index]) is not None),
    )
    return _parted(run, code, {"TABLE": Constant(file.resolve())}, "len(rows)", True)


def _delimiter(text: str) -> str:
    """The delimiter as source; a tab is typed as a backslash and a t."""
    return '"\\t"' if text == "\\t" else literal(text)


def _open(name: str, path: Path) -> str:
    if path.suffix == ".gz":
        return f'gzip.open({name}, "rt", encoding="utf-8-sig", newline="")'
    place = f"({name})" if " / " in name else name
    return f'{place}.open(encoding="utf-8-sig", newline="")'


def _target(run: TrainingRun, cell: str, numeric: bool) -> str:
    if run.spec.task == "regression":
        return f"targets = np.array([[float({cell})] for row in rows])"
    names = run.spec.class_names
    if numeric and any(str(float(name)) != name and str(int(float(name))) != name for name in names):
        # 007 and 7, or numbers of twenty digits, are classes that a float would merge.
        return f"classes = {list(names)!r}\nlabels = np.array([classes.index({cell}.strip()) for row in rows])"
    value = f"float({cell})" if numeric else f"{cell}.strip()"
    return f"classes, labels = np.unique([{value} for row in rows], return_inverse=True)"


def _parted(run: TrainingRun, code: str, constants: dict[str, Constant], count: str, careful: bool) -> Piece:
    """Features and labels (or targets) as columns of a table, and which rows train and test."""
    held_out = bool(run.has_test)
    if held_out and run.spec.task == "regression":
        code += "\n" + filled(data_rows.DRAWN, count=count, share=data_rows.share(count, careful))
    elif held_out:
        shared = data_rows.share("len(rows)", careful)
        code += "\n" + filled(data_rows.STRATIFIED, classes=len(run.spec.class_names), share=shared)
    flags = {"normalize": bool(run.spec.mean), "constant": 1.0 in run.spec.std}
    floats = f", dtype={run.dtype}" if run.spec.task == "regression" else ""
    values = f"targets{floats}" if run.spec.task == "regression" else "labels"
    rows = "train_rows" if held_out else ":"
    code += filled(_TENSORS, flags, rows=rows, dtype=run.dtype, values=values, column=column(run))
    return data_rows.parted(run, Piece(code, constants), indexed=held_out)


def names(run: TrainingRun, root: str) -> Piece:
    """See data/names.py."""
    paths = [fetch_course_table("names", root, f"names_{part}", sha) for part, sha in _NAMES_FILES]
    for path in paths:
        with_accents = [cell for cells in read_table(path, header=False).columns for cell in cells if _is_odd(cell)]
        if with_accents:
            raise RequestError(
                f"{path} holds '{with_accents[0]}', and format=python writes how plain ASCII names are read; "
                "write that name without accents"
            )
    suffix = paths[0].name.removeprefix("names_train")
    if paths[1].name != f"names_test{suffix}":
        raise RequestError(f"{paths[0]} and {paths[1]} are not packed alike; pack or unpack one of them")
    code = filled(_NAMES, open=_open(f'DATA / f"names_{{part}}{suffix}"', paths[0]))
    return data_rows.parted(run, Piece(code, {"DATA": Constant(paths[0].resolve().parent)}))


_NAMES_FILES = (("train", TRAIN_SHA256), ("test", TEST_SHA256))


def _is_odd(cell: str) -> bool:
    return not (cell.isascii() and cell.strip().isprintable())
