"""The comparison of a sweep, or of any runs put side by side: printed, written and drawn."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from dlrun.core import markdown as markdown_text
from dlrun.core.errors import RequestError
from dlrun.core.files import convert_write_errors, write_text
from dlrun.core.inside import refuse_outside
from dlrun.core.output_format import format_json
from dlrun.core.terminal import write_out
from dlrun.runs import folder as run_folder
from dlrun.runs.query import is_sweep_folder
from dlrun.runs.record import RunRecord
from dlrun.runs.reports.console import Console, format_facts
from dlrun.runs.reports.plots import fonts
from dlrun.sweep.comparison import html, sources, table, verdicts
from dlrun.sweep.comparison.ranking import Comparison, Ranking, compare
from dlrun.sweep.comparison.sources import Failures
from dlrun.sweep.ledger import Ledger

# Saves the pictures of a comparison in a folder; returns the paths.
Draw = Callable[[Comparison, Path], list[Path]]

_OUTPUTS = "paths.outputs="
# Failures on the terminal; the files list all.
_MOST_FAILURES = 10


def compare_runs(words: Sequence[str], format: str = "table") -> int:
    """`dlrun compare DIR... [paths.outputs=X] [format=F]`; returns the exit code, 0. RequestError if no run is found.

    Writes into the DIR itself if it is one sweep, else into a new folder under paths.outputs; as JSON or CSV the
    comparison is only printed.
    """
    places, outputs = _parse_words(words)
    unreadable: Failures = []
    comparison = compare(sources.find_finished_runs(places, unreadable), unreadable)
    if format == "json":
        write_out(format_json(table.to_data(comparison)))
        return 0
    if format == "csv":
        write_out(table.render_csv(comparison).removesuffix("\n"))
        return 0

    console = Console()
    print_comparison(comparison, console)

    # Of a sweep the comparison replaces the one that the sweep itself has written.
    if len(places) == 1 and is_sweep_folder(places[0]):
        folder = places[0]
    else:
        folder = run_folder.create_folder(outputs / "comparisons", f"{len(comparison.runs)}_runs")
    # The folder of a sweep may come from elsewhere, with links in it.
    refuse_outside(folder)
    with convert_write_errors(folder, "type paths.outputs=<folder>"):
        page = write_comparison(comparison, folder, shlex.join(["dlrun", "compare", *words]))

    # Known only after all pictures are drawn.
    for line in fonts.describe_missing_letters():
        console.say(f"note: {line}")
    console.say()
    console.say(format_facts([("comparison", str(folder)), ("open", str(page))]))
    return 0


def collect_runs(
    ledger: Ledger, labels: dict[str, str], records: Mapping[Path, RunRecord] | None = None
) -> tuple[list[RunRecord], Failures, int]:
    """The runs of a sweep, why others cannot be read, and how many have not started.

    A job that failed without a result (its process was killed) counts as a failed run of its setting.
    records: by folder, those that have been read already.
    """
    runs = list[RunRecord]()
    failures = Failures()
    pending = 0
    failed_entries = []
    for entry in ledger.entries.values():
        folder = ledger.folder / entry.folder
        run = (records or {}).get(folder) or RunRecord(folder)
        status = ledger.read_status(entry, run)
        unreadable = Failures()
        if sources.check_run(run, unreadable):
            runs.append(run)
        elif status == "pending":
            pending += 1
        elif entry.error:
            failed_entries.append(entry)
            failures.append((labels.get(entry.key, entry.folder), entry.error))
        else:
            failures += unreadable

    # A failed run needs a readable one of the same data, which knows the metric.
    for entry in failed_entries:
        alike = [run for run in runs if run.choices.get("data") == entry.choices.get("data")]
        if alike:
            folder = ledger.folder / entry.folder
            runs.append(sources.make_failed_run(entry.config, entry.choices, entry.overrides, folder, alike[0]))
    return runs, failures, pending


def _parse_words(words: Sequence[str]) -> tuple[list[Path], Path]:
    """The folders to compare, and the one for outputs; names of folders may contain "="."""
    places = []
    outputs = Path("outputs")
    for word in words:
        # A folder may be called "paths.outputs=x".
        if word.startswith(_OUTPUTS) and not Path(word).is_dir():
            outputs = Path(word.removeprefix(_OUTPUTS))
        elif Path(word).is_dir() or ("=" not in word and not word.startswith("-")):
            places.append(Path(word))
        else:
            raise RequestError(f"dlrun compare takes folders, and {_OUTPUTS}<folder>; leave out {word}")

    if not places:
        raise RequestError("dlrun compare needs a run, a sweep, or a folder of them; type dlrun compare outputs")
    return places, outputs


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print each table with its verdicts, then failures and notes."""
    for ranking in comparison.rankings:
        if len(comparison.rankings) > 1:
            console.say(_format_title(ranking))
        console.say(table.build_terminal_table(ranking, console.terminal))
        for line in (table.describe_hidden_rows(ranking), *verdicts.list_verdicts(ranking)):
            if line:
                console.say(line)
        console.say()

    for name, error in comparison.failures[:_MOST_FAILURES]:
        console.say(f"no result: {name} ({error})")
    if len(comparison.failures) > _MOST_FAILURES:
        console.say(f"and {len(comparison.failures) - _MOST_FAILURES} more without a result")
    for note in comparison.notes:
        console.say(f"note: {note}")


def _format_title(ranking: Ranking) -> str:
    return f"{ranking.metric} on {ranking.data}"


def write_comparison(comparison: Comparison, folder: Path, command: str = "", draw: Draw | None = None) -> Path:
    """Write comparison.csv, comparison.md, figures/ and, last, report.html, whose path is returned.

    Each file is written atomically. command: what makes the comparison, or the sweep, again; draw: makes other
    pictures than those of a grid.
    """
    # matplotlib is slow to import, and needed last.
    from dlrun.sweep.comparison import plots

    write_text(folder / "comparison.csv", table.render_csv(comparison))
    write_text(folder / "comparison.md", render_markdown(comparison, command))
    pictures = (draw or plots.draw_all)(comparison, folder / "figures")
    origin = describe_origin(comparison.runs, command)
    page = html.render_report(comparison, pictures, origin, folder)
    write_text(folder / "report.html", page)
    return folder / "report.html"


def render_markdown(comparison: Comparison, command: str = "") -> str:
    """What `print_comparison` prints, with whole tables, as Markdown."""
    parts = []
    for ranking in comparison.rankings:
        if len(comparison.rankings) > 1:
            parts.append(f"## {markdown_text.escape_inline(_format_title(ranking))}\n")
        parts.append(table.render_markdown(ranking))
        parts.append(_render_bullets(verdicts.list_verdicts(ranking)))

    sentences = [f"no result: {name} ({error})" for name, error in comparison.failures]
    sentences += [f"note: {note}" for note in comparison.notes]
    if sentences:
        parts.append(_render_bullets(sentences))
    if command:
        parts.append(markdown_text.format_code(command))
    return "\n".join(parts)


def _render_bullets(sentences: Sequence[str]) -> str:
    return "".join(f"- {markdown_text.escape_line_start(sentence)}\n" for sentence in sentences)


def describe_origin(runs: Sequence[RunRecord], command: str = "") -> list[tuple[str, str]]:
    """The facts of the report: the command, the date, and the machines and versions of the runs."""
    rows = []
    if command:
        rows.append(("command", command))
    rows.append(("compared", datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")))
    rows.append(("runs", str(len(runs))))

    # A dict keeps the distinct values in their order.
    machines: dict[str, dict[str, None]] = {}
    for run in runs:
        for key, value in run.machine.items():
            machines.setdefault(key, {})[value] = None
    return rows + [(key, "; ".join(values)) for key, values in machines.items()]
