"""`dlrun help [TOPIC]`: the pages of dlrun/docs/, of the installed version, in the terminal."""

import sys
from pathlib import Path

from dlrun.core.errors import RequestError
from dlrun.core.suggest import did_you_mean
from dlrun.core.terminal import write_out

DOCS = Path(__file__).parent.parent / "docs"

# In the order in which a newcomer reads them.
TOPICS = (
    "quickstart", "course", "recipes", "sequences", "callbacks", "sweeps", "search", "predict-and-export", "python-api",
    "loggers", "clusters", "coming-from", "configuration", "run-folder", "guarantees", "benchmarks", "architecture",
    "contributing", "changelog",
)  # fmt: skip


def show_page(words: list[str]) -> None:
    """Print one page, or the list of pages without a word. RequestError for a topic that has no page."""
    if len(words) > 1:
        raise RequestError(f"one topic at a time; type dlrun help {words[0]}")
    if not words:
        write_out(_list_topics())
        return

    topic = words[0]
    if topic not in TOPICS:
        hint = did_you_mean(topic, list(TOPICS), "dlrun help ")
        raise RequestError(f"there is no page {topic}; {hint}type one of {', '.join(TOPICS)}")
    text = (DOCS / f"{topic}.md").read_text(encoding="utf-8")
    if sys.stdout.isatty():
        _print_markdown(text)
    else:
        write_out(text.rstrip("\n"))


def _list_topics() -> str:
    """Each topic with the title of its page."""
    width = max(len(topic) for topic in TOPICS)
    lines = ["pages, shown by dlrun help TOPIC:"]
    for topic in TOPICS:
        title = (DOCS / f"{topic}.md").read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        lines.append(f"  {topic:<{width}}  {title}")
    return "\n".join(lines)


def _print_markdown(text: str) -> None:
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.theme import Theme

    # On the background that the terminal has, light or dark.
    console = Console(theme=Theme({"markdown.code": "bold cyan"}))
    console.print(Markdown(text, code_theme="ansi_dark"), width=min(console.width, 120))
