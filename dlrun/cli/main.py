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
from dlrun.core.search_path import put_own_last
from dlrun.core.terminal import write_error, write_out
from dlrun.engine import distributed

if TYPE_CHECKING:
    from dlrun.config.request import Request

COMMANDS = {  # what answers a command, called with the words behind it; it is imported when it is asked for
    "check": "dlrun.cli.main:check",
    "clean": "dlrun.cli.clean:clean",
    "compare": "dlrun.sweep.comparison.report:compare_runs",
    "completion": "dlrun.cli.completion:answer",
    "diff": "dlrun.cli.diff:diff_runs",
    "eval": "dlrun.inference.evaluate:evaluate",
    "export": "dlrun.inference.export.command:export",
    "predict": "dlrun.inference.predict.command:predict",
}
MOST_ECHOED = 200  # letters of a word that a message shows
OPTIMIZER_IMPORTS = "torch._dynamo"  # what the first of torch's optimizers imports
CHECKS = {  # what answers `dlrun check WORD`, and what is said when what was checked does not hold
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
SAVED_RUN_COMMANDS = ("eval", "export", "predict", "resume")  # their first word is a run


@library_warnings.diverted()
@signals.terminable()
@distributed.release_ranks_after_report()
def main() -> int:
    """Run one command line; returns the exit code: 0 done, 1 a run failed, 2 a wrong request, above 128 stopped."""
    words = [word for word in sys.argv[1:] if word != "-v"]
    verbose = len(words) < len(sys.argv) - 1 or os.environ.get("HYDRA_FULL_ERROR") == "1"
    library_warnings.show(verbose)
    if distributed.is_distributed() and not verbose:
        # torch's C++ code warns on stderr, past Python, that a user's net might need no search for unused layers.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    put_own_last()
    requests: list[Request] = []
    try:
        if distributed.is_follower():
            with skip_garbage_collection():
                from dlrun.experiment import follower

                importlib.import_module(OPTIMIZER_IMPORTS)
            return follower.main(verbose)

        try:
            requests = answer(words)
        finally:
            if not requests:
                distributed.dismiss_followers()  # the other processes, which wait for something to train
        if not requests:
            return 0
        if requests[0].sweep is not None:
            with skip_garbage_collection():
                from dlrun.sweep import runner

                importlib.import_module(OPTIMIZER_IMPORTS)

            distributed.require_single_process("a sweep")
            return runner.run(requests)
        with skip_garbage_collection():
            from dlrun.experiment import run

            importlib.import_module(OPTIMIZER_IMPORTS)

        unheeded.refuse_sweep_settings(words)
        return run.run(requests[0])
    except (DlrunError, SystemExit) as error:
        return complain(error, verbose)
    except KeyboardInterrupt as stopped:
        return signals.code_of(stopped)
    except BrokenPipeError:  # `dlrun ls | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # code of the user's own and the system raise anything; the rest is a fault of dlrun's
        explained = explain(error)
        if explained is None:
            raise
        return complain(explained, verbose)


@contextlib.contextmanager
def skip_garbage_collection() -> Iterator[None]:
    """What training needs is imported inside without Python looking for garbage in it, then or later.

    These are a million objects that stay: to look through them again and again took a fifth of the time.
    """
    if "torch" in sys.modules or not gc.isenabled():  # there is more than a start in memory
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # libraries would complain that something of theirs is left


def answer(words: list[str]) -> list["Request"]:
    """What is to be trained; empty when the command has been answered on the spot."""
    first = words[0] if words else ""
    helped = find_help(words)
    if helped:
        write_out(helped)
        return []
    if first == "ls":
        list_choices(words[1:])
        return []
    if first == "help":
        from dlrun.cli import pages

        pages.show_page(words[1:])
        return []
    return compose(words)


def find_help(words: list[str]) -> str:
    """What --help or --version anywhere in a command line asks for; "" where neither is there."""
    flags = words[: words.index("--")] if "--" in words else words  # what follows are inputs of `dlrun predict`
    if "-h" in flags or "--help" in flags:
        for name in (" ".join(words[:2]), words[0]):  # `check lr` before `check`
            if name in command_help.COMMAND_HELP:
                return command_help.format_command_help(name)
        return command_help.format_overview(listing.groups(schema.CONFIG_DIR))
    return command_help.format_versions() if "--version" in flags else ""


def compose(words: list[str]) -> list["Request"]:
    """The requests of a command line that trains or loads; Hydra's complaints become sentences."""
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
        if words[0] in SAVED_RUN_COMMANDS:  # a saved config, and what is to be changed of it
            raise RequestError(mistakes.sentence(error, words[2:])) from error
        asked = list(dropwhile(lambda word: word in ("check", *CHECKS), words))
        raise mistakes.request_error(error, asked) from error
    return []


def is_sweep(folders: Sequence[str]) -> bool:
    """Whether a folder to go on with is that of a sweep."""
    return any(folder and (Path(folder) / "sweep.jsonl").exists() for folder in folders)


def check(words: list[str]) -> None:
    """`dlrun check [gradients|lr|resume] ...`; RunError when what was checked does not hold."""
    special = words[:1] if words[:1] and words[0] in CHECKS else []
    place, fault = CHECKS[special[0]] if special else ("dlrun.cli.check:check", "")
    if load_function(place)(words[len(special) :]):
        raise RunError(fault)


def load_function(place: str) -> Callable[[list[str]], Any]:
    """The function that "module:name" is."""
    module, _, name = place.partition(":")
    with skip_garbage_collection():
        function: Callable[[list[str]], Any] = getattr(importlib.import_module(module), name)
    return function


def explain(error: Exception) -> DlrunError | None:
    """What to say of a data worker's death, an exception of the user's own code, or of the system; None for others."""
    death = explain_worker_death(error) if isinstance(error, RuntimeError) else None
    if death is not None:
        return death

    from dlrun.core import user_code

    said = user_code.explain(error)
    if said is None and isinstance(error, OSError):
        said = describe_os_error(error)
    if said is None:
        return None
    request = RequestError(said)
    request.__cause__ = error
    return request


def complain(error: DlrunError | SystemExit, verbose: bool) -> int:
    """Say what is wrong, with the traceback where it was asked for; returns the exit code."""
    if isinstance(error, SystemExit):
        error = explain_exit(error)
    if verbose:
        write_error("".join(traceback.format_exception(error)).rstrip("\n"))
    write_error(f"dlrun: {shorten_words(str(error), sys.argv[1:])}")
    return error.exit_code


def shorten_words(message: str, words: Sequence[str]) -> str:
    """The message with each long word of the command line, and each of several lines, cut to a short line."""
    for word in sorted(words, key=len, reverse=True):
        for text in (word, word.partition("=")[2]):
            if len(text) <= MOST_ECHOED and "\n" not in text:
                continue
            short = " ".join(text[:MOST_ECHOED].split()) + "…"
            message = message.replace(text, short).replace(repr(text)[1:-1], short)
    return message


def explain_worker_death(error: RuntimeError) -> DlrunError | None:
    """The sentence for a data worker that was killed, which torch tells of wherever this process is just then."""
    if "dlrun.data.workers" not in sys.modules:
        return None
    from dlrun.data import workers

    return workers.explain_death(error)


def list_choices(words: list[str]) -> None:
    """`dlrun ls [GROUP|runs]`: a line each."""
    if words[:1] == ["runs"]:
        from dlrun.cli import list_runs

        list_runs.list_runs(words[1:])
        return
    for group in words or listing.groups(schema.CONFIG_DIR):
        if not words:
            write_out(group)
        options = listing.options(schema.CONFIG_DIR, group)
        width = max((len(name) for name, _ in options), default=0)
        for name, about in options:
            write_out(f"  {name:<{width}}  {about}")
    sys.stdout.flush()
