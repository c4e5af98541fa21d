"""The table: on a terminal of 80 columns, as Markdown and as numbers."""

import csv
import io
import math
from typing import Any

import numpy as np
import pytest
from rich.console import Console as RichConsole

from dlrun.sweep.comparison import table
from dlrun.sweep.comparison.ranking import compare
from dlrun.sweep.comparison.table import format_metric


def print_table(ranking: Any, width: int = 80) -> list[str]:
    console = RichConsole(width=width, file=io.StringIO(), record=True)
    console.print(table.build_terminal_table(ranking, console))
    return [line.rstrip() for line in console.export_text().splitlines()]


def grid(runs: Any, keys: int, seeds: int = 2) -> Any:
    words = [
        ("optimizer=sgd", "optimizer=adam"),
        ("optimizer.lr=0.1", "optimizer.lr=0.001"),
        ("model.depth=3", "model.depth=5"),
    ]
    records = []
    for i in range(2**keys):
        chosen = [pair[i >> k & 1] for k, pair in enumerate(words[:keys])]
        records += [runs(*chosen, value=0.3 + 0.05 * i + 0.012 * seed, seed=seed) for seed in range(seeds)]
    return compare(records).rankings[0]  # fmt: skip


def test_two_keys_fit_80_columns_with_all_that_counts(runs: Any) -> None:
    lines = print_table(grid(runs, 2))
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["optimizer", "lr", "n", "val/loss", "95", "%", "epoch", "last", "loss", "s"]
    first = "sgd 0.1 2 0.3060 ± 0.0085 0.2298…0.3822 3 0.3060 0.7500 1.50"
    assert lines[3].split() == first.split()
    assert lines[-1].split() == ["baseline", "2.0000", "2.5000"]


def test_three_keys_fit_without_the_columns_that_matter_least(runs: Any) -> None:
    lines = print_table(grid(runs, 3))
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["optimizer", "lr", "depth", "n", "val/loss", "95", "%", "epoch", "loss"]
    assert (
        print_table(grid(runs, 3), 120)[1].split()[-2:] == ["test/loss", "s"][1:]
        or "s" in print_table(grid(runs, 3), 120)[1]
    )
    assert "±" in print_table(grid(runs, 3), 50)[3]  # never without the metric


def test_a_terminal_shows_30_settings_and_counts_the_rest(runs: Any) -> None:
    (ranking,) = compare([runs(f"model.depth={i}", value=1 + i / 100) for i in range(35)]).rankings
    lines = print_table(ranking)
    assert sum(line.split()[0].isdigit() for line in lines if line) == 30
    assert lines[-1].startswith("baseline")
    assert table.describe_hidden_rows(ranking) == "and 5 more settings: comparison.csv has all"
    assert table.describe_hidden_rows(grid(runs, 1)) == ""
    assert table.render_markdown(ranking).count("\n") == 2 + 35 + 1


def test_numbers_are_written_as_finely_as_the_seeds_agree(runs: Any) -> None:
    def show(*values: float) -> str:
        (ranking,) = compare([runs(value=value, seed=seed) for seed, value in enumerate(values)]).rankings
        return table.list_rows(ranking)[0][2]

    assert show(3011.0, 3057.0, 3101.0) == "3056 ± 45"
    assert show(0.4551, 0.4572, 0.4611) == "0.4578 ± 0.0030"
    assert show(0.12345678) == "0.1235"
    assert show(4321.5) == "4322"
    assert show(0.0) == "0.0000"
    (ranking,) = compare([runs(value=0.5)]).rankings
    assert [format_metric(x, ranking) for x in (2.5e7, 1e-9, math.nan, -0.25)] == [
        "2.50e+07",
        "1.00e-09",
        "–",
        "-0.2500",
    ]


def test_failures_have_a_column_where_there_are_some(runs: Any) -> None:
    records = [runs("model=a"), runs("model=a", seed=1, value=None), runs("model=b", value=None)]
    (ranking,) = compare(records).rankings
    assert table.list_headers(ranking)[-1] == "failed"
    assert [row[-1] for row in table.list_rows(ranking)] == ["1", "1", ""]
    assert table.list_rows(ranking)[1][1:6] == ["0", "–", "–", "–", "–"]
    assert "failed" not in table.list_headers(grid(runs, 1))


def test_nothing_of_a_value_is_markup(runs: Any) -> None:
    (ranking,) = compare([runs("model.name='a|<b>'"), runs("model.name='x'", value=0.6)]).rankings
    assert r"| a\|&lt;b&gt; | 1 |" in table.render_markdown(ranking)


def test_the_csv_holds_plain_numbers(runs: Any) -> None:
    values = [0.3, 0.4, 0.8]
    records = [runs("model=a", "model.hidden_sizes=[64,32]", value=v, seed=i) for i, v in enumerate(values)]
    records.append(runs("model=b", "model.hidden_sizes=[8]", value=None))
    rows = list(csv.DictReader(io.StringIO(table.render_csv(compare(records)))))
    a, b, baseline = rows
    assert (a["row"], a["model"], a["model.hidden_sizes"], a["metric"]) == ("setting", "a", "[64,32]", "val/loss")
    assert [float(a[key]) for key in ("n", "mean", "std", "best_epoch", "last", "train_seconds", "test_loss")] == [
        3, pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)), 3, pytest.approx(0.5), 1.5, 0.75
    ]  # fmt: skip
    assert float(a["low"]) < 0.5 < float(a["high"])
    assert (b["n"], b["mean"], b["low"], b["failed"]) == ("0", "", "", "1")
    assert (baseline["row"], baseline["model"], baseline["mean"], baseline["test_loss"]) == (
        "baseline",
        "",
        "2.0",
        "2.5",
    )


def test_two_tables_share_one_csv_that_names_the_data(runs: Any) -> None:
    names = {"data": {"_target_": "d.names"}}
    records = [runs("model=a"), runs("model=b"), runs("data=names", config=names)]
    lines = list(csv.DictReader(io.StringIO(table.render_csv(compare(records)))))
    assert [(line["row"], line["data"], line["model"]) for line in lines] == [
        ("setting", "digits", "a"), ("setting", "digits", "b"), ("baseline", "digits", ""),
        ("setting", "names", ""), ("baseline", "names", ""),
    ]  # fmt: skip
