"""The config files of a composition: which keys each of them sets, and which files are the user's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dlrun.config.schema import CONFIG_DIR
from dlrun.core.yaml import flatten

# Hydra puts it in front of the path of a folder.
_FILE_SCHEME = "file://"


@dataclass(frozen=True)
class ConfigFile:
    """One file of a composition."""

    path: Path
    # Dotted, as a command line names them.
    keys: frozenset[str]
    # Groups that its defaults list chooses an option for, as "hydra/launcher".
    groups: frozenset[str]

    @property
    def is_own(self) -> bool:
        """Whether it is the user's own, and not one of dlrun's."""
        return CONFIG_DIR.resolve() not in self.path.resolve().parents


class ConfigFiles:
    """Looks up the files of compositions, once for those of a sweep's jobs that choose alike."""

    def __init__(self) -> None:
        self._by_choices: dict[Any, list[ConfigFile]] = {}

    def look_up(self, loader: ConfigLoader, hydra: DictConfig, words: Sequence[str]) -> list[ConfigFile]:
        """Return the files behind a composed config except config.yaml, the table of contents. Takes 0.2 s.

        hydra: Hydra's own part of the composed config; words: the overrides.
        """
        name = str(hydra.job.config_name)
        choices = cast(dict[str, Any], OmegaConf.to_container(hydra.runtime.choices))
        # The choices decide which files are read; the other words only set values.
        key = (name, *sorted(choices.items()))
        if key not in self._by_choices:
            self._by_choices[key] = _read_files(loader, name, words)
        return self._by_choices[key]


def has_own_files(hydra: DictConfig) -> bool:
    """Whether a folder of the user's own is among those that a config was composed from."""
    for source in hydra.runtime.config_sources:
        if source.schema == "file" and Path(source.path).resolve() != CONFIG_DIR.resolve():
            return True
    return False


def _read_files(loader: ConfigLoader, name: str, words: Sequence[str]) -> list[ConfigFile]:
    defaults: list[ResultDefault] = loader.compute_defaults_list(name, list(words), RunMode.RUN).defaults
    files = [_read_file(loader, entry) for entry in defaults]
    return [file for file in files if file is not None and file.path != CONFIG_DIR / "config.yaml"]


def _read_file(loader: Any, entry: ResultDefault) -> ConfigFile | None:
    """Read a file of the defaults list; None for an entry that is no file, such as the schema."""
    if entry.config_path is None or not loader.repository.config_exists(entry.config_path):
        return None
    source = loader.repository.load_config(entry.config_path)
    if source is None or not source.path.startswith(_FILE_SCHEME):
        return None

    values = cast(dict[str, Any], OmegaConf.to_container(source.config, resolve=False))
    values.pop("defaults", None)
    prefix = f"{entry.package}." if entry.package else ""
    keys = frozenset(f"{prefix}{key}" for key in flatten(values))

    group_defaults = [default for default in source.defaults_list or [] if isinstance(default, GroupDefault)]
    groups = frozenset(str(default.group).lstrip("/") for default in group_defaults)

    folder = Path(source.path.removeprefix(_FILE_SCHEME))
    return ConfigFile(folder / f"{entry.config_path.removesuffix('.yaml')}.yaml", keys, groups)
