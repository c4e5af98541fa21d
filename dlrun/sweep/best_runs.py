"""The pictures of the best runs of a sweep, drawn in a forked process while this one writes the comparison."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dlrun.core import user_code
from dlrun.core.files import DiskProblems
from dlrun.core.forks import HAS_FORKS, Forks
from dlrun.core.own_code import find_own_modules
from dlrun.core.shell import suggest_command
from dlrun.engine.device import compute_in_one_thread
from dlrun.experiment.late_pictures import draw_finished
from dlrun.runs.reports.plots import fonts
from dlrun.sweep.comparison.ranking import Comparison
from dlrun.sweep.jobs import Job, has_own_code


@dataclass
class _DrawingReport:
    """Pages of the best runs, lines for the user, and what the disk did not take."""

    pages: list[Path] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)


class BestRuns:
    """Draws the best run of each table, where the config leaves figures open, from the start of the block on."""

    def __init__(
        self, comparison: Comparison, jobs: Sequence[Job], disk_problems: DiskProblems, is_serial: bool
    ) -> None:
        """is_serial: whether jobs with code of the user's own, which may end a process, run in this one."""
        self.disk_problems = disk_problems
        self.is_serial = is_serial
        self.best: list[Job] = []
        jobs_by_folder = {job.folder.resolve(): job for job in jobs}
        for ranking in comparison.rankings:
            run = ranking.find_best_run()
            job = None if run is None else jobs_by_folder.get(run.folder.resolve())
            if job is not None and job.request.config["figures"] is None:
                self.best.append(job)
        self._forks: Forks | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "BestRuns":
        if self.best and all(map(_can_fork, self.best)):
            self._stack.enter_context(compute_in_one_thread())
            self._forks = self._stack.enter_context(Forks(self._draw, [0], 1))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def finish(self) -> tuple[list[Path], list[str]]:
        """Wait for the pictures; returns the paths of the pages, and lines for the user."""
        report: _DrawingReport | None = None
        if self._forks is not None:
            ((report, _),) = self._forks
        if report is None:
            # Nothing was forked, or it was killed: too little memory, perhaps.
            report = self._draw()
        self.disk_problems.reasons |= report.reasons
        return report.pages, report.lines

    def _draw(self, number: int = 0) -> _DrawingReport:
        report = _DrawingReport()
        problems = DiskProblems(report.lines.append)
        report.reasons = problems.reasons
        for job in self.best:
            page = job.folder / "report.html"
            # A sweep that got more points may have the same best run as before.
            if page.is_file():
                report.pages.append(page)
                continue

            command = suggest_command("eval", job.folder, modules=sorted(find_own_modules(job.request.config)))
            if has_own_code(job) and not self.is_serial:
                report.lines.append(f"pictures of the best run: {command}")
                continue
            try:
                report.pages.append(draw_finished(job.request, problems))
            except (Exception, SystemExit) as error:
                # The run itself is finished and compared, whatever code of the user's own raises now.
                reason = user_code.explain(error) or user_code.get_first_line(error)
                report.lines.append(f"note: the best run could not be drawn ({reason}); its pictures: {command}")

        report.lines += [f"note: {line}" for line in fonts.describe_missing_letters()]
        return report


def _can_fork(job: Job) -> bool:
    """Whether a forked process can draw a run: on the CPU, in one thread, and without code of the user's own."""
    config = job.request.config
    # A process that has a GPU cannot use it in a fork, nor compute a gradient there.
    has_gpu = torch.cuda.is_available()
    return HAS_FORKS and not has_gpu and config["device"]["num_threads"] is None and not has_own_code(job)
