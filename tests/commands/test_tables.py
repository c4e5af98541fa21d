"""Tables of the user's own through the whole command line: train, evaluate, predict, export."""

import csv
import json
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

QUIET = ("tracking.graph=false", "figures=false", "trainer.progress=off")
HOUSES = ("data=table", "data.path=houses.csv", "data.target=price", "model=linear", *QUIET)


def write_houses(path: Path, count: int = 200, seed: int = 0) -> None:
    """Houses with prices around 6e5: numbers, a street with gaps, an index; a line that is nearly theirs."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        file.write(",area,rooms,street,price\n")
        for number in range(count):
            area = draw.uniform(40, 300)
            rooms = draw.randint(1, 8)
            street = draw.choice(["Pave", "Grvl", ""])
            price = 300_000 + 2000 * area + 20_000 * rooms + 50_000 * (street == "Pave") + draw.gauss(0, 5000)
            file.write(f"{number},{area:.2f},{rooms},{street},{price:.0f}\n")


@pytest.fixture
def houses(dlrun: Callable, tmp_path: Path) -> Path:
    """A trained regression."""
    write_houses(tmp_path / "houses.csv")
    outcome = dlrun(*HOUSES, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    return tmp_path / "run"


def read_predictions(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    (path,) = folder.glob("eval/*/predictions.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    true, predicted = [name for name in rows[0] if name.startswith(("true", "predicted"))]
    return np.array([float(row[true]) for row in rows]), np.array([float(row[predicted]) for row in rows])


@pytest.mark.slow
def test_prices_are_learnt_and_told_in_their_own_unit(dlrun: Callable, houses: Path, tmp_path: Path) -> None:
    from sklearn.linear_model import LinearRegression
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    result = json.loads((houses / "result.json").read_text())
    assert dlrun("eval", "run", "figures=false").code == 0
    true, predicted = read_predictions(houses)
    metrics = result["metrics"]
    assert metrics["test/r2"] == pytest.approx(r2_score(true, predicted), abs=1e-5)
    assert metrics["test/mse"] == pytest.approx(mean_squared_error(true, predicted), rel=1e-3)
    assert metrics["test/mae"] == pytest.approx(mean_absolute_error(true, predicted), rel=1e-3)

    # Least squares on the same rows, which scikit-learn encodes.
    table = list(csv.DictReader((tmp_path / "houses.csv").read_text().splitlines()))
    x = np.array([[float(r["area"]), float(r["rooms"]), r["street"] == "Pave", r["street"] == "Grvl"] for r in table])
    y = np.array([float(row["price"]) for row in table])
    tested = np.isin(y, true)
    best = LinearRegression().fit(x[~tested], y[~tested]).score(x[tested], y[tested])
    assert best > 0.99
    assert metrics["test/r2"] > best - 0.005
    # The mean of the training rows, as sklearn's DummyRegressor.
    assert result["baseline"]["test/mae"] == pytest.approx(np.abs(y[tested] - y[~tested].mean()).mean(), rel=0.02)


@pytest.mark.slow
def test_classes_that_a_line_tells_apart_are_learnt_without_a_word_on_how(dlrun: Callable, tmp_path: Path) -> None:
    rows = 500
    draw = np.random.default_rng(0)
    area = draw.normal(120, 40, rows)
    town = draw.choice(["Bern", "Chur", "Zug"], rows)
    # Half of the area is the same column again, and one-hot towns add up to 1.
    score = (area - 120) / 40 + 1.5 * (town == "Zug") + draw.normal(0, 0.3, rows)
    price = np.array(["low", "mid", "high"])[np.digitize(score, [0, 1])]
    lines = [f"{a:.1f},{a / 2:.2f},{t},{p}" for a, t, p in zip(area, town, price, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["area,half,town,price", *lines]))
    words = ("data=table", "data.path=t.csv", "model=logistic", "tracking.simple_models=true", "hydra.run.dir=run")
    outcome = dlrun(*words, *QUIET)
    assert outcome.code == 0, outcome.err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    # On these very rows.
    best = result["simple_models"]["logistic regression"]["test/accuracy"]
    assert result["metrics"]["test/accuracy"] > best - 0.03
    assert best > 0.7


@pytest.mark.slow
def test_eval_of_other_rows_takes_all_of_them_and_says_what_it_did(
    dlrun: Callable, houses: Path, tmp_path: Path
) -> None:
    again = dlrun("eval", "run", "figures=false")
    assert "the same as recorded in training, to the last bit" in again.out
    # As many rows as in training, and other ones.
    write_houses(tmp_path / "other.csv", seed=1)
    other = dlrun("eval", "run", "data.path=other.csv", "figures=false")
    assert "all, as the run has not seen them, 200 rows" in other.out
    assert "recorded in training" not in other.out
    lines = ["price,rooms,color", "600000,3,red", "700000,5,blue"]
    (tmp_path / "few.csv").write_text("\n".join(lines))
    few = dlrun("eval", "run", "data.path=few.csv", "figures=false")
    assert few.code == 0, few.err
    assert "area, street are missing, and filled as gaps of the training table were" in " ".join(few.out.split())
    assert "color is left out: the model does not know it." in few.out
    wrong = dlrun("eval", "run", "data.path=none.csv")
    assert wrong.code == 2
    (tmp_path / "unlike.csv").write_text("a,price\n1,2\n3,4\n")
    wrong = dlrun("eval", "run", "data.path=unlike.csv")
    assert wrong.code == 2
    assert "there is no column area, rooms" in wrong.err


@pytest.mark.slow
def test_predict_takes_rows_in_any_order_and_names_what_is_wrong(dlrun: Callable, houses: Path, tmp_path: Path) -> None:
    first = (tmp_path / "houses.csv").read_text().splitlines()[1].split(",")
    (tmp_path / "new.csv").write_text(
        f"price;street;rooms;area;extra\n?;{first[3]};{first[2]};{first[1]};x\n1;Pave;many;10;y\n"
    )
    outcome = dlrun("predict", "run", "new.csv", "houses.csv", ",".join(first[1:4]), "--format", "csv")
    rows = list(csv.DictReader(outcome.out.splitlines()))
    assert rows[0]["prediction"] == rows[2]["prediction"] == rows[-1]["prediction"]
    assert rows[1]["error"] == "column 'rooms' holds 'many', which is no finite number"
    assert rows[2]["label"] == first[4]
    assert "extra is left out" in outcome.err
    assert 4e5 < float(rows[0]["prediction"]) < 1.2e6


@pytest.mark.slow
@pytest.mark.parametrize("model", ["linear", "tabular"])
def test_a_killed_run_goes_on_to_the_same_bits(model: str, dlrun: Callable, tmp_path: Path) -> None:
    write_houses(tmp_path / "houses.csv", 60)
    words = (*HOUSES, f"model={model}", "trainer.epochs=4")
    assert dlrun(*words, "hydra.run.dir=whole").code == 0
    assert dlrun(*words, "trainer.epochs=2", "hydra.run.dir=half").code == 0
    assert dlrun("resume", "half", "trainer.epochs=4").code == 0
    reference, half = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "half"))
    assert reference["weights_sha256"] == half["weights_sha256"]
    assert reference["metrics"] == half["metrics"]

    # Another file in its place is other data.
    write_houses(tmp_path / "houses.csv", 60, seed=2)
    outcome = dlrun("resume", "half", "trainer.epochs=5")
    assert outcome.code == 2
    assert "the data's description" in outcome.err


@pytest.mark.slow
def test_a_target_by_number_keeps_its_name(dlrun: Callable, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("kind,x\n" + "".join(f"{'ab'[i % 2]},{i % 2}.5\n" for i in range(40)))
    words = ("data=table", "data.path=t.csv", "data.target=0", "model=linear", "trainer.epochs=1", *QUIET)
    assert dlrun(*words, "hydra.run.dir=run").code == 0
    (tmp_path / "new.csv").write_text("x,kind\n0.5,a\n1.5,b\n")
    outcome = dlrun("predict", "run", "new.csv", "--format", "csv")
    assert [row["label"] for row in csv.DictReader(outcome.out.splitlines())] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("a,b,y\n1,2,3\n4,x\n5,6,7\n8,9,1\n2,2,2\n", (), "line 3: 2 fields, where the others have 3"),
        ("a,y\n1,2\n3,\n5,6\n", (), "line 3: column 'y' is empty; the target must be there"),
        ("a,y\n1,2\n3,4\n5,6\n", ("data.drop=[a]",), "no column is left to learn from: a (as typed)"),
        ("a,y\n1,2\n3,4\n5,6\n", ("data.kind={a: number}",), "data.kind"),
        ("a,y\n1,2\n3,4\n5,6\n", ("data.missing=eror",), "did you mean"),
    ],
)
def test_what_cannot_be_used_is_a_sentence_before_anything_is_written(
    dlrun: Callable, tmp_path: Path, text: str, words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "t.csv").write_text(text)
    outcome = dlrun("data=table", "data.path=t.csv", "data.target=y", "model=linear", *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.slow
def test_a_classifier_equals_scikit_learns_on_the_same_rows(dlrun: Callable, tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    draw = random.Random(0)
    rows = []
    for number in range(400):
        sex = draw.choice(["male", "female"])
        cabin = draw.choice(["", "C1", "C2"])
        age = draw.uniform(1, 70)
        survived = draw.random() < 1 / (1 + np.exp(-(2.0 * (sex == "female") - 1 + (cabin == "C1") - age / 50)))
        rows.append([number, "yes" if survived else "no", sex, f"{age:.1f}" if number % 5 else "", cabin])
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["PassengerId", "Survived", "Sex", "Age", "Cabin"], *rows])
    words = ("data=table", "data.path=t.csv", "data.target=Survived", "model=linear", *QUIET)
    outcome = dlrun(*words, "optimizer.lr=0.05", "trainer.epochs=60", "data.val_fraction=0", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert all(len(line) <= 80 for line in outcome.out.splitlines() if not line.startswith("note"))

    import dlrun as api

    run = api.load(str(tmp_path / "run"))
    train, test = run.splits.train, run.splits.test
    model = LogisticRegression(C=np.inf, max_iter=1000).fit(train.inputs[0], train.targets)
    ours = run.predict(test.inputs[0]).probabilities[:, 1].numpy()
    assert np.abs(ours - model.predict_proba(test.inputs[0])[:, 1]).max() < 0.02
    assert json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]["test/accuracy"] == pytest.approx(
        np.mean((ours > 0.5) == test.targets.numpy())
    )


@pytest.mark.slow
def test_a_killed_run_ends_in_the_bits_of_one_left_alone(
    dlrun: Callable, kill_at_save: Callable[..., None], tmp_path: Path
) -> None:
    write_houses(tmp_path / "houses.csv")
    words = [word for word in HOUSES if not word.startswith("model=")]
    words += ["model=tabular", "model.dropout=0.2", "trainer.epochs=4", "checkpoint.every_steps=1"]
    assert dlrun(*words, "hydra.run.dir=whole").code == 0
    kill_at_save(4, *words, "hydra.run.dir=killed")
    assert not (tmp_path / "killed" / "result.json").exists()
    assert dlrun("resume", "killed").code == 0
    whole_run, killed_run = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "killed"))
    assert whole_run["weights_sha256"] == killed_run["weights_sha256"]
    assert whole_run["metrics"] == killed_run["metrics"]


@pytest.mark.slow
def test_cross_validation_is_a_sweep(dlrun: Callable, tmp_path: Path) -> None:
    write_houses(tmp_path / "houses.csv", 100)
    words = (*HOUSES, "trainer.epochs=3", "data.folds=5", "data.fold=range(5)", "optimizer.lr=0.1,0.001")
    outcome = dlrun("-m", *words, "sweep.dir=folds")
    assert outcome.code == 0, outcome.err

    # A row for each rate, with mean and standard deviation over the folds.
    losses: dict[str, list[float]] = {}
    for path in tmp_path.glob("folds/*/result.json"):
        rate = path.parent.name.partition("optimizer.lr=")[2].split(",")[0]
        losses.setdefault(rate, []).append(json.loads(path.read_text())["best"]["value"])
    assert {rate: len(values) for rate, values in losses.items()} == {"0.1": 5, "0.001": 5}
    with (tmp_path / "folds" / "comparison.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["row"] == "setting"]
    assert len(rows) == 2
    for row in rows:
        values = losses[row["lr"] if "lr" in row else row["optimizer.lr"]]
        assert int(row["n"]) == 5
        assert float(row["mean"]) == pytest.approx(statistics.mean(values))
        assert float(row["std"]) == pytest.approx(statistics.stdev(values))
    assert "paired over 5 folds" in outcome.out


@pytest.mark.slow
def test_a_net_that_embeds_categories_is_swept_evaluated_and_asked_like_the_others(
    dlrun: Callable, tmp_path: Path
) -> None:
    write_houses(tmp_path / "houses.csv")
    words = [word for word in HOUSES if not word.startswith("model=")]
    outcome = dlrun("-m", *words, "model=linear,mlp,tabular", "trainer.epochs=30", "sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    scores = {}
    for path in tmp_path.glob("sweep/*/result.json"):
        config = path.parent / ".hydra" / "config.yaml"
        name = next(name for name in ("linear", "mlp", "tabular") if f"dlrun.models.{name}." in config.read_text())
        scores[name] = (path.parent, json.loads(path.read_text())["metrics"]["test/r2"])
    assert scores.keys() == {"linear", "mlp", "tabular"}
    run, score = scores["tabular"]
    assert score > 0.95

    assert "the same as recorded in training, to the last bit" in dlrun("eval", str(run), "figures=false").out
    # A street that training did not have, one that it had, in another order of columns and with one more.
    (tmp_path / "new.csv").write_text("color,street,rooms,area\nred,Mud,3,100\nred,Pave,3,100\nred,Grvl,3,100\n")
    requested = dlrun("predict", str(run), "new.csv", "--format", "csv")
    assert requested.code == 0, requested.err
    mud, pave, gravel = (float(row["prediction"]) for row in csv.DictReader(requested.out.splitlines()))
    assert pave - gravel == pytest.approx(50_000, rel=0.5)
    assert 4e5 < mud < 7e5
    other = dlrun("eval", str(run), "data.path=new.csv", "figures=false")
    assert other.code == 2
    assert "price" in other.err


@pytest.mark.slow
def test_what_is_not_typed_is_chosen_for_tables(dlrun: Callable) -> None:
    config = dlrun("--cfg", "job", "data=table", "data.path=t.csv").out
    for line in ("dlrun.models.tabular.Tabular", "torch.optim.AdamW", "epochs: 200", "patience: 20"):
        assert line in config
    config = dlrun("--cfg", "job", "data=csv", "data.path=t.csv", "model=mlp", "trainer.epochs=3").out
    for line in ("dlrun.models.mlp.MLP", "torch.optim.AdamW", "epochs: 3\n"):
        assert line in config
    config = dlrun("--cfg", "job", "data=digits").out
    for line in ("dlrun.models.mlp.MLP", "torch.optim.Adam\n", "epochs: 20\n", "patience: null"):
        assert line in config
