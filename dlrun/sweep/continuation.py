"""The folder of a sweep: a new one, or the one to go on with."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dlrun.config import request
from dlrun.config.request import Request
from dlrun.config.schema import NOT_IDENTITY, recorded_words
from dlrun.core.errors import RequestError
from dlrun.core.own_code import own_modules
from dlrun.core.shell import advice, quote
from dlrun.runs import folder as run_folder
from dlrun.sweep.jobs import parse_key
from dlrun.sweep.ledger import NAME, Ledger


def choose_folder(requests: Sequence[Request]) -> tuple[Path, Ledger]:
    """Where the sweep is to lie, and its ledger, an empty one for a new sweep; nothing is written.

    RequestError when the folder that was asked for holds something else.
    """
    first = requests[0]
    assert first.sweep is not None
    if first.words[:1] == ["resume"]:  # where it was begun, its folder may have had another name
        return first.sweep, Ledger.read(first.sweep)
    if has_chosen_folder(first):
        folder = Path(first.config["sweep"]["dir"] or first.sweep)
        return folder, _ledger(folder, first.words)
    folder = run_folder.free(first.sweep)
    return folder, Ledger(folder)


def has_chosen_folder(request: Request) -> bool:
    """Whether the command line names the sweep's folder; each start makes a new one else."""
    named = any(word.startswith(("hydra.sweep.dir=", "hydra.run.dir=")) for word in request.words)
    return named or bool(request.config["sweep"]["dir"]) or request.words[:1] == ["resume"]


def _ledger(folder: Path, words: Sequence[str]) -> Ledger:
    """The ledger in a folder that was asked for by name; RequestError for other people's files."""
    if not folder.exists() or (folder.is_dir() and all(path.match(".*") for path in folder.iterdir())):
        return Ledger(folder)  # what is hidden there is a lock, or half a file, of a sweep killed as it began
    if not (folder / NAME).is_file():
        raise RequestError(f"{folder} holds something, but no sweep ({NAME}); type sweep.dir=<a new folder>")
    found = Ledger.read(folder)
    if different := _difference(found.words, words):
        modules = {module for entry in found.entries.values() for module in own_modules(entry.config)}
        raise RequestError(
            f"{folder} holds another sweep ({different}); type another sweep.dir, or add points to that one: "
            f"{advice('resume', folder, '<key>=<values>', modules=sorted(modules))}"
        )
    return found


def _difference(before: Sequence[str], now: Sequence[str]) -> str:
    """What makes one command line another sweep than the other: a key only one of them names, or another fixed value.

    More values of a key that is swept over are points to be added.
    """
    ours, theirs = read_fixed_words(now), read_fixed_words(before)
    for key in sorted({*ours, *theirs}):
        one, other = theirs.get(key), ours.get(key)
        if key not in ours or key not in theirs:
            return f"{'it was' if key in theirs else 'it was not'} over {key}"
        if one and other and one != other:
            return f"with {one}, not {other}"
    return ""


def read_fixed_words(words: Sequence[str]) -> dict[str, str]:
    """By key, each word that can tell sweeps apart; an empty text where it names several values."""
    found = {}
    for word in request.overrides_of(words):
        top = parse_key(word).split(".")[0]
        if top not in NOT_IDENTITY or parse_key(word) == "sweep.points":
            found[parse_key(word)] = "" if request.names_several_values(word) else word
    return found


def merge_words(before: Sequence[str], more: Sequence[str]) -> list[str]:
    """The words of a command line with some replaced by others about the same key, or added."""
    keys = {parse_key(word) for word in more}
    kept = [word for word in request.overrides_of(before) if parse_key(word) not in keys]
    return [*(word for word in kept if not parse_key(word).startswith("hydra")), *more]


def read_requests(words: Sequence[str]) -> list[Request]:
    """`dlrun resume SWEEP [new points]`: the jobs that the ledger knows, and those that the words add.

    The ledger is a loaded file: its jobs run modules of the user's own only where trusted_modules says so.
    """
    folder, words = Path(words[0]), words[1:]
    ledger = Ledger.read(folder)
    flags = [word for word in words if word not in request.overrides_of(words)]
    asked = request.overrides_of(words)
    of_all = [
        word for word in asked if parse_key(word).split(".")[0] in NOT_IDENTITY and parse_key(word) != "sweep.points"
    ]
    new = [word for word in asked if word not in of_all]
    line = ["resume", str(folder), *words]
    known = [ledger.request(entry, of_all, line) for entry in ledger.entries.values()]
    if not new:
        return known
    before = request.flags(ledger.words)
    now = request.flags(words)
    for flag in ("config_dir", "config_name", "config_path"):
        value = getattr(before, flag)
        if value and not getattr(now, flag):
            place = f"--{flag.replace('_', '-')} {quote(value)}"
            raise RequestError(f"the sweep was begun with {place}; add that to this command, for the new points")
    kept = merge_words(ledger.words, new)
    for word in kept:
        if "${" in word and word not in new:
            raise RequestError(
                f"the sweep was begun with {word}, and nothing that is read from a file is evaluated; type it again "
                "behind this command, for the new points"
            )
    points = request.from_command_line(["-m", *flags, *kept, *recorded_words(of_all)])
    trusted = known[0].trusted_modules or []
    return [*known, *(replace(point, trusted_modules=trusted, words=line, sweep=folder) for point in points)]
