"""Wrong requests: each a sentence that names what was wrong, exit code 2, nothing written, no traceback."""

import gzip
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from omegaconf import OmegaConf

from dlrun.config import explain
from dlrun.config.compose import GROUPS, compose_config
from dlrun.config.schema import CONFIG_DIR

WRONG = [
    ("model=resnett", "did you mean model=resnet?"),
    ("modle=mlp", "did you mean model"),
    ("trainer.epoch=3", "trainer.epochs"),
    ("optimizer.momentum=0.9", "momentum and nesterov and rmsprop and sgd (type optimizer=momentum) have it"),
    ("trainer.epochs=abc", "trainer.epochs"),
    ("optimizer.lr=abc", "optimizer.lr='abc' must be a number"),
    ("data.loader=fast", "type one of auto, memory, workers"),
    ("model.init={layers.1.weight: [1, 2]}", "model.init.layers.1.weight"),
    ("model._target_=nowhere.Net", "there is no module nowhere"),
    ("task.loss=mse", "type one of cross_entropy"),
    ("device.index=1", "device.index"),
    ("optimizer.groups=[{match: nothing, lr: 0.1}]", "no parameter is left that matches"),
    ("init_from=nowhere", "there is no run or checkpoint nowhere"),
    ("paths.outputs=/proc/nothing", "paths.outputs"),
    ("trainr.epochs=[1", "cannot be read as key=value"),
    ("evl", "did you mean dlrun eval?"),
    ("data=image_folder", "data.path has no value yet"),
]
MORE = [  # other keys, the same checks
    ("data=mnst", "data=mnist"),
    ("data.path=x.csv", "arrays and csv and huggingface and image_folder (type data=arrays) have it"),
    ("trainer.epochs=", "trainer.epochs"),
    ("trainer.epochs=0", "trainer.epochs=0 must be above 0"),
    ("+trainer.epoch=3", "did you mean trainer.epochs?"),
    ("optimizer.betas=[2.0,0.9]", "optimizer.betas"),
    ("data.val_fraction=1.2", "data.val_fraction=1.2 must be below 1"),
    ("data.test_fraction=7", "data.test_fraction"),
    ("model.hidden_sizes=64", "model.hidden_sizes=64 must be a list"),
    ("model.activation=rellu", "did you mean relu"),
    ("+model.depth=3", "model=mlp has no setting model.depth"),
    ("model.init={nothing: 1.0}", "model.init.nothing"),
    ("optimizer._target_=torch.nn.Linear", "optimizer"),
    ("checkpoint.monitor=val/acc", "did you mean val/accuracy?"),
    ("device.precision=fp8", "type one of fp32, bf16, fp16, fp64"),
    ("device=mps", "device mps is not on this machine, which has"),
    ("seed=-1", "seed=-1 must be at least 0"),
    ("optimizer.groups=[{lr: 0.1}]", "optimizer.groups[0] needs a pattern"),
    ("lesson=resnet", "did you mean lesson=resnet_mnist"),
    ("optimzer=sgd", "did you mean optimizer"),
    ("epochs=3", "trainer.epochs"),
    ("lr=0.1", "optimizer.lr"),
    ("batch_size=3", "data.batch_size"),
    ("data.batchsize=3", "data.batch_size"),
    ("trainer.epochs=1.5", "trainer.epochs"),
    ("optimizer.lr=-1", "optimizer.lr=-1"),
    ("optimizer.betas=[0.9]", "optimizer"),
    ("data.batch_size=0", "data.batch_size=0 must be above 0"),
    ("data.batch_size=abc", "data.batch_size"),
    ("data.val_fraction=-0.1", "data.val_fraction=-0.1 must be at least 0"),
    ("data.drop_last=perhaps", "data.drop_last"),
    ("model.hidden_sizes=[64,0]", "model.hidden_sizes"),
    ("model.dropout=2", "model.dropout"),
    ("model._target_=torch.nn.Lineer", "model._target_=torch.nn.Lineer"),
    ("task.reduction=max", "task.reduction=max is not a choice"),
    ("scheduler.warmup_steps=-1", "scheduler.warmup_steps=-1"),
    ("checkpoint.mode=up", "type one of min, max"),
    ("checkpoint.format=onnx", "type one of state_dict, full"),
    ("device=gpu", "device=gpu is not a choice"),
    ("seed=x", "seed"),
    ("trian", "neither a command nor key=value"),
    ("data=csv", "data.path has no value yet"),
]


def check(outcome: object, message: str = "") -> None:
    """The shape of every refusal."""
    assert outcome.code == 2, outcome.out + outcome.err  # type: ignore[attr-defined]
    assert "Traceback" not in outcome.err + outcome.out  # type: ignore[attr-defined]
    lines = [line for line in outcome.err.splitlines() if line]  # type: ignore[attr-defined]
    assert len(lines) == 1, lines
    assert lines[0].startswith("dlrun: ")
    assert message in lines[0]


@pytest.mark.parametrize(("word", "message"), [*WRONG, *(pytest.param(*more, marks=pytest.mark.slow) for more in MORE)])
def test_a_wrong_word_is_a_sentence(dlrun: Callable, tmp_path: Path, word: str, message: str) -> None:
    if word == "device=mps" and sys.platform == "darwin":
        pytest.skip("this machine may have mps")
    check(dlrun(word), message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", [("scheduler=one_cycle", "scheduler.total_steps=5"), ("scheduler=step", "scheduler.gamma=x")]
)
def test_wrong_schedules(dlrun: Callable, words: tuple[str, ...]) -> None:
    check(dlrun(*words), "scheduler.")


def test_images_too_small_for_the_net_name_the_size_to_type(dlrun: Callable) -> None:
    check(dlrun("model=cnn", "data.image_size=8"), "type data.image_size=28")


def typos(rng: random.Random, word: str) -> Iterator[str]:
    """Words at edit distance 1."""
    place = rng.randrange(1, len(word))
    yield word[:place] + word[place + 1 :]
    yield word[:place] + rng.choice("abcdefgh") + word[place:]
    if place + 1 < len(word):
        yield word[:place] + word[place + 1] + word[place] + word[place + 2 :]


@pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_typos_of_every_key_name_the_key(every: int) -> None:
    config = compose_config([])
    keys = [key for key in explain.iter_keys(config) if "_target_" not in key]
    rng = random.Random(0)
    missed = []
    for key in keys[::every]:
        for typo in typos(rng, key.rpartition(".")[2]):
            wrong = key[: len(key) - len(key.rpartition(".")[2])] + typo
            if wrong not in keys and key not in explain.explain_unknown_key(wrong, config):
                missed.append((wrong, key))
    assert len(missed) <= 0.03 * 3 * len(keys[::every]), missed


@pytest.mark.slow
def test_typos_of_every_option_name_the_option(dlrun: Callable) -> None:
    rng = random.Random(1)
    for group in ("data", "model", "optimizer", "scheduler"):
        for path in (CONFIG_DIR / group).glob("*.yaml"):
            typo = next(t for t in typos(rng, path.stem))
            if not (path.parent / f"{typo}.yaml").exists():
                check(dlrun(f"{group}={typo}"), f"{group}={path.stem}")


TABLES = {
    "text in a number column": ("1,2,0\n3,x,1\n5,6,0\n7,8,1\n", "x"),
    "nan": ("1,2,0\n3,2,nan\n5,6,0\n7,8,1\n", "line 2"),
    "empty field": ("1,2,0\n3,2,\n5,6,0\n7,8,1\n", "line 2"),
    "one row": ("1,2,0\n", "row"),
    "ragged": ("1,2,0\n3,4\n5,6,1\n", "line 2"),
    "one class": ("1,2,0\n3,4,0\n5,6,0\n7,8,0\n", "class"),
    "empty file": ("", "empty"),
}


@pytest.mark.parametrize(
    "name", [name if name in ("nan", "ragged") else pytest.param(name, marks=pytest.mark.slow) for name in TABLES]
)  # tests/data/test_table.py and test_tabular.py have them all, without a command line
def test_broken_tables(dlrun: Callable, tmp_path: Path, name: str) -> None:
    content, message = TABLES[name]
    (tmp_path / "table.csv").write_text(content)
    outcome = dlrun("data=csv", "data.path=table.csv")
    check(outcome, message)
    assert "table.csv" in outcome.err


def test_a_missing_and_an_unreadable_table(dlrun: Callable, tmp_path: Path) -> None:
    check(dlrun("data=csv", "data.path=none.csv"), "none.csv")
    (tmp_path / "t.csv.gz").write_bytes(b"1,2,0\n")
    check(dlrun("data=csv", "data.path=t.csv.gz"), "t.csv.gz")
    (tmp_path / "folder").mkdir()
    check(dlrun("data=csv", "data.path=folder"), "folder")
    if os.geteuid() != 0:
        (tmp_path / "locked.csv").write_text("1,2,0\n")
        (tmp_path / "locked.csv").chmod(0)
        check(dlrun("data=csv", "data.path=locked.csv"), "locked.csv")


def test_labels_out_of_range(dlrun: Callable, tmp_path: Path, formats: ModuleType) -> None:
    import numpy as np

    formats.write_mnist(tmp_path)
    labels = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    labels.write_bytes(formats.idx_bytes(np.arange(20) % 11))
    check(dlrun("data=mnist", f"paths.data={tmp_path}"), "train-labels-idx1-ubyte")


@pytest.mark.slow
def test_a_broken_image(dlrun: Callable, tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (40, 40), (10 * i, 0, 0)).save(tmp_path / "photos" / name / f"{i}.png")
    (tmp_path / "photos" / "dog" / "bad.png").write_bytes(b"not an image")
    for loader in ("memory", "workers"):
        outcome = dlrun(
            "data=image_folder", "data.path=photos", "model=cnn", f"data.in_memory={str(loader == 'memory').lower()}"
        )
        check(outcome, "bad.png")


@pytest.mark.slow
def test_a_download_that_is_impossible(dlrun: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import socket

    def refuse(*where: object, **how: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    outcome = dlrun("data=diabetes", f"paths.data={tmp_path / 'none'}")
    check(outcome, "diabetes.csv.gz")
    assert "digits" in outcome.err
    assert "paths.data=" in outcome.err


@pytest.mark.slow
def test_names_with_other_letters_are_read_and_said(dlrun: Callable, tmp_path: Path) -> None:
    for part in ("train", "test"):
        with gzip.open(tmp_path / f"names_{part}.csv.gz", "wt", encoding="utf-8") as file:
            file.write("".join(f"{name},{land}\n" for name, land in [("Müller", "German"), ("王", "Chinese")] * 10))
    outcome = dlrun(
        "data=names",
        "model=gru",
        f"paths.data={tmp_path}",
        "trainer.max_steps=1",
        "figures=false",
        "tracking.graph=false",
    )
    assert outcome.code == 0, outcome.err
    assert "note: " in outcome.out


def test_not_enough_disk(dlrun: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    check(dlrun(), "free")


def test_a_loss_that_is_not_finite_stops_the_run(dlrun: Callable, tmp_path: Path) -> None:
    outcome = dlrun(
        "data=line", "model=linear", "optimizer=sgd", "optimizer.lr=1e6", "tracking.graph=false", "figures=false"
    )
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    for word in ("the loss is", "at step", "last finite loss", "smaller optimizer.lr"):
        assert word in outcome.err
    (result,) = tmp_path.rglob("result.json")
    assert '"status": "failed"' in result.read_text()


@pytest.mark.slow
def test_every_group_of_the_contract_has_options() -> None:
    assert all(list((CONFIG_DIR / group).glob("*.yaml")) for group in GROUPS)
    for path in CONFIG_DIR.glob("*/*.yaml"):
        lines = path.read_text().splitlines()
        comments = [line for line in lines[:3] if line.startswith("# ") and "@package" not in line]
        assert "dlrun" in comments[1], path
        assert isinstance(OmegaConf.load(path), type(OmegaConf.create({}))), path


@pytest.mark.parametrize(
    "words",
    [
        ("trainer.epochs=abc,1",),
        pytest.param(("trainer.epochs=1,abc",), marks=pytest.mark.slow),
        ("optimizer.lr=-1,-2",),
        ("optimizer=glob(zz*)",),
    ],
)
def test_a_wrong_sweep_leaves_nothing_behind(dlrun: Callable, tmp_path: Path, words: tuple[str, ...]) -> None:
    outcome = dlrun("-m", *words)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert [path for path in tmp_path.rglob("*") if path.name != "outputs"] == []
