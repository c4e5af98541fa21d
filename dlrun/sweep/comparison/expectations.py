"""Check the runs of a sweep against what their configs expect of them."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from dlrun.config.request import Request
from dlrun.core import markdown
from dlrun.experiment.reports import terminal
from dlrun.runs import expectations
from dlrun.runs.expectations import CheckResult, RunValues, collect_values
from dlrun.runs.record import RESULT, RunRecord
from dlrun.runs.reports.console import Console

_NEEDED = (
    "status",
    "metrics",
    "baseline",
    "best",
    "epochs",
    "steps",
    "parameters",
    "weights_sha256",
    "warnings",
    "error",
)
# Runs in one picture: the optimizers' race of the course has 15, and more could not be told apart.
_MOST_CURVES = 20


def check_sweep(
    runs: Sequence[tuple[Request, str | None]], sweep: Path, records: dict[Path, RunRecord] | None = None
) -> bool:
    """Draw comparable runs together and print the expectations of all; returns whether they are met.

    runs: their requests, each with its error or None. Also writes expectations.md into `sweep`.
    records: by folder; gets those that are read.
    """
    _draw_groups(runs, {} if records is None else records)

    # Expectations may compare the runs of a group with each other.
    groups: dict[Path | None, list[tuple[Request, str | None]]] = {}
    for request, error in runs:
        groups.setdefault(request.group or request.folder, []).append((request, error))

    lines: list[tuple[str, CheckResult]] = []
    for group in groups.values():
        # All runs of a group have the same choices and expectations.
        request = group[0][0]
        # Without any there is nothing to read of hundreds of runs.
        if not request.config["expect"]:
            continue
        choices = request.choices
        name = choices.get("lesson") or f"{choices.get('model')}_{choices.get('data')}"
        values = [_read_values(*run) for run in group]
        for line in expectations.check(list(request.config["expect"]), values):
            lines.append((name, line))

    if lines:
        console = Console()
        console.say()
        console.say(terminal.make_expectations_table(lines))
        if sweep.is_dir():
            (sweep / "expectations.md").write_text(_render_markdown(lines))
    return all(line.ok for _, line in lines)


def _draw_groups(runs: Sequence[tuple[Request, str | None]], records: dict[Path, RunRecord]) -> None:
    """Draw all loss curves of a group in one picture, or of a whole sweep if it has a single data set.

    records: by folder; gets those that are read.
    """
    groups: dict[tuple[Path | None, str], list[Request]] = {}
    for request, _ in runs:
        folder = request.folder
        # The picture is of the sweep: it costs no job anything.
        is_drawn = request.config["figures"] is not False
        if not is_drawn or folder is None:
            continue
        if not _find_problem(records.setdefault(folder, RunRecord(folder))):
            key = (request.group, "")
            if request.group is None:
                key = (request.sweep, request.choices.get("data", ""))
            groups.setdefault(key, []).append(request)

    for (place, _), requests in groups.items():
        # Curves on different data share no scale.
        is_only_group = sum(other == place for other, _ in groups) == 1
        if place is not None and 1 < len(requests) <= _MOST_CURVES and is_only_group:
            _draw(place / "figures", requests)


def _draw(target: Path, requests: Sequence[Request]) -> None:
    from dlrun.runs.reports.plots import canvas, overlay

    labels = _make_labels([request.overrides for request in requests])
    folders = [request.folder for request in requests if request.folder is not None]
    target.mkdir(exist_ok=True)
    # All curves in one picture, with a legend of what varies.
    curves = overlay.draw_loss_overlay(list(zip(labels, folders, strict=True)))
    canvas.save_png(canvas.render_pixels(curves), target / "loss_curves.png")

    pictures = [folder / "figures" / "decision.png" for folder in folders]
    # Two-dimensional data leave a decision boundary, which is worth seeing side by side.
    if all(picture.is_file() for picture in pictures):
        figure = overlay.tile_pictures(list(zip(labels, pictures, strict=True)))
        canvas.save_png(canvas.render_pixels(figure), target / "decision.png")


def _make_labels(overrides: Sequence[Sequence[str]]) -> list[str]:
    """For each run the overrides that not all runs have, with the last part of their keys, on short lines."""
    common = set.intersection(*(set(words) for words in overrides))
    labels = []
    for words in overrides:
        short_words = [re.sub(r"^[\w.]*\.(?=\w+=)", "", word) for word in words if word not in common]
        label = " ".join(short_words) or "as it is"
        labels.append(textwrap.fill(label, 34, break_long_words=False, break_on_hyphens=False))
    return labels


def _read_values(request: Request, error: str | None) -> RunValues:
    """Read the values of a run, or why there are none."""
    label = " ".join(request.overrides)
    folder = request.folder
    if error or folder is None:
        return RunValues(label, error=error or "no result")

    run = RunRecord(folder)
    problem = _find_problem(run)
    if problem:
        return RunValues(label, error=problem)
    return collect_values(label, run.result, run.history)


def _render_markdown(lines: Sequence[tuple[str, CheckResult]]) -> str:
    rows = ["| lesson | expected | measured | ok |\n", "| --- | --- | --- | --- |\n"]
    for name, result in lines:
        cells = [name, result.expected, result.measured, "yes" if result.ok else "NO"]
        rows.append(f"| {' | '.join(map(markdown.escape_inline, cells))} |\n")
    return "".join(rows)


def _find_problem(run: RunRecord) -> str:
    """What is missing or damaged of a run's result and metrics; "" if nothing is."""
    run.read_files("result", "rows")
    if run.damage:
        return run.damage[0]
    if not run.result:
        return "no result"
    for key in _NEEDED:
        if key not in run.result:
            return f"{run.folder / RESULT} has no {key}"
    return ""
