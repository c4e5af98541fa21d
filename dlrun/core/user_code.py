"""Exceptions that come from code of the user's own: which line raised them, as one sentence."""

import sysconfig
import traceback
from pathlib import Path

from dlrun.core.errors import DlrunError, iter_causes

_OURS = Path(__file__).resolve().parent.parent
_STANDARD = Path(sysconfig.get_paths()["stdlib"]).resolve()


def find_user_line(error: BaseException) -> str:
    """ "mynet.py, line 12": the line of the user's own that an exception came through last; "" where there is none."""
    for cause in iter_causes(error):
        if isinstance(cause, SyntaxError) and cause.filename and _is_own(cause.filename):
            return f"{_shown(cause.filename)}, line {cause.lineno}"
    for cause in reversed(list(iter_causes(error))):
        frames = traceback.extract_tb(cause.__traceback__)
        for frame in reversed(frames):
            if _is_own(frame.filename):
                return f"{_shown(frame.filename)}, line {frame.lineno}"
    return ""


def add_user_line(sentence: str, error: BaseException) -> str:
    """The sentence, with the line of the user's own in parentheses where an exception came through one."""
    place = find_user_line(error)
    return f"{sentence} ({place})" if place and place not in sentence else sentence


def explain(error: BaseException) -> str | None:
    """ "mynet.py, line 12: KeyError: 'none'"; None for an exception that is not of the user's own code."""
    if isinstance(error, DlrunError):
        return None
    place = find_user_line(error)
    if not place:
        return None
    return f"{place}: {type(error).__name__}: {first_line_of(error)}"


def first_line_of(error: BaseException) -> str:
    """What an exception says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"


def _shown(filename: str) -> str:
    """The path, from the working directory where the file lies below it."""
    path = Path(filename)
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _is_own(filename: str) -> bool:
    """Whether a file is neither dlrun's nor Python's nor an installed package's; cells of a notebook are the user's."""
    if filename.startswith("<"):
        return filename.startswith(("<ipython-input", "<stdin"))
    path = Path(filename).resolve()
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    is_program = path.name == "dlrun" and path.parent.name == "bin"
    return not (installed or is_program or path.is_relative_to(_OURS) or path.is_relative_to(_STANDARD))
