"""The course: every lesson composes, says what it is, and comes to what it says."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dlrun.config.schema import CONFIG_DIR
from dlrun.runs import expectations

FILES = {path.stem: path for path in sorted((CONFIG_DIR / "lesson").glob("*.yaml"))}
QUIET = ("figures=false", "tracking.evolution_every_epochs=null", "strict=true")
WHOLE_DATA = {
    "softmax_mnist",
    "cnn_mnist",
    "inception_mnist",
    "mnist_99_fast",
    "names_gru",
    "names_rnn",
    "resnet_mnist",
}
NEEDS_DATA = {"diabetes", "diabetes_relu", "overfitting", *WHOLE_DATA}
NEEDS_DOWNLOAD = {"resnet_cifar10"}
# As far as the expectations of a lesson need; `make course` runs all of each.
CUT = {
    "air_passengers": (
        "sweep.points=['model=linear seed=0',"
        "'model=gru model.hidden_size=32 model.layers=1 model.bidirectional=false seed=0']",
    ),
    "diabetes": ("trainer.epochs=10",),
    "diabetes_relu": ("trainer.epochs=40",),
    "logistic_regression": ("sweep.points=['seed=0']",),
    "optimizer_race": ("trainer.epochs=6", "trainer.log_every_steps=50"),
    "optimizer_race_all": (
        "trainer.epochs=9",
        "trainer.log_every_steps=50",
        # A step of its line search with 20 iterations takes as long as 50 steps of another optimizer.
        "sweep.points=["
        "'optimizer=glob(*,exclude=[exhaustive,numeric_gradient,lbfgs,lbfgs_full])',"
        "'optimizer=lbfgs optimizer.line_search_fn=strong_wolfe optimizer.max_iter=2']",
    ),
    "overfitting": ("trainer.epochs=20", "checkpoint.every_epochs=20"),
    "parabola_fit": ("sweep.points=['seed=range(3)']", "expect=['at least 2: final/mse < 0.01']"),
    "planar_hidden_sizes": ("trainer.epochs=150",),
    "planar_scratch": ("trainer.epochs=150",),
    "reviews_gru": ("sweep.points=['seed=0']", "trainer.epochs=6"),
    "save_two_ways": ("model.name=mobilenet_v3_small",),  # with 2 million weights, of 134 million
    "two_layer_scratch": ("trainer.epochs=20",),
}
pytestmark = pytest.mark.usefixtures("comparison_without_pictures")
QUICK = ("gradient_descent", "backpropagation", "diverging")
OTHERS = sorted(set(FILES) - NEEDS_DATA - NEEDS_DOWNLOAD - set(QUICK))


@pytest.mark.parametrize("name", FILES)
def test_a_lesson_opens_with_what_it_is_and_its_expectations_can_be_read(name: str) -> None:
    lines = FILES[name].read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert len(lines[1]) <= 78
    assert lines[2] == f"# dlrun lesson={name}"
    assert re.match(r"# Source: .+", lines[3])
    comments = [line for line in lines if line.startswith("# ")]
    assert any(line.startswith("# Expect: ") for line in comments)
    config = OmegaConf.load(FILES[name])
    assert config.expect
    for line in config.expect:
        expectations.parse(str(line))
    assert {str(next(iter(entry))) for entry in config.defaults} <= {
        "override /data",
        "override /model",
        "override /optimizer",
        "override /scheduler",
    }


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS if "planar" not in name)]
)
def test_a_lesson_comes_to_what_it_says(name: str, dlrun: Callable[..., Any]) -> None:
    outcome = dlrun(f"lesson={name}", *QUIET, *CUT.get(name, ()))
    assert outcome.code == 0, outcome.out[-3000:] + outcome.err
    assert "NO" not in re.findall(r"\s(yes|NO)\s*$", outcome.out, re.MULTILINE)
    assert "yes" in re.findall(r"\s(yes|NO)\s*$", outcome.out, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["planar_scratch", "planar_hidden_sizes", "diabetes", "diabetes_relu", "overfitting"])
def test_a_longer_lesson_comes_to_what_it_says(name: str, dlrun: Callable[..., Any], request: Any) -> None:
    if name in NEEDS_DATA:
        request.getfixturevalue("real_data")
    outcome = dlrun(f"lesson={name}", *QUIET, *CUT.get(name, ()))
    assert outcome.code == 0, outcome.out[-3000:] + outcome.err


@pytest.mark.slow
def test_scratch_nets_learn_images_of_the_users_own(dlrun: Callable[..., Any], tmp_path: Path, formats: Any) -> None:
    formats.write_folder(tmp_path / "photos", {"cat": 12, "dog": 12})
    own = ("data=image_folder", "data.path=photos", "data.task=binary", "data.image_size=8", "trainer.epochs=5")
    outcome = dlrun("lesson=two_layer_scratch", *own, *QUIET)
    assert outcome.code == 0, outcome.out + outcome.err
    assert outcome.out.count(" yes") == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WHOLE_DATA))
def test_a_lesson_on_much_data_runs(name: str, dlrun: Callable[..., Any], real_data: Path) -> None:
    outcome = dlrun(f"lesson={name}", "trainer.epochs=1", "data.limit_batches=2", "tracking.graph=false")
    assert outcome.code == 0, outcome.err
    assert {"test/accuracy", "test/macro_f1"} <= set(outcome.result["metrics"])
    assert (outcome.folder / "figures" / "confusion.png").is_file()
    assert (outcome.folder / "figures" / "mistakes.png").is_file()


@pytest.mark.slow
def test_the_fast_recipe_learns_from_few_images(dlrun: Callable[..., Any], real_data: Path) -> None:
    words = ("data.train_rows=3000", "expect=['test/accuracy >= 0.94']", *QUIET)
    outcome = dlrun("lesson=mnist_99_fast", *words)
    assert outcome.code == 0, outcome.out[-3000:] + outcome.err


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0}).Reload()


@pytest.mark.slow
def test_the_word_is_logged_after_each_epoch(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("lesson=rnn_embedding", "seed=0", "trainer.epochs=3", "figures=false")
    words = [
        event.tensor_proto.string_val[0].decode()
        for event in events(outcome.folder).Tensors("tagging/train/text_summary")
    ]
    assert len(words) == 3
    assert all(re.fullmatch(r"hello → [ehlo]{5}", text) for text in words)


@pytest.mark.slow
def test_the_fit_is_shown_as_it_evolves(dlrun: Callable[..., Any]) -> None:
    from PIL import Image

    outcome = dlrun("lesson=parabola_fit", "seed=0", "trainer.epochs=20", "checkpoint.every_epochs=20")
    assert [image.step for image in events(outcome.folder).Images("visuals/evolution_fit")] == [1, 10, 20]
    with Image.open(outcome.folder / "figures" / "evolution.gif") as movie:
        assert movie.n_frames == 3  # type: ignore[attr-defined]


@pytest.mark.slow
def test_in_single_precision_gradient_descent_ends_two_millionths_away(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("lesson=gradient_descent", "device.precision=fp32", *QUIET[:2])
    assert outcome.result["measured"]["layers.0.weight"] == pytest.approx(1.9999444396553, abs=2e-6)
    assert [line["ok"] for line in outcome.result["expected"]] == [False, False]


@pytest.mark.slow
def test_a_lesson_changed_so_that_it_misses_says_no_and_fails_only_when_strict(dlrun: Callable[..., Any]) -> None:
    words = ("lesson=gradient_descent", "optimizer.lr=0.02", "figures=false")
    outcome = dlrun(*words)
    assert outcome.code == 0
    assert re.search(r"layers\.0\.weight = 1\.9999444396553 ± 1e-12 +1\.9999999\d+ +NO", outcome.out)
    assert dlrun(*words, "strict=true").code == 1


def test_a_sweep_of_no_lessons_is_an_error(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    outcome = dlrun("-m", "lesson=glob(nothing_of_the_kind*)")
    assert outcome.code == 2
    assert "lesson=glob(nothing_of_the_kind*) names no value at all" in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_several_lessons_end_in_one_table_that_names_those_without_data(
    dlrun: Callable[..., Any], tmp_path: Path
) -> None:
    outcome = dlrun("-m", "lesson=exhaustive_search,cnn_mnist", "figures=false", "paths.data=nowhere")
    assert outcome.code == 1
    (table,) = tmp_path.rglob("expectations.md")
    rows = [line.split(" | ") for line in table.read_text().splitlines()[2:]]
    assert [(row[0], row[-1]) for row in rows] == [
        *[("| exhaustive_search", "yes |")] * 3,
        ("| cnn_mnist", "NO |"),
    ]
    assert "nowhere" in rows[-1][2]
    assert re.search(r"exhaustive_search +weight = 2\.0 +2 +yes", outcome.out)


def test_the_command_lists_every_lesson_with_a_line(dlrun: Callable[..., Any]) -> None:
    lines = dlrun("ls", "lesson").out.splitlines()
    assert [line.split()[0] for line in lines] == list(FILES)
    assert all(len(line) <= 80 and len(line.split()) > 3 for line in lines)
