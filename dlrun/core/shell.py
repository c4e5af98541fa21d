"""What dlrun tells its user to do next: a line of the shell, or a call where Python has called.

Names in a line are quoted, so that a shell takes them as they stand.
"""

import contextlib
import re
import shlex
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path


def quote(name: str | Path) -> str:
    """A name as one word of a command line."""
    return shlex.quote(str(name))


def requote(command: str) -> str:
    """A command of dlrun that was read from a file, in which nothing ends it and begins another."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    return shlex.join(words) if words[:1] == ["dlrun"] else "dlrun ..."


@contextlib.contextmanager
def advise_in_python(function: str) -> Iterator[None]:
    """Advice is given as calls while this lasts: whoever called dlrun.train or dlrun.load goes on in Python."""
    token = _called.set(function)
    try:
        yield
    finally:
        _called.reset(token)


def suggest_command(command: str, place: str | Path, *words: str, modules: Sequence[str] = ()) -> str:
    """What to type for `dlrun eval` or `dlrun resume` of a saved run, here: a line of the shell, or a call.

    words: key=value; modules: those of the user's own that the run needs.
    """
    if not _called.get():
        trust = [f"trusted_modules=[{','.join(modules)}]"] if modules else []
        return " ".join(["dlrun", command, quote(place), *words, *(quote(word) for word in trust)])
    if command == "eval":
        trusted = f", trusted_modules={list(modules)!r}" if modules else ""
        return f"dlrun.load({str(place)!r}{trusted})"
    trust = [f"trusted_modules=[{','.join(modules)}]"] if modules else []
    return f"dlrun.train({', '.join(map(repr, [f'resume={place}', *words, *trust]))})"


def is_called_from_python() -> bool:
    """Whether dlrun was called from Python rather than from a shell."""
    return bool(_called.get())


def suggest_example(command: str) -> str:
    """An example of a command, or of its Python call, for a user who named no run."""
    if not is_called_from_python():
        more = " INPUT ..." if command == "predict" else ""
        return f"dlrun {command} outputs/<date>/<run>{more}"
    return "dlrun.train('resume=outputs/<date>/<run>')" if command == "resume" else "dlrun.load('outputs/<date>/<run>')"


def suggest_repeat(command: str) -> str:
    """The recorded command of a run, quoted for the shell or as a Python call, to start the run again."""
    words = shlex.split(requote(command))[1:]
    if not is_called_from_python() or words[:1] == ["..."]:
        return requote(command)
    return f"dlrun.train({', '.join(map(repr, words))})"


# Commands that Python has no call for, up to what follows them in a sentence.
_OF_A_TERMINAL = re.compile(
    r"\bdlrun (?:ls|compare|check|clean|diff|eval|predict|export|-m|--\w+)\b(?:(?![,;] |[)`]| shows?\b).)*"
)


def mark_terminal_commands(message: str) -> str:
    """Add "in a terminal" to each command in a message that has no Python call, if the caller is Python."""
    if not is_called_from_python() or "in a terminal" in message:
        return message
    return _OF_A_TERMINAL.sub(lambda match: f"{match[0]} in a terminal", message)


def suggest_init_from(folder: str | Path, *words: str) -> str:
    """What to type, here, for a new run from the weights of another; `...` stands for what the user knows."""
    name = str(folder)
    if set(name) & set("=,[]{}()'\"\\:") or name != name.strip():  # Hydra takes such values in quotes only
        escaped = name.replace('"', r"\"")
        name = f'"{escaped}"'
    word = f"init_from={name}"
    if _called.get():
        return f"dlrun.train({', '.join(map(repr, [word, *words]))}, ...)"
    return " ".join(["dlrun", quote(word), *words, "..."])


def suggest_trust(modules: Sequence[str]) -> str:
    """What to add to the command, or to the call, that loads a run, so that it may use these modules."""
    if _called.get() == "load":
        return f"trusted_modules={list(modules)!r}"
    word = f"trusted_modules=[{', '.join(modules)}]"
    return repr(word) if _called.get() else f"trusted_modules='[{', '.join(modules)}]'"


_called = ContextVar("called", default="")  # the function of dlrun's that Python has called; none on a command line
