import csv
import io
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published_formats import write_folder
from torch.utils.data import DataLoader

from dlrun.core.errors import DataError, DlrunError, RequestError
from dlrun.data import class_folders, pictures
from dlrun.data.datasets import Rows
from dlrun.data.files.picture import read_picture
from dlrun.data.folders import image_folder
from dlrun.data.pictures import Pictures
from dlrun.data.spec import Split

AUGMENT = ["RandomHorizontalFlip", {"RandomCrop": {"size": 8, "padding": 2}}]


@pytest.fixture
def photos(tmp_path):
    """Ten images of cats, five of dogs, and things that are none."""
    base = tmp_path / "photos"
    write_folder(base, {"dog": 5, "cat": 10})
    (base / "cat" / "notes.txt").write_text("no image")
    (base / "cat" / ".hidden.png").write_text("no image")
    (base / ".cache").mkdir()
    return base


def test_in_memory(photos):
    splits = image_folder(str(photos), image_size=8)
    assert isinstance(splits.train, Split)
    assert splits.spec.class_names == ("cat", "dog")
    assert splits.spec.input_shape == (3, 8, 8)
    assert splits.train.targets.bincount().tolist() == [8, 4]
    assert splits.test.targets.bincount().tolist() == [2, 1]
    (x,) = splits.train.inputs
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3))
    assert splits.notes == (f"1 file in {photos} was not read (no images by suffix): 1 .txt.",)


@pytest.mark.parametrize("in_memory", [True, False])
def test_two_classes_can_be_one_output(photos, in_memory):
    splits = image_folder(str(photos), image_size=8, in_memory=in_memory, task="binary")
    assert (splits.spec.task, splits.spec.output_size, splits.spec.class_names) == ("binary", 1, ("cat", "dog"))
    assert sorted(set(torch.as_tensor(splits.train.targets).tolist())) == [0, 1]
    write_folder(photos, {"emu": 3})
    with pytest.raises(RequestError, match="holds 3 classes"):
        image_folder(str(photos), image_size=8, in_memory=in_memory, task="binary")


def test_streamed_equals_in_memory(photos):
    settings = {"image_size": 8, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.1]}
    memory = image_folder(str(photos), in_memory=True, **settings)
    disk = image_folder(str(photos), in_memory=False, **settings)
    assert isinstance(disk.train, Pictures)
    assert disk.spec == memory.spec
    for part in ("train", "test"):
        held, streamed = getattr(memory, part), getattr(disk, part)
        assert torch.equal(streamed.targets, held.targets)
        assert streamed.targets.dtype == torch.int64
        for i in range(len(held)):
            image, label = streamed[i]
            assert torch.equal(image, held.inputs[0][i])
            assert label == held.targets[i]


def test_streamed_constants_and_grayscale(photos):
    splits = image_folder(str(photos), image_size=8, in_memory=False, grayscale=True)
    assert (splits.spec.mean, splits.spec.std) == ((0.5,), (0.5,))
    assert splits.train[0][0].shape == (1, 8, 8)
    raw = read_picture(splits.train.encoded.open(0)[0], 8, grayscale=True)
    torch.testing.assert_close(splits.train[0][0], (raw / 255 - 0.5) / 0.5)


def test_large_sets_are_streamed(photos, monkeypatch):
    bytes_needed = 4 * 15 * 3 * 8 * 8
    monkeypatch.setattr(pictures, "_memory_bytes", lambda: 4 * bytes_needed)
    assert isinstance(image_folder(str(photos), image_size=8).train, Pictures)
    monkeypatch.setattr(pictures, "_memory_bytes", lambda: 4 * bytes_needed + 4)
    assert isinstance(image_folder(str(photos), image_size=8).train, Split)


def test_augmentation_is_for_training_and_by_seed(photos):
    splits = image_folder(str(photos), image_size=8, augment=AUGMENT)
    plain = image_folder(str(photos), image_size=8, in_memory=False)
    train, test = splits.train, splits.test
    assert (train.augments, test.augments, plain.train.augments) == (True, False, False)
    rows = range(len(train))
    assert all(torch.equal(train[i][0], plain.train[i][0]) for i in rows)
    assert all(torch.equal(test[9, i][0], plain.test[i][0]) for i in range(len(test)))
    first = [train[9, i][0] for i in rows]
    assert sum(torch.equal(a, plain.train[i][0]) for i, a in enumerate(first)) < 3
    assert all(torch.equal(a, train[9, i][0]) for i, a in reversed(list(enumerate(first))))
    assert not all(torch.equal(a, train[8, i][0]) for i, a in enumerate(first))


def test_images_in_memory_are_augmented_as_those_on_the_disk(photos):
    held = image_folder(str(photos), image_size=8, augment=AUGMENT, in_memory=True)
    measured = image_folder(str(photos), image_size=8, in_memory=True)
    assert (held.spec.mean, held.spec.std) == (measured.spec.mean, measured.spec.std)
    constants = {"mean": list(held.spec.mean), "std": list(held.spec.std)}
    disk = image_folder(str(photos), image_size=8, augment=AUGMENT, **constants)
    for number in range(4):
        for key in (number, (9, number), number):
            assert torch.equal(held.train[key][0], disk.train[key][0])


@pytest.mark.slow
def test_workers_augment_alike(photos):
    train = image_folder(str(photos), image_size=8, augment=AUGMENT).train
    keys = [[(3, i) for i in range(0, 6)], [(3, i) for i in range(6, 12)]]
    # A batch comes collated.
    loaders = [DataLoader(train, batch_sampler=keys, num_workers=n, collate_fn=tuple) for n in (0, 2)]
    here, there = map(list, loaders)
    for (x, y), (other_x, other_y) in zip(here, there, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_batch_is_its_single_images(photos, in_memory):
    part = image_folder(str(photos), image_size=8, augment=AUGMENT, in_memory=in_memory).train
    selected = Rows(part, torch.tensor([5, 0, 3, 3]))
    for keys in ([2, 0, 1], [(7, 2), (7, 0), (8, 3)]):
        x, y = selected.__getitems__(keys)
        singles = [selected[key] for key in keys]
        assert torch.equal(x, torch.stack([image for image, _ in singles]))
        assert y.tolist() == [label for _, label in singles]

    # What is augmented in memory is a copy.
    assert torch.equal(selected[0][0], selected[0][0])


@pytest.mark.parametrize("others", [["test"], ["val"], ["val", "test"]])
def test_parted_folders(tmp_path, others):
    write_folder(tmp_path / "train", {"a": 3, "b": 2})
    for part in others:
        write_folder(tmp_path / part, {"b": 1, "a": 1})
    splits = image_folder(str(tmp_path), image_size=8)
    assert splits.train.targets.tolist() == [0, 0, 0, 1, 1]
    assert (splits.val is not None, splits.test is not None) == ("val" in others, "test" in others)
    for part in others:
        assert getattr(splits, part).targets.tolist() == [0, 1]


def test_train_may_be_a_class(tmp_path):
    write_folder(tmp_path, {"train": 3, "car": 3})
    assert image_folder(str(tmp_path), image_size=8).spec.class_names == ("car", "train")


def test_every_extension_and_depth(tmp_path):
    write_folder(tmp_path, {"a": 1})
    for suffix in (".jpg", ".JPEG", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".avif", ".jfif"):
        write_folder(tmp_path / "b", {f"deep{suffix}": 1}, suffix=suffix)
    splits = image_folder(str(tmp_path), image_size=8, test_fraction=0)
    assert splits.train.targets.bincount().tolist() == [1, 10]
    assert splits.test is None


def test_data_seed_draws_the_test_part(photos):
    def choose(seed):
        return [
            Path(os.fsdecode(p)).name for p in image_folder(str(photos), seed=seed, in_memory=False).test.encoded.paths
        ]

    assert choose(0) == choose(0)
    assert any(choose(0) != choose(seed) for seed in range(1, 6))


@pytest.mark.parametrize("in_memory", [True, False])
def test_ten_broken_images_of_all_parts_are_named_at_once(tmp_path, in_memory):
    for part in ("train", "test"):
        write_folder(tmp_path / part, {"a": 6, "b": 1})
        for path in (tmp_path / part / "a").iterdir():
            path.write_bytes(b"no image")
    with pytest.raises(DataError.__base__) as caught:
        image_folder(str(tmp_path), image_size=8, in_memory=in_memory)
    lines = str(caught.value).splitlines()
    assert lines[0] == "11 things are wrong:"
    assert all("cannot be read as an image" in line and "replace it" in line for line in lines[1:11])
    assert sum("train/a" in line for line in lines[1:11]) == 6
    assert lines[11] == " 11. there are 2 more like these"


def test_what_is_not_read_is_counted_and_named(tmp_path):
    for part in ("Train", "Validation"):
        write_folder(tmp_path / part, {"a": 3, "b": 2})
    shutil.rmtree(tmp_path / "Validation" / "b")
    (tmp_path / "Train" / "readme.md").touch()
    (tmp_path / "Train" / "lost.png").touch()
    (tmp_path / "a.zip").touch()
    for name in ("1.heic", "2.HEIC", "3.txt", "4"):
        (tmp_path / "Train" / "a" / name).touch()
    splits = image_folder(str(tmp_path), image_size=8)
    train = tmp_path / "Train"
    assert splits.notes == (
        f"1 file in {tmp_path} was not read (beside the parts): a.zip.",
        f"2 files in {train} were not read (beside the class folders): lost.png, readme.md.",
        f"4 files in {tmp_path} were not read (no images by suffix): "
        "1 without suffix, 2 .heic (pip install pillow-heif reads them), 1 .txt.",
        f"{tmp_path / 'Validation'} has no images of the class b.",
    )
    assert len(splits.train) == 5


def test_parts_without_one_that_trains(tmp_path):
    for part in ("Val", "Testing"):
        write_folder(tmp_path / part, {"a": 3, "b": 2})
    with pytest.raises(DataError, match="holds Val and Testing, and no training part"):
        image_folder(str(tmp_path), image_size=8)


def write_labels(base, *lines):
    (base / "labels.csv").write_text("\n".join(lines) + "\n")
    return image_folder(str(base), image_size=8, labels="labels.csv", test_fraction=0)


def test_labels_from_a_table(tmp_path):
    write_folder(tmp_path.parent, {tmp_path.name: 3})
    write_folder(tmp_path, {"deep": 3})
    splits = write_labels(tmp_path, "\ufefffile;label", "deep/2.png;9", "1.png;10", "0;9", "")
    assert splits.spec.class_names == ("9", "10")
    assert splits.train.targets.tolist() == [0, 1, 0]
    labels = [splits.train.origin.format_label(i) for i in range(3)]
    assert labels == [str(tmp_path / name) for name in ("deep/2.png", "1.png", "0.png")]
    assert any("3 images" in note and "(without a line in" in note and "2.png" in note for note in splits.notes)

    # Columns by name, of a table elsewhere.
    (tmp_path / "other.csv").write_text("id,colour,picture\n1,red,0.png\n2,blue,1.png\n")
    table = str(tmp_path / "other.csv")
    named = image_folder(str(tmp_path), labels=table, file_column="picture", label_column="colour", test_fraction=0)
    assert (named.spec.class_names, named.train.targets.tolist()) == (("blue", "red"), [1, 0])


def test_a_table_without_names_of_columns_and_a_drawn_test_part(tmp_path):
    write_folder(tmp_path.parent, {tmp_path.name: 10})
    (tmp_path / "labels.csv").write_text("".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(10)))
    splits = image_folder(str(tmp_path), image_size=8, labels="labels.csv", test_fraction=0.2)
    assert (len(splits.train), len(splits.test)) == (8, 2)
    assert splits.test.targets.tolist() == [0, 1]


def test_the_column_of_files_is_found_wherever_it_stands(tmp_path):
    write_folder(tmp_path.parent, {tmp_path.name: 10})
    (tmp_path / "labels.csv").write_text("breed,picture\n" + "".join(f"{'ab'[i % 2]},{i}\n" for i in range(10)))
    splits = image_folder(str(tmp_path), image_size=8, labels="labels.csv", test_fraction=0)
    assert splits.spec.class_names == ("a", "b")
    assert splits.train.targets.tolist() == [0, 1] * 5


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["0.png,a", "9.png,b"], r"labels\.csv, line 2: there is no file 9\.png"),
        (["0.png,a", "0.png,b"], "0.png is in line 1 too"),
        (["0.png,a", "1.png,"], "1.png has no label"),
        (["0.png", "1.png"], r"line 1, has 1 cell; write a file and its label"),
        (["file,label"], "has a first line alone"),
        (["0.png,a", "1.png,a"], "only one label, 'a'"),
        (["5.png,a", "6.png,b"], r"no line names a file in p \(line 1 has '5\.png'\); type data\.path=<the folder"),
        (["picture,y", "7,a", "8,b"], r"line 2 has '7'\); type data\.path=p/below data\.labels=p/labels\.csv"),
        (["p/0.png,a", "p/1.png,b"], r"line 1 has 'p/0\.png'\); type data\.path=\. data\.labels=p/labels\.csv"),
        (["q/0.png,a", "q/1.png,b"], r"the image is p/0\.png: write it as it lies below data\.path"),
    ],
)
def test_tables_of_labels_that_cannot_be(dlrun, tmp_path, lines, words):
    write_folder(tmp_path, {"p": 3})
    (tmp_path / "p" / "below").mkdir()
    shutil.copy(tmp_path / "p" / "0.png", tmp_path / "p" / "below" / "7.png")
    (tmp_path / "p" / "labels.csv").write_text("\n".join(lines))
    outcome = dlrun("data=image_folder", "data.path=p", "data.labels=labels.csv", "data.test_fraction=0")
    assert (outcome.code, outcome.out) == (2, "")
    assert re.search(words, outcome.err)
    assert not (tmp_path / "outputs").exists()


def test_ten_missing_files_are_named_at_once(dlrun, tmp_path):
    write_folder(tmp_path, {"p": 1})
    (tmp_path / "p" / "labels.csv").write_text("".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(14)))
    outcome = dlrun("data=image_folder", "data.path=p", "data.labels=labels.csv")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("there is no file") == 10
    assert "there are 3 more like these" in outcome.err
    outcome = dlrun("data=image_folder", "data.path=p", "data.labels=label.csv")
    assert "did you mean labels.csv? type its path" in outcome.err


@pytest.mark.parametrize("in_memory", [True, False])
def test_broken_image_is_named_at_load(photos, in_memory):
    (photos / "cat" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cat/3\.png cannot be read as an image"):
        image_folder(str(photos), image_size=8, in_memory=in_memory)


def no_classes(base):
    shutil.rmtree(base)
    base.mkdir()


def empty_class(base):
    (base / "bird").mkdir()


def unknown_class(base):
    (base / "test" / "fish").mkdir(parents=True)
    shutil.copytree(base / "cat", base / "train" / "cat")
    shutil.copytree(base / "dog", base / "train" / "dog")


def empty_test(base):
    unknown_class(base)
    (base / "test" / "fish").rmdir()


def one_image(base):
    for i in range(1, 5):
        (base / "dog" / f"{i}.png").unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_classes, "photos has no class folders"),
        (empty_class, "bird holds no images"),
        (unknown_class, "fish is a class without training images: there are cat, dog; give it training images"),
        (empty_test, "test has no class folders"),
        (one_image, "class 'dog' has one row only"),
    ],
)
def test_folders_that_cannot_be_learned(photos, spoil, words):
    spoil(photos)
    with pytest.raises(DataError, match=words) as caught:
        image_folder(str(photos), image_size=8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"path": "photo"}, r"did you mean 'photos'\?"),
        ({"path": "photos/cat/0.png"}, "is a file, not a folder"),
        ({"image_size": 0}, r"data\.image_size=0"),
        ({"augment": ["RandomFlip"]}, r"no transform of torchvision"),
        ({"mean": [0.5]}, r"data\.mean has 1 values but the images have 3"),
        ({"mean": [0.5], "in_memory": False}, r"data\.mean has 1 values but the images have 3"),
        ({"test_fraction": 2}, r"data\.test_fraction=2"),
    ],
)
def test_settings_that_cannot_be(photos, settings, words):
    path = photos.parent / settings.pop("path", "photos")
    with pytest.raises(DlrunError, match=words):
        image_folder(str(path), **settings)


def test_request_errors_are_requests(photos):
    with pytest.raises(RequestError):
        image_folder(str(photos), image_size=-1)


def test_a_folder_that_cannot_be_read_is_said(tmp_path):
    missing_folder = tmp_path / "gone"
    with pytest.raises(DataError, match="gone cannot be read: No such file or directory"):
        list(class_folders.list_files_below(os.fsencode(missing_folder)))


@pytest.mark.parametrize("name", ["valid", "validation", "dev", "eval"])
def test_a_validation_folder_may_have_other_names(photos, name):
    for part in ("train", name, "extra"):
        shutil.copytree(photos, photos.parent / "named" / part)
    splits = image_folder(path=str(photos.parent / "named"), image_size=8)
    assert splits.val is not None
    assert any("extra in" in note and "was not read" in note for note in splits.notes)
    shutil.copytree(photos, photos.parent / "named" / "val")
    with pytest.raises(DataError, match="of which one is the val part"):
        image_folder(path=str(photos.parent / "named"), image_size=8)


@pytest.mark.parametrize(
    ("names", "parts", "unread"),
    [
        (("train", "valid", "extra", "notes"), {"val"}, "extra, notes"),
        (("train", "holdout"), set(), "holdout"),
        (("train",), set(), ""),
        (("Train", "Val", "TEST"), {"val", "test"}, ""),
        (("Training", "Testing"), {"test"}, ""),
        (("TRAIN", "Dev"), {"val"}, ""),
        (("training_set", "test_set"), {"test"}, ""),
        (("Train Images", "valid-images", "testset"), {"val", "test"}, ""),
        (("train", "test", "train_images"), {"test"}, "train_images"),
        (("train", "my test"), set(), "my test"),
    ],
)
def test_a_folder_of_parts_is_known_by_its_training_part(photos, names, parts, unread):
    for name in names:
        shutil.copytree(photos, photos.parent / "named" / name)
    splits = image_folder(path=str(photos.parent / "named"), image_size=8)
    assert splits.spec.class_names == image_folder(path=str(photos), image_size=8).spec.class_names
    assert {name for name in ("val", "test") if getattr(splits, name) is not None} == parts
    assert any(note.startswith(f"{unread} in") for note in splits.notes) is bool(unread)
    assert "test_fraction" in splits.unheeded


def test_parts_inside_folders_of_their_name(tmp_path):
    """As Kaggle's archives of scenes have them."""
    for part in ("seg_train", "seg_test"):
        write_folder(tmp_path / part / part, {"a": 3, "b": 2})
        (tmp_path / part / part / "read me.txt").write_text("")
    splits = image_folder(str(tmp_path), image_size=8)
    assert splits.spec.class_names == ("a", "b")
    assert (len(splits.train), splits.val, len(splits.test)) == (5, None, 5)
    assert [note.rpartition(" ")[2] for note in splits.notes] == ["me.txt."] * 2


def test_a_folder_around_the_class_folders_is_pointed_to(dlrun, tmp_path):
    write_folder(tmp_path / "archive" / "photos", {"a": 3, "b": 3})
    outcome = dlrun("data=image_folder", "data.path=archive", "data.image_size=8")
    assert (outcome.code, outcome.out) == (2, "")
    assert "archive has only one class folder, 'photos'" in outcome.err
    assert "type data.path=archive/photos" in outcome.err


@pytest.mark.slow
def test_images_without_class_folders_are_no_test_part(dlrun, tmp_path):
    write_folder(tmp_path / "photos" / "train", {"a": 8, "b": 8})
    write_folder(tmp_path / "photos" / "other", {"test": 3})
    (tmp_path / "photos" / "other" / "test").rename(tmp_path / "photos" / "test")
    (tmp_path / "photos" / "other").rmdir()
    words = ("model=linear", "task.loss=cross_entropy", "trainer.epochs=1", "figures=false", "tracking.graph=false")
    outcome = dlrun("data=image_folder", "data.path=photos", "data.image_size=8", *words)
    assert outcome.code == 0, outcome.err
    note = "photos/test has 3 images and no class folders, so it is no test part; dlrun predict RUN photos/test tells"
    assert note in " ".join(outcome.out.split())
    predicted = dlrun("predict", str(outcome.folder), "photos/test")
    assert predicted.code == 0, predicted.err
    assert predicted.out.count(".png") >= 3


def test_tables_of_labels_are_looked_for_where_class_folders_lack(dlrun, tmp_path):
    write_folder(tmp_path, {"photos": 6})
    lines = ["file,taken,kind", *(f"{i}.png,2020,{'ab'[i % 2]}" for i in range(6))]
    (tmp_path / "photos" / "labels.csv").write_text("\n".join(lines))
    words = ("data=image_folder", "data.path=photos", "data.image_size=8")
    outcome = dlrun(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert "photos has no class folders" in outcome.err
    assert "or type data.labels=labels.csv, a table of files and their classes" in outcome.err

    outcome = dlrun(*words, "data.labels=labels.csv")
    assert (outcome.code, outcome.out) == (2, "")
    assert "has only one label, '2020', in its column taken" in outcome.err
    assert "data.label_column=<name> takes another of file, taken, kind" in outcome.err

    splits = image_folder(str(tmp_path / "photos"), image_size=8, labels="labels.csv", label_column="kind")
    assert (splits.spec.class_names, splits.notes) == (("a", "b"), ())
    text = (
        (tmp_path / "photos" / "labels.csv")
        .read_text()
        .replace("0.png,2020", "0.png,2021")
        .replace("1.png,2020", "1.png,2021")
    )
    (tmp_path / "photos" / "labels.csv").write_text(text)
    (note,) = image_folder(str(tmp_path / "photos"), image_size=8, labels="labels.csv").notes
    assert note.startswith("the labels are the column taken of ")


def test_a_class_may_be_called_train(photos):
    shutil.copytree(photos / "cat", photos / "train")
    splits = image_folder(path=str(photos), image_size=8)
    assert "train" in splits.spec.class_names


def write_deep(base, dtype, suffix, low=300, high=600):
    """Two classes of grey images of more than 8 bits, the second twice as bright; returns all values by file."""
    rng = np.random.default_rng(0)
    values = {}
    for factor, name in ((1, "a"), (2, "b")):
        (base / name).mkdir(parents=True)
        for i in range(4):
            path = base / name / f"{i}{suffix}"
            values[path] = (rng.integers(low, high, (8, 8)) * factor).astype(dtype)
            Image.fromarray(values[path]).save(path)
    return values


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(
    ("dtype", "suffix"), [("uint16", ".png"), ("uint16", ".tif"), ("int32", ".tif"), ("float32", ".tif")]
)
def test_grey_images_of_more_than_8_bits_are_scaled_by_the_training_images(tmp_path, dtype, suffix, in_memory):
    train = write_deep(tmp_path / "train", dtype, suffix)
    test = write_deep(tmp_path / "test", dtype, suffix, 0, 1000)
    low = float(min(values.min() for values in train.values()))
    high = float(max(values.max() for values in train.values()))
    constants = {"mean": [0.0], "std": [1.0]}
    splits = image_folder(
        str(tmp_path), image_size=8, grayscale=True, in_memory=in_memory, pixel_range=None, **constants
    )
    assert splits.spec.pixel_range == (low, high)
    assert splits.notes == (
        f"8 of 8 training images have more than 8 bits, with grey values from {low:g} to {high:g}, "
        "which became 0 to 1; data.pixel_range=[<black>,<white>] says otherwise.",
    )
    for part, values in ((splits.train, train), (splits.test, test)):
        # What the training images do not hold is clipped.
        expected = [((v.astype(np.float64) - low) / (high - low)).clip(0, 1) for v in values.values()]
        images = part.inputs[0] if in_memory else torch.stack([part[i][0] for i in range(len(part))])
        torch.testing.assert_close(images, torch.from_numpy(np.stack(expected)).float().unsqueeze(1))
    # Three equal channels, beside images of 8 bits.
    Image.fromarray(np.full((8, 8), 51, np.uint8)).save(tmp_path / "train" / "a" / "0.png")
    rgb = image_folder(str(tmp_path), image_size=8, mean=[0.0] * 3, std=[1.0] * 3, pixel_range=[0, 1000])
    assert rgb.train.inputs[0].max() == pytest.approx(1.0)
    assert any(torch.allclose(image, torch.full((3, 8, 8), 0.2)) for image in rgb.train.inputs[0])
    assert rgb.spec.pixel_range == (0.0, 1000.0)


def test_runs_without_the_key_scale_16_bits_to_8_as_before(tmp_path):
    train = write_deep(tmp_path / "train", np.uint16, ".png", 20_000, 30_000)
    splits = image_folder(str(tmp_path), image_size=8, grayscale=True, mean=[0.0], std=[1.0], test_fraction=0)
    expected = torch.from_numpy(np.stack([(v / 257).round() for v in train.values()])).float().div(255)
    assert torch.equal(splits.train.inputs[0][:, 0], expected)
    assert splits.spec.pixel_range == ()


@pytest.mark.parametrize("words", ["data.pixel_range=[5]", "data.pixel_range=[5,5]", "data.background=wite"])
def test_ranges_and_colors_that_cannot_be(dlrun, tmp_path, words):
    write_folder(tmp_path, {"p/a": 3, "p/b": 3})
    outcome = dlrun("data=image_folder", "data.path=p", words)
    assert (outcome.code, outcome.out) == (2, "")
    assert words.split("=")[0] in outcome.err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_predict_and_eval_read_single_files_as_training_did(dlrun, tmp_path):
    """Deep grey, transparent and turned images, of which an evaluation alone would measure other grey values."""
    write_deep(tmp_path / "p", np.uint16, ".png")
    clear = Image.new("RGBA", (8, 8), (200, 10, 10, 90))
    clear.save(tmp_path / "p" / "a" / "clear.png")
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "p" / "b" / "turned.jpg", exif=exif)
    words = ("data.image_size=8", "data.background=black", "model=mlp", "trainer.max_steps=2", "figures=false")
    outcome = dlrun("data=image_folder", "data.path=p", *words, "tracking.graph=false", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err

    shutil.copytree(tmp_path / "p", tmp_path / "other")
    for path in (tmp_path / "other").glob("*/[1-3].png"):
        path.unlink()
    assert dlrun("eval", "run", "data.path=other", "figures=false").code == 0
    (table,) = (tmp_path / "run" / "eval").glob("*/predictions.csv")
    with table.open() as file:
        evaluated = {row["source"]: (row["predicted"], row["probability"]) for row in csv.DictReader(file)}
    with io.StringIO(dlrun("predict", "run", "other", "--format", "csv").out) as file:
        predicted = {row["input"]: (row["prediction"], float(row["probability"])) for row in csv.DictReader(file)}
    assert len(predicted) == 4
    for path, (name, probability) in evaluated.items():
        assert predicted[path] == (name, pytest.approx(float(probability), abs=2e-6))
