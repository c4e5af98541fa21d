"""`data=webdataset`: tar shards of pictures and their classes, read at any place without being unpacked."""

import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.core.errors import DataError, ErrorList, RequestError, join_names
from dlrun.core.suggest import did_you_mean
from dlrun.data.class_folders import NAMES_OF_PARTS, is_image
from dlrun.data.class_numbers import PictureTask, read_labels
from dlrun.data.files.shards import (
    Places,
    SampleNames,
    ShardIndex,
    decode_member,
    expand_pattern,
    import_webdataset,
    is_pickle,
    read_index,
    read_member,
    refuse_pickle,
)
from dlrun.data.origin import Origin
from dlrun.data.pictures import EncodedPictures, PictureOptions, build_picture_splits
from dlrun.data.spec import Splits

ENDING = ".tar"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")

# Kinds of members that are taken for the class where none is named, the likeliest first.
_TARGETS = ("cls", "label", "label.txt", "cls.txt", "txt")
_MOST_MISTAKES = 10


@dataclass(frozen=True)
class Samples:
    """The samples of several shards, one after another.

    shard: int64 (N,), into `paths`. places, texts: by kind of member, as in ShardIndex.
    """

    paths: Sequence[Path]
    shard: NDArray[np.int64]
    keys: NDArray[np.bytes_]
    places: Mapping[str, Places]
    texts: Mapping[str, NDArray[np.bytes_]]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def names(self) -> SampleNames:
        """Names shard.tar:key."""
        return SampleNames(self.paths, self.shard, self.keys)

    def read(self, kind: str, row: int) -> bytes:
        """The content of a member that the sample has."""
        if kind in self.texts:
            return bytes(self.texts[kind][row])
        offset, size = self.places[kind][row].tolist()
        return read_member(self.paths[self.shard[row]], offset, size)

    def list_kinds(self, row: int) -> list[str]:
        """What members a sample has."""
        return [kind for kind, places in self.places.items() if places[row, 0] >= 0]


class ShardPictures:
    """The pictures of samples, and their classes: see data/pictures.py.

    rows: int64 (N,), into `samples`. kinds: of the members that hold the picture, of which the first is taken.
    blocks: the shard of each row, if rows are to be read as they lie.
    """

    def __init__(
        self, samples: Samples, kinds: Sequence[str], targets: Tensor, rows: NDArray[np.int64], by_shard: bool
    ) -> None:
        self.samples = samples
        self.kinds = kinds
        self.rows = rows
        self.targets = targets[torch.from_numpy(rows)]
        self.origin = Origin(samples.names, len(rows), source=torch.from_numpy(rows), has_file_each=True)
        self.blocks = torch.from_numpy(samples.shard[rows]) if by_shard else None

    def __len__(self) -> int:
        return len(self.rows)

    def open(self, row: int) -> tuple[Path, BinaryIO | None]:
        """Name and bytes of a picture."""
        sample = int(self.rows[row])
        kind = next(kind for kind in self.kinds if self.samples.places[kind][sample, 0] >= 0)
        content = self.samples.read(kind, sample)
        return Path(f"{self.samples.names[sample]}.{kind}"), io.BytesIO(content)


def webdataset(
    path: str,
    root: str,
    input: str | None = None,
    target: str | None = None,
    class_names: list[str] | None = None,
    val_path: str | None = None,
    test_path: str | None = None,
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
    task: PictureTask | None = None,
    in_memory: bool | None = None,
    order: Literal["rows", "shards"] = "rows",
) -> Splits:
    """Tar shards of samples, each a picture and its class or value under one key: 0001.jpg and 0001.cls.

    path: a folder of .tar files, or a pattern such as train-{000..146}.tar; shards, or folders of them, named after
    train, val and test are these parts. root: folder of the cache of indices. input: kind of the members that hold the
    picture, several as jpg;png; target: that of the class, with json.label for a field. order: rows draws from all
    rows, as for other data; shards reads runs of shards, see data/blocks.py.

    The other arguments are those of `image_folder`. Raises DataError or RequestError, naming shard, key or argument.
    """
    import_webdataset()
    pixels = tuple(pixel_range or ())
    options = PictureOptions(image_size, mean, std, grayscale, augment, in_memory, background, pixels, task, True)
    options.check()
    if order == "shards" and in_memory is None:
        # The order is for reading.
        options = replace(options, in_memory=False)

    shards = find_shards(path, val_path, test_path)
    parts = {part: read_samples(paths, Path(root).expanduser() / "shard-indices") for part, paths in shards.items()}
    train = parts["train"]
    kinds = _choose_input(train, input)
    field = _choose_target(train, kinds, target)

    mistakes = ErrorList(_MOST_MISTAKES)
    values: dict[str, list[Any]] = {}
    for part, samples in parts.items():
        _check_inputs(samples, kinds, mistakes)
        values[part] = list(_read_targets(samples, field, mistakes))
    mistakes.raise_if_any()

    labels = {part: (values[part], parts[part].names) for part in parts}
    answers = read_labels(labels, class_names, f"data.target={field}", task, path)
    unheeded = {"test_fraction": "the shards bring a test part of their own"} if "test" in parts else {}
    if options.in_memory and order == "shards":
        unheeded["order"] = "the pictures are held in memory"

    pictures: dict[str, EncodedPictures] = {}
    for part, (source, rows) in answers.choose_rows(test_fraction, seed, path).items():
        pictures[part] = ShardPictures(parts[source], kinds, answers.targets[source], rows, order == "shards")
    notes = tuple(_describe(shards, parts, kinds, field))
    return build_picture_splits(pictures, answers, options, notes, unheeded)


def find_shards(path: str, val_path: str | None = None, test_path: str | None = None) -> dict[str, list[Path]]:
    """The shards of each part, in the order of their names; DataError where there are none."""
    if Path(path).expanduser().is_dir():
        parts = _find_in_folder(Path(path).expanduser())
    else:
        parts = {"train": _find_by_pattern(path, "data.path")}

    for part, pattern in (("val", val_path), ("test", test_path)):
        if pattern is None:
            continue
        if part in parts:
            raise RequestError(
                f"data.{part}_path={pattern}: {parts[part][0]} is of that part too; leave out data.{part}_path, or "
                "type data.path=<a pattern of the training shards>"
            )
        folder = Path(pattern).expanduser()
        parts[part] = _list_shards(folder) if folder.is_dir() else _find_by_pattern(pattern, f"data.{part}_path")
    return parts


def _find_by_pattern(pattern: str, key: str) -> list[Path]:
    shards = expand_pattern(pattern, key)
    if not shards:
        folder = Path(pattern).expanduser().parent
        there = f"; {folder} has {join_names(names)}" if (names := _list_names(folder)) else ""
        raise DataError(f"{key}={pattern} names no shards{there}; type a pattern of {ENDING} files, or their folder")
    return shards


def _list_names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob(f"*{ENDING}*")) if folder.is_dir() else []


def _list_shards(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob(f"*{ENDING}") if not file.name.startswith("."))


def _find_in_folder(folder: Path) -> dict[str, list[Path]]:
    """Shards by part: of folders, or of files, with the name of a part; all are train where none has such a name."""
    named: dict[str, list[Path]] = {}
    for place in sorted(folder.iterdir()):
        part = _find_part(place)
        if place.is_dir() and part is not None:
            named.setdefault(part, []).extend(_list_shards(place))

    shards = _list_shards(folder)
    if not any(named.values()):
        named = {}
        for shard in shards:
            part = _find_part(shard)
            if part is not None:
                named.setdefault(part, []).append(shard)
        # One part alone is what there is to read, as a test set of its own.
        if len(named) == 1 or "train" not in named:
            named = {"train": shards}

    parts = {part: named[part] for part in NAMES_OF_PARTS if named.get(part)}
    if "train" not in parts:
        raise _build_no_shards_error(folder)
    return parts


def _find_part(path: Path) -> str | None:
    """The part that a folder or a shard is named after, as imagenet-train-000146.tar is after train."""
    words = re.findall("[a-z]+", path.stem.lower())
    parts = [part for part, usual_names in NAMES_OF_PARTS.items() if any(word in usual_names for word in words)]
    return parts[0] if len(parts) == 1 else None


def _build_no_shards_error(folder: Path) -> DataError:
    compressed = [file.name for file in sorted(folder.iterdir()) if file.name.endswith(_COMPRESSED)]
    if compressed:
        return DataError(
            f"{folder} holds compressed shards ({join_names(compressed, most=3)}), which cannot be read from their "
            "middle; type gunzip, or tar them anew without -z"
        )
    return DataError(f"data.path={folder} holds no shards ({ENDING} files); type data.path=<their folder or a pattern>")


def read_samples(shards: Sequence[Path], cache_folder: Path) -> Samples:
    """The samples of all shards, by their indices; DataError for up to ten damaged shards, and for no sample."""
    mistakes = ErrorList(_MOST_MISTAKES)
    readable_indices = [mistakes.collect(read_index, shard, cache_folder) for shard in shards]
    mistakes.raise_if_any()
    indices = [index for index in readable_indices if index is not None]

    counts = [len(index.keys) for index in indices]
    if not sum(counts):
        raise DataError(
            f"{shards[0]} holds no sample; a shard has a picture and its class under one key, as 0001.jpg and 0001.cls"
        )
    kinds: list[str] = []
    for index in indices:
        kinds += [kind for kind in index.places if kind not in kinds]

    places = {kind: np.concatenate([_get_places(index, kind) for index in indices]) for kind in kinds}
    # Kept where no shard has larger members of the kind.
    texts: dict[str, NDArray[np.bytes_]] = {}
    for kind in kinds:
        contents = [index.texts.get(kind) for index in indices if kind in index.places]
        if len(contents) == len(indices) and all(content is not None for content in contents):
            texts[kind] = np.concatenate([content for content in contents if content is not None])
    shard = np.repeat(np.arange(len(shards)), counts)
    keys = np.concatenate([index.keys for index in indices if len(index.keys)])
    return Samples(list(shards), shard, keys, places, texts)


def _get_places(index: ShardIndex, kind: str) -> Places:
    places = index.places.get(kind)
    return np.full((len(index.keys), 2), -1, np.int64) if places is None else places


# Which members


def _choose_input(samples: Samples, typed: str | None) -> list[str]:
    """The kinds of members that hold the picture."""
    kinds = list(samples.places)
    if typed is not None:
        chosen = [kind.strip().lower() for kind in typed.split(";")]
        for kind in chosen:
            refuse_pickle(f"data.input={typed}", kind)
        if not any(kind in kinds for kind in chosen):
            hint = did_you_mean(chosen[0], kinds)
            raise DataError(f"data.input={typed}: no sample has such a member; {hint}they have {join_names(kinds)}")
        return [kind for kind in chosen if kind in kinds]

    # A mask beside the picture is named seg.png.
    pictures = [kind for kind in kinds if "." not in kind and is_image(f".{kind}".encode())]
    if not pictures:
        raise DataError(
            f"{samples.paths[0]} holds no pictures, its members are {join_names(kinds)}; type data.input=<one that is "
            "a picture>, and for arrays, texts or tables data=arrays, data=text or data=table"
        )
    return pictures


def _choose_target(samples: Samples, inputs: Sequence[str], typed: str | None) -> str:
    """The kind of member that holds the class, with .field for one of a JSON object."""
    kinds = [kind for kind in samples.places if kind not in inputs]
    if typed is not None:
        refuse_pickle(f"data.target={typed}", typed.lower())
        if typed in kinds or split_field(samples, typed)[0] in kinds:
            return typed
        hint = did_you_mean(typed, kinds)
        raise DataError(f"data.target={typed}: no sample has such a member; {hint}they have {join_names(kinds)}")

    for kind in _TARGETS:
        if kind in kinds:
            return kind
    readable = [kind for kind in kinds if not is_pickle(kind)]
    example = "json.label" if "json" in kinds else "cls"
    pickles = "; pickles can run code and are never opened" if len(readable) < len(kinds) else ""
    raise DataError(
        f"{samples.paths[0]}: no member is known to be the class, besides {join_names(inputs)} there "
        f"{'are' if len(kinds) > 1 else 'is'} {join_names(kinds) or 'none'}{pickles}; type data.target=<member>, as in "
        f"data.target={example}"
    )


def split_field(samples: Samples, target: str) -> tuple[str, list[str]]:
    """Kind of member and names of fields in it: json.a.b is the field b of a in json."""
    if target in samples.places:
        return target, []
    kind, *fields = target.split(".")
    return kind, fields


def _check_inputs(samples: Samples, kinds: Sequence[str], mistakes: ErrorList) -> None:
    """Add a mistake for each sample without a picture."""
    missing = np.ones(len(samples), bool)
    for kind in kinds:
        places = samples.places.get(kind)
        if places is not None:
            missing &= places[:, 0] < 0
    for row in np.flatnonzero(missing)[: _MOST_MISTAKES + 1].tolist():
        mistakes.add(_build_missing_member_error(samples, row, " or ".join(kinds)))


def _build_missing_member_error(samples: Samples, row: int, wanted: str) -> DataError:
    present = join_names(samples.list_kinds(row))
    return DataError(f"{samples.names[row]} has no member {wanted} (it has {present}); add it, or remove the sample")


def _read_targets(samples: Samples, target: str, mistakes: ErrorList) -> Iterator[Any]:
    """The class of each sample, a number or text; None for one without, which is added to the mistakes."""
    kind, fields = split_field(samples, target)
    places = samples.places.get(kind)
    # The same few contents come again and again.
    decoded: dict[bytes, Any] = {}
    for row in range(len(samples)):
        if places is None or places[row, 0] < 0:
            mistakes.add(_build_missing_member_error(samples, row, kind))
            yield None
            continue

        content = samples.read(kind, row)
        if content not in decoded:
            if len(decoded) > 100_000:
                decoded.clear()
            decoded[content] = mistakes.collect(_decode_target, samples.names[row], kind, fields, content)
        yield decoded[content]


def _decode_target(name: str, kind: str, fields: Sequence[str], content: bytes) -> Any:
    value = decode_member(name, kind, content)
    for number, field in enumerate(fields):
        if not isinstance(value, dict) or field not in value:
            there = f"it has {join_names(list(value))}" if isinstance(value, dict) else "it is no object"
            raise DataError(
                f"{name}: {'.'.join([kind, *fields[:number]])} has no field '{field}', {there}; "
                f"type data.target={kind}.<field>"
            )
        value = value[field]
    if isinstance(value, dict):
        place = ".".join([kind, *fields])
        raise DataError(f"{name}: {place} is an object; type data.target={place}.<field>, of {join_names(list(value))}")
    if isinstance(value, str):
        return value.strip()
    if hasattr(value, "tolist"):
        value = value.tolist()
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value


def _describe(
    shards: Mapping[str, Sequence[Path]], parts: Mapping[str, Samples], kinds: Sequence[str], target: str
) -> Iterator[str]:
    """Notes on what was read, and on what was not."""
    counts = [f"{len(paths):,} {part}" for part, paths in shards.items()]
    samples = sum(len(parts[part]) for part in shards)
    yield f"{samples:,} samples in shards ({', '.join(counts)}): pictures {join_names(kinds)}, classes {target}."

    left_out: Counter[str] = Counter()
    for part in shards:
        for kind, places in parts[part].places.items():
            if is_pickle(kind):
                left_out[kind] += int((places[:, 0] >= 0).sum())
    if left_out:
        counted = ", ".join(f"{count:,} {kind}" for kind, count in left_out.items())
        yield f"members that are pickles can run code and were not opened: {counted}."
