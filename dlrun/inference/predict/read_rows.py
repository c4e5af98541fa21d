"""Where the rows of tables come from: files, folders of files, standard input, arrays, or the command line itself."""

from collections.abc import Iterator
from pathlib import Path

from dlrun.data.spec import DataSpec
from dlrun.inference.predict.read_array import read_array_rows
from dlrun.inference.predict.reader import STDIN, Item, explain_missing, list_files


class RowReader:
    """What readers of tables share; subclasses read a table, and a row that was typed."""

    # What a word may name, for messages.
    accepted_inputs: str
    # Of the files of a folder that are tables.
    endings: tuple[str, ...]

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec

    def read_items(self, word: str) -> Iterator[Item]:
        """Yield the rows that a word names; a word that is no file may be a row itself."""
        path = Path(word)
        if word == STDIN or (path.is_file() and path.suffix != ".npy"):
            yield from self.read_table(word)
        elif path.suffix == ".npy" and path.exists():
            yield from read_array_rows(path, self.spec.input_shape)
        elif path.is_dir():
            for file in list_files(path, self.endings):
                yield from self.read_table(str(file))
        else:
            item = self.parse_row(word)
            if item is None:
                raise explain_missing(word, self.accepted_inputs)
            yield item

    def read_table(self, word: str) -> Iterator[Item]:
        """Yield the rows of a file or of standard input."""
        raise NotImplementedError

    def parse_row(self, word: str) -> Item | None:
        """The row that a word of the command line is; None if it is none."""
        raise NotImplementedError
