"""`dlrun ls`: the groups and options to choose from, without importing torch."""

from pathlib import Path

from dlrun.config.compose import GROUPS
from dlrun.core.errors import RequestError
from dlrun.core.suggest import did_you_mean


def list_groups(*config_dirs: Path) -> list[str]:
    """The groups of which one of the folders has options, in the order of GROUPS."""
    return [group for group in GROUPS if any((folder / group).is_dir() for folder in config_dirs)]


def list_options(group: str, *config_dirs: Path) -> list[tuple[str, str]]:
    """Each option of a group, with the first comment line of its file. RequestError if there is no such group."""
    if group not in list_groups(*config_dirs):
        groups = list_groups(*config_dirs)
        hint = did_you_mean(group, groups, "dlrun ls ")
        raise RequestError(f"there is no group {group}; {hint}type one of {', '.join(groups)}")

    files = find_options(group, *config_dirs)
    return [(name, _read_first_comment(path)) for name, path in sorted(files.items())]


def find_options(group: str, *config_dirs: Path) -> dict[str, Path]:
    """The file of each option of a group, by the option's name."""
    files: dict[str, Path] = {}
    for folder in config_dirs:
        for path in (folder / group).glob("*.yaml"):
            # The first folder wins, as in Hydra's search path.
            files.setdefault(path.stem, path)
    return files


def _read_first_comment(path: Path) -> str:
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            continue
        comment = line[1:].strip()
        # Hydra's directive, not a comment for people.
        if not comment.startswith("@package"):
            return comment
    return ""
