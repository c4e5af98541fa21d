"""`data=text`: texts of the user's, in a column of a table or in files, a folder a class."""

import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlrun.core.errors import DataError, RequestError, join_names
from dlrun.core.suggest import did_you_mean
from dlrun.data.class_folders import NAMES_OF_PARTS, find_part, list_files_below, note_beside
from dlrun.data.columns.named import read_named
from dlrun.data.columns.parts import RowParts, describe_small_classes
from dlrun.data.columns.reading import TableFile, TextFormat, decode, hash_file, unescape_separator
from dlrun.data.datasets import RowIndices
from dlrun.data.files.table import Table, parse_numbers
from dlrun.data.origin import Origin
from dlrun.data.spec import DataSpec, Split, Splits
from dlrun.data.tables import (
    Drawing,
    Trouble,
    check_task,
    combine_hashes,
    draw_table_parts,
    explain_unlearnable,
    find_split_column,
    find_unheeded,
    fit_target_scale,
    join_files,
    make_origin,
    raise_troubles,
    read_parts_beside,
    read_targets,
)
from dlrun.data.tabular import TableTask, Target, count_outputs
from dlrun.data.tokens import UNITS, UNKNOWN, Corpus, Tokenizer, Unit, check_columns, choose_vocabulary, read_corpus

TEXT_ENDING = ".txt"

# The columns of texts that are files.
_FILE_COLUMNS = ("text", "class")
# Rows by which the column of texts is judged.
_SAMPLE_ROWS = 200


@dataclass(frozen=True)
class TextSource:
    """The texts with their targets in one table, whose first rows are those of the first file.

    has_val, has_test: whether a file, or a folder, is that part. text_columns, targets: positions.
    """

    files: Sequence[TableFile]
    joined: TableFile
    text_columns: list[int]
    targets: list[int]
    has_val: bool
    has_test: bool
    is_folder: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Vocabulary:
    """How texts are cut into tokens, and which of these get codes: the arguments of `text` with these names."""

    tokens: Unit = "words"
    lower_case: bool | None = None
    vocabulary_size: int | None = 20000
    min_count: int = 2
    max_length: int | None = 256

    def make_tokenizer(self) -> Tokenizer:
        """A tokenizer without a vocabulary; RequestError for values that are no choice."""
        if self.tokens not in UNITS:
            hint = did_you_mean(str(self.tokens), UNITS)
            raise RequestError(f"data.tokens={self.tokens} is no choice; {hint}type words or characters")

        for key in ("max_length", "vocabulary_size", "min_count"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise RequestError(f"data.{key}={value} must be at least 1")
        lower_case = self.tokens == "words" if self.lower_case is None else self.lower_case
        return Tokenizer(self.tokens, lower_case, self.max_length)


def text(
    path: str,
    text: str | int | list[str | int] | None = None,
    target: str | int | list[str | int] | None = None,
    task: TableTask | None = None,
    tokens: Unit = "words",
    lower_case: bool | None = None,
    vocabulary_size: int | None = 20000,
    min_count: int = 2,
    max_length: int | None = 256,
    classes: list[str] | None = None,
    header: bool | None = None,
    separator: str | None = None,
    encoding: str | None = None,
    decimal: str | None = None,
    split: str = "random",
    split_column: str | int | None = None,
    folds: int | None = None,
    fold: int = 0,
    val_path: str | None = None,
    test_path: str | None = None,
    test_fraction: float = 0.2,
    val_fraction: float = 0.0,
    normalize: bool = True,
    seed: int = 0,
    preprocessing: dict[str, Any] | None = None,
) -> Splits:
    """Texts with a class, a value or labels each: codes int64 (N, longest), padded with 0, and lengths (N,).

    path: a table with a column of texts, whose targets are read as those of data=table, or a folder with a folder a
    class, or with such folders in train, val and test. The vocabulary is that of the training rows, the most frequent
    tokens first; code 1 stands for all others. preprocessing: of a trained model, with its vocabulary, applied in
    place of a new one. Raises DataError or RequestError, naming file, line and column, up to ten at once.
    """
    check_task(task)
    if preprocessing is not None:
        check_columns(preprocessing)
    choice = Vocabulary(tokens, lower_case, vocabulary_size, min_count, max_length)
    choice.make_tokenizer()
    drawing = Drawing(test_fraction, val_fraction, seed, split, split_column, folds, fold)
    drawing.check(test_path)

    text_format = TextFormat(unescape_separator(separator), header, encoding, decimal)
    folder = Path(path).expanduser()
    if folder.is_dir():
        folder_keys = {"text": text, "target": target, "val_path": val_path, "test_path": test_path}
        source = _read_folder(folder, encoding, classes, folder_keys)
    else:
        source = _read_tables(folder, text_format, text, target, val_path, test_path, preprocessing)
        if classes is not None:
            raise RequestError(f"data.classes is for a folder of class folders, and {path} is a table; leave it out")

    splits = split_texts(source, task, choice, drawing, normalize, preprocessing)
    unheeded = find_unheeded("" if source.has_test else None, "" if source.has_val else None, folds)
    if source.is_folder and source.has_val:
        unheeded["test_fraction"] = f"the parts are folders of {path}"
    return replace(splits, unheeded=unheeded)


def split_texts(
    source: TextSource,
    task: TableTask | None,
    choice: Vocabulary,
    drawing: Drawing,
    normalize: bool,
    preprocessing: Mapping[str, Any] | None,
    class_order: Sequence[str] = (),
) -> Splits:
    """Splits of texts that were read: a folder is a table too, of a text and its class a row.

    class_order: names of classes in the order of their numbers; (): sorted.
    """
    joined = source.joined
    values, target_notes = read_targets(joined, source.targets, task, class_order)
    split_position = find_split_column(joined, drawing.split_column, source.targets)
    # Rows that cannot be trained on are kept together: they can still be evaluated.
    nothing_to_learn = explain_unlearnable(source.files[0].table, source.targets, values)

    drawn = Drawing(test_fraction=0.0, split=drawing.split) if nothing_to_learn else drawing
    if source.has_val and source.is_folder:
        # A folder with parts of its own has no test part unless there is a folder of it.
        drawn = replace(drawn, test_fraction=0.0)
    parts = draw_table_parts(source.files, joined, split_position, values, drawn, source.has_val, source.has_test)

    tokenizer = choice.make_tokenizer()
    if preprocessing is not None:
        tokenizer = Tokenizer.from_plain(preprocessing, preprocessing["vocabulary"])
    corpus = read_corpus(_join_columns(joined, source.text_columns), tokenizer)
    _refuse_empty(joined, source.text_columns, corpus)
    if preprocessing is None:
        # Of the training rows alone: a word of the test part must not get a code of its own.
        counts = corpus.count(parts.train)
        vocabulary = choose_vocabulary(corpus.tokens, counts, choice.vocabulary_size, choice.min_count)
        tokenizer = replace(tokenizer, vocabulary=vocabulary)

    codes_and_lengths = corpus.encode(tokenizer.vocabulary)

    spec = _make_spec(source, tokenizer, values, parts.train, normalize, codes_and_lengths[0].shape[1])
    notes = [*joined.notes, *source.notes, *([] if source.is_folder else target_notes)]
    notes += _describe_vocabulary(corpus, tokenizer, parts, preprocessing is None)
    notes += [_describe_cut(corpus, tokenizer), *parts.notes]
    if values.task in ("binary", "multiclass") and len(parts.test):
        notes.append(describe_small_classes(values.values[parts.test].astype(np.int64), values.class_names))

    origin = _make_origin(source)

    def select(chosen: RowIndices) -> Split | None:
        if not len(chosen):
            return None
        index = torch.from_numpy(chosen)
        # All rows were encoded at once, and each part takes its own.
        inputs = tuple(column[index] for column in codes_and_lengths)
        return Split(inputs, torch.from_numpy(values.values[chosen]), origin.take(index))

    train = select(parts.train)
    assert train is not None
    return Splits(
        train,
        select(parts.val),
        select(parts.test),
        spec,
        tuple(note for note in notes if note),
        nothing_to_learn=nothing_to_learn,
    )


def hash_files(arguments: Mapping[str, Any]) -> str:
    """The sha256 by which texts are known again; "" where one of their files cannot be read."""
    paths = [Path(str(arguments[key])).expanduser() for key in ("path", "val_path", "test_path") if arguments.get(key)]
    return combine_hashes([_hash_folder(path) if path.is_dir() else hash_file(path) for path in paths])


def _hash_folder(folder: Path) -> str:
    """sha256 of the names and texts below a folder."""
    digest = hashlib.sha256()
    for name in list_files_below(os.fsencode(folder)):
        if name.lower().endswith(TEXT_ENDING.encode()):
            # The name too: moving a file to another class changes what is learned.
            digest.update(os.path.relpath(name, os.fsencode(folder)))
            digest.update(hash_file(Path(os.fsdecode(name))).encode())
    return digest.hexdigest()


# Tables


def _read_tables(
    path: Path,
    text_format: TextFormat,
    text: str | int | list[str | int] | None,
    target: str | int | list[str | int] | None,
    val_path: str | None,
    test_path: str | None,
    saved: Mapping[str, Any] | None,
) -> TextSource:
    names: list[str] = []
    for column in (*_list_columns(text), *_list_columns(target)):
        names += [column] if isinstance(column, str) else []
    if saved is not None and saved["has_names"]:
        names = [*saved["text_columns"], *saved["targets"]]
    main = read_named(path, text_format, names)
    files = [main, *read_parts_beside(main, text_format, val_path, test_path)]
    joined = join_files(files)

    # Columns typed as numbers, or judged, have their names in the table of training.
    if saved is not None and saved["has_names"] and main.table.has_header:
        text = _choose_trained(joined.table, text, saved["text_columns"])
        target = _choose_trained(joined.table, target, saved["targets"])
    if len(joined.table.names) == 1:
        raise DataError(
            f"{path} has one column only, and a text needs a target beside it; type data.separator=… if the columns "
            f"are separated by something else than '{main.separator}'"
        )

    notes = []
    targets = None if target is None else [joined.table.find_column(column) for column in _list_columns(target)]
    if text is None:
        chosen = _judge_text_column(joined, targets or [])
        texts = [chosen]
        notes.append(f"column '{joined.table.names[chosen]}' is the text; data.text=… says otherwise.")
    else:
        texts = [joined.table.find_column(column, "data.text") for column in _list_columns(text)]

    if targets is None:
        # The last column that is no text, as for other tables.
        targets = [[number for number in range(len(joined.table.names)) if number not in texts][-1]]
    _refuse_twice(joined.table, texts, targets)
    return TextSource(files, joined, texts, targets, val_path is not None, test_path is not None, False, tuple(notes))


def _list_columns(columns: str | int | Sequence[str | int] | None) -> list[str | int]:
    if columns is None:
        return []
    return [columns] if isinstance(columns, str | int) else list(columns)


def _choose_trained(
    table: Table, columns: str | int | list[str | int] | None, trained: Sequence[str]
) -> str | int | list[str | int] | None:
    """The columns of training, if they are there and no others are typed by name."""
    # A name that is typed counts, a number may stand for another column here.
    is_by_name = any(isinstance(column, str) for column in _list_columns(columns))
    return columns if is_by_name or not set(trained) <= set(table.names) else list(trained)


def _judge_text_column(file: TableFile, targets: Sequence[int]) -> int:
    """The column with the longest texts."""
    lengths = {}
    for number, cells in enumerate(file.table.columns):
        sample = cells[:_SAMPLE_ROWS]
        if number not in targets and parse_numbers(sample) is None:
            # By all their letters: a single long cell does not make a column of texts.
            lengths[number] = sum(map(len, sample))

    if not lengths:
        raise DataError(f"{file.table.path} has no column of texts; type data.text=<its name>, or data=table")
    return max(lengths, key=lambda number: lengths[number])


def _refuse_twice(table: Table, texts: Sequence[int], targets: Sequence[int]) -> None:
    for key, columns, others in (("text", texts, targets), ("target", targets, [])):
        for column in columns:
            name = table.names[column]
            if column in others:
                raise RequestError(
                    f"data.text and data.target both name column '{name}'; name another one by data.text"
                )
            if list(columns).count(column) > 1:
                raise RequestError(f"data.{key} names column '{name}' twice; leave out one of them")

    if not targets or not texts:
        raise RequestError(
            f"data.{'text' if targets else 'target'}=[] names no column; type one of {join_names(table.names)}"
        )


def _join_columns(file: TableFile, columns: Sequence[int]) -> Iterator[str]:
    """The text of each row; several columns are joined by a blank."""
    cells = [file.table.columns[column] for column in columns]
    return iter(cells[0]) if len(cells) == 1 else map(" ".join, zip(*cells, strict=True))


def _refuse_empty(file: TableFile, columns: Sequence[int], corpus: Corpus) -> None:
    troubles = []
    for row in np.flatnonzero(corpus.lengths == 0).tolist():
        cell = file.table.columns[columns[0]][row]
        problem = f"holds '{cell[:40]}', in which there is no text" if cell.strip() else "is empty"
        troubles.append(Trouble(row, columns[0], problem))
    raise_troubles(file, troubles, "write a text, or remove the row")


# Folders


def _read_folder(
    folder: Path, encoding: str | None, classes: Sequence[str] | None, folder_keys: Mapping[str, Any]
) -> TextSource:
    """Texts in class folders, in `folder` itself or in its folders train, val and test."""
    for key, value in folder_keys.items():
        if value is not None:
            raise RequestError(f"data.{key}={value} is for tables, and data.path={folder} is a folder; leave it out")

    bases = _find_bases(folder)
    folder_names = sorted(path.name for path in _list_folders(bases["train"]))
    if not folder_names:
        raise DataError(
            f"{bases['train']} has no class folders: put the texts of each class into a folder named after it"
        )

    for name in classes or ():
        if str(name) not in folder_names:
            hint = did_you_mean(str(name), folder_names)
            raise RequestError(
                f"data.classes names {name}, which is no folder of {bases['train']}; {hint}there are "
                f"{join_names(folder_names)}"
            )

    names = folder_names if classes is None else [str(name) for name in classes]

    others: Counter[str] = Counter()
    notes: list[str] = []
    files = [_read_part(base, names, encoding, others, notes) for base in bases.values()]
    if others:
        counts = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in sorted(others.items()))
        notes.append(f"files that are no {TEXT_ENDING} were not read: {counts}.")

    notes += note_beside(folder, {part: [base] for part, base in bases.items() if base != folder}, [*bases.values()])
    left_out = [name for name in folder_names if name not in names]
    if left_out:
        notes.append(f"not in data.classes: {join_names(left_out)}.")

    joined = join_files(files)
    joined = replace(
        joined, sources=tuple(chain.from_iterable(file.sources for file in files)), sha256=_hash_folder(folder)
    )
    return TextSource(files, joined, [0], [1], "val" in bases, "test" in bases, True, tuple(notes))


def _list_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _find_bases(folder: Path) -> dict[str, Path]:
    """The folder of each part, train first; `folder` itself where its folders are classes."""
    bases = {}
    for part, usual_names in NAMES_OF_PARTS.items():
        named = [path for path in _list_folders(folder) if path.name.lower() in usual_names]
        named = named or [path for path in _list_folders(folder) if find_part(path.name) == part]
        if len(named) > 1:
            names = " and ".join(path.name for path in named)
            raise DataError(f"{folder} holds {names}, of which one is the {part} part; rename the other")
        if named and _list_folders(named[0]):
            bases[part] = named[0]

    if not bases:
        return {"train": folder}
    if "train" not in bases:
        raise DataError(
            f"{folder} holds {join_names(sorted(bases))}, and no training part; name the folder of that train"
        )
    return bases


def _read_part(
    base: Path, names: Sequence[str], encoding: str | None, others: Counter[str], notes: list[str]
) -> TableFile:
    """The texts of one part as a table of two columns, text and class; files that are no texts are counted."""
    paths: list[Path] = []
    labels: list[str] = []
    for name in names:
        if not (base / name).is_dir():
            notes.append(f"{base} has no texts of the class {name}.")
            continue

        before = len(paths)
        for file in list_files_below(os.fsencode(base / name)):
            path = Path(os.fsdecode(file))
            if path.suffix.lower() == TEXT_ENDING:
                paths.append(path)
            else:
                others[path.suffix.lower()] += 1

        if len(paths) == before:
            raise DataError(f"{base / name} holds no {TEXT_ENDING} files; add some or remove it")
        labels += [name] * (len(paths) - before)

    if not paths:
        raise DataError(f"{base} has no texts of {join_names(names)}; add some or remove it")

    texts = []
    judged: Counter[str] = Counter()
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
        one_text, name = decode(path, content, encoding, [])
        judged[name] += 1
        texts.append(one_text)

    foreign = {name: count for name, count in judged.items() if not name.startswith("utf-8")}
    if encoding is None and foreign:
        counts = ", ".join(f"{count} as {name}" for name, count in foreign.items())
        notes.append(f"files that are not UTF-8 were read by their bytes, {counts}; data.encoding=… says otherwise.")

    table = Table(base, True, _FILE_COLUMNS, [tuple(texts), tuple(labels)], [1] * len(paths))
    return TableFile(table, None, encoding, ".", "", sources=tuple((path, 1) for path in paths))


def _make_origin(source: TextSource) -> Origin:
    if not source.is_folder:
        return make_origin(source.files)
    names: NDArray[np.bytes_] = np.array([os.fsencode(path) for path, _ in source.joined.sources])
    return Origin.from_files(names)


# Splits


def _make_spec(
    source: TextSource, tokenizer: Tokenizer, target: Target, train_rows: RowIndices, normalize: bool, longest: int
) -> DataSpec:
    table = source.joined.table
    target_mean, target_std = fit_target_scale(target, train_rows, normalize)
    fitted = {
        **tokenizer.to_plain(),
        "text_columns": [table.names[column] for column in source.text_columns],
        "text_indices": source.text_columns,
        "targets": [table.names[column] for column in source.targets],
        "target_indices": source.targets,
        "has_names": table.has_header,
        "is_folder": source.is_folder,
        "sha256": source.joined.sha256,
        "rows_crc": zlib.crc32(train_rows.astype("<i8").tobytes()),
    }
    return DataSpec(
        "tokens",
        (longest,),
        target.task,
        count_outputs(target),
        class_names=target.class_names,
        vocabulary=tokenizer.vocabulary,
        target_mean=target_mean,
        target_std=target_std,
        preprocessing=fitted,
        outputs=target.outputs,
    )


def _describe_vocabulary(corpus: Corpus, tokenizer: Tokenizer, parts: RowParts, is_new: bool) -> Iterator[str]:
    """Notes on the vocabulary, and on the share of what it does not know in the held-out part."""
    is_unknown = np.array([tokenizer.codes.get(token, UNKNOWN) == UNKNOWN for token in corpus.tokens])
    noun = tokenizer.unit
    counts = corpus.count(parts.train)
    if is_new:
        yield (
            f"{len(tokenizer.vocabulary) - 2:,} of {int((counts > 0).sum()):,} {noun} of the training texts have a "
            "code of their own; data.vocabulary_size and data.min_count choose them."
        )

    held_out = parts.test if len(parts.test) else parts.val
    counts = corpus.count(held_out if is_new else parts.train)
    if counts[is_unknown].sum():
        share = counts[is_unknown].sum() / counts.sum()
        where = "test texts" if len(parts.test) else "validation texts"
        yield f"{100 * share:.1f} % of the {noun} of the {where if is_new else 'texts'} count as unknown."


def _describe_cut(corpus: Corpus, tokenizer: Tokenizer) -> str:
    share = float((corpus.cut > 0).mean())
    if not share:
        return ""
    return (
        f"{100 * share:.1f} % of the texts are longer than {tokenizer.max_length} {tokenizer.unit} and were cut there; "
        "data.max_length=… reads more of them."
    )
