"""Data held against their description: what is mended with a note, and what is a sentence that names the row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from dlrun.core.errors import DataError
from dlrun.data.inspection import Inspection, get_valid_targets, inspect_splits
from dlrun.data.origin import Origin
from dlrun.data.spec import DataSpec, Split, Splits

QUIET = ("tracking.graph=false", "figures=false", "trainer.max_steps=3")
VALUES = DataSpec("vector", (3,), "regression", 1)
COLUMNS = DataSpec("vector", (3,), "regression", 2, feature_names=("a", "b", "c"))
CLASSES = DataSpec("vector", (3,), "multiclass", 4)
TWO = DataSpec("vector", (3,), "binary", 1)
IMAGES = DataSpec("image", (1, 4, 4), "multiclass", 4)
TOKENS = DataSpec("tokens", (5,), "multiclass", 4, vocabulary=("", "a", "b"))
TAGS = DataSpec("tokens", (5,), "tagging", 4, vocabulary=("", "a", "b"))
ROWS = 12
X = torch.arange(36.0).view(ROWS, 3)
Y = torch.arange(ROWS) % 4
CODES, LENGTHS = torch.ones(ROWS, 5, dtype=torch.int64), torch.full((ROWS,), 5)


def inspect(spec: DataSpec, inputs: Any, targets: Any, **keys: Any) -> Splits:
    return inspect_splits(Splits(Split(inputs, targets), None, None, spec), Inspection("data=mine", spec, **keys))


def change(x: Tensor, value: float, *where: int) -> Tensor:
    x = x.clone()
    x[where] = value
    return x


@pytest.mark.parametrize(
    ("spec", "inputs", "targets", "wanted", "note"),
    [
        (VALUES, (X,), X.sum(1), X.sum(1, keepdim=True), "train targets of shape (rows,) were taken as (rows, 1)"),
        (VALUES, (X,), Y[:, None], Y[:, None].double(), "train targets were int64 and were taken as floats"),
        (TWO, (X,), Y > 1, (Y > 1).long(), "train targets were bool and were taken as class numbers (int64)"),
        (TWO, (X,), (Y > 1)[:, None].long(), (Y > 1).long(), "targets of shape (rows, 1) were taken as (rows,)"),
        (TWO, (X,), torch.eye(2)[Y % 2], Y % 2, "train targets of shape (rows, 2) were one-hot"),
        (CLASSES, (X,), Y.double(), Y, "train targets were float64 and were taken as class numbers"),
        (CLASSES, (X,), Y.int(), Y, "train targets were int32 and were taken as class numbers"),
        (CLASSES, (X,), torch.eye(4, dtype=torch.bool)[Y], Y, "train targets of shape (rows, 4) were one-hot"),
        (CLASSES, (X,), Y.numpy(), Y, "train targets were a NumPy array and were taken as a tensor"),
        (CLASSES, (X,), Y.tolist(), Y, "train targets were a list and were taken as a tensor"),
        (CLASSES, (X,), Y.numpy().astype(">u8"), Y, "train targets were uint64 and were taken as class numbers"),
        (TAGS, (CODES, LENGTHS), CODES.int(), CODES, "train targets were int32"),
    ],
)
def test_targets_that_lose_nothing_are_mended_and_said(
    spec: DataSpec, inputs: Any, targets: Any, wanted: Tensor, note: str
) -> None:
    splits = inspect(spec, inputs, targets)
    assert isinstance(splits.train, Split)
    assert splits.train.targets.dtype == wanted.dtype
    assert torch.equal(splits.train.targets, wanted)
    assert note in " ".join(splits.notes)
    assert all(remark.startswith("data=mine: ") for remark in splits.notes)


@pytest.mark.parametrize(
    ("spec", "inputs", "wanted", "note"),
    [
        (CLASSES, X, X, "train inputs stood in no tuple"),
        (CLASSES, [X], X, ""),
        (CLASSES, (X.numpy(),), X, "train inputs were a NumPy array"),
        (CLASSES, (X.byte(),), X, "train inputs were uint8 and were taken as float32, as they are"),
        (CLASSES, (X.long(),), X, "train inputs were int64 and were taken as float32, as they are"),
        (CLASSES, (X.double(),), X.double(), ""),  # the training precision is the device's business
        (IMAGES, (torch.ones(ROWS, 4, 4),), torch.ones(ROWS, 1, 4, 4), "(rows, 4, 4) were taken as (rows, 1, 4, 4)"),
        (DataSpec("vector", (1,), "multiclass", 4), (X[:, 0],), X[:, :1], "(rows,) were taken as (rows, 1)"),
        (TOKENS, (CODES.int(), LENGTHS), CODES, "train codes were int32 and were taken as int64"),
        (TOKENS, (CODES.float(), LENGTHS), CODES, "train codes were float32 and were taken as int64"),
        (TOKENS, (CODES,), CODES, ""),  # a net of the user's own may do without lengths
    ],
)
def test_inputs_that_lose_nothing_are_mended_and_said(spec: DataSpec, inputs: Any, wanted: Tensor, note: str) -> None:
    splits = inspect(spec, inputs, Y)
    assert isinstance(splits.train, Split)
    assert splits.train.inputs[0].dtype == wanted.dtype
    assert torch.equal(splits.train.inputs[0], wanted)
    assert note in " ".join(splits.notes)
    assert bool(splits.notes) == bool(note)


def test_right_data_are_handed_on_as_they_are() -> None:
    splits = Splits(Split((X,), Y), None, Split((X,), Y), CLASSES, ("a note",))
    looked_at = inspect_splits(splits, Inspection("data=mine", CLASSES))
    assert looked_at.notes == ("a note",)
    assert isinstance(looked_at.train, Split)
    assert looked_at.train.inputs[0].data_ptr() == X.data_ptr()
    assert looked_at.train.targets.data_ptr() == Y.data_ptr()


def test_whole_numbers_are_left_to_a_net_of_the_users_own() -> None:
    splits = inspect(CLASSES, (X.long(),), Y, keeps_integers=True)
    assert isinstance(splits.train, Split)
    assert splits.train.inputs[0].dtype == torch.int64  # it may have an Embedding
    splits = inspect(CLASSES, (X.byte(),), Y, keeps_integers=True)
    assert isinstance(splits.train, Split)
    assert splits.train.inputs[0].dtype == torch.float32  # of which no Embedding is made


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("spec", "inputs", "targets", "expected_message"),
    [
        (VALUES, (X,), torch.ones(ROWS, 2), "(rows, 2), and regression with spec.output_size=1 takes (rows, 1)"),
        (COLUMNS, (X,), torch.ones(ROWS), "(rows,), and regression with spec.output_size=2 takes (rows, 2)"),
        (VALUES, (X,), change(X[:, :1], NAN, 7), "row 7 of train has a target of nan; remove the row"),
        (COLUMNS, (X,), change(X[:, :2], INF, 7, 1), "row 7 of train has a target of inf in column 1"),
        (VALUES, (change(X, NAN, 9, 2),), X[:, :1], "row 9 of train holds nan in the inputs, column 2 (counted from"),
        (COLUMNS, (change(X, -INF, 9, 2),), X[:, :2], "row 9 of train holds -inf in the inputs, column 'c'"),
        (IMAGES, (change(torch.ones(ROWS, 1, 4, 4), NAN, 5, 0, 2, 3),), Y, "holds nan in the inputs at [0, 2, 3]"),
        (
            TWO,
            (X,),
            Y % 2 * 2 - 1,
            "row 0 of train has a target of -1, and binary with 2 classes takes 0 to 1; write (",
        ),
        (
            TWO,
            (X,),
            Y % 2 + 1,
            "row 1 of train has a target of 2, and binary with 2 classes takes 0 to 1; write target",
        ),
        (
            CLASSES,
            (X,),
            Y + 1,
            "row 3 of train has a target of 4, .* takes 0 to 3; write targets - 1, classes are coun",
        ),
        (CLASSES, (X,), change(Y, 2**53 + 1, 5), "row 5 of train has a target of 9007199254740993, and"),
        (CLASSES, (X,), change(Y, -1, 5), "row 5 of train has a target of -1, and multiclass with 4 classes takes 0"),
        (CLASSES, (X,), change(Y, -100, 5), "row 5 .* -100, .* remove the row, only tags can be left out"),
        (CLASSES, (X,), change(Y.double(), 0.5, 5), "row 5 of train has a target of 0.5, and multiclass takes whole"),
        (CLASSES, (X,), change(Y.float(), NAN, 5), "row 5 of train has a target of nan"),
        (CLASSES, (X,), np.full(ROWS, 2**63, np.uint64), "row 0 of train has a target of 9223372036854775807"),
        (CLASSES, (X,), torch.full((ROWS, 4), 0.25), "(rows, 4), and multiclass takes (rows,), one class number a row"),
        (CLASSES, (X,), Y[1:], "the train part has 12 rows of inputs and 11 of targets; give as many of each"),
        (CLASSES, (X, X[1:]), Y, "the train part has 11 rows of inputs[1] and 12 of targets"),
        (CLASSES, (X[:, :2],), Y, "(rows, 2), and spec.input_shape=(3,) says (rows, 3); write both alike"),
        (IMAGES, (torch.ones(ROWS, 4, 4, 1),), Y, "says (rows, 1, 4, 4); write x.permute(0, 3, 1, 2)"),
        (DataSpec("vector", (16,), "binary", 1), (torch.ones(ROWS, 4, 4),), Y % 2, "write x.flatten(1)"),
        (CLASSES, (X.to(torch.complex64),), Y, "a tensor of torch.complex64; return a dense one of real numbers"),
        (CLASSES, (np.array(["a"] * ROWS),), Y, "a ndarray of <U1; return a tensor of numbers"),
        (CLASSES, (), Y, "the train part has no inputs"),
        (CLASSES, (torch.tensor(1.0),), Y, "the train inputs are one number; give a row a sample"),
        (TOKENS, (change(CODES, 3, 6, 2), LENGTHS), Y, "row 6 of train has a code of 3, and there are 0 to 2"),
        (TOKENS, (CODES, change(LENGTHS, 0, 4)), Y, "row 4 of train has a length of 0, and there are 1 to 5"),
        (TOKENS, (CODES, change(LENGTHS, 6, 4)), Y, "row 4 of train has a length of 6, and there are 1 to 5"),
        (TOKENS, (CODES[:, 0], LENGTHS), Y, "the train codes have the shape (12,); tokens are codes (rows, length)"),
        (TOKENS, (CODES + 0.5, LENGTHS), Y, "row 0 of train holds 1.5 among its codes, which are whole numbers"),
        (
            TAGS,
            (CODES, LENGTHS),
            change(CODES, 4, 2, 3),
            "row 2 .* target of 4, .* takes 0 to 3, or -100 where padded",
        ),
        (TAGS, (CODES, LENGTHS), change(CODES, -1, 2, 3), "row 2 of train has a target of -1, and tagging"),
        (TAGS, (CODES, LENGTHS), Y, "(rows,), and tagging takes (rows, length), a class a position"),
    ],
)
def test_what_cannot_be_mended_is_a_sentence(spec: DataSpec, inputs: Any, targets: Any, expected_message: str) -> None:
    with pytest.raises(DataError) as caught:
        inspect(spec, inputs, targets)
    message = str(caught.value)
    assert message.startswith("data=mine: ")
    assert "\n" not in message
    rest = message
    for piece in expected_message.split(" .* "):
        assert piece in rest, message
        rest = rest[rest.index(piece) :]


def test_padded_tags_and_masked_targets_are_right() -> None:
    tags = change(CODES, -100, 3, 4)
    splits = inspect(TAGS, (CODES, LENGTHS), tags)
    assert isinstance(splits.train, Split)
    assert torch.equal(splits.train.targets, tags)
    gaps = change(X[:, :1], NAN, 7)
    splits = inspect(VALUES, (X,), gaps, masks_targets=True)
    (note,) = splits.notes
    assert "row 7 of train has a target of nan, say): that is left to the loss of your own" in note


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_every_part_is_looked_at_as_a_whole(name: str) -> None:
    rows = 20_000
    x = torch.zeros(rows, 3)
    x[rows - 1, 1] = NAN
    parts: dict[str, Any] = {part: Split((torch.zeros(rows, 3),), torch.zeros(rows).long()) for part in ("val", "test")}
    parts["train"] = parts["val"]
    parts[name] = Split((x,), torch.zeros(rows).long())
    with pytest.raises(DataError, match=f"row 19,999 of {name} holds nan in the inputs, column 1"):
        inspect_splits(Splits(parts["train"], parts["val"], parts["test"], CLASSES), Inspection("data=mine", CLASSES))


def test_large_finite_numbers_are_no_mistake() -> None:
    x = torch.full((ROWS, 3), 3e38)  # their sum overflows
    assert inspect(CLASSES, (x,), Y).notes == ()


def test_parts_without_rows() -> None:
    empty = Split((X[:0],), Y[:0])
    splits = inspect_splits(Splits(Split((X,), Y), empty, empty, CLASSES), Inspection("data=mine", CLASSES))
    assert splits.val is None
    assert splits.test is None
    assert splits.notes == ("data=mine: val and test left out, as there is no row",)
    with pytest.raises(DataError, match="data=mine has no training rows"):
        inspect_splits(Splits(empty, None, None, CLASSES), Inspection("data=mine", CLASSES))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vector", "spec is a str"),
        (DataSpec("table", (3,), "regression", 1), "spec.kind='table' is none; write one of vector, image, tokens"),  # type: ignore[arg-type]
        (DataSpec("vector", (3,), "classes", 1), "spec.task='classes' is none"),  # type: ignore[arg-type]
        (DataSpec("vector", (3,), "binary", 2), "spec.output_size=2, and for binary it is 1, the logit of class 1"),
        (DataSpec("vector", (3,), "regression", 0), "spec.output_size=0, and for regression it is at least 1"),
        (DataSpec("vector", (3,), "multiclass", 4, ("a", "b")), "spec.class_names has 2 names, and multiclass"),
    ],
)
def test_a_spec_that_contradicts_itself(spec: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        inspect_splits(Splits(Split((X,), Y), None, None, spec), Inspection("data=mine", spec))
    assert message in str(caught.value)


class Samples(Dataset[Any]):
    """A dataset of the user's own."""

    def __init__(self, make: Callable[[int], Any], targets: Any = None) -> None:
        self.make = make
        if targets is not None:
            self.targets = targets

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> Any:
        return self.make(row)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield X[0], 0


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Stream(), "the train part is an IterableDataset (Stream), whose rows can neither be counted nor"),
        (DataLoader(TensorDataset(X, Y)), "the train part is a DataLoader; return its dataset"),
        ((X, Y), "the train part is a tuple; return Split(inputs=(x,), targets=y), or a map-style Dataset"),
        (X, "the train part is a Tensor"),
        (Samples(lambda i: {"x": X[i]}), "row 0 of train is a dict; return a pair (input, target)"),
        (Samples(lambda i: X[i]), "row 0 of train is a Tensor; return a pair"),
        (Samples(lambda i: (X[i], "cat")), "row 0 of train holds a str; return tensors and numbers"),
        (Samples(lambda i: (object(), 1)), "row 0 of train makes no batch: "),
        (Samples(lambda i: X[i + 1] and 1), "row 0 of train cannot be read: RuntimeError: Boolean value of Tensor"),
        (Samples(lambda i: (X[i], {}[i])), "row 0 of train cannot be read: KeyError: 0"),
        (Samples(lambda i: (X[i], i)), "row 11 of train has a target of 11, and multiclass with 4 classes"),
        (Samples(lambda i: (X[i] / 0, 1)), "row 0 of train holds nan in the inputs, column 0"),
        (Samples(lambda i: (X[i][:2], 1)), "the train inputs have the shape (rows, 2), and spec.input_shape=(3,)"),
    ],
)
def test_datasets_that_are_none(part: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        inspect_splits(Splits(part, None, None, CLASSES), Inspection("data=mine", CLASSES))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_looking_at_a_dataset_draws_no_random_number() -> None:
    drawn = Samples(lambda i: (torch.rand(3) + float(np.random.rand()), 1))
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    inspect_splits(Splits(drawn, None, None, CLASSES), Inspection("data=mine", CLASSES))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("stated", "wanted"),
    [
        (None, None),
        (Y, Y),
        (Y.tolist(), Y),
        (Y.double(), Y),
        (["cat"] * ROWS, None),  # before a target_transform
        (Y + 1, None),
        (Y[1:], None),
        (3, None),
    ],
)
def test_targets_that_a_dataset_states_count_only_if_they_are_such(stated: Any, wanted: Tensor | None) -> None:
    valid = get_valid_targets(Samples(lambda i: (X[i], 1), stated), CLASSES)
    assert (valid is None) == (wanted is None)
    if valid is not None and wanted is not None:
        assert torch.equal(valid, wanted)


def test_a_sentence_names_the_file_where_the_rows_know_theirs() -> None:
    origin = Origin.from_lines("t.csv", list(range(2, 2 + ROWS)))
    splits = Splits(Split((change(X, NAN, 9, 0),), Y, origin), None, None, CLASSES)
    with pytest.raises(DataError, match=r"line 11 of t.csv holds nan"):
        inspect_splits(splits, Inspection("data=mine", CLASSES))


OWN = """
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset, random_split

from dlrun.data.spec import DataSpec, Split, Splits

x = torch.linspace(-1, 1, 100).unsqueeze(1)
VALUES = DataSpec("vector", (1,), "regression", 1)
CLASSES = DataSpec("vector", (1,), "multiclass", 2)


def flat():
    return Splits(Split((x,), 3 * x[:, 0] + 1), None, None, VALUES)


def infinite():
    y = 3 * x + 1
    y[77] = float("inf")
    return Splits(Split((x,), 3 * x + 1), None, Split((x,), y), VALUES)


class Pairs(Dataset):
    def __init__(self, bad):
        self.bad = bad

    def __len__(self):
        return 100

    def __getitem__(self, row):
        return x[row] * (float("nan") if row == self.bad else 1), int(row > 50)


def late():
    return Splits(Pairs(70), None, None, CLASSES)


def halves():
    whole = TensorDataset(x, (x[:, 0] > 0).long())
    train, test = random_split(whole, [80, 20])
    return Splits(train, None, test, CLASSES)


class Squeezed(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x):
        return self.layer(x).squeeze(1)
"""


@pytest.fixture
def run_with_data(dlrun: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "mine.py").write_text(OWN)

    def run(function: str, *words: str) -> Any:
        import sys

        sys.modules.pop("mine", None)
        return dlrun(f"data._target_=mine.{function}", *QUIET, *words)

    return run


@pytest.mark.slow
def test_flat_targets_are_learned_and_not_stretched(run_with_data: Callable[..., Any]) -> None:
    words = ("model=linear", "trainer.max_steps=null", "trainer.epochs=60", "optimizer.lr=0.1")
    outcome = run_with_data("flat", *words)
    assert outcome.code == 0, outcome.err
    assert outcome.result["metrics"]["val/r2"] > 0.99  # -0.04 where (N,) and (N, 1) make (N, N)
    assert "train targets of shape (rows,) were taken as (rows, 1)" in " ".join(outcome.out.split())


@pytest.mark.parametrize("look", ["true", "false"])
def test_a_net_that_answers_another_shape_never_trains(run_with_data: Callable[..., Any], look: str) -> None:
    outcome = run_with_data("flat", "model._target_=mine.Squeezed", f"preflight={look}")
    if look == "true":
        assert outcome.code == 2
        assert "the model's output has the shape (2,), and regression with 1 outputs needs (2, 1)" in outcome.err
        return
    assert outcome.code == 1
    message = "the model's outputs (64,) and the targets (64, 1) of a batch differ in shape; return spec.output_size=1"
    assert message in " ".join(outcome.err.split())


@pytest.mark.parametrize("command", [("check",), ()])
def test_a_bad_row_of_the_test_part_is_found_before_the_first_step(
    dlrun: Callable[..., Any], run_with_data: Callable[..., Any], tmp_path: Path, command: tuple[str, ...]
) -> None:
    outcome = dlrun(*command, "data._target_=mine.infinite", "model=linear", *QUIET)
    assert (outcome.code, outcome.out) == (2, "")
    assert "data=infinite: row 77 of test has a target of inf" in outcome.err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("loader", ["memory", "workers"])
def test_a_dataset_is_looked_at_as_it_is_read(run_with_data: Callable[..., Any], loader: str) -> None:
    words = ("data.batch_size=10", f"data.loader={loader}", "data.num_workers=0", "data.shuffle=false")
    outcome = run_with_data("late", *words, "trainer.max_steps=null", "trainer.epochs=1", "data.val_fraction=0")
    assert "row 70 of train holds nan in the inputs, column 0" in " ".join(outcome.err.split())
    assert outcome.code == (2 if loader == "memory" else 1)  # in memory before the first step, else at its batch


@pytest.mark.parametrize("loader", ["memory", "workers"])
def test_the_parts_that_torch_draws_are_datasets_like_others(run_with_data: Callable[..., Any], loader: str) -> None:
    outcome = run_with_data("halves", "model=linear", f"data.loader={loader}", "data.num_workers=0")
    assert outcome.code == 0, outcome.err
    assert isinstance(Subset(TensorDataset(X), [0]).__getitems__([0]), list)  # whose batches come as lists of samples


@pytest.mark.parametrize(("file", "row"), [("x", 7001), ("val_x", 3), ("test_x", 5)])
def test_a_number_that_is_none_is_found_in_every_file(
    dlrun: Callable[..., Any], tmp_path: Path, file: str, row: int
) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    for name, count in (("", 8000), ("val_", 50), ("test_", 50)):
        x = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
        if f"{name}x" == file:
            x[row, 2] = np.nan
        np.save(folder / f"{name}x.npy", x)
        np.save(folder / f"{name}y.npy", np.arange(count) % 2)
    outcome = dlrun("data=arrays", "data.path=rows", "model=linear", *QUIET)
    assert outcome.code == 2
    message = f"row {row:,} of rows/{file}.npy holds nan in the inputs, column 2 (counted from 0)"
    assert message in " ".join(outcome.err.split())


def test_built_in_data_go_through_it_too(dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def look(splits: Splits, inspection: Inspection) -> Splits:
        looked.append(inspection.data)
        return inspect_splits(splits, inspection)

    monkeypatch.setattr("dlrun.experiment.builder.build.inspect_splits", look)
    assert dlrun("check", "data=digits", "model=linear").code == 0
    assert looked == ["data=digits"]
