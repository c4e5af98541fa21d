"""Rows in .npy files: what they are taken for, that they are read by the batch, and files that are something else."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlrun.core.errors import DataError, DlrunError
from dlrun.data import datasets as rows
from dlrun.data.arrays import Mapped, arrays
from dlrun.data.datasets import Rows, load_in_memory

RANDOM = np.random.default_rng(0)
QUIET = ("tracking.graph=false", "figures=false", "trainer.epochs=2")


def write(folder: Path, x: Any, y: Any, front: str = "") -> str:
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{front}x.npy", x)
    np.save(folder / f"{front}y.npy", y)
    return str(folder)


def pictures(rows: int = 50) -> Any:
    return RANDOM.integers(0, 256, (rows, 8, 8)).astype(np.uint8)


def test_uint8_images_are_taken_from_0_to_1_and_normalized(tmp_path: Path) -> None:
    x, y = pictures(), np.arange(50) % 3
    splits = arrays(write(tmp_path, x, y), test_fraction=0)
    spec = splits.spec
    assert (spec.kind, spec.input_shape, spec.task, spec.output_size) == ("image", (1, 8, 8), "multiclass", 3)
    values = x[:, None] / 255
    assert spec.mean == pytest.approx([values.mean()])
    assert spec.std == pytest.approx([values.std()])
    assert isinstance(splits.train, Mapped)
    inputs, targets = splits.train.__getitems__([3, 1])
    assert torch.allclose(inputs, torch.from_numpy((values[[3, 1]] - values.mean()) / values.std()).float(), atol=1e-6)
    assert targets.tolist() == [0, 1]
    one, target = splits.train[3]
    assert torch.equal(one, inputs[0])
    assert int(target) == 0


def test_tables_of_floats_have_features_and_values(tmp_path: Path) -> None:
    x, y = RANDOM.normal(5, 2, (40, 3)), RANDOM.normal(size=40)
    splits = arrays(write(tmp_path, x, y))
    assert (splits.spec.kind, splits.spec.input_shape, splits.spec.task) == ("vector", (3,), "regression")
    assert isinstance(splits.train, Rows)
    assert isinstance(splits.test, Rows)
    assert (len(splits.train), len(splits.test)) == (32, 8)
    in_memory = load_in_memory(splits.train, "memory", torch.float32, 0)
    assert in_memory is not None
    assert in_memory.inputs[0].mean(0).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert in_memory.targets.shape == (32, 1)


def test_a_test_part_of_its_own_is_normalized_like_the_training_part(tmp_path: Path) -> None:
    folder = write(tmp_path, np.full((4, 2), 2.0) + np.eye(4, 2), np.array([True, False, True, False]))
    write(tmp_path, np.full((2, 2), 2.0), np.array([False, True]), "test_")
    splits = arrays(folder)
    assert (splits.spec.task, splits.spec.output_size, splits.spec.class_names) == ("binary", 1, ("0", "1"))
    assert isinstance(splits.train, Mapped)
    assert isinstance(splits.test, Mapped)
    assert torch.equal(splits.test.mean, splits.train.mean)
    assert splits.test.__getitems__([0])[0].tolist()[0] == pytest.approx([-0.25 / 0.4330127] * 2)


def test_a_validation_part_of_its_own_leaves_the_test_part_to_be_drawn(tmp_path: Path) -> None:
    folder = write(tmp_path, pictures(), np.arange(50) % 3)
    write(tmp_path, pictures(7), np.arange(7) % 3, "val_")
    splits = arrays(folder)
    assert isinstance(splits.val, Mapped)
    assert isinstance(splits.train, Rows)
    assert isinstance(splits.test, Rows)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (40, 7, 10)


@pytest.mark.parametrize(
    ("y", "task", "names", "targets", "note"),
    [
        ([2.0, 5.0, 2.0, 9.0], "multiclass", "2 5 9", [0, 1, 0, 2], "holds float64"),
        ([[0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]], "multiclass", "0 1 2", [1, 0, 1, 0], "one-hot rows"),
        ([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], "binary", "0 1", [1, 0, 1, 0], "one-hot rows"),
        ([1, 2, 3, 1], "multiclass", "1 2 3", [0, 1, 2, 0], "holds the classes 1, 2, 3, which are their names"),
        ([0, 2, 4, 0], "multiclass", "0 2 4", [0, 1, 2, 0], "they became 0 to 2"),
        ([-1, 1, 1, -1], "binary", "-1 1", [0, 1, 1, 0], "taken for binary with 2 classes; data.task=… says otherwise"),
        ([10**9, 7, 8, 7], "multiclass", "7 8 1000000000", [2, 0, 1, 0], "they became 0 to 2"),
        ([0, 1, 0, 1], "binary", "0 1", [0, 1, 0, 1], "taken for binary"),
        ([0, 1, 2, 1], "multiclass", "0 1 2", [0, 1, 2, 1], ""),
        ([0.5, 1.0, 2.0, 1.0], "regression", "", [[0.5], [1.0], [2.0], [1.0]], ""),
        ([[0.0, 2.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], "regression", "", None, ""),
    ],
)
def test_labels_as_they_come_are_classes(
    y: Any, task: str, names: str, targets: Any, note: str, tmp_path: Path
) -> None:
    splits = arrays(write(tmp_path, np.ones((4, 2)), np.array(y)), test_fraction=0, infer_classes=True)
    assert (splits.spec.task, " ".join(splits.spec.class_names)) == (task, names)
    assert splits.spec.output_size == {"binary": 1, "regression": splits.spec.output_size}.get(task, len(names.split()))
    if targets is not None:
        assert splits.train.targets.tolist() == targets
    assert note in " ".join(splits.notes)
    assert bool(splits.notes) is bool(note)


def test_more_floats_than_classes_are_quantities_and_older_runs_infer_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path, np.ones((21, 2)), np.arange(21.0))
    assert arrays(folder, infer_classes=True).spec.task == "regression"
    folder = write(tmp_path, np.ones((20, 2)), np.arange(20.0))
    assert arrays(folder, infer_classes=True).spec.task == "multiclass"
    assert arrays(folder).spec.task == "regression"
    folder = write(tmp_path, np.ones((4, 2)), np.array([0, 3, 0, 3]))
    assert arrays(folder).spec.class_names == ("0", "1", "2", "3")


def test_named_classes_and_other_parts_follow_the_numbers(tmp_path: Path) -> None:
    folder = write(tmp_path, np.ones((4, 2)), np.array([1, 2, 3, 1]))
    write(tmp_path, np.ones((2, 2)), np.array([3, 1]), "test_")
    splits = arrays(folder, class_names=["a", "b", "c"], infer_classes=True)
    assert splits.spec.class_names == ("a", "b", "c")
    assert splits.test is not None
    assert splits.test.targets.tolist() == [2, 0]  # type: ignore[union-attr]
    # With a name for each number they are counted from 0.
    counted = arrays(folder, class_names=["z", "a", "b", "c"], infer_classes=True)
    assert counted.train.targets.tolist() == [1, 2, 3, 1]  # type: ignore[union-attr]
    assert counted.notes == ()
    with pytest.raises(DataError, match=r"class_names has 2 names, and y\.npy 3 classes"):
        arrays(folder, class_names=["a", "b"], infer_classes=True)
    write(tmp_path, np.ones((2, 2)), np.array([3, 4]), "test_")
    with pytest.raises(DataError, match=r"test_y.npy holds class 4 in row 1 .*which the training part does not have"):
        arrays(folder, infer_classes=True)


@pytest.mark.parametrize(
    ("shape", "layout", "expected", "is_noted"),
    [
        ((6, 8, 9, 3), None, (3, 8, 9), True),
        ((6, 8, 9, 1), None, (1, 8, 9), True),
        ((6, 3, 8, 9), None, (3, 8, 9), False),
        ((6, 3, 9, 3), None, (3, 9, 3), False),
        ((6, 3, 9, 3), "channels_last", (3, 3, 9), False),
        ((6, 8, 9, 3), "channels_first", (8, 9, 3), False),
        ((6, 8, 9), None, (1, 8, 9), False),
        ((6, 8, 8, 5), None, (5, 8, 8), True),
        ((6, 7, 7, 32), None, (32, 7, 7), True),
        ((6, 5, 8, 8), None, (5, 8, 8), False),
        ((6, 12, 16, 6), None, (6, 12, 16), True),
        ((6, 6, 12, 16), None, (6, 12, 16), False),
    ],
)
def test_channels_are_told_by_their_number(
    shape: tuple[int, ...], layout: Any, expected: tuple[int, ...], is_noted: bool, tmp_path: Path
) -> None:
    x = RANDOM.integers(0, 256, shape).astype(np.uint8)
    splits = arrays(write(tmp_path, x, np.arange(6) % 3), test_fraction=0, layout=layout, normalize=False)
    assert splits.spec.input_shape == expected
    assert any("(rows, height, width, channels)" in note for note in splits.notes) is is_noted
    held = load_in_memory(splits.train, "memory", torch.float32, 0)
    assert held is not None
    arranged = np.moveaxis(x, -1, 1) if is_noted or layout == "channels_last" else x.reshape(6, *expected)
    assert torch.equal(held.inputs[0], torch.from_numpy(arranged.astype(np.float32)).div(255))


@pytest.mark.parametrize("dtype", [np.bool_, np.int16, np.uint16, np.int64, np.float16, np.float64])
def test_numbers_of_any_type_are_inputs(dtype: Any, tmp_path: Path) -> None:
    x = RANDOM.integers(0, 2 if dtype is np.bool_ else 900, (8, 3)).astype(dtype)
    splits = arrays(write(tmp_path, x, np.arange(8) % 2), test_fraction=0)
    held = load_in_memory(splits.train, "memory", torch.float32, 0)
    assert held is not None
    assert held.inputs[0].dtype == torch.float32
    expected = (x - x.mean(0, dtype=np.float64)) / x.std(0, dtype=np.float64)
    np.testing.assert_allclose(held.inputs[0].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_text_names_classes(tmp_path: Path) -> None:
    y = np.array(["owl", "cat", "dog", "owl"])
    folder = write(tmp_path, np.ones((4, 2)), y)
    splits = arrays(folder, test_fraction=0, infer_classes=True)
    assert (splits.spec.task, splits.spec.class_names) == ("multiclass", ("cat", "dog", "owl"))
    assert splits.train.targets.tolist() == [2, 0, 1, 2]  # type: ignore[union-attr]
    named = arrays(folder, test_fraction=0, infer_classes=True, class_names=["owl", "dog", "cat", "emu"])
    assert (named.spec.output_size, named.train.targets.tolist()) == (4, [0, 2, 1, 0])  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"y.npy holds the class 'dog', which data.class_names lacks"):
        arrays(folder, infer_classes=True, class_names=["owl", "cat"])

    write(tmp_path, np.ones((2, 2)), np.array(["dog", "elephant"]), "test_")
    with pytest.raises(DataError, match=r"test_y.npy holds class elephant in row 1 .*which the training part does not"):
        arrays(folder, infer_classes=True)
    write(tmp_path, np.ones((2, 2)), np.array([0, 1]), "test_")
    with pytest.raises(DataError, match=r"test_y.npy holds int64, and the training part has text; write both alike"):
        arrays(folder, infer_classes=True)
    (tmp_path / "test_x.npy").unlink()
    (tmp_path / "test_y.npy").unlink()
    write(tmp_path, np.ones((4, 2)), np.array(["no", "yes", "no", "no"]))
    two = arrays(folder, test_fraction=0, infer_classes=True)
    assert (two.spec.task, two.spec.class_names) == ("binary", ("no", "yes"))


def test_usual_names_of_files_and_arrays(tmp_path: Path) -> None:
    x = RANDOM.normal(size=(6, 2)).astype(np.float32)
    y = np.arange(6) % 3
    for names in (("X_train", "y_train", "X_test", "y_test"), ("data", "target")):
        folder = tmp_path / names[0]
        folder.mkdir()
        for name, values in zip(names, (x, y, x[:2], y[:2]), strict=False):
            np.save(folder / f"{name}.npy", values)
        splits = arrays(str(folder), infer_classes=True)
        assert (len(splits.train), len(splits.test)) == ((6, 2) if len(names) == 4 else (5, 1))  # type: ignore[arg-type]
        assert splits.train.origin.get_source(0) == str(folder / f"{names[0]}.npy")  # type: ignore[union-attr]

    np.savez(tmp_path / "unnamed.npz", x, y)
    assert len(arrays(str(tmp_path / "unnamed.npz"), test_fraction=0).train) == 6  # type: ignore[arg-type]
    np.savez(tmp_path / "unnamed.npz", x, y, x)
    with pytest.raises(DlrunError, match=r"holds no x .*but arr_0, arr_1, arr_2"):
        arrays(str(tmp_path / "unnamed.npz"))


@pytest.mark.slow
def test_an_npz_file_trains_is_evaluated_and_predicted(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    """Under the names of Keras's files, with the channels last."""
    x = RANDOM.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    y = (np.arange(40) % 3 + 1).astype(np.uint8).reshape(-1, 1)
    np.savez_compressed(tmp_path / "set.npz", x_train=x[:30], y_train=y[:30], x_test=x[30:], y_test=y[30:])
    outcome = dlrun("data=arrays", "data.path=set.npz", "model=mlp", "hydra.run.dir=run", *QUIET)
    assert outcome.code == 0, outcome.err
    assert "27 train, 3 val, 10 test" in outcome.out
    assert "the same as recorded in training" in dlrun("eval", "run", "figures=false").out
    np.save(tmp_path / "new.npy", x[30:])
    answers = dlrun("predict", "run", "new.npy", "--format", "csv")
    assert answers.code == 0, answers.err
    (table,) = (tmp_path / "run" / "eval").glob("*/predictions.csv")
    evaluated = [line.split(",")[2:4] for line in table.read_text().splitlines()[1:]]
    predicted = [line.split(",")[1:3] for line in answers.out.splitlines()[1:]]
    assert [name for name, _ in predicted] == [name for name, _ in evaluated]
    assert {name for name, _ in predicted} <= {"1", "2", "3"}
    for (_, one), (_, other) in zip(predicted, evaluated, strict=True):
        assert float(one) == pytest.approx(float(other), abs=2e-6)


def test_all_files_that_are_missing_or_damaged_are_named_at_once(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    write(folder, np.ones((10, 2)), np.arange(10))
    (folder / "y.npy").unlink()
    break_file(folder / "x.npy")
    np.save(folder / "test_y.npy", np.zeros(3, int))
    outcome = dlrun("data=arrays", "data.path=rows")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 4
    for words in ("x.npy is not a whole .npy file", "y.npy does not exist", "test_x.npy does not exist"):
        assert words in outcome.err
    assert not (tmp_path / "outputs").exists()

    (tmp_path / "cut.npz").write_bytes(b"PK no archive")
    np.savez(tmp_path / "others.npz", a=np.ones(3))
    for name, words in (("cut", "is not a whole .npz file of arrays"), ("others", "holds no x (or X, x_train")):
        outcome = dlrun("data=arrays", f"data.path={name}.npz")
        assert (outcome.code, outcome.out) == (2, "")
        assert words in outcome.err


def test_a_file_instead_of_its_folder(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    write(tmp_path / "rows", pictures(), np.arange(50) % 3)
    outcome = dlrun("data=arrays", "data.path=rows/x.npy")
    advice = "type the folder that x.npy and y.npy lie in, or an .npz file of both"
    assert outcome.err == f"dlrun: data.path=rows/x.npy is a file; {advice}\n"


def test_what_fits_is_held_in_memory_and_the_rest_is_not(tmp_path: Path) -> None:
    train = arrays(write(tmp_path, pictures(), np.arange(50)), test_fraction=0).train
    assert load_in_memory(train, "auto", torch.float32, 50 * 64 * 4) is not None
    assert load_in_memory(train, "auto", torch.float32, 50 * 64 * 4 - 1) is None
    assert load_in_memory(train, "auto", torch.float64, 50 * 64 * 8 - 1) is None
    assert load_in_memory(train, "workers", torch.float32, 10**9) is None


def test_all_rows_are_read_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = arrays(write(tmp_path, pictures(), np.arange(50)), test_fraction=0).train
    assert isinstance(train, Mapped)
    reference = train.__getitems__(list(range(50)))
    monkeypatch.setattr(rows, "_ROWS_PER_READ", 16)
    held = rows.load_in_memory(train, "memory", torch.float32, 0)
    assert held is not None
    assert torch.equal(held.inputs[0], reference[0])
    assert torch.equal(held.targets, reference[1])


@pytest.mark.slow
def test_memory_and_workers_train_to_the_same_weights(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    write(tmp_path / "rows", pictures(90), np.arange(90) % 3)
    hashes = []
    for loader, workers in (("memory", 0), ("workers", 0), ("workers", 2)):
        outcome = dlrun("data=arrays", "data.path=rows", f"data.loader={loader}", f"data.num_workers={workers}", *QUIET)
        assert outcome.code == 0, outcome.err
        hashes.append((outcome.result["weights_sha256"], outcome.result["metrics"]))
    assert hashes[0] == hashes[1] == hashes[2]


def break_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def regression_with_test(folder: Path) -> None:
    write(folder, np.ones((10, 2)), np.ones(10))
    write(folder, np.ones((3, 2)), np.ones((3, 2)), "test_")


MISTAKES: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "none": (lambda p: (p / "x.npy").unlink(), {}, "x.npy does not exist"),
    "cut": (lambda p: break_file(p / "x.npy"), {}, "is not a whole .npy file of numbers"),
    "objects": (lambda p: np.save(p / "x.npy", np.array([{}] * 10)), {}, "is not a whole .npy file of numbers"),
    "no array": (lambda p: (p / "x.npy").write_bytes(b"junk"), {}, "it holds Python objects, or no array"),
    "shorter": (lambda p: np.save(p / "y.npy", np.arange(9)), {}, "y.npy has 9 rows, and x.npy 10; write as many"),
    "text": (lambda p: np.save(p / "y.npy", np.array(["a"] * 10)), {}, "y.npy holds <U1; write whole numbers"),
    "complex": (lambda p: np.save(p / "x.npy", np.ones((10, 2), complex)), {}, "x.npy holds complex128; write numbers"),
    "text x": (lambda p: np.save(p / "x.npy", np.full((10, 2), "1")), {}, "x.npy holds <U1; write numbers"),
    "flat": (lambda p: np.save(p / "x.npy", np.ones(10)), {}, r"x.npy has shape \(10,\)"),
    "empty": (lambda p: np.save(p / "x.npy", np.ones((0, 2))), {}, "x.npy holds no rows"),
    "negative": (lambda p: np.save(p / "y.npy", np.arange(10) - 1), {}, "holds classes from -1 to 8"),
    "not two": (lambda p: None, {"task": "binary"}, "data.task=binary takes 0 and 1"),
    "names": (lambda p: None, {"class_names": ["a"]}, "class_names has 1 name, and y.npy 10 classes"),
    "nan": (lambda p: np.save(p / "y.npy", np.full(10, np.nan)), {}, "values that are not finite"),
    "wide y": (lambda p: np.save(p / "y.npy", np.ones((10, 2, 2))), {}, r"y.npy has shape \(10, 2, 2\)"),
    "identifiers": (lambda p: np.save(p / "y.npy", np.arange(10) + 10**9), {}, "takes whole numbers from 0 to 99,999"),
    "byte order": (lambda p: np.save(p / "x.npy", np.ones((10, 2), ">f4")), {}, "in another machine's byte order"),
    "nan x": (lambda p: np.save(p / "x.npy", np.full((10, 2), np.nan)), {}, "x.npy holds values that are not finite"),
    "test alone": (lambda p: np.save(p / "test_y.npy", np.zeros(3, int)), {}, "test_x.npy does not exist; write it"),
    "other test": (lambda p: write(p, np.ones((3, 5)), np.zeros(3, int), "test_"), {}, "test_x.npy has rows of"),
    "more classes": (lambda p: write(p, np.ones((1, 2)), np.array([10]), "test_"), {}, "test_y.npy holds class 10"),
    "floats": (lambda p: np.save(p / "y.npy", np.arange(10) / 2), {"task": "multiclass"}, r"row 1, .* holds \[0.5\]"),
    "inf": (lambda p: np.save(p / "y.npy", np.full(10, np.inf)), {"task": "multiclass"}, r"takes whole numbers"),
    "2**63": (lambda p: np.save(p / "y.npy", np.arange(10, dtype=np.uint64) + 2**63), {}, "from 9223372036854775808"),
    "columns of test": (lambda p: regression_with_test(p), {}, "test_y.npy has 2 columns, and y.npy 1"),
    "columns": (lambda p: np.save(p / "y.npy", np.ones((10, 2), int)), {}, "has 2 columns; write one class a row"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(mistake: str, tmp_path: Path) -> None:
    spoil, settings, sentence = MISTAKES[mistake]
    write(tmp_path, RANDOM.normal(size=(10, 2)), np.arange(10))
    spoil(tmp_path)
    with pytest.raises(DataError, match=sentence) as caught:
        arrays(str(tmp_path), **settings)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("data=arrays", "data.path=nowhere")
    assert (outcome.code, outcome.out) == (2, "")
    assert "data.path=nowhere does not exist" in outcome.err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("folder", [False, True], ids=["array", "files"])
def test_images_larger_than_the_memory_they_may_take(folder: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure with 4 GB is taken by tests/bench/memory.py.

    Over its imports the training takes 0.6 GB, as pages that the worker shares count twice. Held as bytes these images
    would take at least 0.5 GB more, held as floats four times that.
    """
    path = Path(__file__).parents[1] / "bench" / "memory.py"
    monkeypatch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location("memory", path)
    assert spec is not None
    assert spec.loader is not None
    memory = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(memory)
    gigabytes, words = 0.5, ("data.loader=workers", "data.num_workers=1", "figures=false")
    size, imports, most = memory.measure(gigabytes, 6, *words, folder=folder)
    assert size > 0.95 * gigabytes * 2**30
    assert most - imports < 2**30
