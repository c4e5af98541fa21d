"""Composes many command lines that differ in a few words, quickly."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from dlrun.config import hydra_internals

# An interpolation that is nothing but the name of another key.
_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+)*)\}")

# A variable of the environment, which is the same for all points.
_VARIABLE = re.compile(r"\$\{oc\.env:[^${}]*\}")


def to_plain(raw_config: DictConfig) -> dict[str, Any]:
    """Evaluate the interpolations of a config, in place, and return it as plain values.

    A mandatory value that is still missing is the text `???`.
    """
    OmegaConf.resolve(raw_config)
    return cast(dict[str, Any], OmegaConf.to_container(raw_config, resolve=False, enum_to_str=True))


@dataclass(frozen=True)
class _Template:
    """A config with its choices and no other values, as plain values."""

    plain: dict[str, Any]
    # Keys that interpolations of the config name; None if one of them is more than a name.
    references: list[str] | None


class Composer:
    """Composes the choices of groups with Hydra, once for each combination of them, and then sets the values.

    Hydra itself reads the defaults list anew for every point: 75 ms a point, this takes 1, or 8 where a value is more
    than a number or a word.
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
        self._bases: dict[tuple[str, ...], tuple[DictConfig, DictConfig]] = {}
        self._templates: dict[tuple[str, ...], _Template] = {}

    def compose(self, words: Sequence[str], number: int = 0) -> DictConfig:
        """Compose the config of one point, not resolved, and set HydraConfig to it. Hydra's exceptions pass through."""
        values, choices = self._split(words, number)
        base, _ = self._load_base(choices)
        # The base serves all points with these choices.
        raw_config = copy.deepcopy(base)
        _apply(values, raw_config)
        return raw_config

    def compose_plain(self, words: Sequence[str], number: int = 0) -> DictConfig | dict[str, Any]:
        """As `compose`, but plain values where the words set numbers and text alone, and of keys no other names."""
        values, choices = self._split(words, number)
        base, _ = self._load_base(choices)
        if choices not in self._templates:
            self._templates[choices] = _Template(to_plain(copy.deepcopy(base)), _list_references(base))

        template = self._templates[choices]
        keys = [override.key_or_group for override in values]
        if not all(_is_plain(override, base, template) for override in values):
            return self.compose(words, number)

        before = {key: OmegaConf.select(base, key) for key in keys}
        config = cast(dict[str, Any], _copy(template.plain))
        try:
            _apply(values, base)
            for key in keys:
                *sections, last = key.split(".")
                block = config
                for section in sections:
                    block = block[section]
                # Not as it was typed: the schema makes a float of an int.
                block[last] = OmegaConf.select(base, key)
        finally:
            for key, value in before.items():
                OmegaConf.update(base, key, value)

        return config

    def _split(self, words: Sequence[str], number: int) -> tuple[list[Override], tuple[str, ...]]:
        """The overrides that set values, and the choices of groups. HydraConfig is set to the point."""
        overrides = [self._parse(word) for word in words]
        values = [override for override in overrides if not self._is_choice(override)]
        choices = tuple(str(override.input_line) for override in overrides if override not in values)

        _, settings = self._load_base(choices)
        job = settings.hydra.job
        # The job's own values, which interpolations such as that of hydra.sweep.subdir read.
        job.override_dirname = hydra_internals.format_override_dirname(overrides, job.config.override_dirname)
        job.num = number
        job.id = number
        settings.hydra.overrides.task = list(words)
        return values, choices

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

    def _load_base(self, choices: tuple[str, ...]) -> tuple[DictConfig, DictConfig]:
        """The config with these choices and no other values, and Hydra's own part of it, which HydraConfig is set to.

        The caller must copy the first and may change the second.
        """
        if choices not in self._bases:
            base = self._loader.load_configuration(self._config_name, [*self._hydra_overrides, *choices], RunMode.RUN)
            if self._master is not None:
                # One time stamp, and the sweep folder that the words name.
                OmegaConf.copy_cache(from_config=self._master, to_config=base)
                base.hydra.sweep.dir = str(self._master.hydra.sweep.dir)
            settings = copy.deepcopy(base)
            with open_dict(base):
                base.pop("hydra")
            self._bases[choices] = (base, settings)

        base, settings = self._bases[choices]
        hydra_internals.set_hydra_config(settings)
        return base, settings


def _apply(values: list[Override], config: DictConfig) -> None:
    try:
        hydra_internals.apply_overrides(values, config)
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


def _is_plain(override: Override, base: DictConfig, template: _Template) -> bool:
    """Whether an override replaces one plain value by another one, and changes nothing else."""
    key = override.key_or_group
    if override.type != OverrideType.CHANGE or template.references is None or override.is_sweep_override():
        return False
    # Another class drops the settings of the one it replaces.
    if key.endswith("._target_"):
        return False
    for reference in template.references:
        if f"{key}.".startswith(f"{reference}.") or reference.startswith(f"{key}."):
            return False

    value = override.value()
    if not (value is None or isinstance(value, bool | int | float | str)) or "${" in str(value):
        return False
    *sections, last = key.split(".")
    block: Any = base
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


def _copy(value: Any) -> Any:
    """Copy dictionaries and lists; a tenth of what copy.deepcopy takes."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value
