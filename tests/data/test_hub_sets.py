"""`data=huggingface`: sets of the datasets library, from folders and its cache."""

import json
import shutil
import socket

import pyarrow as pa
import pytest
import torch
from published_formats import read_digits, write_digits_as_parquet
from pyarrow import parquet

from dlrun.core.errors import DataError, RequestError
from dlrun.data.hub_sets import huggingface, open_splits

datasets = pytest.importorskip("datasets")

WORDS = (
    *("data=huggingface", "data.path=set", "data.image_size=8", "data.grayscale=true", "data.in_memory=false"),
    *("data.augment=[RandomHorizontalFlip]", "model=mlp", "model.hidden_sizes=[8]", "data.batch_size=16"),
    "trainer.epochs=2",
)


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """A cache of its own, and no network."""

    def refuse(place, *_):
        if place.family != socket.AF_UNIX:
            raise AssertionError("the network was asked")
        return connect(place, *_)

    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    """80, 20 and 20 digits in three splits."""
    for name, first, rows in (("train", 0, 80), ("validation", 80, 20), ("test", 100, 20)):
        write_digits_as_parquet(tmp_path / "set" / f"{name}-00000-of-00001.parquet", rows, first)
    return tmp_path / "set"


def read(path, **keys):
    return huggingface(str(path), image_size=8, **keys)


def test_splits_classes_and_pictures(folder, tmp_path):
    pictures, labels = read_digits(120)
    assert len(pictures) == 120
    streamed = read(folder, in_memory=False, grayscale=True)
    assert [len(part) for part in (streamed.train, streamed.val, streamed.test)] == [80, 20, 20]
    assert streamed.spec.class_names == tuple(f"d{label}" for label in range(10))
    assert streamed.test.targets.tolist() == labels[100:]
    assert streamed.test.origin.format_label(3) == f"row 3 of {folder}[test]"

    # The same rows as save_to_disk writes them.
    datasets.DatasetDict(open_splits(str(folder))).save_to_disk(tmp_path / "saved")
    saved = read(tmp_path / "saved", in_memory=True, grayscale=True, mean=[0.5], std=[0.5])
    assert torch.equal(saved.train.inputs[0], streamed.train.__getitems__(list(range(80)))[0])


def test_splits_by_name_and_drawn(folder, tmp_path):
    swapped = read(folder, train_split="test", test_split="train", in_memory=False)
    assert (len(swapped.train), len(swapped.val), len(swapped.test)) == (20, 20, 80)
    one = read(folder / "train-00000-of-00001.parquet", in_memory=False)
    drawn = [row for part in (one.train, one.test) for row in part.origin.to_columns()["row"]]
    assert sorted(drawn) == list(range(80))
    assert len(one.test) == 16


def test_a_split_whose_classes_are_secret_is_left_out(tmp_path):
    pictures, labels = read_digits(20)
    rows = {"image": [{"bytes": picture, "path": None} for picture in pictures], "label": labels}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(10)})
    train = datasets.Dataset.from_dict(rows, features=features)
    test = datasets.Dataset.from_dict({**rows, "label": [-1] * 20}, features=features)
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "set")
    splits = read(tmp_path / "set", in_memory=False)
    assert (len(splits.train), len(splits.test)) == (10, 10)
    assert splits.notes[0] == f"{tmp_path / 'set'}: the split test has no classes, and was not read."


def test_a_cached_set_by_its_name(folder, tmp_path, monkeypatch):
    datasets.load_dataset("parquet", data_files=str(folder / "train-00000-of-00001.parquet"))
    (version,) = (tmp_path / "cache" / "parquet").glob("*/*/*[0-9a-f]")
    place = tmp_path / "cache" / "someone___small_digits" / "plain" / "0.0.0" / version.name
    shutil.copytree(version, place)
    (place / "parquet-train.arrow").rename(place / "small_digits-train.arrow")
    info = json.loads((place / "dataset_info.json").read_text())
    (place / "dataset_info.json").write_text(json.dumps({**info, "config_name": "plain"}))
    monkeypatch.chdir(tmp_path)
    assert len(read("someone/small_digits", in_memory=False, test_fraction=0.0).train) == 80
    assert len(read("someone/small_digits", subset="plain", in_memory=False, test_fraction=0.0).train) == 80
    with pytest.raises(DataError, match=r"the cache has the subsets plain; type data\.subset="):
        read("someone/small_digits", subset="fancy")
    with pytest.raises(DataError, match=r"is neither a folder nor a set in .*cache, and dlrun asks no network"):
        read("someone/other")


def test_mistakes_are_sentences(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "files.csv").write_text("file,label\nx.png,1\ny.png,0\n")
    cases = [
        (folder, {"input": "imag"}, "no such column; did you mean image\\? it has image, label, text"),
        (folder, {"target": "zzz"}, "data.target=zzz: .* has no such column; it has image, label, text"),
        (folder, {"input": "text"}, "holds string and no pictures; for a table type data=table data.path=.*parquet"),
        (folder, {"target": "image", "input": "image"}, "both name the column image"),
        (folder, {"val_split": "dev"}, "data.val_split=dev: .* has no such split; it has test, train, validation"),
        (folder, {"subset": "plain"}, "leave it out"),
        (tmp_path / "empty", {}, "holds no set"),
        (tmp_path / "bad.parquet", {}, "bad.parquet cannot be read by datasets"),
        (tmp_path / "table.csv", {}, "no column holds pictures, of a, b; for a table type data=table data.path="),
        (tmp_path / "files.csv", {"input": "file", "test_fraction": 0.0}, "x.png, which is no file here"),
        (tmp_path / "gone", {}, "gone does not exist"),
    ]
    for path, keys, expected in cases:
        with pytest.raises((DataError, RequestError), match=expected):
            read(path, **keys)


def test_a_damaged_picture_is_named_by_its_row(tmp_path):
    stored = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pictures = pa.array([{"bytes": b"no"}, {"path": "http://x/y.png"}], stored)
    (tmp_path / "set").mkdir()
    # Without the library's description of the columns.
    parquet.write_table(pa.table({"picture": pictures, "label": ["a", "b"]}), tmp_path / "set" / "a.parquet")
    splits = read(tmp_path / "set", in_memory=False, test_fraction=0.0)
    assert splits.spec.class_names == ("a", "b")
    with pytest.raises(DataError, match=r"row 0 of .*set\[train\] cannot be read as an image"):
        splits.train[0]
    with pytest.raises(DataError, match=r"row 1 of .*set\[train\]: column picture refers to .*which is no file here"):
        splits.train[1]


def test_the_library_is_asked_for(refuse_without, folder):
    refuse_without("datasets", "huggingface", *WORDS)


@pytest.mark.slow
def test_a_killed_run_ends_as_the_unbroken_one(kill_and_resume, folder, tmp_path):
    # Saved, so that other processes write to no cache.
    datasets.DatasetDict(open_splits(str(folder))).save_to_disk(tmp_path / "saved")
    kill_and_resume(*WORDS, "data.path=saved")
