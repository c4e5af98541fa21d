"""report.html: the whole answer as one page that needs nothing else, and loads nothing."""

import html
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from dlrun.runs.reports import page
from dlrun.runs.reports.console import number
from dlrun.sweep.comparison import table, verdicts
from dlrun.sweep.comparison.ranking import Comparison, Ranking
from dlrun.sweep.comparison.written import format_metric


def render_report(
    comparison: Comparison, pictures: Sequence[Path], facts: Sequence[tuple[str, str]], folder: Path = Path()
) -> str:
    """The page: the answer, what it is to be taken with, tables, every run, pictures (inlined), and the facts.

    folder: where the page will lie; links to the runs are relative to it.
    """
    parts = [_ranking(ranking, comparison) for ranking in comparison.rankings]
    if comparison.failures:
        failed = [f"{name}: {why}" for name, why in comparison.failures]
        parts.append(f"<h2>No usable result</h2>\n{page.bullets(failed)}")
    if comparison.notes:
        parts.append(f"<h2>Notes</h2>\n{page.bullets(comparison.notes)}")
    if pictures:
        parts.append("<h2>Pictures</h2>\n" + "".join(page.picture(path) for path in pictures))
    parts.append(page.folded(f"All {len(comparison.runs)} runs", _runs(comparison, folder)))
    parts.append(f"<h2>Facts</h2>\n{page.facts(facts)}")
    return page.page(verdicts.summarize(comparison), "".join(parts))


def _ranking(ranking: Ranking, comparison: Comparison) -> str:
    """The verdicts and the table of settings; the first sentence of the first is the page's heading already."""
    said = verdicts.list_verdicts(ranking)
    title = f"<h2>{html.escape(f'{ranking.metric} on {ranking.data}')}</h2>\n" if len(comparison.rankings) > 1 else ""
    if ranking is comparison.rankings[0]:
        said = said[1:]
    names, rows = table.list_headers(ranking), table.list_rows(ranking)
    kinds = ["best" if i == 0 and s.runs else "" for i, s in enumerate(ranking.settings)]
    kinds += ["baseline"] * (len(rows) - len(kinds))
    whole = page.table(names, [[html.escape(cell) for cell in row] for row in rows], max(len(ranking.keys), 1), kinds)
    return f"{title}{page.bullets(said)}{whole}"


def _runs(comparison: Comparison, folder: Path) -> str:
    rows = []
    for ranking in comparison.rankings:
        for setting in ranking.settings:
            for run in sorted([*setting.runs, *setting.lost], key=lambda run: run.seed):
                seconds, place = run.result.get("train_seconds"), os.path.relpath(run.folder, folder)
                own = "report.html" if (run.folder / "report.html").is_file() else ""
                link = f'<a href="{quote(Path(place).as_posix())}/{own}">{html.escape(run.folder.name)}</a>'
                plain = [
                    setting.label,
                    run.trouble or run.result["status"],
                    run.seed,
                    format_metric(run.value, ranking),
                ]
                plain += [run.result.get("epochs", "–"), "–" if seconds is None else number(float(seconds))]
                rows.append([*(html.escape(str(cell)) for cell in plain), link])
    return page.table(["setting", "status", "seed", "best value", "epochs", "train s", "folder"], rows, left=2)
