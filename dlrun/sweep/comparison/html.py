"""report.html: the whole comparison as one page that loads no other file."""

import html
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from dlrun.runs.record import RunRecord
from dlrun.runs.reports import page
from dlrun.runs.reports.console import format_number
from dlrun.sweep.comparison import table, verdicts
from dlrun.sweep.comparison.ranking import Comparison, Ranking, Setting

_RUN_COLUMNS = ("setting", "status", "seed", "best value", "epochs", "train s", "folder")


def render_report(
    comparison: Comparison, pictures: Sequence[Path], facts: Sequence[tuple[str, str]], folder: Path = Path()
) -> str:
    """The page: verdicts, tables, failures, notes, pictures (inlined), all runs, and the facts.

    folder: where the page will lie; links to the runs are relative to it.
    """
    parts = [_render_ranking(ranking, comparison) for ranking in comparison.rankings]
    if comparison.failures:
        failures = [f"{name}: {error}" for name, error in comparison.failures]
        parts.append(f"<h2>No usable result</h2>\n{page.render_bullets(failures)}")
    if comparison.notes:
        parts.append(f"<h2>Notes</h2>\n{page.render_bullets(comparison.notes)}")
    if pictures:
        parts.append("<h2>Pictures</h2>\n" + "".join(page.embed_picture(path) for path in pictures))
    parts.append(page.render_details(f"All {len(comparison.runs)} runs", _render_runs(comparison, folder)))
    parts.append(f"<h2>Facts</h2>\n{page.render_facts(facts)}")
    return page.render_page(verdicts.summarize(comparison), "".join(parts))


def _render_ranking(ranking: Ranking, comparison: Comparison) -> str:
    """The verdicts and the table of settings."""
    title = ""
    if len(comparison.rankings) > 1:
        title = f"<h2>{html.escape(f'{ranking.metric} on {ranking.data}')}</h2>\n"

    # The page's heading is the first verdict of the first ranking.
    sentences = verdicts.list_verdicts(ranking)
    if ranking is comparison.rankings[0]:
        sentences = sentences[1:]

    names = table.list_headers(ranking)
    rows = []
    for row in table.list_rows(ranking):
        rows.append([html.escape(cell) for cell in row])

    # CSS classes of the rows; without a usable run there is no best one.
    classes = [""] * len(ranking.settings)
    if ranking.settings and ranking.settings[0].runs:
        classes[0] = "best"
    # The rows after the settings are those of the trivial baseline.
    classes += ["baseline"] * (len(rows) - len(classes))

    settings = page.render_table(names, rows, max(len(ranking.keys), 1), classes)
    return f"{title}{page.render_bullets(sentences)}{settings}"


def _render_runs(comparison: Comparison, folder: Path) -> str:
    rows = []
    for ranking in comparison.rankings:
        for setting in ranking.settings:
            rows += [_render_run(run, setting, ranking, folder) for run in setting.all_runs]
    return page.render_table(list(_RUN_COLUMNS), rows, left=2)


def _render_run(run: RunRecord, setting: Setting, ranking: Ranking, folder: Path) -> list[str]:
    seconds = run.result.get("train_seconds")
    cells = [
        setting.label,
        run.reason_unusable or run.result["status"],
        run.seed,
        table.format_metric(run.best_value, ranking),
        run.result.get("epochs", "–"),
        "–" if seconds is None else format_number(float(seconds)),
    ]

    # Relative links survive when the whole folder is moved.
    place = Path(os.path.relpath(run.folder, folder)).as_posix()
    report = "report.html" if (run.folder / "report.html").is_file() else ""
    link = f'<a href="{quote(place)}/{report}">{html.escape(run.folder.name)}</a>'
    return [*(html.escape(str(cell)) for cell in cells), link]
