"""The data section: what its templates have to know of the data."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from dlrun.core.errors import RequestError
from dlrun.data.columns.cells import GAPS, as_cells, is_gap
from dlrun.data.columns.preprocessing import GAP, CategoryColumn, DateColumn, NumberColumn, Preprocessing
from dlrun.data.columns.reading import TextFormat, read_file
from dlrun.data.files.download import fetch_course_table
from dlrun.data.files.idx import find_idx
from dlrun.data.files.table import parse_numbers, read_table
from dlrun.data.images import IDX_FILES
from dlrun.data.names import TEST_SHA256, TRAIN_SHA256
from dlrun.data.spec import DataSpec
from dlrun.data.synthetic import NOISE_SCALES
from dlrun.data.tabular import DIABETES_SHA256, read_classes
from dlrun.eject.refusal import cannot
from dlrun.eject.source import Code, write_literal

# The template of each target, and the arguments that it knows.
DATA_TEMPLATES = {
    "dlrun.data.synthetic.line": ("synthetic", "rows slope intercept noise seed"),
    "dlrun.data.synthetic.regression": ("synthetic", "rows features noise bias seed"),
    "dlrun.data.synthetic.parabola": ("synthetic", "rows noise noise_scale seed"),
    "dlrun.data.synthetic.blobs": ("synthetic", "rows_per_class spread task seed"),
    "dlrun.data.shapes.points": ("shapes", "x y task class_names feature_names"),
    "dlrun.data.shapes.flower": ("shapes", "rows petals radius noise task seed"),
    "dlrun.data.words.words": ("words", "source target"),
    "dlrun.data.tabular.diabetes": ("tabular", "root test_fraction normalize seed"),
    "dlrun.data.tabular.csv": ("tabular", "path target task header delimiter test_fraction normalize seed"),
    "dlrun.data.tables.table": (
        "table",
        "path target task header separator encoding decimal columns drop categorical kinds missing split split_column "
        "folds fold val_path test_path test_fraction normalize seed preprocessing delimiter category_codes",
    ),
    "dlrun.data.names.names": ("names", "root"),
    "dlrun.data.images.digits": ("images", "image_size mean std positive channels test_fraction seed"),
}
_IDX_FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}
for _name in (*_IDX_FOLDERS, "cifar10", "cifar100"):
    DATA_TEMPLATES[f"dlrun.data.images.{_name}"] = ("images", "root image_size mean std")


def describe_data(spec: DataSpec, target: str, template: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The data's arguments, and what their template needs besides; in capitals, they are constants of the script.

    RequestError for data that cannot be written, DataError for a file that is not there.
    """
    name = target.rpartition(".")[2]
    details: dict[str, Any] = {}
    match template:
        case "synthetic":
            if name == "parabola":
                scale = arguments["noise_scale"]
                draw = arguments["noise"]
                details = {"draw": draw, "noise": float(NOISE_SCALES[draw] if scale is None else scale)}
        case "shapes":
            if name == "points":
                details = _describe_points(spec, arguments)
        case "tabular":
            details = _describe_csv(spec, arguments) if name == "csv" else _describe_diabetes(spec, arguments)
        case "table":
            details = _describe_table(spec, arguments)
        case "names":
            details = _describe_names(arguments)
        case "images":
            details = _describe_images(spec, name, arguments)

    # What was read from the data counts more than what was asked for, such as the mean of the images.
    data = {"template": f"datasets/{template}.py.j2", "name": name, **arguments, **details}
    # The share is a key of all data, and its default in the signature of one no value.
    data.pop("val_fraction", None)
    # SEED is that of the training.
    data["data_seed"] = int(data.pop("seed", None) or 0)
    return data


def _describe_points(spec: DataSpec, arguments: dict[str, Any]) -> dict[str, Any]:
    inputs = _list_rows(arguments["x"])
    targets: list[Any] = _list_rows(arguments["y"])
    if spec.task == "multiclass":
        targets = [int(row[0]) for row in targets]
    return {"x": inputs, "y": targets}


def _list_rows(values: list[Any]) -> list[list[float]]:
    """Every value as a row; a number alone is a row of one."""
    rows = []
    for value in values:
        row = value if isinstance(value, list) else [value]
        rows.append([float(number) for number in row])
    return rows


def _describe_diabetes(spec: DataSpec, arguments: dict[str, Any]) -> dict[str, Any]:
    path = fetch_course_table("diabetes", arguments["root"], "diabetes", DIABETES_SHA256)
    if spec.class_names != ("0", "1") or path.suffix not in (".gz", ".csv"):
        raise RequestError(f"{path} is not the published table, so format=python cannot write how it is read")
    return {"table": path.resolve()}


def _describe_csv(spec: DataSpec, arguments: dict[str, Any]) -> dict[str, Any]:
    path = Path(arguments["path"]).expanduser()
    table = read_table(path, arguments["header"], arguments["delimiter"])
    details: dict[str, Any] = {"table": path.resolve(), "has_header": table.has_header}
    details["is_packed"] = path.suffix == ".gz"
    # A tab is typed as a backslash and a t.
    details["delimiter"] = arguments["delimiter"].replace("\\t", "\t")

    if not isinstance(arguments["target"], str | int):
        raise RequestError(
            "format=python cannot write a table with several targets; format=onnx takes the model itself"
        )

    index = table.find_column(arguments["target"])
    details["index"] = index
    details["is_last"] = index == len(table.names) - 1
    details["is_numeric"] = parse_numbers(table.columns[index]) is not None
    # 007 and 7, or numbers of twenty digits, are classes that a float would merge.
    has_names = details["is_numeric"] and any(_merges_as_number(name) for name in spec.class_names)
    details["class_names"] = list(spec.class_names) if has_names else None
    return details


def _describe_table(spec: DataSpec, arguments: dict[str, Any]) -> dict[str, Any]:
    """How the script reads a table: the constants are those of the run's preprocessing."""
    for name in ("split_column", "folds", "val_path", "test_path"):
        if arguments[name] is not None:
            raise cannot(f"data.{name}={arguments[name]}")

    saved = Preprocessing.from_plain(spec.preprocessing)
    path = Path(arguments["path"]).expanduser()
    text_format = TextFormat(saved.text_format["separator"], saved.has_names, saved.text_format["encoding"], ".")
    if text_format.separator is None or saved.decimal != ".":
        raise cannot("how this table is read: it takes text with points as decimal marks")
    file = read_file(path, text_format)
    table = file.table
    if len(saved.target_indices) != 1:
        raise cannot("a table of several targets, or of none")

    features = []
    for column in saved.columns:
        cells = as_cells(table.columns[column.index])
        if isinstance(column, DateColumn):
            raise cannot(f"how the dates of '{column.name}' become numbers")
        if isinstance(column, NumberColumn):
            is_odd = (not is_gap(cell) and parse_numbers([cell]) is None for cell in cells)
            if cells.plain_numbers is None and any(is_odd):
                raise cannot(f"how the numbers of '{column.name}' are read, with their signs and marks")
            scale = column.scale
            call = f"number({column.index}, {scale.fill!r}, {scale.mean!r}, {scale.std!r})"
            features.append((Code(call), column.name))
            if column.has_indicator:
                features.append((Code(f"gap({column.index})"), f"{column.name} missing"))
            continue

        call = f"category({column.index}, {write_literal(list(column.categories))})"
        if column.has_codes:
            features.append((Code(call), column.name))
        else:
            # A row of the identity for each category; zeros for another one.
            size = len(column.categories)
            features.append((Code(f"np.eye({size + 1})[{call}][:, 1:]"), column.name))

    index = saved.target_indices[0]
    target = as_cells(table.columns[index])
    names: list[Any] = list(spec.class_names)
    is_numeric = target.plain_numbers is not None
    if spec.task == "regression" and not is_numeric:
        raise cannot("how the target is read, with its signs and marks")
    if spec.task != "regression":
        counts = np.bincount(read_classes(table, index, "multiclass").values, minlength=len(names))
        # Smaller ones are drawn in another way.
        if counts.min() < 10 or len(names) * 20 > len(table.lines):
            raise cannot("how the parts are drawn where a class has few rows")
        is_numeric = is_numeric and not any(_merges_as_number(name) for name in names)
        names = list(map(float, names)) if is_numeric else names

    kinds = [type(column) for column in saved.columns]
    return {
        "table": path.resolve(),
        "is_packed": path.suffix == ".gz",
        "file_encoding": str(text_format.encoding),
        "file_separator": str(text_format.separator),
        "has_header": saved.has_names,
        "features": features,
        "has_numbers": NumberColumn in kinds,
        "has_categories": CategoryColumn in kinds,
        "has_indicators": any(isinstance(c, NumberColumn) and c.has_indicator for c in saved.columns),
        "gap": GAP,
        "gaps": sorted(GAPS),
        "index": index,
        "class_names": names,
        "is_numeric": is_numeric,
    }


def _merges_as_number(name: str) -> bool:
    return name not in (str(float(name)), str(int(float(name))))


def _describe_names(arguments: dict[str, Any]) -> dict[str, Any]:
    train = fetch_course_table("names", arguments["root"], "names_train", TRAIN_SHA256)
    test = fetch_course_table("names", arguments["root"], "names_test", TEST_SHA256)
    for path in (train, test):
        cells = chain.from_iterable(read_table(path, header=False).columns)
        accented = [cell for cell in cells if not (cell.isascii() and cell.strip().isprintable())]
        if accented:
            raise RequestError(
                f"{path} holds '{accented[0]}', and format=python writes how plain ASCII names are read; "
                "write that name without accents"
            )

    # One line of the script reads both.
    if train.suffix != test.suffix:
        raise RequestError(f"{train} and {test} are not packed alike; pack or unpack one of them")
    return {"data": train.resolve().parent, "is_packed": train.suffix == ".gz"}


def _describe_images(spec: DataSpec, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if name in _IDX_FOLDERS:
        folder = Path(arguments["root"]).expanduser() / _IDX_FOLDERS[name] / "raw"
        paths = [find_idx(folder, file) or folder / file for file in IDX_FILES]
        packed = {path.suffix == ".gz" for path in paths}
        # One line of the script reads all of them.
        if len(packed) > 1:
            raise RequestError(f"the files in {folder} are not packed alike; unpack them all")
        details = {"data": folder.resolve(), "is_packed": True in packed}
    elif name != "digits":
        details["data"] = Path(arguments["root"]).expanduser().resolve()

    image_size = arguments["image_size"]
    side = 8 if name == "digits" else 28 if name in _IDX_FOLDERS else 32
    details["is_resized"] = image_size not in (None, side)
    details["shrinks"] = details["is_resized"] and image_size < side

    # One number for all channels where there is but one.
    is_grey = len(set(spec.mean)) == 1 and len(set(spec.std)) == 1
    details["is_grey"] = is_grey
    details["mean"] = spec.mean[0] if is_grey else list(spec.mean)
    details["std"] = spec.std[0] if is_grey else list(spec.std)
    return details
