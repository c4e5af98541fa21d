"""One sweep from start to end; reads like a table of contents."""

import contextlib
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dlrun.config.request import Request
from dlrun.core.errors import RequestError, UnreadableError
from dlrun.core.files import DiskProblems, forget_halves, writing_to
from dlrun.core.lock import Lock
from dlrun.core.own_code import own_modules
from dlrun.core.shell import advice
from dlrun.experiment import resume
from dlrun.experiment.build import data_cache
from dlrun.runs import folder as run_folder
from dlrun.runs.reports.console import Console, facts
from dlrun.runs.reports.plots import fonts
from dlrun.sweep.comparison import expectations, report
from dlrun.sweep.comparison.ranking import compare
from dlrun.sweep.continuation import has_chosen_folder, choose_folder
from dlrun.sweep.engines import Engine, Outcome, Serial
from dlrun.sweep.jobs import Job, drop_duplicates, has_own_code, build_jobs
from dlrun.sweep.ledger import DONE, Ledger
from dlrun.sweep.plan import check_jobs, check_in_process, print_plan, format_size, format_duration
from dlrun.sweep.process_engine import Parallel, resolve_job_count
from dlrun.sweep.progress import Display


def run(requests: Sequence[Request]) -> int:
    """Check, run and compare; returns the exit code. RequestError before anything is written."""
    console, settings = Console(), requests[0].config
    keys = settings["sweep"]
    at_once = _read_job_count(keys["jobs"])
    folder, ledger = choose_folder(requests)
    jobs, notes = drop_duplicates(build_jobs(requests, folder))
    notes += [note for note in requests[0].notes if all(note in request.notes for request in requests)]
    waiting = _select_unfinished(jobs, ledger)
    alone = at_once == 1
    at_once = max(1, min(at_once, len(waiting)))
    own = [job for job in waiting if has_own_code(job)]
    engine = _start_engine(alone and not own, at_once)
    with data_cache.share_data(), contextlib.ExitStack() as held:
        if own and isinstance(engine, Parallel):
            # Code of the user's own may end the process that runs it.
            checked = check_in_process(waiting, engine)
            if checked.death is not None:
                notes.append(f"{checked.death}; each run has a process of its own, and is checked when it begins")
            elif alone and not any(is_left_running(job, ledger) for job in own):
                engine = Serial()
            lacking = checked.lacking
        else:
            lacking = check_jobs(waiting)
        if not has_chosen_folder(requests[0]) and folder.exists():  # another sweep of the same second
            folder, ledger = choose_folder(requests)
            jobs = [move_job(job, folder) for job in jobs]
            waiting = list(jobs)
        if not keys["dry_run"]:
            claim_folder(held.enter_context(Lock()), ledger, jobs, requests[0].words)
        print_plan(console, folder, jobs, waiting, at_once, notes)
        if keys["dry_run"]:
            return 0
        watcher = Watcher(console, ledger, waiting, at_once, bool(keys["fail_fast"]))
        for job in waiting:
            if job.key in lacking:
                watcher.started(job)
                watcher.ended(job, Outcome(1, lacking[job.key]))
        todo = list[Job]()
        for job in waiting:
            if job.key in lacking or watcher.ends:
                continue
            try:
                todo.append(prepare_job(job))
            except (UnreadableError, OSError) as error:  # of this job alone: the others can be made
                watcher.started(job)
                watcher.ended(job, Outcome(1, str(error)))
        with watcher.display.live():
            code = engine.run(todo, watcher)
        watcher.say_end()
        as_expected = False
        with watcher.unsaved.attempt("the comparison", again=False):
            as_expected = bool(code) or conclude(console, ledger, jobs, watcher.errors)
    if code:
        console.say(f"go on with it: {format_resume_command(folder, jobs)}")
        return code
    return int(
        watcher.display.failed > 0 or bool(watcher.unsaved.summary()) or (settings["strict"] and not as_expected)
    )


def _read_job_count(jobs: Any) -> int:
    if jobs != "auto" and not (isinstance(jobs, int) and not isinstance(jobs, bool) and jobs > 0):
        raise RequestError(f"sweep.jobs={jobs} must be a whole number above 0, or auto; type sweep.jobs=1")
    return resolve_job_count(jobs)


def _start_engine(alone: bool, at_once: int) -> Engine:
    if alone:
        return Serial()
    engine = Parallel(at_once)
    engine.warm_up()
    return engine


def is_left_running(job: Job, ledger: Ledger) -> bool:
    """Whether an earlier process of the sweep ended without a word while it ran this job, perhaps by this job."""
    entry = ledger.entries.get(job.key)
    return entry is not None and entry.status == "running"


def _select_unfinished(jobs: Sequence[Job], ledger: Ledger) -> list[Job]:
    """The jobs that are still to be made, in the folders that the ledger knows."""
    waiting, number = [], max((entry.number for entry in ledger.entries.values()), default=-1)
    for job in jobs:
        entry = ledger.entries.get(job.key)
        if entry is not None:
            group = None if entry.group is None else ledger.folder / entry.group
            job.number = entry.number
            job.request = replace(job.request, folder=ledger.folder / entry.folder, group=group)
            if ledger.read_status(entry) in DONE:
                continue
        elif ledger.entries:
            number += 1
            name = job.folder.name.removeprefix(f"{job.number}_")
            job.number, job.request = number, replace(job.request, folder=job.folder.parent / f"{number}_{name}")
        waiting.append(job)
    return waiting


def move_job(job: Job, sweep: Path) -> Job:
    """The same job in another sweep's folder."""
    request, before = job.request, job.request.sweep
    assert before is not None
    group = None if request.group is None else sweep / request.group.relative_to(before)
    return replace(
        job, request=replace(request, sweep=sweep, group=group, folder=sweep / job.folder.relative_to(before))
    )


def claim_folder(own: Lock, ledger: Ledger, jobs: Sequence[Job], words: Sequence[str]) -> None:
    """Take the sweep's folder, which one process writes at a time, and note the jobs; RequestError when it cannot."""
    with writing_to(ledger.folder, "type sweep.dir=<folder>"):
        ledger.folder.mkdir(parents=True, exist_ok=True)
        own.take(ledger.folder)
        ledger.refuse_changed()
        forget_halves(ledger.folder)
        ledger.add(jobs, words)


def prepare_job(job: Job) -> Job:
    """The job as it is to be run now: from its newest checkpoint where it has saved one, else from the start.

    UnreadableError where it has checkpoints and none of them can be opened.
    """
    if not job.folder.is_dir():
        return job
    state = resume.find_newest_state(job.folder)
    if state is not None:
        return replace(job, request=resume.continue_run(job.request, job.folder, state))
    run_folder.begin_again(job.folder)  # what was wrong with it is in the ledger
    return job


def format_resume_command(folder: Path, jobs: Sequence[Job]) -> str:
    """The command that goes on with a sweep."""
    modules = {module for job in jobs for module in own_modules(job.request.config)}
    return advice("resume", folder, modules=sorted(modules))


def conclude(console: Console, ledger: Ledger, jobs: Sequence[Job], errors: dict[str, str]) -> bool:
    """Compare what the whole sweep came to, in words, tables and pictures; whether it is what was expected."""
    met = expectations.check_sweep([(job.request, errors.get(job.key)) for job in jobs], ledger.folder)
    labels = {job.key: job.label for job in jobs}
    runs, failures, waiting = report.collect_runs(ledger, labels)
    if runs:
        comparison = compare(runs, failures)
        if len({run.choices.get("lesson") for run in runs}) == 1:  # else each has its own expectations
            console.say()
            report.print_comparison(comparison, console)
        else:
            console.say()
        page = report.write_comparison(comparison, ledger.folder, ledger.command)
        for line in fonts.note():
            console.say(f"note: {line}")
        outputs = shlex.quote(str(ledger.folder))
        console.say(facts([("report", str(page)), ("view", f"tensorboard --logdir {outputs}")]))
    if waiting:
        console.say(f"not begun: {waiting} of {len(ledger.entries)} runs; {format_resume_command(ledger.folder, jobs)}")
    return met


class Watcher:
    """Notes in the ledger, and says, what becomes of the jobs."""

    def __init__(self, console: Console, ledger: Ledger, waiting: Sequence[Job], at_once: int, fail_fast: bool) -> None:
        self.console, self.ledger, self.fail_fast = console, ledger, fail_fast
        self.display = Display(console, waiting, at_once)
        self.unsaved = DiskProblems(console.say)
        self.errors: dict[str, str] = {}  # by key
        self.ends = False
        self._began = time.perf_counter()

    def started(self, job: Job) -> None:
        """See engines.Watcher."""
        self.display.started(job)
        with self.unsaved.attempt("sweep.jsonl", again=False):
            self.ledger.record_status(job.key, "running")

    def ended(self, job: Job, outcome: Outcome) -> bool:
        """See engines.Watcher."""
        seconds = self.display.finished(job, outcome)
        entry = self.ledger.entries[job.key]
        status = "interrupted" if outcome.stopped else "failed" if outcome.error else self.ledger.read_status(entry)
        if outcome.error is not None:
            self.errors[job.key] = outcome.error
            self.ends = self.fail_fast
        with self.unsaved.attempt("sweep.jsonl", again=False):
            self.ledger.record_status(job.key, status, outcome.error, round(seconds, 3))
        return not self.ends

    def say_end(self) -> None:
        """Print the summary line: finished, failed, duration, size."""
        if not self.display.jobs:
            return
        took = time.perf_counter() - self._began
        outcomes = [outcome for _, outcome, _ in self.display.ended]
        finished = sum(not outcome.error and not outcome.stopped for outcome in outcomes)
        interrupted = sum(outcome.stopped for outcome in outcomes)

        text = f"{finished} of {len(self.display.jobs)} runs finished"
        if interrupted:
            text += f", {interrupted} interrupted"
        if self.display.failed:
            text += f", {self.display.failed} failed"
        if self.ends:
            text += " (sweep.fail_fast=true: the others were not begun)"
        text += f" in {format_duration(took)}"
        if finished == len(self.display.jobs):
            paths = [path for job, *_ in self.display.ended for path in job.folder.rglob("*")]
            text += f", {format_size(sum(path.stat().st_size for path in paths if path.is_file()))}"
        self.console.say()
        self.console.say(text)
