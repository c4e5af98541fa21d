"""`dlrun diff A B`: how two runs differ in config, environment, weights and results."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrun.core.bounded import is_number
from dlrun.core.errors import RequestError
from dlrun.core.output_format import format_csv, format_json
from dlrun.core.terminal import write_out
from dlrun.core.yaml import flatten
from dlrun.runs.query import open_run
from dlrun.runs.record import RunRecord
from dlrun.runs.reports.console import Console, build_table, format_facts, format_number

# Config keys of locations, and of permission to read them.
_NOT_COMPARED = ("paths.", "data.root", "hydra.", "resume", "trust")

# Keys of environment.json and of result.json.
_MACHINE = ("device", "precision", "threads", "git_commit", "git_dirty", "versions.")
_FACTS = ("status", "epochs", "steps", "parameters", "train_seconds", "samples_per_second")

# Tags of the event files that are logged by step.
_LOGGED = ("train/loss_step", "train/grad_norm")

# Of each difference as data.
COLUMNS = ("section", "key", "a", "b", "difference")

_ABSENT = object()


def diff_runs(words: Sequence[str], format: str) -> None:
    """`dlrun diff A B [format=F]`: print how two runs differ; RequestError if one of them is no run folder."""
    if len(words) != 2:
        raise RequestError(
            "dlrun diff takes two run folders; type dlrun diff outputs/<date>/<run> outputs/<date>/<run>"
        )
    run_a = _read_run(Path(words[0]))
    run_b = _read_run(Path(words[1]))

    if format != "table":
        rows = _list_all_differences(run_a, run_b)
        write_out(format_json(to_data(run_a, run_b, rows)) if format == "json" else format_csv(COLUMNS, rows))
        return

    console = Console()
    console.say(format_facts([("A", str(run_a.folder)), ("B", str(run_b.folder))]))
    _print_differences(console, "config", run_a.flat_config, run_b.flat_config)
    _print_differences(console, "made with", _describe_environment(run_a), _describe_environment(run_b))

    console.say()
    for line in _describe_divergence(run_a, run_b):
        console.say(line)
    console.say()
    console.say(build_table(("result", "A", "B", "B - A"), _compare_results(run_a, run_b)))


def _list_all_differences(run_a: RunRecord, run_b: RunRecord) -> list[dict[str, Any]]:
    """Rows of COLUMNS, None for a missing value: config keys and machines that differ, and all results."""
    rows: list[dict[str, Any]] = []
    sections = (
        ("config", run_a.flat_config, run_b.flat_config),
        ("environment", _describe_environment(run_a), _describe_environment(run_b)),
    )
    for section, values_a, values_b in sections:
        for key in _find_different_keys(values_a, values_b):
            rows.append({"section": section, "key": key, "a": values_a.get(key), "b": values_b.get(key)})

    for key, value_a, value_b in _pair_results(run_a, run_b):
        difference = value_b - value_a if is_number(value_a) and is_number(value_b) else None
        rows.append({"section": "result", "key": key, "a": value_a, "b": value_b, "difference": difference})
    return rows


def to_data(run_a: RunRecord, run_b: RunRecord, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The comparison for JSON: rows by section, and sentences on where the weights part."""
    sections: dict[str, list[dict[str, Any]]] = {"config": [], "environment": [], "result": []}
    for row in rows:
        sections[row["section"]].append({key: value for key, value in row.items() if key != "section"})
    return {
        "a": str(run_a.folder),
        "b": str(run_b.folder),
        **sections,
        "weights": _describe_divergence(run_a, run_b),
    }


def _print_differences(console: Console, title: str, values_a: dict[str, Any], values_b: dict[str, Any]) -> None:
    console.say()
    rows = list_differences(values_a, values_b)
    console.say(build_table((title, "A", "B"), rows, left=3) if rows else f"{title}: no difference")


def _read_run(folder: Path) -> RunRecord:
    """The run in `folder`; RequestError if there is none, or a file of it is damaged.

    A run that was killed lacks some files, and is compared by the others.
    """
    run = open_run(folder, "diff", "two runs", "dlrun compare {} shows all of it")
    run.read_files("config", "environment", "result", "rows", "fingerprints")
    if run.damage:
        raise RequestError(run.damage[0])
    if not run.config:
        raise RequestError(f"{folder} holds no config: its process ended before it was written; leave that run out")
    return run


def _describe_environment(run: RunRecord) -> dict[str, Any]:
    """Machine, versions and code, with dotted keys."""
    environment = {}
    for key, value in flatten(run.environment).items():
        if key.startswith(_MACHINE):
            environment[key] = value
    # Twelve digits tell versions of the code apart, and fit into the table.
    if "code_hash" in run.result:
        environment["code_hash"] = run.result["code_hash"][:12]
    return environment


def list_differences(values_a: dict[str, Any], values_b: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of a key and its two values for keys that differ; "-" stands for a missing key."""
    rows = []
    for key in _find_different_keys(values_a, values_b):
        value_a = values_a.get(key, _ABSENT)
        value_b = values_b.get(key, _ABSENT)
        rows.append((key, _format_value(value_a), _format_value(value_b)))
    return rows


def _find_different_keys(values_a: dict[str, Any], values_b: dict[str, Any]) -> list[str]:
    """The keys whose values differ or that one of them lacks, without locations and permissions."""
    keys = []
    # A dict in place of a set keeps the order of the config.
    for key in {**values_a, **values_b}:
        if key.startswith(_NOT_COMPARED):
            continue
        if values_a.get(key, _ABSENT) != values_b.get(key, _ABSENT):
            keys.append(key)
    return keys


def _format_value(value: Any) -> str:
    if value is _ABSENT:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


def _describe_divergence(run_a: RunRecord, run_b: RunRecord) -> list[str]:
    """Sentences on the first epoch after which the weights differ, and the first logged step that differs."""
    if not (run_a.fingerprints and run_b.fingerprints):
        return [*_compare_rows(run_a, run_b), _compare_final_weights(run_a, run_b)]

    # By epoch, the last step and the hash of the weights after it; epoch 0 is the initial state.
    hashes_a = {entry["epoch"]: (entry["step"], entry["weights_sha256"]) for entry in run_a.fingerprints}
    hashes_b = {entry["epoch"]: (entry["step"], entry["weights_sha256"]) for entry in run_b.fingerprints}
    common = sorted(hashes_a.keys() & hashes_b.keys())
    epoch = next((epoch for epoch in common if hashes_a[epoch] != hashes_b[epoch]), None)
    # One run may be longer than the other.
    if epoch is None:
        return [f"weights: equal to the last bit {_describe_ends(max(hashes_a), max(hashes_b))}"]
    if epoch == 0:
        return ["weights: they differ before the first step: another model, seed or init_from"]

    before = f"until epoch {epoch - 1}" if epoch > 1 else "at the start"
    sentences = [f"weights: equal to the last bit {before}, and apart after epoch {epoch}"]

    # The runs were equal until here, so that either gives the step.
    first_step = hashes_a[epoch - 1][0] if epoch - 1 in hashes_a else 0
    step_a = hashes_a[epoch][0]
    step_b = hashes_b[epoch][0]
    if step_a != step_b:
        sentences.append(f"epoch {epoch} ends with step {step_a} in A and with step {step_b} in B")
    return sentences + _find_differing_step(run_a, run_b, first_step, min(step_a, step_b))


def _describe_ends(last_a: int, last_b: int) -> str:
    """How far the equality reaches, by the last epoch of each run."""
    if last_a == last_b:
        return f"after every one of {last_a} epochs"

    longer = "A" if last_a > last_b else "B"
    return f"until epoch {min(last_a, last_b)}, where one ends; {longer} continues to epoch {max(last_a, last_b)}"


def _find_differing_step(run_a: RunRecord, run_b: RunRecord, since: int, until: int) -> list[str]:
    """A sentence on the first step of (since, until] that both have logged and that differs; or none."""
    # TensorBoard is slow to import, and needed only where epochs differ.
    from dlrun.runs.tensorboard import read_scalars

    scalars_a = read_scalars(run_a.folder)
    scalars_b = read_scalars(run_b.folder)
    values_a = {tag: dict(scalars_a.get(tag, [])) for tag in _LOGGED}
    values_b = {tag: dict(scalars_b.get(tag, [])) for tag in _LOGGED}

    # Runs may log at different intervals: compare steps that both have.
    for step in range(since + 1, until + 1):
        for tag in _LOGGED:
            value_a = values_a[tag].get(step)
            value_b = values_b[tag].get(step)
            if value_a is not None and value_b is not None and value_a != value_b:
                values = f"{float(value_a):.7g} in A, {float(value_b):.7g} in B"
                return [f"the first logged step that differs is {step}: {tag} {values}"]
    return []


def _compare_rows(run_a: RunRecord, run_b: RunRecord) -> list[str]:
    """For runs without hashes of the weights: the first epoch whose metrics differ."""
    rows_a = {row["epoch"]: row for row in run_a.rows if "epoch" in row}
    rows_b = {row["epoch"]: row for row in run_b.rows if "epoch" in row}
    common = sorted(rows_a.keys() & rows_b.keys())
    if not common:
        return ["weights: no epoch was recorded by both runs"]

    basis = "no fingerprints of the weights in one of them, so judged by metrics.jsonl"
    epoch = next((epoch for epoch in common if rows_a[epoch] != rows_b[epoch]), None)
    if epoch is None:
        return [f"{basis}: equal in all {len(common)} epochs that both have"]

    row_a = rows_a[epoch]
    row_b = rows_b[epoch]
    name = next(key for key in {**row_a, **row_b} if row_a.get(key) != row_b.get(key))
    values = f"{format_number(row_a.get(name, '-'))} and {format_number(row_b.get(name, '-'))}"
    return [f"{basis}: they part in epoch {epoch} ({name} {values})"]


def _compare_final_weights(run_a: RunRecord, run_b: RunRecord) -> str:
    hash_a = run_a.result.get("weights_sha256")
    hash_b = run_b.result.get("weights_sha256")
    if hash_a is None or hash_b is None:
        return "final weights: not known of both, as one has not ended"
    return f"final weights: {'equal to the last bit' if hash_a == hash_b else 'different'}"


def _compare_results(run_a: RunRecord, run_b: RunRecord) -> list[tuple[str, str, str, str]]:
    """Rows of a name, two values and their difference: sizes and times, the best epoch, and all metrics."""
    cells = []
    for key, value_a, value_b in _pair_results(run_a, run_b):
        name = key.replace("_", " ") if key in _FACTS else key
        # It follows the metric that it belongs to.
        if key.startswith("best ") and key.endswith(" epoch"):
            name = "  in epoch"
        difference = _subtract(value_b, value_a)
        cells.append((name, _format_cell(value_a), _format_cell(value_b), _format_cell(difference)))
    return cells


def _pair_results(run_a: RunRecord, run_b: RunRecord) -> list[tuple[str, Any, Any]]:
    """The results of `_compare_results` with their values."""
    rows: list[tuple[str, Any, Any]] = []
    for name in _FACTS:
        rows.append((name, run_a.result.get(name), run_b.result.get(name)))

    # Runs that monitor different metrics have a row for each.
    best_a = run_a.result.get("best") or {}
    best_b = run_b.result.get("best") or {}
    metrics = dict.fromkeys(str(best["metric"]) for best in (best_a, best_b) if best.get("metric"))
    for name in metrics:
        own_a = best_a if best_a.get("metric") == name else {}
        own_b = best_b if best_b.get("metric") == name else {}
        rows.append((f"best {name}", own_a.get("value"), own_b.get("value")))
        rows.append((f"best {name} epoch", own_a.get("epoch"), own_b.get("epoch")))

    for name in {**run_a.metrics, **run_b.metrics}:
        rows.append((name, run_a.metrics.get(name), run_b.metrics.get(name)))
    return rows


def _subtract(value: Any, other: Any) -> Any:
    """The difference of two numbers; "" for other values, a status for instance."""
    return value - other if is_number(value) and is_number(other) else ""


def _format_cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float) and abs(value) >= 100:
        return f"{value:,.1f}"
    return format_number(value)
