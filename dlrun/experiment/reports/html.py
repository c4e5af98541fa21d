"""report.html of one run: metrics beside the baseline, curves, pictures, settings and machine, on one page."""

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrun.core.files import write_text
from dlrun.core.yaml import as_yaml
from dlrun.experiment.context import RunContext
from dlrun.experiment.reports import terminal
from dlrun.runs.record import RunRecord
from dlrun.runs.reports import page
from dlrun.runs.reports.console import number

_WIDTH, _HEIGHT = 280, 120  # of a curve, in CSS pixels
_COLORS = {"train": "#1f77b4", "val": "#ff7f0e", "lr": "#888"}  # as in figures/loss.png
_MOST_POINTS = 400  # of a line: more cannot be seen, and would make the page large


def write_report(parts: RunContext, folder: Path, result: dict[str, Any], rows: Sequence[dict[str, float]]) -> Path:
    """Write the page of a finished run into its folder, atomically; returns its path. It takes some milliseconds."""
    chosen = f"{parts.settings.model.choice} on {parts.settings.data.choice}"
    body = [page.bullets(_said(result)), _metrics(parts, result)]
    if result["expected"]:
        lines = [
            [html.escape(line["expected"]), html.escape(line["measured"]), "yes" if line["ok"] else "NO"]
            for line in result["expected"]
        ]
        body.append(f"<h2>Expected</h2>\n{page.table(['expected', 'measured', 'ok'], lines, left=3)}")
    if result["warnings"]:
        body.append(f"<h2>Notes</h2>\n{page.bullets(result['warnings'])}")
    body.append(_curves(rows))
    pictures = [path for kind in ("png", "gif") for path in sorted((folder / "figures").glob(f"*.{kind}"))]
    pictures.sort(key=lambda path: path.stem == "activations")  # the same in every run: last
    if pictures:
        body.append("<h2>Pictures</h2>\n" + "".join(page.picture(path) for path in pictures))
    settings = html.escape(as_yaml(parts.settings.plain))
    body.append(page.folded("All settings", f"<pre>{settings}</pre>\n"))
    body.append(f"<h2>Facts</h2>\n{page.facts(_facts(parts, folder, result))}")
    path = folder / "report.html"
    write_text(path, page.page(_headline(chosen, parts, result), "".join(body)))
    return path


def _headline(chosen: str, parts: RunContext, result: dict[str, Any]) -> str:
    """The choice, and its second metric (accuracy, mse) on the last split there is beside the trivial answer's."""
    name = parts.task.metric_names[min(1, len(parts.task.metric_names) - 1)]
    keys = [f"{split}/{name}" for split in ("test", "val", "train") if f"{split}/{name}" in result["metrics"]]
    if not keys:
        return f"{chosen}: {result['status']}"
    trivial = result["baseline"].get(keys[0])
    beside = "" if trivial is None else f" ({terminal.name_baseline(parts)}: {number(trivial)})"
    return f"{chosen}: {keys[0]} {number(result['metrics'][keys[0]])}{beside}"


def _said(result: dict[str, Any]) -> list[str]:
    best = result["best"]
    said = [terminal.describe_end(result)]
    if best["epoch"] is not None:
        said.append(f"best: epoch {best['epoch']}, {best['metric']} {number(best['value'])}")
    return said


def _metrics(parts: RunContext, result: dict[str, Any]) -> str:
    headers, rows = terminal.make_metric_table(parts, result)
    return page.table(headers, [[html.escape(cell) for cell in row] for row in rows], left=1)


def _facts(parts: RunContext, folder: Path, result: dict[str, Any]) -> list[tuple[str, str]]:
    # Whoever removed environment.json has a page without it.
    run = RunRecord(folder)
    noted = run.environment
    return [
        *((key, str(noted[key])) for key in ("command", "started") if key in noted),
        *{**dict(terminal.describe_run(parts)), "optimizer": _optimizer(parts)}.items(),
        *([("classes", ", ".join(parts.splits.spec.class_names))] if parts.splits.spec.class_names else []),
        ("seed", str(parts.settings.rest.seed)),
        *run.machine.items(),
        ("weights", f"sha256 {result['weights_sha256']}"),
    ]


def _optimizer(parts: RunContext) -> str:
    """With its settings as they were given: the learning rate may have been moved since."""
    block, schedule = parts.settings.optimizer, parts.settings.scheduler.choice
    given = ", ".join(f"{key} {value}" for key, value in block.arguments.items())
    return f"{block.choice}: {given}{'' if schedule == 'none' else f'; scheduler {schedule}'}"


def _curves(rows: Sequence[dict[str, float]]) -> str:
    """Each metric over the epochs, and the learning rate where it changes; nothing where there is one epoch only."""
    if len(rows) < 2:
        return ""
    names = list(dict.fromkeys(key.partition("/")[2] for key in rows[0] if key.startswith(("train/", "val/"))))
    drawn = [_curve(name, rows, {split: f"{split}/{name}" for split in ("train", "val")}) for name in names]
    if len({row.get("lr") for row in rows}) > 1:
        drawn.append(_curve("lr", rows, {"lr": "lr"}))
    return f'<h2>Curves</h2>\n<div class="curves">\n{"".join(drawn)}</div>\n'


def _curve(name: str, rows: Sequence[dict[str, float]], keys: dict[str, str]) -> str:
    """One metric as a drawing (SVG), its lowest and highest value beside it."""
    lines = {split: [row.get(key, math.nan) for row in rows] for split, key in keys.items()}
    lines = {split: line for split, line in lines.items() if any(map(math.isfinite, line))}
    finite = [value for line in lines.values() for value in line if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    paths = "".join(
        f'<path d="{_path(line, low, high)}" fill="none" stroke="{_COLORS[split]}" stroke-width="1.5"/>'
        for split, line in lines.items()
    )
    legend = "".join(
        f'<tspan fill="{_COLORS[split]}" dx="6">{html.escape(split)}</tspan>' for split in lines if split != name
    )
    return (
        f'<svg viewBox="0 -18 {_WIDTH + 60} {_HEIGHT + 36}" width="{_WIDTH + 60}" height="{_HEIGHT + 36}" role="img">'
        f'<text y="-6" font-weight="600">{html.escape(name)}{legend}</text>'
        f'<text x="{_WIDTH + 4}" y="10">{number(high)}</text><text x="{_WIDTH + 4}" y="{_HEIGHT}">{number(low)}</text>'
        f'<text y="{_HEIGHT + 14}">epoch 1</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 14}" text-anchor="end">{len(rows)}</text>'
        f'<path d="M0 0V{_HEIGHT}H{_WIDTH}" fill="none" stroke="currentColor" stroke-opacity="0.3"/>{paths}</svg>\n'
    )


def _path(line: Sequence[float], low: float, high: float) -> str:
    """SVG's moves and lines through the values; what is not finite is a gap."""
    said, pen = [], "M"
    last = max(len(line) - 1, 1)
    for i in sorted({round(k * last / _MOST_POINTS) for k in range(_MOST_POINTS + 1)} & set(range(len(line)))):
        if not math.isfinite(line[i]):
            pen = "M"
            continue
        height = 0.5 if high == low else (high - line[i]) / (high - low)
        said.append(f"{pen}{_WIDTH * i / last:.1f} {_HEIGHT * height:.1f}")
        pen = "L"
    return "".join(said)
