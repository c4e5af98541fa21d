"""What can go wrong, as one small tree: a user's mistake, or a run that failed; and what was perhaps meant."""

import os
import traceback
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

from dlrun.core.terminal import escape_line, escape_text


class DlrunError(Exception):
    """Something went wrong that one sentence explains; `exit_code` is what the command ends with."""

    exit_code = 1
    is_list = False  # a message of several lines; any other is one line, whatever the names in it hold

    def __str__(self) -> str:
        message = super().__str__()
        return escape_text(message) if self.is_list else escape_line(message)


class RequestError(DlrunError):
    """The request was wrong (exit code 2): the message says what, where, and what to type instead."""

    exit_code = 2


class ListedError(RequestError):
    """Several mistakes, a line each."""

    is_list = True


class DataError(RequestError):
    """A data file is missing, unreadable or holds what it may not hold."""


class DamageError(RequestError):
    """A file of a run cannot be read, or holds what it cannot hold."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"damaged: {path}: {what}")
        self.path = path
        self.what = what

    @property
    def reason(self) -> str:
        """What the system says of a file that it does not give, else what is wrong with it."""
        return getattr(self.__cause__, "strerror", None) or self.what

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        return type(self), (self.path, self.what)


def describe_os_error(error: OSError) -> str:
    """ "table.csv: Permission denied": the file, where the error names one, and what the system says."""
    named = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return f"{named}{error.strerror or error}"


def explain_unreadable(path: Path, error: Exception) -> DataError | None:
    """What to say where the system does not give a file, whatever lies in it; None for an error of its content."""
    if isinstance(error, MemoryError):
        return DataError(f"{path} cannot be read: there is no memory left")
    if isinstance(error, OSError) and error.errno is not None:
        return DataError(f"{path} cannot be read: {error.strerror or error}")
    return None


class UnavailableError(DataError):
    """Data are neither here nor to be had over the network."""


class MisfitError(RequestError):
    """This model cannot take this data."""


class CheckpointError(RequestError):
    """A checkpoint file is missing, damaged, foreign or not allowed to be opened."""


class RunError(DlrunError):
    """The run failed after it had started (exit code 1)."""


class UnreadableError(RunError):
    """What a run has saved is there but cannot be read (exit code 1): everything is left as it was."""


def iter_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it came from, each once: an error that is raised again comes from itself."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def find_own_line(error: BaseException) -> str:
    """The innermost line of the user's own code that an exception came through, as "mynet.py, line 4"; "" for none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_own_code(frame.filename):
            return f"{Path(frame.filename).name}, line {frame.lineno}"
    return ""


def explain_exit(error: SystemExit) -> RequestError:
    """What to say of a sys.exit before training; in training it is a failure of the run, and comes as a DlrunError."""
    place = find_own_line(error)
    if place:
        culprit = f"code of your own called sys.exit({error.code}) before the run began ({place}); raise an error there"
        return RequestError(culprit)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return RequestError(f"{last.filename}, line {last.lineno}, called sys.exit({error.code}) before the run began")


def is_own_code(filename: str) -> bool:
    """Whether a file, or a cell of a notebook, is the user's own: neither dlrun's nor installed."""
    if filename in ("<stdin>", "<string>") or filename.startswith("<ipython-input"):
        return True
    path = Path(filename)
    package = Path(__file__).resolve().parent.parent
    installed = {"site-packages", "dist-packages", Path(traceback.__file__).parent.name}
    if package in path.parents or not installed.isdisjoint(path.parts):
        return False
    return path.is_file() or path.parent.name.startswith("ipykernel_")


def join_names(names: Collection[str], rest: str = "", most: int = 12) -> str:
    """ "a, b, c", and of more than `most` only the first: "a, b, … (dlrun ls data)", where `rest` shows the others."""
    few = ", ".join(list(names)[:most])
    if len(names) <= most:
        return few
    return f"{few}, … ({rest})" if rest else f"{few} and {len(names) - most} more"


P = ParamSpec("P")
T = TypeVar("T")


class MultipleErrors(ListedError):
    """More than one mistake, as a numbered list."""

    def __init__(self, found: list[RequestError]) -> None:
        self.errors = found
        lines = [f"{i:>3}. {error}" for i, error in enumerate(found, 1)]
        super().__init__("\n".join([f"{len(found)} things are wrong:", *lines]))


class ErrorList:
    """What was wrong so far."""

    def __init__(self) -> None:
        self.errors: list[RequestError] = []

    def add(self, error: RequestError) -> None:
        """Note a mistake; each of Several on its own, and the same sentence once."""
        for one in error.errors if isinstance(error, MultipleErrors) else [error]:
            if str(one) not in map(str, self.errors):
                self.errors.append(one)

    def collect(self, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What `make` returns, or null when it ends in a RequestError, which is noted."""
        try:
            return make(*args, **kwargs)
        except RequestError as error:
            self.add(error)
            return None

    def raise_if_any(self) -> None:
        """Raise what was found: a single mistake as it is, more than one as Several."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            raise MultipleErrors(self.errors)
