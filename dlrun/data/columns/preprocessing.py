"""From cells to the numbers that a model takes: fitted on training rows, kept as plain data, applied to any table.

The same as scikit-learn's ColumnTransformer of SimpleImputer(strategy="median", add_indicator=True) and StandardScaler
for numbers, and OneHotEncoder(handle_unknown="ignore") for categories, in the order of the table. For nets that embed
categories, OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1) with 1 added.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dlrun.core.errors import DataError
from dlrun.data.columns.cells import NO_ROWS, as_cells, find_gaps, is_gap, parse_column, parse_date, parse_stamp

VERSION = 1
# The category of gaps.
GAP = "(missing)"
# What a cell should have been.
NOUNS = {"number": "finite number", "date": "date"}
DATE_PARTS = ("year", "month", "day", "weekday", "hour")
_MOST_TROUBLES = 10


@dataclass(frozen=True)
class Scale:
    """What fills a gap, and (x - mean) / std; mean and std are those of the training rows with their gaps filled."""

    fill: float
    mean: float
    std: float

    @classmethod
    def fit(cls, values: NDArray[np.float64], normalize: bool) -> "Scale":
        """Fit to values (rows,) with NaN for gaps; std is 1 for a constant column."""
        is_missing = np.isnan(values)
        present = values[~is_missing] if is_missing.any() else values
        # The median, unlike the mean, is not moved by a few outliers.
        fill = _compute_median(present) if len(present) else 0.0
        if not normalize:
            return cls(fill, 0.0, 1.0)
        full = _fill(values, fill)
        # The computed std of a constant column may be 1e-17 rather than 0.
        is_constant = bool((full == full[0]).all())
        return cls(fill, float(full.mean()), 1.0 if is_constant else float(full.std()))

    def apply(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fill gaps and scale."""
        scaled = _fill(values, self.fill) - self.mean
        scaled /= self.std
        return scaled

    def to_plain(self) -> list[float]:
        """The three numbers."""
        return [self.fill, self.mean, self.std]


def _compute_median(values: NDArray[np.float64]) -> float:
    """As numpy.median of values that are no NaN, which it looks for by a second sort."""
    middle = len(values) // 2
    ordered = np.partition(values, middle)
    if len(values) % 2:
        return float(ordered[middle])
    return float((ordered[:middle].max() + ordered[middle]) / 2)


def _fill(values: NDArray[np.float64], fill: float) -> NDArray[np.float64]:
    """The values with their gaps filled; the same array where there are none."""
    is_missing = np.isnan(values)
    return np.where(is_missing, fill, values) if is_missing.any() else values


def _stack(columns: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Columns side by side, (rows, columns)."""
    # A view where there is nothing to copy.
    return columns[0][:, None] if len(columns) == 1 else np.stack(columns, axis=1)


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers: one feature, and a second one, 1 where a gap was filled, if the training rows had gaps."""

    kind: ClassVar[str] = "number"
    name: str
    index: int
    scale: Scale
    has_indicator: bool
    decimal: str

    @property
    def features(self) -> list[tuple[str, float, float]]:
        """Name, mean and std of each feature."""
        features = [(self.name, self.scale.mean, self.scale.std)]
        return [*features, (f"{self.name} missing", 0.0, 1.0)] if self.has_indicator else features

    def encode(self, cells: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Features (rows, features), and the rows that hold no number."""
        values, wrong = parse_column(cells, self.decimal)
        columns = [self.scale.apply(values)]
        if self.has_indicator:
            # That a value is missing may tell more than the value that fills it.
            columns.append(np.isnan(values).astype(np.float64))
        return _stack(columns), wrong

    def decode(self, features: NDArray[np.float64]) -> str:
        """A cell that gives about these features (features,)."""
        if self.has_indicator and features[1] > 0.5:
            return ""
        value = float(features[0]) * self.scale.std + self.scale.mean
        # Decimals behind which float32 holds nothing.
        digits = math.floor(6 - math.log10(abs(self.scale.mean) + self.scale.std))
        return f"{round(value, digits):.7g}".replace(".", self.decimal)

    def to_plain(self) -> dict[str, Any]:
        """Plain data, for checkpoints."""
        scale = self.scale.to_plain()
        return {"scale": scale, "has_indicator": self.has_indicator, "decimal": self.decimal}


@dataclass(frozen=True)
class CategoryColumn:
    """A column of categories: a feature for each category of the training rows; others are 0 in all of them.

    has_codes: one feature in place of these, the number of the category from 1; 0 for others.
    """

    kind: ClassVar[str] = "category"
    name: str
    index: int
    categories: tuple[str, ...]
    has_codes: bool = False

    @property
    def features(self) -> list[tuple[str, float, float]]:
        """Name, mean and std of each feature."""
        if self.has_codes:
            return [(self.name, 0.0, 1.0)]
        return [(f"{self.name}={category}", 0.0, 1.0) for category in self.categories]

    def encode(self, cells: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Features (rows, categories), or with codes (rows, 1); no cell is wrong."""
        numbers = {category: number for number, category in enumerate(self.categories)}
        codes = as_cells(cells).map(lambda cell: numbers.get(name_category(cell), -1), np.int64)
        if self.has_codes:
            return (codes + 1.0)[:, None], NO_ROWS
        # A row of zeros for each category that the training rows did not have. Bytes, as there may be many columns.
        rows = np.eye(len(self.categories) + 1, len(self.categories), dtype=np.uint8)
        return rows.take(codes, axis=0, mode="wrap"), NO_ROWS

    def decode(self, features: NDArray[np.float64]) -> str:
        """A cell that gives about these features (categories,); of code 0 the first category."""
        number = max(round(float(features[0])) - 1, 0) if self.has_codes else int(features.argmax())
        category = self.categories[number]
        return "" if category == GAP else category

    def find_unseen(self, cells: Sequence[str]) -> list[str]:
        """The categories that the training rows did not have."""
        return [
            name
            for name in dict.fromkeys(map(name_category, as_cells(cells).encoded[0]))
            if name not in self.categories
        ]

    def to_plain(self) -> dict[str, Any]:
        """Plain data, for checkpoints."""
        plain: dict[str, Any] = {"categories": list(self.categories)}
        return {**plain, "has_codes": True} if self.has_codes else plain


@dataclass(frozen=True)
class DateColumn:
    """A column of dates: year, month, day, weekday (Monday is 0) and hour as numbers."""

    kind: ClassVar[str] = "date"
    name: str
    index: int
    parts: Mapping[str, Scale]
    has_indicator: bool
    day_first: bool

    @property
    def features(self) -> list[tuple[str, float, float]]:
        """Name, mean and std of each feature."""
        features = [(f"{self.name} {part}", scale.mean, scale.std) for part, scale in self.parts.items()]
        return [*features, (f"{self.name} missing", 0.0, 1.0)] if self.has_indicator else features

    def encode(self, cells: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Features (rows, features), and the rows that hold no date."""
        values, wrong = split_dates(cells, self.day_first)
        columns = [scale.apply(values[part]) for part, scale in self.parts.items()]
        if self.has_indicator:
            # By the cells: a date that cannot be read has no parts either, and is wrong rather than missing.
            columns.append(find_gaps(cells).astype(np.float64))
        return _stack(columns), wrong

    def decode(self, features: NDArray[np.float64]) -> str:
        """A cell that gives about these features (features,); a gap for what is no date."""
        numbers = {}
        for value, (part, scale) in zip(features, self.parts.items(), strict=False):
            numbers[part] = round(float(value) * scale.std + scale.mean)
        try:
            date = datetime(numbers["year"], numbers["month"], numbers["day"], numbers.get("hour", 0))
        except ValueError:
            return ""
        return date.isoformat(" ") if "hour" in numbers else date.date().isoformat()

    def to_plain(self) -> dict[str, Any]:
        """Plain data, for checkpoints."""
        parts = {part: scale.to_plain() for part, scale in self.parts.items()}
        return {"parts": parts, "has_indicator": self.has_indicator, "day_first": self.day_first}


Column = NumberColumn | CategoryColumn | DateColumn


@dataclass(frozen=True)
class Preprocessing:
    """How the rows of a table become the inputs of a model.

    column_count: of the training table; targets and target_indices: names and positions of its target columns;
    has_names: whether it had a header line; left_out: names of columns that are no inputs.
    sha256, rows_crc: of the file, and of the numbers of the training rows, by which training data are known again.
    """

    columns: tuple[Column, ...]
    targets: tuple[str, ...]
    target_indices: tuple[int, ...]
    column_count: int
    has_names: bool
    decimal: str
    left_out: tuple[str, ...] = ()
    sha256: str = ""
    rows_crc: int = 0
    text_format: Mapping[str, Any] = field(default_factory=dict)

    def set_decimal(self, decimal: str) -> "Preprocessing":
        """The same for a table with another decimal mark."""
        columns = []
        for column in self.columns:
            # Only numbers have a decimal mark.
            columns.append(replace(column, decimal=decimal) if isinstance(column, NumberColumn) else column)
        return replace(self, columns=tuple(columns), decimal=decimal)

    @property
    def features(self) -> list[tuple[str, float, float]]:
        """Name, mean and std of each feature of the model."""
        return list(chain.from_iterable(column.features for column in self.columns))

    @property
    def code_counts(self) -> tuple[int, ...]:
        """Of each feature the number of its codes, 0 for a number; empty if there are no codes."""
        counts: list[int] = []
        for column in self.columns:
            if isinstance(column, CategoryColumn) and column.has_codes:
                counts.append(len(column.categories) + 1)
            else:
                counts += [0] * len(column.features)
        return tuple(counts) if any(counts) else ()

    def to_plain(self) -> dict[str, Any]:
        """Plain data, as checkpoints and exports hold it."""
        columns = []
        for column in self.columns:
            columns.append({"name": column.name, "index": column.index, "kind": column.kind, **column.to_plain()})
        return {
            "version": VERSION,
            "columns": columns,
            "targets": list(self.targets),
            "target_indices": list(self.target_indices),
            "column_count": self.column_count,
            "has_names": self.has_names,
            "decimal": self.decimal,
            "left_out": list(self.left_out),
            "sha256": self.sha256,
            "rows_crc": self.rows_crc,
            "text_format": dict(self.text_format),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Preprocessing":
        """Invert `to_plain`; DataError for data of another version, or damaged."""
        if plain.get("version") != VERSION:
            raise DataError(
                f"the table's preprocessing is of version {plain.get('version')}, and this dlrun reads {VERSION}; "
                "install the dlrun that trained the run"
            )

        try:
            fields = {key: value for key, value in plain.items() if key not in ("version", "columns")}
            for name in ("targets", "target_indices", "left_out"):
                fields[name] = tuple(plain[name])
            return cls(columns=tuple(_read_column(column) for column in plain["columns"]), **fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"the table's preprocessing is damaged: {error}; name another checkpoint") from error


def _read_column(plain: Mapping[str, Any]) -> Column:
    name = str(plain["name"])
    index = int(plain["index"])
    match plain["kind"]:
        case "number":
            scale = Scale(*map(float, plain["scale"]))
            return NumberColumn(name, index, scale, bool(plain["has_indicator"]), str(plain["decimal"]))
        case "category":
            has_codes = bool(plain.get("has_codes", False))
            return CategoryColumn(name, index, tuple(map(str, plain["categories"])), has_codes)
        case "date":
            parts = {str(part): Scale(*map(float, numbers)) for part, numbers in plain["parts"].items()}
            # A checkpoint may come from anyone, so what it holds is checked.
            if not parts.keys() <= set(DATE_PARTS):
                raise ValueError(f"{name} has parts {', '.join(parts)}")
            return DateColumn(name, index, parts, bool(plain["has_indicator"]), bool(plain["day_first"]))
    raise ValueError(f"{plain['kind']} is no kind of column")


def name_category(cell: str) -> str:
    """The category that a cell names."""
    return GAP if is_gap(cell) else cell.strip()


def split_dates(cells: Sequence[str], day_first: bool) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]:
    """The parts of dates, NaN for gaps, each (rows,); and the rows that hold no date."""
    distinct, codes = as_cells(cells).encoded
    values = np.full((len(distinct), len(DATE_PARTS)), np.nan)
    is_wrong = np.zeros(len(distinct), dtype=bool)
    for number, cell in enumerate(distinct):
        if is_gap(cell):
            continue
        date = parse_date(cell, day_first) or parse_stamp(cell)
        if date is None:
            is_wrong[number] = True
        else:
            # In the order of DATE_PARTS.
            values[number] = (date.year, date.month, date.day, date.weekday(), date.hour)

    parts = {part: values[codes, number] for number, part in enumerate(DATE_PARTS)}
    return parts, np.flatnonzero(is_wrong[codes])


def fit_column(
    name: str,
    index: int,
    kind: str,
    cells: Sequence[str],
    train_rows: NDArray[np.int64],
    decimal: str,
    day_first: bool,
    normalize: bool,
    has_codes: bool = False,
) -> tuple[Column, NDArray[np.int64]]:
    """Fit a column to its training rows; returns it with the rows of the table whose cells are not of its kind.

    has_codes: categories become codes, one feature.
    """
    # Of the training rows alone: a flag that is always 0 there teaches nothing.
    has_gaps = bool(find_gaps(cells)[train_rows].any())
    if kind == "category":
        distinct, codes = as_cells(cells).encoded
        # Sorted: the order of the features must not depend on the order of the rows.
        in_train = np.flatnonzero(np.bincount(codes[train_rows]))
        categories = sorted({name_category(distinct[code]) for code in in_train})
        return CategoryColumn(name, index, tuple(categories), has_codes), NO_ROWS

    if kind == "number":
        values, wrong = parse_column(cells, decimal)
        return NumberColumn(name, index, Scale.fit(values[train_rows], normalize), has_gaps, decimal), wrong

    parts, wrong = split_dates(cells, day_first)
    scales = {}
    for part, values in parts.items():
        # Days without a time have no hours to learn from.
        if part == "hour" and not np.nan_to_num(values).any():
            continue
        scales[part] = Scale.fit(values[train_rows], normalize)

    return DateColumn(name, index, scales, has_gaps, day_first), wrong


def encode_rows(columns: Sequence[Column], cells: Mapping[str, Sequence[str]]) -> NDArray[np.float64]:
    """Inputs float64 (rows, features) of cells by column; DataError for the first cell that is not of its kind."""
    blocks = []
    for column in columns:
        block, wrong = column.encode(cells[column.name])
        if len(wrong):
            cell = cells[column.name][wrong[0]]
            raise DataError(f"column '{column.name}' holds '{cell[:40]}', which is no {NOUNS[column.kind]}")
        blocks.append(block)

    return np.concatenate(blocks, axis=1, dtype=np.float64)
