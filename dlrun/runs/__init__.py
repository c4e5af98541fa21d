"""What a run leaves on disk, and how it is read and shown again; `dlrun.runs("outputs")` lists saved runs."""

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlrun.runs.run_list import RunList


class _CallableModule(ModuleType):
    """This package, which Python binds to the name `dlrun.runs` as soon as a module of it is imported.

    That is the name of a public function too, so the package is called as that function.
    """

    def __call__(self, folder: str | Path = "outputs") -> "RunList":
        """List the runs in a folder and below it, newest first; RequestError where there is no such folder."""
        from dlrun.runs.run_list import list_runs

        return list_runs(Path(folder))


sys.modules[__name__].__class__ = _CallableModule
