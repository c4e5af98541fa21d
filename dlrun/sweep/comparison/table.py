"""A ranking as a table: the same cells on the terminal, in comparison.md and in report.html; numbers for the CSV."""

import io
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dlrun.core import markdown as markdown_text
from dlrun.core.csv_text import CsvWriter
from dlrun.sweep.comparison.ranking import Comparison, Ranking, Setting
from dlrun.sweep.comparison.settings import truncate, shorten_keys, format_value
from dlrun.sweep.comparison.written import format_estimate, format_metric

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.table import Table

MOST_ROWS = 30  # settings on the terminal
_LONGEST = 20  # letters of a value there
INTERVAL, EPOCH, LAST, SECONDS = "95 % interval", "best epoch", "last", "train s"
_SHORT = {INTERVAL: "95 %", EPOCH: "epoch", SECONDS: "s"}  # on the terminal, where 80 columns are all there is
_CSV = ("n", "mean", "std", "low", "high", "best_epoch", "last", "train_seconds")


def list_headers(ranking: Ranking) -> list[str]:
    """The names of all columns; those of the keys that vary come first."""
    names = list(shorten_keys(ranking.keys).values()) or ["setting"]
    lost = ["failed"] if any(setting.lost for setting in ranking.settings) else []
    return [*names, "n", ranking.metric, INTERVAL, EPOCH, LAST, *ranking.tests, SECONDS, *lost]


def list_rows(ranking: Ranking) -> list[list[str]]:
    """The cells of each setting, best first, and of the trivial baseline at last where there is one."""
    found = [_cells(ranking, setting) for setting in ranking.settings]
    trivial = ranking.baseline(ranking.metric)
    if math.isfinite(trivial):
        tests = [format_metric(ranking.baseline(name), ranking) for name in ranking.tests]
        blank = [""] * (max(len(ranking.keys), 1) - 1)
        cells = ["baseline", *blank, "", format_metric(trivial, ranking), "", "", "", *tests, ""]
        found.append(cells + [""] * (len(list_headers(ranking)) - len(cells)))
    return found


def _cells(ranking: Ranking, setting: Setting) -> list[str]:
    score = setting.score
    interval = (
        "–" if math.isnan(score.low) else f"{format_metric(score.low, ranking)}…{format_metric(score.high, ranking)}"
    )
    cells = [format_value(value) for value in setting.values.values()] or ["all runs"]
    cells += [str(score.n), format_estimate(score, ranking), interval, _range(setting.best_epochs)]
    cells += [format_metric(setting.average_metric(name), ranking) for name in (ranking.metric, *ranking.tests)]
    cells.append(_seconds(setting.seconds))
    return cells + ([str(len(setting.lost) or "")] if any(s.lost for s in ranking.settings) else [])


def _range(epochs: Sequence[int]) -> str:
    if not epochs:
        return "–"
    low, high = min(epochs), max(epochs)
    return str(low) if low == high else f"{low}–{high}"


def _seconds(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def build_terminal_table(ranking: Ranking, console: "RichConsole") -> "Table":
    """The table for a terminal: its first rows, and without those columns that it has no room for.

    comparison.csv has them all.
    """
    from rich.measure import Measurement

    from dlrun.runs.reports.console import table

    names, cells, left = list_headers(ranking), list_rows(ranking), max(len(ranking.keys), 1)
    trivial = cells[len(ranking.settings) :]
    cells = cells[: len(ranking.settings)][:MOST_ROWS] + trivial
    shown = list(range(len(names)))
    droppable = [names.index(name) for name in (*reversed(ranking.tests[1:]), SECONDS, LAST, EPOCH, INTERVAL)]
    while True:
        short = [_SHORT.get(names[i], names[i].replace("test/", "test\n")) for i in shown]
        made = table(short, [[truncate(row[i], _LONGEST) for i in shown] for row in cells], left=left)
        made.padding, made.pad_edge = (0, 0, 0, 1), False  # closer than console.table has it: room for more columns
        wide = Measurement.get(console, console.options.update(max_width=10_000), made).maximum
        if wide <= console.width or not droppable:
            return made
        shown.remove(droppable.pop(0))


def describe_hidden_rows(ranking: Ranking) -> str:
    """What the terminal does not show of the settings; "" when it shows all."""
    more = len(ranking.settings) - MOST_ROWS
    return f"and {more} more setting{'s' if more > 1 else ''}: comparison.csv has all" if more > 0 else ""


def render_markdown(ranking: Ranking) -> str:
    """The whole table, in which nothing of a value is read as markup."""
    names, left = list_headers(ranking), max(len(ranking.keys), 1)
    lines = [names, ["---"] * left + ["---:"] * (len(names) - left), *list_rows(ranking)]
    return "".join(f"| {' | '.join(markdown_text.inline(cell) for cell in line)} |\n" for line in lines)


def render_csv(comparison: Comparison) -> str:
    """A line a setting and one a baseline (`row` says which), with plain numbers; nothing where there is none."""
    several = ["data"] if len(comparison.rankings) > 1 else []
    keys = list(dict.fromkeys([*several, *(key for r in comparison.rankings for key in r.keys)]))
    tests = list(dict.fromkeys(name for r in comparison.rankings for name in r.tests))
    file = io.StringIO()
    writer = CsvWriter(file)
    writer.write_row(["row", *keys, "metric", *_CSV, *(name.replace("/", "_") for name in tests), "failed"])
    for ranking in comparison.rankings:
        writer.write_rows(_numbers(ranking, keys, tests))
    return file.getvalue()


def _numbers(ranking: Ranking, keys: Sequence[str], tests: Sequence[str]) -> Iterator[list[Any]]:
    for setting in ranking.settings:
        values = {"data": ranking.data} | {key: format_value(value) for key, value in setting.values.items()}
        score, epochs = setting.score, setting.best_epochs
        epoch = sum(epochs) / len(epochs) if epochs else math.nan
        plain = [
            score.mean,
            score.std,
            score.low,
            score.high,
            epoch,
            setting.average_metric(ranking.metric),
            setting.seconds,
        ]
        plain += [setting.average_metric(name) for name in tests]
        known = [values.get(key, "") for key in keys]
        yield ["setting", *known, ranking.metric, score.n, *map(_finite, plain), len(setting.lost)]
    trivial = ranking.baseline(ranking.metric)
    if math.isfinite(trivial):
        known = [ranking.data if key == "data" and "data" not in ranking.keys else "" for key in keys]
        tested = [_finite(ranking.baseline(name)) for name in tests]
        blank = [""] * (len(_CSV) - 2)
        yield ["baseline", *known, ranking.metric, "", trivial, *blank, *tested, ""]


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else ""
