"""YAML that OmegaConf reads back as it was written."""

import math
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf

from dlrun.config.schema import CONFIG_DIR
from dlrun.core.yaml import _dump, dump_yaml, read_yaml


def dump_and_read(value: Any) -> Any:
    return OmegaConf.to_container(OmegaConf.create(dump_yaml({"x": value})), resolve=False)["x"]  # type: ignore[index,call-overload]


@pytest.mark.parametrize(
    "value",
    [
        *(1, -3, 0.1, 1e-5, 1e30, 10.0, True, None, 2**70),
        *("1e3", "1_000", "0x1F", "true", "yes", "off", "null", "~", "", " a ", "a: b", "# no", "é×", "${x}", "1:30"),
        *("nan", ".inf", "[1]", "{a}", "- a", "a\nb", "'q'", '"', "\t", "0o7", "12e03", "=", "2026-11-21", "a" * 300),
        [1, "2", [], {}, {"k": None}],
        {"b": 1, "a": {"1": "1"}},
    ],
)
def test_what_was_written_is_read(value: Any) -> None:
    assert dump_and_read(value) == value
    assert type(dump_and_read(value)) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": 1, "b": {"c": [1, {"d": None}], "e": {}}},
        {"hydra": {"run": {"dir": "x"}, "list": [], "null": None, "words": ["a=1", "b: c"]}},
        {"hydra": {"text": "two\nlines", "other": 1}},
        {"null": {"a": 1}},
        {"one": {}},
        {"one": 1},
        {1: {"a": 1}},
    ],
)
def test_sections_are_written_as_the_whole_is(value: Any) -> None:
    for _ in range(2):
        assert dump_yaml(value) == _dump(value)


def test_values_that_are_equal_and_not_the_same_are_kept_apart() -> None:
    for same in (1, True, 1.0, "1"):
        assert dump_yaml({"a": same, "b": 0}) == _dump({"a": same, "b": 0})
    changed = {"a": [1], "b": 0}
    dump_yaml(changed)
    changed["a"].append(2)  # type: ignore[attr-defined]
    assert dump_yaml(changed) == "a:\n- 1\n- 2\nb: 0\n"


def test_infinities_and_nan_are_read() -> None:
    assert dump_and_read(math.inf) == math.inf
    assert math.isnan(dump_and_read(math.nan))


@pytest.mark.slow
def test_every_config_of_ours_is_read_back() -> None:
    for path in CONFIG_DIR.rglob("*.yaml"):
        plain = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if plain:
            assert dump_and_read(plain) == plain, path


def test_keys_keep_their_order_and_equal_parts_are_written_out() -> None:
    part = {"z": 1, "a": 2}
    assert dump_yaml({"q": part, "b": part}) == "q:\n  z: 1\n  a: 2\nb:\n  z: 1\n  a: 2\n"


TEXTS = [
    'a: "x\nb: 1"\n',
    "a: {b: 1,\nc: 2}\nd: 3\n",
    "a: |\n  b: 1\n\n  c\nd:\n- 1\n- [2]\n",
    "a: x\n y\nb:\n",
    "yes: 1\noff: 2\n",
    "a: 1\n...\nb: 2\n",
    "a: 1\n---\nb: 2\n",
    "a: 1\n# note\nb: 2\n",
    "a: 1\rb: 2\nc: 3\n",
    "a: 1\nb: 2\na: 3\n",
    "a: 1\n'b': 2\n",
    "a: 1\nb\n",
    "a: 1\nb: !!python/object/apply:os.getcwd []\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_read_by_section_is_what_the_whole_says(text: str) -> None:
    try:
        expected = yaml.safe_load(text)
    except yaml.YAMLError:
        expected = None
    # One that holds a key twice is refused.
    if expected is None or text.count("a:") > 1:
        with pytest.raises(ValueError, match=r"."):
            read_yaml(text)
        return
    for _ in range(2):
        values = read_yaml(text)
        assert values == expected
        # The next reader gets what the file says.
        for value in values.values():
            if isinstance(value, list | dict):
                value.clear()
