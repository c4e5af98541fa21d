"""Exceptions from the user's own code: which line raised them, as one sentence."""

import traceback
from pathlib import Path

from dlrun.core.errors import DlrunError, is_own_code, iter_causes


def find_user_line(error: BaseException) -> str:
    """Innermost line of the user's own code behind an exception and its causes, as "mynet.py, line 12".

    "" if it did not pass through any.
    """
    causes = list(iter_causes(error))

    # A syntax error names its line itself: no frame of that file exists yet.
    for cause in causes:
        if isinstance(cause, SyntaxError) and cause.filename and is_own_code(cause.filename):
            return f"{_format_path(cause.filename)}, line {cause.lineno}"

    # The root cause first, and of its frames the innermost.
    for cause in reversed(causes):
        frames = traceback.extract_tb(cause.__traceback__)
        for frame in reversed(frames):
            if is_own_code(frame.filename):
                return f"{_format_path(frame.filename)}, line {frame.lineno}"
    return ""


def add_user_line(sentence: str, error: BaseException) -> str:
    """Append the line of the user's own code that raised an exception, in parentheses, if there is one."""
    place = find_user_line(error)
    return f"{sentence} ({place})" if place and place not in sentence else sentence


def explain(error: BaseException) -> str | None:
    """Format an exception as "mynet.py, line 12: KeyError: 'none'"; None if it is not from the user's own code."""
    # These explain themselves.
    if isinstance(error, DlrunError):
        return None

    place = find_user_line(error)
    if not place:
        return None
    return f"{place}: {type(error).__name__}: {get_first_line(error)}"


def get_first_line(error: BaseException) -> str:
    """First line of an exception's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"


def get_first_clause(error: BaseException) -> str:
    """First line of an exception's message without its final period, to be quoted within a sentence."""
    return get_first_line(error).rstrip(".: ")


def _format_path(filename: str) -> str:
    """The path relative to the working directory if the file lies below it."""
    path = Path(filename)
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
