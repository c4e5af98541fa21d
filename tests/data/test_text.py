import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlrun.core.errors import DataError, RequestError
from dlrun.data.spec import Split
from dlrun.data.text import hash_files, text


def write_table(path: Path, rows: Sequence[Sequence[Any]], names: Sequence[str] = ("review", "label")) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return str(path)


def write_folder(folder: Path, texts: dict[str, list[str]]) -> str:
    for name, lines in texts.items():
        (folder / name).mkdir(parents=True)
        for number, line in enumerate(lines):
            (folder / name / f"{number}.txt").write_text(line, encoding="utf-8")
    return str(folder)


def list_texts(split: Any, vocabulary: tuple[str, ...]) -> list[list[str]]:
    assert isinstance(split, Split)
    codes, lengths = split.inputs
    return [[vocabulary[c] for c in row[:n]] for row, n in zip(codes.tolist(), lengths.tolist(), strict=True)]


ROWS = [(f"good film number{i} 好", "pos") for i in range(30)]
ROWS += [(f"bad Film number{i}", "neg") for i in range(30, 50)]


def test_a_table_gives_codes_classes_and_stratified_parts(tmp_path: Path) -> None:
    splits = text(write_table(tmp_path / "t.csv", ROWS), val_fraction=0.1)
    spec = splits.spec
    assert spec.kind == "tokens"
    assert spec.task == "binary"
    assert spec.class_names == ("neg", "pos")
    # Every word but the numbers comes often.
    assert spec.vocabulary == ("", "\ufffd", "film", "good", "好", "bad")
    assert spec.input_shape == (4,)
    sizes = [len(part.targets) for part in (splits.train, splits.val, splits.test)]  # type: ignore[union-attr]
    assert sizes == [36, 4, 10]
    assert splits.test.targets.double().mean() == pytest.approx(0.6)  # type: ignore[union-attr]
    for part in (splits.train, splits.val, splits.test):
        for words, target in zip(list_texts(part, spec.vocabulary), part.targets.tolist(), strict=True):  # type: ignore[union-attr]
            assert words[:3] == [["bad", "good"][target], "film", "\ufffd"]
    assert any("column 'review' is the text" in note for note in splits.notes)


def test_the_vocabulary_is_that_of_the_training_rows(tmp_path: Path) -> None:
    splits = text(write_table(tmp_path / "t.csv", ROWS), min_count=1)
    trained = {word for row in list_texts(splits.train, splits.spec.vocabulary) for word in row}
    assert set(splits.spec.vocabulary[2:]) == trained
    assert "\ufffd" in {word for row in list_texts(splits.test, splits.spec.vocabulary) for word in row}
    assert any("% of the words of the test texts count as unknown" in note for note in splits.notes)
    assert len(text(write_table(tmp_path / "t.csv", ROWS), vocabulary_size=3).spec.vocabulary) == 5


def test_long_texts_are_cut_with_a_note(tmp_path: Path) -> None:
    splits = text(write_table(tmp_path / "t.csv", ROWS), max_length=2)
    assert splits.spec.input_shape == (2,)
    assert any("100.0 % of the texts are longer than 2 words and were cut there" in note for note in splits.notes)


def test_a_folder_gives_the_same_as_a_table(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", {"neg": [r[0] for r in ROWS[30:]], "pos": [r[0] for r in ROWS[:30]]})
    table = write_table(tmp_path / "t.csv", [*ROWS[30:], *ROWS[:30]])
    # Files come in the order of their names.
    names = sorted(range(20), key=str), sorted(range(30), key=str)
    order = np.array([*names[0], *(20 + np.array(names[1]))])
    of_files = text(folder, test_fraction=0)
    of_rows = text(table, test_fraction=0)
    assert of_files.spec.vocabulary == of_rows.spec.vocabulary
    assert of_files.spec.class_names == of_rows.spec.class_names
    assert torch.equal(of_files.train.inputs[0], of_rows.train.inputs[0][order])  # type: ignore[union-attr]
    assert torch.equal(of_files.train.targets, of_rows.train.targets[order])  # type: ignore[union-attr]
    assert of_files.train.origin.get_source(0).endswith("neg/0.txt")  # type: ignore[union-attr]


def test_folders_of_parts_are_the_parts(tmp_path: Path) -> None:
    texts = {"pos": ["good one", "good two"], "neg": ["bad one", "bad"], "unsup": ["any"]}
    write_folder(tmp_path / "f" / "Training_set", texts)
    (tmp_path / "f" / "urls.lst").write_text("x")
    write_folder(tmp_path / "f" / "test", {"pos": ["good"], "neg": ["bad"]})
    (tmp_path / "f" / "Training_set" / "pos" / "more.md").write_text("x")
    (tmp_path / "f" / "test" / "neg" / "1.txt").write_bytes("schön schlecht".encode("latin-1"))
    splits = text(str(tmp_path / "f"), classes=["neg", "pos"], min_count=1, val_fraction=0.25)
    assert [len(part.targets) for part in (splits.train, splits.val, splits.test)] == [3, 1, 3]  # type: ignore[union-attr]
    notes = " ".join(splits.notes)
    assert "files that are no .txt were not read: 1 .md" in notes
    assert "not in data.classes: unsup" in notes
    assert "not read (beside the parts): urls.lst" in notes
    assert "1 as cp1252" in notes
    with pytest.raises(RequestError, match=r"data\.classes names ng, .* did you mean neg"):
        text(str(tmp_path / "f"), classes=["ng"])


def test_targets_may_be_values_or_labels(tmp_path: Path) -> None:
    rows = [(f"film {'good ' * (i % 5)}", i % 5 + 0.5, i % 2, 1 - i % 2) for i in range(40)]
    path = write_table(tmp_path / "t.csv", rows, ("body", "score", "a", "b"))
    splits = text(path, text="body", target="score")
    assert splits.spec.task == "regression"
    values = splits.train.targets.numpy()  # type: ignore[union-attr]
    assert splits.spec.target_mean == pytest.approx((values.mean(),))
    assert splits.spec.target_std == pytest.approx((values.std(),))
    assert text(path, text="body", target=["a", "b"]).spec.task == "multilabel"
    joined = text(path, text=["body", "a"], target="score", test_fraction=0)
    assert list_texts(joined.train, joined.spec.vocabulary)[1] == ["film", "good", "1"]


def test_parts_in_files_and_folds(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", ROWS)
    given = write_table(tmp_path / "v.csv", [("pos", "a new good film"), ("neg", "bad")], ("label", "review"))
    splits = text(path, text="review", target="label", val_path=given, test_path=given)
    assert [len(part.targets) for part in (splits.train, splits.val, splits.test)] == [50, 2, 2]  # type: ignore[union-attr]
    assert splits.val.targets.tolist() == [1, 0]  # type: ignore[union-attr]
    rows = [text(path, folds=5, fold=fold).test.origin.to_columns()["row"] for fold in range(5)]  # type: ignore[union-attr]
    assert sorted(row for part in rows for row in part) == list(range(50))


def test_other_files_are_read_as_in_training(tmp_path: Path) -> None:
    splits = text(write_table(tmp_path / "t.csv", ROWS))
    saved = {**splits.spec.preprocessing, "vocabulary": list(splits.spec.vocabulary)}
    other = write_table(tmp_path / "o.csv", [("x", "pos", "good good"), ("y", "neg", "BAD")], ("z", "label", "review"))
    again = text(other, test_fraction=0, preprocessing=saved, tokens="characters")
    assert again.spec.vocabulary == splits.spec.vocabulary
    assert list_texts(again.train, again.spec.vocabulary) == [["good", "good"], ["bad"]]
    assert hash_files({"path": str(tmp_path / "t.csv")}) == saved["sha256"]
    assert hash_files({"path": other}) != saved["sha256"]
    for name, value in (("text_columns", 3), ("text_indices", ["0"]), ("has_names", None)):
        with pytest.raises(DataError, match=f"damaged: {name} is "):
            text(other, preprocessing={**saved, name: value})


@pytest.mark.parametrize(
    ("rows", "words", "message"),
    [
        (
            [("a", "x"), (" ", "y"), ("", "y")],
            {"text": 0, "target": 1},
            r"t\.csv, line 3: column 'review' is empty; line 4: .* write a text",
        ),
        ([("a", "x"), ("", "y")], {"target": "lable"}, r"data\.target=lable is no column .*label"),
        ([("a", "x"), ("b", "y")], {"text": "revew"}, r"data\.text=revew is no column"),
        ([("a", "x"), ("b", "y")], {"text": "label", "target": "label"}, r"both name column 'label'"),
        ([("a", "x"), ("b", "")], {}, r"line 3: column 'label' is empty"),
        ([("a", "x"), ("b", "y")], {"tokens": "letters"}, r"data\.tokens=letters is no choice"),
        ([("a", "x"), ("b", "y")], {"max_length": 0}, r"data\.max_length=0 must be at least 1"),
        ([("a", "x"), ("b", "y")], {"classes": ["x"]}, r"data\.classes is for a folder"),
        ([("1", "2"), ("3", "4")], {}, r"no column of texts"),
    ],
)
def test_what_cannot_be_used_is_a_sentence(tmp_path: Path, rows: Any, words: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        text(write_table(tmp_path / "t.csv", rows), header=True, **words)


def test_what_a_folder_lacks_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"a holds no \.txt files"):
        text(str(tmp_path))
    (tmp_path / "a" / "x.txt").write_text("  ")
    with pytest.raises(DataError, match=r"x\.txt, line 1: column 'text' is empty"):
        text(str(tmp_path))
    with pytest.raises(RequestError, match=r"data\.target=label is for tables"):
        text(str(tmp_path), target="label")
    with pytest.raises(DataError, match="missing"):
        text(str(tmp_path / "missing"))


def test_quotation_marks_of_tab_separated_texts_need_not_pair(tmp_path: Path) -> None:
    lines = ["ham\tGo on", 'spam\t"Free entry', "ham\tok", "spam\tcash"]
    (tmp_path / "sms.tsv").write_text("\n".join(lines) + "\n")
    splits = text(str(tmp_path / "sms.tsv"), text=1, target=0, header=False, test_fraction=0, min_count=1)
    assert list_texts(splits.train, splits.spec.vocabulary)[1] == ['"', "free", "entry"]
    assert any("quotation marks do not pair" in note for note in splits.notes)


def test_one_class_alone_is_nothing_to_learn(tmp_path: Path) -> None:
    splits = text(write_table(tmp_path / "t.csv", [("a", "x"), ("b", "x"), ("c", "x")]), text="review", target="label")
    assert "only one class" in splits.nothing_to_learn
