"""Names and words, letter by letter, as a model that was trained on such takes them."""

import csv
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from dlrun.core.csv_text import unguarded
from dlrun.core.errors import DataError, RequestError
from dlrun.data import names
from dlrun.data.spec import DataSpec
from dlrun.inference.predict.reader import STDIN, Item, Prepared, explain_missing, list_files, read_lines

_FILES = (".txt", ".csv", ".tsv", ".txt.gz", ".csv.gz", ".tsv.gz")
_SHOWN = 40  # letters of a text in a table


class TextReader:
    """A reader of texts: codes padded with 0, and lengths."""

    takes = "texts, and files or - with one a line"

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec
        self.longest = spec.input_shape[0]
        self.as_names = spec.vocabulary == names.VOCABULARY
        self.has_words = any(len(entry) > 1 for entry in spec.vocabulary)
        self.codes = {token: code for code, token in enumerate(spec.vocabulary) if token}
        if not self.codes:
            self.takes = "nothing that can be written: its data do not say what their codes stand for"

    def read_items(self, word: str) -> Iterator[Item]:
        """See Reader: a word that is no file is a text itself."""
        path, is_file = Path(word), word.lower().endswith(_FILES) or "/" in word
        if word == STDIN or (is_file and path.is_file()):
            yield from (_of_line(word, *line) for line in read_lines(word))
        elif is_file and path.is_dir():
            for file in list_files(path, _FILES):
                yield from (_of_line(str(file), *line) for line in read_lines(str(file)))
        elif is_file and word.lower().endswith(_FILES):
            raise explain_missing(word, self.takes)
        else:
            yield Item(word, word)

    def prepare(self, item: Item) -> Prepared:
        """See Reader."""
        text: str = item.content
        codes = self._names(text) if self.as_names else self._tokens(text)
        most = max(10 * self.longest, 1000)
        if len(codes) > most:
            raise DataError(f"it has {len(codes):,} letters, and the longest in training {self.longest}; shorten it")
        notes = []
        if self.as_names and (read := "".join(map(chr, codes.tolist()))) != text.strip():
            notes.append(f"read as {read}")
        if len(codes) > self.longest:
            notes.append(f"longer than any in training ({len(codes)} letters, {self.longest} there)")
        return Prepared((codes,), ", ".join(notes))

    def _names(self, text: str) -> Tensor:
        """ASCII, as data=names reads it."""
        try:
            return names.encode([text])[0][0]
        except RequestError as error:
            raise DataError("it is empty") from error

    def _tokens(self, text: str) -> Tensor:
        tokens = text.split() if self.has_words else list(text.strip())
        if not tokens:
            raise DataError("it is empty")
        unknown = next((token for token in tokens if token not in self.codes), None)
        if unknown is not None:
            raise DataError(f"the training data have no {unknown!r}; they have {', '.join(self.codes)}")
        return torch.tensor([self.codes[token] for token in tokens])

    def collate(self, rows: list[Prepared]) -> tuple[Tensor, ...]:
        """See Reader: as wide as in training, or as the longest."""
        lengths = [len(row.inputs[0]) for row in rows]
        codes = torch.zeros(len(rows), max(self.longest, *lengths), dtype=torch.int64)
        for i, row in enumerate(rows):
            codes[i, : lengths[i]] = row.inputs[0]
        return codes, torch.tensor(lengths)


def _of_line(word: str, where: str, line: str) -> Item:
    """A line is a text; of a table the first column, and the second what is true."""
    ending = word.lower().removesuffix(".gz")
    if ending.endswith((".csv", ".tsv")):
        cells = next(csv.reader([line], delimiter="\t" if ending.endswith(".tsv") else ",", skipinitialspace=True))
        cells = unguarded(cells)
        line, label = cells[0], cells[1].strip() if len(cells) > 1 else None
        return Item(line.strip() or where, line, label, where=where)
    return Item(line.strip()[: 10 * _SHOWN] or where, line, where=where)
