"""One word to be turned into another, letter by letter: the smallest task for a recurrent net."""

import torch

from dlrun.core.errors import RequestError
from dlrun.data.spec import DataSpec, Split, Splits


def words(source: str = "hello", target: str = "ohlol") -> Splits:
    """One sequence, the letters of `source`, tagged at each position with the letter of `target` there.

    Vocabulary and tags are the sorted letters of both words; code 0 is the padding, letter i has code i + 1 and
    tag i. Codes int64 (1, letters), lengths (1,), targets int64 (1, letters); no test part. Raises RequestError
    for words of unequal length, empty words, and a pair with a single letter between them.
    """
    for key, word in (("source", source), ("target", target)):
        if not word:
            raise RequestError(f"data.{key} is empty; type a word, as in data.source=hello data.target=ohlol")
    if len(source) != len(target):
        raise RequestError(
            f"data.source={source} has {len(source)} letters and data.target={target} {len(target)}; "
            "type two words of the same length, as in data.source=hello data.target=ohlol"
        )

    letters = sorted({*source, *target})
    if len(letters) == 1:
        raise RequestError(
            f"data.source={source} and data.target={target} have one letter between them, so nothing to learn; "
            "type data.source=hello data.target=ohlol"
        )

    # Code 0 is the padding, so codes are one higher than tags.
    codes = torch.tensor([[letters.index(letter) + 1 for letter in source]])
    tags = torch.tensor([[letters.index(letter) for letter in target]])
    lengths = torch.tensor([len(source)])

    spec = DataSpec(
        "tokens",
        (len(source),),
        "tagging",
        len(letters),
        class_names=tuple(letters),
        vocabulary=("", *letters),
    )
    return Splits(Split((codes, lengths), tags), None, None, spec)
