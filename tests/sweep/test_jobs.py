"""The jobs of a sweep: what their folders are called, and what makes two of them the same."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from dlrun.config import compose, request
from dlrun.config.composer import Composer
from dlrun.config.overrides import get_key
from dlrun.config.request import Request
from dlrun.config.schema import CONFIG_DIR, hash_config
from dlrun.sweep.jobs import Job, build_jobs, compute_identity, drop_duplicates

SWEEP = Path("sweep")
EMPTY: dict[str, Any] = {"seed": 0, "data": {}, "model": {}, "task": {}, "trainer": {}}


@pytest.fixture(scope="module")
def composer() -> Composer:
    """Composes in milliseconds what a command line takes 0.2 s for."""
    compose.register()
    with hydra.initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        return Composer(GlobalHydra.instance().config_loader())


@pytest.fixture
def jobs(composer: Composer) -> Callable[..., list[Job]]:
    """`jobs(*lines)`: a sweep of these points."""

    def make(*lines: str) -> list[Job]:
        requests = []
        for number, line in enumerate(lines):
            plain = compose.resolve(composer.compose(["data=blobs", *line.split()]))
            choices = {k: str(v) for k, v in HydraConfig.get().runtime.choices.items() if v and "hydra" not in k}
            folder = Path("hydras") / str(number)
            requests.append(Request(plain, choices, ["data=blobs", *line.split()], folder=folder))
        return build_jobs(requests, SWEEP)

    return make


@pytest.mark.parametrize(
    ("points", "names", "labels"),
    [
        (["seed=0", "seed=1"], ["0_seed=0", "1_seed=1"], ["seed=0", "seed=1"]),
        (["a=1 seed=0 b=2", "a=1 seed=1 b=2"], ["0_seed=0", "1_seed=1"], ["seed=0", "seed=1"]),
        (["a=1 seed=3"], ["0_a=1,seed=3"], ["a=1 seed=3"]),
        (["m=[4]", "m=[4,4]"], ["0_m=4", "1_m=4,4"], ["m=[4]", "m=[4,4]"]),
        (["a=/x/y", "a=/x/'z z'"], ["0_a=-x-y", "1_a=-x-z-z"], None),
        (["~a", "+b=1"], ["0_a", "1_+b=1"], None),
        ([f"seed={i}" for i in range(11)], [f"{i:02}_seed={i}" for i in range(11)], None),  # in order by name too
        ([f"a={'long' * 60}1", f"a={'long' * 60}2"], [f"{i}_a={'long' * 24}lo" for i in (0, 1)], None),
    ],
)
def test_folders_are_called_after_what_varies(points: list[str], names: list[str], labels: list[str] | None) -> None:
    words = [line.split(" ") if "'" not in line else [line] for line in points]
    built_jobs = build_jobs([Request(EMPTY, {}, one, folder=Path(f"{i}")) for i, one in enumerate(words)], SWEEP)
    assert [str(job.folder.relative_to(SWEEP)) for job in built_jobs] == names
    assert [job.number for job in built_jobs] == list(range(len(names)))
    assert labels is None or [job.label for job in built_jobs] == labels
    assert all(job.request.sweep == SWEEP for job in built_jobs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "names"),
    [
        (
            ["sweep.points=['seed=1,2']", "optimizer=sgd,adam"],
            [f"{i}_optimizer={o}/{k}_seed={k + 1}" for i, o in enumerate(("sgd", "adam")) for k in (0, 1)],
        ),
        (["sweep.points=['seed=1 trainer.epochs=2','seed=2']"], ["0_seed=1,trainer.epochs=2", "1_seed=2"]),
        (["seed=0,1", "hydra.sweep.subdir=run_${hydra.job.num}"], ["run_0", "run_1"]),
        (["seed=0,1", "hydra.sweep.subdir='${hydra.job.override_dirname}'"], ["seed=0", "seed=1"]),
    ],
)
def test_folders_of_command_lines(words: list[str], names: list[str]) -> None:
    built_jobs = build_jobs(request.from_command_line(["-m", *words]), SWEEP)
    assert [str(job.folder.relative_to(SWEEP)) for job in built_jobs] == names
    assert len({job.key for job in built_jobs}) == len(names)


def test_jobs_of_one_folder_are_refused_before_anything_is_written(dlrun: Callable, tmp_path: Path) -> None:
    outcome = dlrun("-m", "data=blobs", "seed=0,1", "hydra.sweep.subdir=same", "sweep.dir=s")
    assert outcome.code == 2
    assert "hydra.sweep.subdir gives several jobs the folder s/same" in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "same"),
    [
        ("sweep.jobs=2", True),
        ("paths.outputs=elsewhere paths.data=there", True),
        ("figures=false tracking.graph=false trainer.log_every_steps=7", True),
        ("sweep.fail_fast=true sweep.dir=x", True),
        ("optimizer=adam optimizer.lr=0.001 model=mlp", True),  # as it is without these words
        ("expect=['x=1'] strict=true trusted_modules=[x]", True),
        ("device=cpu device.num_threads=1", True),
        ("seed=7", False),
        ("optimizer.lr=0.002", False),
        ("trainer.epochs=21", False),
        ("data.batch_size=32", False),
        ("lesson=blobs_classify", False),
        ("debug=one_batch", False),
        ("checkpoint.monitor=train/loss", False),
    ],
)
def test_what_a_job_is_known_again_by(line: str, same: bool, jobs: Callable[..., list[Job]]) -> None:
    (plain,), (other,) = jobs(""), jobs(line)
    assert (plain.key == other.key) is same
    assert plain.key == hash_config(plain.plain)


def test_a_precision_that_is_swept_over_makes_two_jobs_and_one_for_all_does_not(jobs: Callable) -> None:
    assert len({job.key for job in jobs("device.precision=fp32", "device.precision=bf16")}) == 2
    assert jobs("device.precision=bf16")[0].key == jobs("")[0].key
    alone, with_more = jobs("device.precision=bf16"), jobs("device.precision=bf16", "device.precision=bf16 seed=1")
    assert alone[0].key == with_more[0].key  # seeds may be added to a sweep of one


def test_presets_that_compose_the_same_config_are_two_jobs(jobs: Callable) -> None:
    one, two = jobs("lesson=blobs_classify", "seed=1")
    two.request = replace(two.request, config=one.request.config)
    assert one.plain == two.plain
    assert compute_identity(one, set()) != compute_identity(two, set())


@pytest.mark.parametrize(
    ("lines", "positions"),
    [
        (("optimizer.lr=0.001", "seed=0"), [0]),
        (("optimizer.lr=0.001", "optimizer.lr=1e-3", "optimizer.lr=0.01"), [0, 2]),
        (("++sweep.jobs=2", "sweep.jobs=1", "seed=1"), [0, 2]),
        (("", "++model.dropout=0.0", "model.dropout=0.5"), [0, 2]),
    ],
)
def test_equal_jobs_are_made_once(lines: tuple[str, ...], positions: list[int], jobs: Callable[..., list[Job]]) -> None:
    unique_jobs = jobs(*lines)
    first, notes = drop_duplicates(unique_jobs)
    assert first == [unique_jobs[i] for i in positions]
    assert len(notes) == len(lines) - len(positions)
    assert all("is the same run as" in note and "runs once" in note for note in notes)


@pytest.mark.parametrize("word", ["seed=1", "+seed=1", "++seed=1", "~seed=1", "~seed"])
def test_the_key_of_a_word(word: str) -> None:
    assert get_key(word) == "seed"
