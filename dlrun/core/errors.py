"""Errors of dlrun as one small tree: a wrong request, or a run that failed; and several mistakes as one error."""

import os
import sysconfig
import traceback
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

from dlrun.core.terminal import escape_line, escape_text

_PACKAGE = Path(__file__).resolve().parent.parent
_STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"]).resolve()

P = ParamSpec("P")
T = TypeVar("T")


class DlrunError(Exception):
    """An error that one sentence explains; `exit_code` is the exit code of the command."""

    exit_code = 1

    # A list has several lines; any other message is one line, whatever the names in it hold.
    is_list = False

    def __str__(self) -> str:
        message = super().__str__()
        return escape_text(message) if self.is_list else escape_line(message)

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback, whose frames are dlrun's own: the sentence.

        HYDRA_FULL_ERROR=1 brings the frames back, as it does on the command line.
        """
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            return traceback.format_exception(self)
        return [f"{type(self).__name__}: {self}"]


class RequestError(DlrunError):
    """A wrong request (exit code 2): the message says what, where, and what to type instead."""

    exit_code = 2


class ListedError(RequestError):
    """Several mistakes, a line each."""

    is_list = True


class DataError(RequestError):
    """A data file is missing, unreadable or holds invalid values."""


class DamageError(RequestError):
    """A file of a run cannot be read, or holds invalid values."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"damaged: {path}: {what}")
        self.path = path
        self.what = what

    @property
    def reason(self) -> str:
        """The system's error message if the file could not be read, else what is wrong with its content."""
        return getattr(self.__cause__, "strerror", None) or self.what

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        # By default pickle would call __init__ with the message alone.
        return type(self), (self.path, self.what)


class UnavailableError(DataError):
    """Data are neither on this machine nor to be had over the network."""


class MisfitError(RequestError):
    """This model cannot take this data."""


class CheckpointError(RequestError):
    """A checkpoint file is missing, damaged, foreign or not allowed to be opened."""


class RunError(DlrunError):
    """The run failed after it had started (exit code 1)."""


class InterruptedRunError(RunError):
    """The run was interrupted: the exit code is that of a run which Ctrl-C ends."""

    exit_code = 130


class UnreadableError(RunError):
    """A file of a run exists but cannot be read (exit code 1); everything is left as it was."""


class MultipleErrors(ListedError):
    """More than one mistake, as a numbered list."""

    def __init__(self, errors: list[RequestError]) -> None:
        self.errors = errors
        lines = [f"{len(errors)} things are wrong:"]
        lines += [f"{number:>3}. {error}" for number, error in enumerate(errors, 1)]
        super().__init__("\n".join(lines))


class ErrorList:
    """The mistakes of one request, collected so that the user sees all of them at once.

    most: number of mistakes that are listed, as every file of a folder may have one; the rest is counted.
    """

    def __init__(self, most: int | None = None) -> None:
        self.errors: list[RequestError] = []
        self.most = most
        self.left_out = 0

    def add(self, error: RequestError) -> None:
        """Add a mistake, or each one of MultipleErrors; a sentence that is there already is not added again."""
        errors = error.errors if isinstance(error, MultipleErrors) else [error]
        if self.most is not None and len(self.errors) >= self.most:
            self.left_out += len(errors)
            return

        # By text: an exception equals only itself.
        for one in errors:
            if str(one) not in map(str, self.errors):
                self.errors.append(one)

    def collect(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Call a function and return its result; None if it raises a RequestError, which is added."""
        try:
            return function(*args, **kwargs)
        except RequestError as error:
            self.add(error)
            return None

    def raise_if_any(self) -> None:
        """Raise the collected mistakes: a single one as it is, more than one as MultipleErrors."""
        errors = list(self.errors)
        if self.left_out:
            errors.append(RequestError(f"there are {self.left_out:,} more like these"))
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise MultipleErrors(errors)


def describe_os_error(error: OSError) -> str:
    """Format an error as "table.csv: Permission denied"; without the file if the error names none."""
    prefix = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return f"{prefix}{error.strerror or error}"


def explain_unreadable(path: Path, error: Exception) -> DataError | None:
    """Error for a file that the system could not read; None if the error is about the file's content."""
    if isinstance(error, MemoryError):
        return DataError(f"{path} cannot be read: there is no memory left")
    if isinstance(error, OSError) and error.errno is not None:
        return DataError(f"{path} cannot be read: {error.strerror or error}")
    return None


def iter_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and its causes, each once: an error that is raised again can be its own cause."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        yield error
        error = error.__cause__ or error.__context__


def find_own_line(error: BaseException) -> str:
    """Innermost line of the user's own code in a traceback, as "mynet.py, line 4"; "" if there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_own_code(frame.filename):
            return f"{Path(frame.filename).name}, line {frame.lineno}"
    return ""


def explain_exit(error: SystemExit) -> RequestError:
    """Error for a sys.exit before training. During training it fails the run and arrives as a DlrunError."""
    place = find_own_line(error)
    if place:
        culprit = f"code of your own called sys.exit({error.code}) before the run began ({place}); raise an error there"
        return RequestError(culprit)

    # A library did; its path tells which one.
    last = traceback.extract_tb(error.__traceback__)[-1]
    return RequestError(f"{last.filename}, line {last.lineno}, called sys.exit({error.code}) before the run began")


def is_own_code(filename: str) -> bool:
    """Whether a file is the user's own, or a cell of a notebook: neither dlrun's nor Python's nor installed."""
    # Code that was typed has no file.
    if filename.startswith("<"):
        return filename.startswith(("<ipython-input", "<stdin", "<string>"))

    # Resolved, as an environment's packages may lie behind a link.
    path = Path(filename).resolve()
    if path.is_relative_to(_PACKAGE) or path.is_relative_to(_STANDARD_LIBRARY):
        return False
    is_program = path.name == "dlrun" and path.parent.name == "bin"
    if is_program or not {"site-packages", "dist-packages"}.isdisjoint(path.parts):
        return False

    # Cells of newer notebooks have the name of a temporary file that is not written.
    return path.is_file() or path.parent.name.startswith("ipykernel_")


def join_names(names: Collection[str], rest: str = "", most: int = 12) -> str:
    """Join names as "a, b, c". Of more than `most`, only the first are shown.

    rest: the command that shows all of them, as in "a, b, … (dlrun ls data)".
    """
    text = ", ".join(list(names)[:most])
    if len(names) <= most:
        return text

    if rest:
        return f"{text}, … ({rest})"
    return f"{text} and {len(names) - most} more"
