"""`data=huggingface`: sets of the datasets library, from folders and its cache."""

import json
import shutil
import socket
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from published_formats import read_digits, write_digits_as_parquet
from pyarrow import parquet

from dlrun.core.errors import DataError, RequestError
from dlrun.data.arrays import arrays
from dlrun.data.hub_sets import huggingface, open_splits
from dlrun.data.tables import table
from dlrun.data.text import text
from dlrun.runs.checkpoint import load

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


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """60 texts of two classes: the folder reviews and the table reviews.csv."""
    monkeypatch.chdir(tmp_path)
    words = (["good", "fine", "nice"], ["bad", "poor", "sad"])
    texts = [f"{words[i % 2][i % 3]} film{i // 2} of {words[i % 2][i % 5 % 3]} friends" for i in range(60)]
    labels = [i % 2 for i in range(60)]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)
    rows.save_to_disk("reviews")
    lines = [f"{text},{('bad', 'good')[label]}" for text, label in zip(texts, labels, strict=True)]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    return rows


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
    assert len(splits.notes) == 2


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
    (tmp_path / "gaps.csv").write_text("a,b\n1,2\n,4\n3,-1\n")
    (tmp_path / "ragged.json").write_text('{"x": [1.5], "label": 0}\n{"x": [1.5, 2], "label": 1}\n')
    cases = [
        (folder, {"input": "imag"}, "no such column; did you mean image\\? it has image, label, text"),
        (folder, {"target": "zzz"}, "data.target=zzz: .* has no such column; it has image, label, text"),
        (folder, {"input": "text", "modality": "image"}, "holds string and no pictures; leave it out"),
        (folder, {"input": ["image", "text"]}, "pictures lie in one column; name one of image"),
        (folder, {"modality": "images"}, "data.modality=images is no choice; did you mean image"),
        (folder, {"modality": "array"}, "has no column of arrays, of image, label, text; type data.modality=table"),
        (folder, {"task": "multilabel"}, "data.task=multilabel is not for pictures"),
        (folder, {"task": "regression", "augment": ["MixUp"]}, "mixes classes, and this is regression"),
        (folder, {"task": "regression", "target": "text"}, "row 0 of .* data.target=text is 'a 0', which is no finite"),
        (folder, {"target": "image", "input": "image"}, "both name the column image"),
        (folder, {"val_split": "dev"}, "data.val_split=dev: .* has no such split; it has test, train, validation"),
        (folder, {"subset": "plain"}, "leave it out"),
        (tmp_path / "empty", {}, "holds no set"),
        (tmp_path / "bad.parquet", {}, "bad.parquet cannot be read by datasets"),
        (tmp_path / "table.csv", {}, "no column is known to be the class; type data.target=<one of a, b>"),
        (tmp_path / "gaps.csv", {"target": "b", "missing": "error"}, r"gaps.csv\[train\], line 2: column 'a' is empty"),
        (
            tmp_path / "gaps.csv",
            {"target": "b", "class_names": ["x"] * 8},
            "1 row without a class .-1 in b., the first in row 2",
        ),
        (tmp_path / "ragged.json", {"target": "x", "input": "label"}, "holds List, and a row has a class or value"),
        (tmp_path / "ragged.json", {"input": "x"}, "column x holds arrays of several sizes, or gaps"),
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


def assert_same_splits(ours, theirs):
    """The same rows, parts and spec, but for what the file is known again by."""
    for part in ("train", "val", "test"):
        one, two = getattr(ours, part), getattr(theirs, part)
        assert len(one) == len(two) > 0
        for tensor, other in zip((*one.inputs, one.targets), (*two.inputs, two.targets), strict=True):
            assert torch.equal(tensor, other)
    assert {**ours.spec.preprocessing, "sha256": ""} == {**theirs.spec.preprocessing, "sha256": ""}
    assert replace(ours.spec, preprocessing={}) == replace(theirs.spec, preprocessing={})


def test_texts_are_read_as_by_data_text(reviews):
    ours = huggingface("reviews", val_fraction=0.2)
    assert_same_splits(ours, text("reviews.csv", val_fraction=0.2))
    assert ours.notes[0].endswith("texts text, target label; data.modality=… says otherwise.")
    assert ours.train.origin.format_label(0) == f"row {ours.train.origin.to_columns()['row'][0]} of reviews[train]"
    # Parts of their own: the vocabulary is that of the training rows.
    datasets.DatasetDict(train=reviews.select(range(30)), test=reviews.select(range(30, 60))).save_to_disk("parts")
    parts = huggingface("parts")
    assert (len(parts.train), parts.val, len(parts.test)) == (30, None, 30)
    assert "film29" not in parts.spec.vocabulary


def test_classes_of_texts_are_in_the_order_of_the_set(reviews):
    features = reviews.features.copy()
    features["label"] = datasets.ClassLabel(names=["unfit", "fit"])
    reviews.cast(features).save_to_disk("renamed")
    splits = huggingface("renamed", test_fraction=0.0)
    assert splits.spec.class_names == ("unfit", "fit")
    assert splits.train.targets.tolist() == reviews["label"][:]
    assert huggingface("renamed", modality="table", categorical=["text"]).spec.class_names == ("unfit", "fit")
    named = huggingface("reviews.csv", class_names=["good", "bad"], test_fraction=0.0)
    assert named.spec.class_names == ("good", "bad")


STRINGS = {"name": ["Mr A Smith", "Ms B Jones"] * 5, "color": ["red", "blue"] * 5, "label": [0, 1] * 5}


@pytest.mark.parametrize(
    ("columns", "keys", "expected"),
    [
        ({"sentence": ["so", "no"] * 5, "age": [1.5, 2] * 5, "label": [0, 1] * 5}, {}, "tokens"),
        ({**STRINGS, "age": [1.5, 2] * 5}, {}, "vector"),
        ({**STRINGS, "age": [1.5, 2] * 5}, {"input": "name"}, "tokens"),
        ({**STRINGS, "age": [1.5, 2] * 5}, {"input": ["name", "age"], "categorical": ["name"]}, "vector"),
        ({**STRINGS, "id": [*range(10)]}, {}, "tokens"),
        ({"color": ["red", "blue"] * 5, "label": [0, 1] * 5}, {}, "vector"),
        ({"color": ["red", "blue"] * 5, "label": [0, 1] * 5}, {"modality": "text"}, "tokens"),
        ({"x": [[[1.5, 2]] * 4, [[2.5, 3]] * 4] * 5, "label": [0, 1] * 5}, {}, "image"),
    ],
)
def test_what_a_set_is_read_as(columns, keys, expected, tmp_path):
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "set.parquet")
    assert huggingface(str(tmp_path / "set.parquet"), **keys).spec.kind == expected


def test_a_table_is_read_as_by_data_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    columns = {"id": [*range(40)], "age": [20 + 3 * i % 17 for i in range(40)], "job": ["ab", "cd"] * 20}
    columns["paid"] = [age * 10.5 + len(job) for age, job in zip(columns["age"], columns["job"], strict=True)]
    columns["age"][3] = None
    datasets.Dataset.from_dict(columns).to_parquet("people.parquet")
    ours = huggingface("people.parquet", target="paid", val_fraction=0.2)
    assert_same_splits(ours, table("people.parquet", target="paid", val_fraction=0.2))
    assert ours.spec.task == "regression"
    assert huggingface("people.parquet", input="age", target="paid").spec.feature_names == ("age",)
    assert_same_splits(
        huggingface("people.parquet", drop=["id"], target=["job", "paid"], val_fraction=0.2, missing="impute"),
        table("people.parquet", drop=["id"], target=["job", "paid"], val_fraction=0.2),
    )


def test_arrays_are_read_as_by_data_arrays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(40, 3, 5)).astype(np.float32)
    features = {"x": datasets.Array2D((3, 5), "float32"), "label": datasets.ClassLabel(names=["a", "b"])}
    rows = {"x": x.tolist(), "label": [0, 1] * 20}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).save_to_disk("set")
    np.save("x.npy", x)
    np.save("y.npy", np.array([0, 1] * 20))
    ours = huggingface("set")
    theirs = arrays(".", class_names=["a", "b"], infer_classes=True, layout=None)
    assert ours.spec == theirs.spec
    for one, two in ((ours.train, theirs.train), (ours.test, theirs.test)):
        every = [*range(len(one))]
        assert all(map(torch.equal, one.__getitems__(every), two.__getitems__(every)))


def test_values_of_pictures(folder, tmp_path):
    pictures, labels = read_digits(20)
    rows = {"image": [{"bytes": picture, "path": None} for picture in pictures], "weight": [n / 2 for n in labels]}
    features = datasets.Features({"image": datasets.Image(), "weight": datasets.Value("float32")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    for in_memory in (True, False):
        splits = read(tmp_path / "set", target="weight", in_memory=in_memory, val_fraction=0.25)
        assert (splits.spec.task, splits.spec.output_size, splits.spec.class_names) == ("regression", 1, ())
        assert (len(splits.train), len(splits.val), len(splits.test)) == (12, 4, 4)
        own = [row for part in (splits.train, splits.val) for row in part.origin.to_columns()["row"]]
        assert splits.spec.target_mean[0] == pytest.approx(np.mean([labels[row] / 2 for row in own]))
        row = splits.test.origin.to_columns()["row"][1]
        assert splits.test.targets[1].tolist() == [labels[row] / 2]


def test_the_library_is_asked_for(refuse_without, folder):
    refuse_without("datasets", "huggingface", *WORDS)


@pytest.mark.slow
def test_a_killed_run_ends_as_the_unbroken_one(kill_and_resume, folder, tmp_path):
    # Saved, so that other processes write to no cache.
    datasets.DatasetDict(open_splits(str(folder))).save_to_disk(tmp_path / "saved")
    kill_and_resume(*WORDS, "data.path=saved")


@pytest.mark.slow
def test_a_run_on_texts_is_that_of_data_text(dlrun, kill_and_resume, reviews, tmp_path):
    words = ("model=gru", "model.hidden_size=4", "trainer.epochs=2", "data.batch_size=8", "data.max_length=3")
    whole = kill_and_resume("data=huggingface", "data.path=reviews", *words, "data.loader=workers", workers=(2,))
    assert dlrun("data=text", "data.path=reviews.csv", *words, "hydra.run.dir=text").code == 0
    other = load(tmp_path / "text" / "checkpoints" / "last.pt")["model"]
    assert all(torch.equal(whole[name], other[name]) for name in whole)

    assert "the same as recorded in training, to the last bit" in dlrun("eval", "whole", "figures=false").out
    shutil.move("reviews", "moved")
    assert "12 rows" in dlrun("eval", "whole", "data.path=moved", "figures=false").out
    reviews.select([*range(2, 60), 0, 1]).save_to_disk("other")
    assert "all, as the run has not seen them, 60 rows" in dlrun("eval", "whole", "data.path=other").out
    answers = [dlrun("predict", run, "a good film").out.splitlines()[1:] for run in ("whole", "text")]
    assert answers[0] == answers[1]
    assert dlrun("export", "whole", "format=onnx").code == 0
