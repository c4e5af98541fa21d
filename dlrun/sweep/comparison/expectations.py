"""What the runs of a sweep came to, beside what was expected of them."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from dlrun.config.request import Request
from dlrun.core import markdown
from dlrun.experiment.reports import terminal
from dlrun.runs import expectations
from dlrun.runs.expectations import Checked, Outcome, outcome_of
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
_MOST_CURVES = 20  # runs in one picture: the optimizers' race has 15; more would be a thicket


def check_sweep(finished: Sequence[tuple[Request, str | None]], sweep: Path) -> bool:
    """Draw together what belongs together, print what was expected of the runs; whether all of it was met.

    finished: the requests, each with why there is no result where there is none.
    """
    draw_groups(finished)
    groups: dict[Path | None, list[tuple[Request, str | None]]] = {}
    for request, error in finished:
        groups.setdefault(request.group or request.folder, []).append((request, error))
    lines: list[tuple[str, Checked]] = []
    for group in groups.values():
        request = group[0][0]
        name = request.choices.get("lesson") or f"{request.choices.get('model')}_{request.choices.get('data')}"
        checked = expectations.check(list(request.config["expect"]), [_read(*one) for one in group])
        lines += [(name, line) for line in checked]
    if lines:
        console = Console()
        console.say()
        console.say(terminal.make_expectations_table(lines))
        if sweep.is_dir():
            (sweep / "expectations.md").write_text(_markdown(lines))
    return all(line.ok for _, line in lines)


def draw_groups(finished: Sequence[tuple[Request, str | None]]) -> None:
    """One picture of all loss curves for the runs of one group, or of a sweep on one data set."""
    together: dict[tuple[Path | None, str], list[Request]] = {}
    for request, _ in finished:
        folder = request.folder
        if request.config["figures"] and folder is not None and not _why_unreadable(RunRecord(folder)):
            key = (request.group or request.sweep, request.choices.get("data", "") if request.group is None else "")
            together.setdefault(key, []).append(request)
    for (place, _), requests in together.items():
        alike = [r for r in together if r[0] == place]
        if place is not None and 1 < len(requests) <= _MOST_CURVES and len(alike) == 1:
            _draw(place / "figures", requests)


def _draw(target: Path, requests: Sequence[Request]) -> None:
    from dlrun.runs.reports.plots import canvas, overlay

    labels = _labels([request.overrides for request in requests])
    folders = [request.folder for request in requests if request.folder is not None]
    target.mkdir(exist_ok=True)
    canvas.save_png(canvas.pixels(overlay.curves(list(zip(labels, folders, strict=True)))), target / "loss_curves.png")
    pictures = [folder / "figures" / "decision.png" for folder in folders]
    if all(picture.is_file() for picture in pictures):
        figure = overlay.side_by_side(list(zip(labels, pictures, strict=True)))
        canvas.save_png(canvas.pixels(figure), target / "decision.png")


def _labels(overrides: Sequence[Sequence[str]]) -> list[str]:
    """Of each run the overrides that not all runs have, with the last part of their keys, on short lines."""
    common = set.intersection(*(set(words) for words in overrides))
    own = [[word for word in words if word not in common] for words in overrides]
    short = [" ".join(re.sub(r"^[\w.]*\.(?=\w+=)", "", word) for word in words) or "as it is" for words in own]
    return [textwrap.fill(label, 34, break_long_words=False, break_on_hyphens=False) for label in short]


def _read(request: Request, error: str | None) -> Outcome:
    """What a run left behind."""
    label, folder = " ".join(request.overrides), request.folder
    if error or folder is None:
        return Outcome(label, error=error or "no result")
    run = RunRecord(folder)
    reason = _why_unreadable(run)
    return Outcome(label, error=reason) if reason else outcome_of(label, run.result, run.history)


def _markdown(lines: Sequence[tuple[str, Checked]]) -> str:
    rows = ["| lesson | expected | measured | ok |\n", "| --- | --- | --- | --- |\n"]
    for name, checked in lines:
        cells = [name, checked.expected, checked.measured, "yes" if checked.ok else "NO"]
        rows.append(f"| {' | '.join(markdown.inline(cell) for cell in cells)} |\n")
    return "".join(rows)


def _why_unreadable(run: RunRecord) -> str:
    """What is missing or damaged of a run's result and rows; "" where nothing is."""
    for name in ("result", "rows"):
        getattr(run, name)
    if run.damage:
        return run.damage[0]
    if not run.result:
        return "no result"
    lacking = [key for key in _NEEDED if key not in run.result]
    return f"{run.folder / RESULT} has no {lacking[0]}" if lacking else ""
