"""From texts to the codes that a model takes: cut into words or characters, numbered by a vocabulary of training."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.core.errors import DataError

Unit = Literal["words", "characters"]
UNITS = ("words", "characters")
KIND = "text"
VERSION = 1

# Code 0 is the padding. Code 1 stands for what training did not have, as Unicode's replacement character does.
UNKNOWN = 1
UNKNOWN_TOKEN = "\ufffd"

# Scripts written without spaces, of which each character is a word: kana and ideographs.
_ALONE = r"\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Accents, vowel signs and joiners, which belong to the letters around them: Python's \w leaves them out.
_MARKS = (
    r"\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed"
    r"\u0900-\u0963\u0966-\u0e3a\u0e40-\u0e4e\u0e50-\u109f\u1780-\u17d3\u200c\u200d"
)
# A word may hold an apostrophe; two letters of a flag and joined emoji are one token; other signs stand alone.
WORD_PATTERN = (
    rf"[{_ALONE}]"
    rf"|(?:(?![{_ALONE}\u200c\u200d])[\w{_MARKS}])(?:(?![{_ALONE}])[\w{_MARKS}])*"
    rf"(?:['’](?:(?![{_ALONE}])[\w{_MARKS}])+)*"
    r"|[\U0001f1e6-\U0001f1ff]{2}"
    r"|[^\w\s][\ufe0f\U0001f3fb-\U0001f3ff]*(?:\u200d[^\w\s][\ufe0f\U0001f3fb-\U0001f3ff]*)*"
)
_find_words = re.compile(WORD_PATTERN).findall
# The same for ASCII texts, which most are, in a third of the time.
_find_ascii_words = re.compile(r"\w+(?:'\w+)*|[^\w\s]").findall


@dataclass(frozen=True)
class Tokenizer:
    """How a text becomes codes.

    max_length: tokens of a text that are read, from its beginning; None for all. vocabulary: the token of each code,
    "" for the padding and U+FFFD for unknown ones.
    """

    unit: Unit
    lower_case: bool
    max_length: int | None
    vocabulary: tuple[str, ...] = ()

    @cached_property
    def codes(self) -> dict[str, int]:
        """The code of each token."""
        return {token: code for code, token in enumerate(self.vocabulary) if token}

    def split(self, text: str) -> list[str]:
        """All tokens of a text, with composed accents; white space is no word, and as a character it is one blank."""
        text = text.lower() if self.lower_case else text
        is_ascii = text.isascii()
        if not is_ascii:
            text = unicodedata.normalize("NFC", text)
        if self.unit == "characters":
            return list(" ".join(text.split()))
        return _find_ascii_words(text) if is_ascii else _find_words(text)

    def encode(self, text: str) -> tuple[Tensor, int]:
        """Codes int64 (length,) of the tokens that are read, and the number of those that are cut off."""
        tokens = self.split(text)
        first_tokens = tokens[: self.max_length]
        codes = [self.codes.get(token, UNKNOWN) for token in first_tokens]
        return torch.tensor(codes, dtype=torch.int64), len(tokens) - len(first_tokens)

    def encode_all(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode texts as codes int64 (N, longest), padded with 0, and lengths (N,); DataError for an empty one."""
        rows = [self.encode(text)[0] for text in texts]
        empty = [number for number, row in enumerate(rows, 1) if not len(row)]
        if empty:
            raise DataError(f"text {empty[0]} of {len(texts)} is empty: give at least one character")
        return pad_codes(rows), torch.tensor([len(row) for row in rows])

    def to_plain(self) -> dict[str, Any]:
        """Plain data without the vocabulary, which the spec of the data holds."""
        return {
            "kind": KIND,
            "version": VERSION,
            "unit": self.unit,
            "lower_case": self.lower_case,
            "max_length": self.max_length,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], vocabulary: Iterable[str]) -> "Tokenizer":
        """Invert `to_plain`; DataError for data of another version, or damaged."""
        if plain.get("kind") != KIND or plain.get("version") != VERSION:
            raise DataError(
                f"the texts' preprocessing is of version {plain.get('version')}, and this dlrun reads {VERSION}; "
                "install the dlrun that trained the run"
            )

        try:
            unit = plain["unit"]
            length = plain["max_length"]
            if unit not in UNITS:
                raise ValueError(f"{unit} are no tokens")
            return cls(unit, bool(plain["lower_case"]), None if length is None else int(length), tuple(vocabulary))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the texts' preprocessing is damaged: {error}; name another checkpoint") from error


def check_columns(plain: Mapping[str, Any]) -> None:
    """Raise DataError unless what was saved with texts says where they stood in their table."""
    kinds = {"text_columns": str, "targets": str, "text_indices": int, "target_indices": int}
    for name, kind in kinds.items():
        values = plain.get(name)
        if not isinstance(values, list | tuple) or not all(isinstance(value, kind) for value in values):
            raise DataError(f"the texts' preprocessing is damaged: {name} is {values}; name another checkpoint")

    for name in ("has_names", "is_folder"):
        if not isinstance(plain.get(name), bool):
            raise DataError(
                f"the texts' preprocessing is damaged: {name} is {plain.get(name)}; name another checkpoint"
            )


def pad_codes(rows: Sequence[Tensor]) -> Tensor:
    """Codes of several texts as int64 (N, longest), padded with 0."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def is_text(preprocessing: Mapping[str, Any]) -> bool:
    """Whether a spec's preprocessing is that of texts."""
    return preprocessing.get("kind") == KIND


@dataclass(frozen=True)
class Corpus:
    """Tokens of many texts, by number: `texts` int32 (tokens of a text that are read,) each.

    tokens: the token of each number, in the order in which they come; cut: tokens of each text that are left out.
    """

    texts: list[NDArray[np.int32]]
    tokens: list[str]
    cut: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text that are read, (texts,)."""
        return np.fromiter(map(len, self.texts), np.int64, len(self.texts))

    def count(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """How often each token comes in some of the texts, (tokens,)."""
        chosen = [self.texts[row] for row in rows]
        numbers = np.concatenate(chosen) if chosen else np.zeros(0, np.int32)
        return np.bincount(numbers, minlength=len(self.tokens))

    def encode(self, vocabulary: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Codes int64 (N, longest), padded with 0, and lengths int64 (N,)."""
        codes_of_tokens = {token: code for code, token in enumerate(vocabulary) if token}
        codes = np.array([codes_of_tokens.get(token, UNKNOWN) for token in self.tokens], dtype=np.int64)
        lengths = self.lengths
        padded = np.zeros((len(lengths), int(lengths.max(initial=1))), np.int64)
        # Row by row, as the mask takes them.
        padded[np.arange(padded.shape[1]) < lengths[:, None]] = codes[np.concatenate(self.texts)]
        return torch.from_numpy(padded), torch.from_numpy(lengths)


def read_corpus(texts: Iterable[str], tokenizer: Tokenizer) -> Corpus:
    """Cut texts into tokens, once for counting and encoding."""
    # Each token that has no number yet gets the next one.
    numbers: defaultdict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__
    rows = []
    cut = []
    for text in texts:
        tokens = tokenizer.split(text)
        first_tokens = tokens[: tokenizer.max_length]
        rows.append(np.fromiter(map(numbers.__getitem__, first_tokens), np.int32, len(first_tokens)))
        cut.append(len(tokens) - len(first_tokens))

    return Corpus(rows, list(numbers), np.array(cut, dtype=np.int64))


def choose_vocabulary(
    tokens: Sequence[str], counts: NDArray[np.int64], size: int | None, min_count: int
) -> tuple[str, ...]:
    """Padding, the unknown token, and the most frequent tokens; equally frequent ones in the order of their letters.

    size: of the tokens with codes of their own, None for all; min_count: rarer ones are unknown.
    """
    frequent = [number for number in np.flatnonzero(counts >= min_count).tolist() if tokens[number] != UNKNOWN_TOKEN]
    frequent.sort(key=lambda number: (-counts[number], tokens[number]))
    return ("", UNKNOWN_TOKEN, *(tokens[number] for number in frequent[:size]))
