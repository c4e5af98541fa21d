"""Pictures of a run that has ended without them, as the jobs of a sweep do."""

import contextlib
from dataclasses import replace
from pathlib import Path

from dlrun.config.request import Request
from dlrun.config.settings import read_settings
from dlrun.core import lock
from dlrun.core.errors import ErrorList
from dlrun.core.files import DiskProblems
from dlrun.core.library_warnings import divert_warnings
from dlrun.data import workers
from dlrun.experiment import results
from dlrun.experiment.final_outputs import FinalOutputs
from dlrun.experiment.reports import figures, html
from dlrun.experiment.resume import restore_checkpoint
from dlrun.experiment.setup import enter_device_session, prepare_resumed
from dlrun.runs import checkpoint
from dlrun.runs.logger import open_logger
from dlrun.runs.loggers.base import LoggedRun
from dlrun.runs.loggers.tensorboard import TensorBoardLogger
from dlrun.runs.record import METRICS, RunRecord
from dlrun.runs.reports.plots import canvas, loss


def draw_finished(request: Request, disk_problems: DiskProblems) -> Path:
    """Draw the figures and the graph of a finished run from its best weights, and write its report.html.

    request: the run's own, with its folder. Returns the path of the page; result and checkpoints are left as they are.
    DlrunError if the run cannot be built or opened again; the user's own code may raise anything.
    """
    folder = request.folder
    assert folder is not None
    problems = ErrorList()
    settings = read_settings(request.config, request.choices, problems).decide_pictures(is_alone=True)

    with contextlib.ExitStack() as stack:
        # The run itself has reported these warnings.
        stack.enter_context(divert_warnings(lambda text: None))
        stack.callback(workers.end_workers)
        stack.enter_context(lock.Lock()).take(folder)
        runtime = enter_device_session(stack, settings, problems)
        finished = replace(request, continues=True)
        context = prepare_resumed(settings, runtime, finished, problems)

        # Counters and history come from the last checkpoint, the weights from the best one.
        restore_checkpoint(finished, context)
        best = folder / "checkpoints" / "best.pt"
        if best.exists():
            context.state.use_weights(checkpoint.load(best))

        # Like a run's own end, events and all: a resumed run drops them and draws anew.
        tensorboards = {name: logger for name, logger in context.loggers.items() if type(logger) is TensorBoardLogger}
        logged_run = LoggedRun(folder=folder, is_ended=True, disk_problems=disk_problems)
        with disk_problems.tolerate("figures", again=False), open_logger(logged_run, tensorboards) as run_logger:
            figures.draw_all(context, folder, run_logger, FinalOutputs(context, None))
            results.log_graph(context, run_logger)

        record = RunRecord(folder)
        with disk_problems.tolerate("report.html", again=False):
            html.write_report(context, folder, record.result, record.history)
    return folder / "report.html"


def draw_losses(folder: Path) -> None:
    """Draw figures/loss.png of a failed run from the epochs that it has recorded, if there are two or more."""
    if not (folder / METRICS).is_file():
        return
    rows = RunRecord(folder).history
    if len(rows) < 2:
        return

    target = folder / "figures"
    target.mkdir(exist_ok=True)
    canvas.save_png(canvas.render_pixels(loss.draw_loss_curves(rows)), target / "loss.png")
