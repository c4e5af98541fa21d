"""The terminal's summary of a run: before it starts, and when it has ended."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from dlrun.core.own_code import find_own_modules
from dlrun.core.shell import is_called_from_python, suggest_command
from dlrun.core.terminal import escape_line
from dlrun.core.yaml import dump_yaml
from dlrun.data.batches import MemoryBatches
from dlrun.data.datasets import count_rows
from dlrun.data.spec import DataSpec, Splits
from dlrun.data.windows import is_series, name_naive_forecast
from dlrun.engine.device import count_threads
from dlrun.engine.state import TrainState
from dlrun.experiment.context import Answer, RunContext
from dlrun.experiment.preflight.checks import estimate_checkpoint_bytes
from dlrun.experiment.results import compare_naive_forecasts
from dlrun.runs.expectations import CheckResult
from dlrun.runs.record import CUT_SHORT
from dlrun.runs.reports.console import Console, build_table, describe_end, format_facts, format_number


def print_opening(
    console: Console,
    context: RunContext,
    folder: Path | None,
    overrides: Sequence[str] = (),
    is_resumed: bool = False,
) -> None:
    """Print the run that is about to start: data, model with its layers, optimizer, device, run folder.

    folder: None if nothing is to be run, to show the memory and disk that a run would take instead.
    overrides: of a sweep's job.
    """
    rows: list[tuple[str, str]] = []
    if overrides:
        rows.append(("job", " ".join(overrides)))
    rows += describe_run(context)
    if folder:
        rows.append(("run folder", str(folder)))
    else:
        rows += _describe_needs(context)

    # Made before anything is shown: an error in it leaves no half of a summary.
    layers = _make_layer_table(context)
    console.say(format_facts(rows))
    console.say()
    if context.splits.columns:
        headers = ("column", "kind", "gaps", "values", "use")
        console.say(build_table(headers, context.splits.columns, left=5))
        console.say()

    console.say(layers)
    for note in context.notes:
        console.say(f"note: {note}")
    progress = context.state.progress
    if is_resumed:
        console.say(f"resuming from epoch {progress.epoch}, step {progress.step}")
    console.say()


def describe_run(context: RunContext) -> list[tuple[str, str]]:
    """Return a few words each on data, model, optimizer and device."""
    settings = context.settings
    rows = _describe_row_counts(context.splits)
    where = "in memory" if isinstance(context.state.train, MemoryBatches) else "read by workers"
    data = f"{rows}, {where}; {_describe_spec(context.splits.spec)}"

    model = f"{format_number(_count_parameters(context))} parameters{_describe_frozen(context)}"
    # The rate of each parameter group, by its name in metrics.jsonl.
    rates = context.state.schedule.get_learning_rates()
    optimizer = ", ".join(f"{name} {rate:g}" for name, rate in rates.items()) + _describe_schedule(context)
    device = f"{context.runtime.description}, {context.runtime.precision}, {_describe_threads()}"
    return [
        ("data", f"{settings.data.choice}: {data}"),
        ("model", f"{settings.model.choice}: {model}"),
        ("optimizer", f"{settings.optimizer.choice}: {optimizer}"),
        ("device", device),
    ]


def _describe_row_counts(splits: Splits) -> str:
    counts = []
    for name, split in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        if split is not None:
            counts.append(f"{format_number(count_rows(split))} {name}")
    return ", ".join(counts)


def _describe_spec(spec: DataSpec) -> str:
    shape = "×".join(map(str, spec.input_shape))
    # A binary task has one output and two classes.
    targets = f"{max(spec.output_size, 2)} classes"
    if spec.outputs:
        targets = " and ".join(f"{output.name} ({output.class_count or output.size})" for output in spec.outputs)
    if spec.task == "multilabel":
        targets = f"{spec.output_size} label{'s' if spec.output_size > 1 else ''}"
    if spec.task == "regression":
        plural = "s" if spec.output_size > 1 else ""
        targets = "itself" if spec.reconstructs else f"{spec.output_size} value{plural}"
    return f"{spec.kind} {shape} -> {targets}"


def _count_parameters(context: RunContext) -> int:
    return sum(p.numel() for p in context.state.model.parameters())


def _describe_frozen(context: RunContext) -> str:
    """How many of the parameters are trained, and how many frozen, if some are."""
    trainable_count = sum(p.numel() for p in context.state.model.parameters() if p.requires_grad)
    frozen = _count_parameters(context) - trainable_count
    return (
        f", of which {format_number(trainable_count)} are trained and {format_number(frozen)} frozen" if frozen else ""
    )


def _describe_schedule(context: RunContext) -> str:
    warmup_steps = context.state.schedule.warmup_steps
    choice = context.settings.scheduler.choice
    scheduler = "" if choice == "none" else f", scheduler {choice}"
    warmup = f", warm-up {warmup_steps} steps" if warmup_steps else ""
    return scheduler + warmup


def _describe_threads() -> str:
    count = count_threads()
    return f"{count} thread{'s' if count > 1 else ''}"


def _describe_needs(context: RunContext) -> list[tuple[str, str]]:
    """The memory that a step takes, and the disk that the checkpoints take."""
    estimate = context.preflight.memory
    if estimate is None:
        return []

    settings = context.settings
    rows = min(settings.data.keys.batch_size, context.state.train.order.rows)
    sizes = {
        "weights": estimate.weights,
        "gradients": estimate.gradients,
        "optimizer": estimate.optimizer,
        f"activations of {rows} rows": estimate.activations,
    }
    memory = ", ".join(f"{name} {_format_size(size)}" for name, size in sizes.items())
    checkpoint = _format_size(estimate_checkpoint_bytes(context.state.model, context.state.optimizer))
    # The newest `keep`, and the best.
    count = settings.checkpoint.keep + 1
    outputs = settings.paths.outputs
    return [
        ("memory", f"about {_format_size(estimate.total)} a step: {memory}"),
        ("disk", f"up to {count} checkpoints of about {checkpoint} in {outputs}"),
    ]


def _format_size(count: int) -> str:
    """Bytes for people."""
    if count < 2**20:
        return f"{count / 2**10:,.1f} kB"
    if count < 2**30:
        return f"{count / 2**20:,.1f} MB"
    return f"{count / 2**30:,.1f} GB"


def _make_layer_table(context: RunContext) -> Table:
    """Output shape, parameters and work of each layer; the sums in the last row."""
    parameters = _count_parameters(context)
    work = context.preflight.multiply_adds
    rows = []
    for layer in context.preflight.layers:
        shape = "×".join(map(str, layer.output_shape))
        rows.append(
            (layer.name, layer.kind, shape, format_number(layer.parameters), format_number(layer.multiply_adds))
        )

    rows.append(("total", "", "", format_number(parameters), format_number(work)))
    return build_table(("layer", "kind", "output", "parameters", "multiply-adds"), rows, left=2)


def print_closing(
    console: Console, context: RunContext, folder: Path, result: dict[str, Any], notes: Sequence[str] = ()
) -> None:
    """Print the final table with the baseline, the notes, and the commands that come next.

    notes: those since the opening.
    """
    headers, rows = make_metric_table(context, result)
    console.say()
    console.say(build_table(headers, rows))
    best = result["best"]
    if best["epoch"] is not None:
        tested = "; test is of these weights" if "test" in headers else ""
        console.say(f"best: epoch {best['epoch']}, {best['metric']} {format_number(best['value'])}{tested}")
    comparison = compare_naive_forecasts(context, result["metrics"])
    if comparison:
        console.say(comparison)
    console.say(describe_end(result))

    # The probes of the config, before and after the training.
    for name, before in context.start.predictions.items():
        after = result["measured"][f"answer({name})"]
        console.say(f"answer for {name}: {_format_answer(before)} before training, {_format_answer(after)} after")

    for note in notes:
        console.say(f"note: {note}")
    console.say()
    if result["expected"]:
        lines = [("", CheckResult(**line)) for line in result["expected"]]
        console.say(make_expectations_table(lines))
        console.say()
    console.say(format_facts(_list_next_commands(context, folder, result)))


def _list_next_commands(context: RunContext, folder: Path, result: dict[str, Any]) -> list[tuple[str, str]]:
    settings = context.settings
    # A notebook has no shell to type this in.
    where = " (in a terminal)" if is_called_from_python() else ""
    modules = find_own_modules(settings.plain)

    views = []
    for logger in context.loggers.values():
        with contextlib.suppress(Exception):
            # A logger may be the user's own, and the run has ended well.
            view = logger.suggest_view()
            if view is not None:
                views.append(("view", f"{view}{where}"))

    commands = [
        ("run folder", str(folder)),
        *views,
        ("evaluate", suggest_command("eval", folder, modules=modules)),
    ]
    # A schedule over the whole training ends with it: more epochs would stretch it.
    if result["status"] in CUT_SHORT:
        commands.append(("resume", suggest_command("resume", folder, modules=modules)))
    elif not context.state.schedule.spans_training:
        commands.append(
            ("continue", suggest_command("resume", folder, _choose_override(context.state), modules=modules))
        )

    return commands


def _choose_override(state: TrainState) -> str:
    """The override with which a finished run trains on."""
    limits = state.stop_rules
    if state.is_out_of_patience and not state.is_done:
        return f"trainer.early_stopping.patience={2 * (limits.patience or 1)}"
    if limits.max_steps is not None and state.progress.step >= limits.max_steps:
        return f"trainer.max_steps={2 * limits.max_steps}"
    return f"trainer.epochs={2 * limits.epochs}"


def _format_answer(value: Answer) -> str:
    return value if isinstance(value, str) else f"{value:.10g}"


def make_metric_table(context: RunContext, result: dict[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return headers and rows: each metric on each split, and the baseline's on the last of them."""
    metrics = result["metrics"]
    baseline = result["baseline"]
    missing = float("nan")
    splits = []
    for split in ("train", "val", "test"):
        if any(key.startswith(split + "/") for key in metrics):
            splits.append(split)

    last = splits[-1] if splits else "train"

    rows = []
    for name in context.objective.metric_names:
        # A metric that a split has not is shown as nan.
        cells = [format_number(metrics.get(f"{split}/{name}", missing)) for split in splits]
        rows.append((name, *cells, format_number(baseline.get(f"{last}/{name}", missing))))
    return ["metric", *splits, f"{name_baseline(context)} ({last})"], rows


def name_baseline(context: RunContext) -> str:
    """Return the name of the trivial answer."""
    if context.splits.spec.outputs:
        return "trivial"
    if is_series(context.splits.spec):
        return name_naive_forecast(context.splits.spec)
    return "mean" if context.splits.spec.task == "regression" else "majority"


def make_expectations_table(lines: Sequence[tuple[str, CheckResult]]) -> Table:
    """Return the table of expected and measured values.

    lines: name of a lesson, or "", and what was checked of it.
    """
    headers: tuple[str, ...] = ("expected", "measured", "ok")
    has_names = any(name for name, _ in lines)
    if has_names:
        headers = ("lesson", *headers)

    # The name of a lesson stands in the first of its rows only.
    rows: list[tuple[str, ...]] = []
    previous = ""
    for name, line in lines:
        cells: tuple[str, ...] = (line.expected, line.measured, "yes" if line.ok else "NO")
        if has_names:
            cells = (name if name != previous else "", *cells)
        rows.append(cells)
        previous = name

    return build_table(headers, rows, left=len(headers))


def format_config(plain: dict[str, Any]) -> str:
    """Return the config as TensorBoard's text tab shows it."""
    return indent_as_code(dump_yaml(plain).splitlines())


def indent_as_code(lines: Sequence[str]) -> str:
    """Return lines that Markdown shows as they are; control characters are escaped."""
    return "\n".join("    " + escape_line(line) for line in lines)
