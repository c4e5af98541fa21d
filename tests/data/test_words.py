import pytest
import torch

from dlrun.core.errors import RequestError
from dlrun.data.words import words


@pytest.mark.parametrize(("source", "target"), [("hello", "ohlol"), ("abba", "noon"), ("été", "ici"), ("aa", "ab")])
def test_codes_and_tags_spell_the_words(source, target):
    splits = words(source, target)
    (codes, lengths), tags = splits.train.inputs, splits.train.targets
    spec = splits.spec
    assert codes.dtype == lengths.dtype == tags.dtype == torch.int64
    assert codes.shape == tags.shape == (1, len(source)) == (1, *spec.input_shape)
    assert lengths.tolist() == [len(source)]
    assert "".join(spec.vocabulary[c] for c in codes[0]) == source
    assert "".join(spec.class_names[t] for t in tags[0]) == target
    assert spec.vocabulary == ("", *sorted(set(source + target))) == ("", *spec.class_names)
    assert (spec.kind, spec.task, spec.output_size) == ("tokens", "tagging", len(set(source + target)))
    assert splits.val is splits.test is None


def test_hello_has_four_letters():
    assert words().spec.class_names == ("e", "h", "l", "o")


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("hello", "olol", r"data\.source=hello has 5 letters and data\.target=olol 4"),
        ("", "a", r"data\.source is empty"),
        ("a", "", r"data\.target is empty"),
        ("aaa", "aaa", "nothing to learn"),
    ],
)
def test_impossible_pairs(source, target, message):
    with pytest.raises(RequestError, match=message):
        words(source, target)
