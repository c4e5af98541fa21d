"""What a user types that has no effect: it is refused, or said, but never passed over in silence."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dlrun.errors import RequestError

if TYPE_CHECKING:
    from dlrun.parts import Parts

# Hydra's own keys that dlrun does not heed, and what to type instead. Others are heeded, or do not exist.
_HYDRA = {
    "hydra.job.chdir": "a run stays in the working directory; leave it out",
    "hydra.job.name": "a run is called after its model and data; type hydra.run.dir=<folder> to choose its folder",
    "hydra.job.id": "leave it out",
    "hydra.job.num": "leave it out",
    "hydra.job.env_set": "type it in front of the command, as in NAME=value dlrun ...",
    "hydra.job.env_copy": "leave it out",
    "hydra.output_subdir": "the config always lies in .hydra of the run's folder; leave it out",
    "hydra.verbose": "type -v for tracebacks",
    "hydra.job_logging": "run.log in the run's folder has what was said; leave it out",
    "hydra.hydra_logging": "run.log in the run's folder has what was said; leave it out",
    "hydra.callbacks": "leave it out",
    "hydra.launcher": "type sweep.jobs=<runs at a time>",
    "hydra.sweeper": "the values of a sweep are typed as key=a,b or in sweep.points",
    "hydra.help": "dlrun --help shows dlrun's own",
    "hydra.hydra_help": "dlrun --help shows dlrun's own",
}  # fmt: skip

# Keys that only training reads.
_OF_TRAINING = ("trainer", "optimizer", "scheduler", "checkpoint", "tracking", "sweep", "expect", "strict", "probes",
                "preflight", "init_from")  # fmt: skip


def refuse_hydra(words: Sequence[str]) -> None:
    """RequestError for a key of Hydra's own that is typed and that dlrun does not heed."""
    for word in words:
        key = key_of(word).replace("/", ".").partition("@")[0]
        for unheeded, instead in _HYDRA.items():
            if key == unheeded or key.startswith(f"{unheeded}."):
                raise RequestError(f"{word} has no effect in dlrun: {instead}")


def refuse_of_training(words: Sequence[str], command: str) -> None:
    """RequestError for a key that only training reads, typed for a saved run that is not trained."""
    for word in words:
        if key_of(word).split(".")[0] in _OF_TRAINING:
            raise RequestError(f"{word} is for training, and has no effect on {command}; leave it out")


def find_without_effect(parts: "Parts", words: Sequence[str]) -> list[str]:
    """A note for each typed key that this choice of data, model and device does not read."""
    from dlrun.data.batches import MemoryBatches

    settings = parts.settings
    keys = [key_of(word) for word in words]
    device = parts.runtime.device.type
    batches = (parts.training.train, parts.training.val, parts.test)
    all_in_memory = all(isinstance(part, MemoryBatches) for part in batches if part is not None)
    patience = settings.rest.trainer.early_stopping.patience

    reasons: dict[str, str] = {}
    if all_in_memory:
        reasons["data.num_workers"] = "all data are in memory; type data.loader=workers to have them read by processes"
    if settings.data_keys.loader != "auto":
        reasons["data.memory_share"] = f"data.loader={settings.data_keys.loader} decides"
    if settings.scheduler.target is None:
        reasons["scheduler.interval"] = "there is no schedule; type scheduler=<one of `dlrun ls scheduler`>"
    if patience is None:
        reasons["trainer.early_stopping.min_delta"] = "type trainer.early_stopping.patience=<epochs> too"
    if not settings.rest.expect:
        reasons["strict"] = "nothing is expected; type expect=[...] too"
    if device != "cuda":
        reasons["device.cuda_graph"] = f"it is for cuda, and this is {device}"
    if parts.runtime.ranks.count == 1:
        reasons["device.timeout_seconds"] = "there is one process only"
    if parts.splits.spec.kind != "image":
        reasons["device.channels_last"] = "it is for images"
    return [f"{key} has no effect here: {reason}" for key, reason in reasons.items() if key in keys]


def key_of(word: str) -> str:
    """The key that a word of a command line is about."""
    return word.partition("=")[0].lstrip("+~")
