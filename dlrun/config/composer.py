"""Composes many command lines that differ in a few words, quickly."""

import copy
from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from dlrun.config import hydra_internals


class Composer:
    """Composes the choices of groups with Hydra, once for each combination of them, and then sets the values.

    Hydra itself reads the defaults list anew for every point: 75 ms a point, this takes 3.
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

    def compose(self, words: Sequence[str], number: int = 0) -> DictConfig:
        """Compose the config of one point, not resolved, and set HydraConfig to it. Hydra's exceptions pass through."""
        overrides = [self._parse(word) for word in words]
        values = [override for override in overrides if not self._is_choice(override)]
        choices = tuple(str(override.input_line) for override in overrides if override not in values)

        base, settings = self._load_base(choices)
        # The base serves all points with these choices.
        raw_config = copy.deepcopy(base)
        try:
            hydra_internals.apply_overrides(values, raw_config)
        except OmegaConfBaseException as error:
            raise ConfigCompositionException().with_traceback(error.__traceback__) from error

        job = settings.hydra.job
        # The job's own values, which interpolations such as that of hydra.sweep.subdir read.
        job.override_dirname = hydra_internals.format_override_dirname(overrides, job.config.override_dirname)
        job.num = number
        job.id = number
        settings.hydra.overrides.task = list(words)
        return raw_config

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
