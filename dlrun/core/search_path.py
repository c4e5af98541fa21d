"""The order of `sys.path`: the user's own modules come from the working directory, behind everything installed.

Imports nothing but what Python itself has imported at its start, as a file of that name may lie in front.
"""

# ruff: noqa: PTH109, PTH100, PTH120, PTH118, PTH113 (pathlib is not imported yet)
import os
import sys

# Where this environment variable is set, Python does not put the working directory in front.
SAFE = "PYTHONSAFEPATH"

# Its value in the processes that dlrun starts.
SAFE_FOR_CHILD = "dlrun"


def put_own_last() -> list[str]:
    """Move the working directory and the folder of a script to the end of `sys.path`, and return the old path.

    Folders that PYTHONPATH names stay where the user has put them.
    """
    before = list(sys.path)
    working_directory = os.getcwd()
    pythonpath = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    pythonpath_folders = {os.path.abspath(path) for path in pythonpath if path}

    own = [working_directory]
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if script is not None:
        own.append(os.path.dirname(os.path.abspath(script)))

    # "" stands for the working directory, too.
    own_entries = [path for path in sys.path if (path == "" or path in own) and path not in pythonpath_folders]
    sys.path[:] = [path for path in sys.path if path not in own_entries]
    for path in [working_directory, *own_entries]:
        if path and path not in sys.path:
            sys.path.append(path)
    return before


def drop_child_flag() -> None:
    """Take the flag that dlrun has set for this process from processes that it may start."""
    if os.environ.get(SAFE) == SAFE_FOR_CHILD:
        del os.environ[SAFE]


def find_shadowing_file(module: str) -> str | None:
    """File of the working directory with the name of an installed module; None if there is no such file."""
    loaded_file = getattr(sys.modules.get(module), "__file__", None)
    for path in (f"{module}.py", os.path.join(module, "__init__.py")):
        if os.path.isfile(path) and loaded_file is not None and os.path.abspath(path) != os.path.abspath(loaded_file):
            return path
    return None
