"""Image files of the user's and their classes: from the folders that they lie in, or from a table of labels."""

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.core.errors import DataError, ErrorList, RequestError, join_names
from dlrun.core.suggest import build_missing_path_error, did_you_mean
from dlrun.data.datasets import partition_by_class
from dlrun.data.files.picture import list_suffixes, suggest_decoder
from dlrun.data.origin import Origin

# Words that name a part in the name of its folder, in lower case, and words that may stand beside them.
NAMES_OF_PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
_WORDS_BESIDE = ("data", "dataset", "folder", "images", "imgs", "photos", "pictures", "seg", "set", "split")

# Names of the column of files, in lower case, where no file has a suffix.
_NAMES_OF_FILE_COLUMN = ("file", "filename", "file_name", "id", "image", "image_id", "image_name", "name", "path")

_SUFFIXES_OF_TABLES = (".csv", ".tsv", ".txt")

# Names that a note lists, and mistakes that an error does.
_MOST_NAMES = 5
MOST_MISTAKES = 10


@dataclass(frozen=True)
class Files:
    """Image files and, in the same order, their classes: targets int64 (N,).

    paths: bytes of the file system. Python objects would take ten times the memory, in each worker anew.
    """

    paths: NDArray[np.bytes_]
    targets: Tensor
    origin: Origin

    @classmethod
    def from_lists(cls, paths: list[bytes], targets: list[int]) -> "Files":
        """One file a row."""
        names = np.array(paths)
        return cls(names, torch.tensor(targets), Origin.from_files(names))

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, row: int) -> tuple[Path, None]:
        """The path of a row; there is no other place to read it from."""
        return Path(os.fsdecode(self.paths[row])), None

    def take(self, rows: NDArray[np.int64]) -> "Files":
        """Select files by row number."""
        return Files(self.paths[rows], self.targets[rows], self.origin.take(torch.from_numpy(rows)))


@dataclass(frozen=True)
class Catalogue:
    """The image files of a data set, by part, and what the user should know of them.

    source: the folder or table that says which classes there are. has_own_parts: whether the parts are folders.
    """

    parts: dict[str, Files]
    class_names: list[str]
    notes: tuple[str, ...]
    source: Path
    has_own_parts: bool = False


@dataclass(frozen=True)
class LabelColumns:
    """The table of labels, and the names of its columns; None for the first and the second."""

    table: str
    file: str | None = None
    label: str | None = None


def find_files(folder: Path, test_fraction: float, seed: int) -> Catalogue:
    """The files in the class folders of `folder`, or of its folders train, val and test.

    Raises DataError, for up to ten mistakes at once.
    """
    _check_folder(folder)
    folders_of_parts = _find_folders_of_parts(folder)
    for part, folders in folders_of_parts.items():
        if len(folders) > 1:
            names = " and ".join(path.name for path in folders)
            raise DataError(f"{folder} holds {names}, of which one is the {part} part; rename the other")

    bases = {name: _enter_folder(folders[0]) for name, folders in folders_of_parts.items() if folders}
    if not bases:
        bases = {"train": folder}
    # The training part decides which classes there are.
    base = bases["train"]
    class_names = [path.name for path in _list_visible(base) if path.is_dir()]
    if not class_names:
        raise _build_no_classes_error(base)

    notes: list[str] = []
    for part in ("val", "test"):
        images = _list_images_without_class(bases[part]) if part in bases else []
        if images:
            notes.append(_note_without_class(bases.pop(part), part, len(images)))

    # All parts are read before the first mistake is raised, so that one message names them all.
    mistakes = ErrorList(MOST_MISTAKES)
    unread: Counter[str] = Counter()
    parts: dict[str, Files] = {}
    for part, base_of_part in bases.items():
        files = mistakes.collect(_collect_files, base_of_part, class_names, mistakes, unread)
        if files is not None:
            parts[part] = files
    mistakes.raise_if_any()

    notes += note_beside(folder, folders_of_parts, list(bases.values()))
    notes += _note_unread(folder, unread)
    notes += _note_missing_classes(bases, class_names)
    if folders_of_parts:
        return Catalogue(parts, class_names, tuple(notes), base, has_own_parts=True)
    return _draw_test_part(parts["train"], class_names, tuple(notes), folder, test_fraction, seed)


def find_labelled_files(folder: Path, columns: LabelColumns, test_fraction: float, seed: int) -> Catalogue:
    """The files in `folder` that a table names, one a row, with the label of each.

    A relative table is looked for in `folder`, then in the working directory; files are relative to `folder`, and a
    name may leave out its suffix. Raises DataError, for up to ten mistakes at once.
    """
    _check_folder(folder)
    table = _find_table(folder, columns.table)
    all_files = [Path(os.fsdecode(path)) for path in list_files_below(os.fsencode(folder)) if is_image(path)]
    path_of_stem: dict[Path, Path] = {}
    for image in all_files:
        # Tables often name a file without its suffix, as Kaggle's do.
        path_of_stem.setdefault(image.with_suffix(""), image)

    def find(name: str) -> Path | None:
        # So that a/../b and b are one file, and a file named twice is seen to be.
        named = folder / os.path.normpath(name)
        return named if named.is_file() else path_of_stem.get(named)

    lines, header = _read_labels(table, columns, find)
    if not any(find(name) for _, name, _ in lines):
        raise _build_no_files_error(folder, table, lines, all_files)

    mistakes = ErrorList(MOST_MISTAKES)
    line_of_path: dict[Path, int] = {}
    labels: list[str] = []
    for number, name, label in lines:
        path = find(name)
        if not label:
            mistakes.add(DataError(f"{table}, line {number}: {name} has no label; write one or remove the line"))
        elif path is None:
            mistakes.add(DataError(f"{table}, line {number}: there is no file {name} in {folder}; remove the line"))
        elif path in line_of_path:
            earlier = line_of_path[path]
            mistakes.add(DataError(f"{table}, line {number}: {name} is in line {earlier} too; leave one of them"))
        else:
            line_of_path[path] = number
            labels.append(label)
    mistakes.raise_if_any()

    # Sorted, so that a class keeps its number when the lines of the table are shuffled.
    class_names = _sort_labels(set(labels))
    notes: list[str] = []
    if header is not None and len(header.names) > 2 and columns.label is None:
        advice = f"data.label_column=<name> takes another of {join_names(header.names)}"
        if len(class_names) == 1:
            raise DataError(
                f"{table} has only one label, '{class_names[0]}', in its column {header.label}, so there is nothing "
                f"to tell apart; {advice}"
            )
        notes.append(f"the labels are the column {header.label} of {table}; {advice}.")
    codes = {name: code for code, name in enumerate(class_names)}
    files = Files.from_lists([os.fsencode(path) for path in line_of_path], [codes[label] for label in labels])

    unnamed = [str(path.relative_to(folder)) for path in all_files if path not in line_of_path]
    if unnamed:
        notes.append(_note_not_read(folder, len(unnamed), "image", f"without a line in {table}", _list(unnamed)))
    return _draw_test_part(files, class_names, tuple(notes), table, test_fraction, seed)


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        raise DataError(f"data.path={folder} is a file, not a folder")
    raise build_missing_path_error(folder, "data.path")


def _draw_test_part(
    train: Files, class_names: list[str], notes: tuple[str, ...], source: Path, test_fraction: float, seed: int
) -> Catalogue:
    # A single class cannot be trained on, so no test part is drawn.
    if len(class_names) == 1:
        return Catalogue({"train": train}, class_names, notes, source)
    train_rows, test_rows = partition_by_class(train.targets.numpy(), class_names, test_fraction, seed, str(source))
    rows_by_part = {"train": train_rows, "test": test_rows}
    parts = {name: train.take(rows) for name, rows in rows_by_part.items() if len(rows)}
    return Catalogue(parts, class_names, notes, source)


# Folders of parts and classes


def _find_folders_of_parts(folder: Path) -> dict[str, list[Path]]:
    """By part, the folders named after it; empty if the class folders lie in `folder` itself.

    A folder called train that holds folders, and no image itself, is a part, whatever lies beside it.
    """
    folders = [path for path in _list_visible(folder) if path.is_dir()]
    parts: dict[str, list[Path]] = {}
    for part, usual_names in NAMES_OF_PARTS.items():
        # Beside train, train_images is a folder like any other.
        exact = [path for path in folders if path.name.lower() in usual_names]
        parts[part] = exact or [path for path in folders if find_part(path.name) == part]

    if not parts["train"]:
        others = [*parts["val"], *parts["test"]]
        if len(others) == len(folders) > 1 and all(_holds_class_folders([path]) for path in others):
            names = " and ".join(path.name for path in others)
            raise DataError(f"{folder} holds {names}, and no training part; name the folder of that train")
        return {}
    if parts["val"] or parts["test"]:
        return parts

    # A single "train" may be the name of a class.
    return parts if _holds_class_folders(parts["train"]) else {}


def find_part(name: str) -> str | None:
    """The part that a folder is named after, as test_set and Testing are after test; None for another name."""
    words = re.findall("[a-z]+", name.lower())
    # As in trainset.
    words = [word.removesuffix("set") or word for word in words]
    for part, usual_words in NAMES_OF_PARTS.items():
        others = [word for word in words if word not in usual_words]
        if len(others) == len(words) - 1 and all(word in _WORDS_BESIDE for word in others):
            return part
    return None


def _enter_folder(folder: Path) -> Path:
    """The folder of a part; archives often hold it inside another of its name, as in test_set/test_set."""
    inside = _list_visible(folder)
    if len(inside) == 1 and inside[0].is_dir() and inside[0].name == folder.name:
        return inside[0]
    return folder


def _list_images_without_class(folder: Path) -> list[Path]:
    """The images that lie in a folder which has no class folders."""
    inside = _list_visible(folder)
    if any(path.is_dir() for path in inside):
        return []
    return [path for path in inside if is_image(os.fsencode(path))]


def _note_without_class(folder: Path, part: str, count: int) -> str:
    noun = "image" if count == 1 else "images"
    return (
        f"{folder} has {count:,} {noun} and no class folders, so it is no {part} part; dlrun predict RUN {folder} "
        "tells their classes."
    )


def _build_no_classes_error(folder: Path) -> DataError:
    """The error for a folder without class folders, with advice on what lies there instead."""
    tables = list_tables(folder)
    advice = f"; or type data.labels={tables[0]}, a table of files and their classes" if tables else ""
    return DataError(
        f"{folder} has no class folders: put the images of each class into a folder named after it{advice}"
    )


def _holds_class_folders(folders: list[Path]) -> bool:
    inside = list(chain.from_iterable(map(_list_visible, folders)))
    holds_folders = any(path.is_dir() for path in inside)
    return holds_folders and not any(is_image(os.fsencode(path)) for path in inside)


def _collect_files(base: Path, class_names: list[str], mistakes: ErrorList, unread: Counter[str]) -> Files:
    """All images of a part; each of its class folders must be known and hold an image.

    mistakes and unread, the number of files by suffix, are added to.
    """
    paths: list[bytes] = []
    targets: list[int] = []
    folders = [path for path in _list_visible(base) if path.is_dir()]
    for folder in folders:
        if folder.name not in class_names:
            known = join_names(class_names)
            advice = "give it training images too, or remove the folder"
            mistakes.add(DataError(f"{folder} is a class without training images: there are {known}; {advice}"))
            continue

        images: list[bytes] = []
        others: Counter[str] = Counter()
        for path in list_files_below(os.fsencode(folder)):
            if is_image(path):
                images.append(path)
            else:
                # Counted, as a photo in a format that is not read is easily taken for one that is.
                others[Path(os.fsdecode(path)).suffix.lower()] += 1
        unread.update(others)
        if not images:
            hint = f", but {_describe_suffixes(others)}" if others else ""
            advice = "add some or remove it"
            mistakes.add(DataError(f"{folder} holds no images ({', '.join(sorted(list_suffixes()))}){hint}: {advice}"))
            continue
        paths += images
        targets += [class_names.index(folder.name)] * len(images)

    if not folders:
        raise _build_no_classes_error(base)
    if not paths:
        # Said for each of its folders.
        return Files(np.array([], dtype=np.bytes_), torch.tensor([]), Origin.from_position(str(base), 0))
    return Files.from_lists(paths, targets)


def note_beside(folder: Path, folders_of_parts: dict[str, list[Path]], bases: list[Path]) -> Iterator[str]:
    """Notes on what lies beside the folders that are read; bases: those that hold the class folders."""
    if folders_of_parts:
        named = list(chain.from_iterable(folders_of_parts.values()))
        others = [path.name for path in _list_visible(folder) if path.is_dir() and path not in named]
        if others:
            yield f"{', '.join(others)} in {folder} was not read: the parts are train, val and test."
        files = [path.name for path in _list_visible(folder) if not path.is_dir()]
        if files:
            yield _note_not_read(folder, len(files), "file", "beside the parts", _list(files))

    for base in bases:
        files = [path.name for path in _list_visible(base) if not path.is_dir()]
        if files:
            yield _note_not_read(base, len(files), "file", "beside the class folders", _list(files))


def _note_unread(folder: Path, unread: Counter[str]) -> Iterator[str]:
    if unread:
        yield _note_not_read(folder, unread.total(), "file", "no images by suffix", _describe_suffixes(unread))


def _note_missing_classes(bases: dict[str, Path], class_names: list[str]) -> Iterator[str]:
    """Notes on classes that are trained, and of which a part has no image."""
    for base in list(bases.values())[1:]:
        present = {path.name for path in _list_visible(base)}
        missing = [name for name in class_names if name not in present]
        if missing:
            noun = "class" if len(missing) == 1 else "classes"
            yield f"{base} has no images of the {noun} {join_names(missing)}."


def _describe_suffixes(counts: Counter[str]) -> str:
    """As "5 .heic (pip install pillow-heif reads them), 2 .txt"."""
    words = []
    for suffix, count in sorted(counts.items()):
        advice = suggest_decoder(suffix)
        words.append(f"{count} {suffix or 'without suffix'}{f' ({advice})' if advice else ''}")
    return ", ".join(words)


def _note_not_read(folder: Path, count: int, noun: str, why: str, names: str) -> str:
    was = f"{noun} in {folder} was" if count == 1 else f"{noun}s in {folder} were"
    return f"{count:,} {was} not read ({why}): {names}."


def _list(names: list[str]) -> str:
    return join_names(names, most=_MOST_NAMES)


def _list_visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def list_files_below(folder: bytes) -> Iterator[bytes]:
    """Yield all files at any depth, except hidden ones, in an order that depends on their names only.

    Raises DataError for a folder that cannot be read.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{os.fsdecode(folder)} cannot be read: {error.strerror}") from error

    for entry in entries:
        # Recursion keeps the folders in order too; os.walk would yield files before folders.
        if entry.is_dir() and not entry.name.startswith(b"."):
            yield from list_files_below(entry.path)
        elif not entry.name.startswith(b"."):
            yield entry.path


def is_image(name: bytes) -> bool:
    """Whether a file's suffix is that of an image which can be read here."""
    suffix = b"." + name.rpartition(b".")[2].lower()
    return suffix.decode("ascii", "replace") in list_suffixes()


# Tables of labels


def list_tables(folder: Path) -> list[str]:
    """Names of the tables in a folder, by their suffix."""
    return [path.name for path in _list_visible(folder) if path.suffix.lower() in _SUFFIXES_OF_TABLES]


def _find_table(folder: Path, name: str) -> Path:
    path = Path(name).expanduser()
    if (folder / path).is_file():
        return folder / path
    if path.is_file():
        return path

    tables = list_tables(folder)
    hint = did_you_mean(path.name, tables)
    raise DataError(f"data.labels={name}: there is no such table in {folder}; {hint}type its path")


@dataclass(frozen=True)
class _Header:
    """The first line of a table of labels: names of all its columns, and of the one that holds the labels."""

    names: list[str]
    label: str


def _build_no_files_error(
    folder: Path, table: Path, lines: Sequence[tuple[int, str, str]], images: Sequence[Path]
) -> DataError:
    """The error for a table none of whose lines names a file; images: those that lie in the folder."""
    number, name, _ = lines[0]
    advice = "type data.path=<the folder of the images>, or data.file_column=<the column of their names>"
    parts = Path(name).parts
    image = next((image for image in images if parts[-1] in (image.name, image.stem)), None)
    if image is not None:
        # As the lines name it, the image lies so many folders below that of the data: most often one more or one less.
        base = image.absolute().parents[len(parts) - 1]
        if base.joinpath(*parts[:-1]) == image.parent.absolute():
            place = os.path.relpath(base) if not folder.is_absolute() else str(base)
            advice = f"type data.path={place} data.labels={table}"
        else:
            advice = f"the image is {image}: write it as it lies below data.path"
    return DataError(f"{table}: no line names a file in {folder} (line {number} has '{name}'); {advice}")


def _read_labels(
    table: Path, columns: LabelColumns, find: Callable[[str], Path | None]
) -> tuple[list[tuple[int, str, str]], _Header | None]:
    """Line number, file and label of each row, and the names of the columns; None without a first line of them.

    find: the image of a name, None where there is none.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            # The first line has a cell for each column, and so a mark between any two.
            delimiter = max(",;\t", key=first.count)
            reader = csv.reader(file, delimiter=delimiter)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except UnicodeDecodeError as error:
        raise DataError(f"{table} is not UTF-8 text; save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{table} cannot be read: {getattr(error, 'strerror', None) or error}") from error

    if not rows:
        raise DataError(f"{table} is empty; write a file and its label a line, as in cat1.png,cat")
    header = rows[0][1]
    judged = _judge_file_column(rows, find)
    file_column = _find_column(table, header, columns.file, "data.file_column", judged)
    label_column = _find_column(table, header, columns.label, "data.label_column", 0 if file_column else 1)

    mistakes = ErrorList(MOST_MISTAKES)
    for number, row in rows:
        if len(row) <= max(file_column, label_column):
            cells = f"{len(row)} cell" if len(row) == 1 else f"{len(row)} cells"
            mistakes.add(DataError(f"{table}, line {number}, has {cells}; write a file and its label"))
    mistakes.raise_if_any()

    names_columns = columns.file is not None or columns.label is not None
    has_header = names_columns or _is_header([row for _, row in rows], file_column, label_column, find)
    if has_header:
        rows = rows[1:]
    if not rows:
        raise DataError(f"{table} has a first line alone; write a file and its label a line, as in cat1.png,cat")
    lines = [(number, row[file_column], row[label_column]) for number, row in rows]
    return lines, _Header(header, header[label_column]) if has_header else None


def _judge_file_column(rows: Sequence[tuple[int, list[str]]], find: Callable[[str], Path | None]) -> int:
    """The first column that names images, by the first hundred lines; the first of all if none does."""
    # The first line may hold names of columns.
    for _, row in rows[:100]:
        for column, cell in enumerate(row):
            if cell and find(cell) is not None:
                return column
    return 0


def _find_column(table: Path, header: list[str], name: str | None, key: str, default: int) -> int:
    if name is None:
        return default
    if name not in header:
        hint = did_you_mean(name, header)
        raise RequestError(f"{key}={name}: {table} has no such column; {hint}it has {join_names(header)}")
    return header.index(name)


def _is_header(
    rows: Sequence[list[str]], file_column: int, label_column: int, find: Callable[[str], Path | None]
) -> bool:
    """Whether the first line names columns: its file has no suffix, and others have one, or it says so."""
    first, *others = rows
    cell = first[file_column]
    if Path(cell).suffix or find(cell) is not None:
        return False
    if cell.lower() in _NAMES_OF_FILE_COLUMN or any(Path(row[file_column]).suffix for row in others):
        return True
    # A missing image has a label that others have too.
    return all(row[label_column] != first[label_column] for row in others)


def _sort_labels(labels: set[str]) -> list[str]:
    """Whole numbers in ascending order, text in alphabetical order."""
    if all(label.isascii() and label.isdigit() for label in labels):
        # 007 and 7 are two classes.
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)
