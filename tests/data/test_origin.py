"""Every row knows its place in the user's files, through every split, shuffle and limit."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_formats import write_folder

from dlrun.data.arrays import arrays
from dlrun.data.datasets import count_rows, get_origin, hold_out, join_parts, take
from dlrun.data.folders import image_folder
from dlrun.data.images import digits
from dlrun.data.origin import Origin
from dlrun.data.spec import Split, Splits
from dlrun.data.tabular import csv as read_csv

QUIET = ("tracking.graph=false", "figures=false", "trainer.max_steps=2")


def test_rows_of_one_source() -> None:
    origin = Origin.from_position("x.npy", 7002)
    assert (origin.format_label(7001), origin.format_short_label(7001)) == ("row 7,001 of x.npy", "row 7001")
    some = origin.take(torch.tensor([5, 3]))
    assert [some.format_label(i) for i in range(2)] == ["row 5 of x.npy", "row 3 of x.npy"]
    assert some.take(torch.tensor([1])).to_columns() == {"row": [3], "source": ["x.npy"]}
    assert Origin.from_position("", 3).format_label(1) == "row 1"


def test_lines_of_a_text_file() -> None:
    origin = Origin.from_lines("t.csv", [2, 3, 6]).take(torch.tensor([2, 0]))
    assert [origin.format_label(i) for i in range(2)] == ["line 6 of t.csv", "line 2 of t.csv"]
    assert origin.to_columns() == {"row": [2, 0], "source": ["t.csv", "t.csv"], "line": [6, 2]}


def test_a_file_each() -> None:
    origin = Origin.from_files(np.array([b"cat/1.png", b"dog/2.png"])).take(torch.tensor([1]))
    assert (origin.format_label(0), origin.format_short_label(0)) == ("dog/2.png", "2.png")
    assert origin.to_columns() == {"row": [1], "source": ["dog/2.png"]}


def test_several_joined() -> None:
    files = Origin.from_files(np.array([b"a", b"b", b"c"]))
    halves = [files.take(torch.tensor([2])), files.take(torch.tensor([0, 1]))]
    assert Origin.join(halves).sources is files.sources  # however many, they are not copied
    assert Origin.join(halves).to_columns() == {"row": [2, 0, 1], "source": ["c", "a", "b"]}
    mixed = Origin.join([Origin.from_lines("t.csv", [1, 2]), Origin.from_position("test", 2).take(torch.tensor([1]))])
    assert mixed.to_columns() == {"row": [0, 1, 1], "source": ["t.csv", "t.csv", "test"]}
    lines = Origin.join([Origin.from_lines("a.csv", [1]), Origin.from_lines("b.csv", [4])])
    assert lines.to_columns() == {"row": [0, 0], "source": ["a.csv", "b.csv"], "line": [1, 4]}


class Numbers(torch.utils.data.Dataset[Any]):
    """A dataset that says nothing of where its rows are from."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, row: int) -> Any:
        return torch.tensor([float(row)]), row


@pytest.mark.parametrize("lazy", [False, True])
def test_rows_are_numbered_through_validation_limits_and_joining(lazy: bool) -> None:
    number = torch.arange(10)
    part: Any = Numbers() if lazy else Split((number.float()[:, None],), number)
    train, val = hold_out(part, 0.3, seed=1)
    assert val is not None
    few = take(train, torch.tensor([6, 1]))
    joined = join_parts({"train": few, "val": val, "test": part})
    columns = get_origin(joined).to_columns()
    assert columns["source"] == ["train"] * 5 + ["test"] * 10
    samples: Any = joined
    values = [int(samples[i][1]) for i in range(15)] if lazy else joined.targets.tolist()  # type: ignore[union-attr]
    assert columns["row"] == values


def agree_with_file(splits: Splits, value_of: Callable[[str, int, int | None], float]) -> None:
    """The first input of each row is what its source has there. value_of: of source, row and line."""
    labels = []
    for part in (splits.train, splits.val, splits.test):
        if part is None:
            continue
        columns = get_origin(part).to_columns()
        lines = columns.get("line", [None] * count_rows(part))
        rows: Any = part
        for i, place in enumerate(zip(columns["source"], columns["row"], lines, strict=True)):
            x = part.inputs[0][i] if isinstance(part, Split) else rows[i][0]
            assert float(x.flatten()[0]) == pytest.approx(value_of(*place), abs=1e-6)
            labels.append(place[:2])
    assert len(set(labels)) == len(labels)


def test_tables_name_lines(tmp_path: Path) -> None:
    text = "a,b,kind\n" + "".join(f"{i},{i % 5},{'xyz'[i % 3]}\n" + "\n" * (i % 2) for i in range(60))
    (tmp_path / "t.csv").write_text(text)
    splits = read_csv(str(tmp_path / "t.csv"), normalize=False)
    lines = text.splitlines()
    agree_with_file(splits, lambda _, row, line: float(lines[line - 1].split(",")[0]))  # type: ignore[operator]
    agree_with_file(splits, lambda _, row, line: float(row))


def test_arrays_name_their_index(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    for name, part in (("", x), ("val_", x[:7] + 1)):
        np.save(tmp_path / f"{name}x.npy", part)
        np.save(tmp_path / f"{name}y.npy", np.arange(len(part)) % 3)
    splits = arrays(str(tmp_path), normalize=False)
    agree_with_file(splits, lambda source, row, _: float(np.load(source)[row, 0]))


@pytest.mark.parametrize("in_memory", [True, False])
def test_pictures_name_their_files(tmp_path: Path, in_memory: bool) -> None:
    from dlrun.data.files.picture import read_picture

    write_folder(tmp_path / "photos", {"dog": 5, "cat": 10})
    splits = image_folder(str(tmp_path / "photos"), 8, [0.0] * 3, [1.0] * 3, in_memory=in_memory)
    first = lambda source: float(read_picture(Path(source), 8, False).flatten()[0]) / 255  # noqa: E731
    agree_with_file(splits, lambda source, row, _: first(source))


def test_digits_name_their_index() -> None:
    from sklearn.datasets import load_digits

    pixels, _ = load_digits(return_X_y=True)
    splits = digits(image_size=8, mean=0.0, std=1.0)
    agree_with_file(splits, lambda source, row, _: float(pixels[row, 0]) / 16)


def predictions(run: Path) -> list[dict[str, str]]:
    """predictions.csv of the newest evaluation."""
    folder = max((run / "eval").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))


def write_table(path: Path, kinds: str, start: int = 0) -> list[str]:
    """A table with a line for each letter, the letter being the class; returns the file's lines."""
    rows = [f"{start + i},{i % 7},{kind}" for i, kind in enumerate(kinds)]
    path.write_text("\n".join(["a,b,kind", *rows]) + "\n")
    return path.read_text().splitlines()


@pytest.fixture
def train_on(dlrun: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    write_table(tmp_path / "t.csv", "xyz" * 20)
    words = ("data=csv", "data.path=t.csv", "data.train_rows=30", "model=linear", "hydra.run.dir=run", *QUIET)
    assert dlrun(*words).code == 0
    return dlrun


@pytest.mark.slow
def test_the_test_rows_of_a_run_are_lines_of_its_table(train_on: Callable[..., Any], tmp_path: Path) -> None:
    lines = (tmp_path / "t.csv").read_text().splitlines()
    for split, count in (("test", 12), ("val", 5), ("train", 30), ("all", 47)):
        assert train_on("eval", "run", f"split={split}", "figures=false").code == 0
        rows = predictions(tmp_path / "run")
        assert list(rows[0]) == ["row", "true", "predicted", "probability", "source", "line"]
        assert len({row["row"] for row in rows}) == len(rows) == count
        assert all(lines[int(row["line"]) - 1].endswith(f",{row['true']}") for row in rows)
        assert all(lines[int(row["row"]) + 1].endswith(f",{row['true']}") for row in rows)
        assert {row["source"] for row in rows} == {"t.csv"}


@pytest.mark.slow
@pytest.mark.parametrize("kinds", ["zyx" * 20 + "z", "y", "yyyy", "xyyyyy", "zx" * 30])
def test_another_table_is_read_whole(train_on: Callable[..., Any], tmp_path: Path, kinds: str) -> None:
    lines = write_table(tmp_path / "other.csv", kinds, start=1000)
    outcome = train_on("eval", "run", "data.path=other.csv", "figures=false")
    assert outcome.code == 0, outcome.err
    assert f"all, as the run has not seen them, {len(kinds)} rows" in outcome.out
    rows = predictions(tmp_path / "run")
    assert [row["true"] for row in rows] == list(kinds)
    assert [int(row["row"]) for row in rows] == list(range(len(kinds)))
    assert [lines[int(row["line"]) - 1].split(",")[2] for row in rows] == list(kinds)


@pytest.mark.slow
def test_the_own_table_is_known_in_another_place(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", "xyz" * 20)
    assert dlrun("data=csv", "data.path=t.csv", "model=linear", "hydra.run.dir=run", *QUIET).code == 0
    (tmp_path / "t.csv").rename(tmp_path / "moved.csv")
    outcome = dlrun("eval", "run", "data.path=moved.csv", "figures=false")
    assert "csv: test, 12 rows" in outcome.out
    assert "the same as recorded in training" in outcome.out
    write_table(tmp_path / "moved.csv", "xyz" * 20, start=5)  # as many rows of the same classes, and others
    outcome = dlrun("eval", "run", "data.path=moved.csv", "figures=false")
    assert "all, as the run has not seen them, 60 rows" in outcome.out
    write_table(tmp_path / "t.csv", "xyz" * 20 + "y")  # the table has grown since
    outcome = dlrun("eval", "run", "figures=false")
    assert "all, as the run has not seen them, 61 rows" in outcome.out


@pytest.mark.slow
def test_other_arrays_and_pictures_are_read_whole(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    for name, count in (("rows", 40), ("others", 9)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", np.random.default_rng(0).normal(size=(count, 3)))
        np.save(tmp_path / name / "y.npy", np.arange(count) % 3 if count > 9 else np.full(count, 2))
    assert dlrun("data=arrays", "data.path=rows", "model=linear", "hydra.run.dir=run", *QUIET).code == 0
    assert dlrun("eval", "run", "data.path=others", "figures=false").code == 0
    rows = predictions(tmp_path / "run")
    assert [(row["row"], row["true"], row["source"]) for row in rows] == [
        (str(i), "2", "others/x.npy") for i in range(9)
    ]
    write_folder(tmp_path / "photos", {"cat": 6, "dog": 6})
    write_folder(tmp_path / "more", {"dog": 1})
    words = ("data.image_size=8", "model=linear", "hydra.run.dir=seen", *QUIET)
    assert dlrun("data=image_folder", "data.path=photos", *words).code == 0
    for in_memory in ("true", "false"):
        outcome = dlrun("eval", "seen", "data.path=more", f"data.in_memory={in_memory}", "figures=false")
        assert outcome.code == 0, outcome.err
        (row,) = predictions(tmp_path / "seen")
        assert (row["true"], row["source"]) == ("dog", "more/dog/0.png")


@pytest.mark.slow
def test_data_of_ones_own_are_numbered_as_their_function_gives_them(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "numbered_rows.py").write_text(
        "import torch\n"
        "from dlrun.data.spec import DataSpec, Split, Splits\n"
        "def rows():\n"
        "    y = torch.arange(40.0)[:, None]\n"
        "    spec = DataSpec('vector', (1,), 'regression', 1)\n"
        "    return Splits(Split((y,), y), None, Split((y[:4],), y[:4] + 100), spec)\n"
    )
    words = ("data._target_=numbered_rows.rows", "data.val_fraction=0.2", "model=linear", "hydra.run.dir=run", *QUIET)
    assert dlrun(*words).code == 0
    assert dlrun("eval", "run", "split=all", "trusted_modules=[numbered_rows]", "figures=false").code == 0
    rows = predictions(tmp_path / "run")
    assert [row["source"] for row in rows] == ["train"] * 40 + ["test"] * 4
    assert all(float(row["true"]) == int(row["row"]) + 100 * (row["source"] == "test") for row in rows)


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["7", "007"], ("007", "7")),
        (["9007199254740993", "9007199254740992"], ("9007199254740992", "9007199254740993")),
        (["18446744073709551616", "18446744073709551617"], ("18446744073709551616", "18446744073709551617")),
        (["1.0", "0"], ("0", "1")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["1e0", "0.5"], ("0.5", "1")),
    ],
)
def test_classes_are_what_is_written(tmp_path: Path, cells: list[str], names: tuple[str, ...]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("".join(f"{i},{i * i},{cells[i % len(cells)]}\n" for i in range(30)))
    splits = read_csv(str(path), task="multiclass", test_fraction=0)
    assert splits.spec.class_names == names
    wanted = [names.index({"1.0": "1", "1e0": "1"}.get(cell, cell)) for cell in cells]
    assert isinstance(splits.train, Split)
    assert splits.train.targets.tolist() == [wanted[i % len(cells)] for i in range(30)]


@pytest.mark.slow
def test_an_exported_script_reads_the_same_classes(
    dlrun: Callable[..., Any], python: Callable[..., Any], tmp_path: Path
) -> None:
    cells = ["7", "007", "9007199254740993", "9007199254740992"]
    (tmp_path / "t.csv").write_text("a,b,kind\n" + "".join(f"{i},{i % 7},{cells[i % 4]}\n" for i in range(60)))
    # As runs of before data=table have saved it.
    (tmp_path / "own" / "data").mkdir(parents=True)
    block = {"_target_": "dlrun.data.tabular.csv", "path": "t.csv", "target": -1, "task": "multiclass", "header": None}
    block |= {"delimiter": ",", "test_fraction": 0.2, "normalize": True, "seed": 0}
    (tmp_path / "own" / "data" / "old.yaml").write_text(json.dumps(block))
    outcome = dlrun("--config-dir", "own", "data=old", "model=linear", "hydra.run.dir=run", *QUIET)
    assert outcome.code == 0, outcome.err
    assert dlrun("export", "run", "format=python").code == 0
    script = python("run/export/python/train.py")
    assert script.code == 0, script.err
    assert f"weights {outcome.result['weights_sha256']} as in the run" in script.out


@pytest.mark.parametrize("kind", ["table", "arrays", "folder"])
def test_nothing_is_learned_of_one_class_and_all_is_evaluated(
    dlrun: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    if kind == "table":
        write_table(tmp_path / "one.csv", "xxxx")
        words, message = ("data=csv", "data.path=one.csv"), "'kind', is 'x' in every row, so there is only one class"
    elif kind == "arrays":
        (tmp_path / "one").mkdir()
        np.save(tmp_path / "one" / "x.npy", np.ones((5, 2)))
        np.save(tmp_path / "one" / "y.npy", np.ones(5, int))
        words, message = ("data=arrays", "data.path=one"), "class 1 in every row, so there is nothing to tell apart"
    else:
        write_folder(tmp_path / "one", {"cat": 2})
        words, message = ("data=image_folder", "data.path=one"), "has only one class folder, 'cat', so there is nothing"
    for command in ((), ("check",)):
        outcome = dlrun(*command, *words, "model=linear", *QUIET)
        assert outcome.code == 2
        assert message in " ".join(outcome.err.split())


def test_a_table_of_one_row_is_not_trained_on(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    write_table(tmp_path / "one.csv", "x")
    outcome = dlrun("data=csv", "data.path=one.csv", "model=linear")
    assert outcome.code == 2
    assert "one.csv has one row only, at least two are needed" in outcome.err
