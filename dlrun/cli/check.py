"""`dlrun check [overrides]`: all checks that come before a training, without the training."""

import contextlib

from dlrun.config import request
from dlrun.config.request import Request
from dlrun.config.settings import read_settings
from dlrun.core.errors import ErrorList
from dlrun.experiment import ignored
from dlrun.experiment.reports import terminal
from dlrun.experiment.setup import enter_device_session, prepare
from dlrun.runs.reports.console import Console


def check(words: list[str]) -> int:
    """Print what a command line would train and that it is ready; returns 0. Writes nothing.

    RequestError lists all that is wrong, over all runs of a sweep.
    """
    requests = request.from_command_line(words)
    console = Console()
    errors = ErrorList()
    is_sweep = len(requests) > 1
    for run_request in requests:
        # Errors are collected, so that one command shows those of all runs.
        errors.collect(_check_request, run_request, console, is_sweep)
    errors.raise_if_any()

    if requests:
        console.say("ready" if len(requests) == 1 else f"ready: {len(requests)} runs")
    return 0


def _check_request(request: Request, console: Console, is_one_of_many: bool) -> None:
    """Build one run and print its opening report; for one of many only its overrides."""
    # The checks are the purpose of this command, whatever the config says.
    request.config["preflight"] = True

    errors = ErrorList()
    settings = read_settings(request.config, request.choices, errors)
    with contextlib.ExitStack() as resources:
        runtime = enter_device_session(resources, settings, errors)
        context = prepare(settings, runtime, request.trusted_modules, errors)
        # Hundreds of opening reports would bury the one that matters.
        if is_one_of_many:
            console.say(f"run {' '.join(request.overrides)}: no problem")
        else:
            context.notes.extend(request.notes)
            context.notes.extend(ignored.find_ignored_keys(context, request, request.overrides, request.keys_in_files))
            terminal.print_opening(console, context, request.folder)
