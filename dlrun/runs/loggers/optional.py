"""Libraries of loggers, which a user installs who chooses them."""

import importlib
from types import ModuleType

from dlrun.core.errors import RequestError
from dlrun.core.user_code import get_first_clause


def import_library(name: str, extra: str) -> ModuleType:
    """Import a library; RequestError where it is not installed, or broken.

    extra: the extra of dlrun that installs it.
    """
    command = f"pip install 'dlrun[{extra}]'"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name.partition(".")[0]:
            raise RequestError(f"logger={extra} needs {error.name}, which is not installed; type {command}") from error
        raise RequestError(f"logger={extra}: {name} needs {error.name}; type {command}") from error
    except Exception as error:
        # An installation whose parts do not fit can raise anything.
        raise RequestError(
            f"logger={extra}: {name} cannot be imported ({get_first_clause(error)}); type {command}"
        ) from error
