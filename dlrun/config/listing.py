"""`dlrun ls`: the groups and options to choose from, without importing torch."""

from pathlib import Path

from dlrun.core.errors import RequestError
from dlrun.core.suggest import did_you_mean


def list_groups(config_dir: Path) -> list[str]:
    """The groups that config.yaml's defaults list names, in its order."""
    from dlrun.config.compose import GROUPS

    return [group for group in GROUPS if (config_dir / group).is_dir()]


def list_options(config_dir: Path, group: str) -> list[tuple[str, str]]:
    """Each option of a group, with the first comment line of its file. RequestError if there is no such group."""
    folder = config_dir / group
    if not folder.is_dir():
        groups = list_groups(config_dir)
        hint = did_you_mean(group, groups, "dlrun ls ")
        raise RequestError(f"there is no group {group}; {hint}type one of {', '.join(groups)}")
    return [(path.stem, _read_first_comment(path)) for path in sorted(folder.glob("*.yaml"))]


def _read_first_comment(path: Path) -> str:
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            continue
        comment = line[1:].strip()
        # Hydra's directive, not a comment for people.
        if not comment.startswith("@package"):
            return comment
    return ""
