"""Whatever lies in a run folder: every command ends in an answer or a sentence, and changes nothing that it reads."""

import contextlib
import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml

import dlrun as library
from dlrun.core.errors import DamageError, RequestError
from dlrun.core.yaml import read_yaml
from dlrun.runs.record import RunRecord

pytestmark = pytest.mark.usefixtures("comparison_without_pictures")
WORDS = ("data=blobs", "model=mlp", "trainer.epochs=2", "tracking.graph=false", "figures=false", "preflight=false")
SECONDS = 30
JSON_FILES = ("result.json", "environment.json")
LINE_FILES = ("metrics.jsonl", "fingerprints.jsonl")
YAML_FILES = (".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml")
Damage = Callable[[Path], None]  # damages the file at a path


def overwrite_with(content: bytes) -> Damage:
    return lambda path: write(path, content)


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def is_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def is_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def is_socket(path: Path) -> None:
    path.unlink()
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


def is_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def is_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def is_huge(path: Path) -> None:
    os.truncate(path, 10**11)


OF_ANY = {
    "empty": overwrite_with(b""),
    "cut": half,
    "zeros": overwrite_with(bytes(4096)),
    "latin": overwrite_with(b'{"a": "\xff\xfe"}\n'),
    "quote": overwrite_with(b'"'),
    "brackets": overwrite_with(b"[" * 100_000),
    "objects": overwrite_with(b'{"a":' * 100_000),
    "number": overwrite_with(b"5\n"),
    "null": overwrite_with(b"null\n"),
    "list": overwrite_with(b"[1, 2]\n"),
    "digits": overwrite_with(b'{"epochs": ' + b"9" * 400 + b', "seed": ' + b"9" * 400 + b"}\n"),
    "many digits": overwrite_with(b'{"status": ' + b"9" * 5000 + b"}\n"),
    "infinite": overwrite_with(b'{"epoch": 1e999, "step": 1, "weights_sha256": 1e999}\n'),
    "nan": overwrite_with(b'{"epoch": NaN, "status": NaN}\n'),
    "twice": overwrite_with(b'{"status": "completed", "status": "failed", "epoch": 1, "epoch": 2}\n'),
    "surrogate": overwrite_with(b'{"status": "completed", "error": "\\ud800", "epoch": 1, "command": "\\ud800"}\n'),
    "folder": is_folder,
    "pipe": is_pipe,
    "socket": is_socket,
    "loop": is_loop,
    "device": is_device,
    "huge": is_huge,
}
OF_YAML = {
    "alias bomb": overwrite_with(
        b"a: &a [x, x, x, x, x, x, x, x, x]\n"
        + b"".join(b"%c: &%c [%s]\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 9)) for c in range(ord("b"), ord("k")))
        + b"seed: 1\n"
    ),
    "itself": overwrite_with(b"seed: 1\ndata: &a\n  b: *a\n"),
    "flow": overwrite_with(b"{a: " * 100_000),
    "deep": overwrite_with("".join(f"{' ' * i}a:\n" for i in range(2000)).encode()),
    "dashes": overwrite_with(b"- " * 100_000 + b"a"),
    "sexagesimal": overwrite_with(b"seed: " + b"1:" * 100_000 + b"1\n"),
    "date": overwrite_with(b"seed: 2020-01-01\nmodel: {a: 2020-01-01}\n"),
    "binary": overwrite_with(b"seed: 1\nmodel: {a: !!binary aGk=}\n"),
    "set": overwrite_with(b"seed: 1\nmodel: !!set {a, b}\n"),
    "python": overwrite_with(b"seed: !!python/object/apply:os.system [touch pwned]\n"),
    "keys": overwrite_with(b"seed: 1\nmodel: {1: a, b: c}\n"),
    "odd keys": overwrite_with(b"seed: 1\nmodel: {[1]: a}\n"),
    "bom": overwrite_with(b"\xef\xbb\xbfseed: 1\n"),
    "lone alias": overwrite_with(b"seed: *nowhere\n"),
}
WRONG: list[Any] = [5, -1, "x", [], {}, None, True, [[{}]], {"a": []}]
KEYS = {
    "result.json": ("status", "metrics", "baseline", "best", "epochs", "warnings", "error", "measured", "expected"),
    "environment.json": ("choices", "command", "started", "versions", "run_id", "threads", "device", "git_commit"),
    ".hydra/config.yaml": ("seed", "data", "model", "trainer", "checkpoint", "device", "paths"),
}
BEST: list[Any] = [{"value": 1}, {"metric": 3, "value": 1}, {"metric": "m", "value": "x"}, {"metric": "m", "epoch": []}]
ROWS: list[Any] = [{"epoch": "x"}, {"epoch": []}, {"step": 1}, {"epoch": 1, "train/loss": []}, [1], 3, None, "x"]


def set_value(name: str, key: str, value: Any) -> Damage:
    def damage(path: Path) -> None:
        text = path.read_text()
        values = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
        path.write_text(json.dumps(values | {key: value}))  # which is YAML, too

    return damage


def damages() -> Iterator[tuple[str, str, Damage]]:
    """The file, a name of what is wrong with it, and what makes it so."""
    for name in (*JSON_FILES, *LINE_FILES, *YAML_FILES):
        for kind, damage in OF_ANY.items():
            yield name, kind, damage
    for name in YAML_FILES:
        for kind, damage in OF_YAML.items():
            yield name, kind, damage
    for name, keys in KEYS.items():
        for key in keys:
            for number, value in enumerate(BEST if key == "best" else WRONG):
                yield name, f"{key} {number}", set_value(name, key, value)
    for number, row in enumerate(ROWS):
        line = json.dumps(row).encode() + b"\n"
        for name in LINE_FILES:
            yield name, f"row {number}", overwrite_with(line * 2)
    yield "checkpoints", "file", lambda path: (shutil.rmtree(path), path.write_text("x"))[0]
    yield "checkpoints", "loop", lambda path: (shutil.rmtree(path), path.symlink_to(path.name))[0]


def sample() -> list[tuple[str, str, Damage]]:
    """Every kind of damage to a file once, and every key with one wrong value."""
    cases: list[tuple[str, str, Damage]] = []
    for position, (name, kind, damage) in enumerate(damages()):
        number = kind.rpartition(" ")[2]
        of_key = number.isdecimal()
        if of_key and int(number) != position % 4:
            continue
        if not of_key and name in (".hydra/overrides.yaml", "fingerprints.jsonl", "environment.json") and position % 3:
            continue
        cases.append((name, kind, damage))
    return cases


class Hung(Exception):
    """A command has not ended in time."""


@contextlib.contextmanager
def limit_time() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def intact_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with nothing wrong."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    library.train(*WORDS, f"hydra.run.dir={folder}", quiet=True)
    return folder


def copy(intact_run: Path, target: Path, name: str, damage: Damage) -> Path:
    shutil.copytree(intact_run, target)
    damage(target / name)
    return target


def state(folder: Path) -> dict[str, tuple[int, int, int]]:
    contents = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        contents[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return contents


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_one_damaged_run_stops_no_command_over_many(
    every: int, intact_run: Path, dlrun: Callable[..., Any], tmp_path: Path
) -> None:
    cases = sample()[::every]
    assert len(cases) >= 90 // every
    for number, (name, _, damage) in enumerate(cases):
        copy(intact_run, tmp_path / "outputs" / "day" / f"bad{number}", name, damage)
    shutil.copytree(intact_run, tmp_path / "outputs" / "day" / "good")
    before = state(tmp_path / "outputs")

    with limit_time():
        listed = dlrun("ls", "runs")
    assert (listed.code, listed.err) == (0, "")
    lines = listed.out.splitlines()[1:]
    assert len(lines) == len(cases) + 1
    statuses = {Path(line.split()[0]).name: line.split()[1] for line in lines}
    assert statuses["good"] == "completed"
    assert all("damaged: outputs/day/bad" in line for line in lines if " damaged " in line)
    for number, (name, kind, _) in enumerate(cases):
        if name in ("result.json", "environment.json") and kind in ("brackets", "pipe", "digits", "nan", "huge"):
            assert statuses[f"bad{number}"] == "damaged", (name, kind)

    with limit_time():
        as_data = dlrun("ls", "runs", "format=json")
    records = json.loads(as_data.out)
    assert {Path(record["run"]).name: record["status"] for record in records} == statuses
    assert all(record["damage"] for record in records if record["status"] == "damaged")

    with limit_time():
        filtered = dlrun("ls", "runs", "trainer.epochs=2", "train/loss>0", "sort=-train/loss")
    assert filtered.code == 0, filtered.err
    assert "note: damaged: outputs/day/bad" in filtered.err

    with limit_time():
        offered = dlrun("clean")
        question = dlrun("clean", "status=damaged")
    assert (offered.code, question.code) == (0, 0)
    assert "no run with status=failed,empty" in offered.out
    assert question.out.count("it holds checkpoints, which may be intact: damaged: ") == list(statuses.values()).count(
        "damaged"
    )
    assert state(tmp_path / "outputs") == before

    with limit_time():
        compared = dlrun("compare", "outputs", "paths.outputs=out")
    assert compared.code == 0, compared.err
    assert "no result: outputs/day/bad" in compared.out
    assert state(tmp_path / "outputs") == before


def ends_well(outcome: Any) -> bool:
    """Whether a command has ended in an answer, or in one sentence."""
    sentence = outcome.code == 0 or len(outcome.err.splitlines()) >= 1
    return outcome.code in (0, 1, 2) and sentence and "Traceback" not in outcome.out + outcome.err


def list_commands(command: str) -> tuple[str, ...]:
    return {
        "diff": ("diff", "run", "good"),
        "show": ("show", "run"),
        "show json": ("show", "run", "format=json"),
        "watch": ("watch", "run"),
        "rerun": ("rerun", "run", "trainer.max_steps=1"),
        "predict": ("predict", "run", "rows.csv"),
        "eval": ("eval", "run", "figures=false"),
        "export": ("export", "run", "format=safetensors"),
        "resume": ("resume", "run", "trainer.epochs=3"),
        "auto": (*WORDS, "hydra.run.dir=run", "resume=auto"),
    }[command]


def check(command: str, case: tuple[str, str, Damage], intact_run: Path, dlrun: Callable[..., Any]) -> None:
    name, kind, damage = case
    shutil.rmtree("run", ignore_errors=True)
    Path("rows.csv").write_text("0.1,0.2\n")
    run = copy(intact_run, Path("run"), name, damage)
    before = state(run)
    with limit_time():
        if command == "load":
            with contextlib.suppress(RequestError):
                loaded = library.load("run")
                assert (loaded.result, loaded.metrics, loaded.history, repr(loaded)) != ()
        else:
            assert ends_well(dlrun(*list_commands(command))), (name, kind)
    if command in ("diff", "show", "show json", "watch", "rerun", "predict", "load"):
        assert state(run) == before


def test_a_command_on_one_damaged_run_ends_well(intact_run: Path, dlrun: Callable[..., Any]) -> None:
    """Over many runs each of these damages is met above; the slow test below has every damage."""
    shutil.copytree(intact_run, "good")
    lookers = ("show", "show json", "watch")
    commands = ("predict", "eval", "resume", "auto", "load", "export", "rerun")
    for number, case in enumerate(sample()):
        if number % 30 == 0:
            check("diff", case, intact_run, dlrun)
            check(lookers[number // 30 % 3], case, intact_run, dlrun)
        if number % 48 == 0:
            check(commands[number // 48 % len(commands)], case, intact_run, dlrun)


LOOKING = ("show", "show json", "watch")
COMMANDS = ("predict", "eval", "resume", "auto", "load", "export", "rerun")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["diff", *LOOKING, *COMMANDS])
def test_each_command_on_each_damage_ends_well(command: str, intact_run: Path, dlrun: Callable[..., Any]) -> None:
    """`diff` on every damage; of the others, which read a run by the same code, each kind of damage meets two."""
    shutil.copytree(intact_run, "good")
    for number, case in enumerate(damages() if command == "diff" else sample()):
        meets = any(number % len(group) == group.index(command) for group in (LOOKING, COMMANDS) if command in group)
        if command == "diff" or meets:
            check(command, case, intact_run, dlrun)


def test_a_row_that_a_kill_cut_short_is_no_damage(intact_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(intact_run, tmp_path / "run")
    rows = RunRecord(run).rows
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"epoch": 3, "st')
    record = RunRecord(run)
    assert record.rows == rows
    assert record.damage == []
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'ep": 1}\n{"epoch": }\n{"epoch": 5}\n')
    record = RunRecord(run)
    assert [row["epoch"] for row in record.rows] == [1, 2, 3]
    assert record.damage[0].startswith(f"damaged: {run}/metrics.jsonl: line 4: it is no JSON")


def test_what_a_record_says_of_a_run(intact_run: Path) -> None:
    record = RunRecord(intact_run)
    assert (record.status, record.epochs, record.seed, record.best_epoch) == ("completed", 2, 0, 2)
    assert record.best == (record.metric, record.best_value)
    assert record.choices["model"] == "mlp"
    assert record.flat_config["trainer.epochs"] == 2
    assert record.metrics == record.result["metrics"]
    assert [row["epoch"] for row in record.rows] == [1, 2]
    assert [line["epoch"] for line in record.fingerprints] == [0, 1, 2]
    assert record.machine["machine"].endswith("threads")
    assert (record.damage, record.reason_unusable) == ([], "")


@pytest.mark.parametrize("name", ["result.json", ".hydra"])
def test_a_link_out_of_the_run_is_damage(name: str, intact_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(intact_run, tmp_path / "run")
    target = (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(target)
    record = RunRecord(run)
    assert not (record.result and record.config)
    assert "outside of the folder" in record.damage[0]
    (tmp_path / "linked").symlink_to(intact_run)  # a link of a whole run is the user's own
    assert RunRecord(tmp_path / "linked").status == "completed"


def test_what_cannot_be_listed_is_not_empty(intact_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = shutil.copytree(intact_run, tmp_path / "run")
    for name in ("result.json", "metrics.jsonl"):
        (run / name).unlink()
    assert RunRecord(run).status == "interrupted"
    real = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("checkpoints"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    record = RunRecord(run)
    assert record.status == "damaged"
    assert record.damage == [f"damaged: {run}/checkpoints: it cannot be listed (Permission denied)"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [1]\nb: *a\n", "line 2 holds an alias"),
        ("[" * 100_000, "nested more than 100 levels|maximum nesting depth"),  # newer libyaml has a bound of its own
        ("a: {b: 1, b: 2}", "holds a key twice"),
        ("a: " + "1:" * 5000 + "1", "a number of 10,001 digits"),
        ("a: [", "line 2: did not find"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
    ],
)
def test_yaml_that_nobody_writes_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        read_yaml(text)
    assert "\n" not in str(caught.value)


def test_a_run_by_steps_alone_is_whole(intact_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(intact_run, tmp_path / "run")
    config = yaml.safe_load((run / ".hydra/config.yaml").read_text())
    config["trainer"] |= {"epochs": None, "max_steps": 5}
    (run / ".hydra/config.yaml").write_text(yaml.safe_dump(config))
    record = RunRecord(run)
    assert record.config["trainer"]["max_steps"] == 5
    assert record.damage == []


def test_a_damage_error_crosses_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(DamageError(Path("a/b"), "it is odd")))
    assert str(error) == "damaged: a/b: it is odd"
