"""Overrides and config keys without effect: refused or reported, but never ignored in silence."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlrun.config.overrides import get_key
from dlrun.config.schema import PERMISSIONS
from dlrun.core.errors import RequestError
from dlrun.core.shell import is_called_from_python

if TYPE_CHECKING:
    from dlrun.config.files import ConfigFile

# Hydra's own keys without effect in dlrun, and what to type instead. Others have one, or do not exist.
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
    "hydra.job_logging": "run.log in the run's folder has the messages; leave it out",
    "hydra.hydra_logging": "run.log in the run's folder has the messages; leave it out",
    "hydra.callbacks": "leave it out",
    "hydra.launcher": "type sweep.jobs=<runs at a time>",
    "hydra.sweeper.n_trials": "type sweep.search=tpe sweep.trials=<number>",
    "hydra.sweeper.n_jobs": "type sweep.jobs=<runs at a time>",
    "hydra.sweeper.direction": "type 'sweep.objectives=[min <metric>]' or '[max <metric>]', in order of importance",
    "hydra.sweeper.sampler": "type sweep.search=<one of tpe, random, grid, cmaes, qmc>; `seed` is its seed too",
    "hydra.sweeper.storage": "a search keeps its trials in the sweep's folder; type sweep.dir=<folder>",
    "hydra.sweeper.study_name": "a search is called after the sweep's folder; type sweep.dir=<folder>",
    "hydra.sweeper.params": "type '<key>=interval(<from>,<to>)', <key>=a,b and the like as words of the command line",
    "hydra.sweeper": "the values of a sweep are typed as key=a,b or in sweep.points, and with "
    "sweep.search=tpe sweep.trials=<number> Optuna chooses them",
    "hydra.help": "dlrun --help shows dlrun's own",
    "hydra.hydra_help": "dlrun --help shows dlrun's own",
}  # fmt: skip

# By option of hydra/launcher, the words of dlrun that mean the same.
_LAUNCHERS = {
    "joblib": "type sweep.jobs=<runs at a time>",
    "ray": "type sweep.engine=ray, with sweep.ray.address=auto to join a cluster that runs",
    "ray_aws": "start the cluster with Ray's own `ray up`, and on it type sweep.engine=ray sweep.ray.address=auto",
    "submitit_slurm": "type sweep.engine=slurm, with sweep.slurm.partition, time, gpus ...",
    "submitit_local": "type sweep.engine=slurm sweep.slurm.cluster=local",
}

# By key of such a launcher, the key of dlrun that means the same.
_LAUNCHER_KEYS = {
    "n_jobs": "sweep.jobs",
    "array_parallelism": "sweep.jobs",
    "timeout_min": "sweep.slurm.time",
    "partition": "sweep.slurm.partition",
    "gpus_per_node": "sweep.slurm.gpus",
    "cpus_per_task": "sweep.slurm.cpus",
    "mem_gb": "sweep.slurm.memory_gb",
    "account": "sweep.slurm.account",
    "qos": "sweep.slurm.qos",
    "constraint": "sweep.slurm.constraint",
    "setup": "sweep.slurm.setup",
    "additional_parameters": "sweep.slurm.options",
    "ray.init.address": "sweep.ray.address",
    "ray.remote.num_cpus": "sweep.ray.cpus",
    "ray.remote.num_gpus": "sweep.ray.gpus",
}

_TRAINING = "it is for training"

# Keys that have no effect, with all below them, on a command over a saved run, and why.
_OF_TRAINING = dict.fromkeys(
    ("trainer", "optimizer", "scheduler", "checkpoint", "tracking", "sweep", "expect", "strict", "probes",
     "preflight", "init_from", "init_map", "resume", "model.init", "model.freeze", "data.shuffle", "data.sampler",
     "data.drop_last", "device.cuda_graph", "device.compile", "device.strategy",
     "device.timeout_seconds", "run", "logger"),
    _TRAINING,
)  # fmt: skip
_OF_SAVED_RUNS = {
    **_OF_TRAINING,
    "paths.outputs": "what is written lies in the run's folder",
    # Interpolations are evaluated before the config is saved.
    "user": "the run's config holds the values that refer to it",
}
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
_DATA_OF_PREDICT = ("target", "delimiter", "separator", "decimal", "batch_size", "eval_batch_size", "root", "_target_")


# Words and keys of Hydra's own


def refuse_hydra(words: Sequence[str]) -> None:
    """RequestError for an override of Hydra's own keys that has no effect in dlrun."""
    for word in words:
        instead = _find_launcher_words(word) or _find_replacement(get_key(word))
        if instead:
            raise RequestError(f"{word} has no effect in dlrun: {instead}")


def _find_launcher_words(word: str) -> str:
    """What to type instead of a public launcher of Hydra, or of one of its keys; "" for other words."""
    key, _, value = word.partition("=")
    key = key.lstrip("+~").replace("/", ".")
    if key == "hydra.launcher":
        return _LAUNCHERS.get(value, "")
    own_key = _LAUNCHER_KEYS.get(key.removeprefix("hydra.launcher."), "") if key.startswith("hydra.launcher.") else ""
    return f"type {own_key}={value or '<value>'}" if own_key else ""


def refuse_hydra_in_files(files: "Sequence[ConfigFile]") -> None:
    """RequestError for such a key in a config file of the user's own."""
    for file in files:
        for key in (*sorted(file.keys), *sorted(file.groups)):
            instead = _find_replacement(key)
            if instead:
                raise RequestError(f"{key} in {file.path} has no effect in dlrun: {instead}")


def _find_replacement(key: str) -> str:
    """What to type instead of a key of Hydra's; "" for a key that has an effect."""
    dotted_key = key.replace("/", ".").partition("@")[0]
    for unheeded, instead in _HYDRA.items():
        if dotted_key == unheeded or dotted_key.startswith(f"{unheeded}."):
            return instead
    return ""


def refuse_other_folder(words: Sequence[str], is_sweep: bool, has_points: bool) -> None:
    """RequestError for a sweep's folder that is typed for a single run, and the other way round.

    has_points: whether sweep.points names the runs, which may lie in a folder of either kind.
    """
    for word in words:
        key = get_key(word)
        if key.startswith("hydra.sweep.") and not is_sweep and not has_points:
            raise _build_sweep_only_error(word)
        if key == "hydra.run.dir" and is_sweep:
            folder = word.partition("=")[2]
            raise RequestError(f"{word} is for a single run; type sweep.dir={folder} for the folder of a sweep")


# Settings of sweeps


def _build_sweep_only_error(word: str, resumes: bool = False) -> RequestError:
    """Error for a word that has an effect on sweeps only; resumes: whether the command resumes a run."""
    if resumes or is_called_from_python():
        return RequestError(f"{word} is for a sweep, and this is one run; leave it out")
    return RequestError(f"{word} is for a sweep; add -m, or leave it out")


def refuse_sweep_settings(words: Sequence[str]) -> None:
    """RequestError for a setting of sweeps on the command line of a single run, where it has no effect."""
    resumes = list(words[:1]) == ["resume"] or any(word.startswith("resume=") for word in words)
    for word in words:
        if word.startswith("sweep.") and not word.startswith("sweep.points="):
            raise _build_sweep_only_error(word, resumes)


# Keys that only a search heeds, with what stands in their place in other sweeps.
_OF_SEARCH = {
    "sweep.trials": "all combinations are run",
    "sweep.seeds": "type 'seed=range(<number>)'",
    "sweep.objectives": "checkpoint.monitor=<metric> ranks the runs",
    "sweep.pruner": "nothing ends a run but its own early stopping",
    "sweep.round": "all points are known from the start",
}


def refuse_outside_search(words: Sequence[str]) -> None:
    """RequestError for a setting of searches on the command line of another sweep."""
    for word in words:
        key = get_key(word)
        if key in _OF_SEARCH:
            # A grid tries all combinations, as the sweep would.
            search = "tpe" if key == "sweep.trials" else "grid"
            raise RequestError(
                f"{word} is for a search, and here {_OF_SEARCH[key]}; add sweep.search={search}, or leave it out"
            )


def refuse_in_search(words: Sequence[str], sweep: Mapping[str, Any]) -> None:
    """RequestError for what a search cannot heed; sweep: the composed section."""
    if sweep["points"]:
        raise RequestError(
            f"sweep.search={sweep['search']} chooses the points itself; leave out sweep.points, or sweep.search"
        )
    for word in words:
        if get_key(word) == "hydra.sweep.subdir":
            raise RequestError(f"{word}: a search numbers the folders of its trials; leave it out")


# Words of one command line


def refuse_unheeded(words: Sequence[str], command: str) -> None:
    """RequestError for an override that has no effect on a command over a saved run.

    command: "dlrun eval", "dlrun predict", "dlrun export" or "dlrun.load".
    """
    for word in words:
        key = get_key(word)
        if key == "device":
            key = "device.name"
        reasons = dict(_UNHEEDED[command])
        is_unread = key.startswith("data.") and key.split(".")[1] not in _DATA_OF_PREDICT
        if command == "dlrun predict" and is_unread:
            reasons[key] = "of the data only the inputs that are named are read"

        for unheeded, reason in reasons.items():
            if key != unheeded and not key.startswith(f"{unheeded}."):
                continue
            if reason == _TRAINING:
                raise RequestError(f"{word} is for training, and has no effect on {command}; leave it out")
            raise RequestError(f"{word} has no effect on {command}: {reason}; leave it out")


def find_repeated(words: Sequence[str]) -> list[str]:
    """A note for each word of one command line whose key a later word sets to another value."""
    last = {get_key(word): word for word in words if "=" in word}
    notes = []
    for word in dict.fromkeys(words):
        key = get_key(word)
        if "=" not in word or key in PERMISSIONS:
            continue

        # A target of the user's own replaces the option, with all its settings.
        own = last.get(f"{key}._target_")
        later = last.get(key, word)
        if own is not None:
            notes.append(format_note(word, f"{own} stands in its place"))
        elif later != word:
            notes.append(format_note(word, f"{later} comes after it"))

    return notes


def format_note(key: str, reason: str) -> str:
    """Note that a key has no effect."""
    return f"{key} has no effect here: {reason}"
