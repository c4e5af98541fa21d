"""Values as text: names of run folders, and counts of things."""

import re

_MOST_BYTES = 200


def count_digits(count: int) -> int:
    """Digits of the largest of `count` numbers from 0: with as many in all of them, names sort as the numbers do."""
    return len(str(max(count - 1, 0)))


def format_count(count: int, noun: str) -> str:
    """How many of a thing there are: 1 row, 2,000 rows, 3 classes, 4 boxes, 2 series."""
    if count == 1 or noun.endswith("series"):
        return f"{count:,} {noun}"
    return f"{count:,} {noun}{'es' if noun.endswith(('s', 'x')) else 's'}"


def format_folder_name(text: str, longest: int = 100) -> str:
    """`text` as the name of one folder, without characters that a shell or a file system minds, and not too long."""
    # [4] becomes 4: a dash in its place would make it look negative.
    text = re.sub(r"[\[\](){}'\"]", "", text)
    text = re.sub(r"[^\w.,=+-]+", "-", text)
    text = text.strip("-")[:longest]

    # File systems count bytes: at most 255 with the time before the name and a number behind it.
    return text.encode()[:_MOST_BYTES].decode(errors="ignore") or "run"
