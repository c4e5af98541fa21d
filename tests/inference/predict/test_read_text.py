"""Names and words: what they are read as, and what cannot be read."""

from pathlib import Path

import pytest

from dlrun.core.errors import DataError
from dlrun.data import names
from dlrun.data.spec import DataSpec
from dlrun.inference.predict.read_text import TextReader

NAMES = TextReader(DataSpec("tokens", (8,), "multiclass", 2, class_names=("x", "y"), vocabulary=names.VOCABULARY))
LETTERS = TextReader(DataSpec("tokens", (5,), "tagging", 4, vocabulary=("", "e", "h", "l", "o")))
WORDS = TextReader(DataSpec("tokens", (5,), "tagging", 2, vocabulary=("", "the", "cat")))


def codes(reader: TextReader, word: str) -> tuple[list[int], str]:
    (item,) = reader.read_items(word)
    prepared = reader.prepare(item)
    return prepared.inputs[0].tolist(), prepared.note


def test_texts_become_the_codes_of_the_training() -> None:
    assert codes(NAMES, "Kim") == ([75, 105, 109], "")
    assert codes(LETTERS, "hello") == ([2, 1, 3, 3, 4], "")
    assert codes(WORDS, "cat the") == ([2, 1], "")


def test_what_was_read_otherwise_is_said() -> None:
    assert codes(NAMES, "Müller")[1] == "read as Muller"
    assert codes(NAMES, "Łem")[1] == "read as ?em"
    assert codes(NAMES, "Schwarzenegger")[1] == "longer than any in training (14 letters, 8 there)"


@pytest.mark.parametrize(
    ("reader", "word", "message"),
    [
        (LETTERS, "help", "have no 'p'; they have e, h, l, o"),
        (NAMES, "", "empty"),
        (LETTERS, " ", "empty"),
        (NAMES, "x" * 1001, "1,001 letters, and the longest in training 8"),
    ],
)
def test_what_cannot_be_read(reader: TextReader, word: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        codes(reader, word)


def test_a_batch_is_padded_as_in_training_or_more() -> None:
    rows = [NAMES.prepare(item) for word in ("Kim", "Schwarzenegger") for item in NAMES.read_items(word)]
    padded, lengths = NAMES.collate(rows)
    assert (padded.shape, lengths.tolist()) == ((2, 14), [3, 14])
    assert padded[0, 3:].sum() == 0
    assert NAMES.collate(rows[:1])[0].shape == (1, 8)


def test_files_of_texts(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("Kim\n\nO'Neil, Shaq\r\n")
    items = list(NAMES.read_items(str(tmp_path / "list.txt")))
    path = tmp_path / "list.txt"
    assert [(item.name, item.content, item.label, item.where) for item in items] == [
        ("Kim", "Kim", None, f"{path}:1"),
        ("O'Neil, Shaq", "O'Neil, Shaq", None, f"{path}:3"),
    ]
    (tmp_path / "table.csv").write_text('Kim,Korean\n"O\'Neil, Shaq",Irish\n')
    items = list(NAMES.read_items(str(tmp_path / "table.csv")))
    assert [(item.content, item.label) for item in items] == [("Kim", "Korean"), ("O'Neil, Shaq", "Irish")]
    assert [item.content for item in NAMES.read_items(str(tmp_path))] == ["Kim", "O'Neil, Shaq"] * 2
    with pytest.raises(DataError, match=r"did you mean list\.txt"):
        list(NAMES.read_items(str(tmp_path / "lists.txt")))
    (tmp_path / "latin.txt").write_bytes(b"M\xfcller\n")
    with pytest.raises(DataError, match="UTF-8"):
        list(NAMES.read_items(str(tmp_path / "latin.txt")))
