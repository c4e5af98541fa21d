"""scikit-learn's simple models on the rows of a table's run: what the net should at least reach."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.core.errors import DlrunError
from dlrun.data.spec import DataSpec, Split
from dlrun.data.targets import HUGGINGFACE_TARGET, TABLE_TARGET
from dlrun.engine.metric_names import find_direction
from dlrun.engine.objective import Objective
from dlrun.experiment.context import RunContext
from dlrun.runs.reports.console import format_number

BOOSTING = "gradient boosting"
_TASKS = ("regression", "binary", "multiclass")

# Metrics by key, such as test/accuracy, of each model by its name.
Scores = dict[str, dict[str, float]]

# Rows × columns × outputs that are trained on, and columns × outputs that trees are grown on: about two seconds each.
_MOST_VALUES = 2_000_000
_MOST_TREE_VALUES = 500
# Categories of a column that HistGradientBoosting takes as such.
_MOST_TREE_CATEGORIES = 255


def explain_absence(context: RunContext) -> str | None:
    """Why scikit-learn's models are not fitted to these data; None where they are."""
    spec = context.splits.spec
    is_table = spec.kind == "vector" and bool(spec.preprocessing)
    if context.settings.data.target not in (TABLE_TARGET, HUGGINGFACE_TARGET) or not is_table:
        return "it is for data=table"
    if spec.task not in _TASKS or spec.reconstructs:
        return f"it is for {', '.join(_TASKS)}"
    return None


def compare(context: RunContext, metrics: Mapping[str, float]) -> tuple[Scores, list[str]]:
    """Fit the simple models to the training rows; returns their metrics, and notes on those that beat the net.

    metrics: of the net, by key. Both are empty for data that are no table in memory, or of a single class.
    """
    parts = {name: getattr(context.splits, name) for name in ("train", "val", "test")}
    rows = {name: part for name, part in parts.items() if isinstance(part, Split) and len(part)}
    if explain_absence(context) is not None or "train" not in rows:
        return {}, []
    try:
        scores, notes = fit_and_score(rows, context.splits.spec, context.objective)
    except (DlrunError, ValueError):
        # A metric of the user's own, or a part of one class: the net's results stand without a comparison.
        return {}, []
    return scores, [*notes, *_find_better_models(scores, metrics, rows)]


def fit_and_score(rows: Mapping[str, Split], spec: DataSpec, objective: Objective) -> tuple[Scores, list[str]]:
    """Fit ridge or logistic regression and HistGradientBoosting, with their defaults, to the part `train`.

    Returns metrics of both on the other parts, without the loss; and notes on rows and models that were left out.
    """
    train = rows["train"]
    width = len(spec.code_counts or spec.feature_names) or spec.input_size
    count = min(len(train), max(1, _MOST_VALUES // (width * spec.output_size)))
    # Evenly spaced, so that sorted classes stay mixed.
    indices = torch.linspace(0, len(train) - 1, count).long()
    x = _to_array(train.inputs[0][indices])
    y = _to_array(train.targets[indices])
    notes = []
    if count < len(train):
        notes.append(f"scikit-learn's models were fitted to {count:,} of {len(train):,} training rows, to save time.")

    models = {_name_linear(spec): _make_linear(spec)}
    if width * spec.output_size <= _MOST_TREE_VALUES:
        models[BOOSTING] = _make_boosting(spec)
    else:
        columns = f"{width:,} columns × {spec.output_size:,} outputs"
        notes.append(
            f"scikit-learn's {BOOSTING} was not tried, to save time: {columns} are more than {_MOST_TREE_VALUES}."
        )

    # Losses differ between models; the metrics of the run are the measure.
    scorer = dataclasses.replace(objective, loss_name=None, own_loss=None, loss_args={}, class_weights=None)
    scores: Scores = {}
    for name, model in models.items():
        with warnings.catch_warnings():
            # The defaults may not converge, which is fine for a comparison.
            warnings.simplefilter("ignore")
            model.fit(x, y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y)
        scores[name] = {}
        for part in ("val", "test"):
            if part in rows:
                outputs = _predict(model, rows[part], spec, scorer)
                values = scorer.score_outputs(outputs, _widen(rows[part].targets))
                scores[name] |= {f"{part}/{key}": value for key, value in values.items() if key != "loss"}
    return scores, notes


def _name_linear(spec: DataSpec) -> str:
    return "ridge regression" if spec.task == "regression" else "logistic regression"


def _make_linear(spec: DataSpec) -> Any:
    """The linear model, in front of which codes of categories become a column each."""
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    model = Ridge() if spec.task == "regression" else LogisticRegression()
    coded = np.flatnonzero(spec.code_counts)
    if not len(coded):
        return model
    encoder = OneHotEncoder(handle_unknown="ignore")
    return make_pipeline(make_column_transformer((encoder, coded), remainder="passthrough"), model)


def _make_boosting(spec: DataSpec) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.multioutput import MultiOutputRegressor

    categorical = [number for number, count in enumerate(spec.code_counts) if 0 < count <= _MOST_TREE_CATEGORIES]
    arguments = {"random_state": 0, "categorical_features": categorical or None}
    if spec.task != "regression":
        return HistGradientBoostingClassifier(**arguments)
    model = HistGradientBoostingRegressor(**arguments)
    return model if spec.output_size == 1 else MultiOutputRegressor(model)


def _predict(model: Any, part: Split, spec: DataSpec, objective: Objective) -> Tensor:
    """What the net's outputs would be: scaled values (N, outputs), logits (N, 1) or log-probabilities (N, classes)."""
    x = _to_array(part.inputs[0])
    if spec.task == "regression":
        values = torch.from_numpy(np.asarray(model.predict(x), dtype=np.float64))
        return objective.scale_values(values.reshape(len(x), spec.output_size))

    # A class that the fitted rows lack has no column.
    probabilities = torch.zeros(len(x), max(spec.output_size, 2), dtype=torch.float64)
    probabilities[:, torch.as_tensor(model.classes_).long()] = torch.from_numpy(model.predict_proba(x))
    logs = probabilities.clamp(1e-12, 1 - 1e-12).log()
    return logs if spec.task == "multiclass" else logs[:, 1:] - logs[:, :1]


def _to_array(values: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = _widen(values).cpu().numpy()
    return array


def _widen(values: Tensor) -> Tensor:
    return values.double() if values.is_floating_point() else values


def _find_better_models(scores: Scores, metrics: Mapping[str, float], rows: Mapping[str, Split]) -> list[str]:
    """A note where a simple model is better than the net by the first metric whose direction is known."""
    part = "test" if "test" in rows else "val"
    keys = [key for key in metrics if key.startswith(f"{part}/") and all(key in values for values in scores.values())]
    key = next((key for key in keys if find_direction(key) is not None), None)
    if key is None or not scores:
        return []

    sign = 1 if find_direction(key) == "max" else -1
    # The best comes first, and is the one that the note begins with.
    ranked = sorted(scores, key=lambda name: -sign * scores[name][key])
    best, *others = ranked
    if sign * scores[best][key] <= sign * metrics[key]:
        return []
    metric = key.partition("/")[2]
    beside = "".join(f", {name} {format_number(scores[name][key])}" for name in others)
    where = f"{len(rows[part]):,} {'test' if part == 'test' else 'validation'} rows"
    return [
        f"scikit-learn's {best} is better on the {where}: {metric} {format_number(scores[best][key])}, "
        f"this net {format_number(metrics[key])}{beside}."
    ]
