"""loggers.json: what each logger of a run wants to keep, such as the id of its remote run."""

import json
from pathlib import Path
from typing import Any

from dlrun.core.bounded import describe, read_json
from dlrun.core.errors import DamageError
from dlrun.core.files import write_atomically

STATES = "loggers.json"


def read_states(folder: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """Read the state of each logger by its name, and what is wrong with the file, "" where nothing is."""
    path = folder / STATES
    try:
        values = read_json(path)
        for name, state in values.items():
            if not isinstance(state, dict):
                raise DamageError(path, f"{name} is {describe(state)}, not a mapping")
    except FileNotFoundError:
        return {}, ""
    except DamageError as error:
        return {}, f"{error}; each logger begins anew"
    return values, ""


def write_states(folder: Path, states: dict[str, dict[str, Any]]) -> None:
    """Write the states atomically; ValueError or TypeError where one of them is no plain data."""
    text = json.dumps(states, indent=2, allow_nan=False) + "\n"
    write_atomically(folder / STATES, text.encode())
