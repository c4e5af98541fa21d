"""The bench's harness: sides that train a chunk when told, one at a time; no time is judged here."""

import importlib
import importlib.util
import io
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dlrun.runs.checkpoint_manager import CheckpointManager

BENCH = Path(__file__).parent / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules of tests/bench, which its scripts import from beside them."""
    names = [path.stem for path in BENCH.glob("*.py")]
    monkeypatch.syspath_prepend(str(BENCH))
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    chosen = ("rows", "side", "pace", "harness", "core", "scale", "gpu")
    bench_modules = {name: importlib.import_module(name) for name in chosen}
    yield bench_modules
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_every_side_trains_in_turn_or_says_why_not(bench: dict[str, ModuleType]) -> None:
    tiny = {"batch_size": 8, "settings": {"hidden_sizes": [4]}, "features": 3}
    row = bench["rows"].Row("tiny", "mlp", "vectors", 80, classes=1, **tiny)
    results = bench["harness"].measure_interleaved(row, list(bench["side"].SIDES), 300, most_rounds=2)
    for name, side in results.items():
        if side.get("skipped"):
            assert "is not installed (pip install '.[bench]')" in side["skipped"], (name, side)
        else:
            assert len(side["seconds"]) == 2
            assert min(side["seconds"]) > 0
    assert not any(results[name].get("skipped") for name in ("dlrun", "hand-written", "pure compute"))


class Sides:
    """Stand-ins for the processes of sides: a step of `side` takes so many seconds, and a clock that they move."""

    def __init__(self, cost: dict[str, float], late: type[Exception], slower: float = 1.0) -> None:
        self.cost, self.now, self.words = cost, 0.0, []
        self.late, self.slower = late, slower  # slower: how many times, in rounds, than the probe said
        self.closed: list[str] = []

    def take(self, seconds: float, until: float | None) -> None:
        """Move the clock, up to the end of what is granted."""
        if until is not None and self.now + seconds > until:
            self.now = max(self.now, until)
            raise self.late
        self.now += seconds

    def __call__(self, name: str, row: Any, folder: Path) -> "Sides":
        return Sides.One(self, name)  # type: ignore[return-value]

    class One:
        def __init__(self, sides: "Sides", name: str) -> None:
            self.sides, self.name = sides, name

        def answer(self, until: float | None = None) -> dict[str, float]:
            self.sides.take(5.0, until)  # the start
            return {"seconds": 1.0, "cpu_seconds": 1.0}

        def tell(self, word: str, until: float | None = None) -> dict[str, float]:
            self.sides.words.append((self.name, word))
            if word == "end":
                return {"peak_mb": 1.0}
            # A whole chunk has 100 steps.
            seconds = self.sides.cost[self.name] * int(word.partition(" ")[2] or 100)
            if (self.name, word) in self.sides.words[:-1] or word != "go 5":
                seconds *= self.sides.slower
            self.sides.take(seconds, until)
            return {"seconds": seconds, "cpu_seconds": seconds}

        def close(self) -> None:
            self.sides.closed.append(self.name)


@pytest.mark.parametrize(
    ("scale", "slower", "steps", "rounds"),
    [
        (1, 1, 100, 25),  # so quick that whole epochs fit, as often as is of use
        (100, 1, 98, 9),  # a part of an epoch, so that nine rounds fit
        (100, 3, 98, 3),  # the machine became slower: what fits
        (2_000, 1, 5, 7),  # so slow that rounds are as short as the probe
        (5_000, 1, 5, 2),
        (5_000, 4, 5, 1),  # not even one round fits: the probe is what there is
    ],
)
def test_a_row_takes_its_time_and_no_more(
    bench: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, scale: int, slower: int, steps: int, rounds: int
) -> None:
    harness = bench["harness"]
    cost = {"dlrun": 1e-4 * scale, "hand-written": 2e-4 * scale, "pure compute": 7e-4 * scale}
    sides = Sides(cost, harness.Late, slower)
    monkeypatch.setattr(harness, "Side", sides)
    monkeypatch.setattr(harness.time, "perf_counter", lambda: sides.now)
    row = bench["rows"].Row("tiny", "mlp", "vectors", 800, 8, {"hidden_sizes": [4]}, features=3)
    results, chunk = harness.measure_within(row, list(sides.cost), seconds=104)
    assert chunk == steps
    assert all(len(side["seconds"]) == rounds for side in results.values())
    assert sides.now <= 104
    assert all("peak_mb" in side for side in results.values())
    reached = bench["core"].describe_steps({"row": asdict(row), "steps": chunk, "sides": results})
    assert reached.startswith("1 round of " if rounds == 1 else f"{rounds} rounds of ")
    assert ("whole epochs" in reached) == (chunk == 100)
    assert ("give it more --seconds" in reached) == (rounds < 6)


def test_a_side_that_takes_too_long_is_given_up_and_the_others_go_on(
    bench: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = bench["harness"]
    sides = Sides({"dlrun": 1e-2, "hand-written": 1e-2, "pure compute": 99.0}, harness.Late)
    monkeypatch.setattr(harness, "Side", sides)
    monkeypatch.setattr(harness.time, "perf_counter", lambda: sides.now)
    row = bench["rows"].Row("tiny", "mlp", "vectors", 800, 8, {"hidden_sizes": [4]}, features=3)
    results, _ = harness.measure_within(row, list(sides.cost), seconds=400)
    assert results["pure compute"]["skipped"].startswith("too slow: 5 steps take more than ")
    assert "pure compute" in sides.closed
    assert len(results["dlrun"]["seconds"]) == len(results["hand-written"]["seconds"]) == 25
    results, _ = harness.measure_within(row, list(sides.cost), seconds=12)  # one start fits into the share of starts
    assert results["hand-written"]["skipped"].startswith("too slow: not warm after ")
    assert len(results["dlrun"]["seconds"]) > 6


@pytest.mark.parametrize(("seconds", "rounds"), [(35, 8), (20, 3), (1_000, 9), (16, 0)])
def test_whole_chunks_are_measured_as_often_as_there_is_time(
    bench: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, seconds: int, rounds: int
) -> None:
    harness = bench["harness"]
    sides = Sides({"dlrun": 1e-2, "hand-written": 2e-2}, harness.Late)
    monkeypatch.setattr(harness, "Side", sides)
    monkeypatch.setattr(harness.time, "perf_counter", lambda: sides.now)
    row = bench["rows"].Row("tiny", "mlp", "vectors", 800, 8, {"hidden_sizes": [4]}, features=3)
    results = harness.measure_interleaved(row, list(sides.cost), seconds, most_rounds=9)
    assert sides.now <= seconds
    if not rounds:
        # The second side is not warm in its share of the time, and goes without.
        assert results["hand-written"]["skipped"].startswith("too slow")
        return
    # Two starts of five seconds, and three seconds a round.
    assert [len(side["seconds"]) for side in results.values()] == [rounds, rounds]
    assert harness.count_rounds(results) == f"{rounds} rounds"
    assert bench["scale"].linearity([]) == []


@pytest.mark.slow
def test_a_real_side_is_late(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    row = bench["rows"].Row("tiny", "mlp", "vectors", 80, 8, {"hidden_sizes": [4]}, features=3, classes=1)
    results, _ = bench["harness"].measure_within(row, ["pure compute"], seconds=0.01)
    assert results["pure compute"]["skipped"].startswith("too slow: not warm after ")


def test_rows_of_real_data_are_skipped_without_them(bench: dict[str, ModuleType]) -> None:
    rows = list(bench["rows"].list_core_rows(""))
    assert {row.name for row in rows} == set(bench["core"].WHAT)
    reasons = {row.name: bench["harness"].find_obstacle("dlrun", row) for row in rows}
    assert reasons["resnet"] == "DLRUN_DATA_DIR is not set: mnist is looked for there"
    assert reasons["tiny"] is None


def test_the_interval_is_that_of_the_sign_test(bench: dict[str, ModuleType]) -> None:
    interval = bench["harness"].interval
    assert interval([3, 1, 2, 7, 6, 5, 4]) == (4, 1, 7)  # 7 values: P(outside) = 2 / 2^7
    assert interval(list(range(1, 10))) == (5, 2, 8)  # 9 values: the second and the eighth, 1 - 2 * 10 / 2^9 = 96 %
    assert interval([5.0]) == (5.0, 5.0, 5.0)


@pytest.mark.parametrize(("mine", "other", "met"), [(1.0, 1.96, True), (1.0, 1.5, False)])
def test_a_bar_is_met_when_the_interval_reaches_it(
    bench: dict[str, ModuleType], mine: float, other: float, met: bool
) -> None:
    bar = bench["core"].Bar("resnet", "course script", at_least=1.9)
    sides = {"dlrun": {"seconds": [mine] * 7}, "course script": {"seconds": [other] * 7}}
    assert bar.judge({"steps": 10, "sides": sides}).endswith("met" if met else "MISSED")


def test_a_linear_cost_is_told_from_one_that_grows_faster(bench: dict[str, ModuleType]) -> None:
    def table(cost: float) -> list[dict[str, object]]:
        points = []
        for rows in (1_000, 10_000, 100_000, 1_000_000):
            seconds = {"seconds": [0.001 + 1e-6 * rows**cost] * 7}
            points.append({"axis": "rows", "value": rows, "row": {"epochs": 1}, "sides": {"dlrun": seconds}})
            points[-1]["sides"]["hand-written"] = {"skipped": "no"}  # type: ignore[index]
        return points

    assert all(line.endswith(": met") for line in bench["scale"].linearity(table(1.0)))
    assert any(line.endswith("MISSED") for line in bench["scale"].linearity(table(1.2)))


@pytest.mark.slow
def test_every_part_of_the_bench_on_a_gpu_runs_to_its_end(
    bench: dict[str, ModuleType],
    dlrun: Callable[..., Any],
    pretended: Any,
    formats: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    formats.write_mnist(tmp_path, train=300, test=20)
    commands = []

    def run(plan: Any, *words: str) -> tuple[float, list[Any]]:
        commands.append(words)
        outcome = dlrun(*words, f"paths.data={plan.root}", f"paths.outputs={len(commands)}")
        assert outcome.code == 0, outcome.err
        return float(len(commands)), [
            json.loads(path.read_text()) for path in Path(str(len(commands))).rglob("result.json")
        ]

    def measure(row: Any, names: list[str], seconds: float, rounds: int) -> dict[str, Any]:
        assert (row.device, row.steps) == ("cuda", 2)
        sides = {name: {"seconds": [seconds] * rounds} for name, seconds in zip(names, (0.1, 0.4, 0.8), strict=True)}
        return sides | {"Lightning bare": {"skipped": "lightning is not installed"}}

    monkeypatch.setattr(bench["gpu"], "run", run)
    monkeypatch.setattr(bench["gpu"], "measure_interleaved", measure)
    monkeypatch.setenv("DLRUN_DATA_DIR", str(tmp_path))
    with pretended.pretend_cuda():
        bench["gpu"].main(["--tiny", "--folder", str(tmp_path)])

    (written,) = tmp_path.glob("*_gpu.md")
    text = written.read_text()
    assert "a pretended GPU, 8 GiB, driver " in text
    assert "- dlrun against hand-written: 4 × (4 to 4); at least 3: yes" in text
    assert "- dlrun against Lightning: 8 × (8 to 8); at least 10: NO" in text
    assert "- Lightning bare: skipped, lightning is not installed" in text
    assert len(commands) == 3 + 2
    figures = {figure["what"]: figure for figure in json.loads(written.with_suffix(".json").read_text())["figures"]}
    # A stack of 8 took 1 s, a run 2 s, three runs 3 s: half a second each, and 1.5 s to start.
    assert figures["the stack against one after the other, whole commands"]["values"] == [5.5]
    assert len(figures["bf16, test accuracy"]["values"]) == 1
    assert figures["fp32, training"]["at_most"] == 5


class Enough(Exception):
    """A side has trained as many steps as the test wants."""


@pytest.mark.slow
@pytest.mark.parametrize("side", ["hand-written", "dlrun"])
def test_a_side_on_a_gpu_waits_for_it_before_a_clock_is_read(
    side: str,
    bench: dict[str, ModuleType],
    dlrun: Callable[..., Any],
    pretended: Any,
    formats: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    formats.write_mnist(tmp_path, train=128, test=20)
    row = bench["rows"].Row("tiny", "mlp", "mnist", 128, root=str(tmp_path), device="cuda")
    module, function, _ = bench["side"].SIDES[side]
    answers = io.StringIO()
    pace = bench["pace"].Pace(row.steps, io.StringIO("go\n"), answers, device=row.device)

    def end() -> None:
        raise Enough

    monkeypatch.setattr(pace, "_end", end)
    # dlrun's side hangs its count there.
    monkeypatch.setattr(CheckpointManager, "on_step_end", CheckpointManager.on_step_end)
    train = getattr(importlib.import_module(f"sides.{module}"), function)
    monkeypatch.setattr(sys, "argv", sys.argv)
    with pretended.pretend_cuda() as calls, pytest.raises((Enough, SystemExit)):
        train(row, pace)
    assert len(answers.getvalue().splitlines()) == 2
    assert calls.synchronized >= 2
