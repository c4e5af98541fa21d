import gzip

import numpy as np
import pytest
from published_formats import idx_bytes

from dlrun.core.errors import DataError
from dlrun.data.files.idx import find_idx, read_idx, read_labelled

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def test_reads_what_was_written(tmp_path):
    (tmp_path / "x").write_bytes(idx_bytes(ARRAY))
    (tmp_path / "y.gz").write_bytes(gzip.compress(idx_bytes(ARRAY), mtime=0))
    assert np.array_equal(read_idx(tmp_path / "x", 3), ARRAY)
    assert np.array_equal(read_idx(tmp_path / "y.gz", 3), ARRAY)
    assert find_idx(tmp_path, "x") == tmp_path / "x"
    assert find_idx(tmp_path, "y") == tmp_path / "y.gz"
    assert find_idx(tmp_path, "z") is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "does not start like"),
        (idx_bytes(ARRAY)[:10], "does not start like"),
        (b"<html>not found</html>", "does not start like"),
        (idx_bytes(ARRAY[0]), "does not start like"),
        (idx_bytes(ARRAY)[:-1], "holds 39 bytes where its header announces 40"),
        (idx_bytes(ARRAY) + b"!", "holds 41 bytes where its header announces 40"),
        (b"\0\0\x0d\x03" + idx_bytes(ARRAY)[4:], "does not start like"),
    ],
)
def test_damaged_file(tmp_path, content, words):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match=f"x {words}.*delete it and run again"):
        read_idx(tmp_path / "x", 3)


@pytest.mark.parametrize("content", [b"junk", gzip.compress(idx_bytes(ARRAY), mtime=0)[:-10], b""])
def test_damaged_gzip(tmp_path, content):
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"x.gz .*delete it"):
        read_idx(tmp_path / "x.gz", 3)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (ARRAY, [0, 1, 2], "holds 2 images of 3x4, y 3 labels"),
        (ARRAY, [0, 10], "y holds the label 10 where 9 is the largest"),
        (ARRAY[:0], [], "holds 0 images"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path, images, labels, words):
    (tmp_path / "x").write_bytes(idx_bytes(images))
    (tmp_path / "y").write_bytes(idx_bytes(np.array(labels)))
    with pytest.raises(DataError, match=words):
        read_labelled(tmp_path / "x", tmp_path / "y", 10)
