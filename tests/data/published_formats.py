"""Small data sets written in the byte formats that the real ones are published in."""

import gzip
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_mnist(
    root: Path, dataset: str = "MNIST", train: int = 20, test: int = 10, packed: bool = False
) -> dict[str, np.ndarray]:
    """The four IDX files under root/<dataset>/raw; returns what is in them by file name."""
    rng = np.random.default_rng(0)
    folder = root / dataset / "raw"
    folder.mkdir(parents=True)
    arrays = {}
    for part, rows in (("train", train), ("t10k", test)):
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (rows, 28, 28), np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = (np.arange(rows) % 10).astype(np.uint8)
    for name, array in arrays.items():
        content = idx_bytes(array)
        path = folder / f"{name}.gz" if packed else folder / name
        path.write_bytes(gzip.compress(content) if packed else content)
    return arrays


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2 strings, as the published CIFAR files have them."""

    dispatch: ClassVar[dict[type, Callable[..., None]]] = dict(pickle._Pickler.dispatch)

    def save_string(self, value: str | bytes) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(content: Any) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def dump(content: Any, protocol: int | None) -> bytes:
    """protocol=None: as Python 2 and its numpy did."""
    return python2_pickle(content) if protocol is None else pickle.dumps(content, protocol)


def cifar_batch(rows: int, label_key: str, classes: int, seed: int = 0) -> dict[str, Any]:
    data = np.random.default_rng(seed).integers(0, 256, (rows, 3072), np.uint8)
    return {"data": data, label_key: [(7 * i + seed) % classes for i in range(rows)]}


def write_cifar10(root: Path, protocol: int | None = None, rows: int = 6) -> dict[str, dict[str, Any]]:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    files: dict[str, dict[str, Any]] = {
        name: cifar_batch(rows, "labels", 10, seed)
        for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"])
    }
    files["batches.meta"] = {"label_names": [f"class {i}" for i in range(10)]}
    for name, content in files.items():
        (folder / name).write_bytes(dump(content, protocol))
    return files


def write_cifar100(root: Path, protocol: int | None = None, rows: int = 12) -> dict[str, dict[str, Any]]:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    files: dict[str, dict[str, Any]] = {
        name: cifar_batch(rows, "fine_labels", 100, seed) | {"coarse_labels": [0] * rows}
        for seed, name in enumerate(("train", "test"))
    }
    files["meta"] = {"fine_label_names": [f"fine {i}" for i in range(100)], "coarse_label_names": ["all"]}
    for name, content in files.items():
        (folder / name).write_bytes(dump(content, protocol))
    return files


def write_names(root: Path, train: int = 300, test: int = 60) -> None:
    """Names of random letters from 18 countries, in the two files that the real ones come in."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    for part, rows in (("train", train), ("test", test)):
        names = ["".join(rng.choice(list("abcdefghij'- "), rng.integers(1, 12))) for _ in range(rows)]
        lines = [f'"X{name}z","Country {number % 18}"\n' for number, name in enumerate(names)]
        (root / f"names_{part}.csv.gz").write_bytes(gzip.compress("".join(lines).encode()))


def write_folder(base: Path, classes: dict[str, int], size: tuple[int, int] = (40, 30), suffix: str = ".png") -> None:
    """base/<class>/<number><suffix>: noise in colour, `classes` says how many images each has."""
    rng = np.random.default_rng(0)
    for name, count in classes.items():
        (base / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
            Image.fromarray(pixels).save(base / name / f"{i}{suffix}")


def write_shard(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> None:
    """A tar shard in the webdataset format, of members by key and kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, members in samples.items():
            for kind, content in members.items():
                member = tarfile.TarInfo(f"{key}.{kind}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def read_digits(rows: int) -> tuple[list[bytes], list[int]]:
    """scikit-learn's first digits, 8x8, as PNG, and their classes."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pictures = []
    for values in images[:rows]:
        file = io.BytesIO()
        Image.fromarray((values.reshape(8, 8) * 15).astype(np.uint8)).save(file, "png")
        pictures.append(file.getvalue())
    return pictures, labels[:rows].tolist()


def write_digit_shards(folder: Path, rows: int, shards: int, name: str = "digits") -> None:
    """The first digits as png and cls, in shards of equal size."""
    pictures, labels = read_digits(rows)
    for number in range(shards):
        samples = {}
        for row in range(number * rows // shards, (number + 1) * rows // shards):
            samples[f"{row:05}"] = {"png": pictures[row], "cls": str(labels[row]).encode()}
        write_shard(folder / f"{name}-{number:03}.tar", samples)


def write_digits_as_parquet(path: Path, rows: int, first: int = 0) -> None:
    """Digits in a Parquet file, as the datasets library writes columns image and label, and a column of texts."""
    import pyarrow as pa
    from pyarrow import parquet

    pictures, labels = read_digits(first + rows)
    stored = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        "image": pa.array([{"bytes": picture, "path": None} for picture in pictures[first:]], stored),
        "label": pa.array(labels[first:]),
        "text": pa.array([f"a {label}" for label in labels[first:]]),
    }
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": [f"d{label}" for label in range(10)]},
        "text": {"dtype": "string", "_type": "Value"},
    }
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)
