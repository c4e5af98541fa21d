"""What the user types is heeded, or dlrun says that it is not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

QUIET = ("tracking.graph=false", "figures=false", "data=line", "model=linear", "optimizer=sgd")


@pytest.mark.slow
def test_typed_steps_alone_end_the_training(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun(*QUIET, "trainer.max_steps=23", "data.batch_size=1000")
    assert outcome.code == 0, outcome.err
    assert (outcome.result["steps"], outcome.result["epochs"]) == (23, 23)  # more than the 20 epochs by default
    assert "note: trainer" not in outcome.out
    longer = dlrun("resume", str(outcome.folder), "trainer.max_steps=25")
    assert longer.code == 0, longer.err
    assert json.loads((outcome.folder / "result.json").read_text())["steps"] == 25
    reference = dlrun(*QUIET, "trainer.max_steps=25", "data.batch_size=1000")
    assert (outcome.folder / "metrics.jsonl").read_bytes().count(b"\n") == 25
    assert (
        json.loads((outcome.folder / "result.json").read_text())["weights_sha256"] == reference.result["weights_sha256"]
    )


def test_epochs_that_end_before_the_steps_are_named(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun(*QUIET, "trainer.epochs=3", "trainer.max_steps=30", "data.batch_size=1000")
    assert outcome.result["steps"] == 3
    message = (
        "note: trainer.epochs=3 ends the training after 3 steps, before trainer.max_steps=30; type trainer.epochs=null"
    )
    assert message in outcome.out


def test_a_training_without_an_end_is_refused(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    outcome = dlrun(*QUIET, "trainer.epochs=null")
    assert outcome.code == 2
    assert "trainer.epochs=null never ends; type trainer.max_steps=<steps> too" in outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_schedule_spans_the_steps(interval: str, dlrun: Callable[..., Any]) -> None:
    outcome = dlrun(*QUIET, "trainer.max_steps=30", "scheduler=cosine", f"scheduler.interval={interval}")
    other = dlrun(
        *QUIET, "trainer.max_steps=30", "trainer.epochs=30", "scheduler=cosine", f"scheduler.interval={interval}"
    )
    assert outcome.result["weights_sha256"] == other.result["weights_sha256"]


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("hydra.job.chdir=true", "a run stays in the working directory"),
        ("hydra.job.name=mine", "type hydra.run.dir=<folder>"),
        ("+hydra.job.env_set.A=1", "NAME=value dlrun"),
        ("hydra.output_subdir=other", "always lies in .hydra"),
        ("hydra.verbose=true", "type -v"),
        ("hydra/job_logging=default", "run.log"),
        ("+hydra.callbacks.mine._target_=x.Y", "leave it out"),
        ("hydra/launcher=basic", "type sweep.jobs="),
        ("hydra/launcher=joblib", "type sweep.jobs="),
        ("hydra/launcher=ray", "type sweep.engine=ray"),
        ("hydra/launcher=submitit_slurm", "type sweep.engine=slurm,"),
        ("hydra/launcher=submitit_local", "type sweep.engine=slurm sweep.slurm.cluster=local"),
        ("hydra.launcher.partition=gpu", "type sweep.slurm.partition=gpu"),
        ("hydra/sweeper=basic", "sweep.points"),
    ],
)
def test_keys_of_hydra_without_effect_are_refused(
    word: str, instead: str, dlrun: Callable[..., Any], tmp_path: Path
) -> None:
    outcome = dlrun(*QUIET, word)
    assert outcome.code == 2
    assert outcome.err.startswith(f"dlrun: {word} has no effect in dlrun: ")
    assert instead in outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_keys_without_effect_are_named(dlrun: Callable[..., Any]) -> None:
    words = (
        "data.num_workers=2",
        "data.loader=memory",
        "data.memory_share=0.1",
        "scheduler.interval=step",
        "strict=true",
    )
    more = (
        "trainer.early_stopping.min_delta=0.1",
        "device=cpu",
        "device.timeout_seconds=9",
        "device.channels_last=true",
    )
    outcome = dlrun(*QUIET, "trainer.max_steps=1", *words, *more, "device.cuda_graph=off")
    assert outcome.code == 0, outcome.err
    named = [line.split()[1] for line in outcome.out.splitlines() if "has no effect here" in line]
    assert named == [
        "data.num_workers", "data.memory_share", "scheduler.interval", "trainer.early_stopping.min_delta", "strict",
        "device.cuda_graph", "device.timeout_seconds", "device.channels_last",
    ]  # fmt: skip
    for command in ("eval", "predict", "export"):
        refused = dlrun(command, str(outcome.folder), "trainer.epochs=5")
        assert refused.code == 2
        assert f"trainer.epochs=5 is for training, and has no effect on dlrun {command}" in refused.err


TEN_POINTS = (
    *QUIET[:2],
    "data=points",
    "data.x=[0,1,2,3,4,5,6,7,8,9]",
    "data.y=[0,1,2,3,4,5,6,7,8,9]",
    "model=linear",
    "optimizer.lr=0.01",
    "trainer.max_steps=1",
)


@pytest.mark.slow
def test_dropping_the_last_batch_is_named_where_it_drops_nothing(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun(*TEN_POINTS, "data.drop_last=true", "data.batch_size=5")
    assert "note: data.drop_last has no effect here: 10 training rows fill their batches of 5" in outcome.out
    outcome = dlrun(*TEN_POINTS, "data.drop_last=true", "data.batch_size=4")
    assert "has no effect" not in outcome.out


def _list_notes(outcome: Any) -> list[str]:
    """What is said to have no effect, once each."""
    return [line.split(" has no effect")[0] for line in outcome.out.splitlines() if "has no effect here" in line]


def test_what_lies_beyond_the_end_of_the_training_is_named(dlrun: Callable[..., Any]) -> None:
    words = (
        "trainer.epochs=3",
        "data.batch_size=250",
        "data.limit_batches=500",
        "trainer.log_every_steps=7",
        "trainer.early_stopping.patience=2",
        "checkpoint.every_epochs=4",
        "checkpoint.every_steps=7",
        "tracking.evolution_every_epochs=4",
        "scheduler=step",
        "scheduler.step_size=3",
    )
    outcome = dlrun("check", *QUIET, *words, "trainer.accumulate_steps=5")
    assert outcome.code == 0, outcome.err
    assert _list_notes(outcome) == [
        "note: data.limit_batches", "note: trainer.log_every_steps", "note: trainer.early_stopping.patience",
        "note: checkpoint.every_epochs", "note: checkpoint.every_steps", "note: tracking.evolution_every_epochs",
        "note: scheduler",
    ]  # fmt: skip
    assert "500 batches are 125,000 rows, and no part has more than 500" in outcome.out
    assert "trainer.accumulate_steps=5: an epoch has 2 batches" in outcome.out
    assert (
        "scheduler has no effect here: it changes nothing in 3 epochs; type a smaller scheduler.step_size"
        in outcome.out
    )


def test_what_comes_before_the_end_of_the_training_is_not_named(dlrun: Callable[..., Any]) -> None:
    words = (
        "trainer.epochs=4",
        "data.batch_size=250",
        "data.limit_batches=1",
        "trainer.log_every_steps=4",
        "trainer.early_stopping.patience=2",
        "checkpoint.every_epochs=4",
        "checkpoint.every_steps=4",
        "tracking.evolution_every_epochs=4",
        "scheduler=step",
        "scheduler.step_size=3",
        "trainer.max_steps=4",
        "data.train_rows=100",
        "optimizer.groups=[{match: w*, lr: 0.1}]",
        "optimizer.lr=0.5",
    )
    assert _list_notes(dlrun("check", *QUIET, *words)) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["scheduler=multistep", "scheduler.milestones=[9]"],
            "scheduler has no effect here: it changes nothing in 3 ep",
        ),
        (
            ["scheduler=plateau", "scheduler.patience=1"],
            "scheduler has no effect here: it changes nothing in 3 epochs;",
        ),
        (["scheduler=cosine", "scheduler.warmup_steps=99"], "scheduler.warmup_steps=99 takes the whole training"),
        (
            ["trainer.max_steps=2"],
            "trainer.epochs has no effect here: trainer.max_steps=2 ends the training in epoch 1",
        ),
        (
            ["optimizer.groups=[{match: '*', lr: 1}]", "optimizer.lr=5"],
            "optimizer.lr has no effect here: each of optim",
        ),
        (
            ["data.train_rows=300", "data.limit_batches=1"],
            "data.train_rows has no effect here: data.limit_batches=1 le",
        ),
        (
            ["data.val_fraction=0.5", "data.train_rows=400"],
            "data.train_rows has no effect here: there are 250 training",
        ),
    ],
)
def test_wishes_that_others_overrule_are_named(words: list[str], message: str, dlrun: Callable[..., Any]) -> None:
    assert message in dlrun("check", *QUIET, "trainer.epochs=3", "data.batch_size=250", *words).out


@pytest.mark.slow
def test_start_values_that_others_replace_are_named(dlrun: Callable[..., Any]) -> None:
    assert dlrun(*QUIET, "trainer.max_steps=1", "hydra.run.dir=first").code == 0
    check = ("check", *QUIET, "trainer.max_steps=1")
    replaced = dlrun(*check, "init_from=first", "+model.init.w=1.0")
    assert "note: model.init.w has no effect here: init_from=first brings w" in replaced.out
    assert _list_notes(dlrun(*check, "model.init={w: 1.0}")) == []
    searched = dlrun(*check, "optimizer=exhaustive", "model.bias=false", "model.init={w: 1.0}", "scheduler=cosine")
    assert _list_notes(searched) == ["note: optimizer=sgd", "note: model.init", "note: scheduler"]


def test_a_word_that_a_later_one_replaces_is_named(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("check", "model=mlp", *QUIET, "trainer.epochs=2", "trainer.epochs=3", "seed=0")
    assert "note: model=mlp has no effect here: model=linear comes after it" in outcome.out
    assert "note: trainer.epochs=2 has no effect here: trainer.epochs=3 comes after it" in outcome.out
    assert _list_notes(outcome)[:2] == ["note: model=mlp", "note: trainer.epochs=2"]
    own = dlrun("check", "data=blobs", "model=cnn", "model._target_=dlrun.models.mlp.MLP")
    assert "note: model=cnn has no effect here: model._target_=dlrun.models.mlp.MLP stands in its place" in own.out


def test_a_sweep_names_words_that_later_ones_replace_once(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("-m", *QUIET, "trainer.max_steps=1", "seed=0,1", "seed=2,3", "sweep.dry_run=true")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("note: seed=0,1 has no effect here: seed=2,3 comes after it") == 1


def test_long_words_are_cut_in_messages(dlrun: Callable[..., Any]) -> None:
    for word in ("x" * 10_000, "trainer.epochs=" + "y" * 10_000, "trainer.epochs=" + "7\n" * 3000):
        outcome = dlrun(word)
        assert outcome.code == 2
        assert len(outcome.err.splitlines()) == 1
        assert len(outcome.err) < 700


@pytest.mark.slow
def test_numbers_for_a_run_on_pictures_are_answered(
    command: Callable[..., Any], dlrun: Callable[..., Any], tmp_path: Path
) -> None:
    words = ("model=linear", "trainer.max_steps=1", "tracking.graph=false", "figures=false", "hydra.run.dir=run")
    assert dlrun(*words).code == 0
    rows = [" ".join(["0.5"] * 784), ",".join(["0.5"] * 783), " ".join(["7"] * 784), "x" * 5000]
    outcome = command("predict", "run", "-", input="\n".join(rows))
    assert outcome.code == 1, outcome.err
    output = " ".join(outcome.out.split())
    assert "the row holds 783 numbers" in output
    assert "pixels as numbers are from 0" in output
    assert "of 5,000 letters is neither" in output
    assert "3 of 4 inputs have no answer" in outcome.err
    assert max(map(len, outcome.out.splitlines())) < 300


FILES = {
    "named.yaml": "defaults: [config, _self_]\ntrainer: {epochs: 2}\n",
    "partial.yaml": "defaults:\n  - data: line\n  - model: linear\n",
    "chdir.yaml": "defaults: [config, _self_]\nhydra: {job: {chdir: true}}\n",
    "launcher.yaml": "defaults: [config, override hydra/launcher: basic, _self_]\n",
    "experiment/name.yaml": "# @package _global_\nhydra: {job: {name: mine}}\n",
    "experiment/callbacks.yaml": "# @package _global_\nhydra: {callbacks: {mine: {_target_: a.B}}}\n",
    "experiment/twenty.yaml": "# @package _global_\ntrainer: {epochs: 20}\n",
    "experiment/steps.yaml": "# @package _global_\ntrainer: {max_steps: 30}\ndata: {num_workers: 2}\n",
}


@pytest.fixture
def conf(dlrun: Callable[..., Any], tmp_path: Path) -> Path:
    """A folder of config files of the user's own."""
    for name, text in FILES.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config-name", "chdir"], "hydra.job.chdir in {conf}/chdir.yaml has no effect in dlrun: a run stays in"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (["-m", "seed=0,1", "--config-name", "chdir"], "hydra.job.chdir in {conf}/chdir.yaml has no effect in"),
                (["--config-name", "launcher"], "hydra/launcher in {conf}/launcher.yaml has no effect in dlrun: type"),
                (["experiment=name"], "hydra.job.name in {conf}/experiment/name.yaml has no effect in dlrun: a run is"),
                (["experiment=callbacks"], "hydra.callbacks.mine._target_ in {conf}/experiment/callbacks.yaml has no"),
                (["--config-name", "partial"], "begin that file with defaults: [config, _self_]"),
                (["-m", "seed=0,1", "--config-name", "partial"], "partial is not a complete config; begin that file"),
                (["-m", "seed=0,1", "hydra.run.dir=x"], "is for a single run; type sweep.dir=x for the folder of a"),
            ]
        ),
        (["hydra.sweep.dir=x"], "hydra.sweep.dir=x is for a sweep; add -m, or leave it out"),
    ],
)
def test_what_has_no_effect_in_own_files_or_folders_is_refused(
    words: list[str], message: str, conf: Path, dlrun: Callable[..., Any]
) -> None:
    outcome = dlrun("--config-dir", "conf", *words)
    assert outcome.code == 2
    assert message.format(conf=conf / "conf") in outcome.err
    assert [path.name for path in conf.iterdir()] == ["conf"]


@pytest.mark.slow
def test_a_sweep_heeds_a_config_of_ones_own(conf: Path, dlrun: Callable[..., Any]) -> None:
    words = ("--config-dir", "conf", "--config-name", "named", *QUIET, "data.batch_size=1000", "sweep.dir=sweep")
    assert dlrun("-m", *words, "seed=0,1").code == 0
    results = [json.loads(path.read_text()) for path in conf.glob("sweep/*/result.json")]
    assert [result["epochs"] for result in results] == [2, 2]
    refused = dlrun("resume", "sweep", "seed=2")
    assert refused.code == 2
    assert "the sweep was begun with --config-dir conf; add that to this command" in refused.err
    named = dlrun("resume", "sweep", "seed=2", "--config-dir", "conf")
    assert "the sweep was begun with --config-name named; add that to this command" in named.err


@pytest.mark.slow
def test_epochs_of_an_overlay_are_not_those_by_default(conf: Path, dlrun: Callable[..., Any]) -> None:
    words = ("--config-dir", "conf", *QUIET, "data.batch_size=1000", "checkpoint.every_epochs=50")
    overlay_run = dlrun(*words, "experiment=twenty", "trainer.max_steps=30")
    assert overlay_run.result["steps"] == 20
    assert "trainer.epochs=20 ends the training after 20 steps" in overlay_run.out
    assert dlrun(*words, "experiment=twenty", "trainer.max_steps=30", "trainer.epochs=null").result["steps"] == 30
    by_overlay = dlrun(*words, "experiment=steps")
    assert by_overlay.result["steps"] == 30
    note = f"data.num_workers in {conf}/conf/experiment/steps.yaml has no effect here: all data are in memory"
    assert note in by_overlay.out
    longer = dlrun("resume", str(by_overlay.folder), "trainer.max_steps=31")
    assert note in longer.out


@pytest.mark.slow
def test_parts_of_the_data_make_fractions_needless(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    import numpy as np

    rows = np.random.default_rng(0).normal(size=(40, 2)).astype("float32")
    for name in ("", "val_", "test_"):
        np.save(tmp_path / f"{name}x.npy", rows)
        np.save(tmp_path / f"{name}y.npy", (rows[:, 0] > 0).astype("int64"))
    words = ("data.val_fraction=0.3", "data.test_fraction=0.3", "data.seed=5", "data.train_rows=99")
    more = ("paths.data=elsewhere", "hydra.run.dir=run", "paths.outputs=there", "tracking.samples=true")
    net = ("model=mlp", "model.hidden_sizes=[]", "model.activation=tanh", "optimizer=sgd", "optimizer.dampening=0.5")
    rate = ("optimizer.lr=0.5", "scheduler=one_cycle", "scheduler.max_lr=0.1")
    data = ("data=arrays", "data.path=.", "trainer.max_steps=1", *QUIET[:2])
    outcome = dlrun(*data, *words, *more, *net, *rate)
    assert outcome.code == 0, outcome.err
    named = [line.split()[1] for line in outcome.out.splitlines() if "has no effect here" in line]
    assert sorted(named) == sorted(
        [
            "data.val_fraction", "data.test_fraction", "data.seed", "data.train_rows", "paths.data", "paths.outputs",
            "tracking.samples", "model.activation", "optimizer.dampening", "optimizer.lr",
        ]
    )  # fmt: skip
    assert "data.val_fraction has no effect here: the data bring a validation part of their own" in outcome.out
    evaluated = dlrun("eval", "run", "data.val_fraction=0.2", "seed=3", "figures=false")
    assert evaluated.code == 0, evaluated.err
    assert "data.val_fraction has no effect here" in evaluated.out
    assert "seed has no effect here" in evaluated.out


@pytest.mark.parametrize(
    ("command", "word", "message"),
    [
        ("eval", "data.shuffle=false", "is for training, and has no effect on dlrun eval"),
        ("eval", "task.reduction=sum", "has no effect on dlrun eval: the metrics are means over the rows"),
        ("predict", "data.path=x.csv", "has no effect on dlrun predict: of the data only the inputs that are named"),
        ("predict", "task.loss=mae", "has no effect on dlrun predict: it measures nothing"),
        ("export", "device=cuda", "has no effect on dlrun export: an export is made on the CPU"),
        ("export", "paths.outputs=x", "has no effect on dlrun export: what is written lies in the run's folder"),
    ],
)
def test_words_that_a_command_over_a_run_does_not_heed(
    command: str, word: str, message: str, dlrun: Callable[..., Any]
) -> None:
    outcome = dlrun(command, "run", *(["1"] if command == "predict" else []), word)
    assert outcome.code == 2
    assert f"{word} {message}" in outcome.err


@pytest.mark.parametrize("word", ["trainer.epochs=5", "optimizer.lr=1", "figures=false"])
def test_overrides_that_load_does_not_heed(word: str) -> None:
    import dlrun as library

    with pytest.raises(library.RequestError, match=r"no effect on dlrun\.load"):
        library.load("run", word)


@pytest.mark.slow
def test_auto_finds_a_run_of_an_older_dlrun_with_steps_alone(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    """An older dlrun left epochs at 20 where only max_steps was typed; the hash of such a run is another."""
    words = (*QUIET, "trainer.max_steps=30", "data.batch_size=1000", "checkpoint.every_epochs=20")
    older = dlrun(*words, "trainer.epochs=20")
    result = older.folder / "result.json"
    cut = json.loads(result.read_text()) | {"status": "interrupted"}
    result.write_text(json.dumps(cut))
    again = dlrun(*words, "resume=auto")
    assert again.code == 0, again.err
    assert again.folder.resolve() == older.folder.resolve()
    assert again.result["config_hash"] == older.result["config_hash"]
    finished = dlrun(*words, "resume=auto")
    assert "is completed" in finished.out
