"""report.html of one run: metrics beside the baseline, curves, pictures, settings and machine, on one page."""

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrun.core.files import write_text
from dlrun.core.yaml import dump_yaml
from dlrun.engine.metric_names import select_metrics
from dlrun.experiment.context import RunContext
from dlrun.experiment.reports import terminal
from dlrun.experiment.results import compare_naive_forecasts
from dlrun.runs.record import RunRecord
from dlrun.runs.reports import page
from dlrun.runs.reports.console import describe_end, format_number

# Size of a curve in CSS pixels.
_WIDTH = 280
_HEIGHT = 120

# Points of a line: more cannot be seen, and would make the page large.
_MOST_POINTS = 400


def write_report(context: RunContext, folder: Path, result: dict[str, Any], rows: Sequence[dict[str, float]]) -> Path:
    """Write the page of a finished run into its folder, atomically, in some milliseconds; returns its path.

    rows: those of metrics.jsonl.
    """
    body = [page.render_bullets(_summarize(context, result)), _format_metrics(context, result)]
    if result.get("simple_models"):
        body.append(f"<h2>scikit-learn on the same rows</h2>\n{_format_simple_models(result)}")
    if result["expected"]:
        body.append(f"<h2>Expected</h2>\n{_format_expectations(result['expected'])}")
    if result["warnings"]:
        body.append(f"<h2>Notes</h2>\n{page.render_bullets(result['warnings'])}")
    body.append(_draw_curves(rows))

    pictures = _find_pictures(folder / "figures")
    if pictures:
        body.append("<h2>Pictures</h2>\n" + "".join(page.embed_picture(path) for path in pictures))
    settings = html.escape(dump_yaml(context.settings.plain))
    body.append(page.render_details("All settings", f"<pre>{settings}</pre>\n"))
    body.append(f"<h2>Facts</h2>\n{page.render_facts(_collect_facts(context, folder, result))}")

    path = folder / "report.html"
    write_text(path, page.render_page(_write_headline(context, result), "".join(body)))
    return path


def _write_headline(context: RunContext, result: dict[str, Any]) -> str:
    """The choice, and its second metric (accuracy, mse) beside the baseline's, on the last split that has it."""
    choice = f"{context.settings.model.choice} on {context.settings.data.choice}"
    if context.settings.run.name:
        choice = f"{context.settings.run.name}: {choice}"
    # The first metric is the loss, which says little beside another run's.
    names = context.objective.metric_names
    name = names[min(1, len(names) - 1)]
    metrics = result["metrics"]
    keys = [f"{split}/{name}" for split in ("test", "val", "train") if f"{split}/{name}" in metrics]
    # A run without an epoch has no metrics.
    if not keys:
        return f"{choice}: {result['status']}"

    key = keys[0]
    trivial = result["baseline"].get(key)
    comparison = "" if trivial is None else f" ({terminal.name_baseline(context)}: {format_number(trivial)})"
    return f"{choice}: {key} {format_number(metrics[key])}{comparison}"


def _summarize(context: RunContext, result: dict[str, Any]) -> list[str]:
    lines = [describe_end(result)]
    comparison = compare_naive_forecasts(context, result["metrics"])
    if comparison:
        lines.append(comparison)
    best = result["best"]
    if best["epoch"] is not None:
        lines.append(f"best: epoch {best['epoch']}, {best['metric']} {format_number(best['value'])}")
    return lines


def _format_metrics(context: RunContext, result: dict[str, Any]) -> str:
    headers, rows = terminal.make_metric_table(context, result)
    cells = [list(map(html.escape, row)) for row in rows]
    return page.render_table(headers, cells, left=1)


def _format_simple_models(result: dict[str, Any]) -> str:
    scores = result["simple_models"]
    # All have the same metrics, on the same parts.
    keys = list(next(iter(scores.values())))
    rows = []
    for key in keys:
        values = [result["metrics"].get(key, math.nan), *(model[key] for model in scores.values())]
        rows.append([html.escape(key), *map(format_number, values)])
    return page.render_table(["metric", "this net", *scores], rows, left=1)


def _format_expectations(expected: list[dict[str, Any]]) -> str:
    rows = []
    for line in expected:
        verdict = "yes" if line["ok"] else "NO"
        rows.append([html.escape(line["expected"]), html.escape(line["measured"]), verdict])
    return page.render_table(["expected", "measured", "ok"], rows, left=3)


def _find_pictures(figures: Path) -> list[Path]:
    pictures = [*sorted(figures.glob("*.png")), *sorted(figures.glob("*.gif"))]
    # The activations are the same in every run: last.
    return sorted(pictures, key=lambda path: path.stem == "activations")


def _collect_facts(context: RunContext, folder: Path, result: dict[str, Any]) -> list[tuple[str, str]]:
    # Empty if environment.json was removed; the page goes without it.
    record = RunRecord(folder)
    environment = record.environment
    facts = _list_labels(context)
    facts += [(key, str(environment[key])) for key in ("command", "started") if key in environment]

    # The terminal's description of the run, but with the optimizer of the config.
    description = dict(terminal.describe_run(context))
    description["optimizer"] = _describe_optimizer(context)
    facts += description.items()

    class_names = context.splits.spec.class_names
    if class_names:
        facts.append(("classes", ", ".join(class_names)))
    facts.append(("seed", str(context.settings.seed)))
    facts += record.machine.items()
    facts.append(("weights", f"sha256 {result['weights_sha256']}"))
    return facts


def _list_labels(context: RunContext) -> list[tuple[str, str]]:
    """Name, tags and notes of the run, as far as it has them."""
    labels = context.settings.run
    facts = {"name": labels.name, "tags": ", ".join(labels.tags), "notes": labels.notes}
    return [(key, value) for key, value in facts.items() if value]


def _describe_optimizer(context: RunContext) -> str:
    """The optimizer with its settings of the config: the learning rate may have been moved since."""
    schedule = context.settings.scheduler.choice
    scheduler = "" if schedule == "none" else f"; scheduler {schedule}"
    return context.settings.optimizer.describe() + scheduler


def _draw_curves(rows: Sequence[dict[str, float]]) -> str:
    """Draw each metric over the epochs, and the learning rate if it changes; nothing for a single epoch."""
    if len(rows) < 2:
        return ""

    keys = list(select_metrics(rows[-1]))
    split_keys = [key for key in keys if key.startswith(("train/", "val/"))]
    # Each name once, in order.
    names = dict.fromkeys(key.partition("/")[2] for key in split_keys)
    curves = [_draw_curve(name, rows, {"train": f"train/{name}", "val": f"val/{name}"}) for name in names]
    curves += [_draw_curve(key, rows, {"logged": key}) for key in keys if key not in split_keys]
    if len({row.get("lr") for row in rows}) > 1:
        curves.append(_draw_curve("lr", rows, {"lr": "lr"}))
    return f'<h2>Curves</h2>\n<div class="curves">\n{"".join(curves)}</div>\n'


def _draw_curve(name: str, rows: Sequence[dict[str, float]], keys: dict[str, str]) -> str:
    """Draw one metric as SVG, its lowest and highest value beside it.

    keys: of the rows, by split (or "logged", "lr"), whose color the page defines: lighter where it is dark.
    """
    lines: dict[str, list[float]] = {}
    finite: list[float] = []
    for split, key in keys.items():
        # Epochs without the metric are gaps of the line.
        line = [row.get(key, math.nan) for row in rows]
        finite_values = [value for value in line if math.isfinite(value)]
        if finite_values:
            lines[split] = line
            finite += finite_values
    if not finite:
        return ""

    low = min(finite)
    high = max(finite)
    paths = ""
    # A line that has the curve's own name needs no legend.
    legend = ""
    for split, line in lines.items():
        color = f"var(--{split})"
        path = _draw_path(line, low, high)
        paths += f'<path d="{path}" fill="none" style="stroke: {color}" stroke-width="1.5"/>'
        if split != name:
            legend += f'<tspan style="fill: {color}" dx="6">{html.escape(split)}</tspan>'

    # The plot, with room for the title above, the values on the right and the epochs below.
    width = _WIDTH + 60
    height = _HEIGHT + 36
    title = f'<text y="-6" font-weight="600">{html.escape(name)}{legend}</text>'
    highest = f'<text x="{_WIDTH + 4}" y="10">{format_number(high)}</text>'
    lowest = f'<text x="{_WIDTH + 4}" y="{_HEIGHT}">{format_number(low)}</text>'
    first_epoch = f'<text y="{_HEIGHT + 14}">epoch 1</text>'
    last_epoch = f'<text x="{_WIDTH}" y="{_HEIGHT + 14}" text-anchor="end">{len(rows)}</text>'
    axes = f'<path d="M0 0V{_HEIGHT}H{_WIDTH}" fill="none" stroke="currentColor" stroke-opacity="0.3"/>'
    content = title + highest + lowest + first_epoch + last_epoch + axes + paths
    return f'<svg viewBox="0 -18 {width} {height}" width="{width}" height="{height}" role="img">{content}</svg>\n'


def _draw_path(line: Sequence[float], low: float, high: float) -> str:
    """SVG moves and lines through the values; a value that is not finite is a gap."""
    last = max(len(line) - 1, 1)
    # Long lines are thinned out evenly, with their first and last value.
    indices = {round(k * last / _MOST_POINTS) for k in range(_MOST_POINTS + 1)}
    commands = []
    pen = "M"
    for i in sorted(indices):
        if i >= len(line):
            continue
        if not math.isfinite(line[i]):
            pen = "M"
            continue
        # From the top; a constant line lies in the middle.
        height = 0.5 if high == low else (high - line[i]) / (high - low)
        commands.append(f"{pen}{_WIDTH * i / last:.1f} {_HEIGHT * height:.1f}")
        pen = "L"
    return "".join(commands)
