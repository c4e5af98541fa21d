"""One sweep from start to end: choose the folder, check the jobs, run them, compare the runs."""

import contextlib
import re
import shlex
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from dlrun.config.request import Request
from dlrun.core.errors import RequestError, UnreadableError
from dlrun.core.files import DiskProblems, convert_write_errors, remove_temporaries
from dlrun.core.format import count_digits
from dlrun.core.garbage import pause_collection
from dlrun.core.lock import Lock
from dlrun.core.own_code import find_own_modules
from dlrun.core.shell import suggest_command
from dlrun.engine.device import count_cores
from dlrun.experiment.builder import data_cache
from dlrun.experiment.late_pictures import draw_losses
from dlrun.runs.record import LEDGER, RunRecord
from dlrun.runs.reports.console import Console, format_clock, format_facts
from dlrun.runs.reports.plots import fonts
from dlrun.sweep import clusters
from dlrun.sweep.best_runs import BestRuns
from dlrun.sweep.comparison import expectations, report
from dlrun.sweep.comparison.ranking import Comparison, compare
from dlrun.sweep.continuation import choose_folder, has_chosen_folder, prepare_job
from dlrun.sweep.engines import Engine, Outcome, Serial
from dlrun.sweep.jobs import Job, build_jobs, drop_duplicates, has_own_code
from dlrun.sweep.ledger import DONE, Ledger
from dlrun.sweep.plan import check_in_process, check_jobs, print_plan
from dlrun.sweep.process_engine import Adaptive, Parallel, resolve_job_count
from dlrun.sweep.progress import Display
from dlrun.sweep.stacks import PreparedJobs, Unit, allow_fork, find_begun_stacks, plan_stacks


def run(requests: Sequence[Request]) -> int:
    """Check, run and compare the jobs of a sweep; returns the exit code.

    RequestError for anything that is wrong with the requests, before a file is written.
    """
    console = Console()
    settings = requests[0].config
    sweep_settings = settings["sweep"]
    at_once = read_job_count(sweep_settings["jobs"])
    # Sweeps that were begun before this key existed are resumed as they were begun.
    stack_mode = sweep_settings.get("stack", "off")
    is_remote = clusters.is_remote(sweep_settings)
    if is_remote:
        # What a stack gains is measured on this machine, and says nothing of the cluster's.
        at_once = 1
        stack_mode = "off"

    # Names, folders and keys of the jobs; nothing is written yet.
    folder, ledger = choose_folder(requests)
    if ledger.trials:
        raise RequestError(f"{folder} holds a search; type another sweep.dir")
    jobs, notes = drop_duplicates(build_jobs(requests, folder))
    for note in requests[0].notes:
        if all(note in request.notes for request in requests):
            notes.append(note)

    unfinished = _select_unfinished(jobs, ledger)
    is_serial = at_once == 1
    at_once = max(1, min(at_once, len(unfinished)))
    own_code_jobs = [job for job in unfinished if has_own_code(job)]

    to_check = [clusters.choose_any_device(job) for job in unfinished] if is_remote else unfinished
    prepared = PreparedJobs()
    # The fork server imports torch while this process checks the jobs.
    engine = _start_engine(is_serial and not own_code_jobs, at_once, prepared)

    with data_cache.share_data(), contextlib.ExitStack() as resources:
        if own_code_jobs and isinstance(engine, Parallel):
            # The user's own code may end the process that runs it, so it is not checked in this one.
            check = check_in_process(to_check, engine)
            if check.death is not None:
                notes.append(f"{check.death}; each run has a process of its own, and is checked when it begins")
            elif is_serial and not any(_is_left_running(job, ledger) for job in own_code_jobs):
                engine = Serial()
            missing_data = check.missing_data
        else:
            keep = None if stack_mode == "off" or not is_serial else prepared.add
            missing_data = check_jobs(to_check, on_end=keep)

        if not has_chosen_folder(requests[0]) and folder.exists():
            # Another sweep that started in the same second has taken the folder since.
            folder, ledger = choose_folder(requests)
            jobs = [_move_job(job, folder) for job in jobs]
            unfinished = list(jobs)

        place = f"on {sweep_settings['engine'].capitalize()}" if is_remote else ""
        if is_remote and unfinished and not sweep_settings["dry_run"]:
            cluster = resources.enter_context(contextlib.closing(clusters.open_cluster(sweep_settings, folder)))
            engine = cluster
            at_once = cluster.count_at_once(len(unfinished))
            place = cluster.describe()

        if not sweep_settings["dry_run"]:
            claim_folder(resources.enter_context(Lock()), ledger, jobs, requests[0].words)
        if sweep_settings["jobs"] == "auto" and isinstance(engine, Serial) and count_cores() > 1:
            engine = Adaptive(engine, count_cores())
        runs_here = isinstance(engine, Serial | Adaptive)
        processes = engine.count if isinstance(engine, Adaptive) else 1
        stacks = find_stacks(folder, jobs, unfinished, missing_data, stack_mode, prepared, notes, processes)
        print_plan(console, folder, jobs, unfinished, at_once, notes, place)
        if sweep_settings["dry_run"]:
            return 0

        watcher = LedgerWatcher(console, ledger, unfinished, at_once, bool(sweep_settings["fail_fast"]))
        for job in unfinished:
            if job.key in missing_data:
                watcher.on_job_start(job)
                watcher.on_job_end(job, Outcome(1, missing_data[job.key]))

        # Interrupted jobs are resumed, others start in an empty folder.
        queue = list[Job]()
        for job in unfinished:
            if job.key in missing_data or watcher.is_stopping:
                continue
            try:
                # The machine of a cluster that runs a job prepares it, each time anew.
                queue.append(job if is_remote else prepare_job(job))
            except (UnreadableError, OSError) as error:
                # A damaged run folder costs its own job only.
                watcher.on_job_start(job)
                watcher.on_job_end(job, Outcome(1, str(error)))

        with watcher.display.show_live():
            code = engine.run(form_units(queue, stacks), watcher)
        watcher.print_summary()

        # Nothing is compared after an interruption: the sweep is to be resumed first.
        is_as_expected = False
        if not code:
            # The runs are on the disk by now: a full one must not make the sweep fail without a word on them.
            with watcher.disk_problems.tolerate("the comparison", again=False):
                is_as_expected = conclude(console, ledger, jobs, watcher, runs_here)

    if code:
        console.say(f"resume it: {format_resume_command(folder, jobs)}")
        return code

    has_failed = watcher.display.failure_count > 0 or bool(watcher.disk_problems.summary())
    return int(has_failed or (settings["strict"] and not is_as_expected))


def read_job_count(jobs: Any) -> int:
    """sweep.jobs as a number; RequestError for anything else."""
    is_count = isinstance(jobs, int) and not isinstance(jobs, bool) and jobs > 0
    if jobs != "auto" and not is_count:
        raise RequestError(f"sweep.jobs={jobs} must be a whole number above 0, or auto; type sweep.jobs=1")
    return resolve_job_count(jobs)


def _start_engine(is_serial: bool, at_once: int, prepared: PreparedJobs) -> Engine:
    if is_serial:
        return Serial(prepared)

    engine = Parallel(at_once)
    engine.warm_up()
    return engine


def _is_left_running(job: Job, ledger: Ledger) -> bool:
    """Whether an earlier process of the sweep died while it ran this job, perhaps because of it."""
    entry = ledger.entries.get(job.key)
    return entry is not None and entry.status == "running"


def _select_unfinished(jobs: Sequence[Job], ledger: Ledger) -> list[Job]:
    """The jobs that are not done, each with the number and the folder that the ledger has for it.

    A job that is new to a resumed sweep is numbered after those of the ledger.
    """
    unfinished = []
    last_number = max((entry.number for entry in ledger.entries.values()), default=-1)
    # As many digits as the folders have that the sweep began with.
    digits = count_digits(len(ledger.entries))
    for job in jobs:
        entry = ledger.entries.get(job.key)
        if entry is not None:
            group = None if entry.group is None else ledger.folder / entry.group
            job.number = entry.number
            job.request = replace(job.request, folder=ledger.folder / entry.folder, group=group)
            # Finished jobs need their folders too: expectations are checked over all jobs.
            if ledger.read_status(entry) in DONE:
                continue
        elif ledger.entries:
            last_number += 1
            name = re.sub(f"^0*{job.number}_", "", job.folder.name)
            job.number = last_number
            job.request = replace(job.request, folder=job.folder.parent / f"{last_number:0{digits}}_{name}")
        unfinished.append(job)
    return unfinished


def find_stacks(
    folder: Path,
    jobs: Sequence[Job],
    unfinished: Sequence[Job],
    missing_data: Collection[str],
    mode: str,
    prepared: PreparedJobs,
    notes: list[str],
    processes: int = 1,
) -> list[Unit]:
    """The jobs that train together: as before in a sweep that is resumed, and those that `mode` finds worth it.

    mode: sweep.stack; notes: gets a line on each group of jobs that could train together; processes: how many stacks
    may train at a time.
    """
    if mode == "off":
        return []
    begun_stacks, damage = find_begun_stacks(folder, jobs, {job.key for job in unfinished})
    taken_keys = set(missing_data)
    for unit in begun_stacks:
        taken_keys.update(job.key for job in unit.jobs)
    if processes > 1 and len(begun_stacks) > 1:
        begun_stacks = [replace(unit, forks=allow_fork(unit, processes)) for unit in begun_stacks]
    others = [job for job in unfinished if job.key not in taken_keys]
    units, lines = plan_stacks(others, mode, folder, prepared, processes)
    notes += [*damage, *lines]
    return [*begun_stacks, *units]


def form_units(queue: Sequence[Job], stacks: Sequence[Unit]) -> list[Unit]:
    """The jobs to be run, each alone or in its stack, in the order of their first jobs."""
    # A job that has a checkpoint of its own continues alone.
    open_keys = {job.key for job in queue if not job.request.continues}
    units: dict[str, Unit] = {}
    taken_keys = set[str]()
    for stack in stacks:
        opened = [job for job in stack.jobs if job.key in open_keys]
        if not opened:
            continue
        # In a stack that was begun before, all train along, so that the others do as before.
        has_begun = stack.file is not None and stack.file.exists()
        members = stack.jobs if has_begun else tuple(opened)
        keys = {job.key for job in opened}
        taken_keys |= keys
        units[opened[0].key] = replace(
            stack, jobs=members, finished=frozenset(job.key for job in members if job.key not in keys)
        )

    for job in queue:
        if job.key not in taken_keys:
            units[job.key] = Unit((job,))
    return [units[job.key] for job in queue if job.key in units]


def _move_job(job: Job, sweep: Path) -> Job:
    """The same job in the folder of another sweep."""
    request = job.request
    old_sweep = request.sweep
    assert old_sweep is not None

    group = None if request.group is None else sweep / request.group.relative_to(old_sweep)
    folder = sweep / job.folder.relative_to(old_sweep)
    return replace(job, request=replace(request, sweep=sweep, group=group, folder=folder))


def claim_folder(lock: Lock, ledger: Ledger, jobs: Sequence[Job], words: Sequence[str]) -> None:
    """Lock the sweep's folder and record the jobs in its ledger.

    RequestError if the folder cannot be written or another process has it.
    """
    with convert_write_errors(ledger.folder, "type sweep.dir=<folder>"):
        ledger.folder.mkdir(parents=True, exist_ok=True)
        # The lock, then the check: between reading the ledger and locking it another process may have written.
        lock.take(ledger.folder)
        ledger.refuse_changed()
        remove_temporaries(ledger.folder)
        ledger.add(jobs, words)


def format_resume_command(folder: Path, jobs: Sequence[Job]) -> str:
    """The command that resumes a sweep."""
    # A ledger is a loaded file, so the user has to trust their own modules again.
    modules = set[str]()
    for job in jobs:
        modules.update(find_own_modules(job.request.config))
    return suggest_command("resume", folder, modules=sorted(modules))


class Extras(Protocol):
    """What another kind of sweep than a grid adds to its comparison."""

    def list_notes(self, comparison: Comparison) -> list[str]:
        """Further notes on the runs."""
        ...

    def draw(self, comparison: Comparison, folder: Path) -> list[Path]:
        """Save pictures in a folder; returns their paths."""
        ...


@pause_collection()
def conclude(
    console: Console,
    ledger: Ledger,
    jobs: Sequence[Job],
    watcher: "LedgerWatcher",
    is_serial: bool,
    extras: Extras | None = None,
) -> bool:
    """Compare the runs of the whole sweep: print, write and draw; returns whether expectations are met.

    watcher: has the errors of the jobs that failed just now; is_serial: whether jobs run in this process.
    """
    errors = watcher.errors
    requests = [(job.request, errors.get(job.key)) for job in jobs]
    # Each file of a run is read once, also where several steps look at it.
    records: dict[Path, RunRecord] = {}
    is_as_expected = expectations.check_sweep(requests, ledger.folder, records)

    for job in jobs:
        if job.key in errors and job.request.config["figures"] is None:
            draw_losses(job.folder)

    labels = {job.key: job.label for job in jobs}
    runs, failures, pending = report.collect_runs(ledger, labels, records)
    if runs:
        comparison = compare(runs, failures)
        if extras is not None:
            comparison.notes.extend(extras.list_notes(comparison))
        console.say()
        # Different lessons are not ranked against each other: each has its own expectations.
        if len({run.choices.get("lesson") for run in runs}) == 1:
            report.print_comparison(comparison, console)

        # The pictures of the best run are drawn while those of the comparison are.
        with BestRuns(comparison, jobs, watcher.disk_problems, is_serial) as best_runs:
            page = report.write_comparison(
                comparison, ledger.folder, ledger.command, None if extras is None else extras.draw
            )
            pictures, lines = best_runs.finish()
        lines += [f"note: {line}" for line in fonts.describe_missing_letters()]
        for line in dict.fromkeys(lines):
            console.say(line)
        facts = [("report", str(page)), *(("best run", str(picture)) for picture in pictures)]
        if any(ledger.folder.glob("*/events.out.tfevents.*")):
            facts.append(("view", f"tensorboard --logdir {shlex.quote(str(ledger.folder))}"))
        console.say(format_facts(facts))

    if pending:
        command = format_resume_command(ledger.folder, jobs)
        console.say(f"not started: {pending} of {len(ledger.entries)} runs; {command}")
    return is_as_expected


class LedgerWatcher:
    """Records the progress of the jobs in the ledger, and shows it on the terminal."""

    def __init__(self, console: Console, ledger: Ledger, jobs: Sequence[Job], at_once: int, fail_fast: bool) -> None:
        self.console = console
        self.ledger = ledger
        self.fail_fast = fail_fast
        self.display = Display(console, jobs, at_once)
        self.disk_problems = DiskProblems(console.say)
        # By job key.
        self.errors: dict[str, str] = {}
        self.is_stopping = False
        self._start_time = time.perf_counter()

    def note(self, text: str) -> None:
        """Show a line."""
        self.console.say(f"note: {text}")

    def on_pace_change(self, at_once: int) -> None:
        """Estimate the time left by another number of jobs at a time."""
        self.display.at_once = at_once

    def on_job_start(self, job: Job) -> None:
        """Show the job and record it as running."""
        self.display.add_running(job)
        with self.disk_problems.tolerate(LEDGER, again=False):
            self.ledger.record_status(job.key, "running")

    def on_job_end(self, job: Job, outcome: Outcome) -> bool:
        """Show and record how the job ended; returns False if sweep.fail_fast ends the sweep."""
        seconds = self.display.finish(job, outcome)

        if outcome.is_interrupted:
            status = "interrupted"
        elif outcome.error:
            status = "failed"
        else:
            # Its own result tells completed from early_stopped.
            status = self.ledger.read_status(self.ledger.entries[job.key])

        if outcome.error is not None:
            self.errors[job.key] = outcome.error
            self.is_stopping = self.fail_fast

        with self.disk_problems.tolerate(LEDGER, again=False):
            self.ledger.record_status(job.key, status, outcome.error, round(seconds, 3))
        return not self.is_stopping

    def print_summary(self) -> None:
        """Print the summary line: finished, failed, duration, size."""
        total = self.display.total
        if not total:
            return

        seconds = time.perf_counter() - self._start_time
        outcomes = [outcome for _, outcome, _ in self.display.results]
        finished_count = sum(not outcome.error and not outcome.is_interrupted for outcome in outcomes)
        interrupted_count = sum(outcome.is_interrupted for outcome in outcomes)

        text = f"{finished_count} of {total} runs finished"
        if interrupted_count:
            text += f", {interrupted_count} interrupted"
        if self.display.failure_count:
            text += f", {self.display.failure_count} failed"
        if self.is_stopping:
            text += " (sweep.fail_fast=true: the others were not started)"
        text += f" in {_format_duration(seconds)}"
        if finished_count == total:
            text += f", {_format_size(self._count_bytes())}"

        self.console.say()
        self.console.say(text)

    def _count_bytes(self) -> int:
        """Size of the run folders of all jobs that ended."""
        count = 0
        for job, *_ in self.display.results:
            for path in job.folder.rglob("*"):
                if path.is_file():
                    count += path.stat().st_size
        return count


def _format_duration(seconds: float) -> str:
    """A duration as "12.3 s", or a clock from a minute on."""
    return f"{seconds:.1f} s" if seconds < 60 else format_clock(seconds)


def _format_size(count: float) -> str:
    """A number of bytes in MB, or in GB from one on."""
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"
