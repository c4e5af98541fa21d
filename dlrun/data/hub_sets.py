"""`data=huggingface`: sets of the datasets library, from a folder or the library's cache; never from the network."""

import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.core.errors import DataError, RequestError, join_names
from dlrun.core.suggest import did_you_mean
from dlrun.core.user_code import get_first_clause
from dlrun.data.arrays import split_arrays
from dlrun.data.class_folders import is_image
from dlrun.data.class_numbers import Labels, read_labels
from dlrun.data.columns.kinds import ColumnChoice
from dlrun.data.columns.preprocessing import Preprocessing
from dlrun.data.datasets import hold_out
from dlrun.data.hub_columns import (
    MODALITIES,
    HubArrays,
    HubPart,
    Modality,
    choose_array,
    choose_table_columns,
    choose_text,
    judge_modality,
    list_columns,
    read_part,
)
from dlrun.data.origin import Origin
from dlrun.data.pictures import EncodedPictures, PictureOptions, build_picture_splits
from dlrun.data.spec import Splits
from dlrun.data.tables import Drawing, TableOptions, join_files, split_table
from dlrun.data.tabular import TableTask
from dlrun.data.text import TextSource, Vocabulary, split_texts
from dlrun.data.tokens import Unit, is_text

# What the library writes for a set that was saved by save_to_disk.
_SAVED = ("dataset_dict.json", "state.json")

# The library's readers of local files, by suffix. Others, such as that of pandas, can open pickles.
_READERS = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}

# The words of a split's name in the name of a file, as in test-00000-of-00001.parquet.
_USUAL_SPLITS = {"train": ("train",), "val": ("validation", "valid", "val", "dev"), "test": ("test",)}

# Columns that are the class where none is named, the likeliest first.
_TARGETS = ("label", "labels", "target", "class", "fine_label", "category")


class HubPictures:
    """The pictures in a column, and their classes: see data/pictures.py.

    rows: int64 (N,), into the set.
    """

    def __init__(
        self, dataset: Any, column: str, targets: Tensor, rows: NDArray[np.int64], name: str, folder: Path
    ) -> None:
        """folder: what the paths of pictures in files are relative to."""
        self.folder = folder
        self.dataset = dataset
        self.column = column
        self.rows = rows
        self.targets = targets[torch.from_numpy(rows)]
        self.origin = Origin.from_position(name, len(dataset)).take(torch.from_numpy(rows))

    def __len__(self) -> int:
        return len(self.rows)

    def open(self, row: int) -> tuple[Path, BinaryIO | None]:
        """Name and bytes of a picture, or the file that the set refers to; DataError if it has neither."""
        name = Path(self.origin.format_label(row))
        picture = self.dataset[int(self.rows[row])][self.column]
        if picture is None:
            raise DataError(f"{name}: column {self.column} holds no picture; remove the row, or write one")
        if picture["bytes"] is not None:
            return name, io.BytesIO(picture["bytes"])

        # An address would be fetched by the library; only files are read.
        file = self.folder / str(picture["path"])
        if not file.is_file():
            raise DataError(f"{name}: column {self.column} refers to {file}, which is no file here; embed the pictures")
        return file, None


def huggingface(
    path: str,
    subset: str | None = None,
    input: str | list[str] | None = None,
    target: str | list[str] | None = None,
    class_names: list[str] | None = None,
    train_split: str | None = None,
    val_split: str | None = None,
    test_split: str | None = None,
    image_size: int = 64,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    normalization: Literal["auto", "images"] = "auto",
    grayscale: bool = False,
    background: str = "white",
    pixel_range: list[float] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    augment: list[Any] | None = None,
    task: TableTask | None = None,
    in_memory: bool | None = None,
    modality: Modality | None = None,
    tokens: Unit = "words",
    lower_case: bool | None = None,
    vocabulary_size: int | None = 20000,
    min_count: int = 2,
    max_length: int | None = 256,
    drop: list[Any] | None = None,
    categorical: list[Any] | None = None,
    kinds: dict[str, Any] | None = None,
    missing: str = "impute",
    normalize: bool = True,
    val_fraction: float = 0.0,
    preprocessing: dict[str, Any] | None = None,
    category_codes: bool = False,
) -> Splits:
    """Pictures, texts, tables or arrays, with a class or a value each, from a set of the datasets library.

    path: a folder that save_to_disk wrote, a folder of Parquet, Arrow, CSV or JSON files or one of these, or the name
    of a set that the library's cache holds, of which `subset` names the configuration. modality: what it is read as;
    None: by the types of the columns, see `judge_modality`. input, target: names of columns; None for the first of
    pictures, texts or arrays or all that a table can have, and for the only one of classes or a usual name.
    train_split, val_split, test_split: names of the splits; None for train, validation and test where there are such.

    The other arguments are those of `image_folder`, and for texts, tables and arrays of `text`, `table` and `arrays`.
    Raises DataError or RequestError, naming set, column or row.
    """
    _import_datasets()
    pixels = tuple(pixel_range or ())
    options = PictureOptions(image_size, mean, std, grayscale, augment, in_memory, background, pixels, task, True)
    options.check()
    vocabulary = Vocabulary(tokens, lower_case, vocabulary_size, min_count, max_length)
    vocabulary.make_tokenizer()
    choice = ColumnChoice(list_columns(input) or None, drop, categorical, kinds)
    drawing = Drawing(test_fraction, val_fraction, seed)
    table_options = TableOptions(-1, task, choice, missing, normalize, category_codes, drawing)
    table_options.check()

    hub = _choose_columns(
        path, open_splits(path, subset), (train_split, val_split, test_split), modality, input, target, preprocessing
    )
    if hub.modality == "image":
        splits = _read_pictures(hub, class_names, test_fraction, seed, options)
    elif hub.modality == "array":
        names = class_names or hub.get_class_names()
        files = HubArrays(hub.parts, hub.inputs[0], hub.targets)
        array_task: Any = task
        splits = split_arrays(files, path, array_task, names, test_fraction, normalize, seed)
    else:
        splits = _read_columns(hub, class_names, vocabulary, table_options, preprocessing)

    unheeded = dict.fromkeys(_list_foreign_keys(hub.modality), f"it is not for data.modality={hub.modality}")
    if "test" in hub.parts:
        unheeded["test_fraction"] = f"the set's split {hub.chosen['test']} is the test part"
    if splits.val is None and hub.modality in ("image", "array"):
        train, val = hold_out(splits.train, val_fraction, seed)
        splits = replace(splits, train=train, val=val)
    elif "val" in hub.parts:
        unheeded["val_fraction"] = f"the set's split {hub.chosen['val']} is the validation part"
    return replace(splits, notes=(*hub.notes, *splits.notes), unheeded={**splits.unheeded, **unheeded})


@dataclass(frozen=True)
class _HubSet:
    """A set whose splits and columns are chosen.

    splits: by name; parts: by train, val and test; chosen: the names of their splits.
    """

    path: str
    parts: dict[str, HubPart]
    chosen: dict[str, str]
    modality: Modality
    inputs: list[str]
    targets: list[str]
    notes: tuple[str, ...]

    @property
    def features(self) -> Mapping[str, Any]:
        """The types of the columns, by name."""
        features: Mapping[str, Any] = self.parts["train"].dataset.features
        return features

    def get_class_names(self) -> list[str] | None:
        """The names of the classes in the only target, if it has such."""
        names = getattr(self.features[self.targets[0]], "names", None) if len(self.targets) == 1 else None
        return None if names is None else [str(name) for name in names]


# Settings that are for some of the modalities alone.
_KEYS: dict[tuple[Modality, ...], str] = {
    ("image",): "image_size mean std normalization grayscale background pixel_range augment in_memory",
    ("text",): "tokens lower_case vocabulary_size min_count max_length",
    ("table",): "drop categorical kinds missing",
    ("text", "table", "array"): "normalize",
}


def _list_foreign_keys(modality: Modality) -> list[str]:
    """The settings that are for other modalities."""
    return [key for modalities, keys in _KEYS.items() if modality not in modalities for key in keys.split()]


def _choose_columns(
    path: str,
    splits: Mapping[str, Any],
    typed_splits: tuple[str | None, str | None, str | None],
    modality: Modality | None,
    input: str | list[str] | None,
    target: str | list[str] | None,
    trained: Mapping[str, Any] | None,
) -> _HubSet:
    """Decide which splits and columns are read, and as what; trained: the preprocessing of a trained model."""
    if modality not in (None, *MODALITIES):
        hint = did_you_mean(str(modality), MODALITIES)
        raise RequestError(f"data.modality={modality} is no choice; {hint}type one of {', '.join(MODALITIES)}")
    chosen = _choose_splits(path, splits, dict(zip(_USUAL_SPLITS, typed_splits, strict=True)))
    train = splits[chosen["train"]]
    features = train.features
    inputs = list_columns(input)
    for key, names in (("input", inputs), ("target", list_columns(target))):
        for name in names:
            _check_column(key, path, features, name)
    if trained is not None:
        modality = "text" if is_text(trained) else "table"
        columns = [str(name) for name in trained.get("text_columns", ())]
        inputs = inputs or [name for name in columns if name in features]

    pictures = [name for name, feature in features.items() if _is_picture(feature)]
    pictures += [name for name in inputs if name not in pictures and _names_pictures(train, name)]
    targets = [] if target == [] else list_columns(target) or [_choose_target(path, features, inputs, pictures)]
    both = [name for name in targets if name in inputs]
    if both:
        raise RequestError(f"data.input and data.target both name the column {both[0]}; name another by data.target")

    judged = modality or judge_modality(train, inputs, targets, pictures)
    notes: tuple[str, ...] = ()
    if judged == "image":
        inputs = [_choose_picture(path, features, inputs, [name for name in pictures if name not in targets])]
    elif judged == "text":
        inputs = inputs or choose_text(path, train, targets)
    elif judged == "array":
        inputs = [choose_array(path, features, inputs, targets)]
    else:
        inputs, left_out = choose_table_columns(features, inputs, targets)
        inputs = [name for name in inputs if name not in targets]
        if left_out:
            cannot = (
                "cannot be a column of a table, and was"
                if len(left_out) == 1
                else "cannot be columns of a table, and were"
            )
            notes = (f"{path}: {join_names(left_out)} {cannot} left out.",)

    parts = {part: HubPart(f"{path}[{name}]", splits[name]) for part, name in chosen.items()}
    for source in parts.values():
        absent = [name for name in (*inputs, *targets) if name not in source.dataset.features]
        if absent:
            there = join_names(list(source.dataset.features))
            raise DataError(f"{source.name} has no column {absent[0]}, it has {there}; write it")
    hub = _HubSet(path, parts, chosen, judged, inputs, targets, ())
    if judged in ("text", "table"):
        _check_targets(hub)
    secret = _find_secret_parts(hub)
    notes = (*notes, *(f"{path}: the split {chosen[part]} has no classes, and was not read." for part in secret))
    used = set(chosen.values())
    for part in secret:
        del parts[part], chosen[part]
    others = [name for name in splits if name not in used]
    return replace(hub, notes=(*notes, *_describe(hub, others, modality is None)))


def _check_targets(hub: _HubSet) -> None:
    """Raise DataError for targets that are no class or number a row, and for rows without a class."""
    for name in hub.targets:
        feature = hub.features[name]
        if type(feature).__name__ not in ("Value", "ClassLabel"):
            others = [other for other, kind in hub.features.items() if type(kind).__name__ in ("Value", "ClassLabel")]
            raise DataError(
                f"data.target={name}: this column of {hub.path} holds {type(feature).__name__}, and a row has a class "
                f"or value; name one of {join_names(others) or 'another set'}"
            )


def _find_secret_parts(hub: _HubSet) -> list[str]:
    """The parts whose classes are a secret, written as -1: the hub has test rows of that kind."""
    if len(hub.targets) != 1:
        return []
    others = [part for part in hub.parts if part != "train"]
    return [part for part in others if all(map(_is_secret, _read_column(hub.parts[part].dataset, hub.targets[0])))]


def _is_secret(value: Any) -> bool:
    return value is None or (isinstance(value, int) and value == -1)


def _read_pictures(
    hub: _HubSet, class_names: list[str] | None, test_fraction: float, seed: int, options: PictureOptions
) -> Splits:
    if len(hub.targets) != 1:
        raise RequestError(f"data.target={hub.targets}: a picture has one class or value; name one column")
    column = hub.inputs[0]
    label = hub.targets[0]
    labels: dict[str, Labels] = {}
    for part, source in hub.parts.items():
        names = _RowNames(Origin.from_position(source.name, len(source.dataset)))
        labels[part] = (_read_column(source.dataset, label), names)
    class_names = class_names or hub.get_class_names()
    answers = read_labels(labels, class_names, f"data.target={label}", options.task, hub.path)

    place = Path(hub.path).expanduser()
    folder = place.parent if place.is_file() else place
    as_stored = _import_datasets().Image(decode=False)
    stored = {}
    for part, source in hub.parts.items():
        chosen = source.dataset.with_format(None).select_columns([column, label])
        stored[part] = chosen.cast_column(column, as_stored)
    pictures: dict[str, EncodedPictures] = {}
    for part, (lender, rows) in answers.choose_rows(test_fraction, seed, hub.path).items():
        name = hub.parts[lender].name
        pictures[part] = HubPictures(stored[lender], column, answers.targets[lender], rows, name, folder)
    return build_picture_splits(pictures, answers, options)


def _read_columns(
    hub: _HubSet,
    class_names: list[str] | None,
    vocabulary: Vocabulary,
    options: TableOptions,
    preprocessing: Mapping[str, Any] | None,
) -> Splits:
    """Texts, or a table, by the code of data=text and data=table."""
    columns = [*hub.inputs, *hub.targets]
    names = {
        name: feature.names for name, feature in hub.features.items() if name in columns and hasattr(feature, "names")
    }
    if class_names is not None and len(hub.targets) == 1:
        names[hub.targets[0]] = class_names
    order = names.get(hub.targets[0], ()) if hub.targets else ()
    files = [read_part(hub.parts[part], columns, names) for part in ("train", "val", "test") if part in hub.parts]
    has_val = "val" in hub.parts
    has_test = "test" in hub.parts
    if hub.modality == "text":
        positions = [columns.index(name) for name in columns]
        texts = positions[: len(hub.inputs)]
        source = TextSource(files, join_files(files), texts, positions[len(texts) :], has_val, has_test, False)
        return split_texts(source, options.task, vocabulary, options.drawing, options.normalize, preprocessing, order)

    saved = None if preprocessing is None else Preprocessing.from_plain(preprocessing)
    targets: Any = hub.targets
    options = replace(options, target=targets, class_order=order)
    return split_table(files, options, has_val, has_test, saved)


class _RowNames(Sequence[str]):
    """The names of rows, put together when they are asked for."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin

    def __len__(self) -> int:
        return self.origin.count

    def __getitem__(self, index: Any) -> Any:
        return self.origin.format_label(index)


def _import_datasets() -> Any:
    try:
        with warnings.catch_warnings():
            # Of the library's own imports.
            warnings.simplefilter("ignore")
            # Takes seconds, so not at the top of the file.
            import datasets
    except ImportError as error:
        raise RequestError(
            f"data=huggingface cannot import datasets ({get_first_clause(error)}); "
            "type pip install 'dlrun[huggingface]'"
        ) from error
    datasets.disable_progress_bars()
    # The one sentence of the error is dlrun's.
    datasets.logging.set_verbosity(50)
    return datasets


def open_splits(path: str, subset: str | None = None) -> dict[str, Any]:
    """The splits of a set by name, each a `datasets.Dataset`.

    Raises DataError for a set that is neither in a folder nor in the library's cache, and for files that it cannot
    read.
    """
    place = Path(path).expanduser()
    if place.exists():
        if subset is not None:
            raise RequestError(f"data.subset={subset} is for cached sets, and data.path={path} is here; leave it out")
        opened = _open_saved(place) if any((place / name).is_file() for name in _SAVED) else _open_files(place)
    else:
        opened = _open_cached(path, subset)
    datasets = _import_datasets()
    if isinstance(opened, datasets.DatasetDict):
        return dict(opened)
    return {"train": opened}


def _open_saved(folder: Path) -> Any:
    return _call(folder, lambda: _import_datasets().load_from_disk(str(folder)))


def _open_files(place: Path) -> Any:
    """Files of one kind, by split; the library copies other kinds than Arrow to its cache once."""
    datasets = _import_datasets()
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if _is_visible(file, place))
    readers = sorted({_READERS[file.suffix.lower()] for file in files if file.suffix.lower() in _READERS})
    if not readers:
        raise DataError(
            f"data.path={place} holds no set: neither what save_to_disk writes nor {join_names(sorted(_READERS))} "
            "files; type data=image_folder for pictures in class folders, data=webdataset for tar shards"
        )
    if len(readers) > 1:
        raise DataError(
            f"{place} holds files of several kinds, {join_names(readers)}; type data.path=<one kind of them>"
        )

    by_split: dict[str, list[str]] = {}
    for file in files:
        if _READERS.get(file.suffix.lower()) == readers[0]:
            by_split.setdefault(_find_split(file, place), []).append(str(file))
    return _call(place, lambda: datasets.load_dataset(readers[0], data_files=by_split))


def _is_visible(file: Path, folder: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _find_split(file: Path, folder: Path) -> str:
    """The split that a file, or the folder it lies in, is named after; train for other names."""
    inside = file.relative_to(folder) if folder.is_dir() else Path(file.name)
    for name in (file.stem, *reversed(inside.parts[:-1])):
        first = name.lower().replace("_", "-").replace(".", "-").split("-")[0]
        for part, words in _USUAL_SPLITS.items():
            if first in words:
                return {"train": "train", "val": "validation", "test": "test"}[part]
    return "train"


def _open_cached(name: str, subset: str | None) -> Any:
    """A set that the library prepared before; its builder of cached sets asks no network."""
    datasets = _import_datasets()
    from datasets.packaged_modules.cache.cache import Cache

    looks_like_name = name.count("/") <= 1 and not name.startswith((".", "~", "/")) and "://" not in name
    if not looks_like_name:
        raise DataError(f"data.path={name} does not exist; type the folder of a set, or the name of a cached one")
    try:
        # The library finds the newest version that it prepared.
        builder = Cache(dataset_name=name.split("/")[-1], repo_id=name, config_name=subset, version="auto", hash="auto")
        return builder.as_dataset()
    except Exception as error:
        # The library has several ways to tell that it has none.
        cache = datasets.config.HF_DATASETS_CACHE
        which = f"'{name}', '{subset}'" if subset else f"'{name}'"
        configs = _list_cached_subsets(Path(cache), name)
        if configs and (subset is None or subset not in configs):
            raise DataError(
                f"data.path={name}: the cache has the subsets {join_names(configs)}; type data.subset=<one of them>"
            ) from error
        raise DataError(
            f"data.path={name} is neither a folder nor a set in {cache}, and dlrun asks no network for it; type "
            f'python -c "import datasets; datasets.load_dataset({which})" where there is one'
        ) from error


def _list_cached_subsets(cache: Path, name: str) -> list[str]:
    folder = cache / name.replace("/", "___")
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _call(place: Path, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:
        # pyarrow and the library fail in many ways at damaged files.
        causes = [error, error.__cause__] if error.__cause__ is not None else [error]
        why = " ".join(str(causes[-1]).split()) or type(error).__name__
        raise DataError(f"{place} cannot be read by datasets ({why[:200]}); write it anew") from error


# Which splits and columns


def _choose_splits(path: str, splits: Mapping[str, Any], typed: Mapping[str, str | None]) -> dict[str, str]:
    """The name of each part's split; train is the only one there is, if it has another name."""
    chosen: dict[str, str] = {}
    for part, name in typed.items():
        if name is not None:
            if name not in splits:
                hint = did_you_mean(name, splits)
                raise DataError(
                    f"data.{part}_split={name}: {path} has no such split; {hint}it has {join_names(list(splits))}"
                )
            chosen[part] = name

    for part, usual_names in _USUAL_SPLITS.items():
        free = [name for name in usual_names if name in splits and name not in chosen.values()]
        if part not in chosen and free:
            chosen[part] = free[0]
    if "train" not in chosen and len(splits) == 1:
        chosen = {"train": next(iter(splits))}
    if "train" not in chosen:
        raise DataError(f"{path} has no split train; type data.train_split=<one of {join_names(list(splits))}>")

    names = list(chosen.values())
    if len(set(names)) < len(names):
        raise RequestError("data.train_split, data.val_split and data.test_split name one split twice; name each once")
    return {part: chosen[part] for part in _USUAL_SPLITS if part in chosen}


def _is_picture(feature: Any) -> bool:
    """Whether a column holds pictures, also one whose file does not say so."""
    return type(feature).__name__ == "Image" or (isinstance(feature, dict) and {*feature} == {"bytes", "path"})


def _choose_picture(path: str, features: Mapping[str, Any], inputs: Sequence[str], pictures: Sequence[str]) -> str:
    """The column of pictures: the one that is typed, or the first."""
    if len(inputs) > 1:
        raise RequestError(f"data.input={list(inputs)}: pictures lie in one column; name one of {join_names(pictures)}")
    if inputs and inputs[0] not in pictures:
        kind = getattr(features[inputs[0]], "dtype", type(features[inputs[0]]).__name__)
        raise DataError(f"data.input={inputs[0]}: this column of {path} holds {kind} and no pictures; leave it out")
    if not pictures:
        raise DataError(f"{path}: no column holds pictures, of {join_names(list(features))}; leave out data.modality")
    return str(pictures[0])


def _names_pictures(train: Any, column: str) -> bool:
    """Whether a column holds names of picture files, by its first row."""
    if getattr(train.features[column], "dtype", None) not in ("string", "large_string") or not len(train):
        return False
    return is_image(os.fsencode(str(train.select_columns([column])[0][column])))


def _choose_target(path: str, features: Mapping[str, Any], inputs: Sequence[str], pictures: Sequence[str]) -> str:
    """The column of the class or value where none is typed."""
    classes = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    others = [name for name in features if name not in inputs and name not in pictures]
    usual = [name for name in _TARGETS if name in others]
    if len(classes) == 1 and classes[0] in others:
        return classes[0]
    if usual:
        return usual[0]
    if not others:
        raise DataError(
            f"{path} has {join_names(list(features))} alone, and a row needs a class or value; add a column"
        )
    raise DataError(f"{path}: no column is known to be the class; type data.target=<one of {join_names(others)}>")


def _check_column(key: str, path: str, features: Mapping[str, Any], name: str) -> None:
    if name not in features:
        hint = did_you_mean(name, features)
        raise DataError(f"data.{key}={name}: {path} has no such column; {hint}it has {join_names(list(features))}")


def _read_column(dataset: Any, label: str) -> list[Any]:
    # Alone, so that no picture is read.
    return list(dataset.with_format(None).select_columns([label])[:][label])


def _describe(hub: _HubSet, left_out: Sequence[str], is_judged: bool) -> Iterator[str]:
    counts = [f"{len(part.dataset):,} rows of {hub.chosen[name]}" for name, part in hub.parts.items()]
    nouns: dict[str, str] = {"image": "pictures", "text": "texts", "array": "arrays"}
    inputs = f"{nouns[hub.modality]} {join_names(hub.inputs)}" if hub.modality in nouns else "a table"
    by = "; data.modality=… says otherwise" if is_judged and hub.modality != "image" else ""
    yield f"{hub.path}: {', '.join(counts)}; {inputs}, target {join_names(hub.targets) or 'none'}{by}."
    if left_out:
        yield f"{hub.path}: of its splits {join_names(list(left_out))} is not used; data.train_split=… takes another."
