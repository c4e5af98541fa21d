"""Whether two run folders tell of the same run."""

import json
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TIMED = ("train_seconds", "samples_per_second")


def differences(reference: Path, resumed: Path) -> list[str]:
    """A few words for each thing that is not equal: result.json, metrics.jsonl, scalars, checkpoints, pictures."""
    results = []
    one, two = result(reference), result(resumed)
    results += [f"result.json: {k} {one.get(k)} -> {two.get(k)}" for k in {*one, *two} if one.get(k) != two.get(k)]
    if (reference / "metrics.jsonl").read_bytes() != (resumed / "metrics.jsonl").read_bytes():
        results.append("metrics.jsonl")
    before, after = scalars(reference), scalars(resumed)
    for tag in sorted({*before, *after}):
        if before.get(tag) != after.get(tag):
            results.append(f"scalars of {tag}: {_first(before.get(tag, []), after.get(tag, []))}")
    for name in ("best.pt", "last.pt"):
        results += [
            f"{name}: {what}" for what in checkpoint(reference / "checkpoints" / name, resumed / "checkpoints" / name)
        ]
    pictures = {path.relative_to(folder) for folder in (reference, resumed) for path in (folder / "figures").glob("*")}
    return results + [str(name) for name in sorted(pictures) if not _same_bytes(reference / name, resumed / name)]


def result(folder: Path) -> dict[str, Any]:
    """result.json but for what a clock says."""
    return {k: v for k, v in json.loads((folder / "result.json").read_text()).items() if k not in TIMED}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) of each event, as TensorBoard reads them; without the tags under time/."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def checkpoint(one: Path, two: Path) -> list[str]:
    """What differs in the weights and in where they come from."""
    if not (one.exists() and two.exists()):
        return ["missing"] if one.exists() != two.exists() else []
    before, after = (torch.load(path, map_location="cpu", weights_only=True) for path in (one, two))
    differing = [key for key in ("epoch", "step", "metrics") if before[key] != after[key]]
    same = before["model"].keys() == after["model"].keys() and all(
        torch.equal(tensor, after["model"][key]) for key, tensor in before["model"].items()
    )
    return differing if same else [*differing, "weights"]


def _first(before: list[tuple[int, float]], after: list[tuple[int, float]]) -> str:
    missing, new = [e for e in before if e not in after], [e for e in after if e not in before]
    if not missing and not new:
        return f"{len(before)} events -> {len(after)}, some twice"
    return f"{len(missing)} missing, first {missing[:1]}; {len(new)} new, first {new[:1]}"


def _same_bytes(one: Path, two: Path) -> bool:
    return one.exists() and two.exists() and one.read_bytes() == two.read_bytes()
