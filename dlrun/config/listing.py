"""`dlrun ls`: what can be chosen, without importing torch."""

from pathlib import Path

from dlrun.core.errors import RequestError
from dlrun.core.suggest import did_you_mean


def list_groups(config_dir: Path) -> list[str]:
    """The groups that config.yaml's defaults list names, in its order."""
    from dlrun.config.compose import GROUPS

    return [group for group in GROUPS if (config_dir / group).is_dir()]


def list_options(config_dir: Path, group: str) -> list[tuple[str, str]]:
    """Each option of a group, with the words its file opens with."""
    folder = config_dir / group
    if not folder.is_dir():
        known = list_groups(config_dir)
        hint = did_you_mean(group, known, "dlrun ls ")
        raise RequestError(f"there is no group {group}; {hint}type one of {', '.join(known)}")
    return [(path.stem, _first_words(path)) for path in sorted(folder.glob("*.yaml"))]


def _first_words(path: Path) -> str:
    comments = (line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
    return next((line for line in comments if not line.startswith("@package")), "")
