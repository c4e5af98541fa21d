"""Words and keys that dlrun does not heed: refused, or said, but never passed over in silence."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dlrun.config.schema import PERMISSIONS
from dlrun.core.errors import RequestError
from dlrun.core.shell import is_called_from_python

if TYPE_CHECKING:
    from dlrun.config.files import ConfigFile

# Hydra's own keys that dlrun does not heed, and what to type instead. Others are heeded, or do not exist.
_HYDRA = {
    "hydra.job.chdir": "a run stays in the working directory; leave it out",
    "hydra.job.name": "a run is called after its model and data; type hydra.run.dir=<folder> to choose its folder",
    "hydra.job.id": "leave it out",
    "hydra.job.num": "leave it out",
    "hydra.job.config_name": "type --config-name <file>",
    "hydra.job.override_dirname": "leave it out",
    "hydra.job.env_set": "type it in front of the command, as in NAME=value dlrun ...",
    "hydra.job.env_copy": "leave it out",
    "hydra.env": "leave it out",
    "hydra.output": "leave it out",
    "hydra.output_subdir": "the config always lies in .hydra of the run's folder; leave it out",
    "hydra.overrides": "type key=value words",
    "hydra.runtime": "leave it out",
    "hydra.verbose": "type -v for tracebacks",
    "hydra.job_logging": "run.log in the run's folder has what was said; leave it out",
    "hydra.hydra_logging": "run.log in the run's folder has what was said; leave it out",
    "hydra.callbacks": "leave it out",
    "hydra.launcher": "type sweep.jobs=<runs at a time>",
    "hydra.sweeper": "the values of a sweep are typed as key=a,b or in sweep.points",
    "hydra.help": "dlrun --help shows dlrun's own",
    "hydra.hydra_help": "dlrun --help shows dlrun's own",
}  # fmt: skip

_TRAINING = "it is for training"

# Keys, with all below them, that a command over a saved run does not heed, and why.
_OF_TRAINING = dict.fromkeys(
    ("trainer", "optimizer", "scheduler", "checkpoint", "tracking", "sweep", "expect", "strict", "probes",
     "preflight", "init_from", "resume", "model.init", "data.shuffle", "data.drop_last", "device.cuda_graph",
     "device.compile", "device.timeout_seconds"),
    _TRAINING,
)  # fmt: skip
_OF_SAVED_RUNS = {**_OF_TRAINING, "paths.outputs": "what is written lies in the run's folder"}
_WITHOUT_METRICS = {"figures": "it draws none", "task": "it measures nothing"}
_UNHEEDED = {
    "dlrun eval": {**_OF_SAVED_RUNS, "task.reduction": "the metrics are means over the rows"},
    "dlrun predict": {**_OF_SAVED_RUNS, **_WITHOUT_METRICS},
    "dlrun export": {
        **_OF_SAVED_RUNS,
        "figures": "it draws none",
        "device.name": "an export is made on the CPU",
        "device.index": "an export is made on the CPU",
    },
    "dlrun.load": {**_OF_SAVED_RUNS, **_WITHOUT_METRICS},
}
_DATA_OF_PREDICT = ("target", "delimiter", "batch_size", "eval_batch_size", "root", "_target_")


def refuse_hydra(words: Sequence[str]) -> None:
    """RequestError for a key of Hydra's own that is typed and that dlrun does not heed."""
    for word in words:
        instead = _instead_of(get_key(word))
        if instead:
            raise RequestError(f"{word} has no effect in dlrun: {instead}")


def refuse_hydra_in_files(files: "Sequence[ConfigFile]") -> None:
    """RequestError for such a key in a config file of the user's own."""
    for file in files:
        for key in (*sorted(file.keys), *sorted(file.groups)):
            instead = _instead_of(key)
            if instead:
                raise RequestError(f"{key} in {file.path} has no effect in dlrun: {instead}")


def _instead_of(key: str) -> str:
    """What to do instead of setting a key of Hydra's; "" for one that dlrun heeds."""
    dotted = key.replace("/", ".").partition("@")[0]
    for unheeded, instead in _HYDRA.items():
        if dotted == unheeded or dotted.startswith(f"{unheeded}."):
            return instead
    return ""


def refuse_other_folder(words: Sequence[str], is_sweep: bool, has_points: bool) -> None:
    """RequestError for the folder of a sweep that is typed for a single run, and the other way round.

    has_points: whether sweep.points names the runs, which lie in a folder of either kind.
    """
    for word in words:
        key = get_key(word)
        if key.startswith("hydra.sweep.") and not is_sweep and not has_points:
            raise sweep_only_error(word)
        if key == "hydra.run.dir" and is_sweep:
            folder = word.partition("=")[2]
            raise RequestError(f"{word} is for a single run; type sweep.dir={folder} for the folder of a sweep")


def sweep_only_error(word: str, resumes: bool = False) -> RequestError:
    """The refusal of a word that only sweeps heed; resumes: whether the command goes on with a run."""
    if resumes or is_called_from_python():
        return RequestError(f"{word} is for a sweep, and this is one run; leave it out")
    return RequestError(f"{word} is for a sweep; add -m, or leave it out")


def refuse_sweep_settings(words: Sequence[str]) -> None:
    """RequestError for a setting of sweeps on the command line of a single run, which would not heed it."""
    resumes = list(words[:1]) == ["resume"] or any(word.startswith("resume=") for word in words)
    for word in words:
        if word.startswith("sweep.") and not word.startswith("sweep.points="):
            raise sweep_only_error(word, resumes)


def refuse_unheeded(words: Sequence[str], command: str) -> None:
    """RequestError for a key that is typed for a saved run and that the command does not heed.

    command: "dlrun eval", "dlrun predict", "dlrun export" or "dlrun.load".
    """
    for word in words:
        key = get_key(word)
        if key == "device":
            key = "device.name"
        reasons = dict(_UNHEEDED[command])
        if command == "dlrun predict" and key.startswith("data.") and key.split(".")[1] not in _DATA_OF_PREDICT:
            reasons[key] = "of the data only the inputs that are named are read"
        for unheeded, reason in reasons.items():
            if key != unheeded and not key.startswith(f"{unheeded}."):
                continue
            if reason == _TRAINING:
                raise RequestError(f"{word} is for training, and has no effect on {command}; leave it out")
            raise RequestError(f"{word} has no effect on {command}: {reason}; leave it out")


def find_repeated(words: Sequence[str]) -> list[str]:
    """A note for each word of one command line whose key a later word names with another value."""
    last = {get_key(word): word for word in words if "=" in word}
    notes = []
    for word in dict.fromkeys(words):
        key = get_key(word)
        later = last.get(key, word)
        # A target of the user's own replaces the option, with all its settings.
        own = last.get(f"{key}._target_")
        if "=" not in word or key in PERMISSIONS:
            continue
        if own is not None:
            notes.append(format_note(word, f"{own} stands in its place"))
        elif later != word:
            notes.append(format_note(word, f"{later} comes after it"))
    return notes


def format_note(key: str, reason: str) -> str:
    """What is said of a key that has no effect."""
    return f"{key} has no effect here: {reason}"


def get_key(word: str) -> str:
    """The key that a word of a command line is about."""
    return word.partition("=")[0].lstrip("+~")
