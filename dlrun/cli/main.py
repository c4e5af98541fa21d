"""The entry: commands, errors as sentences, exit codes. Imports no torch before something is to be trained."""

import atexit
import contextlib
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import dropwhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.cli import command_help
from dlrun.config import listing, schema, unheeded
from dlrun.core import library_warnings, signals
from dlrun.core.errors import DlrunError, RequestError, RunError, describe_os_error, explain_exit
from dlrun.core.output_format import format_csv, format_json, take_format
from dlrun.core.search_path import put_own_last
from dlrun.core.terminal import write_error, write_out
from dlrun.engine import distributed

if TYPE_CHECKING:
    from dlrun.config.request import Request

# "module:function" of each command, called with the words after it; the module is imported when it is needed.
COMMANDS = {
    "check": "dlrun.cli.main:check",
    "clean": "dlrun.cli.clean:clean",
    "compare": "dlrun.sweep.comparison.report:compare_runs",
    "completion": "dlrun.cli.completion:complete",
    "diff": "dlrun.cli.diff:diff_runs",
    "eval": "dlrun.inference.evaluate:evaluate",
    "export": "dlrun.inference.export.command:export",
    "predict": "dlrun.inference.predict.command:predict",
    "show": "dlrun.cli.show:show_run",
    "watch": "dlrun.cli.watch:watch",
}

# The function of each `dlrun check WORD`, and the error message if the check fails.
CHECKS = {
    "gradients": (
        "dlrun.experiment.checks.gradients:check_gradients",
        "the gradients written by hand do not agree; the table names the layers",
    ),
    "lr": ("dlrun.experiment.checks.lr_finder:check_lr", ""),
    "resume": (
        "dlrun.experiment.checks.resume:check_resume",
        "the resumed run is not the run that was left alone; the table says where they differ",
    ),
}

# Commands whose first word is a run.
SAVED_RUN_COMMANDS = ("eval", "export", "predict", "rerun", "resume")

# torch imports this with its first optimizer. Imported up front, it is spared garbage collection too.
OPTIMIZER_IMPORTS = "torch._dynamo"
# Letters of a word that an error message repeats: a pasted file would bury the message.
MOST_ECHOED = 200


@library_warnings.divert_warnings()
@signals.raise_on_signals()
@distributed.release_ranks_after_report()
def main() -> int:
    """Run one command line; returns the exit code: 0 done, 1 a run failed, 2 a wrong request, above 128 stopped."""
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

                importlib.import_module(OPTIMIZER_IMPORTS)
            return follower.main(verbose)

        try:
            requests = dispatch(words)
        finally:
            # Without a training the other ranks would wait for ever.
            if not requests:
                distributed.dismiss_followers()
        if not requests:
            return 0

        if requests[0].sweep is not None:
            distributed.require_single_process("a sweep")
            # The import of torch takes seconds, and a sweep is checked before its plan is printed.
            write_out(f"preparing {len(requests)} runs")
            sys.stdout.flush()
            with skip_garbage_collection():
                from dlrun.sweep import runner

                importlib.import_module(OPTIMIZER_IMPORTS)
            return runner.run(requests)

        with skip_garbage_collection():
            from dlrun.experiment import run

            importlib.import_module(OPTIMIZER_IMPORTS)
        unheeded.refuse_sweep_settings(words)
        return run.run(requests[0])
    except (DlrunError, SystemExit) as error:
        return report_error(error, verbose)
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
        return report_error(explanation, verbose)


@contextlib.contextmanager
def skip_garbage_collection() -> Iterator[None]:
    """Import modules inside without garbage collection, and exempt their objects from it for good.

    Training needs a million objects of imported modules: scanning them repeatedly took a fifth of the start-up time.
    """
    # A process that has torch already holds more than imported modules.
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return

    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        # Some libraries complain at exit about objects of theirs that are still alive.
        atexit.register(gc.unfreeze)


def dispatch(words: list[str]) -> list["Request"]:
    """Run a command that trains nothing, or compose the requests of one that does; the former returns []."""
    help_text = find_help(words)
    if help_text:
        write_out(help_text)
        return []

    command = words[0] if words else ""
    if command == "ls":
        list_choices(words[1:])
        return []
    if command == "help":
        from dlrun.cli import pages

        pages.show_page(words[1:])
        return []
    return compose_or_run(words)


def find_help(words: list[str]) -> str:
    """The text for --help or --version anywhere in a command line; "" if it has neither."""
    # Words after "--" are inputs of `dlrun predict`.
    flags = words[: words.index("--")] if "--" in words else words

    # Answered before Hydra sees the flag, which has a help of its own.
    if "-h" in flags or "--help" in flags:
        # `check lr` before `check`
        for name in (" ".join(words[:2]), words[0]):
            if name in command_help.COMMAND_HELP:
                return command_help.format_command_help(name)
        return command_help.format_overview(listing.list_groups(schema.CONFIG_DIR))
    return command_help.format_versions() if "--version" in flags else ""


def compose_or_run(words: list[str]) -> list["Request"]:
    """The requests of a command line that trains; other commands are run, and have none.

    RequestError translates Hydra's composition errors.
    """
    from dlrun.experiment import requests

    words = requests.put_resume_first(words)
    if words[:1] == ["resume"] and is_sweep(words[1:2]):
        from dlrun.sweep import continuation

        return continuation.read_requests(words[1:])

    if not words[:1] or words[0] not in COMMANDS:
        return requests.read_requests(words)

    from dlrun.config import explain as mistakes

    try:
        distributed.require_single_process(f"dlrun {words[0]}")
        load_function(COMMANDS[words[0]])(words[1:])
    except mistakes.COMPOSITION_ERRORS as error:
        # The words after the run are overrides of its saved config.
        if words[0] in SAVED_RUN_COMMANDS:
            raise RequestError(mistakes.explain_error(error, words[2:])) from error
        overrides = list(dropwhile(lambda word: word in ("check", *CHECKS), words))
        raise mistakes.explain_all_errors(error, overrides) from error
    return []


def is_sweep(folders: Sequence[str]) -> bool:
    """Whether one of the folders holds a sweep."""
    return any(folder and (Path(folder) / "sweep.jsonl").exists() for folder in folders)


def check(words: list[str]) -> None:
    """`dlrun check [gradients|lr|resume] ...`; RunError if the check fails."""
    place = "dlrun.cli.check:check"
    message = ""
    if words and words[0] in CHECKS:
        place, message = CHECKS[words[0]]
        words = words[1:]

    if load_function(place)(words):
        raise RunError(message)


def load_function(place: str) -> Callable[[list[str]], Any]:
    """Import the function that "module:name" names."""
    module, _, name = place.partition(":")
    with skip_garbage_collection():
        function: Callable[[list[str]], Any] = getattr(importlib.import_module(module), name)
    return function


def explain(error: Exception) -> DlrunError | None:
    """Explain a data worker's death, an exception of the user's own code, or one of the system; None for others."""
    death = explain_worker_death(error) if isinstance(error, RuntimeError) else None
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


def report_error(error: DlrunError | SystemExit, verbose: bool) -> int:
    """Print an error, with its traceback if `verbose`; returns the exit code."""
    if isinstance(error, SystemExit):
        error = explain_exit(error)
    if verbose:
        write_error("".join(traceback.format_exception(error)).rstrip("\n"))
    write_error(f"dlrun: {shorten_words(str(error), sys.argv[1:])}")
    return error.exit_code


def shorten_words(message: str, words: Sequence[str]) -> str:
    """The message with each long or multi-line word of the command line cut to a short line."""
    # The longest first: a short word may be part of a long one.
    for word in sorted(words, key=len, reverse=True):
        for text in (word, word.partition("=")[2]):
            if len(text) <= MOST_ECHOED and "\n" not in text:
                continue

            # Messages repeat words as they are, or quoted by repr.
            short = " ".join(text[:MOST_ECHOED].split()) + "…"
            message = message.replace(text, short).replace(repr(text)[1:-1], short)
    return message


def explain_worker_death(error: RuntimeError) -> DlrunError | None:
    """The error for a data worker that was killed, which torch raises wherever this process is by then; or None."""
    if "dlrun.data.workers" not in sys.modules:
        return None

    from dlrun.data import workers

    return workers.explain_death(error)


def list_choices(words: list[str]) -> None:
    """`dlrun ls [GROUP|runs]`: print a line for each option, or for each run."""
    if words[:1] == ["runs"]:
        from dlrun.cli import list_runs

        list_runs.list_runs(words[1:])
        return

    output_format, words = take_format(words)
    if output_format != "table":
        rows = []
        for group in words or listing.list_groups(schema.CONFIG_DIR):
            for name, about in listing.list_options(schema.CONFIG_DIR, group):
                rows.append({"group": group, "option": name, "about": about})
        text = format_json(rows) if output_format == "json" else format_csv(("group", "option", "about"), rows)
        write_out(text)
        sys.stdout.flush()
        return

    for group in words or listing.list_groups(schema.CONFIG_DIR):
        if not words:
            write_out(group)
        options = listing.list_options(schema.CONFIG_DIR, group)
        width = max((len(name) for name, _ in options), default=0)
        for name, about in options:
            write_out(f"  {name:<{width}}  {about}")
    # A closed pipe is reported now, where main() handles it, not at exit.
    sys.stdout.flush()
