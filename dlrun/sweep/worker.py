"""The process of one job, or of a stack. The fork server imports this module once, so that its forks need not."""

import os
import signal
import sys
import threading
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection

import torch

from dlrun.core import signals
from dlrun.core.search_path import drop_child_flag
from dlrun.experiment.builder import data_cache
from dlrun.sweep.engines import Outcome, run_unit
from dlrun.sweep.jobs import Job
from dlrun.sweep.stacks import PreparedJobs, Unit


def run_in_process(unit: Unit, results: Connection, threads: int, prepared: PreparedJobs | None = None) -> None:
    """Run one job, or a stack, and send to `results` each job's key with its Outcome, and lines for the user.

    prepared: jobs that were built before this process was forked.
    """
    # Leave the terminal's process group: Ctrl-C reaches the sweep, which signals each job once.
    os.setpgid(0, 0)

    drop_child_flag()

    # The sweep may be killed hard, so that it can signal no one.
    threading.Thread(target=_exit_with_parent, daemon=True).start()

    # All output of the job goes to its run.log.
    devnull = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(devnull, stream.fileno() if hasattr(stream, "fileno") else 1)

    torch.set_num_threads(threads)
    _run_interruptibly(unit, results, prepared)
    results.close()


def _run_interruptibly(unit: Unit, results: Connection, prepared: PreparedJobs | None) -> None:
    """Run the unit with the stop signals unblocked, which the fork server blocks."""
    sent_keys = set[str]()

    def report(job: Job, outcome: Outcome) -> bool:
        sent_keys.add(job.key)
        results.send((job.key, outcome))
        return True

    # Windows has no signal masks.
    set_mask = getattr(signal, "pthread_sigmask", None)
    try:
        with signals.raise_on_signals():
            if set_mask:
                set_mask(signal.SIG_UNBLOCK, signals.STOP_SIGNALS)
            # The runs of a stack share their data.
            with data_cache.share_data():
                run_unit(unit, report, results.send, prepared)
    except KeyboardInterrupt as interrupt:
        # The signal came before the run handled signals itself.
        for job in unit.open_jobs:
            if job.key not in sent_keys:
                report(job, Outcome(signals.get_interrupt_exit_code(interrupt)))
    finally:
        if set_mask:
            set_mask(signal.SIG_BLOCK, signals.STOP_SIGNALS)


def _exit_with_parent() -> None:
    """Kill this process when the sweep's dies: an orphan would write into a folder that is resumed by then."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)
