"""A process of its own for one job; and what all of them have imported before they are forked."""

import os
import signal
import sys
import threading
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection

import torch

from dlrun.config.request import Request
from dlrun.core import signals
from dlrun.core.search_path import SAFE, SAFE_FOR_CHILD
from dlrun.sweep.engines import Outcome, run_request

torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)  # it imports for a second: once, not once a job


def run_job(request: Request, answers: Connection, threads: int) -> None:
    """Run one job and send its Outcome."""
    os.setpgid(0, 0)  # Ctrl-C reaches the sweep, which tells each job once
    if os.environ.get(SAFE) == SAFE_FOR_CHILD:
        del os.environ[SAFE]  # it was meant for this process, and not for those that it may start
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):  # what it says is in its run.log
        stream.flush()
        os.dup2(null, stream.fileno() if hasattr(stream, "fileno") else 1)
    torch.set_num_threads(threads)
    answers.send(_run_interruptibly(request))
    answers.close()


def _run_interruptibly(request: Request) -> Outcome:
    """Run it; the signals that end a run, which the server holds back, are let through meanwhile."""
    mask = getattr(signal, "pthread_sigmask", None)  # not on Windows
    try:
        with signals.terminable():
            if mask:
                mask(signal.SIG_UNBLOCK, signals.STOPPING)
            return run_request(request)
    except KeyboardInterrupt as stopped:  # before it began
        return Outcome(signals.code_of(stopped))
    finally:
        if mask:
            mask(signal.SIG_BLOCK, signals.STOPPING)


def _exit_with_parent() -> None:
    """A job that nobody waits for would write on into a folder that the next sweep goes on with."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)
