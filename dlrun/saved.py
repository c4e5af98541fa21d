"""Saved runs and checkpoints: finding them, going on with them, taking their weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from dlrun import checkpoint, run_folder
from dlrun.errors import CheckpointError, RequestError
from dlrun.request import Request, from_saved
from dlrun.tracking import flatten

MAY_CHANGE = (
    "trainer.epochs", "trainer.max_steps", "trainer.log_every_steps", "checkpoint.", "device.", "paths.",
    "tracking.", "figures", "trust", "trusted_modules", "resume", "probes", "expect", "strict", "sweep.",
    "data.num_workers", "data.root",
)  # fmt: skip


def checkpoint_file(place: str) -> Path:
    """The file that RUN_OR_CHECKPOINT names: best.pt of a run folder, or the file itself."""
    path = Path(place)
    if path.is_file():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    for name in ("best.pt", "last.pt"):
        if (folder / name).exists():
            return folder / name
    if not path.exists():
        raise RequestError(f"there is no run or checkpoint {place}; the runs are in outputs/<date>/")
    raise RequestError(f"{place} holds no checkpoint: it is not a run folder, or the run ended before its first save")


def newest_state(folder: Path) -> dict[str, Any]:
    """The newest checkpoint of a run that is whole."""
    return checkpoint.newest_whole(folder / "checkpoints")[1]


def resume_requests(words: list[str]) -> list[Request]:
    """`dlrun resume RUN [key=value ...]`: empty when the run has nothing left to do."""
    if not words:
        raise RequestError("which run? type dlrun resume outputs/<date>/<run>")
    folder = Path(words[0])
    if not (folder / "checkpoints").is_dir():
        raise RequestError(f"{folder} is not a run folder with checkpoints; the runs are in outputs/<date>/")
    state = newest_state(folder)
    request = from_saved(state["config"], state["choices"], words[1:], folder)
    plain: dict[str, Any] = OmegaConf.to_container(request.config)  # type: ignore[assignment]
    refuse_changes(state["config"], plain, folder)
    result = folder / "result.json"
    status = run_folder.read_json(result)["status"] if result.exists() else None
    if status in ("completed", "early_stopped") and nothing_left(state, plain):
        print(f"{folder} is {status.replace('_', ' ')}; to train longer type dlrun resume {folder} trainer.epochs=...")
        return []
    return [replace(request, going_on=True, words=["resume", *words])]


def nothing_left(state: dict[str, Any], plain: dict[str, Any]) -> bool:
    """Whether a finished run has reached what is now asked for."""
    before, now = state["config"]["trainer"], plain["trainer"]
    return all(before[k] == now[k] for k in ("epochs", "max_steps", "early_stopping"))


def refuse_changes(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Going on under another data, model, optimizer or schedule would be another run."""
    a, b = flatten(before), flatten(now)
    changed = [k for k in sorted({*a, *b}) if a.get(k) != b.get(k) and not k.startswith(MAY_CHANGE)]
    if changed:
        listed = ", ".join(f"{k} ({a.get(k)} -> {b.get(k)})" for k in changed)
        raise RequestError(
            f"a resumed run stays the same run, and this would change {listed}; "
            f"leave that out, or start a new run from its weights: dlrun init_from={folder} ..."
        )


def take_weights(model: nn.Module, place: Path) -> list[str]:
    """Copy the weights of a run or checkpoint that fit by name and shape; returns what was taken and what not."""
    theirs = checkpoint.load(checkpoint_file(str(place)))["model"]
    ours = model.state_dict()
    fitting = {k: v for k, v in theirs.items() if k in ours and v.shape == ours[k].shape}
    if not fitting:
        raise RequestError(f"init_from={place}: none of its weights fit this model, which has {', '.join(ours)}")
    model.load_state_dict(fitting, strict=False)
    left = [k for k in ours if k not in fitting]
    return [f"{len(fitting)} of {len(ours)} tensors taken from {place}" + (f"; not {', '.join(left)}" if left else "")]


def load_run_config(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Config and choices from the run folder that a full model lies in."""
    hidden = path.resolve().parent.parent / ".hydra"
    if not (hidden / "config.yaml").is_file():
        raise CheckpointError(f"{path} does not lie in a run folder, so there is nothing that says which data it takes")
    plain: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(hidden / "config.yaml"))  # type: ignore[assignment]
    choices = OmegaConf.select(OmegaConf.load(hidden / "hydra.yaml"), "hydra.runtime.choices")
    return plain, {str(k): str(v) for k, v in choices.items()}
