import numpy as np
import pytest
import torch
from published_formats import write_cifar10, write_cifar100, write_mnist

from dlrun.core.errors import DataError, RequestError
from dlrun.data import images

GREY = [(images.mnist, "MNIST"), (images.fashion_mnist, "FashionMNIST"), (images.kmnist, "KMNIST")]
PUBLISHED_CONSTANTS = {
    images.mnist: (0.1307, 0.3081),
    images.fashion_mnist: (0.2860, 0.3530),
    images.kmnist: (0.1918, 0.3483),
}


@pytest.fixture
def no_network(monkeypatch):
    def fail_to_connect(url, checksum, path):
        raise OSError("Error downloading it")

    monkeypatch.setattr("dlrun.data.files.download.fetch", fail_to_connect)


@pytest.mark.parametrize(("read", "folder"), GREY)
@pytest.mark.parametrize("packed", [False, True])
def test_idx_sets(tmp_path, read, folder, packed):
    arrays = write_mnist(tmp_path, folder, packed=packed)
    splits = read(str(tmp_path))
    mean, std = PUBLISHED_CONSTANTS[read]
    for split, part in ((splits.train, "train"), (splits.test, "t10k")):
        (x,), y = split.inputs, split.targets
        expected = (arrays[f"{part}-images-idx3-ubyte"][:, None] / 255 - mean) / std
        np.testing.assert_allclose(x.numpy(), expected, atol=1e-6)
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert y.tolist() == arrays[f"{part}-labels-idx1-ubyte"].tolist()
    spec = splits.spec
    assert (spec.input_shape, spec.task, spec.output_size) == ((1, 28, 28), "multiclass", 10)
    assert (spec.mean, spec.std) == ((mean,), (std,))
    assert len(spec.class_names) == 10


def test_other_size_and_constants(tmp_path):
    write_mnist(tmp_path)
    splits = images.mnist(str(tmp_path), image_size=32, mean=0.0, std=1.0)
    assert splits.spec.input_shape == (1, 32, 32)
    (x,) = splits.train.inputs
    assert x.shape == (20, 1, 32, 32)
    assert 0 <= x.min() < x.max() <= 1


@pytest.mark.parametrize("name", images.IDX_FILES)
def test_truncated_file_is_named(tmp_path, name):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{name} holds .* delete it and run again"):
        images.mnist(str(tmp_path))


@pytest.mark.parametrize("name", images.IDX_FILES)
def test_missing_file_without_network(tmp_path, no_network, name):
    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / name).unlink()
    with pytest.raises(DataError) as caught:
        images.mnist(str(tmp_path))
    message = str(caught.value)
    for words in (
        f"data=mnist is not in {tmp_path}/MNIST/raw",
        *images.IDX_FILES,
        "Error downloading it",
        "digits",
    ):
        assert words in message
    assert "\n" not in message


def test_parts_of_different_size(tmp_path):
    write_mnist(tmp_path)
    from published_formats import idx_bytes

    smaller = idx_bytes(np.zeros((10, 14, 14)))
    (tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte").write_bytes(smaller)
    with pytest.raises(DataError, match="different sizes"):
        images.mnist(str(tmp_path))


@pytest.mark.parametrize("protocol", [None, 4])
@pytest.mark.parametrize(
    ("read", "write", "train", "label_key"),
    [
        (images.cifar10, write_cifar10, [f"data_batch_{i}" for i in range(1, 6)], "labels"),
        (images.cifar100, write_cifar100, ["train"], "fine_labels"),
    ],
)
def test_cifar(tmp_path, protocol, read, write, train, label_key):
    files = write(tmp_path, protocol)
    test = "test" if "test" in files else "test_batch"
    splits = read(str(tmp_path), mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])
    for split, names in ((splits.train, train), (splits.test, [test])):
        pixels = np.concatenate([files[name]["data"] for name in names]).reshape(-1, 3, 32, 32) / 255
        expected = (pixels - np.reshape([0.1, 0.2, 0.3], (3, 1, 1))) / np.reshape([0.5, 0.6, 0.7], (3, 1, 1))
        np.testing.assert_allclose(split.inputs[0].numpy(), expected, atol=1e-6)
        assert split.targets.tolist() == [label for name in names for label in files[name][label_key]]
    assert splits.spec.input_shape == (3, 32, 32)
    assert splits.spec.class_names[1] == ("class 1" if read is images.cifar10 else "fine 1")
    assert splits.spec.output_size == len(splits.spec.class_names)


@pytest.mark.parametrize(("read", "missing"), [(images.cifar10, "test_batch"), (images.cifar100, "meta")])
def test_cifar_without_network(tmp_path, no_network, read, missing):
    (write_cifar10 if read is images.cifar10 else write_cifar100)(tmp_path)
    next(tmp_path.glob(f"*/{missing}")).unlink()
    with pytest.raises(DataError, match=rf"could not be downloaded .*put .*{missing}.* there"):
        read(str(tmp_path))


def test_digits():
    from sklearn.datasets import load_digits

    splits = images.digits(image_size=8)
    (train,), (test,) = splits.train.inputs, splits.test.inputs
    assert len(train) + len(test) == 1797
    assert abs(len(test) - 359) <= 1
    (m,), (s,) = splits.spec.mean, splits.spec.std
    pixels = torch.cat([train, test]) * s + m
    expected = load_digits().images / 16
    assert sorted(pixels.mean((1, 2, 3)).tolist()) == pytest.approx(sorted(expected.mean((1, 2)).tolist()), abs=1e-5)
    assert abs(train.mean()) < 1e-5
    assert train.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    shares = splits.test.targets.bincount() / splits.train.targets.bincount()
    assert shares.min() > 0.23
    assert shares.max() < 0.27
    by_pixels = {row.tobytes(): label for row, label in zip(expected, load_digits().target, strict=True)}
    shown = (pixels[:, 0] * 16).round().double() / 16
    labels = torch.cat([splits.train.targets, splits.test.targets]).tolist()
    assert [by_pixels[row.numpy().tobytes()] for row in shown] == labels


@pytest.mark.slow
def test_digits_settings():
    splits = images.digits(image_size=28, mean=0.0, std=1.0, test_fraction=0)
    assert splits.test is None
    (x,) = splits.train.inputs
    assert x.shape == (1797, 1, 28, 28)
    assert 0 <= x.min() < x.max() <= 1
    other, same = images.digits(seed=1).test.targets, images.digits(seed=1).test.targets
    assert torch.equal(other, same)
    assert not torch.equal(other, images.digits(seed=0).test.targets)
    with pytest.raises(RequestError, match=r"data\.std"):
        images.digits(std=0.0)


def test_one_digit_against_the_rest():
    ten, two = images.digits(image_size=8), images.digits(image_size=8, positive=3)
    assert (two.spec.task, two.spec.output_size, two.spec.class_names) == ("binary", 1, ("rest", "3"))
    assert (two.spec.mean, two.spec.std) == (ten.spec.mean, ten.spec.std)
    for a, b in ((ten.train, two.train), (ten.test, two.test)):  # the same rows
        assert torch.equal(a.inputs[0], b.inputs[0])
        assert torch.equal((a.targets == 3).long(), b.targets)
    for wrong in (10, -1):
        with pytest.raises(RequestError, match=rf"data\.positive={wrong} is no digit"):
            images.digits(positive=wrong)


def test_digits_in_three_channels():
    grey, wide = images.digits(image_size=8, mean=0.5), images.digits(image_size=8, mean=0.5, channels=3)
    assert wide.spec.input_shape == (3, 8, 8)
    assert wide.spec.mean == (0.5, 0.5, 0.5)
    assert len(wide.spec.std) == 3
    torch.testing.assert_close(wide.test.inputs[0], grey.test.inputs[0].repeat(1, 3, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize(("read", "folder"), GREY)
def test_idx_sets_equal_torchvisions(tmp_path, read, folder):
    from torchvision import datasets
    from torchvision.transforms import Compose, Normalize, ToTensor

    write_mnist(tmp_path, folder)
    mean, std = PUBLISHED_CONSTANTS[read]
    transform = Compose([ToTensor(), Normalize([mean], [std])])  # the course's own
    splits = read(str(tmp_path))
    for part, train in ((splits.train, True), (splits.test, False)):
        theirs = getattr(datasets, folder)(str(tmp_path), train=train, transform=transform)
        assert len(theirs) == len(part)
        for i, (image, label) in enumerate(theirs):
            assert torch.equal(image, part.inputs[0][i])
            assert label == part.targets[i]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:numpy.core")  # the module name that the published pickles ask for
@pytest.mark.parametrize("protocol", [None, 4])
@pytest.mark.parametrize(("name", "write"), [("CIFAR10", write_cifar10), ("CIFAR100", write_cifar100)])
def test_cifar_equals_torchvisions(tmp_path, monkeypatch, protocol, name, write):
    from torchvision import datasets

    write(tmp_path, protocol)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)  # of the real files' checksums
    read = getattr(images, name.lower())
    splits = read(str(tmp_path), mean=[0.0] * 3, std=[1.0] * 3)
    for part, train in ((splits.train, True), (splits.test, False)):
        theirs = getattr(datasets, name)(str(tmp_path), train=train)
        pixels = torch.from_numpy(theirs.data).permute(0, 3, 1, 2).float() / 255
        assert torch.equal(part.inputs[0], pixels)
        assert part.targets.tolist() == theirs.targets
        assert list(splits.spec.class_names) == theirs.classes


@pytest.mark.slow
def test_real_mnist(real_data):
    splits = images.mnist(real_data)
    (x,), y = splits.train.inputs, splits.train.targets
    assert y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert y.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert splits.test.targets.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # The published constants are those of these very pixels.
    assert x.mean().item() == pytest.approx(0, abs=1e-3)
    assert x.std().item() == pytest.approx(1, abs=1e-3)
