"""What was perhaps meant: the names nearest to one that does not exist, as part of a message."""

from collections.abc import Iterable
from pathlib import Path

from dlrun.core.errors import DataError


def edit_distance(a: str, b: str) -> int:
    """How many letters inserted, left out, changed or swapped with their neighbour make `a` into `b`.

    The Damerau-Levenshtein distance by the algorithm of Lowrance and Wagner (1975): O(len(a) · len(b)).
    """
    far = len(a) + len(b)
    table: list[list[int]] = [
        [far] * (len(b) + 2),
        [far, *range(len(b) + 1)],
    ]  # table[i + 1][j + 1]: of the first i and j letters
    met: dict[str, int] = {}  # where in `a` a letter was last met
    for i, x in enumerate(a, 1):
        row, same = [far, i], 0  # same: where in `b` x was last met
        for j, y in enumerate(b, 1):
            above, left = met.get(y, 0), same
            swapped = table[above][left] + (i - above - 1) + 1 + (j - left - 1)
            row.append(min(table[i][j] + (x != y), row[j] + 1, table[i][j + 1] + 1, swapped))
            same = j if x == y else same
        met[x] = i
        table.append(row)
    return table[-1][-1]


def find_nearest(word: str, known: Iterable[str], most: int = 3) -> list[str]:
    """At most so many names that `word` was perhaps meant to be, nearest first.

    Those within 2 edits (up to 4 of a longer word; another case counts one), then those that hold the word or
    that it holds.
    """
    reach = min(max(2, len(word) // 3), 4)
    near: list[tuple[int, bool, str]] = []
    related: list[tuple[bool, int, str]] = []
    for name in dict.fromkeys(known):
        edits = _edits(word, name, reach)
        if edits < min(reach + 1, max(len(word), len(name))):
            near.append((edits, word[:1] != name[:1], name))
        elif min(len(word), len(name)) >= 3 and (word.lower() in name.lower() or name.lower() in word.lower()):
            related.append((not name.startswith(word), len(name), name))
    return [*(name for *_, name in sorted(near)), *(name for *_, name in sorted(related))][:most]


def _edits(word: str, name: str, reach: int) -> int:
    """The distance, or anything above `reach` where it is longer."""
    if abs(len(word) - len(name)) > reach:
        return reach + 1
    edits = edit_distance(word, name)
    if word.lower() != word or name.lower() != name:
        edits = min(edits, 1 + edit_distance(word.lower(), name.lower()))
    return edits


def did_you_mean(word: str, known: Iterable[str], before: str = "") -> str:
    """ "did you mean sgd or asgd? " with what is nearest, each with `before` in front; "" when nothing is near."""
    close = find_nearest(word, known)
    return f"did you mean {' or '.join(before + name for name in close)}? " if close else ""


def suggest_one(word: str, options: Iterable[str]) -> str:
    """ ", did you mean 'x'?" with the closest option, or "" when none is close."""
    close = find_nearest(word, options, 1)
    return f", did you mean '{close[0]}'?" if close else ""


def missing_path_error(path: Path, key: str) -> DataError:
    """The error for a `path` that does not exist and was given by the config key `key`."""
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = suggest_one(path.name, siblings) or f": type {key}=<an existing path>"
    return DataError(f"{key}={path} does not exist{hint}")
