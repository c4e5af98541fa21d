"""The folder of a sweep, new or to be resumed, and the requests of `dlrun resume SWEEP`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dlrun.config import compose, request
from dlrun.config.overrides import get_key
from dlrun.config.request import Request
from dlrun.config.schema import NOT_IDENTITY, strip_permission_words
from dlrun.core.errors import RequestError
from dlrun.core.own_code import find_own_modules
from dlrun.core.shell import quote, suggest_command
from dlrun.experiment import resume
from dlrun.runs import folder as run_folder
from dlrun.runs.query import is_sweep_folder
from dlrun.runs.record import LEDGER
from dlrun.sweep.jobs import Job
from dlrun.sweep.ledger import Ledger

# Keys that a search is resumed with as they were.
_FIXED_IN_SEARCH = ("sweep.search", "sweep.seeds", "sweep.objectives", "sweep.pruner", "sweep.points")


def choose_folder(requests: Sequence[Request]) -> tuple[Path, Ledger]:
    """The folder of the sweep and its ledger, an empty one for a new sweep; nothing is written.

    RequestError if the chosen folder holds something else.
    """
    first = requests[0]
    assert first.sweep is not None

    # The config still has the name that the folder had when the sweep was begun.
    if first.words[:1] == ["resume"]:
        return first.sweep, Ledger.read(first.sweep)

    if has_chosen_folder(first):
        folder = Path(first.config["sweep"]["dir"] or first.sweep)
        return folder, _open_ledger(folder, first.words)

    # The default name has the time in it: a second start in the same second gets a suffix.
    folder = run_folder.find_free_folder(first.sweep)
    return folder, Ledger(folder)


def has_chosen_folder(request: Request) -> bool:
    """Whether the command line names the sweep's folder; otherwise each start makes a new one."""
    is_named = any(word.startswith(("hydra.sweep.dir=", "hydra.run.dir=")) for word in request.words)
    return is_named or bool(request.config["sweep"]["dir"]) or request.words[:1] == ["resume"]


def _open_ledger(folder: Path, words: Sequence[str]) -> Ledger:
    """The ledger in a folder that the user named; RequestError if other files or another sweep are there."""
    # Hidden files are the lock, or half a file, of a sweep that was killed as it began.
    if not folder.exists() or (folder.is_dir() and all(path.match(".*") for path in folder.iterdir())):
        return Ledger(folder)
    if not is_sweep_folder(folder):
        raise RequestError(f"{folder} holds something, but no sweep ({LEDGER}); type sweep.dir=<a new folder>")

    ledger = Ledger.read(folder)
    difference = _describe_difference(ledger.words, words)
    if difference:
        modules = set[str]()
        for entry in ledger.entries.values():
            modules.update(find_own_modules(entry.config))
        if ledger.trials:
            raise RequestError(f"{folder} holds a search ({difference}); type another sweep.dir")
        raise RequestError(
            f"{folder} holds another sweep ({difference}); type another sweep.dir, or add points to that one: "
            f"{suggest_command('resume', folder, '<key>=<values>', modules=sorted(modules))}"
        )
    return ledger


def _describe_difference(before: Sequence[str], now: Sequence[str]) -> str:
    """The first key that only one of two command lines names, or that they fix to different values; "" if none.

    More values of a swept key make no other sweep: they add points to it.
    """
    old_words = read_fixed_words(before)
    new_words = read_fixed_words(now)
    for key in sorted({*new_words, *old_words}):
        # Swept or fixed, the keys must be the same.
        if key not in new_words:
            return f"it was over {key}"
        if key not in old_words:
            return f"it was not over {key}"

        old_word = old_words[key]
        new_word = new_words[key]
        # A swept key has an empty text, which differs from nothing.
        if old_word and new_word and old_word != new_word:
            return f"with {old_word}, not {new_word}"
    return ""


def read_fixed_words(words: Sequence[str]) -> dict[str, str]:
    """By key, the overrides that distinguish sweeps; an empty text for a key that is swept over."""
    fixed_words = {}
    for word in compose.select_overrides(words):
        key = get_key(word)
        if key.split(".")[0] not in NOT_IDENTITY or key == "sweep.points":
            fixed_words[key] = "" if compose.has_several_values(word) else word
    return fixed_words


def merge_words(before: Sequence[str], more: Sequence[str]) -> list[str]:
    """The overrides of a command line, replaced or extended by `more`; without those of Hydra itself."""
    keys = {get_key(word) for word in more}
    words = []
    for word in compose.select_overrides(before):
        key = get_key(word)
        if key not in keys and not key.startswith("hydra"):
            words.append(word)
    return [*words, *more]


def read_requests(words: Sequence[str]) -> list[Request]:
    """`dlrun resume SWEEP [new points]`: the jobs of the ledger, and those that the words add.

    A ledger is loaded, not trusted: its jobs run the user's own modules only if trusted_modules names them.
    """
    folder = Path(words[0])
    words = words[1:]
    ledger = Ledger.read(folder)

    # Settings that are no part of an experiment (device, figures, ...) apply to all jobs; the rest adds points.
    overrides = compose.select_overrides(words)
    flags = [word for word in words if word not in overrides]
    settings = []
    for word in overrides:
        key = get_key(word)
        if key.split(".")[0] in NOT_IDENTITY and key != "sweep.points":
            settings.append(word)
    new_words = [word for word in overrides if word not in settings]

    line = ["resume", str(folder), *words]
    if ledger.trials:
        return _read_search(ledger, flags, new_words, settings, line)
    recorded_requests = [ledger.make_request(entry, settings, line) for entry in ledger.entries.values()]
    if not new_words:
        return recorded_requests

    refuse_other_configs(ledger, words)
    merged_words = merge_words(ledger.words, new_words)
    refuse_evaluation(merged_words, new_words)

    # The old command line with the new values: points of the ledger are dropped as duplicates.
    points = request.from_command_line(["-m", *flags, *merged_words, *strip_permission_words(settings)])
    trusted_modules = recorded_requests[0].trusted_modules or []
    new_requests = [replace(point, trusted_modules=trusted_modules, words=line, sweep=folder) for point in points]
    return [*recorded_requests, *new_requests]


def refuse_other_configs(ledger: Ledger, words: Sequence[str]) -> None:
    """RequestError unless new points are composed from the same config files as the old ones."""
    flags_before = compose.parse_flags(ledger.words)
    flags_now = compose.parse_flags(words)
    for flag in ("config_dir", "config_name", "config_path"):
        value = getattr(flags_before, flag)
        if value and not getattr(flags_now, flag):
            place = f"--{flag.replace('_', '-')} {quote(value)}"
            raise RequestError(f"the sweep was begun with {place}; add that to this command, for the new points")


def refuse_evaluation(words: Sequence[str], typed: Sequence[str]) -> None:
    """RequestError for an interpolation that is not typed: it may read the environment, and no file may choose that."""
    for word in words:
        if "${" in word and word not in typed:
            raise RequestError(
                f"the sweep was begun with {word}, and nothing that is read from a file is evaluated; type it again "
                "behind this command, for the new points"
            )


def prepare_job(job: Job) -> Job:
    """The job with its newest checkpoint to resume from, or with an emptied folder if it has none.

    UnreadableError if it has checkpoints and none of them can be opened.
    """
    if not job.folder.is_dir():
        return job

    state = resume.find_newest_state(job.folder)
    if state is not None:
        return replace(job, request=resume.continue_run(job.request, job.folder, state))

    # The error of the attempt that is thrown away stays in the ledger.
    run_folder.clear_for_restart(job.folder)
    return job


def _read_search(
    ledger: Ledger, flags: Sequence[str], new_words: Sequence[str], settings: list[str], line: list[str]
) -> list[Request]:
    """`dlrun resume SEARCH [sweep.trials=N]`: the points to check first, of which one composes all others.

    RequestError for words that would make it another search.
    """
    for word in (*new_words, *settings):
        if word in new_words or get_key(word) in _FIXED_IN_SEARCH:
            raise RequestError(
                f"{word} would make it another search, which takes a sweep.dir of its own; leave it out, "
                "or type sweep.trials=<more> to make this one longer"
            )
    refuse_other_configs(ledger, line[2:])

    # A search that was made longer before keeps that length.
    words = strip_permission_words(ledger.words)
    for extension in ledger.extensions:
        words = merge_words(words, [word for word in extension if get_key(word) == "sweep.trials"])
    words = merge_words(words, strip_permission_words(settings))
    refuse_evaluation(words, settings)

    # A permission is given by this command line alone.
    entry = next(iter(ledger.entries.values()), None)
    trusted_modules = None if entry is None else ledger.make_request(entry, settings, line).trusted_modules
    points = request.from_command_line(["-m", *flags, *words])
    search = points[0].search
    assert search is not None
    search.adopt(line, ledger.folder, trusted_modules or [])
    return [replace(point, trusted_modules=trusted_modules or [], words=line, sweep=ledger.folder) for point in points]


def refuse_other_search(ledger: Ledger, words: Sequence[str]) -> None:
    """RequestError if the ledger holds no search, or another one than `words`, this command line, describes."""
    if not ledger.words or words[:1] == ["resume"]:
        return
    if not ledger.trials:
        raise RequestError(f"{ledger.folder} holds a sweep that is no search; type another sweep.dir")

    before = {get_key(word): word for word in compose.select_overrides(ledger.words)}
    now = {get_key(word): word for word in compose.select_overrides(words)}
    for key in sorted({*before, *now}):
        old_word = before.get(key, "")
        new_word = now.get(key, "")
        if old_word == new_word:
            continue
        is_searched = any(word and compose.has_several_values(word) for word in (old_word, new_word))
        if is_searched or key in _FIXED_IN_SEARCH:
            raise RequestError(
                f"{ledger.folder} holds another search, with {old_word or f'no {key}'} and not with "
                f"{new_word or f'no {key}'}; type another sweep.dir"
            )
