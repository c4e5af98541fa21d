"""Composes many command lines that differ in a few words, quickly."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from dlrun.config import hydra_internals
from dlrun.config.hydra_part import HydraPart
from dlrun.core.yaml import copy_plain

# An interpolation that is nothing but the name of another key.
_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+)*)\}")

# Points that differ in lists or sections each need one of their own, which is as large as a config.
_MOST_TEMPLATES = 16

# A variable of the environment, which is the same for all points.
_VARIABLE = re.compile(r"\$\{oc\.env:[^${}]*\}")


def to_plain(raw_config: DictConfig) -> dict[str, Any]:
    """Evaluate the interpolations of a config, in place, and return it as plain values.

    A mandatory value that is still missing is the text `???`.
    """
    OmegaConf.resolve(raw_config)
    return cast(dict[str, Any], OmegaConf.to_container(raw_config, resolve=False, enum_to_str=True))


@dataclass(frozen=True)
class _Base:
    """A config with its choices and no other values."""

    # Whatever is changed in it is put back.
    config: DictConfig
    # The same with Hydra's part, to which HydraConfig is set.
    settings: DictConfig
    hydra: HydraPart


@dataclass(frozen=True)
class _Template:
    """A config with its choices and some values, to which a point adds numbers and text."""

    # Changed and put back while a value is tried.
    config: DictConfig
    plain: dict[str, Any]
    # Keys that interpolations of the config name; None if one of them is more than a name.
    references: list[str] | None
    # Whether a word sets one plain value and nothing else, and what the value becomes.
    is_plain: dict[str, bool] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """A composed point, of which HydraConfig is set to Hydra's part."""

    # Plain values are resolved.
    config: DictConfig | dict[str, Any]
    # Belongs to the point until the next one is composed.
    hydra: HydraPart


class Composer:
    """Composes the choices of groups with Hydra, once for each combination of them, and then sets the values.

    Hydra itself reads the defaults list anew for every point: 75 ms a point, this takes 1, or 8 where the points differ
    in more than numbers and words.
    """

    def __init__(
        self,
        loader: ConfigLoader,
        hydra_overrides: Sequence[str] = (),
        master: DictConfig | None = None,
        config_name: str = "config",
    ) -> None:
        """hydra_overrides: of Hydra's own keys; master: the sweep's config, whose time stamp all points share."""
        self._loader = loader
        self._hydra_overrides = list(hydra_overrides)
        self._master = master
        self._config_name = config_name
        self._parser = OverridesParser.create(config_loader=loader)

        self._parsed: dict[str, Override] = {}
        # Whether a key is a group: Hydra needs 13 ms to tell.
        self._is_group: dict[str, bool] = {}
        self._bases: dict[tuple[str, ...], _Base] = {}
        # By the choices and the other words that are part of a template; the oldest one goes first.
        self._templates: dict[tuple[tuple[str, ...], tuple[str, ...]], _Template] = {}

    def compose_point(self, words: Sequence[str], number: int = 0) -> Point:
        """Compose one point, and set HydraConfig to it. Hydra's exceptions pass through."""
        config = self.compose_plain(words, number)
        _, choices = self._split(words)
        return Point(config, self._load_base(choices).hydra)

    def compose(self, words: Sequence[str], number: int = 0) -> DictConfig:
        """The config of one point, not resolved."""
        values, choices = self._enter_point(words, number)
        # The base serves all points with these choices.
        raw_config = copy.deepcopy(self._load_base(choices).config)
        _apply(values, raw_config)
        return raw_config

    def compose_plain(self, words: Sequence[str], number: int = 0) -> DictConfig | dict[str, Any]:
        """As `compose`, but plain values where no interpolation depends on what the words set."""
        values, choices = self._enter_point(words, number)
        template = self._load_template(choices, [])
        others = [override for override in values if not _is_plain(override, template)]
        # Another class drops the settings of the one it replaces, which is left to the caller.
        if any(override.key_or_group.endswith("._target_") for override in others):
            return self.compose(words, number)
        if others:
            # Lists, sections, and keys that interpolations name: points share most of these.
            values = [override for override in values if override not in others]
            if any(_overlap(one.key_or_group, other.key_or_group) for one in values for other in others):
                # Which one counts depends on their order.
                return self.compose(words, number)
            try:
                template = self._load_template(choices, others)
            except ConfigCompositionException:
                # In the order of the words another one may be the first that is wrong.
                return self.compose(words, number)

        if template.references is None or not all(_is_plain(override, template) for override in values):
            return self.compose(words, number)

        config = cast(dict[str, Any], copy_plain(template.plain))
        for override in values:
            *sections, last = override.key_or_group.split(".")
            block = config
            for section in sections:
                block = block[section]
            block[last] = _convert(override, template)

        return config

    def _load_template(self, choices: tuple[str, ...], others: Sequence[Override]) -> _Template:
        """The template with these choices and these values. Hydra's exceptions pass through."""
        key = (choices, tuple(str(override.input_line) for override in others))
        if key not in self._templates:
            config = self._load_base(choices).config
            if others:
                config = copy.deepcopy(config)
                _apply(others, config)
            template = _Template(config, to_plain(copy.deepcopy(config)), _list_references(config))
            if len(self._templates) >= _MOST_TEMPLATES:
                del self._templates[next(iter(self._templates))]
            self._templates[key] = template
        return self._templates[key]

    def _enter_point(self, words: Sequence[str], number: int) -> tuple[list[Override], tuple[str, ...]]:
        """The overrides that set values, and the choices of groups. HydraConfig is set to the point."""
        values, choices = self._split(words)
        # The job's own values, which interpolations such as that of hydra.sweep.subdir read.
        overrides = [self._parse(word) for word in words]
        self._load_base(choices).hydra.set_point(words, overrides, number)
        return values, choices

    def _split(self, words: Sequence[str]) -> tuple[list[Override], tuple[str, ...]]:
        """The overrides that set values, and the choices of groups."""
        values: list[Override] = []
        choices: list[str] = []
        for override in map(self._parse, words):
            if self._is_choice(override):
                choices.append(str(override.input_line))
            else:
                values.append(override)
        return values, tuple(choices)

    def _parse(self, word: str) -> Override:
        """Parse one override; the points of a sweep share most of their words."""
        if word not in self._parsed:
            self._parsed[word] = self._parser.parse_overrides([word])[0]
        return self._parsed[word]

    def _is_choice(self, override: Override) -> bool:
        """Whether an override chooses an option of a group rather than a value, by Hydra's own rules."""
        if override.package is not None:
            return True
        key = override.key_or_group
        if "." in key or isinstance(override.value(), dict):
            return False
        if key not in self._is_group:
            self._is_group[key] = bool(self._loader.get_group_options(key))
        return self._is_group[key]

    def _load_base(self, choices: tuple[str, ...]) -> _Base:
        """The config with these choices, which HydraConfig is set to."""
        if choices not in self._bases:
            base = self._loader.load_configuration(self._config_name, [*self._hydra_overrides, *choices], RunMode.RUN)
            if self._master is not None:
                # One time stamp, and the sweep folder that the words name.
                OmegaConf.copy_cache(from_config=self._master, to_config=base)
                base.hydra.sweep.dir = str(self._master.hydra.sweep.dir)
            settings = copy.deepcopy(base)
            with open_dict(base):
                base.pop("hydra")
            self._bases[choices] = _Base(base, settings, HydraPart(settings.hydra))

        hydra_internals.set_hydra_config(self._bases[choices].settings)
        return self._bases[choices]


def _convert(override: Override, template: _Template) -> Any:
    """The value of a word that sets one plain value. Hydra's exceptions pass through."""
    word = str(override.input_line)
    if word not in template.values:
        key = override.key_or_group
        before = OmegaConf.select(template.config, key)
        try:
            _apply([override], template.config)
            # Not as it was typed: the schema makes a float of an int.
            template.values[word] = OmegaConf.select(template.config, key)
        finally:
            OmegaConf.update(template.config, key, before)
    return template.values[word]


def _overlap(key: str, other: str) -> bool:
    """Whether one of two keys is the other, or a part of it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _apply(values: Sequence[Override], config: DictConfig) -> None:
    try:
        hydra_internals.apply_overrides(list(values), config)
    except OmegaConfBaseException as error:
        raise ConfigCompositionException().with_traceback(error.__traceback__) from error


def _list_references(config: DictConfig) -> list[str] | None:
    references: list[str] = []
    pending: list[Any] = [OmegaConf.to_container(config, resolve=False)]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, str) and "${" in value and not _VARIABLE.fullmatch(value):
            match = _REFERENCE.fullmatch(value)
            if match is None:
                return None
            references.append(match[1])
    return references


def _is_plain(override: Override, template: _Template) -> bool:
    """Whether an override replaces one plain value by another one, and changes nothing else."""
    word = str(override.input_line)
    if word not in template.is_plain:
        template.is_plain[word] = _replaces_plain_value(override, template)
    return template.is_plain[word]


def _replaces_plain_value(override: Override, template: _Template) -> bool:
    key = override.key_or_group
    if override.type != OverrideType.CHANGE or template.references is None or override.is_sweep_override():
        return False
    # Another class drops the settings of the one it replaces.
    if key.endswith("._target_"):
        return False
    if any(_overlap(key, reference) for reference in template.references):
        return False

    value = override.value()
    if not (value is None or isinstance(value, bool | int | float | str)) or "${" in str(value):
        return False
    *sections, last = key.split(".")
    block: Any = template.config
    for section in sections:
        if not isinstance(block, DictConfig) or section not in block or OmegaConf.is_interpolation(block, section):
            return False
        block = block[section]
    if not isinstance(block, DictConfig) or last not in block:
        return False
    if OmegaConf.is_interpolation(block, last) or OmegaConf.is_missing(block, last):
        return False
    old = block[last]
    return old is None or isinstance(old, bool | int | float | str)
