"""The entry: commands, errors as sentences, exit codes. Imports no torch before something is to be trained."""

import atexit
import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dlrun.cli import completion
from dlrun.cli.commands import DLRUN, read_requests, skip_garbage_collection
from dlrun.config import unheeded
from dlrun.core import library_warnings, signals
from dlrun.core.errors import DlrunError, RequestError, describe_os_error, explain_exit
from dlrun.core.search_path import put_own_last
from dlrun.core.terminal import write_error, write_out
from dlrun.engine import distributed

if TYPE_CHECKING:
    from dlrun.config.request import Request

# Letters of a word that an error message repeats: a pasted file would bury the message.
_MOST_ECHOED = 200


def run() -> int:
    """The process of one command: `main`, and an end that does not take a second to free every object by itself."""
    code = main()
    if "torch" not in sys.modules or distributed.is_distributed():
        return code
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        # Python reports a pipe that nobody reads any more, and exits with 120.
        return code

    # As Python does before it frees what is in memory; neither has a public name.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


@library_warnings.divert_warnings()
@signals.raise_on_signals()
@distributed.release_ranks_after_report()
def main() -> int:
    """Run one command line; returns the exit code: 0 done, 1 a run failed, 2 a wrong request, above 128 stopped."""
    if completion.VARIABLE in os.environ:
        completion.print_suggestions(DLRUN)
        return 0

    # -v may stand anywhere, and Hydra does not know it.
    words = [word for word in sys.argv[1:] if word != "-v"]
    verbose = len(words) < len(sys.argv) - 1 or os.environ.get("HYDRA_FULL_ERROR") == "1"
    library_warnings.show_warnings(verbose)
    if distributed.is_distributed() and not verbose:
        # torch's C++ code warns on stderr, past Python, that a user's net might need no search for unused layers.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    put_own_last()

    requests: list[Request] = []
    try:
        # Only rank 0 reads the command line; the others receive what it composes.
        if distributed.is_follower():
            with skip_garbage_collection():
                from dlrun.experiment import follower

            return follower.main(verbose)

        try:
            requests = read_requests(words)
        finally:
            # Without a training the other ranks would wait for ever.
            if not requests:
                distributed.dismiss_followers()
        if not requests:
            return 0

        if requests[0].sweep is not None:
            distributed.require_single_process("a sweep")
            # The import of torch takes seconds, and a sweep is checked before its plan is printed.
            is_search = requests[0].search is not None
            write_out("preparing a search" if is_search else f"preparing {len(requests)} runs")
            sys.stdout.flush()
            with skip_garbage_collection():
                from dlrun.sweep import runner
                from dlrun.sweep.search import run as search

            return search.run(requests) if is_search else runner.run(requests)

        with skip_garbage_collection():
            from dlrun.experiment import run

        unheeded.refuse_sweep_settings(words)
        return run.run(requests[0])
    except (DlrunError, SystemExit) as error:
        return _report_error(error, verbose)
    except KeyboardInterrupt as interrupt:
        return signals.get_interrupt_exit_code(interrupt)
    except BrokenPipeError:
        # `dlrun ls | head` closes the pipe early: drop the rest, which Python would flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # The user's own code and the system may raise anything; what cannot be explained is a bug of dlrun.
        explanation = explain(error)
        if explanation is None:
            raise
        return _report_error(explanation, verbose)


def explain(error: Exception) -> DlrunError | None:
    """Explain a data worker's death, an exception of the user's own code, or one of the system; None for others."""
    death = _explain_worker_death(error) if isinstance(error, RuntimeError) else None
    if death is not None:
        return death

    from dlrun.core import user_code

    message = user_code.explain(error)
    if message is None and isinstance(error, OSError):
        message = describe_os_error(error)
    if message is None:
        return None

    request_error = RequestError(message)
    request_error.__cause__ = error
    return request_error


def _report_error(error: DlrunError | SystemExit, verbose: bool) -> int:
    """Print an error, with its traceback if `verbose`; returns the exit code."""
    if isinstance(error, SystemExit):
        error = explain_exit(error)
    if verbose:
        write_error("".join(traceback.format_exception(error)).rstrip("\n"))
    write_error(f"dlrun: {_shorten_words(str(error), sys.argv[1:])}")
    return error.exit_code


def _shorten_words(message: str, words: Sequence[str]) -> str:
    """The message with each long or multi-line word of the command line cut to a short line."""
    # The longest first: a short word may be part of a long one.
    for word in sorted(words, key=len, reverse=True):
        for text in (word, word.partition("=")[2]):
            if len(text) <= _MOST_ECHOED and "\n" not in text:
                continue

            # Messages repeat words as they are, or quoted by repr.
            short = " ".join(text[:_MOST_ECHOED].split()) + "…"
            message = message.replace(text, short).replace(repr(text)[1:-1], short)
    return message


def _explain_worker_death(error: RuntimeError) -> DlrunError | None:
    """The error for a data worker that was killed, which torch raises wherever this process is by then; or None."""
    if "dlrun.data.workers" not in sys.modules:
        return None

    from dlrun.data import workers

    return workers.explain_death(error)
