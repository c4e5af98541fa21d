"""Commands that dlrun tells its user to type: names in them are quoted, so that a shell takes them as they stand."""

import shlex
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
