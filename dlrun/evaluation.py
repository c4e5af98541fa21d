"""`dlrun eval RUN_OR_CHECKPOINT [key=value ...]`: the metrics of saved weights on the test split."""

from pathlib import Path
from typing import Any

from torch import nn

from dlrun import build, checkpoint, config, loop, results, run_folder, runtime, saved
from dlrun.console import Console, facts, number, table
from dlrun.data.spec import DataSpec
from dlrun.errors import MisfitError, RequestError
from dlrun.models.pretrained import weights_follow
from dlrun.request import Request, from_saved
from dlrun.runtime import Runtime


def evaluate(words: list[str]) -> dict[str, float]:
    """Print the metrics table; returns the metrics. The best checkpoint of a run, or the file named."""
    if not words or "=" in words[0]:
        raise RequestError("which run? type dlrun eval outputs/<date>/<run>, or a checkpoint file of one")
    path = saved.checkpoint_file(words[0])
    full = checkpoint.is_full_model(path)
    state = {} if full else checkpoint.load(path)
    if not full:
        saved.refuse_incomplete(state, saved.TO_EVALUATE, path)
    plain, choices = saved.load_run_config(path) if full else (state["config"], state["choices"])
    request = from_saved(plain, choices, words[1:], None)
    settings = config.read(request.config, request.choices)
    model = checkpoint.load_full_model(path, settings.rest.trust) if full else None
    with runtime.session(settings.rest.device, settings.rest.seed) as process:
        splits = build.data(settings, request.trusted_modules)
        refuse_other_data(DataSpec.from_dict(state["spec"]) if state else splits.spec, splits.spec, request)
        if model is None:
            with weights_follow():
                model = build.model(settings, splits.spec, process, request.trusted_modules)
            load_weights(model, state["model"], path)
        task = build.task(settings, splits.spec)
        parts = zip(("train", "val", "test"), build.batches(settings, splits, model, process), strict=True)
        name, batches = [(name, batches) for name, batches in parts if batches is not None][-1]
        metrics = loop.evaluate(model.to(process.device), batches, task, process.autocast)
        found = {f"{name}/{k}": v for k, v in metrics.items()}
        if "ema" in state:
            load_weights(model, state["ema"]["model"], path)
            averaged = loop.evaluate(model, batches, task, process.autocast)
            found |= {f"{name}/ema_{k}": v for k, v in averaged.items()}
        show(path, name, found, results.baseline(task, splits), process)
    return found


def load_weights(model: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Put saved weights into a model; RequestError when they are another model's."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise RequestError(f"{path} holds the weights of another model: {said}") from error


def refuse_other_data(trained: DataSpec, given: DataSpec, request: Request) -> None:
    """Other data must look the same to the model."""
    for name in ("kind", "task", "input_shape", "output_size", "class_names"):
        was, now = getattr(trained, name), getattr(given, name)
        if was != now:
            data = request.choices.get("data")
            raise MisfitError(f"the model was trained for {name} {was}, and data={data} has {now}")


def show(path: Path, split: str, found: dict[str, float], trivial: dict[str, float], process: Runtime) -> None:
    """The table: these metrics, those that the run recorded, and the baseline."""
    console = Console()
    result = path.resolve().parent.parent / "result.json"
    recorded = run_folder.read_json(result)["metrics"] if result.exists() and split == "test" else {}
    rows = []
    for key, value in found.items():
        cells = [recorded.get(key), trivial.get(key)]
        rows.append((key, number(value), *("-" if c is None else number(c) for c in cells)))
    console.say(
        facts([("checkpoint", str(path)), ("device", f"{process.took}, {process.precision}"), ("split", split)])
    )
    console.say()
    console.say(table(("metric", "now", "recorded", "baseline"), rows))
