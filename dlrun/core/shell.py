"""Advice on what to type next: a line of the shell, or a call where dlrun was called from Python.

Names in a line are quoted, so that a shell takes them as they stand.
"""

import contextlib
import re
import shlex
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

# The function of dlrun that Python has called; "" on a command line.
_python_function = ContextVar("called", default="")


def quote(name: str | Path) -> str:
    """Quote a name as one word of a command line."""
    return shlex.quote(str(name))


def requote(command: str) -> str:
    """Quote a command of dlrun that was read from a file, so that nothing in it begins another command."""
    try:
        words = shlex.split(command)
    except ValueError:
        # A quote is not closed.
        words = []

    return shlex.join(words) if words[:1] == ["dlrun"] else "dlrun ..."


@contextlib.contextmanager
def advise_in_python(function: str) -> Iterator[None]:
    """Give advice as Python calls during the block: whoever called dlrun.train or dlrun.load continues in Python."""
    token = _python_function.set(function)
    try:
        yield
    finally:
        _python_function.reset(token)


def is_called_from_python() -> bool:
    """Whether dlrun was called from Python rather than from a shell."""
    return bool(_python_function.get())


def suggest_command(command: str, place: str | Path, *words: str, modules: Sequence[str] = ()) -> str:
    """Format `dlrun eval` or `dlrun resume` of a saved run: as a line of the shell, or as a call.

    words: key=value; modules: modules of the user's own that the run needs.
    """
    trust = [f"trusted_modules=[{','.join(modules)}]"] if modules else []

    if not _python_function.get():
        return " ".join(["dlrun", command, quote(place), *words, *map(quote, trust)])
    if command == "eval":
        argument = f", trusted_modules={list(modules)!r}" if modules else ""
        return f"dlrun.load({str(place)!r}{argument})"
    return _format_train_call([f"resume={place}", *words, *trust])


def _format_train_call(words: Sequence[str]) -> str:
    return f"dlrun.train({', '.join(map(repr, words))})"


def suggest_example(command: str) -> str:
    """Example of a command, or of its Python call, for a user who named no run."""
    if not is_called_from_python():
        inputs = " INPUT ..." if command == "predict" else ""
        return f"dlrun {command} outputs/<date>/<run>{inputs}"

    return "dlrun.train('resume=outputs/<date>/<run>')" if command == "resume" else "dlrun.load('outputs/<date>/<run>')"


def suggest_repeat(command: str) -> str:
    """Quote the recorded command of a run, for the shell or as a Python call, to start the run again."""
    shell_command = requote(command)
    words = shlex.split(shell_command)[1:]

    # "dlrun ..." stands for a command that could not be read.
    if not is_called_from_python() or words[:1] == ["..."]:
        return shell_command
    return _format_train_call(words)


# Commands without a Python call, up to what follows them in a sentence.
_TERMINAL_COMMAND = re.compile(
    r"\bdlrun (?:ls|compare|check|clean|diff|eval|predict|export|show|rerun|watch|-m|--\w+)\b"
    r"(?:(?![,;] |[)`]| shows?\b).)*"
)


def mark_terminal_commands(message: str) -> str:
    """Add "in a terminal" to each command in a message that has no Python call, if the caller is Python."""
    if not is_called_from_python() or "in a terminal" in message:
        return message
    return _TERMINAL_COMMAND.sub(lambda match: f"{match[0]} in a terminal", message)


def suggest_init_from(folder: str | Path, *words: str) -> str:
    """Format a new run that starts from another's weights; `...` stands for what the user knows."""
    name = str(folder)
    # Hydra takes such values in quotes only.
    if set(name) & set("=,[]{}()'\"\\:") or name != name.strip():
        escaped = name.replace('"', r"\"")
        name = f'"{escaped}"'

    word = f"init_from={name}"
    if is_called_from_python():
        return f"dlrun.train({', '.join(map(repr, [word, *words]))}, ...)"
    return " ".join(["dlrun", quote(word), *words, "..."])


def suggest_trust(modules: Sequence[str]) -> str:
    """Format what to add to the command, or to the call, that loads a run, so that it may import these modules."""
    if _python_function.get() == "load":
        return f"trusted_modules={list(modules)!r}"

    names = ", ".join(modules)
    if is_called_from_python():
        return repr(f"trusted_modules=[{names}]")
    return f"trusted_modules='[{names}]'"
