"""Did-you-mean: the names nearest to one that does not exist, as part of a message."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from dlrun.core.errors import DataError, RequestError, join_names


def compute_edit_distance(a: str, b: str) -> int:
    """Number of letters to insert, leave out, change or swap with their neighbour to make `a` into `b`.

    The Damerau-Levenshtein distance by the algorithm of Lowrance and Wagner (1975): O(len(a) · len(b)).
    """
    far = len(a) + len(b)

    # table[i + 1][j + 1]: distance of the first i and j letters
    table: list[list[int]] = [[far] * (len(b) + 2), [far, *range(len(b) + 1)]]
    last_in_a: dict[str, int] = {}

    for i, x in enumerate(a, 1):
        row = [far, i]
        last_in_b = 0
        for j, y in enumerate(b, 1):
            above = last_in_a.get(y, 0)
            left = last_in_b
            swap_cost = table[above][left] + (i - above - 1) + 1 + (j - left - 1)
            change_cost = table[i][j] + (x != y)
            row.append(min(change_cost, row[j] + 1, table[i][j + 1] + 1, swap_cost))

            if x == y:
                last_in_b = j
        last_in_a[x] = i
        table.append(row)

    return table[-1][-1]


def find_nearest(word: str, names: Iterable[str], most: int = 3) -> list[str]:
    """Find at most `most` of the names that `word` was perhaps meant to be, nearest first.

    Those within 2 edits (up to 4 of a longer word; another case counts one), then those that hold the word or
    that it holds.
    """
    reach = min(max(2, len(word) // 3), 4)
    near: list[tuple[int, bool, str]] = []
    similar: list[tuple[bool, int, str]] = []

    # Both are sorted below: among equals, names that begin alike come first.
    for name in dict.fromkeys(names):
        edits = _count_edits(word, name, reach)
        if edits < min(reach + 1, max(len(word), len(name))):
            near.append((edits, word[:1] != name[:1], name))
        elif _holds_other(word, name):
            similar.append((not name.startswith(word), len(name), name))

    nearest = [name for *_, name in sorted(near)]
    nearest += [name for *_, name in sorted(similar)]
    return nearest[:most]


def _count_edits(word: str, name: str, reach: int) -> int:
    """The edit distance, or any number above `reach` if it is longer."""
    if abs(len(word) - len(name)) > reach:
        return reach + 1

    edits = compute_edit_distance(word, name)
    if word.lower() != word or name.lower() != name:
        edits = min(edits, 1 + compute_edit_distance(word.lower(), name.lower()))
    return edits


def _holds_other(word: str, name: str) -> bool:
    """Whether one of two names of at least three letters is part of the other, in any case."""
    if min(len(word), len(name)) < 3:
        return False
    return word.lower() in name.lower() or name.lower() in word.lower()


def did_you_mean(word: str, names: Iterable[str], before: str = "") -> str:
    """Hint "did you mean sgd or asgd? " with the nearest names; "" if none is near.

    before: put in front of each name, such as "dlrun ".
    """
    nearest = find_nearest(word, names)
    if not nearest:
        return ""

    return f"did you mean {' or '.join(before + name for name in nearest)}? "


def suggest_one(word: str, options: Iterable[str]) -> str:
    """Hint ", did you mean 'x'?" with the nearest option; "" if none is near."""
    names = find_nearest(word, options, 1)
    return f", did you mean '{names[0]}'?" if names else ""


def refuse_other_names(typed: Iterable[str], names: Sequence[str], key: str, kind: str = "output") -> None:
    """RequestError for a key below the config key `key` that is none of `names`, each of which is a `kind`."""
    for name in typed:
        if name not in names:
            hint = did_you_mean(str(name), names, f"{key}.")
            raise RequestError(f"{key}.{name} is no {kind}; {hint}there are {join_names(names)}")


def build_unknown_argument_error(
    subject: str, name: str, target: str, known: Sequence[str], before: str = ""
) -> RequestError:
    """Error for an argument that a target does not take.

    subject: how the message names the argument; before: put in front of each suggestion.
    """
    hint = did_you_mean(name, known, before)
    others = f"{hint}it takes {join_names(known)}" if known else "it takes none; leave it out"
    return RequestError(f"{subject} is no argument of {target}; {others}")


def build_missing_path_error(path: Path, key: str) -> DataError:
    """Error for a path that the config key `key` names and that does not exist."""
    siblings = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = suggest_one(path.name, siblings) or f": type {key}=<an existing path>"
    return DataError(f"{key}={path} does not exist{hint}")
