"""`dlrun eval RUN_OR_CHECKPOINT [key=value ...]`: the metrics of saved weights on the test split."""

from pathlib import Path

from dlrun import loop, results, run_folder
from dlrun.console import Console, facts, number, table
from dlrun.runtime import Runtime
from dlrun.saved_model import load_weights, opened, run_named


def evaluate(words: list[str]) -> dict[str, float]:
    """Print the metrics table; returns the metrics. The best checkpoint of a run, or the file named."""
    with opened(run_named(words, "eval"), words[1:]) as saved:
        splits, model, task, process = saved.splits, saved.model, saved.task, saved.process
        name, batches = saved.held_out()
        metrics = loop.evaluate(model, batches, task, process.autocast)
        found = {f"{name}/{k}": v for k, v in metrics.items()}
        if saved.average is not None:
            load_weights(model, saved.average, saved.path)
            averaged = loop.evaluate(model, batches, task, process.autocast)
            found |= {f"{name}/ema_{k}": v for k, v in averaged.items()}
        show(saved.path, name, found, results.baseline(task, splits), process)
    return found


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
