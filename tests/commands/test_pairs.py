"""Every data × model pair: those that fit train a step, every other one is refused with its sentence.

The data are small files in the byte formats that the real sets are published in, read by the real readers.
"""

import gzip
import importlib.util
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dlrun.config.compose import compose_config, resolve
from dlrun.config.schema import CONFIG_DIR
from dlrun.config.settings import Settings, read_settings
from dlrun.core.errors import MisfitError
from dlrun.engine import device
from dlrun.engine.state import TrainState
from dlrun.engine.trainer import Trainer
from dlrun.experiment import setup

DATA = sorted(path.stem for path in (CONFIG_DIR / "data").glob("*.yaml"))
MODELS = sorted(path.stem for path in (CONFIG_DIR / "model").glob("*.yaml"))
IMAGES = {
    "digits",
    "mnist",
    "fashion_mnist",
    "kmnist",
    "cifar10",
    "cifar100",
    "image_folder",
    "webdataset",
    "huggingface",
}
REGRESSIONS = {"line", "regression", "parabola", "points", "three_points", "saddle"}
TAGGED = {"hello"}
WINDOWS = {"series"}
SEQUENCES = {"names", "text", *TAGGED}
TAKES = {
    "linear": set(DATA) - SEQUENCES,
    "mlp": set(DATA) - SEQUENCES,
    "scratch_mlp": set(DATA) - SEQUENCES - WINDOWS,
    "tabular": set(DATA) - SEQUENCES - WINDOWS - IMAGES,
    "sequential": set(DATA) - SEQUENCES,
    "logistic": set(DATA) - SEQUENCES - REGRESSIONS - WINDOWS,
    **dict.fromkeys(("cnn", "inception", "resnet", "torchvision", "timm"), IMAGES),
    **dict.fromkeys(("rnn", "lstm", "gru", "transformer"), SEQUENCES | WINDOWS),
    **dict.fromkeys(("rnn_onehot", "rnn_cell"), TAGGED),
}
IN_FAST_SUITE = ("line", "pass_fail", "blobs", "digits", "names", "hello", "csv")  # one of each kind
WITHOUT_TIMM = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
OPTIONAL = {"webdataset": "webdataset", "huggingface": "datasets"}  # data whose library may be missing
SLOW = [  # importing them takes seconds
    pytest.param("torchvision", marks=pytest.mark.slow),
    pytest.param("timm", marks=[pytest.mark.slow, WITHOUT_TIMM]),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, formats: ModuleType) -> Path:
    """A folder with every data set that is read from files."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("MNIST", "FashionMNIST", "KMNIST"):
        formats.write_mnist(folder, name)
    formats.write_cifar10(folder)
    formats.write_cifar100(folder)
    formats.write_folder(folder / "photos", {"cat": 6, "dog": 6})
    formats.write_digit_shards(folder / "shards", rows=40, shards=2)
    formats.write_digits_as_parquet(folder / "set.parquet", rows=40)
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.normal(size=(40, 8)).round(3), np.arange(40) % 2])
    text = "\n".join(",".join(f"{cell:g}" for cell in row) for row in rows)
    (folder / "diabetes.csv.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "table.csv").write_text(text)
    (folder / "texts.csv").write_text("text,label\n" + "".join(f"good {'ab'[i % 2]},{i % 2}\n" for i in range(40)))
    (folder / "arrays").mkdir()
    np.save(folder / "arrays" / "x.npy", rows[:, :-1])
    np.save(folder / "arrays" / "y.npy", np.arange(40) % 3)
    for part in ("train", "test"):
        (folder / f"names_{part}.csv").write_text(
            "".join(f"Name{c},{'AB'[i % 2]}land\n" for i, c in enumerate("abcdefgh"))
        )
    return folder


@cache
def read(root: Path, group: str, option: str) -> Settings:
    """The settings for one choice; composing and reading each pair anew would take nine tenths of this file's time."""
    composed = compose_config([f"{group}={option}", "device=cpu"])
    composed.trainer.max_steps = 1
    composed.paths.data = str(root)
    if option in ("csv", "table"):
        composed.data.path = str(root / "table.csv")
    if option == "series":
        composed.data.path, composed.data.window = str(root / "table.csv"), 4
    if option == "text":
        composed.data.path = str(root / "texts.csv")
    if option == "arrays":
        composed.data.path = str(root / "arrays")
    if option == "points":
        composed.data.x, composed.data.y = [1, 2], [[2], [4]]
    if option == "webdataset":
        composed.data.path, composed.data.image_size = str(root / "shards"), 32
    if option == "huggingface":
        composed.data.path, composed.data.image_size = str(root / "set.parquet"), 32
    if option == "image_folder":
        composed.data.path, composed.data.image_size = str(root / "photos"), 32
    choices = {"data": "digits", "model": "mlp", "optimizer": "adam", "scheduler": "none", group: option}
    return read_settings(resolve(composed), choices)


def train(data: str, model: str, root: Path) -> TrainState:
    """One optimizer step of a pair, the way a run makes it."""
    of_model = read(root, "model", model)
    settings = replace(read(root, "data", data), model=of_model.model)
    with device.device_session(settings.device, 0) as process:
        parts = setup.prepare(settings, process, None)
        Trainer(parts.state, [], lambda: False).fit()
    return parts.state


@pytest.mark.parametrize("data", [d if d in IN_FAST_SUITE else pytest.param(d, marks=pytest.mark.slow) for d in DATA])
@pytest.mark.parametrize("model", [*(m for m in MODELS if m not in ("torchvision", "timm")), *SLOW])
def test_pair(data: str, model: str, root: Path) -> None:
    if data in OPTIONAL:
        pytest.importorskip(OPTIONAL[data])
    if data in TAKES[model]:
        training = train(data, model, root)
        assert training.progress.step == 1
        assert np.isfinite(training.progress.last_finite_loss)
        return
    with pytest.raises(MisfitError) as refused:
        train(data, model, root)
    sentence = str(refused.value)
    assert f"model={model} does not take data={data}" in sentence
    listed = sentence.split("models that do: ")[1].split(", ")
    assert listed == sorted(m for m in MODELS if data in TAKES[m])


def test_every_model_is_in_the_table() -> None:
    assert set(TAKES) == set(MODELS)
    assert set(DATA) >= IMAGES | REGRESSIONS | SEQUENCES | WINDOWS
