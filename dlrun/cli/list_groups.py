"""`dlrun ls [GROUP ...]`: what can be chosen."""

import sys
from collections.abc import Mapping, Sequence

from dlrun.config import listing, project, schema
from dlrun.core.output_format import format_csv, format_json
from dlrun.core.terminal import write_out


def list_options(words: Sequence[str], format: str) -> None:
    """Print a line for each option of the groups, of all groups without a word."""
    own_folder = project.find_configs()
    folders = [schema.CONFIG_DIR] if own_folder is None else [schema.CONFIG_DIR, own_folder]
    options = {group: listing.list_options(group, *folders) for group in words or listing.list_groups(*folders)}
    if format == "table":
        _print_table(options, with_headings=not words)
    else:
        rows = []
        for group, entries in options.items():
            for name, about in entries:
                rows.append({"group": group, "option": name, "about": about})
        write_out(format_json(rows) if format == "json" else format_csv(("group", "option", "about"), rows))

    # A closed pipe is reported now, where main() handles it, not at exit.
    sys.stdout.flush()


def _print_table(options: Mapping[str, Sequence[tuple[str, str]]], with_headings: bool) -> None:
    for group, entries in options.items():
        if with_headings:
            write_out(group)
        width = max((len(name) for name, _ in entries), default=0)
        for name, about in entries:
            write_out(f"  {name:<{width}}  {about}")
