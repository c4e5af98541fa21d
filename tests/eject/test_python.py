"""`dlrun export format=python`: the written file comes to the weights of the run, to the last bit, without dlrun."""

import json
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from ruff import find_ruff_bin

from dlrun.config.schema import CONFIG_DIR

FILES = """
import runpy

for path in sys.argv[1:]:
    print("file", path)
    runpy.run_path(path, run_name="__main__")
"""
QUIET = ("tracking.graph=false", "tracking.evolution_every_epochs=null", "figures=false")
# How series and texts are read is not written.
NOT_WRITTEN = {"air_passengers", "reviews_gru"}
FILES_OF_LESSONS = {path.stem: path for path in sorted((CONFIG_DIR / "lesson").glob("*.yaml"))}
LESSONS = {name: path for name, path in FILES_OF_LESSONS.items() if name not in NOT_WRITTEN}
IN_FAST_SUITE = ("gradient_descent",)
FEW = ("trainer.epochs=2", "data.limit_batches=4")  # where softmax_mnist and names_rnn read the same data as a whole
CUT = {  # so that a lesson takes seconds; the others are cut to three epochs
    "cnn_mnist": FEW,
    "coarse_to_fine": (),
    "exhaustive_search": (),
    "exhaustive_surface": (),
    "inception_mnist": FEW,
    "mnist_99_fast": FEW,
    "names_gru": FEW,
    "optimizer_race": ("trainer.epochs=2", "data.rows=200"),
    "optimizer_race_all": ("trainer.epochs=2", "data.rows=200"),
    "overfitting": FEW,
    "resnet_mnist": FEW,
    "save_two_ways": ("model.name=squeezenet1_1", "data.batch_size=8"),
}
# Of a sweep whose runs differ in a number one is enough.
ONE_RUN = {
    "diabetes": "seed=1",
    "diabetes_relu": "seed=1",
    "linear_layers_collapse": "model.hidden_sizes=[10,10]",
    "logistic_regression": "seed=1",
    "mini_batch": "data.batch_size=16",
    "parabola_fit": "seed=1",
    "planar_hidden_sizes": "model.hidden_sizes=[20]",
    "rnn_cell": "seed=1",
    "rnn_embedding": "seed=1",
    "rnn_onehot": "seed=1",
    "saddle_point": "data.batch_size=1",
}
NEEDS_DATA = {"names_rnn", "diabetes", "diabetes_relu"}


@pytest.fixture
def eject(dlrun: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., list[str]]:
    """`ejected(*words)`: train what the words ask for, eject every run, and hold each file against its run.

    Returns the texts of the files.
    """

    def run(*words: str, before: str = "", most_lines: int = 170) -> list[str]:
        trained = dlrun(*words, *QUIET, "paths.outputs=trained")
        assert trained.code == 0, trained.out[-2000:] + trained.err
        folders = sorted(path.parent for path in Path("trained").rglob("result.json"))
        assert folders
        for folder in folders:
            outcome = dlrun("export", str(folder), "format=python")
            assert outcome.code == 0, outcome.err
        files = [folder / "export" / "python" / "train.py" for folder in folders]
        outputs = parse_output(plain(before + FILES, *map(str, files)))
        for folder, file in zip(folders, files, strict=True):
            compare(json.loads((folder / "result.json").read_text()), outputs[str(file)])
        look(files, most_lines)
        texts = [file.read_text() for file in files]
        for text in texts:
            assert {"Data", "Net", "Training"} <= set(re.findall(r"^# %% (.*)", text, re.MULTILINE))
        shutil.rmtree("trained")
        return texts

    return run


def parse_output(outcome: Any) -> dict[str, list[str]]:
    """What each file printed, run by a Python that finds neither dlrun nor Hydra."""
    assert outcome.code == 0, outcome.out[-2000:] + outcome.err[-3000:]
    assert not [line for line in outcome.err.splitlines() if "Lazy modules" not in line and "warnings.warn" not in line]
    parts = re.split(r"^file (.*)\n", outcome.out, flags=re.MULTILINE)[1:]
    return {path: text.splitlines() for path, text in zip(parts[::2], parts[1::2], strict=True)}


def compare(result: dict[str, Any], lines: list[str]) -> None:
    """The weights of the file's end are those of the run's end, and its test metrics those of the run."""
    assert f"weights {result['weights_sha256']} as in the run" in lines, lines[-5:]
    metrics = {key: float(value) for key, value in re.findall(r"^(test \w+) (\S+)$", "\n".join(lines), re.MULTILINE)}
    expected = {key.replace("/", " "): value for key, value in result["metrics"].items() if key.startswith("test/")}
    assert bool(metrics) == bool(expected)
    for key, value in metrics.items():
        assert value == pytest.approx(expected[key], rel=1e-5, abs=1e-12), key


def look(files: list[Path], most_lines: int) -> None:
    """A file is a page, and as ruff would have it."""
    config = ("--config", str(Path(__file__).parents[2] / "pyproject.toml"), "--no-cache")
    for words in (("check", *config), ("format", "--diff", *config)):
        outcome = subprocess.run([find_ruff_bin(), *words, *map(str, files)], capture_output=True, text=True)
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    for file in files:
        text = file.read_text()
        assert len(text.splitlines()) <= most_lines, text
        assert "{{" not in text
        assert "{%" not in text


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in IN_FAST_SUITE else pytest.mark.slow) for n in LESSONS]
)
def test_every_lesson_can_be_taken_away(name: str, eject: Callable, formats: Any, request: Any) -> None:
    data = next(
        entry["override /data"] for entry in OmegaConf.load(LESSONS[name]).defaults if "override /data" in entry
    )
    words, before = [f"lesson={name}", *CUT.get(name, ("trainer.epochs=3",))], ""
    if data in ("mnist", "names"):
        words.append("trainer.max_steps=12")
    if name in ONE_RUN:
        words.append(ONE_RUN[name])
    elif "sweep" in OmegaConf.load(LESSONS[name]):
        # A stack equals its runs up to rounding, and a script the run alone to the bit.
        words.append("sweep.stack=off")
    if name in NEEDS_DATA:
        request.getfixturevalue("real_data")
    elif data == "mnist":
        formats.write_mnist(Path("data"), train=600, test=100)
    elif data == "names":
        formats.write_names(Path("data"), train=1200)
    elif data == "cifar10":
        formats.write_cifar10(Path("data"))
        before = (
            "from torchvision.datasets import CIFAR10\n"
            "CIFAR10._check_integrity = lambda self: True\n"
            "import torchvision.datasets.cifar as c\nc.check_integrity = lambda *a: True\n"
        )
    eject(*words, before=before)


BLOBS = ("data=blobs", "data.task=binary", "data.rows_per_class=20", "trainer.epochs=2")
DIGITS = ("data=digits", "data.image_size=8", "data.limit_batches=2", "trainer.epochs=2")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("data=line", "data.rows=20", "model=linear", "trainer.epochs=2", "data._target_=dlrun.data.synthetic.line"),
        (*DIGITS, "data.shuffle=false", "data.drop_last=true", "data.limit_batches=null", "data.train_rows=100"),
        (*BLOBS, "model=logistic", "optimizer=manual_sgd", "device.precision=fp16"),
        (*BLOBS, "model=logistic", "trainer.accumulate_steps=2", "data.batch_size=64", "data.shuffle=false"),
        (*BLOBS, "model=scratch_mlp", "task.loss=bce_with_logits", "model.activation=elu"),
        (*BLOBS, "model=mlp", "scheduler=plateau", "scheduler.warmup_steps=3", "data.val_fraction=0.2"),
    ],
    ids=["line", "last batch dropped", "scaled gradients", "one batch", "by hand", "plateau"],
)
def test_choices_of_no_lesson_can_be_taken_away(words: tuple[str, ...], eject: Callable) -> None:
    eject(*words)


def write_houses(path: Path) -> None:
    """Rows of numbers and texts with gaps, a count, a class and a price."""
    draw = random.Random(0)
    lines = ["id;area;rooms;street;sold;price"]
    for number in range(150):
        area = f"{draw.uniform(40, 300):.2f}" if number % 9 else "NA"
        street = draw.choice(["Pave", "Grvl", ""])
        price = 3e5 + 2e3 * float(area if number % 9 else 100) + draw.gauss(0, 5e3)
        lines.append(f"{number};{area};{draw.randint(1, 4)};{street};{draw.choice(['yes', 'no'])};{price:.0f}")
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("data.target=price",),
        ("data.target=price", "model=linear", "data.test_fraction=0", "trainer.early_stopping.patience=null"),
        ("data.target=sold", "data.drop=[price]", "model.blocks=resnet"),
        ("data.target=sold", "model=mlp", "data.normalize=false", "data.val_fraction=0"),
        ("data.target=rooms", "data.task=multiclass", "trainer.early_stopping.patience=2"),
    ],
    ids=["regression", "linear", "residual", "mlp", "classes"],
)
def test_tables_can_be_taken_away(words: tuple[str, ...], eject: Callable) -> None:
    write_houses(Path("houses.csv"))
    eject("data=table", "data.path=houses.csv", "trainer.epochs=4", *words, most_lines=230)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("data.split=group", "data.split_column=rooms"), "cannot write data.split_column=rooms"),
        (("data.folds=3",), "cannot write data.folds=3"),
        (("data.path=marks.csv",), "cannot write how the numbers of 'area' are read"),
    ],
)
def test_tables_that_cannot_be_written_are_told(
    words: tuple[str, ...], sentence: str, dlrun: Callable[..., Any]
) -> None:
    write_houses(Path("houses.csv"))
    Path("marks.csv").write_text(Path("houses.csv").read_text().replace(";1", ";$1"))
    common = ("data=table", "data.path=houses.csv", "data.target=price", "trainer.epochs=1")
    assert dlrun(*common, *words, *QUIET, "hydra.run.dir=run").code == 0
    refused = dlrun("export", "run", "format=python")
    assert refused.code == 2
    assert sentence in refused.err
    assert not Path("run/export/python").exists()


@pytest.mark.slow
def test_batch_norm_of_one_pixel_rounds_as_in_the_run(eject: Callable) -> None:
    small = ("data=digits", "data.image_size=32", "data.limit_batches=2", "data.batch_size=8", "trainer.epochs=2")
    eject(*small, "model=torchvision", "model.name=mobilenet_v3_small")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("trainer.ema_decay=0.9",), "cannot write trainer.ema_decay=0.9, as averaged weights take more"),
        (("model=mlp", "checkpoint.monitor=train/accuracy", "data.val_fraction=0.2"), "checkpoint.monitor=train/acc"),
        (("optimizer=lbfgs", "trainer.accumulate_steps=2"), "trainer.accumulate_steps with optimizer=lbfgs"),
        (("model=scratch_mlp", "device.precision=bf16"), "device.precision=bf16 with derivatives by hand"),
    ],
)
def test_what_cannot_be_written_is_told(words: tuple[str, ...], sentence: str, dlrun: Callable[..., Any]) -> None:
    trained = dlrun("model=logistic", *BLOBS, *words, *QUIET, "hydra.run.dir=run")
    assert trained.code == 0, trained.err
    refused = dlrun("export", "run", "format=python")
    assert refused.code == 2
    assert sentence in refused.err
    assert not Path("run/export/python").exists()


@pytest.mark.slow
def test_a_member_of_a_stack_is_trained_alone_and_says_why_its_bits_differ(
    dlrun: Callable[..., Any], plain: Callable[..., Any]
) -> None:
    words = ("data=blobs", "model=mlp", "model.hidden_sizes=[6]", "optimizer=adam", "trainer.epochs=2", "figures=false")
    assert dlrun("-m", *words, "seed=range(4)", "sweep.stack=on", "sweep.dir=s").code == 0
    assert dlrun(*words, "seed=2", "hydra.run.dir=alone").code == 0
    member = next(Path("s").glob("*seed=2"))
    assert dlrun("export", str(member), "format=python").code == 0

    file = next(member.glob("export/**/train.py"))
    outcome = plain(FILES, str(file))
    weights = next(line for line in outcome.out.splitlines() if line.startswith("weights "))
    # Of the run alone to the bit.
    assert weights.split()[1] == json.loads(Path("alone/result.json").read_text())["weights_sha256"]
    assert weights.endswith(("as in the run", "not to the bit those of the run, which trained in a stack"))
