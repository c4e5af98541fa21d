"""Hundreds of wrong command lines, made from the real option tree: each a sentence that says what to type instead."""

import dataclasses
import functools
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dlrun.config import explain
from dlrun.config import schema as config
from dlrun.config.compose import GROUPS, compose_config
from dlrun.config.schema import CONFIG_DIR, Config
from dlrun.core.suggest import compute_edit_distance

LETTERS = "abcdefghijklmnopqrstuvwxyz"
Case = tuple[tuple[str, ...], str]  # words of a command line, and what its message must name
Refused = Callable[[tuple[str, ...], str], tuple[str, str]]
Typo = tuple[tuple[str, ...], str, str, tuple[str, ...]]  # words, the wrong one, the right one, all right ones


def misspelt(rng: random.Random, word: str, edits: int) -> str:
    """At most so many letters inserted, left out, changed or swapped."""
    for _ in range(edits):
        place = rng.randrange(len(word))
        letter, after = rng.choice(LETTERS), word[place + 1 :]
        ways = [word[:place] + letter + word[place:], word[:place] + letter + after]
        if len(word) > 2:
            ways.append(word[:place] + after)
        if after:
            ways.append(word[:place] + after[0] + word[place] + after[1:])
        word = rng.choice(ways)
    return word


@functools.cache
def keys() -> tuple[str, ...]:
    return tuple(explain.iter_keys(compose_config([])))


def typos() -> Iterator[Typo]:
    """Of every group, every option and every key, one and two edits away."""
    rng = random.Random(7)
    every_key = tuple(dict.fromkeys([*keys(), *GROUPS]))
    for edits in (1, 2):
        for group in GROUPS:
            wrong = misspelt(rng, group, edits)
            yield (f"{wrong}=x",), wrong, group, every_key
            options = tuple(path.stem for path in sorted((CONFIG_DIR / group).glob("*.yaml")))
            for option in options:
                wrong = misspelt(rng, option, edits)
                yield (f"{group}={wrong}",), wrong, option, options
    for key in keys():
        section, _, last = key.rpartition(".")
        wrong = ".".join(part for part in (section, misspelt(rng, last, rng.choice((1, 2)))) if part)
        yield (f"{wrong}=1",), wrong, key, every_key


def fields(schema: Any, section: str = "") -> Iterator[tuple[str, Any]]:
    for f in dataclasses.fields(schema):
        key = f"{section}.{f.name}".lstrip(".")
        if dataclasses.is_dataclass(f.default_factory):
            yield from fields(f.default_factory, key)
        else:
            yield key, f


def list_schema_cases() -> Iterator[Case]:
    """A wrong type for every key that has one, and a value out of every range."""
    schemas = [("", Config), *config.KEYS.items()]
    for key, f in (pair for section, schema in schemas for pair in fields(schema, section)):
        kind = str(f.type)
        if "bool" in kind or "int" in kind or "float" in kind:
            yield (f"{key}=[a]",), key
        if "'bool'" in kind:
            yield (f"{key}=maybe",), key
        if "dict" in kind and key.count(".") == 1:
            yield (f"{key}=7",), key
        low = {**{f"{key}=-1": "at_least"}, **{f"{key}=0": "above"}, **{f"{key}=nonsense": "choices"}}
        low |= {f"{key}=1.0": "below", f"{key}={2**63}": "at_most"}
        yield from (((word,), key) for word, rule in low.items() if rule in f.metadata)


def list_target_cases() -> Iterator[Case]:
    """A wrong type for every argument of every option."""
    for group in ("model", "optimizer", "scheduler", "data"):
        for path in sorted((CONFIG_DIR / group).glob("*.yaml")):
            values = OmegaConf.to_container(OmegaConf.load(path))
            assert isinstance(values, dict)
            for name, value in values.items():
                if type(value) in (int, float, bool) and name != "target":  # a target may be a name
                    needed = (
                        ("data.path=x",)
                        if path.stem
                        in ("csv", "table", "text", "series", "image_folder", "arrays", "webdataset", "huggingface")
                        else ()
                    )
                    yield (f"{group}={path.stem}", f"{group}.{name}=[zzz]", *needed), f"{group}.{name}"


def pairs() -> Iterator[Case]:
    """Models that do not take the data."""
    for data, models in {
        "line": "cnn inception resnet gru lstm rnn rnn_cell rnn_onehot logistic torchvision",
        "pass_fail": "cnn inception resnet gru rnn rnn_cell torchvision",
        "blobs": "cnn resnet lstm",
        "hello": "mlp cnn resnet linear logistic scratch_mlp inception",
        "digits": "gru rnn lstm rnn_cell rnn_onehot",
    }.items():
        for model in models.split():
            yield (f"data={data}", f"model={model}"), model
    yield ("model=mlp", "data=line", "task.loss=cross_entropy"), "task.loss"
    yield ("model=mlp", "task.loss=nll"), "task.loss"
    yield ("model=cnn", "data.image_size=8"), "data.image_size"
    yield ("model=mlp", "optimizer=lbfgs", "device.precision=fp16"), "device.precision"


BY_HAND: dict[str, list[str]] = {
    "trainer": ["trainer=3", "trainer=[1]", "trainer={epohs: 3}", "~trainer.epochs", "trainer.epochs=1e3"],
    "model": ["model", "model=", "model=[mlp]", "~model", "model=mlp,cnn", "+model=cnn", "++model=cnn", "model@x=mlp"],
    "data": ["data=", "~data=mnist", "+data@foo=mnist", "data@foo=mnist", "data=csv data.path=", "data=csv"],
    "nothing": ["~nothing", "nothing=1", "+nothing=1", "++nothing=1", "optimizer.lr=${nothing}", "~nothing.x"],
    "optimizer.lr": ["optimizer.lr=0.1,0.2", "optimizer.lr=", "optimizer.lr=inf", "optimizer.lr=nan"],
    "optimizer.": ["optimizer.eps=-1", "optimizer.betas=[2,2]", "optimizer.betas=[0.9]", "+optimizer.x=1"],
    "optimizer.groups": ["optimizer.groups=[{match: x}]", "optimizer.groups=[{lr: 1}]", "optimizer.groups=3"],
    "scheduler.": [
        "scheduler=step scheduler.step_size=0",
        "scheduler=step scheduler.step_size=x",
        "scheduler=cosine scheduler.T_max=0",
        "scheduler=multistep scheduler.milestones=[a]",
        "scheduler=plateau scheduler.interval=step",
        "scheduler=one_cycle scheduler.total_steps=1",
    ],
    "=": ["=3", "a==3", "trainer.epochs=[1", "optimizer.lr='0.1", "model.hidden_sizes[0]=3", "x={a", "x=a]", "a b=3"],
    "--": ["--foo", "--cfg", "--cfg jb", "--config-dir nowhere", "--config-name other", "--multirunn", "--confg-dir=x"],
    "_target_": [
        "model._target_=nowhere.Net",
        "model._target_=torch.nn.Lineer",
        "model._target_=3",
        "model._target_=null",
        "model._target_=torch.nn",
        "optimizer._target_=torch.optim.SDG",
        "data._target_=os.getcwd",
    ],
    "nowhere": ["resume nowhere", "eval nowhere", "resume=nowhere", "init_from=nowhere", "check data=nowhere"],
    "dlrun resume": ["resume", "resume=", "resme", "reusme x"],
    "dlrun eval": ["eval", "evall x", "eavl"],
    "dlrun check": ["chek", "checkk model=mlp"],
    "gradients": ["check gradients -m model=mlp,scratch_mlp"],
    "scratch_mlp": ["check gradients model=mlp"],
    "model.activation": ["check model.activation=rellu", "check gradients model=scratch_mlp model.activation=geluu"],
    "dlrun ls model": ["ls modl"],
    "sweep": ["sweep.points=[a]", "sweep.points=abc", "sweep.dry_run=true", "-m sweep.jobs=1,2", "-m sweep.jobs=0"],
    "optimizer.lr=": ["-m optimizer.lr=range(0,0)", "-m optimizer.lr=0.1,0.1"],
    "sweep.max_jobs": ["-m optimizer.lr=range(0,1,0.000001)"],
    "lesson=": ["-m lesson=glob(zz*)"],
    "sweep.points": ["sweep.points=['optimizer=adm']", "sweep.points=['optimizer=[']", "sweep.points=['epochs=3']"],
    "seed": ["-m seed=range(a)", "-m seed=choice()", "seed.a=3", "seed=1.5", "seed=null"],
    "checkpoint.monitor": [f"checkpoint.monitor={m}" for m in ("", "val/acc", "test/loss", "accuracy", "val/f1")],
    "checkpoint.mode": ["checkpoint.mode=max", "checkpoint.mode=up"],
    "device": ["device=mps device.precision=fp64", "device=cpu device.index=3", "device=gpu", "device.precision=half"],
    "expect": ["expect=[nonsense]", "expect=nonsense", "check expect=[nonsense]"],
    "probes": ["probes=[a]", "probes=3", "data=line model=linear probes=[[1,2]]"],
    "paths.outputs": ["paths.outputs=/proc/nothing"],
    "none.csv": ["data=csv data.path=none.csv", "data=image_folder data.path=none.csv"],
    "hydra": ["hydra.run.dri=x", "hydra/launcher=joblibb", "hydra.sweeper.x=3"],
    "model.init": ["model.init=[1]", "model.init={nothing: 1}", "model.init={layers.1.wieght: 0}"],
}  # fmt: skip
ADVICE = r"type |did you mean|leave (it |one )?out|dlrun |change |correct|try |as in |(has|are|do:) [a-z]|the runs are"
YAML = {
    "model/mine.yaml": [("_target_: [\n", "mine.yaml"), ("_target_: mynet.Nat\n", "model._target_"),
                        ("a: 1\n", "model._target_"),
                        ("_target_: dlrun.models.mlp.MLP\nhiden_sizes: [1]\n", "model.hidden_sizes"),
                        ("_target_: dlrun.models.mlp.MLP\nhidden_sizes: many\n", "model.hidden_sizes"),
                        ("_target_: dlrun.models.mlp.MLP\ndropout: ???\n", "model.dropout"), ("- 1\n", "mine")],
    "experiment/mine.yaml": [("# @package _global_\ntrainer: {epochz: 3}\n", "trainer.epochs"),
                             ("# @package _global_\ntrainer: {epochs: many}\n", "trainer.epochs"),
                             ("# @package _global_\ntrainer: {epochs: -3}\n", "trainer.epochs"),
                             ("# @package _global_\ndefaults: [{override /model: mlpp}]\n", "model=mlp"),
                             ("# @package _global_\ndefaults: [{override /modell: mlp}]\n", "model"),
                             ("# @package _global_\nx: ${\n", "x: "), ("a: b: c\n", "mine.yaml")],
}  # fmt: skip


def list_cases_by_hand() -> Iterator[Case]:
    for named, lines in BY_HAND.items():
        for line in lines:
            words = [line] if re.search(r"['{$]|a b", line) and " data" not in line else line.split(" ")
            yield tuple(words), named


@pytest.fixture
def refuse(dlrun: Callable[..., Any], tmp_path: Path) -> Refused:
    """`refused(words, named)`: run them; what is wrong with how they were refused, and what was said."""

    def run(words: tuple[str, ...], named: str) -> tuple[str, str]:
        before = set(tmp_path.rglob("*"))
        outcome = dlrun(*words)
        wrong = [
            *(["exit code"] if outcome.code != 2 else []),
            *(["traceback"] if "Traceback" in outcome.out + outcome.err else []),
            *(["form"] if not outcome.err.startswith("dlrun: ") or outcome.err.count("\ndlrun: ") else []),
            *(["name"] if named not in outcome.err else []),
            *(["advice"] if not re.search(ADVICE, outcome.err[7:]) else []),
            *(["length"] if len(outcome.err) > 700 else []),
            *(["files"] if set(tmp_path.rglob("*")) != before else []),
        ]
        return f"{' '.join(words)}: {', '.join(wrong)}: {outcome.code} {outcome.err}" if wrong else "", outcome.err

    return run


def rank(message: str, right: str, known: tuple[str, ...], wrong: str) -> str:
    """What is wrong with the suggestions, if the right name is within two edits."""
    edits = {name: compute_edit_distance(wrong, name) for name in known}
    if edits[right] > 2 or wrong in known:
        return ""
    offered = re.findall(r"[\w./=]+", message.partition("did you mean ")[2].partition("?")[0].replace(" or ", " "))
    names = [name.rpartition("=")[2] for name in offered]
    nearer = [name for name in known if edits[name] <= edits[right] and name != right]
    if len(names) > 3 or (right not in names and len(nearer) < 3) or (not nearer and names[0] != right):
        return f"{wrong} for {right}: {names}"
    return ""


def cases() -> list[Case]:
    return [*list_cases_by_hand(), *pairs(), *list_schema_cases(), *list_target_cases()]


def wrong_typos() -> list[Typo]:
    return [typo for typo in typos() if typo[1] not in typo[3]]


def check_cases(refuse: Refused, some: list[Case]) -> None:
    failed = [line for words, named in some if (line := refuse(words, named)[0])]
    assert not failed, "\n".join(failed)


def check_typos(refuse: Refused, some: list[Typo]) -> None:
    failed = []
    for words, wrong, right, known in some:
        line, message = refuse(words, wrong)
        failed += [line, rank(message, right, known, wrong)]
    assert [line for line in failed if line] == []


def test_a_sample_of_wrong_lines_is_refused_in_a_sentence(refuse: Refused) -> None:
    check_cases(refuse, cases()[::120])


@pytest.mark.slow
def test_a_sample_of_typos_is_answered_by_what_was_meant(refuse: Refused) -> None:
    check_typos(refuse, wrong_typos()[::50])


@pytest.mark.slow
def test_wrong_lines_are_refused_in_a_sentence(refuse: Refused) -> None:
    some = [*list_cases_by_hand(), *pairs(), *list(list_schema_cases())[::4], *list(list_target_cases())[::4]]
    assert len(some) >= 200
    check_cases(refuse, some)


@pytest.mark.slow
def test_typos_are_answered_by_what_was_meant(refuse: Refused) -> None:
    """tests/config/test_explain.py has typos of every key, without the command line around them."""
    some = wrong_typos()[::3]
    assert len(some) >= 100
    check_typos(refuse, some)


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        (file, content, named) if i == 1 else pytest.param(file, content, named, marks=pytest.mark.slow)
        for file, contents in YAML.items()
        for i, (content, named) in enumerate(contents)
    ],
)
def test_a_wrong_yaml_of_the_users_is_named(
    refuse: Refused, tmp_path: Path, file: str, content: str, named: str
) -> None:
    path = tmp_path / "mine" / file
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert refuse(("--config-dir", "mine", f"{path.parent.name}=mine"), named)[0] == ""


@pytest.mark.slow
def test_the_real_command_says_the_same(command: Callable[..., Any], tmp_path: Path) -> None:
    sample = [*cases()[:: len(cases()) // 14], *((words, wrong) for words, wrong, *_ in wrong_typos()[::40])]
    assert len(sample) >= 20
    for words, named in sample:
        outcome = command(*words)
        assert (outcome.code, "Traceback" in outcome.err, named in outcome.err) == (2, False, True), (
            words,
            outcome.err,
        )
        assert outcome.err.startswith("dlrun: "), (words, outcome.err)
    assert not list(tmp_path.iterdir())
