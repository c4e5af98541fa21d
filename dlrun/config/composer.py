"""Many command lines that differ in a few words, composed quickly."""

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
        fixed: Sequence[str] = (),
        master: DictConfig | None = None,
        config_name: str = "config",
    ) -> None:
        """fixed: words of Hydra's own; master: the sweep's config, whose time stamps all points share."""
        self._loader, self._fixed, self._master = loader, list(fixed), master
        self._config_name = config_name
        self._parser = OverridesParser.create(config_loader=loader)
        self._groups: dict[str, bool] = {}  # whether a key is one: Hydra needs 13 ms to tell
        self._bases: dict[tuple[str, ...], tuple[DictConfig, DictConfig]] = {}

    def compose(self, words: Sequence[str], number: int = 0) -> DictConfig:
        """The config of one point, not resolved; HydraConfig is of this point afterwards. Hydra's exceptions pass."""
        parsed = self._parser.parse_overrides(list(words))
        valued = [o for o in parsed if not self._chooses(o)]
        base, settings = self._base(tuple(str(o.input_line) for o in parsed if o not in valued))
        composed = copy.deepcopy(base)
        try:
            hydra_internals.apply_overrides(valued, composed)
        except OmegaConfBaseException as error:
            raise ConfigCompositionException().with_traceback(error.__traceback__) from error
        job = settings.hydra.job
        naming = job.config.override_dirname
        job.override_dirname = hydra_internals.format_override_dirname(parsed, naming)
        job.num, job.id, settings.hydra.overrides.task = number, number, list(words)
        return composed

    def _chooses(self, override: Override) -> bool:
        """Whether a word is about the defaults list: an option of a group, as Hydra tells it from a value."""
        key = override.key_or_group
        if override.package is not None or "." in key or isinstance(override.value(), dict):
            return override.package is not None
        if key not in self._groups:
            self._groups[key] = bool(self._loader.get_group_options(key))
        return self._groups[key]

    def _base(self, choosing: tuple[str, ...]) -> tuple[DictConfig, DictConfig]:
        """The config with these choices and without other values, and Hydra's own part of it."""
        if choosing not in self._bases:
            whole = self._loader.load_configuration(self._config_name, [*self._fixed, *choosing], RunMode.RUN)
            if self._master is not None:
                OmegaConf.copy_cache(from_config=self._master, to_config=whole)
                whole.hydra.sweep.dir = str(self._master.hydra.sweep.dir)  # one time stamp, and the words' own paths
            settings = copy.deepcopy(whole)
            with open_dict(whole):
                whole.pop("hydra")
            self._bases[choosing] = whole, settings
        base, settings = self._bases[choosing]
        hydra_internals.set_hydra_config(settings)
        return base, settings
