"""Family names and the countries they come from, character by character."""

import unicodedata
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dlrun.core.errors import DataError, RequestError
from dlrun.core.format import format_count
from dlrun.data.files.download import fetch_course_table
from dlrun.data.files.table import Table, read_table
from dlrun.data.origin import Origin
from dlrun.data.spec import DataSpec, Split, Splits

TRAIN_SHA256 = "49b4bf41dce5bfeac989b46ca37cf7baccd9a0d2a855df82f86de67a9376268f"
TEST_SHA256 = "57d7758db533a42c99d513b2341a7e7b0f55c1e0e7d233b1ef6a4fa2f1adf753"

# A code is an ASCII number; control characters have no text.
VOCABULARY = tuple(chr(code) if chr(code).isprintable() else "" for code in range(128))


def names(root: str) -> Splits:
    """Names and countries (18 in the published files) as ASCII codes: codes (N, longest), lengths (N,).

    Source: github.com/hunkim/PyTorchZeroToAll, data/names_train.csv.gz and names_test.csv.gz, looked for in
    the folder `root`. Raises DataError for a damaged file, or a missing one that cannot be downloaded.
    """
    train = _read_names(root, "names_train", TRAIN_SHA256)
    test = _read_names(root, "names_test", TEST_SHA256)

    # Sorted, so that a class has the same number whatever the order of the rows.
    countries = tuple(sorted(set(train.columns[1])))
    if len(countries) == 1:
        raise DataError(f"{train.path}: every name is from '{countries[0]}', so there is only one class to learn")

    all_names = (*train.columns[0], *test.columns[0])
    longest = max(len(_to_ascii(name)) for name in all_names)
    spec = DataSpec(
        "tokens",
        (longest,),
        "multiclass",
        len(countries),
        class_names=countries,
        vocabulary=VOCABULARY,
    )

    notes = []
    rewritten = sum(_to_ascii(name) != name.strip() for name in all_names)
    if rewritten:
        which = "1 name was" if rewritten == 1 else f"{rewritten} names were"
        notes.append(f"{which} rewritten in ASCII: accents dropped, other characters '?'.")

    # Names that occur in both parts make the test accuracy look better than it is.
    train_names = {name.strip() for name in train.columns[0]}
    repeated = sum(name.strip() in train_names for name in test.columns[0]) / len(test.columns[0])
    if repeated:
        notes.append(f"{100 * repeated:.1f} % of the test names are among the training names.")

    return Splits(
        _build_split(train, countries, longest),
        None,
        _build_split(test, countries, longest),
        spec,
        tuple(notes),
    )


def encode(names: Sequence[str], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Encode names as ASCII codes int64 (N, length) padded with 0, and lengths int64 (N,).

    length=None: that of the longest name. Accents are dropped (é becomes e), and what is still not printable
    ASCII becomes "?". Raises RequestError for an empty name or one longer than `length`.
    """
    texts = [_to_ascii(name) for name in names]
    lengths = [len(text) for text in texts]
    if 0 in lengths:
        raise RequestError(f"name {lengths.index(0) + 1} of {len(names)} is empty: give at least one character")

    width = max(lengths, default=1) if length is None else length
    if max(lengths, default=0) > width:
        raise RequestError(f"name '{max(texts, key=len)}' is longer than {width} characters, shorten it")

    # One conversion of all the text is much faster than one of each character.
    padded = "".join(text.ljust(width, "\0") for text in texts).encode("ascii")
    codes = np.frombuffer(padded, np.uint8).reshape(len(texts), width).astype(np.int64)
    return torch.from_numpy(codes), torch.tensor(lengths, dtype=torch.int64)


def _to_ascii(name: str) -> str:
    name = name.strip()
    if not name.isascii():
        # NFKD splits a letter from its accent, which is then dropped.
        decomposed = unicodedata.normalize("NFKD", name)
        name = "".join(c for c in decomposed if not unicodedata.combining(c))
    if name.isascii() and name.isprintable():
        return name

    characters = []
    for character in name:
        is_plain = character.isascii() and character.isprintable()
        characters.append(character if is_plain else "?")
    return "".join(characters)


def _read_names(root: str, file: str, sha256: str) -> Table:
    """A table of two columns, name and country, without an empty cell."""
    table = read_table(fetch_course_table("names", root, file, sha256), header=False)
    if len(table.names) != 2:
        raise DataError(
            f"{table.path}, line {table.lines[0]}: {format_count(len(table.names), 'column')}, "
            f"where a name and a country are expected"
        )

    for what, cells in zip(("name", "country"), table.columns, strict=True):
        for line, cell in zip(table.lines, cells, strict=True):
            if not cell.strip():
                raise DataError(f"{table.path}, line {line}: the {what} is empty, correct or remove the line")
    return table


def _build_split(table: Table, countries: tuple[str, ...], longest: int) -> Split:
    labels = {country: i for i, country in enumerate(countries)}
    for line, country in zip(table.lines, table.columns[1], strict=True):
        if country not in labels:
            raise DataError(f"{table.path}, line {line}: country '{country}' does not occur in the training names")

    codes_and_lengths = encode(table.columns[0], longest)
    targets = torch.tensor([labels[country] for country in table.columns[1]])
    return Split(codes_and_lengths, targets, Origin.from_lines(str(table.path), table.lines))
