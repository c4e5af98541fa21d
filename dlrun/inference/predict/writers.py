"""Answers as they are printed: a table for people, CSV and JSON lines for programs; as they come, none is kept."""

import json
import sys
from collections.abc import Callable
from typing import Any, Protocol

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from dlrun.core import csv_text
from dlrun.core.terminal import escape_json, escape_line, write_out
from dlrun.data.spec import DataSpec
from dlrun.inference.predict.answer import Answer
from dlrun.runs.reports.console import Console, number

_BLOCK = 500  # lines of a table at a time: the widths of its columns are those of the first ones


class Writer(Protocol):
    """Where answers go."""

    def add(self, answer: Answer) -> None:
        """One more."""
        ...

    def close(self) -> None:
        """There are no more."""
        ...


class TableWriter:
    """A Rich table; of many answers in blocks, each printed when it is full."""

    def __init__(self, console: Console, spec: DataSpec, top: int) -> None:
        self.console, self.spec, self.top = console, spec, top
        self.block: list[Answer] = []
        self.columns: list[str] = []
        self.widths: list[int] = []

    def add(self, answer: Answer) -> None:
        """See Writer."""
        self.block.append(answer)
        if len(self.block) >= _BLOCK:
            self._print()

    def close(self) -> None:
        """See Writer."""
        if self.block:
            self._print()

    def _print(self) -> None:
        first = not self.columns
        if first:
            used = {
                "where": any(a.where for a in self.block),
                "label": any(a.label is not None for a in self.block),
                "note": any(a.note or a.error for a in self.block),
            }
            said = ["prediction"] if self.spec.task == "regression" else ["prediction", "probability"]
            also = ["then"] if self.top > 1 and self.spec.task not in ("regression", "tagging") else []
            self.columns = ["input", *said, *also, *(name for name, there in used.items() if there)]
        table = Table(box=SIMPLE_HEAD, padding=(0, 1), show_edge=False, show_header=first)
        for i, name in enumerate(self.columns):
            of_numbers = name == "probability" or (name == "prediction" and self.spec.task == "regression")
            width = self.widths[i] if self.widths else None
            table.add_column(name, justify="right" if of_numbers else "left", overflow="fold", min_width=width)
        for answer in self.block:
            cells = self._cells(answer)
            table.add_row(*(cells[name] for name in self.columns))
        self.console.say(table)
        self.block = []

    def _cells(self, answer: Answer) -> dict[str, Text]:
        if answer.error:
            plain = dict.fromkeys(self.columns, "")
            cells = {name: Text(cell) for name, cell in plain.items()}
            error = escape_line(answer.error)
            if "note" in self.columns:
                cells |= {"prediction": Text("error", style="red"), "note": Text(error)}
            else:  # the first answers had no note
                cells["prediction"] = Text(f"error: {error}", style="red")
            names = {"input": Text(escape_line(answer.input)), "where": Text(escape_line(answer.where))}
            return cells | names
        sure = number(answer.choices[0][1]) if answer.choices else ""
        said = answer.choices[0][0] if answer.choices else ", ".join(number(value) for value in answer.values)
        then = ", ".join(f"{name} {number(p)}" for name, p in answer.choices[1:])
        plain = {"input": answer.input, "prediction": said, "probability": sure, "then": then}
        plain |= {"label": answer.label or "", "note": answer.note, "where": answer.where}
        return {name: Text(escape_line(cell)) for name, cell in plain.items()}


class CsvWriter:
    """input, prediction and probability (prediction_2 and so on with --top), label, note, error: always all of them.

    Of a model that takes texts, which are called by what they say, also where: their file and line.
    """

    def __init__(self, spec: DataSpec, top: int) -> None:
        self.writer = csv_text.CsvWriter(_Shown() if sys.stdout.isatty() else sys.stdout)
        self.of_values = spec.task == "regression"
        count = (
            spec.output_size if self.of_values else 1 if spec.task == "tagging" else min(top, max(spec.output_size, 2))
        )
        ends = ["", *(f"_{i}" for i in range(2, count + 1))]
        each = ("prediction",) if self.of_values else ("prediction", "probability")
        self.heads = ["input", *(f"{name}{end}" for end in ends for name in each), "label", "note", "error"]
        self.cells = len(self.heads) - 4
        self.names_place = spec.kind == "tokens"
        self.heads += ["where"] if self.names_place else []
        self.writer.write_row(self.heads)

    def add(self, answer: Answer) -> None:
        """See Writer."""
        found: list[Any] = list(answer.values)
        for name, p in answer.choices:
            found += [name, round_probability(p)]
        found += [""] * (self.cells - len(found))
        place = [answer.where] if self.names_place else []
        self.writer.write_row([answer.input, *found, answer.label or "", answer.note, answer.error, *place])

    def close(self) -> None:
        """See Writer."""
        sys.stdout.flush()


class JsonWriter:
    """An object a line: input, prediction, probability; top with --top; label, note, error, where if there are any."""

    def __init__(self, spec: DataSpec, top: int) -> None:
        self.top = top if spec.task not in ("regression", "tagging") else 1

    def add(self, answer: Answer) -> None:
        """See Writer."""
        about: dict[str, Any] = {"input": answer.input, "prediction": None}
        if answer.values:
            about["prediction"] = answer.values[0] if len(answer.values) == 1 else list(answer.values)
        if answer.choices:
            about |= {"prediction": answer.choices[0][0], "probability": round_probability(answer.choices[0][1])}
            if self.top > 1:
                about["top"] = [{"class": name, "probability": round_probability(p)} for name, p in answer.choices]
        about |= {} if answer.label is None else {"label": answer.label}
        further = {"note": answer.note, "error": answer.error, "where": answer.where}
        about |= {key: text for key, text in further.items() if text}
        write_out(format_json(about))

    def close(self) -> None:
        """See Writer."""
        sys.stdout.flush()


class _Shown:
    """Stdout where it is a terminal. A pipe or a file gets the names as they are."""

    def write(self, line: str) -> None:
        """A line of CSV, with its line end."""
        write_out(line.removesuffix("\n"))


def format_json(values: dict[str, Any]) -> str:
    """JSON on one line, readable in any language, with each control character as \\uXXXX."""
    return escape_json(json.dumps(values, ensure_ascii=False))


def round_probability(p: float) -> float:
    """A probability with the six digits that single precision gives."""
    return float(f"{p:.6g}")


FORMATS: dict[str, Callable[[Console, DataSpec, int], Writer]] = {
    "table": TableWriter,
    "csv": lambda _, spec, top: CsvWriter(spec, top),
    "jsonl": lambda _, spec, top: JsonWriter(spec, top),
}
