import pytest
import torch

from dlrun.core.errors import DataError, RequestError
from dlrun.data.names import VOCABULARY, encode, names


def write(folder, train, test):
    for name, rows in (("train", train), ("test", test)):
        lines = [",".join(f'"{cell}"' for cell in row) for row in rows]
        (folder / f"names_{name}.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


TRAIN = [("Kern", "German"), ("Sato", "Japanese"), ("Maier", "German")]
TEST = [("Ito", "Japanese"), ("Feuerstein", "German")]


def test_codes_decode_to_the_names(tmp_path):
    splits = names(write(tmp_path, TRAIN, TEST))
    assert splits.spec.class_names == ("German", "Japanese")
    assert splits.spec.input_shape == (10,)
    assert splits.notes == ()
    for part, rows in ((splits.train, TRAIN), (splits.test, TEST)):
        codes, lengths = part.inputs
        assert codes.dtype == lengths.dtype == part.targets.dtype == torch.int64
        assert codes.shape == (len(rows), 10)
        decoded = ["".join(VOCABULARY[c] for c in row[:n]) for row, n in zip(codes, lengths, strict=True)]
        assert decoded == [name for name, _ in rows]
        assert all(not row[n:].any() for row, n in zip(codes, lengths, strict=True))
        assert [splits.spec.class_names[t] for t in part.targets] == [country for _, country in rows]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("José", "Jose"),
        ("Ångström", "Angstrom"),
        ("Weiß", "Wei?"),
        ("佐藤", "??"),
        (" Li ", "Li"),
        ("a\0b", "a?b"),
        ("ﬁn", "fin"),
    ],
)
def test_encode_writes_ascii(name, text):
    codes, lengths = encode([name])
    assert bytes(codes[0].tolist()).decode() == text
    assert lengths.tolist() == [len(text)]


def test_encode_pads():
    codes, lengths = encode(["ab", "abcd"], length=6)
    assert codes.tolist() == [[97, 98, 0, 0, 0, 0], [97, 98, 99, 100, 0, 0]]
    assert lengths.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("given", "length", "words"), [(["a", " "], None, "name 2 of 2 is empty"), (["abc"], 2, "longer than 2")]
)
def test_encode_refuses(given, length, words):
    with pytest.raises(RequestError, match=words):
        encode(given, length)


def test_vocabulary_stands_for_codes():
    assert len(VOCABULARY) == 128
    assert VOCABULARY[65:68] == ("A", "B", "C")
    assert VOCABULARY[0] == VOCABULARY[127] == ""
    assert VOCABULARY[32] == " "


def test_names_in_both_parts_are_told(tmp_path):
    splits = names(write(tmp_path, TRAIN, [*TEST, (" Kern ", "German")]))
    assert splits.notes == ("33.3 % of the test names are among the training names.",)


def test_rewritten_names_are_told(tmp_path):
    splits = names(write(tmp_path, [*TRAIN, ("Müller", "German")], [*TEST, ("Bücher", "German")]))
    assert splits.notes[0].startswith("2 names were rewritten")


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([*TRAIN, ("", "German")], TEST, r"names_train\.csv, line 4: the name is empty"),
        ([*TRAIN, ("Li", " ")], TEST, "line 4: the country is empty"),
        ([*TRAIN, ("Li",)], TEST, "line 4: 1 field,"),
        ([("Kern",), ("Sato",)], TEST, "line 1: 1 column,"),
        (TRAIN, [*TEST, ("Li", "Chinese")], r"names_test\.csv, line 3: country 'Chinese'"),
        ([TRAIN[0], TRAIN[2]], [TEST[1]], "only one class"),
    ],
)
def test_damaged_files(tmp_path, train, test, words):
    with pytest.raises(DataError, match=words):
        names(write(tmp_path, train, test))


def test_no_network(tmp_path, monkeypatch):
    def fail_to_connect(*_):
        raise OSError("unreachable")

    monkeypatch.setattr("dlrun.data.files.download.fetch", fail_to_connect)
    with pytest.raises(DataError, match=r"data=names .* put names_train\.csv\.gz there"):
        names(str(tmp_path))


def test_real_names(real_data):
    splits = names(real_data)
    assert (len(splits.train), len(splits.test), splits.spec.output_size) == (13_374, 6_700, 18)
    assert splits.test.targets.bincount().max().item() / 6_700 == pytest.approx(0.468, abs=0.0005)
    assert splits.notes[-1].startswith("15.6 % of the test names")
    codes, lengths = splits.train.inputs
    assert "".join(map(chr, codes[0, : lengths[0]])) == "Adsit"
    assert splits.spec.class_names[splits.train.targets[0]] == "Czech"
    assert int((codes > 0).sum()) == int(lengths.sum())
