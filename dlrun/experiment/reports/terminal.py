"""What the terminal says of a run: before it starts, and when it has ended."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from dlrun.core.own_code import own_modules
from dlrun.core.shell import advice, called_from_python
from dlrun.core.terminal import escape_line
from dlrun.core.yaml import as_yaml
from dlrun.data.batches import MemoryBatches
from dlrun.data.datasets import count_rows
from dlrun.data.spec import DataSpec, Splits
from dlrun.engine.optim.schedule import LENGTH_ARGUMENTS
from dlrun.engine.state import TrainState
from dlrun.experiment.context import Answer, RunContext
from dlrun.experiment.preflight.checks import estimate_checkpoint_bytes
from dlrun.runs.expectations import Checked
from dlrun.runs.reports.console import Console, facts, number, table


def print_opening(console: Console, parts: RunContext, folder: Path | None, overrides: Sequence[str] = ()) -> None:
    """What runs: the overrides of a sweep's job, data, model with its layers, optimizer, device, run folder.

    folder: null where nothing is to be run, to show what memory and disk it would take instead.
    """
    progress = parts.training.progress
    job = [("job", " ".join(overrides))] if overrides else []
    console.say(facts([*job, *describe_run(parts), *([("run folder", str(folder))] if folder else _needs(parts))]))
    console.say()
    console.say(_layer_table(parts))
    for note in parts.notes:
        console.say(f"note: {note}")
    if progress.step:
        console.say(f"going on from epoch {progress.epoch}, step {progress.step}")
    console.say()


def describe_run(parts: RunContext) -> list[tuple[str, str]]:
    """Data, model, optimizer and device, a few words on each."""
    settings, spec = parts.settings, parts.splits.spec
    where = "in memory" if isinstance(parts.training.train, MemoryBatches) else "read by workers"
    return [
        ("data", f"{settings.data.choice}: {_row_counts(parts.splits)}, {where}; {_described(spec)}"),
        ("model", f"{settings.model.choice}: {number(_parameters(parts))} parameters{_trained(parts)}"),
        ("optimizer", f"{settings.optimizer.choice}: {_learning_rates(parts)}{_schedule(parts)}"),
        ("device", f"{parts.runtime.description}, {parts.runtime.precision}, {_threads()}"),
    ]


def _needs(parts: RunContext) -> list[tuple[str, str]]:
    """What a step takes of the memory, and what the checkpoints take of the disk."""
    needed, keys = parts.memory_estimate, parts.settings.rest.checkpoint
    if needed is None:
        return []
    each = estimate_checkpoint_bytes(parts.model, parts.training.optimizer)
    named = {
        "weights": needed.weights,
        "gradients": needed.gradients,
        "optimizer": needed.optimizer,
        f"activations of {parts.settings.data_keys.batch_size} rows": needed.activations,
    }
    listed = ", ".join(f"{name} {_size(size)}" for name, size in named.items())
    return [
        ("memory", f"about {_size(needed.total)} a step: {listed}"),
        ("disk", f"up to {keys.keep + 1} checkpoints of about {_size(each)} in {parts.settings.rest.paths.outputs}"),
    ]


def _size(count: int) -> str:
    """Bytes for people."""
    if count < 2**20:
        return f"{count / 2**10:,.1f} kB"
    return f"{count / 2**20:,.1f} MB" if count < 2**30 else f"{count / 2**30:,.1f} GB"


def _layer_table(parts: RunContext) -> Table:
    """What each layer gives, holds and costs; the whole in the last row."""
    rows = [
        (x.name, x.kind, "×".join(map(str, x.output_shape)), number(x.parameters), number(x.multiply_adds))
        for x in parts.layers
    ]
    work = sum(x.multiply_adds for x in parts.layers)
    rows.append(("total", "", "", number(_parameters(parts)), number(work)))
    return table(("layer", "kind", "output", "parameters", "multiply-adds"), rows, left=2)


def _row_counts(splits: Splits) -> str:
    named = (("train", splits.train), ("val", splits.val), ("test", splits.test))
    return ", ".join(f"{number(count_rows(part))} {name}" for name, part in named if part is not None)


def _described(spec: DataSpec) -> str:
    shape = "×".join(map(str, spec.input_shape))
    if spec.task == "regression":
        return f"{spec.kind} {shape} -> {spec.output_size} value{'s' if spec.output_size > 1 else ''}"
    return f"{spec.kind} {shape} -> {max(spec.output_size, 2)} classes"


def _threads() -> str:
    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''}"


def _parameters(parts: RunContext) -> int:
    return sum(p.numel() for p in parts.model.parameters())


def _trained(parts: RunContext) -> str:
    """How many of them learn, where some are frozen."""
    count = sum(p.numel() for p in parts.model.parameters() if p.requires_grad)
    return "" if count == _parameters(parts) else f", of which {number(count)} are trained"


def _learning_rates(parts: RunContext) -> str:
    return ", ".join(f"{k} {v:g}" for k, v in parts.training.schedule.learning_rates().items())


def _schedule(parts: RunContext) -> str:
    keys = parts.settings.scheduler_keys
    warm = f", warm-up {keys.warmup_steps} steps" if keys.warmup_steps else ""
    choice = parts.settings.scheduler.choice
    return ("" if choice == "none" else f", scheduler {choice}") + warm


def print_closing(
    console: Console, parts: RunContext, folder: Path, result: dict[str, Any], notes: Sequence[str] = ()
) -> None:
    """The final table with the baseline, what was noticed meanwhile, and the commands that come next."""
    headers, rows = make_metric_table(parts, result)
    console.say()
    console.say(table(headers, rows))
    best = result["best"]
    if best["epoch"] is not None:
        tested = "; test is of these weights" if "test" in headers else ""
        console.say(f"best: epoch {best['epoch']}, {best['metric']} {number(best['value'])}{tested}")
    console.say(describe_end(result))
    for name, answer in parts.first_predictions.items():
        after = result["measured"][f"answer({name})"]
        console.say(f"answer for {name}: {_answer(answer)} before training, {_answer(after)} after")
    for note in notes:
        console.say(f"note: {note}")
    console.say()
    if result["expected"]:
        console.say(make_expectations_table([("", Checked(**line)) for line in result["expected"]]))
        console.say()
    outputs = Path(parts.settings.rest.paths.outputs)
    watched = shlex.quote(str(outputs if folder.is_relative_to(outputs) else folder.parent))
    modules = own_modules(parts.settings.plain)
    finished = result["status"] != "interrupted"
    commands = [
        ("run folder", str(folder)),
        ("view", f"tensorboard --logdir {watched}" + (" (in a terminal)" if called_from_python() else "")),
        ("evaluate", advice("eval", folder, modules=modules)),
    ]
    if not finished:
        commands.append(("resume", advice("resume", folder, modules=modules)))
    elif not any(parts.settings.scheduler.arguments.get(key, 0) is None for key in LENGTH_ARGUMENTS):
        commands.append(("go on", advice("resume", folder, _longer(parts.training), modules=modules)))
    console.say(facts(commands))


def make_metric_table(parts: RunContext, result: dict[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Headers and rows: each metric on each split, and the trivial answer's on the last of them."""
    metrics, baseline = result["metrics"], result["baseline"]
    splits = [s for s in ("train", "val", "test") if any(k.startswith(s + "/") for k in metrics)]
    shown = splits[-1] if splits else "train"
    rows = []
    for name in parts.task.metric_names:
        cells = [number(metrics.get(f"{s}/{name}", float("nan"))) for s in splits]
        rows.append((name, *cells, number(baseline.get(f"{shown}/{name}", float("nan")))))
    return ["metric", *splits, f"{name_baseline(parts)} ({shown})"], rows


def name_baseline(parts: RunContext) -> str:
    """What the baseline answers whatever it is asked."""
    return "mean" if parts.splits.spec.task == "regression" else "majority"


def _longer(training: TrainState) -> str:
    """What gives a finished run more to do."""
    limits = training.stop_rules
    if not training.is_done:
        return f"trainer.early_stopping.patience={2 * (limits.patience or 1)}"
    if limits.max_steps is not None and training.progress.step >= limits.max_steps:
        return f"trainer.max_steps={2 * limits.max_steps}"
    return f"trainer.epochs={2 * limits.epochs}"


def _answer(value: Answer) -> str:
    return value if isinstance(value, str) else f"{value:.10g}"


def make_expectations_table(lines: Sequence[tuple[str, Checked]]) -> Table:
    """What was expected and what was measured, with the name of what it is about in front where there is one."""
    named = any(name for name, _ in lines)
    headers = ("lesson", "expected", "measured", "ok") if named else ("expected", "measured", "ok")
    rows, before = [], ""
    for name, line in lines:
        cells = (line.expected, line.measured, "yes" if line.ok else "NO")
        rows.append((name if name != before else "", *cells) if named else cells)
        before = name
    return table(headers, rows, left=len(headers))


def describe_end(result: dict[str, Any]) -> str:
    """The status, and how much was trained how fast."""
    rate = result["samples_per_second"]
    speed = f", {rate:,.0f} samples/s" if rate else ""
    said = result["status"].replace("_", " ")
    seconds = f"{result['train_seconds']:.1f} s of training"
    return f"{said} after {result['epochs']} epochs, {result['steps']:,} steps, {seconds}{speed}"


def format_config(plain: dict[str, Any]) -> str:
    """The config as TensorBoard's text tab shows it."""
    return indent_as_code(as_yaml(plain).splitlines())


def indent_as_code(lines: Sequence[str]) -> str:
    """Lines that Markdown shows as they are; control characters are escaped."""
    return "\n".join("    " + escape_line(line) for line in lines)
