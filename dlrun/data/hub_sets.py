"""`data=huggingface`: sets of the datasets library, from a folder or the library's cache; never from the network."""

import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.core.errors import DataError, RequestError, join_names
from dlrun.core.suggest import did_you_mean
from dlrun.core.user_code import get_first_clause
from dlrun.data.class_folders import is_image
from dlrun.data.class_numbers import choose_rows, explain_single_class, number_classes, refuse_many_classes
from dlrun.data.origin import Origin
from dlrun.data.pictures import EncodedPictures, PictureOptions, build_picture_splits
from dlrun.data.spec import Splits

HUGGINGFACE_TARGET = "dlrun.data.hub_sets.huggingface"

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
    input: str | None = None,
    target: str | None = None,
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
    task: Literal["multiclass", "binary"] = "multiclass",
    in_memory: bool | None = None,
) -> Splits:
    """Pictures and their classes from a set of the datasets library.

    path: a folder that save_to_disk wrote, a folder of Parquet, Arrow, CSV or JSON files or one of these, or the name
    of a set that the library's cache holds, of which `subset` names the configuration. input, target: names of the
    columns; None for the only one of pictures, and the only one of classes or a usual name. train_split, val_split,
    test_split: names of the splits; None for train, validation and test where the set has them.

    The other arguments are those of `image_folder`. Raises DataError or RequestError, naming set, column or row.
    """
    _import_datasets()
    pixels = tuple(pixel_range or ())
    options = PictureOptions(image_size, mean, std, grayscale, augment, in_memory, background, pixels, task, True)
    options.check()

    splits = open_splits(path, subset)
    chosen = _choose_splits(path, splits, {"train": train_split, "val": val_split, "test": test_split})
    train = splits[chosen["train"]]
    column = _choose_input(path, train, input)
    label = _choose_target(path, train.features, column, target)

    parts = {part: _select(splits[name], column, label, f"{path}[{name}]") for part, name in chosen.items()}
    names = {part: Origin.from_position(f"{path}[{name}]", len(splits[name])) for part, name in chosen.items()}
    labels = {part: (_read_column(dataset, label), _RowNames(names[part])) for part, dataset in parts.items()}
    # The hub has test rows whose class is a secret, written as -1.
    secret = [part for part, (values, _) in labels.items() if part != "train" and set(values) <= {-1, None}]
    for part in secret:
        del parts[part], labels[part]
    notes = tuple(f"{path}: the split {chosen.pop(part)} has no classes, and was not read." for part in secret)
    if class_names is None:
        class_names = getattr(train.features[label], "names", None)
    numbered, classes = number_classes(labels, class_names, f"data.target={label}")
    refuse_many_classes(task, classes, path)
    nothing_to_learn = explain_single_class(numbered["train"], classes, path)
    unheeded = {"test_fraction": f"the set's split {chosen['test']} is the test part"} if "test" in parts else {}

    place = Path(path).expanduser()
    folder = place.parent if place.is_file() else place
    pictures: dict[str, EncodedPictures] = {}
    drawn_fraction = 0.0 if nothing_to_learn else test_fraction
    for part, (source, rows) in choose_rows(numbered, classes, drawn_fraction, seed, path).items():
        name = f"{path}[{chosen[source]}]"
        pictures[part] = HubPictures(parts[source], column, numbered[source], rows, name, folder)
    notes += tuple(_describe(path, splits, chosen, column, label))
    return build_picture_splits(pictures, classes, options, notes, unheeded, nothing_to_learn)


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


def _choose_input(path: str, train: Any, typed: str | None) -> str:
    features = train.features
    pictures = [name for name, feature in features.items() if _is_picture(feature)]
    if typed is not None:
        _check_column("input", path, features, typed)
        if typed not in pictures and not _names_pictures(train, typed):
            raise DataError(f"data.input={typed}: {_explain_no_picture(path, features, typed)}")
        return typed
    if not pictures:
        raise DataError(
            f"{path}: no column holds pictures, of {join_names(list(features))}; {_suggest_other_data(path)}"
        )
    return str(pictures[0])


def _names_pictures(train: Any, column: str) -> bool:
    """Whether a column holds names of picture files, by its first row."""
    if getattr(train.features[column], "dtype", None) not in ("string", "large_string") or not len(train):
        return False
    return is_image(os.fsencode(str(train.select_columns([column])[0][column])))


def _explain_no_picture(path: str, features: Mapping[str, Any], column: str) -> str:
    kind = getattr(features[column], "dtype", type(features[column]).__name__)
    return f"this column of {path} holds {kind} and no pictures; {_suggest_other_data(path)}"


def _suggest_other_data(path: str) -> str:
    place = Path(path)
    file = path if place.is_file() else next((str(file) for file in sorted(place.rglob("*.parquet"))), "")
    file = file or "table.parquet (Dataset.to_parquet writes it)"
    return f"for a table type data=table data.path={file}, for texts data=text with the same file"


def _choose_target(path: str, features: Mapping[str, Any], column: str, typed: str | None) -> str:
    if typed is not None:
        _check_column("target", path, features, typed)
        if typed == column:
            raise RequestError(f"data.input and data.target both name the column {typed}; name another by data.target")
        return typed

    classes = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    usual = [name for name in _TARGETS if name in features]
    if len(classes) == 1:
        return classes[0]
    if usual:
        return usual[0]
    others = [name for name in features if name != column]
    if not others:
        raise DataError(f"{path} has the column {column} alone, and a picture needs a class beside it")
    raise DataError(f"{path}: no column is known to be the class; type data.target=<one of {join_names(others)}>")


def _check_column(key: str, path: str, features: Mapping[str, Any], name: str) -> None:
    if name not in features:
        hint = did_you_mean(name, features)
        raise DataError(f"data.{key}={name}: {path} has no such column; {hint}it has {join_names(list(features))}")


def _select(dataset: Any, column: str, label: str, name: str) -> Any:
    """Both columns, the pictures as they are stored."""
    for wanted in (column, label):
        if wanted not in dataset.features:
            raise DataError(f"{name} has no column {wanted}, it has {join_names(list(dataset.features))}; write it")
    chosen = dataset.with_format(None).select_columns([column, label])
    return chosen.cast_column(column, _import_datasets().Image(decode=False))


def _read_column(dataset: Any, label: str) -> list[Any]:
    # Alone, so that no picture is read.
    return list(dataset.select_columns([label])[:][label])


def _describe(
    path: str, splits: Mapping[str, Any], chosen: Mapping[str, str], column: str, label: str
) -> Iterator[str]:
    counts = [f"{len(splits[name]):,} rows of {name}" for name in chosen.values()]
    yield f"{path}: {', '.join(counts)}; pictures {column}, classes {label}."
    left_out = [name for name in splits if name not in chosen.values()]
    if left_out:
        yield f"{path}: of its splits {join_names(left_out)} is not used; data.train_split=… takes another."
