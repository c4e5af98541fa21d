"""`data=webdataset`: tar shards, read at any place."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from published_formats import write_digit_shards, write_folder, write_shard

from dlrun.core.errors import DataError, RequestError
from dlrun.data.files import shards as shard_files
from dlrun.data.folders import image_folder
from dlrun.data.pictures import Pictures
from dlrun.data.shards import find_shards, webdataset

pytest.importorskip("webdataset")

QUIET = ("tracking.graph=false", "figures=false")
WORDS = (
    *("data=webdataset", "data.path=digits", "data.image_size=8", "data.grayscale=true", "data.in_memory=false"),
    *("data.augment=[RandomHorizontalFlip]", "paths.data=data", "model=mlp", "model.hidden_sizes=[8]"),
    *("data.batch_size=16", "trainer.epochs=2"),
)


def read(folder, **keys):
    return webdataset(str(folder), root=str(folder.parent / "data"), image_size=8, **keys)


@pytest.fixture
def digits(tmp_path):
    write_digit_shards(tmp_path / "digits", rows=96, shards=3)
    return tmp_path / "digits"


class Payload:
    """A pickle of it writes a file when it is opened."""

    def __reduce__(self):
        return Path.touch, (Path("opened"),)


def test_pictures_are_those_of_the_files(digits, tmp_path):
    for shard in sorted(digits.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive.getmembers()[::2]:
                label = archive.extractfile(member.name.replace("png", "cls")).read().decode()
                file = tmp_path / "photos" / label / member.name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.extractfile(member).read())

    constants = {"mean": [0.5] * 3, "std": [0.25] * 3, "in_memory": False, "test_fraction": 0.0}
    packed = read(digits, **constants)
    unpacked = image_folder(str(tmp_path / "photos"), image_size=8, **constants)
    assert packed.spec == unpacked.spec
    by_name = {Path(name).stem: unpacked.train[row] for row, name in enumerate(unpacked.train.origin.sources)}
    for row, name in enumerate(packed.train.origin.sources):
        image, label = packed.train[row]
        other, its_label = by_name[name.partition(":")[2]]
        assert torch.equal(image, other)
        assert label == its_label
    assert packed.train.origin.format_label(33) == f"{digits}/digits-001.tar:00033"


def test_in_memory_and_streamed_are_one_data_set(digits):
    held = read(digits, in_memory=True, mean=[0.5] * 3, std=[0.5] * 3)
    streamed = read(digits, in_memory=False)
    assert isinstance(streamed.train, Pictures)
    assert torch.equal(held.train.inputs[0], streamed.train.__getitems__(list(range(len(held.train))))[0])
    assert torch.equal(held.test.targets, streamed.test.targets)


def test_a_shard_is_indexed_once_and_again_when_it_changes(digits, monkeypatch):
    built = []
    build = shard_files._build_index
    monkeypatch.setattr(shard_files, "_build_index", lambda shard: built.append(shard.name) or build(shard))
    read(digits)
    read(digits)
    assert built == ["digits-000.tar", "digits-001.tar", "digits-002.tar"]

    write_shard(digits / "digits-001.tar", {"a": {"png": b"", "cls": b"0"}})
    next((digits.parent / "data" / "shard-indices").iterdir()).write_bytes(b"damaged")
    assert len(read(digits, in_memory=False, test_fraction=0.0).train) == 65
    assert 4 <= len(built) <= 5


def test_rows_know_their_shard_where_they_are_read_by_shard(digits):
    by_shard = read(digits, order="shards").train
    assert isinstance(by_shard, Pictures)
    names = [by_shard.origin.get_source(row).partition(":")[0] for row in range(len(by_shard))]
    assert [names.index(name) for name in names] == [by_shard.blocks.tolist().index(block) for block in by_shard.blocks]
    assert read(digits, in_memory=False).train.blocks is None


def test_a_shard_that_is_cut_off_during_a_run_is_told(digits):
    train = read(digits, in_memory=False, test_fraction=0.0).train
    whole = (digits / "digits-002.tar").read_bytes()
    (digits / "digits-002.tar").write_bytes(whole[:9000])
    with pytest.raises(DataError, match=r"digits-002\.tar was cut off since its run began"):
        train[95]


def test_parts_by_name_and_by_key(tmp_path):
    for name in ("imagenet-train-0.tar", "imagenet-val-0.tar", "x/test-0.tar"):
        write_shard(tmp_path / name, {"a": {"png": b"", "cls": b"0"}})
    assert {part: [path.name for path in paths] for part, paths in find_shards(str(tmp_path)).items()} == {
        "train": ["imagenet-train-0.tar"],
        "val": ["imagenet-val-0.tar"],
    }
    pattern = f"{tmp_path}/imagenet-{{train,val}}-{{0..0}}.tar"
    assert len(find_shards(pattern, test_path=f"{tmp_path}/x/*.tar")["train"]) == 2
    assert len(find_shards(str(tmp_path / "x"))["train"]) == 1


def test_classes_of_texts_and_fields(tmp_path):
    picture = make_picture()
    samples = {
        str(row): {"jpg": picture, "seg.png": b"", "json": json.dumps({"a": {"label": name}}).encode()}
        for row, name in enumerate(["dog", "cat"] * 3)
    }
    write_shard(tmp_path / "s" / "0.tar", samples)
    splits = read(tmp_path / "s", target="json.a.label", in_memory=False, test_fraction=0.0)
    assert splits.spec.class_names == ("cat", "dog")
    assert splits.train.targets.tolist() == [1, 0, 1, 0, 1, 0]
    splits = read(tmp_path / "s", target="json.a.label", in_memory=False, class_names=["dog", "emu", "cat"])
    assert splits.spec.class_names == ("dog", "emu", "cat")


def test_values_of_pictures(tmp_path):
    samples = {str(row): {"png": make_picture(), "json": json.dumps({"age": row / 4}).encode()} for row in range(1, 9)}
    write_shard(tmp_path / "s" / "0.tar", samples)
    splits = read(tmp_path / "s", target="json.age", in_memory=False)
    assert (splits.spec.task, splits.spec.output_size) == ("regression", 1)
    assert sorted(part.targets[row].item() for part in (splits.train, splits.test) for row in range(len(part))) == [
        row / 4 for row in range(1, 9)
    ]
    assert splits.notes[-1] == "data.target=json.age was taken for regression; data.task=multiclass says otherwise."


def make_picture():
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, "png")
    return file.getvalue()


def test_pickles_are_never_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensor = io.BytesIO()
    torch.save(Payload(), tensor)
    array = io.BytesIO()
    np.save(array, np.array([Payload()], object), allow_pickle=True)
    members = {"pyd": pickle.dumps(Payload()), "pkl.gz": b"x", "pth": tensor.getvalue(), "npy": array.getvalue()}
    label = io.BytesIO()
    torch.save(torch.tensor(1), label)
    write_shard(
        tmp_path / "s" / "0.tar",
        {
            str(i): {"png": make_picture(), "cls": b"%d" % (i % 2), "good.pth": label.getvalue(), **members}
            for i in range(4)
        },
    )
    splits = read(tmp_path / "s", in_memory=True)
    assert splits.notes[-1] == "members that are pickles can run code and were not opened: 4 pyd, 4 pkl.gz."
    for target in ("pyd", "pkl.gz", "pth", "npy"):
        expected = (
            "are never opened" if target in ("pyd", "pkl.gz") else rf"0\.tar:0: its member {target} cannot be read"
        )
        with pytest.raises((DataError, RequestError), match=expected):
            read(tmp_path / "s", target=target)
    assert read(tmp_path / "s", target="good.pth", test_fraction=0.0).train.targets.tolist() == [1] * 4
    assert not Path("opened").exists()


def test_mistakes_are_sentences(tmp_path, digits):
    (tmp_path / "none").mkdir()
    write_folder(tmp_path / "photos", {"a": 1})
    whole = (digits / "digits-000.tar").read_bytes()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "0.tar").write_bytes(whole[:9000])
    write_shard(tmp_path / "gap" / "0.tar", {"a": {"png": b"", "cls": b"0"}, "b": {"cls": b"1"}, "c": {"png": b""}})
    write_shard(tmp_path / "odd" / "0.tar", {"a": {"png": b"", "cls": b"0"}, "b": {"png": b"", "cls": b"-1"}})
    write_shard(tmp_path / "bad" / "0.tar", {str(i): {"png": b"no", "cls": b"%d" % (i % 2)} for i in range(4)})
    cases = [
        (tmp_path / "none", {}, "holds no shards"),
        (tmp_path / "x-*.tar", {}, "names no shards"),
        (tmp_path / "x-{0..2}.tar", {}, r"names .*x-0.tar, which does not exist"),
        (tmp_path / "x-{0..2.tar", {}, "has a brace without its partner"),
        (Path("pipe:cat x.tar"), {}, "not on this machine's disk"),
        (tmp_path / "cut", {}, "0.tar is damaged or no tar file"),
        (tmp_path / "gap", {}, r"gap/0.tar:b has no member png \(it has cls\)"),
        (tmp_path / "gap", {}, r"gap/0.tar:c has no member cls \(it has png\)"),
        (tmp_path / "odd", {}, r"odd/0.tar:b: data.target=cls is -1, and classes are counted from 0"),
        (tmp_path / "bad", {"in_memory": True}, r"bad/0.tar:0.png cannot be read as an image"),
        (digits, {"target": "clss"}, r"did you mean cls\? they have cls"),
        (digits, {"input": "jpg"}, "they have png, cls"),
        (digits, {"test_path": str(tmp_path / "none" / "*.tar")}, "data.test_path=.* names no shards"),
    ]
    for folder, keys, expected in cases:
        with pytest.raises((DataError, RequestError), match=expected):
            read(folder, **keys)


def test_compressed_shards_are_refused(tmp_path):
    (tmp_path / "s").mkdir()
    with tarfile.open(tmp_path / "s" / "0.tar", "w:gz"):
        pass
    with pytest.raises(DataError, match="is compressed"):
        read(tmp_path / "s")
    (tmp_path / "s" / "0.tar").rename(tmp_path / "s" / "0.tar.gz")
    with pytest.raises(DataError, match=r"compressed shards \(0.tar.gz\)"):
        read(tmp_path / "s")


def test_the_library_is_asked_for(refuse_without, digits):
    refuse_without("webdataset", "webdataset", *WORDS)


@pytest.mark.slow
def test_rows_are_named_and_orders_read_alike(dlrun, digits, tmp_path):
    words = (*WORDS, *QUIET, "data.num_workers=0", "trainer.epochs=1")
    assert dlrun(*words, "data.order=shards", "hydra.run.dir=run").code == 0
    assert dlrun("eval", "run", "figures=false").code == 0
    outcome = dlrun("predict", "run", "digits/digits-000.tar")
    assert (outcome.code, "dlrun eval RUN data.path=<it>" in outcome.err) == (2, True)
    table = next((tmp_path / "run" / "eval").rglob("predictions.csv")).read_text().splitlines()
    assert table[0].endswith(",source")
    assert all("digits/digits-00" in line and ".tar:000" in line for line in table[1:])


@pytest.mark.slow
@pytest.mark.parametrize("order", ["rows", "shards"])
def test_a_killed_run_ends_as_the_unbroken_one(kill_and_resume, digits, order):
    kill_and_resume(*WORDS, f"data.order={order}")
