"""`dlrun check [overrides]`: everything that is looked at before a training, without the training."""

import contextlib

from dlrun.config import request, schema
from dlrun.config.request import Request
from dlrun.core.problems import ErrorList
from dlrun.experiment import ignored
from dlrun.experiment.reports import terminal
from dlrun.experiment.setup import enter_device_session, prepare
from dlrun.runs.reports.console import Console


def check(words: list[str]) -> int:
    """Say what a command line would train and that it is ready; returns 0. Writes nothing.

    A RequestError lists all that is wrong; of the runs of a sweep too.
    """
    asked = request.from_command_line(words)
    console, problems = Console(), ErrorList()
    for one in asked:
        problems.attempt(_check_one, one, console, len(asked) > 1)
    problems.settle()
    if asked:
        console.say("ready" if len(asked) == 1 else f"ready: {len(asked)} runs")
    return 0


def _check_one(asked: Request, console: Console, is_one_of_many: bool) -> None:
    """Build one run and say what it is; of many only its overrides."""
    problems = ErrorList()
    asked.config["preflight"] = True
    settings = schema.read(asked.config, asked.choices, problems)
    with contextlib.ExitStack() as held:
        process = enter_device_session(held, settings, problems)
        parts = prepare(settings, process, asked.trusted_modules, problems)
        if is_one_of_many:
            console.say(f"run {' '.join(asked.overrides)}: no problem")
        else:
            parts.notes += asked.notes
            parts.notes += ignored.find_without_effect(parts, asked, asked.overrides, asked.keys_in_files)
            terminal.print_opening(console, parts, asked.folder)
