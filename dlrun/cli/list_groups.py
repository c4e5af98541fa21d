"""`dlrun ls [GROUP ...]`: what can be chosen."""

import sys
from collections.abc import Sequence

from dlrun.config import listing, schema
from dlrun.core.output_format import format_csv, format_json
from dlrun.core.terminal import write_out


def list_options(words: Sequence[str], format: str) -> None:
    """Print a line for each option of the groups, of all groups without a word."""
    groups = words or listing.list_groups(schema.CONFIG_DIR)
    if format == "table":
        _print_table(groups, with_headings=not words)
    else:
        rows = []
        for group in groups:
            for name, about in listing.list_options(schema.CONFIG_DIR, group):
                rows.append({"group": group, "option": name, "about": about})
        write_out(format_json(rows) if format == "json" else format_csv(("group", "option", "about"), rows))

    # A closed pipe is reported now, where main() handles it, not at exit.
    sys.stdout.flush()


def _print_table(groups: Sequence[str], with_headings: bool) -> None:
    for group in groups:
        if with_headings:
            write_out(group)
        options = listing.list_options(schema.CONFIG_DIR, group)
        width = max((len(name) for name, _ in options), default=0)
        for name, about in options:
            write_out(f"  {name:<{width}}  {about}")
