"""The project in the working directory: its pyproject.toml may name a folder of configs, as --config-dir does."""

import tomllib
from pathlib import Path

from dlrun.core.errors import RequestError

FILE = Path("pyproject.toml")
_TABLE = "tool.dlrun"


def find_configs() -> Path | None:
    """The folder that `configs` in the table [tool.dlrun] names; None where there is no such table.

    RequestError for a table that cannot be read, or names no folder.
    """
    try:
        text = FILE.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    # Most projects have no such table, and may have a file that only their other tools can read.
    if _TABLE not in text:
        return None

    try:
        table = tomllib.loads(text).get("tool", {}).get("dlrun", {})
    except tomllib.TOMLDecodeError as error:
        raise RequestError(f"{FILE} cannot be read: {error}") from error
    configs = table.get("configs") if isinstance(table, dict) else None
    if configs is None:
        return None
    if not isinstance(configs, str) or not Path(configs).is_dir():
        raise RequestError(f"configs in [{_TABLE}] of {FILE} is {configs!r}, and there is no such folder; create it")
    return Path(configs)


def list_flags() -> list[str]:
    """The flag for that folder, in front of what is typed; [] without one."""
    configs = find_configs()
    return [] if configs is None else ["--config-dir", str(configs)]
