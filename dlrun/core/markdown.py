"""Text in the Markdown files that dlrun writes: it is shown as it stands, whatever it holds."""

import re

from dlrun.core.terminal import escape_line

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " "}

# An underscore within a name marks nothing.
_MARKS = re.compile(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")

# At the start of a line these make a heading or a list of it.
_MARKS_AT_START = re.compile(r"[#+=-]|\d+[.)]")


def escape_inline(text: str) -> str:
    """Escape text for the cell of a table or the middle of a line."""
    for mark, entity in _ENTITIES.items():
        text = text.replace(mark, entity)
    return escape_line(_MARKS.sub(r"\\\g<0>", text))


def escape_line_start(text: str) -> str:
    """Escape text for a line of its own, or an entry of a list."""
    text = escape_inline(text)
    start = _MARKS_AT_START.match(text)
    if start is None:
        return text
    last = start.end() - 1
    return f"{text[:last]}\\{text[last:]}"


def format_code(text: str) -> str:
    """Format text as an indented block of code, which nothing in it can end."""
    lines = text.splitlines() or [""]
    return "".join(f"    {escape_line(line)}\n" for line in lines)
