"""The quick composing of a sweep's points gives what Hydra's own gives, and complains where it complains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dlrun.config import compose, request
from dlrun.config.composer import Composer, to_plain
from dlrun.config.schema import CONFIG_DIR

OWN = {"optimizer/mine.yaml": "_target_: torch.optim.SGD\nlr: ${seed}\n"}
OWN["experiment/mine.yaml"] = "# @package _global_\nseed: 9\n"
OWN["experiment/deep.yaml"] = "# @package _global_\ndefaults:\n  - override /model: linear\ntrainer: {epochs: 3}\n"


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> ConfigLoader:
    """Hydra's loader of our configs, and of a folder of the user's own."""
    folder = tmp_path_factory.mktemp("configs")
    for name, text in OWN.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    compose.register()
    with hydra.initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        hydra_main = GlobalHydra.instance().hydra
        assert hydra_main is not None
        places = hydra_main.config_loader.get_search_path()
    places.prepend("command-line", str(folder), "schema")
    return ConfigLoaderImpl(places)


@pytest.fixture(scope="module")
def composer(loader: ConfigLoader) -> Composer:
    """One for all lines, as in a sweep: nothing of a point may stay for the next one."""
    return Composer(loader)


LINES = [
    [],
    ["seed=3"],
    ["data=blobs", "model=linear", "optimizer=sgd", "scheduler=cosine", "device=cpu"],
    ["model=cnn", "model.channels=[8,16]"],
    ["model.hidden_sizes=[]"],
    ["optimizer.lr=1e-3"],
    ["optimizer.lr=1", "optimizer.lr=2"],
    ["optimizer=sgd", "optimizer=adam"],
    ["optimizer=sgd", "+optimizer.fused=true"],
    ["++optimizer.lr=3", "++optimizer.new=x"],
    ["~optimizer.weight_decay"],
    ["~optimizer.lr=0.001"],
    ["~scheduler"],
    ["+optimizer.groups=[{match: '*.bias', lr: 0.1}]"],
    ["optimizer.groups=[{match: w, lr: 0.1},{match: b}]"],
    ["model.init={w: 1.0, b: {c: [1, 2]}}"],
    ["+model.init={w: 1.0}"],
    ["optimizer={lr: 5}"],
    ["optimizer.lr=0.5", "optimizer={lr: 5}", "optimizer=sgd"],
    ["model.dropout=${seed}"],
    ["seed=${trainer.epochs}", "trainer.epochs=4"],
    ["seed=${hydra:job.num}"],
    ["paths.outputs=${hydra:runtime.choices.model}"],
    ["checkpoint.monitor='${hydra:overrides.task.0}'", "seed=1"][::-1],
    ["optimizer=[sgd,adam]"],
    ["lesson=linear_regression"],
    ["lesson=linear_regression", "optimizer.lr=0.5", "trainer.epochs=2"],
    ["lesson=optimizer_race"],
    ["debug=overfit", "model=mlp"],
    ["experiment=example"],
    ["experiment=deep"],
    ["experiment=mine", "seed=1"],
    ["optimizer=mine", "seed=2"],
    ["trusted_modules=[a,b]", "expect=['steps = 4']", "probes=[1,[2,3]]"],
    ["checkpoint.monitor=null", "trainer.max_steps=10", "figures=False"],
    ["sweep.points=['seed=1','seed=2']"],
    ["trainer.early_stopping.patience=3", "trainer.early_stopping={min_delta: 0.5}"],
    ["paths.data='/a=b'", "paths.outputs='with space, and comma'"],
    ["paths.data=x", "optimizer.lr=0.5", "model.hidden_sizes=[4,2]", "seed=1"],
    ["paths.data=y", "optimizer.lr=0.25", "model.hidden_sizes=[4,2]", "seed=2"],
    ["checkpoint.keep=2", "checkpoint={keep: 3}", "checkpoint.keep=4"],
]
WRONG = [
    ["sedd=1"],
    ["optimizer.nesterov=true"],
    ["optimizer=nothing"],
    ["nothing=sgd"],
    ["+seed=1"],
    ["~nothing"],
    ["~seed=5"],
    ["trainer.epochs=many"],
    ["seed=[1"],
    ["optimizer=1"],
    ["lesson=null"],
    ["~trainer.epochs"],
    ["++optimizer=sgd"],
    ["+optimizer=sgd"],
    ["~optimizer=sgd"],
    ["optimizer@other=sgd"],
    ["nothing@seed=1"],
    ["seed.x=1"],
    ["lesson=optimizer_race", "lesson=linear_regression", "lesson=nothing"],
    ["=1"],
]


def hydras_own(loader: ConfigLoader, words: list[str], number: int) -> tuple[object, object]:
    """What Hydra makes of it, and what it knows of the job."""
    reference = loader.load_configuration("config", words, RunMode.RUN)
    reference.hydra.job.num, reference.hydra.job.id = number, number
    HydraConfig.instance().set_config(reference)
    known = OmegaConf.to_container(reference.hydra, resolve=False)
    del reference._content["hydra"]  # type: ignore[union-attr]
    return plain(reference), known


def plain(config: object) -> object:
    return [OmegaConf.to_container(config, resolve=resolve) for resolve in (False, True)]  # type: ignore[call-overload]


def compose_fast(lines: list[list[str]]) -> list[Any]:
    """Hydra's own way takes 75 ms a line."""
    return [line if i % 5 == 2 else pytest.param(line, marks=pytest.mark.slow) for i, line in enumerate(lines)]


@pytest.mark.slow
@pytest.mark.parametrize("words", compose_fast(LINES), ids=" ".join)
def test_the_config_and_what_hydra_knows_of_it_are_hydras_own(
    words: list[str], composer: Composer, loader: ConfigLoader
) -> None:
    composed = composer.compose(words, 7)
    plain_config, known = plain(composed), OmegaConf.to_container(HydraConfig.get(), resolve=False)
    expected, truly_known = hydras_own(loader, words, 7)
    assert plain_config == expected
    assert OmegaConf.is_struct(composed)
    assert known == truly_known


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_plain_values_are_those_of_the_config(words: list[str], composer: Composer) -> None:
    try:
        expected = to_plain(composer.compose(words, 7))
    except OmegaConfBaseException:
        # Some lines name what only a whole command line has.
        return
    known = OmegaConf.to_container(HydraConfig.get(), resolve=False)
    for _ in range(2):
        point = composer.compose_plain(words, 7)
        assert (to_plain(point) if isinstance(point, DictConfig) else point) == expected
        assert repr(point if isinstance(point, dict) else expected) == repr(expected)
        assert OmegaConf.to_container(HydraConfig.get(), resolve=False) == known
    assert to_plain(composer.compose([])) == to_plain(composer.compose([], 1))


@pytest.mark.parametrize(
    ("words", "is_plain"),
    [
        (["optimizer.lr=1", "seed=2", "data=blobs"], True),
        (["optimizer.lr=1"] * 2, True),
        (["device.timeout_seconds=5"], True),
        (["resume=null", "run.name='a b'", "trainer.max_steps=3"], True),
        # Other keys name these.
        (["trainer.ema_decay=0.5", "seed=1"], True),
        (["paths.data=x", "data=mnist"], True),
        (["checkpoint={keep: 3}"], True),
        (["+model.new=1", "model.dropout=0.1"], True),
        (["model.hidden_sizes=[1]", "seed=1"], True),
        (["model.dropout=${seed}"], True),
        (["model.dropout=${seed}", "seed=2"], False),
        (["seed=${hydra:job.num}"], False),
        (["model._target_=a.B"], False),
        # The order counts.
        (["optimizer.lr=1", "optimizer={lr: 5}"], False),
        (["optimizer={lr: 5}", "optimizer.lr=1"], False),
    ],
    ids=str,
)
def test_numbers_and_words_need_no_config_of_their_own(words: list[str], is_plain: bool, composer: Composer) -> None:
    point = composer.compose_plain(words)
    assert isinstance(point, dict) == is_plain
    plain_config = to_plain(point) if isinstance(point, DictConfig) else point
    assert plain_config == to_plain(composer.compose(words))
    if words[0] == "device.timeout_seconds=5":
        # As the schema has it.
        assert type(plain_config["device"]["timeout_seconds"]) is float
    if is_plain:
        plain_config["optimizer"]["lr"] = 99
        plain_config["expect"].append(1)
        assert composer.compose_plain(words) == to_plain(composer.compose(words))


@pytest.mark.parametrize("words", compose_fast(WRONG), ids=" ".join)
def test_plain_values_are_refused_as_hydra_does(words: list[str], composer: Composer) -> None:
    known = (HydraException, OmegaConfBaseException, ValueError)
    with pytest.raises(known) as expected:
        composer.compose(words)
    with pytest.raises(known) as caught:
        composer.compose_plain(words)
    assert str(caught.value) == str(expected.value)
    assert to_plain(composer.compose([]))["trainer"]["epochs"] == 20


@pytest.mark.parametrize("words", compose_fast(WRONG), ids=" ".join)
def test_it_complains_as_hydra_does(words: list[str], composer: Composer, loader: ConfigLoader) -> None:
    known = (HydraException, OmegaConfBaseException, ValueError)
    with pytest.raises(known) as expected:
        hydras_own(loader, words, 0)
    with pytest.raises(known) as caught:
        composer.compose(words)
    assert caught.type is expected.type
    assert str(caught.value) == str(expected.value)


def test_a_point_leaves_nothing_for_the_next(composer: Composer, loader: ConfigLoader) -> None:
    composer.compose(["optimizer.lr=7", "+model.new=1"])["optimizer"]["lr"] = 8
    assert plain(composer.compose([])) == hydras_own(loader, [], 0)[0]


@pytest.mark.slow
def test_hydra_reads_the_defaults_list_once_for_equal_choices(
    loader: ConfigLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    for name in ("load_configuration", "get_group_options"):
        original = getattr(loader, name)
        monkeypatch.setattr(loader, name, lambda *a, o=original, n=name: (reads.append(n), o(*a))[1])
    composer = Composer(loader)
    for i in range(20):
        composer.compose(["optimizer=sgd", "optimizer.lr=0.1", f"seed={i}"], i)
    assert sorted(reads) == ["get_group_options"] * 2 + ["load_configuration"]  # of optimizer, of seed


@pytest.mark.slow
def test_a_folder_of_the_users_own_is_swept_over(dlrun: Callable, tmp_path: Path) -> None:
    (tmp_path / "mine" / "optimizer").mkdir(parents=True)
    (tmp_path / "mine" / "optimizer" / "mine.yaml").write_text(OWN["optimizer/mine.yaml"])
    requests = request.from_command_line(["-m", "--config-dir", "mine", "optimizer=mine,sgd", "seed=1,2"])
    assert [one.config["optimizer"]["lr"] for one in requests] == [1, 2, 0.01, 0.01]
    assert [one.hydra["job"]["num"] for one in requests if one.hydra] == [0, 1, 2, 3]


REMEMBERED = [
    ["data=blobs", "model=linear", "seed=3"],
    ["lesson=linear_regression"],
    ["+optimizer/mine=x"],
    ["experiment=nothing"],
]


@pytest.mark.slow
def test_what_the_tests_remember_is_what_hydra_makes(
    loader: ConfigLoader, composed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words' values differ between the two times: nothing of them may be remembered."""
    compose.register()
    with hydra.initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        hydra_main = GlobalHydra.instance().hydra
        assert hydra_main is not None
        own = hydra_main.config_loader

    def outcome(place: ConfigLoader, words: list[str]) -> object:
        try:
            return hydras_own(place, words, 0)
        except (HydraException, OmegaConfBaseException) as error:
            return type(error), str(error)

    own_files = (["experiment=mine", "seed=1"], ["optimizer=mine"], ["experiment=nothing"])
    for place, words in [*((own, words) for words in REMEMBERED), *((loader, words) for words in own_files)]:
        outcome(place, [*words, "trainer.epochs=7", "+model.new=1"])
        later = outcome(place, [*words, "trainer.log_every=5"])
        with monkeypatch.context() as patch:
            patch.setattr(composed, "knows", lambda key, repo: False)
            patch.setattr("hydra._internal.defaults_list._create_interpolation_map", composed.create_interpolation_map)
            assert outcome(place, [*words, "trainer.log_every=5"]) == later


@pytest.mark.parametrize("step", ["load", "create_defaults_list", "merge"])
def test_what_was_composed_before_is_remembered(step: str, composed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compose.compose_config(["data=blobs"])

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("it is made anew")

    monkeypatch.setattr(composed, step, refuse)
    assert compose.compose_config(["data=blobs", "seed=3"]).seed == 3


@pytest.mark.slow
def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    for rate in (0.5, 0.25):
        (tmp_path / "optimizer" / "mine.yaml").write_text(f"_target_: torch.optim.SGD\nlr: {rate}\n")
        (one_request,) = request.from_command_line(["--config-dir", str(tmp_path), "optimizer=mine"])
        assert one_request.config["optimizer"]["lr"] == rate


def test_points_with_lists_of_their_own_each_keep_theirs(composer: Composer) -> None:
    for size in (*range(1, 20), 1):
        point = composer.compose_plain([f"model.hidden_sizes=[{size}]", f"seed={size}"])
        assert isinstance(point, dict)
        assert (point["model"]["hidden_sizes"], point["seed"]) == ([size], size)
