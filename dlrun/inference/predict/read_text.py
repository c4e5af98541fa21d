"""Names and words, letter by letter, encoded as the training texts were."""

import csv
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from dlrun.core.csv_text import unguard_row
from dlrun.core.errors import DataError, RequestError
from dlrun.data import names
from dlrun.data.spec import DataSpec
from dlrun.inference.predict.reader import STDIN, Item, Prepared, explain_missing, list_files, read_lines

_ENDINGS = (".txt", ".csv", ".tsv", ".txt.gz", ".csv.gz", ".tsv.gz")
# Letters of a line that name its answer.
_MAX_NAME_LENGTH = 400


class TextReader:
    """A reader of texts: codes padded with 0, and lengths."""

    accepted_inputs = "texts, and files or - with one a line"

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec
        self.longest = spec.input_shape[0]
        self.reads_names = spec.vocabulary == names.VOCABULARY
        self.has_words = any(len(entry) > 1 for entry in spec.vocabulary)
        # An empty entry is padding and stands for no token.
        self.codes = {token: code for code, token in enumerate(spec.vocabulary) if token}
        if not self.codes:
            self.accepted_inputs = "nothing that can be written: its data do not say what their codes stand for"

    def read_items(self, word: str) -> Iterator[Item]:
        """Yield the texts that a word names; a word that is no file is a text itself."""
        path = Path(word)
        looks_like_file = word.lower().endswith(_ENDINGS) or "/" in word
        if word == STDIN or (looks_like_file and path.is_file()):
            yield from self._read_file(word)
        elif looks_like_file and path.is_dir():
            for file in list_files(path, _ENDINGS):
                yield from self._read_file(str(file))
        elif word.lower().endswith(_ENDINGS):
            raise explain_missing(word, self.accepted_inputs)
        else:
            yield Item(word, word)

    def _read_file(self, word: str) -> Iterator[Item]:
        for place, line in read_lines(word):
            yield _parse_line(word, place, line)

    def prepare(self, item: Item) -> Prepared:
        """Encode a text, with a note if letters were replaced or if it is longer than any in training."""
        text: str = item.content
        codes = self._encode_name(text) if self.reads_names else self._encode_tokens(text)
        # Far longer texts are files named by mistake, and would widen the whole batch.
        limit = max(10 * self.longest, 1000)
        if len(codes) > limit:
            raise DataError(f"it has {len(codes):,} letters, and the longest in training {self.longest}; shorten it")

        notes = []
        if self.reads_names:
            # The codes of names are ASCII.
            encoded_text = "".join(map(chr, codes.tolist()))
            if encoded_text != text.strip():
                notes.append(f"read as {encoded_text}")

        if len(codes) > self.longest:
            notes.append(f"longer than any in training ({len(codes)} letters, {self.longest} there)")
        return Prepared((codes,), ", ".join(notes))

    def _encode_name(self, text: str) -> Tensor:
        try:
            codes, _ = names.encode([text])
        except RequestError as error:
            raise DataError("it is empty") from error
        return codes[0]

    def _encode_tokens(self, text: str) -> Tensor:
        tokens = text.split() if self.has_words else list(text.strip())
        if not tokens:
            raise DataError("it is empty")
        for token in tokens:
            if token not in self.codes:
                raise DataError(f"the training data have no {token!r}; they have {', '.join(self.codes)}")
        return torch.tensor([self.codes[token] for token in tokens])

    def collate(self, rows: list[Prepared]) -> tuple[Tensor, ...]:
        """Pad texts to (N, length), as wide as in training or as the longest, and return their lengths (N,)."""
        lengths = [len(row.inputs[0]) for row in rows]
        codes = torch.zeros(len(rows), max(self.longest, *lengths), dtype=torch.int64)
        for number, row in enumerate(rows):
            codes[number, : lengths[number]] = row.inputs[0]
        return codes, torch.tensor(lengths)


def _parse_line(word: str, place: str, line: str) -> Item:
    """Take a line as a text; of a table's line the first column is the text, the second its label."""
    ending = word.lower().removesuffix(".gz")
    if not ending.endswith((".csv", ".tsv")):
        return Item(line.strip()[:_MAX_NAME_LENGTH] or place, line, where=place)

    delimiter = "\t" if ending.endswith(".tsv") else ","
    cells = unguard_row(next(csv.reader([line], delimiter=delimiter, skipinitialspace=True)))
    text = cells[0]
    label = cells[1].strip() if len(cells) > 1 else None
    return Item(text.strip() or place, text, label, where=place)
