"""Where modules are looked for: a user's own come from the working directory, behind everything that is installed.

Imports nothing but what Python itself has imported at its start, as a file of that name may lie in front.
"""

# ruff: noqa: PTH109, PTH100, PTH120, PTH118, PTH113 (pathlib is not imported yet)
import os
import sys

SAFE = "PYTHONSAFEPATH"  # Python does not put the working directory in front where this is set
SAFE_FOR_CHILD = "dlrun"  # its value for the processes that dlrun starts


def put_own_last() -> list[str]:
    """Move the working directory and the folder of a script to the end of `sys.path`; returns what it was.

    What PYTHONPATH names stays where the user has put it.
    """
    before = list(sys.path)
    here = os.getcwd()
    chosen = {os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path}
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    own = [here] if script is None else [here, os.path.dirname(os.path.abspath(script))]

    moved = [path for path in sys.path if (path == "" or path in own) and path not in chosen]
    sys.path[:] = [path for path in sys.path if path not in moved]
    for path in dict.fromkeys([here, *(path for path in moved if path)]):
        if path not in sys.path:
            sys.path.append(path)
    return before


def hidden_file(module: str) -> str | None:
    """The file of the working directory by the name of an installed module; None where there is no such file."""
    for path in (f"{module}.py", os.path.join(module, "__init__.py")):
        loaded = getattr(sys.modules.get(module), "__file__", None)
        if os.path.isfile(path) and loaded is not None and os.path.abspath(path) != os.path.abspath(loaded):
            return path
    return None
