"""From words on a command line to requests: what is to be trained, each fully composed."""

import argparse
import contextlib
import copy
import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra
import hydra._internal.hydra
from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from dlrun.config import schema as config
from dlrun.config import sweep_points, unheeded
from dlrun.config.composer import Composer
from dlrun.config.files import ConfigFile, ConfigFiles, has_own_files
from dlrun.core import run_names
from dlrun.core.errors import DlrunError, RequestError, describe_os_error, did_you_mean
from dlrun.core.literals import Literals
from dlrun.core.terminal import write_error

GROUPS = ("data", "model", "optimizer", "scheduler", "device", "lesson", "experiment", "debug")
_PLUGINS = str(Path(__file__).parent / "plugins")  # Hydra looks for a package hydra_plugins on sys.path
IN_POINTS = "sweep.points"  # a note on exceptions, for the sentences that explain.py makes of them


@dataclass(frozen=True)
class Request:
    """One run that is asked for."""

    config: dict[str, Any]  # resolved: plain values, in which `${` is text
    choices: dict[str, str]  # group -> option
    overrides: list[str]
    hydra: dict[str, Any] | None = None  # what Hydra knows of it
    folder: Path | None = None  # null: a new one under paths.outputs
    sweep: Path | None = None  # the sweep's folder, when the run is a job of one
    group: Path | None = None  # the folder of those runs that one request named in sweep.points
    extra: list[str] = field(default_factory=list)  # those of the overrides that sweep.points added
    key: str = ""  # of a job that a sweep's ledger knows
    trusted_modules: list[str] | None = (
        None  # a list when the config comes from a saved run: see experiment/build/targets.py
    )
    going_on: bool = False  # continue the run in `folder`
    words: list[str] = field(default_factory=list)  # this command line
    processes: int | None = None  # that the run in `folder` began with
    notes: list[str] = field(default_factory=list)  # what the user should know
    keys_in_files: dict[str, str] = field(default_factory=dict)  # key -> config file of the user's own that sets it


def from_command_line(words: Sequence[str]) -> list[Request]:
    """Compose what Hydra's command line asks for: one request, or one a job of a sweep (-m).

    Empty when Hydra itself answered (--cfg, --info, shell completion). Hydra's exceptions pass through.
    """
    found: list[Request] = []
    files = ConfigFiles()

    def capture(composed: DictConfig) -> None:
        found.extend(_expanded(_captured(composed, list(words), files), files))
        if len(found) > found[0].config["sweep"]["max_jobs"]:
            raise RequestError(f"the sweep has {len(found):,} points and more; type sweep.max_jobs=<as many as it has>")

    asked = flags(words)
    if not answered(asked):
        unheeded.refuse_hydra(asked.overrides)
    # Hydra wants them together.
    words = [*_without(words, asked.overrides), *(quote_letters(word) for word in asked.overrides)]
    capture.__module__ = "dlrun.config.request"
    said = io.StringIO()
    try:
        # Hydra tells of an exception on stderr, besides raising it.
        with _argv(words), _composed_once(asked), _no_job_begun(), contextlib.redirect_stderr(said):
            register()
            main = hydra.main(version_base="1.3", config_path=str(config.CONFIG_DIR), config_name="config")
            try:
                main(capture)()
            except SystemExit as left:  # --hydra-help exits once it is printed
                if left.code or not answered(asked):
                    raise
        if said.getvalue():
            write_error(said.getvalue().removesuffix("\n"))
    except Exception as error:  # what Hydra, its parser and PyYAML raise, see below
        if isinstance(error, HydraException | OmegaConfBaseException | DlrunError):
            raise
        if isinstance(error, OSError):
            raise RequestError(describe_os_error(error)) from error
        if _is_raised_here(error):
            raise
        raise HydraException(str(error)) from error  # its parser and PyYAML have errors of their own
    if asked.multirun and not found and not answered(asked):
        named = " ".join(word for word in words if "=" in word)
        raise RequestError(f"the sweep has no jobs: a choice is empty, or handed to other processes; change {named}")
    repeated = unheeded.find_repeated(asked.overrides)
    return [replace(request, notes=[*request.notes, *repeated]) for request in found]


def _is_raised_here(error: Exception) -> bool:
    """Whether an exception is a fault of dlrun's own lines, and not of a library that looks at what was typed."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(__file__).parent.parent in Path(last.filename).resolve().parents


def quote_letters(word: str) -> str:
    """key=value with quotes around a plain value of other letters than ASCII, which Hydra takes only so."""
    key, equals, value = word.partition("=")
    if not equals or value.isascii() or not key.isascii() or set(value) & set("'\"[]{}(),$\\"):
        return word
    return f'{key}="{value}"'


def _without(words: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The flags of a command line, with their values, in their order."""
    left = list(overrides)
    return [word for word in words if not (word in left and not left.remove(word))]  # type: ignore[func-returns-value]


def overrides_of(words: Sequence[str]) -> list[str]:
    """The words of a command line that are about keys, without flags and their values."""
    return list(flags(words).overrides)


def names_several_values(word: str) -> bool:
    """Whether a word of a command line makes a sweep: key=1,2 or key=range(3)."""
    return OverridesParser.create().parse_override(word).is_sweep_override()


def answered(asked: argparse.Namespace) -> bool:
    """Whether Hydra itself has answered a command line: it was asked for a config, not for a run."""
    return bool(asked.cfg or asked.info or asked.shell_completion or asked.hydra_help)


def flags(words: Sequence[str]) -> argparse.Namespace:
    """Hydra's flags and the overrides between them; RequestError where Hydra would print its usage and exit."""
    parser = get_args_parser()
    known = [name for action in parser._actions for name in action.option_strings]

    def refuse(message: str) -> NoReturn:
        wrong = next((word for word in words if word.startswith("-") and word.partition("=")[0] not in known), "")
        hint = did_you_mean(wrong, known) if wrong else ""
        raise RequestError(f"{message}; {hint}dlrun --help shows the flags")

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_intermixed_args(list(words))


def register() -> None:
    """What composing needs: the schema, our sweeper and launcher, and the resolver that config.yaml uses."""
    config.register()
    if "hydra_plugins.dlrun_sweeper" not in sys.modules:
        sys.path.append(_PLUGINS)
        try:
            ours = importlib.import_module("hydra_plugins.dlrun_sweeper")
            for plugin in (ours.DlrunSweeper, ours.DlrunLauncher):
                Plugins.instance().register(plugin)  # who has used Hydra before in this process has it look no more
        finally:
            sys.path.remove(_PLUGINS)
    if not OmegaConf.has_resolver("dlrun.folder_name"):
        OmegaConf.register_new_resolver("dlrun.folder_name", run_names.folder_name)


@contextlib.contextmanager
def _argv(words: Sequence[str]) -> Iterator[None]:
    """Hydra reads sys.argv, and must raise its errors instead of exiting; its globals are afterwards as they were."""
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    theirs: Any = (GlobalHydra.instance(), HydraConfig.instance())
    was = theirs[0].hydra, theirs[1].cfg
    handlers, level = list(logging.root.handlers), logging.root.level  # --info adds a handler
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = ["dlrun", *words], "1"
    theirs[0].clear()
    try:
        yield
    finally:
        sys.argv = before
        os.environ.pop("HYDRA_FULL_ERROR")
        if full is not None:
            os.environ["HYDRA_FULL_ERROR"] = full
        theirs[0].hydra, theirs[1].cfg = was
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)


@contextlib.contextmanager
def _composed_once(asked: argparse.Namespace) -> Iterator[None]:
    """Hydra composes everything twice, first to look for hydra.mode: not where only our own configs could set it."""
    has_own = any([asked.config_dir, asked.config_path, asked.config_name])
    ours = ("hydra.mode", "hydra.searchpath", "hydra/")
    hydra_class: Any = Hydra
    before = {name: getattr(Hydra, name) for name in ("get_mode", "run", "multirun")}
    if has_own:
        hydra_class.run = _refusing(Hydra.run, RunMode.RUN)
        hydra_class.multirun = _refusing(Hydra.multirun, RunMode.MULTIRUN)
    elif not any(word.lstrip("+~").startswith(ours) for word in asked.overrides):
        hydra_class.get_mode = lambda *_, **__: None
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(Hydra, name, function)


@contextlib.contextmanager
def _no_job_begun() -> Iterator[None]:
    """Hydra hands on what it has composed, and begins no job with it: a run makes its own folder and log."""
    module: Any = hydra._internal.hydra
    before = module.run_job
    module.run_job = _hand_on
    try:
        yield
    finally:
        module.run_job = before


def _hand_on(task_function: Callable[[DictConfig], None], config: DictConfig, **_: Any) -> JobReturn:
    """Stand in for Hydra's run_job, which makes a folder, sets up logging, and copies all of the config four times."""
    folder = os.path.abspath(str(OmegaConf.select(config, "hydra.run.dir")))  # noqa: PTH100  # as Hydra writes it
    settings = copy.deepcopy(config)
    with read_write(settings.hydra.runtime), open_dict(settings.hydra.runtime):
        settings.hydra.runtime.output_dir = folder
    cast(Any, HydraConfig.instance()).cfg = settings  # its own setter copies all of it

    with read_write(config), open_dict(config):
        del config["hydra"]
    task_function(config)
    return JobReturn(status=JobStatus.COMPLETED)


def _refusing(run: Callable[..., Any], mode: RunMode) -> Callable[..., Any]:
    """Hydra's `run` or `multirun`, which refuses what dlrun does before a callback or sweeper of Hydra's is made."""

    def check_and_run(hydra_itself: Hydra, config_name: str, *arguments: Any, **keywords: Any) -> Any:
        overrides = keywords["overrides"]
        composed = hydra_itself.compose_config(config_name, overrides, mode, with_log_configuration=False)
        refuse_partial(composed, config_name)
        files = ConfigFiles().of(hydra_itself.config_loader, composed.hydra, overrides)
        unheeded.refuse_hydra_in_files([file for file in files if file.is_own])
        return run(hydra_itself, config_name, *arguments, **keywords)

    return check_and_run


def _captured(composed: DictConfig, words: list[str], files: ConfigFiles) -> Request:
    """A composed job with all that Hydra knows of it, resolved while Hydra's resolvers still answer."""
    settings = cast(DictConfig, HydraConfig.get())
    multirun = settings.mode is not None and settings.mode.name == "MULTIRUN"
    folder = None
    if multirun:
        folder = Path(settings.sweep.dir) / settings.sweep.subdir
    elif settings.run.dir != ".":
        folder = Path(settings.run.dir)
    typed = cast(list[str], OmegaConf.to_container(settings.overrides.task))  # as they are: list() would interpolate
    overrides = config.recorded_words(typed)
    request = _resolved(composed, settings, overrides, folder, words, files)
    unheeded.refuse_other_folder(flags(words).overrides, multirun, bool(request.config["sweep"]["points"]))
    return request


def refuse_partial(composed: DictConfig, name: str) -> None:
    """RequestError for a config of the user's own that does not build on dlrun's."""
    if any(block.name not in composed for block in fields(config.Config)):
        raise RequestError(
            f"--config-name {name} is no whole config; begin that file with defaults: [config, _self_], so that it "
            "changes dlrun's own"
        )


def _resolved(
    composed: DictConfig,
    settings: DictConfig,
    overrides: list[str],
    folder: Path | None,
    words: list[str],
    files: ConfigFiles,
) -> Request:
    choices = {k: str(v) for k, v in settings.runtime.choices.items() if v is not None and not k.startswith("hydra")}
    for group in ("data", "model", "optimizer", "scheduler"):
        if group not in choices:
            raise RequestError(f"{group} takes one choice; type {group}=<one of `dlrun ls {group}`>")
        own_target(composed, group, overrides, choices)
    all_files = _files_of(settings, overrides, files) if has_own_files(settings) else []
    own = [file for file in all_files if file.is_own]
    unheeded.refuse_hydra_in_files(own)

    plain = resolved(composed)
    if _ends_by_steps(plain["trainer"], settings, overrides, files):
        plain["trainer"]["epochs"] = None
    multirun = settings.mode is not None and settings.mode.name == "MULTIRUN"
    return Request(
        config=plain,
        choices=choices,
        overrides=overrides,
        hydra=_recorded_settings(settings),
        folder=folder,
        sweep=Path(settings.sweep.dir) if multirun else None,
        words=words,
        keys_in_files={key: str(file.path) for file in own for key in sorted(file.keys)},
    )


def _files_of(settings: DictConfig, overrides: Sequence[str], files: ConfigFiles) -> list[ConfigFile]:
    """The config files behind a composed config."""
    of_hydra = cast(list[str], OmegaConf.to_container(settings.overrides.hydra))
    return files.of(GlobalHydra.instance().config_loader(), settings, [*of_hydra, *overrides])


def _ends_by_steps(trainer: dict[str, Any], settings: DictConfig, overrides: Sequence[str], files: ConfigFiles) -> bool:
    """Whether the steps alone end a training: trainer.max_steps is given, and the epochs by nobody."""
    if trainer["max_steps"] is None or trainer["epochs"] != config.TrainerConfig().epochs:
        return False
    if "trainer.epochs" in map(unheeded.key_of, overrides):
        return False

    # Only a lesson, an overlay or a file of the user's own may name as many epochs as there are by default.
    is_plain = not any(settings.runtime.choices.get(group) for group in ("lesson", "experiment", "debug"))
    if is_plain and not has_own_files(settings):
        return True
    return not any("trainer.epochs" in file.keys for file in _files_of(settings, overrides, files))


def _recorded_settings(settings: DictConfig) -> dict[str, Any]:
    """What Hydra knows of a job, as hydra.yaml holds it: without permissions."""
    plain = cast(dict[str, Any], OmegaConf.to_container(settings, resolve=False, enum_to_str=True))
    words = plain["overrides"]["task"]
    kept = config.recorded_words(words)
    if len(kept) < len(words):
        naming = plain["job"]["config"]["override_dirname"]
        parsed = OverridesParser.create().parse_overrides(kept)
        excluded = naming["exclude_keys"]
        name = get_overrides_dirname(parsed, excluded, naming["item_sep"], naming["kv_sep"])
        plain["overrides"]["task"], plain["job"]["override_dirname"] = kept, name
    return plain


def _expanded(request: Request, files: ConfigFiles) -> list[Request]:
    """The runs that the request names in sweep.points, each in a folder under the request's own."""
    loader, given = GlobalHydra.instance().config_loader(), request.overrides
    asked = request.config["sweep"]
    if any(word.startswith("sweep.points=") for word in given):  # points typed beside a choice are meant for it
        given = [word for word in given if word.partition("=")[0] not in GROUPS]
    try:
        named = sweep_points.overrides(asked["points"], given, loader, asked["max_jobs"])
    except Exception as error:  # it is raised again
        error.add_note(IN_POINTS)
        raise
    if named in ([], [[]]):
        return [request]
    group, made = request.folder or Path(HydraConfig.get().sweep.dir), []
    composer = Composer(loader, config_name=str(HydraConfig.get().job.config_name))
    for i, extra in enumerate(named):
        words = [*(word for word in request.overrides if not word.startswith("sweep.points=")), *extra]
        try:
            composed = composer.compose(words)
        except Exception as error:  # it is raised again
            error.add_note(IN_POINTS)
            raise
        folder = group / f"{i}_{run_names.folder_name(','.join(extra))}"
        one = _resolved(composed, cast(DictConfig, HydraConfig.get()), words, folder, request.words, files)
        made.append(replace(one, sweep=request.sweep or group, group=group, extra=extra))
    return made


def own_target(composed: DictConfig, group: str, overrides: list[str], choices: dict[str, str]) -> None:
    """`model._target_=mynet.Net` on the command line: the settings of the option that it replaces go with it."""
    keys = [word.partition("=")[0].lstrip("+") for word in overrides]
    if f"{group}._target_" not in keys:
        return
    block = composed[group]
    kept = {f.name for f in fields(config.KEYS[group])} | {"_target_"}
    kept |= {key.split(".")[1] for key in keys if key.startswith(f"{group}.")}
    OmegaConf.set_struct(composed, False)
    for key in [key for key in block if key not in kept]:
        del block[key]
    choices[group] = str(block["_target_"]).rpartition(".")[2]


def resolved(composed: DictConfig) -> dict[str, Any]:
    """A config as plain values, with its expressions evaluated; what has no value yet is `???`."""
    OmegaConf.resolve(composed)
    return cast(dict[str, Any], OmegaConf.to_container(composed, resolve=False, enum_to_str=True))


def from_saved(saved: dict[str, Any], choices: dict[str, str], overrides: list[str], run: Path | None) -> Request:
    """A saved run's config with this command line's overrides on top; Hydra's exceptions pass through.

    What is saved is data: no expression in it is evaluated, and no permission in it holds. The overrides may refer to
    its keys.
    """
    literals, chosen = Literals(), dict(choices)
    defaults = config.Config()
    plain = literals.hide(config.recorded(saved))
    merged = OmegaConf.create({**plain, **{key: getattr(defaults, key) for key in config.PERMISSIONS}})
    trusted: list[str] = []
    named: list[str] = []
    for override in OverridesParser.create().parse_overrides([quote_letters(word) for word in overrides]):
        key, value = override.key_or_group, override.value()
        named.append(key)
        if override.is_sweep_override():
            raise RequestError(f"{override.input_line} names several values; only one can be used here")
        if key in GROUPS:
            _choose(merged, key, str(value))
            chosen[key] = str(value)
            continue
        added = override.is_add() or override.is_force_add()
        if not added and OmegaConf.select(merged, key, default=_ABSENT) is _ABSENT:
            raise UnknownKey(key, merged)
        OmegaConf.update(merged, key, value, merge=True, force_add=True)
        if key == "trusted_modules":
            trusted += [str(v) for v in value] if isinstance(value, list) else [str(value)]
        elif key.endswith("._target_") or key == "task.loss":
            trusted.append(str(value))  # this command line names it, and nothing else in its module
    _find_data(merged, str(plain["paths"]["data"]), named)
    notes = [
        f"{key} in the saved config is ignored; only this command can give it"
        for key in config.PERMISSIONS
        if saved.get(key)
    ]
    notes += unheeded.find_repeated(overrides)
    return Request(
        literals.restore(resolved(merged)), chosen, overrides, folder=run, trusted_modules=trusted, notes=notes
    )


def _choose(merged: DictConfig, group: str, option: str) -> None:
    """Another option for one group of a saved config; of the device, its precision and threads stay."""
    if group in ("lesson", "experiment", "debug"):
        raise RequestError(f"{group}={option} makes a new run; here only data, model and device can be chosen anew")
    composed = compose([f"{group}={option}"])
    if group == "device":
        merged.device.name = composed.device.name
    else:
        merged[group] = composed[group]


_ABSENT = object()


class UnknownKey(Exception):
    """A key that a saved config does not have; explain.py makes a sentence of it."""

    def __init__(self, key: str, known: DictConfig) -> None:
        super().__init__(key)
        self.key, self.known = key, known


def _find_data(merged: DictConfig, before: str, named: Sequence[str]) -> None:
    """Data that lay elsewhere when the run was saved are looked for where this machine has them.

    named: the keys of this command line. No folder that only the saved run names is made for a download.
    """
    if "paths.data" not in named and not Path(merged.paths.data).expanduser().exists():
        merged.paths.data = os.environ.get("DLRUN_DATA_DIR") or config.DATA_FOLDER

    root = merged.data.get("root")
    is_gone = isinstance(root, str) and "data.root" not in named and not Path(root).expanduser().exists()
    if root == before or is_gone:
        merged.data.root = merged.paths.data


def compose(overrides: list[str]) -> DictConfig:
    """The whole config for some overrides, not resolved yet; Hydra's exceptions pass through."""
    register()
    with hydra.initialize_config_dir(config_dir=str(config.CONFIG_DIR), version_base="1.3"):
        return hydra.compose(config_name="config", overrides=overrides)
