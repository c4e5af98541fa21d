"""Columns of a set of the datasets library that are no pictures, for the code of data=text, data=table, data=arrays."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dlrun.core.errors import DataError, RequestError, join_names
from dlrun.core.format import format_count
from dlrun.data.columns.kinds import ID_NAME
from dlrun.data.columns.reading import TableFile, from_frame
from dlrun.data.files.numpy_files import Numbers

Modality = Literal["image", "text", "table", "array"]
MODALITIES = ("image", "text", "table", "array")

# Columns that are texts, whatever else a set has.
_TEXT_NAMES = ("text", "sentence", "review", "content", "document", "comment", "tweet", "question", "body")
# Rows by which columns of strings are judged, and the words of texts, on average.
_SAMPLE_ROWS = 200
_FEWEST_WORDS = 2


@dataclass(frozen=True)
class HubPart:
    """One split of a set, and its name for sentences."""

    name: str
    dataset: Any


def list_columns(columns: str | Sequence[str] | None) -> list[str]:
    """The names that a key holds, which may be one without brackets."""
    if columns is None:
        return []
    return [columns] if isinstance(columns, str) else [str(name) for name in columns]


def judge_modality(train: Any, inputs: Sequence[str], targets: Sequence[str], pictures: Sequence[str]) -> Modality:
    """What a set is for, by the types of its columns; inputs: those that are typed, or none.

    pictures: the columns that hold pictures. Strings are texts if the column is named so, or if they have several words
    and there are no numbers beside them; else they are categories of a table.
    """
    features = train.features
    columns = [name for name in inputs or features if name not in targets]
    if any(name in pictures for name in columns):
        return "image"
    if len(columns) == 1 and is_array(features[columns[0]]):
        return "array"

    strings = [name for name in columns if is_string(features[name])]
    if inputs:
        return "text" if len(strings) == len(columns) else "table"
    if any(name.lower() in _TEXT_NAMES for name in strings):
        return "text"
    numbers = [name for name in columns if is_number(features[name]) and not ID_NAME.match(name)]
    if strings and not numbers and max(measure_texts(train, strings)[1].values()) >= _FEWEST_WORDS:
        return "text"
    if not strings and not numbers and any(is_array(features[name]) for name in columns):
        return "array"
    return "table"


def is_string(feature: Any) -> bool:
    """Whether a column holds strings that are no names of classes."""
    return type(feature).__name__ in ("Value", "LargeString") and feature.dtype in ("string", "large_string")


def is_number(feature: Any) -> bool:
    """Whether a column holds a number a row."""
    return type(feature).__name__ == "Value" and np.dtype(_to_numpy_name(feature.dtype)).kind in "biuf"


def is_array(feature: Any) -> bool:
    """Whether a column holds as many numbers in each row, or lists of floats, which may be so."""
    if type(feature).__name__.startswith("Array"):
        return True
    inner = getattr(feature, "feature", None)
    if type(feature).__name__ not in ("List", "LargeList", "Sequence") or inner is None:
        return False
    if is_array(inner):
        return True
    return is_number(inner) and (getattr(feature, "length", -1) > 0 or "float" in inner.dtype)


def _to_numpy_name(dtype: str) -> str:
    """The name of an Arrow type in NumPy; that of objects for types that NumPy has not."""
    try:
        return str(np.dtype({"double": "float64", "float": "float32"}.get(dtype, dtype)))
    except TypeError:
        return "object"


def measure_texts(train: Any, columns: Sequence[str]) -> tuple[dict[str, int], dict[str, float]]:
    """Of each column of strings the letters in the first rows, and the words of a string on average."""
    letters = {}
    words = {}
    sample = train.select(range(min(len(train), _SAMPLE_ROWS))).with_format(None)
    for column in columns:
        texts = [text for text in sample.select_columns([column])[:][column] if text]
        letters[column] = sum(map(len, texts))
        words[column] = sum(len(text.split()) for text in texts) / max(len(texts), 1)
    return letters, words


def choose_text(path: str, train: Any, targets: Sequence[str]) -> list[str]:
    """The column of texts where none is typed: one that is named so, or the longest."""
    strings = [name for name, feature in train.features.items() if is_string(feature) and name not in targets]
    if not strings:
        raise DataError(
            f"{path} has no column of strings, of {join_names(list(train.features))}; type data.modality=table"
        )
    named = [name for name in strings if name.lower() in _TEXT_NAMES]
    letters = measure_texts(train, named or strings)[0]
    return [max(letters, key=lambda name: letters[name])]


def choose_table_columns(
    features: Mapping[str, Any], inputs: Sequence[str], targets: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The columns that a table can have, targets included, and those that it cannot."""
    chosen = [name for name in features if name in targets or not inputs or name in inputs]
    taken = [name for name in chosen if type(features[name]).__name__ in ("Value", "ClassLabel")]
    return taken, [name for name in chosen if name not in taken]


def choose_array(path: str, features: Mapping[str, Any], inputs: Sequence[str], targets: Sequence[str]) -> str:
    """The column of arrays."""
    arrays = [name for name, feature in features.items() if is_array(feature) and name not in targets]
    if len(inputs) > 1:
        raise RequestError(f"data.input={list(inputs)}: arrays lie in one column; name one of {join_names(arrays)}")
    if inputs and inputs[0] not in arrays:
        raise DataError(
            f"data.input={inputs[0]}: this column of {path} holds no arrays; it has {join_names(arrays) or 'none'}"
        )
    if not arrays:
        raise DataError(f"{path} has no column of arrays, of {join_names(list(features))}; type data.modality=table")
    return inputs[0] if inputs else arrays[0]


# Cells


def read_part(part: HubPart, columns: Sequence[str], class_names: Mapping[str, Sequence[str]]) -> TableFile:
    """Some columns of a split as a table, with the names of classes in place of their numbers.

    class_names: by column.
    """
    frame = part.dataset.with_format("pandas").select_columns(list(columns))[:][list(columns)]
    for column, names in class_names.items():
        numbers = frame[column].tolist()
        secret = [row for row, number in enumerate(numbers) if number == -1]
        if secret:
            raise DataError(
                f"{part.name}: {format_count(len(secret), 'row')} without a class (-1 in {column}), the first in row "
                f"{secret[0]}; leave such rows out by dataset.filter(lambda row: row['{column}'] >= 0), and save that"
            )
        frame[column] = [name_class(number, names) for number in numbers]
    file = from_frame(Path(part.name), frame, "")

    # What it is known again by, wherever it lies.
    digest = hashlib.sha256()
    for name, cells in zip(file.table.names, file.table.columns, strict=True):
        digest.update("\0".join([name, *cells]).encode())
    return TableFile(file.table, None, None, ".", digest.hexdigest(), has_lines=False)


def name_class(number: Any, names: Sequence[str]) -> Any:
    """The name of a class, "" for none; what is no number of a class stays."""
    if number is None or number != number:
        return ""
    is_known = isinstance(number, int | float) and 0 <= number < len(names) and number == int(number)
    return names[int(number)] if is_known else number


# Arrays


class HubArrays:
    """A column of arrays and one of targets as x, y, val_x, …: see files/numpy_files.py."""

    def __init__(self, parts: Mapping[str, HubPart], column: str, targets: Sequence[str]) -> None:
        self.parts = parts
        self.column = column
        self.targets = targets

    def _find(self, name: str) -> tuple[HubPart | None, list[str]]:
        part, _, letter = name.rpartition("_")
        return self.parts.get(part or "train"), [self.column] if letter == "x" else list(self.targets)

    def locate(self, name: str) -> Path:
        """The set with the column behind."""
        part, columns = self._find(name)
        return Path(f"{part.name if part else ''}:{','.join(columns)}")

    def has(self, name: str) -> bool:
        """Whether there is such a split."""
        return self._find(name)[0] is not None

    def open(self, name: str) -> Numbers:
        """The rows of a column as one array; DataError for rows of several sizes, and for none."""
        part, columns = self._find(name)
        assert part is not None
        rows = part.dataset.with_format("numpy").select_columns(columns)[:]
        arrays = [np.asarray(rows[column]) for column in columns]
        for column, array in zip(columns, arrays, strict=True):
            if array.dtype == object:
                raise DataError(f"{part.name}: column {column} holds arrays of several sizes, or gaps; write all alike")
        if not len(part.dataset):
            raise DataError(f"{part.name} has no rows; name another split")
        array = arrays[0] if len(arrays) == 1 else np.stack(arrays, axis=1)
        # torch insists on writable arrays.
        return array if array.flags.writeable else array.copy()
