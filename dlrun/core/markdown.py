"""Text in the Markdown files that dlrun writes: it shows as it stands, whatever it holds."""

import re

from dlrun.core.terminal import escape_line

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " "}
_ESCAPED = re.compile(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")  # an _ within a name marks nothing
_OF_A_LINE = re.compile(r"[#+=-]|\d+[.)]")  # what makes a heading or a list of a line that begins with it


def escape_inline(text: str) -> str:
    """Markdown that shows the text, in a cell of a table or within a line."""
    for mark, entity in _ENTITIES.items():
        text = text.replace(mark, entity)
    return escape_line(_ESCAPED.sub(r"\\\g<0>", text))


def escape_line_start(text: str) -> str:
    """Markdown that shows the text as a line, or as an entry of a list."""
    shown = escape_inline(text)
    start = _OF_A_LINE.match(shown)
    if start is None:
        return shown
    return f"{shown[: start.end() - 1]}\\{shown[start.end() - 1 :]}"


def format_code(text: str) -> str:
    """Text as an indented block of code, which nothing in it ends."""
    return "".join(f"    {escape_line(part)}\n" for part in text.splitlines() or [""])
