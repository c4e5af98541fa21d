"""`dlrun diff A B`: what two runs were asked for, where their weights part, and what they came to."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrun.core.errors import RequestError
from dlrun.core.shell import quote
from dlrun.core.yaml import flatten
from dlrun.runs import events
from dlrun.runs.record import RunRecord
from dlrun.runs.reports.console import Console, facts, number, table

_NOT_COMPARED = ("paths.", "data.root", "hydra.", "resume", "trust")  # where things lie, and leave to read them
_MACHINE = ("device", "precision", "threads", "git_commit", "git_dirty", "versions.")  # of environment.json
_FACTS = ("status", "epochs", "steps", "parameters", "train_seconds", "samples_per_second")  # of result.json
_LOGGED = ("train/loss_step", "train/grad_norm")


def diff_runs(words: Sequence[str]) -> None:
    """`dlrun diff A B`: say how two runs differ. RequestError when one of them is no run folder."""
    if len(words) != 2:
        raise RequestError(
            "dlrun diff takes two run folders; type dlrun diff outputs/<date>/<run> outputs/<date>/<run>"
        )
    a, b = (read_run(Path(word)) for word in words)
    console = Console()
    console.say(facts([("A", str(a.folder)), ("B", str(b.folder))]))
    for title, one, two in (
        ("config", a.flat_config, b.flat_config),
        ("made with", describe_environment(a), describe_environment(b)),
    ):
        console.say()
        rows = list_differences(one, two)
        console.say(table((title, "A", "B"), rows, left=3) if rows else f"{title}: no difference")
    console.say()
    for line in describe_divergence(a, b):
        console.say(line)
    console.say()
    console.say(table(("result", "A", "B", "B - A"), compare_results(a, b)))


def read_run(folder: Path) -> RunRecord:
    """What is known of the run in `folder`; RequestError when there is none, or a file of it is damaged.

    A run that was killed lacks some files, and is compared by what there is.
    """
    if (folder / "sweep.jsonl").is_file():
        raise RequestError(
            f"{folder} is a sweep; dlrun diff takes two runs, and dlrun compare {quote(folder)} shows all of it"
        )
    run = RunRecord(folder)
    if folder.is_dir():
        for name in ("config", "environment", "result", "rows", "fingerprints"):
            getattr(run, name)
        if run.damage:
            raise RequestError(run.damage[0])
        if run.config:
            return run
    kind = "is a file" if folder.is_file() else "holds no run" if folder.is_dir() else "does not exist"
    raise RequestError(f"{folder} {kind}; dlrun diff takes run folders, those of `dlrun ls runs`")


def describe_environment(run: RunRecord) -> dict[str, Any]:
    """Machine, versions and code, with dotted keys."""
    noted = {key: value for key, value in flatten(run.environment).items() if key.startswith(_MACHINE)}
    code = {"code_hash": run.result["code_hash"][:12]} if "code_hash" in run.result else {}
    return noted | code


def list_differences(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Keys that differ and their values, "-" where there is no such key."""
    keys = [k for k in {**a, **b} if not k.startswith(_NOT_COMPARED)]
    return [(k, _shown(a, k), _shown(b, k)) for k in keys if a.get(k, _ABSENT) != b.get(k, _ABSENT)]


_ABSENT = object()


def _shown(values: dict[str, Any], key: str) -> str:
    if key not in values:
        return "-"
    value = values[key]
    return value if isinstance(value, str) else json.dumps(value)


def describe_divergence(a: RunRecord, b: RunRecord) -> list[str]:
    """Sentences: the first epoch after which the weights differ, and the first logged step that does."""
    if not (a.fingerprints and b.fingerprints):
        return [*_by_losses(a, b), _of_the_end(a, b)]
    one, two = ({f["epoch"]: (f["step"], f["weights_sha256"]) for f in run.fingerprints} for run in (a, b))
    common = sorted(one.keys() & two.keys())
    parted = next((epoch for epoch in common if one[epoch] != two[epoch]), None)
    if parted is None:
        return [f"weights: equal to the last bit {_as_far(a, b, max(one), max(two))}"]
    if parted == 0:
        return ["weights: they differ before the first step: another model, seed or init_from"]
    before = f"until epoch {parted - 1}" if parted > 1 else "at the start"
    said = [f"weights: equal to the last bit {before}, and apart after epoch {parted}"]
    since, until = one[parted - 1][0] if parted - 1 in one else 0, min(one[parted][0], two[parted][0])
    if one[parted][0] != two[parted][0]:
        said.append(f"epoch {parted} ends with step {one[parted][0]} in A and with step {two[parted][0]} in B")
    return said + _by_steps(a, b, since, until)


def _as_far(a: RunRecord, b: RunRecord, last_a: int, last_b: int) -> str:
    if last_a == last_b:
        return f"after every one of {last_a} epochs"
    longer, last = ("A", last_a) if last_a > last_b else ("B", last_b)
    return f"until epoch {min(last_a, last_b)}, where one ends; {longer} goes on to epoch {last}"


def _by_steps(a: RunRecord, b: RunRecord, since: int, until: int) -> list[str]:
    """The first step of (since, until] that both have logged and that differs."""
    one, two = (events.scalars(run.folder) for run in (a, b))
    for step in range(since + 1, until + 1):
        for tag in _LOGGED:
            x, y = (dict(found.get(tag, [])).get(step) for found in (one, two))
            if x is not None and y is not None and x != y:
                return [f"the first logged step that differs is {step}: {tag} {float(x):.7g} in A, {float(y):.7g} in B"]
    return []


def _by_losses(a: RunRecord, b: RunRecord) -> list[str]:
    """For runs without fingerprints: the first epoch whose row differs."""
    one, two = ({row["epoch"]: row for row in run.rows if "epoch" in row} for run in (a, b))
    common = sorted(one.keys() & two.keys())
    if not common:
        return ["weights: no epoch was recorded by both runs"]
    apart = next((epoch for epoch in common if one[epoch] != two[epoch]), None)
    what = "no fingerprints of the weights in one of them, so judged by metrics.jsonl"
    if apart is None:
        return [f"{what}: equal in all {len(common)} epochs that both have"]
    names = [k for k in {**one[apart], **two[apart]} if one[apart].get(k) != two[apart].get(k)]
    values = " and ".join(str(number(row[apart].get(names[0], "-"))) for row in (one, two))
    return [f"{what}: they part in epoch {apart} ({names[0]} {values})"]


def _of_the_end(a: RunRecord, b: RunRecord) -> str:
    one, two = (run.result.get("weights_sha256") for run in (a, b))
    if one is None or two is None:
        return "final weights: not known of both, as one has not ended"
    return f"final weights: {'equal to the last bit' if one == two else 'different'}"


def compare_results(a: RunRecord, b: RunRecord) -> list[tuple[str, str, str, str]]:
    """Status, sizes and times, the best epoch, and every metric that one of them has."""
    rows = [(name.replace("_", " "), a.result.get(name), b.result.get(name)) for name in _FACTS]
    best = [run.result.get("best") or {} for run in (a, b)]
    names = dict.fromkeys(str(found["metric"]) for found in best if found.get("metric"))
    for name in names:
        mine = [found if found.get("metric") == name else {} for found in best]
        rows.append((f"best {name}", mine[0].get("value"), mine[1].get("value")))
        rows.append(("  in epoch", mine[0].get("epoch"), mine[1].get("epoch")))
    rows += [(name, a.metrics.get(name), b.metrics.get(name)) for name in {**a.metrics, **b.metrics}]
    return [(name, _cell(x), _cell(y), _cell(_minus(y, x))) for name, x, y in rows]


def _minus(y: Any, x: Any) -> Any:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (x, y))
    return y - x if numbers else ""


def _cell(value: Any) -> str:
    if isinstance(value, float) and abs(value) >= 100:
        return f"{value:,.1f}"
    return "-" if value is None else number(value)
