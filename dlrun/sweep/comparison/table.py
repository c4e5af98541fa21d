"""A ranking as a table: the same cells on the terminal, in comparison.md and in report.html; numbers for the CSV."""

import io
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dlrun.core import markdown as markdown_text
from dlrun.core.csv_text import CsvWriter
from dlrun.sweep.comparison.ranking import Comparison, Ranking, Setting, is_stacked
from dlrun.sweep.comparison.settings import ABSENT, format_value, shorten_keys, truncate
from dlrun.sweep.comparison.statistics import Estimate

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.table import Table

# Settings on the terminal.
_MOST_ROWS = 30
# Letters of a value on the terminal.
_LONGEST = 20
# Values from here on are written with an exponent.
_SCIENTIFIC = 1e5

_INTERVAL = "95 % interval"
EPOCH = "best epoch"
_LAST = "last"
SECONDS = "train s"

# Headers on the terminal, which may have no more than 80 columns.
_SHORT = {_INTERVAL: "95 %", EPOCH: "epoch", SECONDS: "s"}
_CSV = ("n", "mean", "std", "low", "high", "best_epoch", "last", "train_seconds")


def _count_decimals(ranking: Ranking) -> int:
    """Decimals for two digits of the best setting's spread, or without spread for four digits of its mean."""
    score = ranking.usable_settings[0].score if ranking.usable_settings else Estimate(0, *[math.nan] * 4)
    if score.std > 0:
        digits = 2
        magnitude = score.std
    else:
        digits = 4
        magnitude = abs(score.mean)

    if not math.isfinite(magnitude) or magnitude == 0:
        return 4
    return min(max(digits - 1 - math.floor(math.log10(magnitude)), 0), 6)


def format_metric(value: float, ranking: Ranking) -> str:
    """A value of the monitored metric; "–" for NaN."""
    if not math.isfinite(value):
        return "–"

    decimals = _count_decimals(ranking)
    if abs(value) >= _SCIENTIFIC or 0 < abs(value) < 0.5 * 10.0**-decimals:
        return f"{value:.2e}"
    return f"{value:.{decimals}f}"


def format_estimate(score: Estimate, ranking: Ranking) -> str:
    """The mean, and the standard deviation unless there is one value only."""
    mean = format_metric(score.mean, ranking)
    return mean if math.isnan(score.std) else f"{mean} ± {format_metric(score.std, ranking)}"


def list_headers(ranking: Ranking) -> list[str]:
    """The names of all columns, those of the varying keys first."""
    names = list(shorten_keys(ranking.keys).values()) or ["setting"]
    failure_header = [_name_unusable(ranking)] if _has_unusable(ranking) else []
    return [*names, "n", ranking.metric, _INTERVAL, EPOCH, _LAST, *ranking.test_metrics, SECONDS, *failure_header]


def list_rows(ranking: Ranking) -> list[list[str]]:
    """The cells of each setting, best first, and of the trivial baseline last if there is one."""
    rows = [_format_cells(ranking, setting) for setting in ranking.settings]

    trivial = ranking.get_baseline(ranking.metric)
    if math.isfinite(trivial):
        tests = [format_metric(ranking.get_baseline(name), ranking) for name in ranking.test_metrics]
        # A baseline has neither seeds nor epochs nor a time.
        blank = [""] * (_count_key_columns(ranking) - 1)
        cells = ["baseline", *blank, "", format_metric(trivial, ranking), "", "", "", *tests, ""]
        rows.append(cells + [""] * (len(list_headers(ranking)) - len(cells)))
    return rows


def _has_unusable(ranking: Ranking) -> bool:
    return any(setting.unusable for setting in ranking.settings)


def _name_unusable(ranking: Ranking) -> str:
    """What became of the runs that do not count, in one or two words."""
    are_pruned = {run.reason_unusable.startswith("pruned:") for setting in ranking.settings for run in setting.unusable}
    if are_pruned == {True}:
        return "pruned"
    return "left out" if True in are_pruned else "failed"


def _count_key_columns(ranking: Ranking) -> int:
    """The columns left of the numbers; one even if no key varies."""
    return max(len(ranking.keys), 1)


def _format_cells(ranking: Ranking, setting: Setting) -> list[str]:
    score = setting.score
    interval = "–"
    if not math.isnan(score.low):
        interval = f"{format_metric(score.low, ranking)}…{format_metric(score.high, ranking)}"

    cells = [format_value(value) for value in setting.values.values()] or ["all runs"]
    cells += [str(score.n), format_estimate(score, ranking), interval, _format_range(setting.best_epochs)]
    for name in (ranking.metric, *ranking.test_metrics):
        cells.append(format_metric(setting.average_metric(name), ranking))
    cells.append(_format_seconds(setting.seconds))
    if _has_unusable(ranking):
        cells.append(str(len(setting.unusable) or ""))
    return cells


def _format_range(epochs: Sequence[int]) -> str:
    if not epochs:
        return "–"
    low = min(epochs)
    high = max(epochs)
    return str(low) if low == high else f"{low}–{high}"


def _format_seconds(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def build_terminal_table(ranking: Ranking, console: "RichConsole") -> "Table":
    """The table for a terminal: the first rows, without the columns that do not fit.

    comparison.csv has them all.
    """
    from rich.measure import Measurement

    from dlrun.runs.reports.console import build_table

    names = list_headers(ranking)
    cells = list_rows(ranking)
    count = len(ranking.settings)
    # The baseline, which follows the settings, is always shown.
    cells = cells[:count][:_MOST_ROWS] + cells[count:]

    # Drop one column after the other, the least important first, until the table fits.
    visible = list(range(len(names)))
    droppable = [names.index(name) for name in (*reversed(ranking.test_metrics[1:]), SECONDS, _LAST, EPOCH, _INTERVAL)]
    while True:
        headers = [_SHORT.get(names[i], names[i].replace("test/", "test\n")) for i in visible]
        rows = []
        for row in cells:
            rows.append([truncate(row[i], _LONGEST) for i in visible])
        table = build_table(headers, rows, left=_count_key_columns(ranking))

        # Less padding than console.table has leaves room for more columns.
        table.padding = (0, 0, 0, 1)
        table.pad_edge = False

        width = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
        if width <= console.width or not droppable:
            return table
        visible.remove(droppable.pop(0))


def describe_hidden_rows(ranking: Ranking) -> str:
    """A line about the settings that the terminal does not show; "" if it shows all."""
    more = len(ranking.settings) - _MOST_ROWS
    if more <= 0:
        return ""
    return f"and {more} more setting{'s' if more > 1 else ''}: comparison.csv has all"


def render_markdown(ranking: Ranking) -> str:
    """The whole table in Markdown, with all cells escaped."""
    names = list_headers(ranking)
    left = _count_key_columns(ranking)
    rule = ["---"] * left + ["---:"] * (len(names) - left)

    lines = []
    for row in (names, rule, *list_rows(ranking)):
        cells = " | ".join(map(markdown_text.escape_inline, row))
        lines.append(f"| {cells} |\n")
    return "".join(lines)


def render_csv(comparison: Comparison) -> str:
    """A line for each setting and each baseline (`row` says which) with plain numbers, empty if not finite."""
    # Several rankings are of different data: that is a column too.
    keys = dict[str, None]()
    if len(comparison.rankings) > 1:
        keys["data"] = None
    tests = dict[str, None]()
    for ranking in comparison.rankings:
        keys |= dict.fromkeys(ranking.keys)
        tests |= dict.fromkeys(ranking.test_metrics)

    file = io.StringIO()
    writer = CsvWriter(file)
    test_columns = [name.replace("/", "_") for name in tests]
    writer.write_row(["row", *keys, "metric", *_CSV, *test_columns, "failed"])
    for ranking in comparison.rankings:
        writer.write_rows(_list_numbers(ranking, list(keys), list(tests)))
    return file.getvalue()


def _list_numbers(ranking: Ranking, keys: Sequence[str], tests: Sequence[str]) -> Iterator[list[Any]]:
    for setting in ranking.settings:
        values = {"data": ranking.data}
        for key, value in setting.values.items():
            values[key] = format_value(value)

        score = setting.score
        epochs = setting.best_epochs
        numbers = [score.mean, score.std, score.low, score.high]
        numbers.append(sum(epochs) / len(epochs) if epochs else math.nan)
        numbers.append(setting.average_metric(ranking.metric))
        numbers.append(setting.seconds)
        numbers += [setting.average_metric(name) for name in tests]

        columns = [values.get(key, "") for key in keys]
        cells = map(_drop_infinite, numbers)
        yield ["setting", *columns, ranking.metric, score.n, *cells, len(setting.unusable)]

    trivial = ranking.get_baseline(ranking.metric)
    if math.isfinite(trivial):
        # The data of a baseline are known unless they vary, the values of other keys are not.
        values = {} if "data" in ranking.keys else {"data": ranking.data}
        columns = [values.get(key, "") for key in keys]
        blank = [""] * (len(_CSV) - 2)
        test_values = [_drop_infinite(ranking.get_baseline(name)) for name in tests]
        yield ["baseline", *columns, ranking.metric, "", trivial, *blank, *test_values, ""]


def to_data(comparison: Comparison) -> dict[str, Any]:
    """The comparison as data: rankings with their settings and runs, best first, failures and notes."""
    failures = [{"run": name, "error": error} for name, error in comparison.failures]
    return {
        "rankings": [_describe_ranking(ranking) for ranking in comparison.rankings],
        "failures": failures,
        "notes": comparison.notes,
    }


def _describe_ranking(ranking: Ranking) -> dict[str, Any]:
    names = [ranking.metric, *ranking.test_metrics]
    return {
        "metric": ranking.metric,
        "mode": ranking.mode,
        "data": ranking.data,
        "settings": [_describe_setting(ranking, setting) for setting in ranking.settings],
        "baseline": {name: ranking.get_baseline(name) for name in names},
    }


def _describe_setting(ranking: Ranking, setting: Setting) -> dict[str, Any]:
    score = setting.score
    values = {key: None if value == ABSENT else value for key, value in setting.values.items()}
    return {
        "values": values,
        "n": score.n,
        "mean": score.mean,
        "std": score.std,
        "low": score.low,
        "high": score.high,
        "best_epochs": setting.best_epochs,
        "last": setting.average_metric(ranking.metric),
        "test": {name: setting.average_metric(name) for name in ranking.test_metrics},
        "train_seconds": setting.seconds,
        "by_seed": setting.by_seed,
        "runs": [str(run.folder) for run in setting.runs],
        "stacked": sum(map(is_stacked, setting.runs)),
        "failed": [str(run.folder) for run in setting.unusable],
    }


def _drop_infinite(value: float) -> float | str:
    return value if math.isfinite(value) else ""
