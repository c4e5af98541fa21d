"""Tar shards of the webdataset format, read at any place: an index says where the members of each sample lie.

Members that lie side by side and share their name up to the first point are one sample, and the rest of the name, such
as jpg or cls, says what they hold. The webdataset library groups and decodes them. Pickles are never opened.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from dlrun.core.errors import DataError, RequestError, explain_unreadable, join_names
from dlrun.core.files import write_atomically
from dlrun.core.user_code import get_first_clause

# Raised where the index holds something else than before.
_INDEX_VERSION = 1

# Members whose decoders can run code.
PICKLES = ("pkl", "pickle", "pyd")

# Members that are decoded by webdataset; its other decoders need more packages, or are for pictures.
_DECODED = ("txt", "text", "transcript", "cls", "cls2", "index", "inx", "id", "json", "jsn", "npy", "npz", "ten", "tb")
_TENSORS = ("pth", "pt")

# Members of this kind and up to this size in bytes are kept in the index, so that labels take no read each.
_SMALL = ("txt", "text", "cls", "cls2", "index", "inx", "id", "json", "jsn")
_SMALL_BYTES = 256

# Offset and size of a member in bytes; -1 for a sample that does not have it.
Places = NDArray[np.int64]


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard, in their order.

    keys: (N,). places: by the kind of a member, as jpg, int64 (N, 2). texts: by kind, the bytes of small members (N,).
    """

    keys: NDArray[np.bytes_]
    places: Mapping[str, Places]
    texts: Mapping[str, NDArray[np.bytes_]]


class SampleNames(Sequence[str]):
    """The names shard.tar:key of samples, put together when they are asked for."""

    def __init__(self, paths: Sequence[Path], shard: NDArray[np.int64], keys: NDArray[np.bytes_]) -> None:
        """shard: int64 (N,), into `paths`; keys: (N,)."""
        self.paths = paths
        self.shard = shard
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "SampleNames": ...

    def __getitem__(self, index: int | slice) -> "str | SampleNames":
        """One name, or a slice of them."""
        if isinstance(index, slice):
            return SampleNames(self.paths, self.shard[index], self.keys[index])
        return f"{self.paths[self.shard[index]]}:{os.fsdecode(self.keys[index])}"


def import_webdataset() -> Any:
    """The library; RequestError where it is not installed."""
    try:
        # Takes a tenth of a second, so not at the top of the file.
        import webdataset
    except ImportError as error:
        raise RequestError(
            f"data=webdataset cannot import webdataset ({get_first_clause(error)}); "
            "type pip install 'dlrun[webdataset]'"
        ) from error
    return webdataset


def read_index(shard: Path, cache_folder: Path) -> ShardIndex:
    """The index of a shard, from the cache unless the shard has changed; DataError for a damaged shard."""
    try:
        status = shard.stat()
    except OSError as error:
        raise DataError(f"{shard} cannot be read: {error.strerror or error}") from error

    stamp = np.array([_INDEX_VERSION, status.st_size, status.st_mtime_ns])
    name = hashlib.sha256(os.fsencode(shard.resolve())).hexdigest()[:24]
    cached = cache_folder / f"{name}.npz"
    index = _read_cached(cached, stamp)
    if index is not None:
        return index

    index = _build_index(shard)
    arrays: dict[str, NDArray[Any]] = {"stamp": stamp, "keys": index.keys}
    arrays |= {f"places:{kind}": places for kind, places in index.places.items()}
    arrays |= {f"texts:{kind}": texts for kind, texts in index.texts.items()}
    content = io.BytesIO()
    # Typed for names that are known before; these begin with a word and a colon.
    np.savez(content, **arrays)  # type: ignore[arg-type]
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cached, content.getvalue())
    except OSError:
        # Where nothing can be written the shard is indexed anew by each run.
        pass
    return index


def _read_cached(path: Path, stamp: NDArray[np.int64]) -> ShardIndex | None:
    """The index in a file; None if there is none of this stamp."""
    try:
        # Without pickles, so that the file can hold numbers and bytes alone.
        with np.load(path, allow_pickle=False) as arrays:
            if not np.array_equal(arrays["stamp"], stamp):
                return None
            groups: dict[str, dict[str, NDArray[Any]]] = {"places": {}, "texts": {}}
            for name in arrays.files:
                group, _, kind = name.partition(":")
                if kind:
                    groups[group][kind] = arrays[name]
            return ShardIndex(arrays["keys"], groups["places"], groups["texts"])
    except Exception:
        # A file that is missing or damaged is written anew.
        return None


def _build_index(shard: Path) -> ShardIndex:
    keys: list[bytes] = []
    places: dict[str, dict[int, tuple[int, int]]] = {}
    try:
        for row, sample in enumerate(_iterate_samples(shard)):
            keys.append(os.fsencode(sample["__key__"]))
            for kind, place in sample.items():
                if not kind.startswith("__"):
                    places.setdefault(kind, {})[row] = place
        texts = _read_small_members(shard, places, len(keys))
    except (tarfile.TarError, ValueError, OSError) as error:
        raise explain_unreadable(shard, error) or _explain_damage(shard, error) from error

    arrays: dict[str, Places] = {}
    for kind, place_of_row in places.items():
        array = np.full((len(keys), 2), -1, np.int64)
        array[list(place_of_row)] = list(place_of_row.values())
        arrays[kind] = array
    return ShardIndex(np.array(keys, dtype=np.bytes_), arrays, texts)


def _iterate_samples(shard: Path) -> Iterator[dict[str, Any]]:
    """Samples as webdataset groups them, with (offset, size) in place of the content of members."""
    webdataset = import_webdataset()

    def list_members() -> Iterator[dict[str, Any]]:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                # Only files have content; names such as __meta__ are of the archive itself, as webdataset has it.
                if member.isreg() and not member.name.startswith("__"):
                    place = (member.offset_data, member.size)
                    yield {"fname": member.name, "data": place, "__url__": str(shard)}
                # The archive would keep a kilobyte for each.
                archive.members = []  # type: ignore[attr-defined]

    yield from webdataset.tariterators.group_by_keys(list_members())


def _read_small_members(
    shard: Path, places: Mapping[str, Mapping[int, tuple[int, int]]], rows: int
) -> dict[str, NDArray[np.bytes_]]:
    texts: dict[str, NDArray[np.bytes_]] = {}
    with shard.open("rb") as file:
        for kind, place_of_row in places.items():
            is_small = all(size <= _SMALL_BYTES for _, size in place_of_row.values())
            if kind not in _SMALL or not is_small:
                continue
            contents = [b""] * rows
            for row, (offset, size) in place_of_row.items():
                file.seek(offset)
                contents[row] = file.read(size)
            texts[kind] = np.array(contents, dtype=np.bytes_)
    return texts


def _explain_damage(shard: Path, error: Exception) -> DataError:
    with shard.open("rb") as file:
        is_compressed = file.read(2) == b"\x1f\x8b"
    if is_compressed:
        return DataError(
            f"{shard} is compressed, and so cannot be read from its middle; type gunzip, or tar it anew without -z"
        )
    why = " ".join(str(error).split("(")[0].split()) or type(error).__name__
    return DataError(f"{shard} is damaged or no tar file ({why[:160]}): replace it or remove it")


def read_member(shard: Path, offset: int, size: int) -> bytes:
    """The content of a member; DataError for a shard that cannot be read or was cut off."""
    try:
        # Opened anew: a worker process must not share the position in the file with another.
        with shard.open("rb", buffering=0) as file:
            content = os.pread(file.fileno(), size, offset)
    except OSError as error:
        raise DataError(f"{shard} cannot be read: {error.strerror or error}") from error
    if len(content) < size:
        raise DataError(f"{shard} was cut off since its run began: replace it")
    return content


def decode_member(name: str, kind: str, content: bytes) -> Any:
    """The value of a member by webdataset's decoder for its kind; name: of the sample, for sentences.

    Raises DataError for a pickle, for a kind without a decoder that is safe, and for content that is damaged.
    """
    refuse_pickle(name, kind)
    try:
        return _get_decoder().decode1(kind, content)
    except Exception as error:
        # Each decoder fails in its own way.
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: its member {kind} cannot be read ({why[:160]}); write it anew") from error


def refuse_pickle(name: str, kind: str) -> None:
    """Raise DataError for members whose decoders can run code; name: of a key or a sample."""
    if is_pickle(kind):
        raise DataError(
            f"{name}: members {kind} are pickles, which can run code and are never opened; write them as cls, json, "
            "txt or npy"
        )


def is_pickle(kind: str) -> bool:
    """Whether the decoder of such members would unpickle, compressed ones included."""
    return kind.removesuffix(".gz").rpartition(".")[2] in PICKLES


@cache
def _get_decoder() -> Any:
    """webdataset's decoder with the handlers that cannot run code, and no others."""
    webdataset = import_webdataset()

    def decode(kind: str, content: bytes) -> Any:
        ending = kind.rpartition(".")[2]
        if ending in _TENSORS:
            import torch

            return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        if ending not in _DECODED:
            raise ValueError(f"there is no decoder for it, only for {join_names([*_DECODED, *_TENSORS], most=20)}")
        return webdataset.autodecode.decoders[ending](content)

    return webdataset.Decoder([decode], post=[])


def expand_pattern(pattern: str, key: str) -> list[Path]:
    """The shards that a pattern names, as in train-{000..146}.tar or train-*.tar; [] if a * matches none.

    Raises DataError for places other than the disk, and for a file that braces name and that does not exist.
    """
    if "://" in pattern or pattern.startswith("pipe:"):
        raise DataError(
            f"{key}={pattern} is not on this machine's disk, where shards are read from; copy them, and type "
            f"{key}=<their folder>"
        )

    shards: list[Path] = []
    for name in _expand_braces(pattern, key):
        path = Path(name).expanduser()
        if any(letter in name for letter in "*?["):
            anchor = Path(path.anchor) if path.is_absolute() else Path()
            shards += sorted(anchor.glob(str(path.relative_to(path.anchor) if path.is_absolute() else path)))
        elif path.exists():
            shards.append(path)
        else:
            raise DataError(f"{key}={pattern} names {path}, which does not exist; type a pattern of existing shards")
    return shards


def _expand_braces(pattern: str, key: str) -> list[str]:
    import_webdataset()
    # Comes with webdataset.
    import braceexpand

    try:
        return list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise DataError(
            f"{key}={pattern} has a brace without its partner; type it as in train-{{000..146}}.tar"
        ) from error
