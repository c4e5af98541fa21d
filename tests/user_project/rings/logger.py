"""A logger that writes a page of Markdown."""

from pathlib import Path
from typing import Any

import dlrun


class Page(dlrun.Logger):
    """One line an epoch in page.md of the run folder; a resumed run writes it anew."""

    def __init__(self, metric: str = "val/accuracy") -> None:
        self.metric = metric
        self.lines: list[str] = []
        self.path = Path()

    def start(self, run: dlrun.LoggedRun) -> None:
        """Begin with what the run has logged before."""
        self.path = run.folder / "page.md"
        self.lines = [f"# {run.name or 'run'}", ""]
        for row in run.rows:
            self._add(row)

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        """Add a line for an epoch; the values between are left out."""
        if "epoch" in values:
            self._add(values)

    def finish(self, status: str) -> None:
        """End with the status."""
        self._write([*self.lines, "", f"The run is {status}."])

    def _add(self, row: dict[str, Any]) -> None:
        self.lines.append(f"- epoch {int(row['epoch'])}: {self.metric} {row[self.metric]:.4f}")
        self._write(self.lines)

    def _write(self, lines: list[str]) -> None:
        self.path.write_text("\n".join(lines) + "\n", encoding="utf-8")
