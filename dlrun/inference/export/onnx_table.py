"""table.onnx: the whole way from the columns of a table to answers as one ONNX graph, an input a column.

Numbers are float64, NaN where they are missing; categories are strings. What the graph gives back are values in the
unit of the target, or a label and the probability of each class. The nodes are those of ONNX and ai.onnx.ml, as
skl2onnx writes them for scikit-learn's SimpleImputer, StandardScaler and OneHotEncoder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlrun.core.errors import RunError
from dlrun.data.columns.cells import GAPS, parse_column
from dlrun.data.columns.preprocessing import (
    GAP,
    CategoryColumn,
    Column,
    DateColumn,
    NumberColumn,
    Preprocessing,
    encode_rows,
)
from dlrun.inference.export.description import (
    ExportSubject,
    describe_columns,
    list_class_names,
    name_probability_function,
)
from dlrun.inference.saved_model import SavedModel

FILE = "table.onnx"

# Values of the net's graph get this in front of their names, as columns may be called anything.
_NET = "net/"
_ML = "ai.onnx.ml"
_ML_VERSION = 3
_CHECK_ROWS = 256
# Share of the largest answer, or of 1.
_TOLERANCE = 1e-4
# A category that no table has.
_UNSEEN = "\N{REPLACEMENT CHARACTER} unseen"


def explain_absence(saved_model: SavedModel) -> str | None:
    """Why there is no graph from columns to answers, for model.json; None where there is one."""
    spec = saved_model.spec
    if spec.kind != "vector" or not spec.preprocessing:
        return "the data are no table with a preprocessing"
    if spec.reconstructs:
        return "the targets of an autoencoder are its own inputs"
    columns = Preprocessing.from_plain(spec.preprocessing).columns
    dates = [column.name for column in columns if isinstance(column, DateColumn)]
    if dates:
        return f"ONNX reads no dates, as in {', '.join(dates)}: load_onnx.py does"
    return None


def write(subject: ExportSubject, net_path: Path, folder: Path, run: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Write table.onnx around the net in `net_path`; returns its entry of model.json.

    run: opens the file with ONNX Runtime and gives its outputs by name, for inputs by name. RunError where they differ
    from the model's answers on rows with gaps and unseen categories.
    """
    import onnx

    saved_model = subject.saved_model
    columns = Preprocessing.from_plain(saved_model.spec.preprocessing).columns
    net = onnx.compose.add_prefix(onnx.load(net_path), _NET)
    names = _name_inputs(columns)
    builder = _Builder()
    builder.encode(columns, names, net.graph.input[0].name)
    count = len(builder.nodes)
    answers = _list_answers(saved_model, taken=names)
    for answer in answers:
        builder.answer(answer, net.graph.output[0].name)
    model = builder.join(net, count)
    onnx.checker.check_model(model)
    onnx.save(model, folder / FILE)

    difference = _check(subject, columns, names, answers, run, folder / FILE)
    inputs = []
    for name, column in zip(names, columns, strict=True):
        dtype = "float64" if isinstance(column, NumberColumn) else "string"
        inputs.append({"name": name, "column": column.name, "dtype": dtype, "shape": ["batch"]})
    outputs = [{"name": name, "answers": answer.name or saved_model.spec.task} for answer in answers
               for name in answer.outputs]  # fmt: skip
    return {"model_file": FILE, "inputs": inputs, "outputs": outputs, "max_difference": difference}


def _name_inputs(columns: Sequence[Column]) -> list[str]:
    """Names of the inputs: those of the columns, where ONNX can have them."""
    # An empty name is ONNX's sign for an input that is left out.
    return [column.name or f"column {column.index}" for column in columns]


@dataclass(frozen=True)
class _Answer:
    """An answer of the graph: columns first to last of the net's output, and what is made of them.

    label, probabilities, value: names of the outputs; "" for one that this task does not have.
    """

    name: str
    task: str
    first: int
    last: int
    function: str | None
    class_names: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    label: str = ""
    probabilities: str = ""
    value: str = ""

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs that it has."""
        return [name for name in (self.label, self.probabilities, self.value) if name]


def _list_answers(saved_model: SavedModel, taken: Sequence[str]) -> list[_Answer]:
    spec = saved_model.spec
    objective = saved_model.objective

    def name(prefix: str, output: str) -> str:
        text = f"{prefix} {output}".strip()
        # A column may be called so.
        return text if text not in taken else name(prefix, f"{output}_")

    def make(prefix: str, kind: str, first: int, last: int, function: str | None, class_names: Sequence[str],
             scale: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())) -> _Answer:  # fmt: skip
        is_value = kind == "regression"
        has_label = kind in ("binary", "multiclass")
        return _Answer(
            prefix,
            kind,
            first,
            last,
            function,
            tuple(class_names),
            *scale,
            label=name(prefix, "label") if has_label else "",
            probabilities="" if is_value else name(prefix, "probabilities"),
            value=name(prefix, "value") if is_value else "",
        )

    if spec.outputs:
        answers = []
        for column in describe_columns(saved_model):
            function = column.get("output_to_value") or column["output_to_probability"]
            part = (column["task"], column["from"], column["to"], function, column["class_names"])
            answers.append(make(column["name"], *part))
        return answers
    function = "exp" if objective.is_exponential else name_probability_function(saved_model)
    scale = (spec.target_mean, spec.target_std) if objective.scales_targets else ((), ())
    return [make("", spec.task, 0, spec.output_size, function, list_class_names(saved_model), scale)]


@dataclass
class _Builder:
    """Collects nodes, constants, inputs and outputs of a graph."""

    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)

    def add(self, operator: str, *inputs: str, output: str | None = None, domain: str = "", **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        from onnx import helper

        output = output or f"dlrun/{operator} {len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], domain=domain, **attributes))
        return output

    def constant(self, values: Any, dtype: Any) -> str:
        """Add a constant; returns its name."""
        from onnx import numpy_helper

        name = f"dlrun/constant {len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def encode(self, columns: Sequence[Column], names: Sequence[str], output: str) -> None:
        """Make the net's features, float32 (batch, features), of inputs (batch,)."""
        from onnx import TensorProto, helper

        features = []
        for name, column in zip(names, columns, strict=True):
            kind = TensorProto.DOUBLE if isinstance(column, NumberColumn) else TensorProto.STRING
            self.inputs.append(helper.make_tensor_value_info(name, kind, ["batch"]))
            if isinstance(column, NumberColumn):
                features += self._encode_number(column, name)
            elif isinstance(column, CategoryColumn):
                features.append(self._encode_category(column, name))
        # As dlrun does: prepared in double precision, computed in single.
        joined = self.add("Concat", *features, axis=1)
        self.add("Cast", joined, output=output, to=TensorProto.FLOAT)

    def _encode_number(self, column: NumberColumn, name: str) -> list[str]:
        from onnx import TensorProto

        values = self.add("Unsqueeze", name, self.constant([1], np.int64))
        gaps = self.add("IsNaN", values)
        full = self.add("Where", gaps, self.constant(column.scale.fill, np.float64), values)
        centered = self.add("Sub", full, self.constant(column.scale.mean, np.float64))
        features = [self.add("Div", centered, self.constant(column.scale.std, np.float64))]
        if column.has_indicator:
            features.append(self.add("Cast", gaps, to=TensorProto.DOUBLE))
        return features

    def _encode_category(self, column: CategoryColumn, name: str) -> str:
        from onnx import TensorProto

        numbers = {category: number for number, category in enumerate(column.categories, 1)}
        if GAP in numbers:
            # The graph cannot change the case of a text without changing its language.
            for spelling in GAPS:
                for text in (spelling, spelling.upper(), spelling.title(), spelling.capitalize()):
                    numbers.setdefault(text, numbers[GAP])
        codes = self.add(
            "LabelEncoder", name, domain=_ML, keys_strings=list(numbers), values_int64s=list(numbers.values()),
            default_int64=0,
        )  # fmt: skip
        column_of_codes = self.add("Unsqueeze", codes, self.constant([1], np.int64))
        if not column.has_codes:
            # Zeros in all of them for what training did not have.
            every = self.constant([range(1, len(column.categories) + 1)], np.int64)
            column_of_codes = self.add("Equal", column_of_codes, every)
        return self.add("Cast", column_of_codes, to=TensorProto.DOUBLE)

    def answer(self, answer: _Answer, output: str) -> None:
        """Make an answer of columns of the net's output (batch, columns)."""
        from onnx import TensorProto, helper

        bounds = [self.constant([bound], np.int64) for bound in (answer.first, answer.last, 1)]
        columns = self.add("Slice", output, *bounds)
        if answer.function in ("sigmoid", "softmax", "exp"):
            arguments: dict[str, Any] = {"axis": -1} if answer.function == "softmax" else {}
            columns = self.add(answer.function.capitalize(), columns, **arguments)
        if answer.value:
            if answer.std:
                columns = self.add("Mul", columns, self.constant(answer.std, np.float32))
                columns = self.add("Add", columns, self.constant(answer.mean, np.float32))
            self._output(answer.value, columns, answer.last - answer.first)
            return

        if answer.task == "binary":
            others = self.add("Sub", self.constant(1.0, np.float32), columns)
            columns = self.add("Concat", others, columns, axis=1)
        self._output(answer.probabilities, columns, len(answer.class_names))
        if answer.label:
            # Of two equal ones the first, as in dlrun.
            number = self.add("ArgMax", columns, axis=1, keepdims=0)
            classes = list(range(len(answer.class_names)))
            self.add(
                "LabelEncoder", number, output=answer.label, domain=_ML, keys_int64s=classes,
                values_strings=list(answer.class_names), default_string="",
            )  # fmt: skip
            self.outputs.append(helper.make_tensor_value_info(answer.label, TensorProto.STRING, ["batch"]))

    def _output(self, name: str, value: str, width: int) -> None:
        from onnx import TensorProto, helper

        self.add("Identity", value, output=name)
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]))

    def join(self, net: Any, count: int) -> Any:
        """The model of the first `count` nodes, the nodes of `net`, and the other nodes: the order of their values."""
        from onnx import helper

        graph = helper.make_graph(
            [*self.nodes[:count], *net.graph.node, *self.nodes[count:]],
            "table",
            self.inputs,
            self.outputs,
            [*self.constants, *net.graph.initializer],
            value_info=net.graph.value_info,
        )
        opsets = [*net.opset_import]
        if not any(entry.domain == _ML for entry in opsets):
            opsets.append(helper.make_opsetid(_ML, _ML_VERSION))
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=net.ir_version, functions=net.functions, producer_name="dlrun"
        )


@torch.inference_mode()
def _check(
    subject: ExportSubject,
    columns: Sequence[Column],
    names: Sequence[str],
    answers: Sequence[_Answer],
    run: Callable[..., dict[str, Any]],
    path: Path,
) -> float:
    """The largest difference of the graph's numbers from dlrun's answers; RunError if it is too large."""
    cells = _make_cells(subject, columns)
    features = torch.from_numpy(encode_rows(columns, cells)).float()
    outputs = subject.model(features)
    given = run(path, _make_feed(columns, names, cells))

    difference = 0.0
    largest = 1.0
    for answer, expected in zip(answers, _compute_answers(subject.saved_model, outputs), strict=True):
        actual = given[answer.value or answer.probabilities]
        difference = max(difference, float(np.abs(actual - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
    # Written so that NaN fails too.
    if not difference <= _TOLERANCE * largest:
        raise RunError(f"the answers of {FILE} differ from dlrun's by up to {difference:.3g}, so it was not kept")
    return difference


def _make_cells(subject: ExportSubject, columns: Sequence[Column]) -> dict[str, list[str]]:
    """Cells like those of the held-out rows, behind them a row of gaps and one of categories that are not known."""
    (x, *_) = next(subject.iterate_inputs())
    values = x[:_CHECK_ROWS].double().numpy()
    cells: dict[str, list[str]] = {}
    start = 0
    for column in columns:
        width = len(column.features)
        cells[column.name] = [column.decode(row) for row in values[:, start : start + width]]
        cells[column.name] += ["", "" if isinstance(column, NumberColumn) else _UNSEEN]
        start += width
    return cells


def _make_feed(
    columns: Sequence[Column], names: Sequence[str], cells: Mapping[str, Sequence[str]]
) -> dict[str, NDArray[Any]]:
    """The graph's inputs of cells by column."""
    feed: dict[str, NDArray[Any]] = {}
    for name, column in zip(names, columns, strict=True):
        if isinstance(column, NumberColumn):
            feed[name] = parse_column(cells[column.name], column.decimal)[0]
        else:
            feed[name] = np.array([cell.strip() for cell in cells[column.name]], dtype=object)
    return feed


def _compute_answers(saved_model: SavedModel, outputs: torch.Tensor) -> list[NDArray[Any]]:
    """dlrun's values (rows, values) or probabilities (rows, classes), an array for each of the graph's answers."""
    from dlrun.engine.multitask import MultitaskObjective

    objective = saved_model.objective
    parts = [(objective, outputs)]
    if isinstance(objective, MultitaskObjective):
        sizes = [output.size for output in saved_model.spec.outputs]
        pieces = torch.split(outputs, sizes, dim=1)
        parts = [
            (objective.parts[output.name], piece)
            for output, piece in zip(saved_model.spec.outputs, pieces, strict=True)
        ]
    answers = []
    for part, piece in parts:
        if part.spec.task == "regression":
            answers.append(part.predict(piece).numpy())
            continue
        probabilities = part.compute_probabilities(piece)
        if part.spec.task == "binary":
            probabilities = torch.stack([1 - probabilities, probabilities], dim=1)
        answers.append(probabilities.numpy())
    return answers
