"""Requests: one run that is to be trained, fully composed, from a command line or from a saved run."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from dlrun.config import hydra_internals, project, schema, search_space, sweep_points, unheeded
from dlrun.config.callbacks import get_canonical_key
from dlrun.config.compose import (
    GROUPS,
    PRESETS,
    add_plus,
    compose_config,
    is_answered_by_hydra,
    parse_flags,
    put_flags_first,
    quote_letters,
    resolve,
    run_hydra,
)
from dlrun.config.composer import Composer, Point, to_plain
from dlrun.config.files import ConfigFile, ConfigFiles
from dlrun.config.hydra_part import HydraPart, format_option
from dlrun.config.overrides import get_key
from dlrun.core.errors import RequestError
from dlrun.core.format import count_digits, format_folder_name
from dlrun.core.garbage import pause_collection
from dlrun.core.literals import Literals
from dlrun.core.own_code import list_metric_targets

# A note on exceptions, for the sentences that explain.py makes of them.
IN_POINTS = "sweep.points"

_ABSENT = object()


@dataclass(frozen=True)
class Request:
    """One run to train, evaluate or resume."""

    # Resolved: plain values, in which `${` is text.
    config: dict[str, Any]
    # Group -> option.
    choices: dict[str, str]
    overrides: list[str]
    # Hydra's own part of the composed config.
    hydra: dict[str, Any] | None = None
    # None: a new one under paths.outputs.
    folder: Path | None = None
    # The sweep's folder, when the run is a job of one.
    sweep: Path | None = None
    # The folder of those runs that one request named in sweep.points.
    group: Path | None = None
    # Those of the overrides that sweep.points added.
    extra: list[str] = field(default_factory=list)
    # Keys that differ between the jobs of the sweep.
    varied: list[str] = field(default_factory=list)
    # Key of a job in the ledger of its sweep.
    key: str = ""
    # A list when the config comes from a saved run: see experiment/builder/targets.py.
    trusted_modules: list[str] | None = None
    # Resume the run in `folder`.
    continues: bool = False
    # This command line.
    words: list[str] = field(default_factory=list)
    # Number of processes that the run in `folder` began with.
    processes: int | None = None
    # Folder and run_id of the run that this one repeats with changes.
    parent: dict[str, str] | None = None
    # What to tell the user about the request.
    notes: list[str] = field(default_factory=list)
    # Key -> config file of the user's own that sets it.
    keys_in_files: dict[str, str] = field(default_factory=dict)
    # In a search, composes the requests of further points.
    search: "PointComposer | None" = None


class UnknownKey(Exception):
    """A key that a saved config does not have; explain.py makes a sentence of it."""

    def __init__(self, key: str, config: DictConfig) -> None:
        super().__init__(key)
        self.key = key
        self.config = config


# From a command line


@pause_collection()
def from_command_line(words: Sequence[str]) -> list[Request]:
    """Compose a command line: one request, or one for each job of a sweep (-m).

    Empty if Hydra itself answered (--cfg, --info, shell completion). Hydra's exceptions pass through.
    """
    flags = parse_flags(words)
    if not is_answered_by_hydra(flags):
        unheeded.refuse_hydra(flags.overrides)

    hydra_words = put_flags_first(words, flags.overrides)
    configs = project.find_configs()
    if configs is not None and flags.config_dir == str(configs):
        # As if it were typed, so that the recorded command works elsewhere too.
        hydra_words = [*project.list_flags(), *hydra_words]
    requests: list[Request] = []
    files = ConfigFiles()

    def capture(job: DictConfig | Point) -> None:
        # A single run is composed by Hydra itself.
        point = job if isinstance(job, Point) else Point(job, HydraPart(cast(DictConfig, HydraConfig.get())))
        request = _capture_job(point, list(hydra_words), files, flags.overrides)
        if flags.multirun and request.config["sweep"]["search"] is not None:
            unheeded.refuse_in_search(flags.overrides, request.config["sweep"])
            search = requests[0].search if requests else PointComposer(request, flags.overrides, files)
            requests.append(replace(request, search=search))
            return
        if flags.multirun:
            unheeded.refuse_outside_search(flags.overrides)

        requests.extend(_expand_points(request, files))
        # Counted as they arrive: composing the points of a mistyped range could take hours.
        if len(requests) > requests[0].config["sweep"]["max_jobs"]:
            count = len(requests)
            raise RequestError(f"the sweep has {count:,} points and more; type sweep.max_jobs=<as many as it has>")

    # Hydra names the job after the module of its task function.
    capture.__module__ = "dlrun.config.request"

    run_hydra(hydra_words, flags, capture)

    if flags.multirun and not requests and not is_answered_by_hydra(flags):
        overrides = " ".join(word for word in hydra_words if "=" in word)
        raise RequestError(
            f"the sweep has no jobs: a choice is empty, or handed to other processes; change {overrides}"
        )
    notes = unheeded.find_repeated(flags.overrides)
    return [replace(request, notes=[*request.notes, *notes]) for request in requests]


def _capture_job(point: Point, words: list[str], files: ConfigFiles, typed: Sequence[str]) -> Request:
    """Make a request of a composed job, while Hydra's resolvers still answer; typed: all overrides of the words."""
    folder = point.hydra.get_folder()
    overrides = schema.strip_permission_words(point.hydra.words)
    request = _make_request(point, overrides, folder, words, files)

    has_points = bool(request.config["sweep"]["points"])
    unheeded.refuse_other_folder(typed, point.hydra.is_multirun, has_points)
    return request


def _make_request(
    point: Point, overrides: list[str], folder: Path | None, words: list[str], files: ConfigFiles
) -> Request:
    """Check and resolve a composed config."""
    raw_config = point.config
    part = point.hydra
    choices = dict(part.choices)
    for group in ("data", "model", "optimizer", "scheduler"):
        if group not in choices:
            raise RequestError(f"{group} takes one choice; type {group}=<one of `dlrun ls {group}`>")
        # Plain values are of words that name no class.
        if isinstance(raw_config, DictConfig):
            _replace_target(raw_config, group, overrides, choices)

    own_files: list[ConfigFile] = []
    # Looking up the files takes 0.2 s, and dlrun's own need no check.
    if part.has_own_files:
        own_files = [file for file in _look_up_files(part.settings, overrides, files) if file.is_own]
    unheeded.refuse_hydra_in_files(own_files)

    config = resolve(raw_config, set(map(get_key, overrides)))
    if _is_ended_by_steps(config["trainer"], part, overrides, files):
        config["trainer"]["epochs"] = None

    # The last file that sets a key wins.
    keys_in_files: dict[str, str] = {}
    for file in own_files:
        for key in sorted(file.keys):
            keys_in_files[key] = str(file.path)

    return Request(
        config=config,
        choices=choices,
        overrides=overrides,
        hydra=_record_hydra(part),
        folder=folder,
        sweep=part.get_sweep_folder() if part.is_multirun else None,
        words=words,
        keys_in_files=keys_in_files,
    )


def _replace_target(raw_config: DictConfig, group: str, overrides: list[str], choices: dict[str, str]) -> None:
    """Drop the settings of the option that `model._target_=mynet.Net` on the command line replaces."""
    keys = [word.partition("=")[0].lstrip("+") for word in overrides]
    if f"{group}._target_" not in keys:
        return

    block = raw_config[group]
    remaining = {f.name for f in fields(schema.KEYS[group])}
    remaining.add("_target_")
    remaining.update(key.split(".")[1] for key in keys if key.startswith(f"{group}."))

    OmegaConf.set_struct(raw_config, False)
    for key in list(block):
        if key not in remaining:
            del block[key]
    choices[group] = str(block["_target_"]).rpartition(".")[2]


def _look_up_files(settings: DictConfig, overrides: Sequence[str], files: ConfigFiles) -> list[ConfigFile]:
    """The config files behind a composed config."""
    hydra_words = cast(list[str], OmegaConf.to_container(settings.overrides.hydra))
    return files.look_up(GlobalHydra.instance().config_loader(), settings, [*hydra_words, *overrides])


def _is_ended_by_steps(trainer: dict[str, Any], part: HydraPart, overrides: Sequence[str], files: ConfigFiles) -> bool:
    """Whether the steps alone end the training: trainer.max_steps is set, and trainer.epochs by nobody."""
    if trainer["max_steps"] is None or trainer["epochs"] != schema.TrainerConfig().epochs:
        return False
    if "trainer.epochs" in map(get_key, overrides):
        return False

    # Only a lesson, an overlay or a file of the user's own may name as many epochs as there are by default.
    is_plain = not any(part.choices.get(group) for group in PRESETS)
    if is_plain and not part.has_own_files:
        return True
    return not any("trainer.epochs" in file.keys for file in _look_up_files(part.settings, overrides, files))


def _record_hydra(part: HydraPart) -> dict[str, Any]:
    """Hydra's own part of a config as hydra.yaml holds it: without permissions."""
    plain = part.to_plain()
    words = plain["overrides"]["task"]
    lasting_words = schema.strip_permission_words(words)
    if len(lasting_words) < len(words):
        naming = plain["job"]["config"]["override_dirname"]
        overrides = OverridesParser.create().parse_overrides(lasting_words)
        name = hydra_internals.format_override_dirname(overrides, naming)
        # The sections belong to all points.
        plain["overrides"] = plain["overrides"] | {"task": lasting_words}
        plain["job"] = plain["job"] | {"override_dirname": name}
    return plain


def _expand_points(request: Request, files: ConfigFiles) -> list[Request]:
    """The runs that a request names in sweep.points, each in a folder under the request's own."""
    keys = request.config["sweep"]
    if not keys["points"]:
        return [request]

    loader = GlobalHydra.instance().config_loader()
    overrides = request.overrides
    if any(word.startswith("sweep.points=") for word in overrides):
        # Points typed beside a choice are meant for it.
        overrides = [word for word in overrides if word.partition("=")[0] not in GROUPS]
    try:
        points = sweep_points.expand_points(keys["points"], overrides, loader, keys["max_jobs"])
    except Exception as error:
        # Whatever Hydra raises for a line of sweep.points; it passes through.
        error.add_note(IN_POINTS)
        raise
    if points in ([], [[]]):
        return [request]

    group = request.folder or Path(HydraConfig.get().sweep.dir)
    composer = Composer(loader, config_name=str(HydraConfig.get().job.config_name))
    common = [word for word in request.overrides if not word.startswith("sweep.points=")]
    requests = []
    for number, extra in enumerate(points):
        words = [*common, *extra]
        try:
            composed = composer.compose_point(words)
        except Exception as error:
            # Passes through, too.
            error.add_note(IN_POINTS)
            raise
        folder = group / f"{number:0{count_digits(len(points))}}_{format_folder_name(','.join(extra))}"
        point = _make_request(composed, words, folder, request.words, files)
        requests.append(replace(point, sweep=request.sweep or group, group=group, extra=extra))
    return requests


class PointComposer:
    """Composes the points of a search, each when its turn comes: the command line has long been read by then."""

    def __init__(self, example: Request, overrides: Sequence[str], files: ConfigFiles) -> None:
        """example: one of the points, with the settings that all share; overrides: all words of the command line.

        To be made while Hydra composes that point. RequestError for words that cannot be searched.
        """
        settings = cast(DictConfig, HydraConfig.get())
        loader = GlobalHydra.instance().config_loader()
        words = [add_plus(quote_letters(word)) for word in overrides]
        own_words = [word for word in words if not get_key(word).startswith(("hydra.", "hydra/"))]
        hydra_words = cast(list[str], OmegaConf.to_container(settings.overrides.hydra))

        self.space = search_space.read_space(OverridesParser.create(config_loader=loader).parse_overrides(own_words))
        self._example = example
        self._files = files
        self._hydra = GlobalHydra.instance().hydra
        self._composer = Composer(loader, hydra_words, config_name=str(settings.job.config_name))

    def adopt(self, words: list[str], sweep: Path, trusted_modules: list[str]) -> None:
        """Compose for a search that is resumed: the words of this command, its folder, and what it may import."""
        self._example = replace(self._example, words=words, sweep=sweep, trusted_modules=trusted_modules)

    def compose(self, point: Sequence[str], seed: int) -> Request:
        """The request of a point, without a folder. Hydra's exceptions pass through."""
        words = [word for word in self.space.make_words(point) if get_key(word) != "seed"]
        words.append(f"seed={seed}")
        with hydra_internals.enter_hydra(self._hydra):
            composed = self._composer.compose_point(words)
            overrides = schema.strip_permission_words(words)
            request = _make_request(composed, overrides, None, self._example.words, self._files)
        return replace(request, sweep=self._example.sweep, trusted_modules=self._example.trusted_modules)


# From a saved run


def from_saved(saved: dict[str, Any], choices: dict[str, str], overrides: list[str], run: Path | None) -> Request:
    """Put this command line's overrides on top of a saved run's config. Hydra's exceptions pass through.

    The saved config is data: no interpolation in it is evaluated, and no permission in it counts. The overrides may
    refer to its keys.
    """
    literals = Literals()
    plain = literals.hide(schema.strip_permissions(saved))
    defaults = schema.Config()
    no_permissions = {key: getattr(defaults, key) for key in schema.PERMISSIONS}
    # Runs of older versions have no such section, and may be given a name.
    labels = asdict(schema.RunConfig())
    # So is the choice of loggers, and new are keys of the task.
    loggers = {"tensorboard": {"_target_": schema.TENSORBOARD}}
    task = asdict(schema.TaskConfig()) | (plain.get("task") or {})
    # Sweeps of older versions may be resumed on a cluster.
    engines = {key: value for key, value in asdict(schema.SweepConfig()).items() if key in ("engine", "ray", "slurm")}
    sweep = engines | (plain.get("sweep") or {})
    recorded = {"run": labels, "logger": loggers, **plain}
    config = OmegaConf.create({**recorded, "task": task, "sweep": sweep, **no_permissions})

    new_choices = dict(choices)
    trusted_modules: list[str] = []
    keys: list[str] = []
    for override in OverridesParser.create().parse_overrides([add_plus(quote_letters(word)) for word in overrides]):
        # A saved config has dlrun's own callbacks under the keys that they are recorded by.
        override.key_or_group = get_canonical_key(override.key_or_group)
        key = override.key_or_group
        keys.append(key)
        if override.is_sweep_override():
            raise RequestError(f"{override.input_line} names several values; only one can be used here")
        if key in GROUPS:
            option = format_option(override.value())
            _replace_option(config, key, option)
            new_choices[key] = option
        else:
            _set_value(config, override)
            trusted_modules += _list_trusted_names(override)

    _relocate_data(config, str(plain["paths"]["data"]), keys)
    notes = []
    for key in schema.PERMISSIONS:
        if saved.get(key):
            notes.append(f"{key} in the saved config is ignored; only this command can give it")
    notes += unheeded.find_repeated(overrides)

    plain_config = literals.restore(to_plain(config))
    return Request(plain_config, new_choices, overrides, folder=run, trusted_modules=trusted_modules, notes=notes)


def _replace_option(config: DictConfig, group: str, option: str) -> None:
    """Take another option for one group of a saved config; of the device, its precision and threads stay."""
    if group in ("task", "callbacks", *PRESETS):
        raise RequestError(f"{group}={option} makes a new run; here only data, model and device can be chosen anew")
    raw_config = compose_config([f"{group}={option}"])
    if group == "device":
        config.device.name = raw_config.device.name
    else:
        config[group] = raw_config[group]


def _set_value(config: DictConfig, override: Override) -> None:
    """Set one value; UnknownKey unless the key is there or is added with a plus."""
    key = override.key_or_group
    is_added = override.is_add() or override.is_force_add()
    if not is_added and OmegaConf.select(config, key, default=_ABSENT) is _ABSENT:
        raise UnknownKey(key, config)
    OmegaConf.update(config, key, override.value(), merge=True, force_add=True)


def _list_trusted_names(override: Override) -> list[str]:
    """Names that an override permits the run to import: trusted modules, and the target or loss that it sets."""
    key = override.key_or_group
    value = override.value()
    if key == "trusted_modules":
        return [str(item) for item in value] if isinstance(value, list) else [str(value)]
    if key == "task.metrics":
        return [name for name in list_metric_targets(value) if "." in name]
    if key.endswith("._target_") or key == "task.loss":
        # This command line names it, and nothing else in its module.
        return [str(value)]
    return [str(value)] if is_logger_address(key, value) else []


def is_logger_address(key: str, value: Any) -> bool:
    """Whether a value tells a logger where to send or write; no module has such a name."""
    return key.startswith("logger.") and isinstance(value, str) and bool(set(value) & set("/:"))


def _relocate_data(config: DictConfig, before: str, keys: Sequence[str]) -> None:
    """Look for data in this machine's folder if they lay elsewhere when the run was saved.

    before: paths.data of the saved run; keys: those of this command line. No folder that only the saved run names
    is made for a download.
    """
    if "paths.data" not in keys and not Path(config.paths.data).expanduser().exists():
        config.paths.data = os.environ.get("DLRUN_DATA_DIR") or schema.DATA_FOLDER

    root = config.data.get("root")
    is_gone = isinstance(root, str) and "data.root" not in keys and not Path(root).expanduser().exists()
    if root == before or is_gone:
        config.data.root = config.paths.data
