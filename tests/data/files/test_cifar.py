import os
import pickle

import numpy as np
import pytest
from published_formats import cifar_batch, dump

from dlrun.core.errors import DataError
from dlrun.data.files.cifar import read_batch, read_class_names


@pytest.mark.parametrize("protocol", [None, 2, 3, 4, 5])
@pytest.mark.parametrize("keys", [str, str.encode])
def test_reads_old_and_new_pickles(tmp_path, protocol, keys):
    batch = cifar_batch(5, "labels", 10)
    (tmp_path / "x").write_bytes(dump({keys(k): v for k, v in batch.items()}, protocol))
    images, labels = read_batch(tmp_path / "x", "labels", 10)
    assert np.array_equal(images, batch["data"].reshape(5, 3, 32, 32))
    assert labels.tolist() == batch["labels"]


def test_old_pickles_are_as_published():
    """Python 2 strings and the module names of old numpy, or the test above shows nothing."""
    content = dump(cifar_batch(1, "labels", 10), None)
    assert content.startswith(b"\x80\x02")
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in content
    assert pickle.BINUNICODE + b"\x04\0\0\0data" not in content


@pytest.mark.parametrize("protocol", [None, 4])
def test_class_names(tmp_path, protocol):
    (tmp_path / "m").write_bytes(dump({"label_names": ["cat", b"dog"]}, protocol))
    assert read_class_names(tmp_path / "m", "label_names", 2) == ("cat", "dog")
    with pytest.raises(DataError, match="m has no 'label_names', 3 names"):
        read_class_names(tmp_path / "m", "label_names", 3)


class Attack:
    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("call", [os.system, eval, exec, getattr, np.load, __import__])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_is_executed(tmp_path, call, protocol):
    marker = tmp_path / "marker"
    command = f"touch {marker}" if call is os.system else f"open({str(marker)!r}, 'w')"
    arguments = (command, "x") if call is getattr else (command,)
    (tmp_path / "x").write_bytes(pickle.dumps({"data": Attack(call, *arguments)}, protocol))
    with pytest.raises(DataError, match=r"x cannot be read as a CIFAR file .*it asks for .*delete it"):
        read_batch(tmp_path / "x", "labels", 10)
    assert not marker.exists()


def test_the_attack_would_work(tmp_path):
    """Opened with pickle itself the marker appears, so the test above shows something."""
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Attack(os.system, f"touch {marker}")))
    assert marker.exists()


GOOD = cifar_batch(3, "labels", 10)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        pickle.dumps(GOOD)[:-100],
        pickle.dumps([1, 2]),
        pickle.dumps({"labels": [1]}),
        pickle.dumps(GOOD | {"data": GOOD["data"].astype(np.int64)}),
        pickle.dumps(GOOD | {"data": GOOD["data"][:, :3000]}),
        pickle.dumps(GOOD | {"data": GOOD["data"][:2]}),
        pickle.dumps(GOOD | {"labels": [0, 1, 10]}),
        pickle.dumps(GOOD | {"labels": [0, 1, -1]}),
        pickle.dumps(GOOD | {"labels": [0, 1, "2"]}),
        pickle.dumps(GOOD | {"labels": "abc"}),
        pickle.dumps({"data": GOOD["data"][:0], "labels": []}),
    ],
)
def test_damaged_batch(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match=r"x .*: delete it and run again") as caught:
        read_batch(tmp_path / "x", "labels", 10)
    assert "\n" not in str(caught.value)
