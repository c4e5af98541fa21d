"""The answer of a sweep, or of any runs put side by side: said, written and drawn."""

import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from dlrun.core import markdown as markdown_text
from dlrun.core.errors import RequestError
from dlrun.core.files import write_text, writing_to
from dlrun.core.inside import refuse_outside
from dlrun.runs import folder as run_folder
from dlrun.runs.record import RunRecord
from dlrun.runs.reports.console import Console, facts
from dlrun.runs.reports.plots import fonts
from dlrun.sweep.comparison import finished, html, table, verdicts
from dlrun.sweep.comparison.finished import Lost
from dlrun.sweep.comparison.ranking import Comparison, compare
from dlrun.sweep.ledger import Ledger

_OUTPUTS = "paths.outputs="
_MOST_FAILURES = 10  # on the terminal


def compare_runs(words: Sequence[str]) -> int:
    """`dlrun compare DIR... [paths.outputs=X]`; returns the exit code, 0. RequestError when there is nothing there.

    Writes into the DIR itself where it is one sweep, else into a new folder under paths.outputs.
    """
    places, outputs = _asked(words)
    damaged: Lost = []
    comparison = compare(finished.find_runs(places, damaged), damaged)
    whole_sweep = len(places) == 1 and (places[0] / "sweep.jsonl").is_file()
    console = Console()
    print_comparison(comparison, console)
    name = f"{len(comparison.runs)}_runs"
    folder = places[0] if whole_sweep else run_folder.create(outputs / "comparisons", name)
    refuse_outside(folder)
    with writing_to(folder, "type paths.outputs=<folder>"):
        written = write_comparison(comparison, folder, shlex.join(["dlrun", "compare", *words]))
    for line in fonts.note():
        console.say(f"note: {line}")
    console.say()
    console.say(facts([("comparison", str(folder)), ("open", str(written))]))
    return 0


def collect_runs(ledger: Ledger, labels: dict[str, str]) -> tuple[list[RunRecord], Lost, int]:
    """The runs of a sweep, why those that cannot be read are lost, and how many were not begun.

    A job that failed without a result (its process was killed) counts as a failed run of its setting.
    """
    runs, failures, waiting = list[RunRecord](), Lost(), 0
    dead = []
    for entry in ledger.entries.values():
        status, damaged = ledger.read_status(entry), Lost()
        run = finished.read_run(ledger.folder / entry.folder, damaged)
        if run is not None:
            runs.append(run)
        elif status == "pending":
            waiting += 1
        elif entry.error:
            dead.append(entry)
            failures.append((labels.get(entry.key, entry.folder), entry.error))
        else:
            failures += damaged
    for entry in dead:
        alike = [run for run in runs if run.choices.get("data") == entry.choices.get("data")]
        if alike:
            runs.append(
                finished.make_failed_run(
                    entry.config, entry.choices, entry.overrides, ledger.folder / entry.folder, alike[0]
                )
            )
    return runs, failures, waiting


def _asked(words: Sequence[str]) -> tuple[list[Path], Path]:
    """The folders, and where to write; a folder's name may hold a = too."""
    places, outputs = [], Path("outputs")
    for word in words:
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
    """Each table with its verdicts; then what failed, and what else is to be known."""
    for ranking in comparison.rankings:
        if len(comparison.rankings) > 1:
            console.say(f"{ranking.metric} on {ranking.data}")
        console.say(table.build_terminal_table(ranking, console.terminal))
        for line in (table.describe_hidden_rows(ranking), *verdicts.list_verdicts(ranking)):
            if line:
                console.say(line)
        console.say()
    for name, why in comparison.failures[:_MOST_FAILURES]:
        console.say(f"no result: {name} ({why})")
    if len(comparison.failures) > _MOST_FAILURES:
        console.say(f"and {len(comparison.failures) - _MOST_FAILURES} more without a result")
    for note in comparison.notes:
        console.say(f"note: {note}")


def write_comparison(comparison: Comparison, folder: Path, command: str = "") -> Path:
    """comparison.csv, comparison.md, figures/ and, last, report.html, whose path is returned; each file atomically.

    command: how to make the comparison, or the sweep, again.
    """
    from dlrun.sweep.comparison import plots

    write_text(folder / "comparison.csv", table.render_csv(comparison))
    write_text(folder / "comparison.md", render_markdown(comparison, command))
    pictures = plots.draw_all(comparison, folder / "figures")
    page = html.render_report(comparison, pictures, describe_origin(comparison.runs, command), folder)
    write_text(folder / "report.html", page)
    return folder / "report.html"


def render_markdown(comparison: Comparison, command: str = "") -> str:
    """What `say` says, with whole tables, as Markdown."""
    parts = []
    for ranking in comparison.rankings:
        title = []
        if len(comparison.rankings) > 1:
            named = markdown_text.inline(f"{ranking.metric} on {ranking.data}")
            title = [f"## {named}\n"]
        parts += [*title, table.render_markdown(ranking), _bullets(verdicts.list_verdicts(ranking))]
    said = [f"no result: {name} ({why})" for name, why in comparison.failures]
    said += [f"note: {note}" for note in comparison.notes]
    parts += [_bullets(said)] if said else []
    parts += [markdown_text.code(command)] if command else []
    return "\n".join(parts)


def _bullets(sentences: Sequence[str]) -> str:
    return "".join(f"- {markdown_text.line(said)}\n" for said in sentences)


def describe_origin(runs: Sequence[RunRecord], command: str = "") -> list[tuple[str, str]]:
    """What the report says of its making: the command, the day, and where the runs were made."""
    rows = [("command", command)] if command else []
    rows += [("compared", datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")), ("runs", str(len(runs)))]
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for key, value in run.machine.items():
            found.setdefault(key, {})[value] = None
    return rows + [(key, "; ".join(values)) for key, values in found.items()]
