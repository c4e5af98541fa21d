import re
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch

from dlrun.core.errors import DataError
from dlrun.data.tokens import UNKNOWN, UNKNOWN_TOKEN, WORD_PATTERN, Tokenizer, choose_vocabulary, read_corpus

TEXTS = [
    "The cat sat on the mat, the end.",
    "¿Qué? Don't — it's l'été!",
    "电影很好看 and ok",
    "السَّلامُ عليكم، يا صديقي",
    "नमस्ते दुनिया",
    "flags 🇩🇪🇫🇷 family 👨‍👩‍👧 thumbs 👍🏽 heart ❤️",
    "cafe\u0301 CAFÉ",
]


def test_words_of_many_scripts() -> None:
    split = Tokenizer("words", True, None).split
    assert split(TEXTS[0]) == ["the", "cat", "sat", "on", "the", "mat", ",", "the", "end", "."]
    assert split(TEXTS[1]) == ["¿", "qué", "?", "don't", "—", "it's", "l'été", "!"]
    assert split(TEXTS[2]) == ["电", "影", "很", "好", "看", "and", "ok"]
    assert split(TEXTS[3]) == ["السَّلامُ", "عليكم", "،", "يا", "صديقي"]
    assert split(TEXTS[4]) == ["नमस्ते", "दुनिया"]
    assert split(TEXTS[5]) == ["flags", "🇩🇪", "🇫🇷", "family", "👨‍👩‍👧", "thumbs", "👍🏽", "heart", "❤️"]
    # Both ways to write an accent are one word.
    assert split(TEXTS[6]) == ["café", "café"]
    assert Tokenizer("words", False, None).split(TEXTS[6]) == ["café", "CAFÉ"]


def test_ascii_texts_are_cut_as_all_others() -> None:
    rng = np.random.default_rng(0)
    letters = list("ab1_' -.,!?\t\n\"(X")
    for _ in range(300):
        text = "".join(rng.choice(letters, 30))
        assert Tokenizer("words", False, None).split(text) == re.findall(WORD_PATTERN, text)


def test_characters_keep_case_and_one_blank_for_white_space() -> None:
    assert Tokenizer("characters", False, None).split(" Ab\n\t c好 ") == ["A", "b", " ", "c", "好"]


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_words_written_with_blanks_between_are_the_same_words(unit: str) -> None:
    # An example beside an export is written so.
    tokenizer = Tokenizer(unit, True, None)  # type: ignore[arg-type]
    for text in TEXTS:
        tokens = tokenizer.split(text)
        assert tokenizer.split((" " if unit == "words" else "").join(tokens)) == tokens


def test_vocabulary_counts_as_collections_counter_does() -> None:
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(60)]
    texts = [" ".join(rng.choice(words, rng.integers(1, 30), p=np.arange(60, 0, -1) / 1830)) for _ in range(200)]
    tokenizer = Tokenizer("words", True, 20)
    corpus = read_corpus(texts, tokenizer)
    rows = np.arange(0, 200, 2)
    counter = Counter(chain.from_iterable(texts[row].split()[:20] for row in rows))
    counts = corpus.count(rows)
    assert {token: count for token, count in zip(corpus.tokens, counts.tolist(), strict=True) if count} == counter

    vocabulary = choose_vocabulary(corpus.tokens, counts, 25, 3)
    expected = sorted((word for word in counter if counter[word] >= 3), key=lambda word: (-counter[word], word))[:25]
    assert vocabulary == ("", UNKNOWN_TOKEN, *expected)
    assert corpus.cut.tolist() == [max(0, len(text.split()) - 20) for text in texts]


def test_all_texts_at_once_are_encoded_as_one_by_one() -> None:
    tokenizer = Tokenizer("words", True, 5, ("", UNKNOWN_TOKEN, "the", "cat", "and", "影"))
    codes, lengths = read_corpus(TEXTS, tokenizer).encode(tokenizer.vocabulary)
    again, same_lengths = tokenizer.encode_all(TEXTS)
    assert torch.equal(codes, again)
    assert torch.equal(lengths, same_lengths)
    assert codes.dtype == lengths.dtype == torch.int64
    assert codes[0].tolist() == [2, 3, UNKNOWN, UNKNOWN, 2]
    assert codes[4].tolist() == [UNKNOWN, UNKNOWN, 0, 0, 0]


def test_replacement_characters_of_damaged_texts_are_unknown() -> None:
    corpus = read_corpus(["a \ufffd a \ufffd \ufffd"], Tokenizer("words", True, None))
    vocabulary = choose_vocabulary(corpus.tokens, corpus.count(np.array([0])), None, 1)
    assert vocabulary == ("", UNKNOWN_TOKEN, "a")
    assert corpus.encode(vocabulary)[0].tolist() == [[2, 1, 2, 1, 1]]


def test_saved_settings_are_read_back_or_refused() -> None:
    tokenizer = Tokenizer("characters", False, 9, ("", UNKNOWN_TOKEN, "a"))
    assert Tokenizer.from_plain(tokenizer.to_plain(), tokenizer.vocabulary) == tokenizer
    with pytest.raises(DataError, match="version 9"):
        Tokenizer.from_plain({**tokenizer.to_plain(), "version": 9}, ())
    with pytest.raises(DataError, match="damaged: letters are no tokens"):
        Tokenizer.from_plain({**tokenizer.to_plain(), "unit": "letters"}, ())
    with pytest.raises(DataError, match="text 2 of 2 is empty"):
        tokenizer.encode_all(["a", " "])
