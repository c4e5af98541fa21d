"""report.html: the whole answer as one page that needs nothing else, and loads nothing."""

import base64
import html
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from dlrun.console import number
from dlrun.sweep import table, verdicts
from dlrun.sweep.comparison import Comparison, Ranking
from dlrun.sweep.written import written

# A policy that lets the browser fetch nothing and run nothing, whatever an override holds.
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --soft: #8881; --mark: #2a72; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }}
h1 {{ font-size: 1.35rem; line-height: 1.3; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }}
th, td {{ padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }}
th.left, td.left {{ text-align: left; }}
tr.best td {{ background: var(--mark); font-weight: 600; }}
tr.baseline td {{ background: var(--soft); font-style: italic; }}
img {{ max-width: 100%; height: auto; background: #fff; border-radius: 4px; margin: .5rem 0; }}
li, dd {{ overflow-wrap: anywhere; }}
summary {{ cursor: pointer; font-weight: 600; margin: 1rem 0 .5rem; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .9rem; }}
dt {{ opacity: .7; }} dd {{ margin: 0; }}
</style>
</head>
<body>
"""


def report(
    comparison: Comparison, pictures: Sequence[Path], facts: Sequence[tuple[str, str]], folder: Path = Path()
) -> str:
    """The page: the answer, what it is to be taken with, tables, every run, pictures (inlined), and the facts.

    folder: where the page will lie; links to the runs are relative to it.
    """
    headline = verdicts.headline(comparison)
    parts = [_HEAD.format(title=html.escape(headline)), f"<h1>{html.escape(headline)}</h1>\n"]
    parts += [_ranking(ranking, comparison) for ranking in comparison.rankings]
    if comparison.failures:
        parts.append(f"<h2>No usable result</h2>\n{_list([f'{name}: {why}' for name, why in comparison.failures])}")
    if comparison.notes:
        parts.append(f"<h2>Notes</h2>\n{_list(comparison.notes)}")
    if pictures:
        parts.append("<h2>Pictures</h2>\n" + "".join(_picture(path) for path in pictures))
    parts.append(
        f"<details><summary>All {len(comparison.runs)} runs</summary>\n{_runs(comparison, folder)}</details>\n"
    )
    named = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>\n" for k, v in facts)
    parts.append(f"<h2>Facts</h2>\n<dl>{named}</dl>\n</body>\n</html>\n")
    return "".join(parts)


def _ranking(ranking: Ranking, comparison: Comparison) -> str:
    """The verdicts and the table of settings; the first sentence of the first is the page's heading already."""
    said = verdicts.sentences(ranking)
    title = f"<h2>{html.escape(f'{ranking.metric} on {ranking.data}')}</h2>\n" if len(comparison.rankings) > 1 else ""
    if ranking is comparison.rankings[0]:
        said = said[1:]
    names, rows = table.headers(ranking), table.rows(ranking)
    kinds = ["best" if i == 0 and s.runs else "" for i, s in enumerate(ranking.settings)]
    kinds += ["baseline"] * (len(rows) - len(kinds))
    whole = _table(names, [[html.escape(cell) for cell in row] for row in rows], max(len(ranking.keys), 1), kinds)
    return f"{title}{_list(said)}{whole}"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]], left: int, kinds: Sequence[str] = ()) -> str:
    """Cells are HTML already; the first `left` columns stand to the left."""
    sides = [' class="left"' if i < left else "" for i in range(len(names))]
    head = "".join(f"<th{side}>{html.escape(name)}</th>" for side, name in zip(sides, names, strict=True))
    lines = [f"<tr>{head}</tr>"]
    for i, row in enumerate(rows):
        kind = f' class="{kinds[i]}"' if i < len(kinds) and kinds[i] else ""
        lines.append(f"<tr{kind}>{''.join(f'<td{s}>{c}</td>' for s, c in zip(sides, row, strict=True))}</tr>")
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>\n"


def _runs(comparison: Comparison, folder: Path) -> str:
    rows = []
    for ranking in comparison.rankings:
        for setting in ranking.settings:
            for run in sorted([*setting.runs, *setting.lost], key=lambda run: run.seed):
                seconds, place = run.result.get("train_seconds"), os.path.relpath(run.folder, folder)
                link = f'<a href="{quote(Path(place).as_posix())}/">{html.escape(run.folder.name)}</a>'
                plain = [setting.label, run.trouble or run.result["status"], run.seed, written(run.value, ranking)]
                plain += [run.result.get("epochs", "–"), "–" if seconds is None else number(float(seconds))]
                rows.append([*(html.escape(str(cell)) for cell in plain), link])
    return _table(["setting", "status", "seed", "best value", "epochs", "train s", "folder"], rows, left=2)


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">\n'


def _list(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(said)}</li>' for said in sentences)}</ul>\n" if sentences else ""
