"""Texts for a model that knows its tokens: typed, a line each, in a column of a table, or in files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dlrun.core.errors import DataError
from dlrun.core.suggest import did_you_mean
from dlrun.data.columns.named import read_named
from dlrun.data.columns.reading import EXCEL, FEATHER, PARQUET, TextFormat, unescape_separator
from dlrun.data.files.table import Table
from dlrun.data.spec import DataSpec
from dlrun.data.tokens import UNKNOWN, Tokenizer, check_columns, pad_codes
from dlrun.inference.predict.read_table import format_label
from dlrun.inference.predict.reader import STDIN, Item, Prepared, explain_missing, list_files, open_text, read_lines

_TEXTS = (".txt", ".txt.gz")
_TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", *EXCEL, *PARQUET, *FEATHER)
# Characters of a text that name its answer.
_MAX_NAME_LENGTH = 400


class DocumentReader:
    """A reader of texts: codes padded with 0, and lengths."""

    def __init__(self, spec: DataSpec, separator: str | None = None, encoding: str | None = None) -> None:
        """separator, encoding: of tables; None to judge them by the file."""
        self.spec = spec
        check_columns(spec.preprocessing)
        self.tokenizer = Tokenizer.from_plain(spec.preprocessing, spec.vocabulary)
        self.columns = [str(name) for name in spec.preprocessing["text_columns"]]
        # A file was a text in training, or a line was.
        self.reads_files_whole = bool(spec.preprocessing["is_folder"])
        self.text_format = TextFormat(unescape_separator(separator), encoding=encoding)
        texts = "text files" if self.reads_files_whole else "text files with one a line"
        self.accepted_inputs = f"texts, {texts}, tables with the column {', '.join(self.columns)}, and - for lines"

    def read_items(self, word: str) -> Iterator[Item]:
        """Yield the texts that a word names; a word that is no file is a text itself."""
        if word == STDIN:
            yield from self._read_lines(word)
            return

        path = Path(word)
        ending = word.lower()
        try:
            exists = path.exists()
        except OSError:
            # A text longer than any file name.
            exists = False

        if exists and path.is_dir():
            for file in list_files(path, (*_TEXTS, *_TABLES)):
                yield from self._read_file(str(file))
        elif exists and ending.endswith((*_TEXTS, *_TABLES)):
            yield from self._read_file(word)
        elif ending.endswith((*_TEXTS, *_TABLES)) and not any(character.isspace() for character in word):
            raise explain_missing(word, self.accepted_inputs)
        else:
            yield Item(word[:_MAX_NAME_LENGTH], word)

    def _read_file(self, word: str) -> Iterator[Item]:
        if word.lower().endswith(_TABLES):
            yield from self._read_table(Path(word))
        elif self.reads_files_whole:
            # The folder that a text lies in may be its class.
            folder = Path(word).absolute().parent.name
            label = folder if folder in self.spec.class_names else None
            try:
                with open_text(word) as file:
                    yield Item(word, file.read(), label)
            except UnicodeDecodeError as error:
                raise DataError(f"{word} is not UTF-8 text; save it as UTF-8") from error
        else:
            yield from self._read_lines(word)

    def _read_lines(self, word: str) -> Iterator[Item]:
        for place, line in read_lines(word):
            yield Item(line.strip()[:_MAX_NAME_LENGTH] or place, line, where=place)

    def _read_table(self, path: Path) -> Iterator[Item]:
        targets = [str(name) for name in self.spec.preprocessing["targets"]]
        table = read_named(path, self.text_format, self.columns).table
        columns = self._find_columns(table)
        has_targets = table.has_header and set(targets) <= set(table.names)
        labels = [table.columns[table.names.index(name)] for name in targets] if has_targets else []
        for row, line in enumerate(table.lines):
            text = " ".join(table.columns[column][row] for column in columns)
            label = format_label(self.spec, [cells[row].strip() for cells in labels])
            place = f"{path}:{line}"
            yield Item(" ".join(text.split())[:_MAX_NAME_LENGTH] or place, text, label, where=place)

    def _find_columns(self, table: Table) -> Sequence[int]:
        """Positions of the texts: by name, or where the training table had them, or the only column."""
        if table.has_header and set(self.columns) <= set(table.names):
            return [table.names.index(name) for name in self.columns]
        if len(table.names) == 1:
            return [0]
        positions = [int(index) for index in self.spec.preprocessing["text_indices"]]
        if not table.has_header and max(positions) < len(table.names):
            return positions
        missing = next(name for name in self.columns if name not in table.names)
        hint = did_you_mean(missing, table.names)
        raise DataError(f"there is no column {missing}; {hint}the first line holds {', '.join(table.names)}")

    def prepare(self, item: Item) -> Prepared:
        """Encode a text, with a note on what is cut off or unknown."""
        codes, cut = self.tokenizer.encode(item.content)
        if not len(codes):
            raise DataError("it is empty")

        noun = self.tokenizer.unit
        notes = []
        if cut:
            notes.append(f"read up to {len(codes):,} of {len(codes) + cut:,} {noun}")
        unknown = int((codes == UNKNOWN).sum())
        if 2 * unknown > len(codes):
            notes.append(f"{unknown} of {len(codes)} {noun} unknown")
        return Prepared((codes,), ", ".join(notes))

    def collate(self, rows: list[Prepared]) -> tuple[Tensor, ...]:
        """Pad texts to (N, length), as wide as in training or as the longest, and return their lengths (N,)."""
        codes = pad_codes([row.inputs[0] for row in rows])
        lengths = torch.tensor([len(row.inputs[0]) for row in rows])
        missing = self.spec.input_shape[0] - codes.shape[1]
        return (torch.nn.functional.pad(codes, (0, missing)) if missing > 0 else codes), lengths
