"""Advice that dlrun prints is taken out of its sentence, word by word, and does not lead to the same refusal again."""

import copy
import dataclasses
import re
import shlex
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from dlrun.config import compose, schema
from dlrun.config.settings import Component, read_settings
from dlrun.core.errors import RequestError
from dlrun.core.yaml import flatten
from dlrun.experiment.builder import build

QUIET = ("tracking.graph=false", "figures=false")
LINE = ("data=line", "model=linear", *QUIET)
BLOBS = ("data=blobs", *QUIET)

# Of `key=value` in a sentence; a value ends where the sentence goes on.
WORD = re.compile(r"(?<![\w<.])([~+]?[a-z_]+(?:\.[a-z_0-9]+)*=(?:'[^']*'|\[[^\]]*\]|<[^>]*>|[^\s,;)]+))")
BLANKS = {  # what the user knows and dlrun does not
    "<steps>": "3", "<epochs>": "3", "<folder>": "elsewhere", "<its length>": "9", "<a new folder>": "new",
    "<one of `dlrun ls model`>": "linear", "<one of `dlrun ls data`>": "line", "<one of `dlrun ls optimizer`>": "sgd",
    "<one of `dlrun ls scheduler`>": "step", "<as many as it has>": "9", "<an existing path>": "rows.csv",
    "<a file>": "rows.csv", "checkpoint.monitor=...": "checkpoint.monitor=train/r2", "seed=...": "seed=1",
    "data.path=...": "data.path=rows.csv", "type a number": "type probes=[1]", "type another value": "type",
}  # fmt: skip
NO_WORD = re.compile(
    r"did you mean|leave (it|out)|there is no run|there are a, b, c|change its arguments|module\.Class"
)


def list_advice(sentence: str) -> list[str]:
    """The words behind the last "type", "try", "add" or "as in" of a sentence, of the first of several ways."""
    key = sentence.partition("=")[0]
    sentence = re.sub(r"\btype (one of|a number from) (?!.*=)", f"type {key}=", sentence)
    for blank, value in BLANKS.items():
        sentence = sentence.replace(blank, value)
    sentence = re.sub(r"models that do: (\w+)", r"type model=\1", sentence)
    *_, advice = re.split(r"\b(?:type|try|add|as in)\b", sentence)
    if advice == sentence:
        return []
    way = re.split(r",? or (?=[a-z_.]+=)|; |, and | beside ", advice)[0] or advice
    words = WORD.findall(way) or WORD.findall(advice)
    return [" ".join(shlex.split(word.rstrip("."))) for word in words]


def key_of(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def take(words: tuple[str, ...], message: str, advice: list[str]) -> list[str]:
    """The command line with the advice in place of what it is about."""
    about = {key_of(word) for word in advice}
    about.add(key_of(message.split()[0]))
    return [*(word for word in words if key_of(word) not in about), *advice]


CASES: list[tuple[str, ...]] = [
    (*LINE, "trainer.epochs=null"),
    (*LINE, "trainer.epochs=x"),
    (*LINE, "trainer.grad_clip_norm=0"),
    (*LINE, "data.batch_size=0"),
    (*LINE, "data.loader=ram"),
    (*LINE, "checkpoint.keep=0"),
    (*LINE, "checkpoint.mode=max"),
    (*LINE, "checkpoint.monitor=val/loss"),
    (*LINE, "checkpoint.monitor=train/los"),
    (*LINE, "device.precision=fp8"),
    (*LINE, "device.num_threads=0"),
    (*LINE, "tracking.evolution_every_epochs=0"),
    (*LINE, "optimizer=nosuch"),
    (*LINE, "optimizer._target_=null"),
    (*LINE, "data.num_workers=2", "trainer.max_steps=1"),
    (*LINE, "scheduler.interval=step", "trainer.max_steps=1"),
    (*LINE, "trainer.early_stopping.min_delta=1", "trainer.max_steps=1"),
    (*LINE, "optimizer=sgd", "optimizer.dampening=0.5", "trainer.max_steps=1"),
    (*LINE, "trainer.max_steps=9", "trainer.epochs=1", "data.batch_size=500"),
    (*LINE, "optimizer.groups=[{lr: 1}]"),
    (*LINE, "optimizer=exhaustive", "optimizer.step=0"),
    (*LINE, "optimizer=exhaustive", "optimizer.low=9"),
    (*LINE, "optimizer=exhaustive", "optimizer.refine=99"),
    (*BLOBS, "model=mlp", "optimizer=exhaustive"),
    (*BLOBS, "model=mlp", "model.hidden_sizes=[999,999]", "optimizer=numeric_gradient"),
    (*LINE, "optimizer=numeric_gradient"),
    (*LINE, "optimizer=numeric_gradient", "optimizer.epsilon=0"),
    (*LINE, "optimizer=numeric_gradient", "device.precision=fp16"),
    (*LINE, "scheduler=plateau", "scheduler.interval=step"),
    (*LINE, "scheduler=step", "scheduler.step_size=0"),
    (*LINE, "scheduler=one_cycle", "scheduler.total_steps=2"),
    (*LINE, "task.loss=los"),
    (*LINE, "data.drop_last=true", "data.batch_size=999"),
    (*LINE, "probes=[[1,2,3]]"),
    (*LINE, "init_from=nosuch"),
    ("data=points", "data.x=[1,2]", "data.y=[0,1]", "model=linear", *QUIET, "data.class_names=[a,b]"),
    ("data=points", "data.x=[]", "data.y=[1,2,3]", "model=linear", *QUIET),
    ("data=points", "data.x=[1,2]", "data.y=[0,1]", "data.task=some", "model=linear", *QUIET),
    ("data=hello", "model=rnn_cell", *QUIET, "data.source=''"),
    ("data=hello", "model=rnn_cell", *QUIET, "data.source=ab", "data.target=abc"),
    ("data=digits", "model=linear", *QUIET, "data.positive=11"),
    ("data=digits", "model=linear", *QUIET, "data.test_fraction=2"),
    ("data=parabola", "model=linear", *QUIET, "data.noise=some"),
    (*BLOBS, "model=mlp", "data.task=regression"),
    ("data=flower", "model=mlp", *QUIET, "data.task=regression"),
    (*BLOBS, "model=mlp", "model.activation=rel"),
    (*BLOBS, "model=mlp", "model.dropout=1.5"),
    (*BLOBS, "model=mlp", "model.hidden_sizes=[0]"),
    (*BLOBS, "model=cnn"),
    ("data=hello", "model=gru", *QUIET, "model.layers=1", "model.dropout=0.5"),
    (*BLOBS, "model=sequential", "model.layers=[Flatten,{Linear:[in,out]},{LogSoftmax:1}]"),
    (*BLOBS, "model=sequential", "model.layers=[Flatten,{Linear:[in,out]},{LogSoftmax:1}]", "task.loss=mse"),
    ("data=csv", "data.path=nosuch.csv", "model=linear", *QUIET),
    ("data=csv", "data.path=.", "model=linear", *QUIET),
    ("data=csv", "data.path=rows.csv", "data.target=nosuch", "model=linear", *QUIET),
    ("data=csv", "data.path=rows.csv", "data.target=99", "model=linear", *QUIET),
    ("data=csv", "data.path=rows.csv", "data.task=some", "model=linear", *QUIET),
    ("data=csv", "model=linear", *QUIET),
    (*LINE, "+seed=1"),
    (*LINE, "hydra.job.name=x"),
    (*LINE, "paths.outputs=rows.csv/x", "trainer.max_steps=1"),
]  # fmt: skip


@pytest.fixture
def table(dlrun: Callable[..., Any]) -> Callable[..., Any]:
    rows = np.random.default_rng(0).normal(size=(60, 3))
    np.savetxt("rows.csv", rows, delimiter=",", header="a,b,c", comments="")
    return dlrun


@pytest.mark.slow
@pytest.mark.parametrize("words", CASES, ids=lambda words: " ".join(words[-2:]))
def test_advice_does_not_lead_to_the_same_refusal(words: tuple[str, ...], table: Callable[..., Any]) -> None:
    check = () if words[-1].startswith("trainer.max_steps") else ("check",)
    refused = table(*check, *words)
    message = (refused.err.removeprefix("dlrun: ") or refused.out.partition("note: ")[2]).splitlines()[0]
    advice = list_advice(message)
    assert advice or NO_WORD.search(message), message
    if not advice:
        return
    again = table(*check, *take(words, message, advice))
    assert again.code == 0, (message, advice, again.err)
    assert message not in again.out


@pytest.mark.slow
def test_words_for_every_key_are_taken(dlrun: Callable[..., Any]) -> None:
    """Of each key of the schema, given a value that it cannot hold, the sentence names one that it can."""
    composed = compose.compose_config([*LINE])
    composed = {k: v for k, v in compose.resolve(composed).items() if k != "hydra"}
    choices = dict.fromkeys(("data", "model", "optimizer", "scheduler"), "x")
    count = 0
    answers: dict[str, str | None] = {}
    for key in flatten(composed):
        if key.split(".")[0] in choices and key.split(".")[1] not in OURS:
            continue
        for wrong in (-7, {"a": 1}, "wrong words"):
            message = refusal(composed, key, wrong, choices)
            for word in list_advice(message or ""):
                count += 1
                # Sentences about several wrong values of a key name the same word.
                if word not in answers:
                    value = OverridesParser.create().parse_override(word).value()
                    answers[word] = refusal(composed, key_of(word), value, choices)
                assert answers[word] != message, (message, word)
    assert count > 80


def refusal(plain: dict[str, Any], key: str, value: Any, choices: dict[str, str]) -> str | None:
    """What is said of a config with this value; None where nothing is."""
    changed = copy.deepcopy(plain)
    *sections, last = key.split(".")
    section = changed
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = value
    try:
        read_settings(changed, choices)
    except RequestError as error:
        return str(error)
    return None


@pytest.mark.slow
def test_words_for_every_setting_of_a_choice_are_taken() -> None:
    """The same for the arguments of every model, data set, optimizer and schedule."""
    count = 0
    for group, keys in schema.KEYS.items():
        for path in sorted((schema.CONFIG_DIR / group).glob("*.yaml")):
            values = OmegaConf.to_container(OmegaConf.load(path))
            assert isinstance(values, dict)
            target = values.pop("_target_")
            if target is None:
                continue
            # Where a schedule says null, dlrun fills in the length of the training before it looks.
            filled = ("???", None) if group == "scheduler" else ("???",)
            arguments = {k: (1 if v in filled else v) for k, v in values.items() if k not in OURS}
            given = 0 if group == "data" else 1
            for key in arguments:
                if group == "scheduler" and values[key] is None:
                    continue  # dlrun fills in the length of the training
                for wrong in ({"a": 1}, "wrong words"):
                    component = Component(group, path.stem, target, {**arguments, key: wrong}, keys())
                    with pytest.MonkeyPatch.context() as patched:
                        patched.setitem(arguments, key, wrong)
                        try:
                            build.check_component(component, None, given)
                        except RequestError as error:
                            message = str(error)
                        else:
                            continue
                    for word in shlex.split(message.partition("; type ")[2]):
                        count += 1
                        value = OverridesParser.create().parse_override(word).value()
                        again = Component(
                            group, path.stem, target, {**arguments, key_of(word).split(".")[1]: value}, keys()
                        )
                        build.check_component(again, None, given)
    assert count > 60


OURS = {f.name for keys in schema.KEYS.values() for f in dataclasses.fields(keys)}
