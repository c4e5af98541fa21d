import importlib
import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "data").glob("*.yaml"))
OF_THE_RUNNER = {"val_fraction"}  # keys of every data set that a file may give a value of its own
WITHOUT_DEFAULT = {"root": "${paths.data}", "path": "???", "x": "???", "y": "???"}
GIVEN_ROWS = {"three_points", "pass_fail", "saddle"}  # the rows are theirs: no defaults of data=points

# What a function does without a key, for saved runs of before it was there, and what a new run does.
CHANGED = {
    "image_folder": {"pixel_range": ((), None), "normalization": ("images", "auto")},
    "arrays": {"layout": ("channels_first", None), "infer_classes": (False, True)},
}


def test_every_option_is_there():
    synthetic = {"line", "regression", "parabola", "blobs", "flower", "points", *GIVEN_ROWS}
    tables = {"csv", "table", "diabetes", "names", "hello", "text", "series"}
    images = {"digits", "mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100"}
    own = {"image_folder", "arrays", "webdataset", "huggingface"}
    assert {path.stem for path in CONFIGS} == synthetic | tables | images | own


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_file_says_what_its_target_takes(path):
    config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    # Which model, optimizer and length of training go with the data.
    config.pop("defaults", None)
    module, name = config.pop("_target_").rsplit(".", 1)
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    taken = {
        key: WITHOUT_DEFAULT[key] if parameter.default is parameter.empty else parameter.default
        for key, parameter in parameters.items()
    }
    # Passed by the builder and by eval: the runner's own key, what a trained model knows, and what a model takes.
    for key in ("val_fraction", "preprocessing", "category_codes"):
        taken.pop(key, None)
    if path.stem in GIVEN_ROWS:
        taken |= {key: config[key] for key in taken}
    for key, (before, now) in CHANGED.get(path.stem, {}).items():
        if key in taken:
            assert taken[key] == before
            taken[key] = now
    own = {key: value for key, value in config.items() if key not in OF_THE_RUNNER}
    assert own == taken
    assert {key: type(value) for key, value in own.items()} == {key: type(v) for key, v in taken.items()}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_file_opens_with_what_it_is_and_its_command(path):
    first, second = path.read_text().splitlines()[:2]
    assert first.startswith("# ")
    assert second.startswith(f"# dlrun data={path.stem} ")
