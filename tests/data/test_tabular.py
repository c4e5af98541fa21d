import gzip

import numpy as np
import pytest
import torch

from dlrun.core.errors import DataError, DlrunError, RequestError
from dlrun.data.files.download import COURSE_URL
from dlrun.data.tabular import csv, diabetes


def table(folder, rows, header=None, name="t.csv"):
    path = folder / name
    lines = ([header] if header else []) + [",".join(map(str, row)) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def number_rows(target, rows=20):
    """Rows of (i, i², target(i))."""
    return [(i, i * i, target(i)) for i in range(rows)]


@pytest.mark.parametrize(
    ("target", "task", "outputs", "names"),
    [
        (lambda i: i % 2, "binary", 1, ("0", "1")),
        (lambda i: "yes" if i % 2 else "no", "binary", 1, ("no", "yes")),
        (lambda i: 5 * (i % 3) - 5, "multiclass", 3, ("-5", "0", "5")),
        (lambda i: "cab"[i % 3], "multiclass", 3, ("a", "b", "c")),
        (lambda i: i + 0.5, "regression", 1, ()),
        (lambda i: 2.5, "regression", 1, ()),
    ],
)
def test_task_is_judged_by_the_target(tmp_path, target, task, outputs, names):
    splits = csv(table(tmp_path, number_rows(target), "a,b,y"))
    assert (splits.spec.task, splits.spec.output_size, splits.spec.class_names) == (task, outputs, names)
    assert len(splits.notes) == 1
    assert f"column 'y' is the target and was taken for {task}" in splits.notes[0]


@pytest.mark.parametrize(("distinct", "task"), [(20, "multiclass"), (21, "regression")])
def test_many_integers_are_a_quantity(tmp_path, distinct, task):
    rows = number_rows(lambda i: i % distinct, rows=3 * distinct)
    assert csv(table(tmp_path, rows)).spec.task == task


def test_labels_stay_with_their_rows(tmp_path):
    splits = csv(table(tmp_path, number_rows(lambda i: "xyz"[i % 3], 60)), normalize=False)
    for part in (splits.train, splits.test):
        (x,), y = part.inputs, part.targets
        assert x.dtype == torch.float64
        assert y.dtype == torch.int64
        assert torch.equal(x[:, 1], x[:, 0] ** 2)
        assert torch.equal(x[:, 0].long() % 3, y)
    assert (len(splits.train), len(splits.test)) == (48, 12)
    assert splits.test.targets.bincount().tolist() == [4, 4, 4]


def test_target_by_name_may_be_any_column(tmp_path):
    path = table(tmp_path, [(i * 1.5, i % 2, i) for i in range(10)], "price,b,c")
    splits = csv(path, target="price", test_fraction=0, normalize=False)
    assert splits.spec.feature_names == ("b", "c")
    assert splits.test is None
    assert splits.train.targets[:, 0].tolist() == [i * 1.5 for i in range(10)]
    assert splits.train.targets.shape == (10, 1)


def test_normalized_by_the_training_rows_only(tmp_path):
    path = table(tmp_path, [(i, 7, 0.1, i % 2 + 0.5) for i in range(50)])
    raw, scaled = csv(path, normalize=False), csv(path)
    train = raw.train.inputs[0].numpy()
    assert scaled.spec.mean == pytest.approx(train.mean(0))
    assert scaled.spec.std == pytest.approx((train[:, 0].std(), 1, 1))
    expected = (raw.test.inputs[0].numpy()[:, 0] - train[:, 0].mean()) / train[:, 0].std()
    np.testing.assert_allclose(scaled.test.inputs[0][:, 0].numpy(), expected)
    assert not scaled.train.inputs[0][:, 1].any()
    assert raw.spec.mean == raw.spec.std == ()


@pytest.mark.parametrize("task", ["regression", "multiclass"])
def test_data_seed_draws_the_test_rows(tmp_path, task):
    path = table(tmp_path, number_rows(lambda i: i % 2, 40))
    same, again, other = (csv(path, task=task, seed=s).test.inputs[0] for s in (0, 0, 1))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_a_said_task_is_taken(tmp_path):
    path = table(tmp_path, number_rows(lambda i: i % 2))
    assert csv(path, task="regression").train.targets.is_floating_point()
    assert csv(path, task="multiclass").spec.output_size == 2
    assert csv(path, task="multiclass").notes == ()


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        ([(1,), (2,)], {}, "one column only"),
        ([("1;2",), ("3;4",)], {}, "data.delimiter=';'"),
        (number_rows(lambda i: i % 3), {"task": "binary"}, "3 distinct values: type data.task=multiclass"),
        (number_rows(lambda i: "ab"[i == 4]), {}, "class 'b' has one row only"),
        (number_rows(lambda i: i, 5), {}, "data.task=regression"),
        (number_rows(lambda i: "ab"[i % 2]), {"task": "regression"}, "line 1: column 'column_2' holds 'a'"),
        (number_rows(lambda i: "NA" if i == 4 else i % 2), {}, "line 5: column 'column_2' holds 'NA'"),
        (number_rows(lambda i: "" if i == 4 else i % 2), {}, "line 5: column 'column_2' is empty"),
        (number_rows(lambda i: "" if i == 4 else "ab"[i % 2]), {}, "line 5: column 'column_2' is empty"),
        (number_rows(lambda i: "nan" if i == 4 else i % 2), {}, "line 5: column 'column_2' holds 'nan'"),
        (number_rows(lambda i: "inf" if i == 4 else i % 2), {"task": "multiclass"}, "line 5"),
        ([("a", 0), ("b", 1), ("c", 0)], {"task": "binary", "test_fraction": 0}, "holds 'a'"),
        (
            number_rows(lambda i: i % 2),
            {"task": "clustering"},
            "type regression, binary, multiclass, multilabel or multitask",
        ),
        (number_rows(lambda i: i % 2), {"test_fraction": 1.0}, "data.test_fraction=1.0"),
        (number_rows(lambda i: i % 2), {"target": 3}, "from 0 to 2"),
    ],
)
def test_tables_that_cannot_be_learned(tmp_path, rows, settings, words):
    with pytest.raises(DlrunError) as caught:
        csv(table(tmp_path, rows), **settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mixed_labels_are_classes_when_said(tmp_path):
    path = table(tmp_path, number_rows(lambda i: "NA" if i % 2 else i % 4, 40))
    assert csv(path, task="multiclass").spec.class_names == ("0", "2", "NA")


def test_relative_path_is_of_the_working_directory(tmp_path, monkeypatch):
    table(tmp_path, number_rows(lambda i: i % 2))
    monkeypatch.chdir(tmp_path)
    assert len(csv("t.csv").train) == 16


DIABETES = [(*(round(0.1 * i - j, 3) for j in range(8)), i % 2) for i in range(20)]


@pytest.mark.parametrize("packed", [True, False])
def test_diabetes_reads_either_file(tmp_path, packed):
    path = table(tmp_path, DIABETES, name="diabetes.csv")
    if packed:
        (tmp_path / "diabetes.csv.gz").write_bytes(gzip.compress((tmp_path / "diabetes.csv").read_bytes()))
        (tmp_path / "diabetes.csv").unlink()
    splits = diabetes(str(tmp_path))
    assert (splits.spec.task, splits.spec.input_shape, splits.spec.output_size) == ("binary", (8,), 1)
    assert (len(splits.train), len(splits.test)) == (16, 4)
    assert splits.spec.mean == ()
    rows = torch.cat([splits.train.inputs[0], splits.test.inputs[0]]).tolist()
    assert sorted(rows) == sorted(list(map(float, row[:8])) for row in DIABETES), path


def test_diabetes_can_be_normalized(tmp_path):
    table(tmp_path, DIABETES, name="diabetes.csv")
    (x,) = diabetes(str(tmp_path), normalize=True).train.inputs
    torch.testing.assert_close(x.mean(0), torch.zeros(8, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(8, dtype=torch.float64))


def test_diabetes_with_other_columns(tmp_path):
    table(tmp_path, number_rows(lambda i: i % 2), name="diabetes.csv")
    with pytest.raises(DataError, match="3 columns, not the 9"):
        diabetes(str(tmp_path))


def test_diabetes_is_downloaded_when_missing(tmp_path, monkeypatch):
    addresses = []

    def no_network(url, sha256, path):
        addresses.append((url, path))
        raise ConnectionError("unreachable")

    monkeypatch.setattr("dlrun.data.files.download.fetch", no_network)
    with pytest.raises(DataError, match=r"put diabetes\.csv\.gz there.*digits, line"):
        diabetes(str(tmp_path))
    assert addresses == [(COURSE_URL + "diabetes.csv.gz", tmp_path / "diabetes.csv.gz")]


def test_real_diabetes(real_data):
    splits = diabetes(real_data)
    counts = torch.cat([splits.train.targets, splits.test.targets]).bincount().tolist()
    assert counts == [263, 496]
    assert splits.test.targets.bincount().tolist() == [53, 99]
    (x,) = splits.train.inputs
    assert x.abs().max() <= 1


def test_request_and_data_errors_differ(tmp_path):
    with pytest.raises(DataError):
        csv(str(tmp_path / "none.csv"))
    with pytest.raises(RequestError, match=r"data.delimiter"):
        csv(table(tmp_path, number_rows(lambda i: i % 2)), delimiter=";;")
