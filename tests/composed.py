"""What Hydra makes of dlrun's own config files, remembered: it reads all of them anew for every command line.

Three steps of a composition depend on the choices of groups and on these files alone, and take most of its 0.1 s: a
file read, the defaults list, and the merged config before any value is set. Each is taken once for each choice, by
whichever worker of a test run comes first: they share a folder. Where a folder of a test's own takes part, what is in
its files belongs to the choices; a command composes several times with one.
"""

import copy
import functools
import hashlib
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra.core.config_store import ConfigStore
from omegaconf import base

from dlrun.config.schema import CONFIG_DIR

OWN_SOURCES = [("pkg", "hydra.conf"), ("file", str(CONFIG_DIR)), ("structured", "")]


class Memory:
    """Stands in for the three steps; a copy of each result is pickled, so that nobody can change it.

    folder: where other workers find the results.
    """

    def __init__(self, folder: Path) -> None:
        self.folder: Path | None = folder
        self.results: dict[Any, bytes] = {}
        self.schema: Any = None
        self.load = ConfigRepository.load_config
        self.create_defaults_list = config_loader_impl.create_defaults_list
        self.create_interpolation_map = defaults_list._create_interpolation_map
        self.merge = ConfigLoaderImpl._compose_config_from_defaults_list

    def load_config(self, repo: ConfigRepository, config_path: str) -> Any:
        """ConfigRepository.load_config."""
        place = describe_others(repo)
        if place and not any(source.is_config(config_path) for source in other_sources(repo)):
            place = ""
        key = ("file", place, config_path)
        if self.knows(key, repo):
            return self.recall(key)
        return self.keep(key, self.load(repo, config_path))

    def defaults_list(
        self, repo: Any, config_name: str | None, overrides_list: list[Any], prepend_hydra: bool, skip_missing: bool
    ) -> Any:
        """create_defaults_list."""
        overrides = Overrides(repo=repo, overrides_list=overrides_list)
        additions = [vars(default) for default in overrides.append_group_defaults]
        choices = repr((overrides.override_choices, additions, overrides.deletions))
        key = ("list", describe_others(repo), config_name, prepend_hydra, skip_missing, choices)
        if self.knows(key, repo):
            defaults, tree, overrides.known_choices = self.recall(key)
            return DefaultsList(defaults, tree, overrides.config_overrides, overrides)

        result = self.create_defaults_list(repo, config_name, overrides_list, prepend_hydra, skip_missing)
        self.keep(key, (result.defaults, result.defaults_tree, result.overrides.known_choices))
        return result

    def interpolation_map(self, overrides: Overrides, defaults: list[Any], self_added: bool) -> Any:
        """_create_interpolation_map, a third of a defaults list; only interpolations look at it."""
        if any(default.is_interpolation() for default in defaults):
            return self.create_interpolation_map(overrides, defaults, self_added)
        return {}

    def merge_config(self, loader: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> Any:
        """ConfigLoaderImpl._compose_config_from_defaults_list."""
        key = ("config", describe_others(repo), repr([vars(entry) for entry in defaults]))
        if self.knows(key, repo):
            return self.recall(key)
        return self.keep(key, self.merge(loader, defaults=defaults, repo=repo))

    def knows(self, key: Any, repo: Any) -> bool:
        """Whether a step was taken before with the same schema and the same files."""
        schema = ConfigStore.instance().repo.get("schema.yaml")
        if schema is not self.schema:
            # A test has put another schema in place: no worker but this one has it.
            if self.schema is not None:
                self.folder = None
            self.schema = schema
            self.results.clear()
        if key not in self.results and self.folder and is_own(key) and self.path_of(key).exists():
            self.results[key] = self.path_of(key).read_bytes()
        return key in self.results

    def path_of(self, key: Any) -> Path:
        """The file of a result."""
        assert self.folder is not None
        return self.folder / hashlib.sha256(repr(key).encode()).hexdigest()

    def recall(self, key: Any) -> Any:
        """The result of a step."""
        return pickle.loads(self.results[key])

    def keep(self, key: Any, result: Any) -> Any:
        """Remember the result of a step."""
        if key[1] is not None:
            self.results[key] = pickle.dumps(result)
        if self.folder and is_own(key):
            path = self.path_of(key)
            temporary = path.with_suffix(f".{os.getpid()}")
            temporary.write_bytes(self.results[key])
            temporary.replace(path)
        return result


def is_own(key: Any) -> bool:
    """Whether a step looks at nothing but dlrun's own and Hydra's files, which are the same for all workers."""
    return bool(key[1] == "")


def other_sources(repo: Any) -> list[Any]:
    """The places of configs that are neither dlrun's nor Hydra's."""
    return [source for source in repo.get_sources() if (source.scheme(), source.path) not in OWN_SOURCES]


def describe_others(repo: Any) -> str | None:
    """What the files of other places hold: "" where there are none, None where a place is no folder of files."""
    places = [(source.scheme(), source.path) for source in repo.get_sources()]
    if places == OWN_SOURCES:
        return ""
    others = other_sources(repo)
    if [place for place in places if place in OWN_SOURCES] != OWN_SOURCES or {o.scheme() for o in others} != {"file"}:
        return None

    content: list[Any] = list(places)
    try:
        for source in others:
            content += [(str(path), path.read_bytes()) for path in sorted(Path(source.path).rglob("*.y*ml"))]
    except OSError:
        return None
    return hashlib.sha256(repr(content).encode()).hexdigest()


def initialize(repo: CachingConfigRepository, delegate: Any) -> None:
    """CachingConfigRepository.__init__, which copies the sources, the whole store of configs among them."""
    repo.delegate = copy.copy(delegate)
    repo.cache = {}


@contextmanager
def use_memory(folder: Path) -> Iterator[Memory]:
    """Compose with a memory that lies in a folder."""
    folder.mkdir(exist_ok=True)
    memory = Memory(folder)
    stand_ins: list[tuple[Any, str, Any]] = [
        (CachingConfigRepository, "__init__", initialize),
        # The tree of an interpolation, which is read only: a millisecond each, and a config of ours has fourteen.
        (base, "parse", functools.cache(base.parse)),
        (ConfigRepository, "load_config", lambda repo, config_path: memory.load_config(repo, config_path)),
        (config_loader_impl, "create_defaults_list", memory.defaults_list),
        (defaults_list, "_create_interpolation_map", memory.interpolation_map),
        (
            ConfigLoaderImpl,
            "_compose_config_from_defaults_list",
            lambda loader, defaults, repo: memory.merge_config(loader, defaults, repo),
        ),
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in stand_ins]
    for owner, name, stand_in in stand_ins:
        setattr(owner, name, stand_in)
    try:
        yield memory
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
