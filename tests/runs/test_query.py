"""Runs as their folders tell of them, and which of them a command line asks for."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dlrun.cli.commands import DLRUN
from dlrun.core.errors import RequestError
from dlrun.core.lock import Lock
from dlrun.runs.query import Query, count_bytes, find_runs, is_stamped, list_typed_overrides, parse_query, read_start
from dlrun.runs.record import RunRecord

QUICK = ("data=blobs", "model=mlp", "trainer.epochs=2", "tracking.graph=false", "figures=false")
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`make(name, status, ...)`: a run folder as dlrun leaves it, written by hand."""
    monkeypatch.chdir(tmp_path)

    def write_run(
        name: str,
        status: str | None = "completed",
        model: str = "mlp",
        hour: int = 3,
        metrics: dict[str, float | None] | None = None,
        tags: Sequence[str] = (),
        name_of_run: str | None = None,
        **more: Any,
    ) -> Path:
        folder = Path(name)
        (folder / ".hydra").mkdir(parents=True)
        choices = {"model": model, "data": "blobs", "optimizer": "adam"}
        environment = {"run_id": "x", "started": f"2026-11-20T{hour:02d}:00:00+00:00", "choices": choices}
        (folder / "environment.json").write_text(json.dumps(environment | more))
        (folder / ".hydra/config.yaml").write_text(
            f"seed: {hour}\noptimizer: {{lr: 0.001}}\nfigures: false\nrun: {{tags: {json.dumps(list(tags))}}}\n"
        )
        if status:
            result = {"status": status, "epochs": 2, "best": {"metric": "val/loss", "value": 0.25, "epoch": 1}}
            result["metrics"] = metrics or {}
            result["name"] = name_of_run
            (folder / "result.json").write_text(json.dumps(result))
        return folder

    return write_run


def parse(words: list[str]) -> Query:
    """The query of `dlrun ls runs` with these words and options."""
    command = DLRUN.commands["ls"].commands["runs"]
    options = dict(command.make_context("runs", list(words)).params)
    del options["format"]
    return parse_query(options.pop("words"), "dlrun ls runs", **options)


def names(words: list[str]) -> list[str]:
    return [run.folder.name for run in parse(words).select_runs()]


def test_what_a_real_run_says(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun(*QUICK, "seed=3")
    (run,) = find_runs([Path("outputs")])
    result = outcome.result
    assert (run.folder, run.status, run.epochs) == (outcome.folder, "completed", 2)
    assert run.best == ("train/loss", result["best"]["value"])
    assert (run.choices["model"], run.choices["data"], run.config["seed"]) == ("mlp", "blobs", 3)
    assert list_typed_overrides(run) == ["trainer.epochs=2", "tracking.graph=false", "figures=false", "seed=3"]
    assert is_stamped(run.folder)
    (run.folder / "environment.json").unlink()  # an older dlrun's did not name the choices
    assert RunRecord(run.folder).choices["optimizer"] == "adam"


def test_the_statuses(make: Make) -> None:
    for status in ("completed", "early_stopped", "interrupted", "failed"):
        assert RunRecord(make(status, status)).status == status
    killed = make("killed", None)
    assert RunRecord(killed).status == "empty"
    (killed / "metrics.jsonl").write_text('{"epoch": 1, "step": 4}\n{"epo')
    assert (RunRecord(killed).status, RunRecord(killed).epochs) == ("interrupted", 1)
    saved = make("saved", None)
    (saved / "checkpoints").mkdir()
    (saved / "checkpoints/step_00000004.pt").touch()
    assert RunRecord(saved).status == "interrupted"
    for text in ("", "[]", "{}", '{"status": "odd"}', '{"status": 3}'):
        (saved / "result.json").write_text(text)
        assert RunRecord(saved).status == "damaged", text


@pytest.fixture
def locked_folder(make: Make) -> Iterator[Path]:
    """A run folder that another process holds."""
    folder = make("outputs/2026-11-20/held", None)
    code = "import sys; from pathlib import Path; from dlrun.core.lock import Lock\n"
    code += "with Lock() as own: own.take(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "held\n"
        yield folder
        process.stdin.close()


def test_a_run_under_way(locked_folder: Path) -> None:
    assert RunRecord(locked_folder).status == "running"


def test_what_is_a_run_and_what_is_not(make: Make, tmp_path: Path) -> None:
    day = Path("outputs/2026-11-20")
    make(f"{day}/03-00-00_mlp_blobs")
    (day / "04-00-00_mlp_blobs").mkdir()  # killed before it wrote anything
    (day / "notes").mkdir()
    (Path("outputs") / "check_lr").mkdir()
    make("elsewhere/run")
    (day / "linked").symlink_to(tmp_path / "elsewhere")
    sweep = Path("outputs/multirun/2026-11-20/05-00-00")
    make(f"{sweep}/0_seed=0", hour=5)
    (sweep / "1_seed=1").mkdir()
    (sweep / "sweep.jsonl").touch()
    make(f"{day}/03-00-00_mlp_blobs/eval/inner")  # what lies in a run is its own business
    sweeps = {str(run.folder): run.sweep for run in find_runs([Path("outputs")])}
    assert sweeps == {
        f"{day}/03-00-00_mlp_blobs": None,
        f"{day}/04-00-00_mlp_blobs": None,
        f"{sweep}/0_seed=0": sweep,
        f"{sweep}/1_seed=1": sweep,
    }


def test_newest_first_and_filters(make: Make) -> None:
    make("outputs/d/a", "failed", "resnet", 9)
    make("outputs/d/b", "completed", "mlp", 11)
    make("outputs/e/c", "completed", "resnet18", 10)
    assert names([]) == ["b", "c", "a"]
    assert names(["status=failed"]) == ["a"]
    assert names(["status=failed,completed", "model=resnet*"]) == ["c", "a"]
    assert names(["--last", "2"]) == names(["last=2"]) == names(["--last=2"]) == ["b", "c", "a"]  # cut when shown
    assert parse(["--last", "2"]).last == 2
    assert names(["seed=10"]) == ["c"]
    assert names(["optimizer.lr=1e-3", "figures=false"]) == ["b", "c", "a"]
    assert names(["outputs/e"]) == ["c"]
    assert names(["paths.outputs=outputs/d", "model=mlp"]) == ["b"]
    assert names(["data=mnist"]) == []


@pytest.fixture
def four(make: Make) -> None:
    """Four runs, d the newest; the loss of c is not finite, and d has no metrics."""
    values = {"a": (0.5, 0.97), "b": (0.25, 0.98), "c": (None, 0.5)}
    for hour, (name, (loss, accuracy)) in enumerate(values.items(), 1):
        metrics = {"val/loss": loss, "val/accuracy": accuracy}
        tags = ["baseline", "long"] if name == "a" else ["baseline"]
        make(f"outputs/x/{name}", "completed", f"m{name}", hour, metrics, tags, name_of_run=f"run {name}")
    make("outputs/x/d", "failed", "md", 4)


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["val/accuracy>0.97"], "b"),
        (["val/accuracy>=0.97"], "ba"),
        (["val/accuracy<0.97"], "c"),
        (["val/accuracy<=0.97"], "ca"),
        (["val/accuracy>0.4", "val/accuracy<0.98"], "ca"),
        (["val/loss>0"], "ba"),
        (["val/accuracy=9.7e-1"], "a"),
        (["val/accuracy!=0.97"], "cb"),
        (["tag=baseline"], "cba"),
        (["tag=baseline", "tag=long"], "a"),
        (["tag=nope,lo*"], "a"),
        (["tag!=long"], "dcb"),
        (["name=run b"], "b"),
        (["name=run*", "name!=run b"], "ca"),
        (["seed>=2", "seed<4"], "cb"),
        (["epochs>1", "status=failed"], "d"),
        (["status!=failed"], "cba"),
        (["optimizer.lr<=0.1", "model=ma,mb"], "ba"),
        (["sort=val/loss"], "badc"),
        (["sort=-val/loss"], "abdc"),
        (["sort=-val/accuracy", "limit=2"], "ba"),
        (["--sort", "seed", "--limit", "3"], "abc"),
        (["sort=status,-seed"], "cbad"),
        (["sort=-model"], "dcba"),
        (["last=2", "sort=seed"], "cd"),
    ],
)
def test_filters_and_orders(words: list[str], expected: str) -> None:
    query = parse(words)
    runs = query.sort_and_cut(query.select_runs())
    assert "".join(run.folder.name for run in runs) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["status=fail"], r"status=fail is not a status; did you mean status=failed\? type one of running, "),
        (["status=fail"], r"did you mean status=failed"),
        (["val/los>1"], r"no run has a metric val/los; did you mean val/loss\?"),
        (["sort=-val/los"], r"no run has a metric val/los; did you mean val/loss\?"),
        (["sort=optimizer.rl"], r"no run has a key optimizer.rl; did you mean optimizer.lr"),
        (["model>3"], "model>3 compares numbers, and model is text; type model=3"),
        (["val/loss<low"], "val/loss<low compares numbers, and low is not a number"),
        (["limit=x"], "limit=x must be a whole number above 0; type --limit 10"),
        (["sort="], "sort= names no key; type sort="),
        (["optimzer=sgd"], r"no run has a key optimzer; did you mean optimizer\?"),
        (["nowhere"], "there is no folder nowhere; .* takes folders and filters, as in status=failed"),
        (["model="], "not model="),
        (["--lst"], "not --lst"),
        (["last=0"], "last=0 must be"),
    ],
)
def test_wrong_questions(make: Make, words: list[str], message: str) -> None:
    make("outputs/d/a", metrics={"val/loss": 0.5})
    with pytest.raises(RequestError, match=message):
        parse(words).select_runs()


def test_size_counts_a_file_with_two_names_once(make: Make) -> None:
    folder = make("outputs/d/a")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/step.pt").write_bytes(b"x" * 100_000)
    os.link(folder / "checkpoints/step.pt", folder / "checkpoints/last.pt")
    (folder / "elsewhere").symlink_to("/usr")
    du = subprocess.run(["du", "-sb", folder], capture_output=True, text=True)
    folders = sum(p.lstat().st_size for p in (folder, *folder.rglob("*")) if p.is_dir() and not p.is_symlink())
    assert count_bytes(folder) == int(du.stdout.split()[0]) - folders
    assert count_bytes(Path("nowhere")) == 0


def test_a_run_that_goes_away_meanwhile_is_no_error(make: Make) -> None:
    run = RunRecord(make("outputs/d/a"))
    shutil.rmtree(run.folder)
    assert (run.status, read_start(run), run.epochs, run.best, list_typed_overrides(run)) == (
        "empty",
        (0.0, 0.0),
        0,
        None,
        [],
    )


def test_the_lock_of_this_process_survives_a_look(make: Make) -> None:
    folder = make("outputs/d/a", None)
    with Lock() as own:
        own.take(folder)
        assert RunRecord(folder).recorded_status == "empty"
        code = (
            "import sys; from pathlib import Path; "
            "from dlrun.core.lock import is_locked; print(is_locked(Path(sys.argv[1])))"
        )
        other_process = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
        assert other_process.stdout == "True\n"
