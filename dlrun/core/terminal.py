"""Text for people: control characters in it are shown, never obeyed by a terminal."""

import contextlib
import re
import sys

# C0 and C1 codes, DEL, line and paragraph separators, the marks that reorder text, and halves of surrogate pairs.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def escape_line(text: str) -> str:
    r"""Escape every control character as Python writes it, ESC as \x1b, so that the text is one line."""
    return _CONTROLS.sub(_escape, text) if _CONTROLS.search(text) else text


def escape_text(text: str) -> str:
    """Escape text of several lines as `escape_line` does, but keep line ends and tabs."""
    return _CONTROLS.sub(_escape_but_layout, text) if _CONTROLS.search(text) else text


def escape_json(text: str) -> str:
    r"""Write the control characters that JSON may hold raw as \u codes; every reader takes them for the same."""
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    if character in _SHORT:
        return _SHORT[character]

    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _escape_but_layout(match: re.Match[str]) -> str:
    return match[0] if match[0] in "\n\t" else _escape(match)


def write_out(text: str = "") -> None:
    """Print a line to stdout."""
    sys.stdout.write(f"{escape_text(text)}\n")


def write_error(text: str) -> None:
    """Print a line to stderr; do nothing if the terminal is gone."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{escape_text(text)}\n")
        sys.stderr.flush()
