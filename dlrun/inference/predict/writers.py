"""Answers as they are printed: a table for people, CSV and JSON lines for programs; none is held in memory for long."""

import itertools
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from dlrun.core import csv_text
from dlrun.core.terminal import escape_json, escape_line, write_out
from dlrun.data.spec import DataSpec, Output
from dlrun.data.windows import is_series
from dlrun.inference.predict.answer import Answer, join_labels, join_outputs
from dlrun.runs.reports.console import Console, format_number

# Lines of a table that are printed at once. Rich measures columns, so each block is as wide as its longest cells.
_BLOCK_SIZE = 500

# Values of an autoencoder in a line of a table.
_MOST_VALUES = 8


class Writer(Protocol):
    """Destination of the answers."""

    def add(self, answer: Answer) -> None:
        """Write one answer, or hold it until `close`."""
        ...

    def close(self) -> None:
        """Write all that is held."""
        ...


class TableWriter:
    """A Rich table, printed in blocks: each once it is full."""

    def __init__(self, console: Console, spec: DataSpec, top: int) -> None:
        self.console = console
        self.spec = spec
        self.top = top
        self.block: list[Answer] = []
        self.columns: list[str] = []

    def add(self, answer: Answer) -> None:
        """Add a line to the block, and print the block if it is full."""
        self.block.append(answer)
        if len(self.block) >= _BLOCK_SIZE:
            self._print_block()

    def close(self) -> None:
        """Print the last block."""
        if self.block:
            self._print_block()

    def _print_block(self) -> None:
        is_first = not self.columns
        # Later blocks have the columns of the first, without its header line.
        if is_first:
            self.columns = self._choose_columns()

        table = Table(box=SIMPLE_HEAD, padding=(0, 1), show_edge=False, show_header=is_first)
        for name in self.columns:
            holds_numbers = name in ("probability", "mse") or (name == "prediction" and self.spec.task == "regression")
            table.add_column(name, justify="right" if holds_numbers else "left", overflow="fold")

        for answer in self.block:
            cells = self._format_cells(answer)
            table.add_row(*(cells[name] for name in self.columns))
        self.console.say(table)
        self.block = []

    def _choose_columns(self) -> list[str]:
        """Return the columns that the task has, and those that an answer of the first block fills."""
        columns = ["input", "prediction"]
        if self.spec.reconstructs:
            columns.append("mse")
        if self.spec.task not in ("regression", "multitask"):
            columns.append("probabilities" if self.spec.task == "multilabel" else "probability")
        # The less likely classes share a column.
        if self.top > 1 and self.spec.task in ("binary", "multiclass"):
            columns.append("then")

        if any(answer.where for answer in self.block):
            columns.append("where")
        if any(answer.label is not None for answer in self.block):
            columns.append("label")
        if any(answer.note or answer.error for answer in self.block):
            columns.append("note")
        return columns

    def _format_cells(self, answer: Answer) -> dict[str, Text]:
        if answer.error:
            return self._format_error(answer)

        cells = {"input": answer.input, "where": answer.where, "label": answer.label or "", "note": answer.note}
        # A row may have no label.
        cells["probabilities"] = ", ".join(f"{name} {format_number(p)}" for name, p in answer.labels)
        if answer.labels:
            cells["prediction"] = join_labels(answer.labels) or "-"
        elif answer.outputs:
            cells["prediction"] = join_outputs(answer.outputs)
        elif answer.choices:
            (name, probability), *others = answer.choices
            cells["prediction"] = name
            cells["probability"] = format_number(probability)
            cells["then"] = ", ".join(f"{name} {format_number(probability)}" for name, probability in others)
        else:
            cells["prediction"] = ", ".join(map(format_number, answer.values))
            if answer.reconstruction_error is not None:
                cells["prediction"] = _format_first(answer.values)
                cells["mse"] = format_number(answer.reconstruction_error)
            cells["probability"] = ""
            cells["then"] = ""

        return {name: Text(escape_line(cell)) for name, cell in cells.items()}

    def _format_error(self, answer: Answer) -> dict[str, Text]:
        cells = {name: Text("") for name in self.columns}
        cells["input"] = Text(escape_line(answer.input))
        cells["where"] = Text(escape_line(answer.where))

        # Without notes and errors in the first block there is no column for the message.
        error = escape_line(answer.error)
        if "note" in self.columns:
            cells["prediction"] = Text("error", style="red")
            cells["note"] = Text(error)
        else:
            cells["prediction"] = Text(f"error: {error}", style="red")

        return cells


class CsvWriter:
    """Columns input, prediction and probability (prediction_2 and so on with --top), label, note, error: always all.

    For an autoencoder mse comes before the predictions, which are the values that it gives back.
    For multilabel the prediction is the labels, joined, and each label has a column probability_<label>.

    For models that take texts, whose input column holds the text itself, also where: file and line.
    """

    def __init__(self, spec: DataSpec, top: int) -> None:
        self.is_multilabel = spec.task == "multilabel"
        # A terminal would act on control characters in names; a file takes them as they are.
        self.writer = csv_text.CsvWriter(_EscapedStdout() if sys.stdout.isatty() else sys.stdout)
        if spec.task == "regression":
            # A forecast has a line for each of its times.
            count = spec.output_size
            if is_series(spec):
                count //= int(spec.preprocessing["horizon"])
            names = ["prediction"]
        elif spec.outputs:
            count = 1
            names = list(itertools.chain.from_iterable(map(_name_output_columns, spec.outputs)))
        elif self.is_multilabel:
            count = 1
            labels = spec.class_names or [str(number) for number in range(spec.output_size)]
            names = ["prediction", *(f"probability_{label}" for label in labels)]
        elif spec.task == "tagging":
            count = 1
            names = ["prediction", "probability"]
        else:
            # A binary model has one output and two classes.
            count = min(top, max(spec.output_size, 2))
            names = ["prediction", "probability"]

        self.prediction_columns = ["mse", *names] if spec.reconstructs else list(names)
        for rank in range(2, count + 1):
            self.prediction_columns += [f"{name}_{rank}" for name in names]
        self.has_where = spec.kind == "tokens"
        header = ["input", *self.prediction_columns, "label", "note", "error"]
        if self.has_where:
            header.append("where")
        self.writer.write_row(header)

    def add(self, answer: Answer) -> None:
        """Write a line, with empty cells for predictions that an error or few classes leave out."""
        cells: list[Any] = list(answer.values)
        if answer.reconstruction_error is not None:
            cells = [_round_probability(answer.reconstruction_error), *cells]
        for _, value, probability in answer.outputs:
            cells += [value] if isinstance(value, str) else list(value)
            cells += [] if probability is None else [_round_probability(probability)]

        if answer.labels:
            cells = [join_labels(answer.labels), *(_round_probability(p) for _, p in answer.labels)]
        for name, probability in answer.choices:
            cells += [name, _round_probability(probability)]
        cells += [""] * (len(self.prediction_columns) - len(cells))

        row = [answer.input, *cells, answer.label or "", answer.note, answer.error]
        if self.has_where:
            row.append(answer.where)
        self.writer.write_row(row)

    def close(self) -> None:
        """Flush stdout, so that errors of a full disk or a closed pipe surface here."""
        sys.stdout.flush()


class JsonWriter:
    """An object a line: input, prediction, probability; top with --top; label, note, error, where if there are any.

    For several outputs the prediction is an object of them, and probabilities has those of classes.
    For multilabel the prediction is a list of labels, and probabilities has all of them by name.
    """

    def __init__(self, spec: DataSpec, top: int) -> None:
        self.top = top if spec.task in ("binary", "multiclass") else 1

    def add(self, answer: Answer) -> None:
        """Write a line of JSON."""
        record: dict[str, Any] = {"input": answer.input, "prediction": None}
        if answer.values:
            record["prediction"] = answer.values[0] if len(answer.values) == 1 else list(answer.values)
        if answer.outputs:
            record["prediction"] = {name: _shorten_values(value) for name, value, _ in answer.outputs}
            probabilities = {name: _round_probability(p) for name, _, p in answer.outputs if p is not None}
            record["probabilities"] = probabilities

        if answer.reconstruction_error is not None:
            record["mse"] = _round_probability(answer.reconstruction_error)
        if answer.labels:
            record["prediction"] = [name for name, probability in answer.labels if probability > 0.5]
            record["probabilities"] = {name: _round_probability(probability) for name, probability in answer.labels}
        if answer.choices:
            name, probability = answer.choices[0]
            record["prediction"] = name
            record["probability"] = _round_probability(probability)
            # Without --top the list would only repeat the prediction.
            if self.top > 1:
                record["top"] = [{"class": name, "probability": _round_probability(p)} for name, p in answer.choices]

        # Empty entries are left out; an empty label is a label.
        if answer.label is not None:
            record["label"] = answer.label
        for key, text in (("note", answer.note), ("error", answer.error), ("where", answer.where)):
            if text:
                record[key] = text
        write_out(_format_json_line(record))

    def close(self) -> None:
        """Flush stdout, so that errors of a full disk or a closed pipe surface here."""
        sys.stdout.flush()


class _EscapedStdout:
    """Stdout of a terminal, with control characters escaped. A pipe or a file gets names as they are."""

    def write(self, line: str) -> None:
        """Write a line of CSV, which ends with a line break."""
        write_out(line.removesuffix("\n"))


def _format_json_line(values: dict[str, Any]) -> str:
    """Format as JSON on one line, readable in any language, with control characters as \\uXXXX."""
    return escape_json(json.dumps(values, ensure_ascii=False))


def _name_output_columns(output: Output) -> list[str]:
    """The columns of one of several outputs."""
    if output.task != "regression":
        return [f"prediction_{output.name}", f"probability_{output.name}"]
    if output.size == 1:
        return [f"prediction_{output.name}"]
    return [f"prediction_{output.name}_{number}" for number in range(output.size)]


def _shorten_values(value: str | tuple[float, ...]) -> Any:
    """A class, a number, or a list of several numbers, with the six digits of single precision."""
    if isinstance(value, str):
        return value
    numbers = [_round_probability(number) for number in value]
    return numbers[0] if len(numbers) == 1 else numbers


def _format_first(values: Sequence[float]) -> str:
    """The first of the values that an image has."""
    rest = ["..."] if len(values) > _MOST_VALUES else []
    return ", ".join([*map(format_number, values[:_MOST_VALUES]), *rest])


def _round_probability(p: float) -> float:
    """Round a probability, or an error, to the six digits that single precision has."""
    return float(f"{p:.6g}")


FORMATS: dict[str, Callable[[Console, DataSpec, int], Writer]] = {
    "table": TableWriter,
    "csv": lambda _, spec, top: CsvWriter(spec, top),
    "jsonl": lambda _, spec, top: JsonWriter(spec, top),
}
