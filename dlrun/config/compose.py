"""Composing with Hydra: a list of overrides, or a whole command line with Hydra's flags and sweeps."""

import argparse
import contextlib
import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from dlrun.config import hydra_internals, project, schema, unheeded
from dlrun.config.callbacks import resolve_aliases
from dlrun.config.composer import to_plain
from dlrun.config.files import ConfigFiles
from dlrun.config.hydra_internals import Hydra
from dlrun.core.errors import DlrunError, RequestError, describe_os_error
from dlrun.core.format import format_folder_name
from dlrun.core.suggest import did_you_mean
from dlrun.core.terminal import write_error

GROUPS = (
    "data", "model", "optimizer", "scheduler", "task", "callbacks", "device", "logger", "lesson", "experiment", "debug",
)  # fmt: skip

# Groups whose options set keys of any block.
PRESETS = ("lesson", "experiment", "debug")

# Hydra looks for a package hydra_plugins on sys.path.
_PLUGINS = str(Path(__file__).parent / "plugins")

# Mappings whose keys are the user's.
_MAPPINGS = ("task.losses.", "task.weights.", "task.loss_args.", "init_map.")


def compose_config(overrides: list[str]) -> DictConfig:
    """Compose config.yaml with overrides. The result is not resolved yet; Hydra's exceptions pass through."""
    register()
    with hydra.initialize_config_dir(config_dir=str(schema.CONFIG_DIR), version_base="1.3"):
        return hydra.compose(config_name="config", overrides=[add_plus(word) for word in overrides])


def resolve(raw_config: DictConfig | dict[str, Any], typed: Collection[str] = ()) -> dict[str, Any]:
    """The composed config as a run records it: plain values, with each setting under one key.

    raw_config: changed in place; plain values where it was composed as such.
    typed: keys of the command line. RequestError for a section `callbacks` that is wrong.
    """
    config = to_plain(raw_config) if isinstance(raw_config, DictConfig) else raw_config
    resolve_aliases(config, typed)
    return config


def register() -> None:
    """Register what composing needs: the schema, our sweeper and launcher, and the resolver that config.yaml uses."""
    schema.register()

    if "hydra_plugins.dlrun_sweeper" not in sys.modules:
        sys.path.append(_PLUGINS)
        try:
            ours = importlib.import_module("hydra_plugins.dlrun_sweeper")
            # Hydra looks for plugins once a process: if it was used here before, it does not see these by itself.
            for plugin in (ours.DlrunSweeper, ours.DlrunLauncher):
                Plugins.instance().register(plugin)
        finally:
            sys.path.remove(_PLUGINS)

    if not OmegaConf.has_resolver("dlrun.folder_name"):
        OmegaConf.register_new_resolver("dlrun.folder_name", format_folder_name)
        OmegaConf.register_new_resolver("dlrun.choose", _choose)


def _choose(choice: str, options: Mapping[str, str], default: str) -> str:
    """The option that goes with a choice of another group, for a defaults list."""
    return options.get(choice, default)


# Words and flags


def parse_flags(words: Sequence[str]) -> argparse.Namespace:
    """Parse Hydra's flags and the overrides between them; RequestError where Hydra would print its usage and exit.

    Without --config-dir its value is the folder of configs of the project in the working directory.
    """
    parser, flags = hydra_internals.create_parser()

    def refuse(message: str) -> NoReturn:
        hint = ""
        for word in words:
            if word.startswith("-") and word.partition("=")[0] not in flags:
                hint = did_you_mean(word, flags)
                break
        raise RequestError(f"{message}; {hint}dlrun --help shows the flags")

    parser.error = refuse  # type: ignore[method-assign]
    # The last one counts.
    return parser.parse_intermixed_args([*project.list_flags(), *words])


def select_overrides(words: Sequence[str]) -> list[str]:
    """The overrides of a command line, without flags and their values."""
    return list(parse_flags(words).overrides)


def is_answered_by_hydra(flags: argparse.Namespace) -> bool:
    """Whether a command line asks Hydra for a config or for help, not for a run."""
    return bool(flags.cfg or flags.info or flags.shell_completion or flags.hydra_help)


def has_several_values(word: str) -> bool:
    """Whether an override makes a sweep: key=1,2 or key=range(3)."""
    return OverridesParser.create().parse_override(word).is_sweep_override()


def quote_letters(word: str) -> str:
    """Quote the plain value of key=value if it holds letters other than ASCII, which Hydra takes only in quotes."""
    key, equals, value = word.partition("=")
    if not equals or value.isascii() or not key.isascii() or set(value) & set("'\"[]{}(),$\\"):
        return word
    return f'{key}="{value}"'


def add_plus(word: str) -> str:
    """Put ++ before a key inside a mapping, as in task.loss_args.gamma=2: Hydra must be told that any may be there."""
    return f"++{word}" if word.startswith(_MAPPINGS) else word


def put_flags_first(words: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Flags with their values, then the overrides with quotes: Hydra wants the overrides together."""
    remaining = list(overrides)
    flags = []
    for word in words:
        if word in remaining:
            remaining.remove(word)
        else:
            flags.append(word)
    return [*flags, *(add_plus(quote_letters(word)) for word in overrides)]


# Hydra's own main function, run for what it composes


def run_hydra(words: Sequence[str], flags: argparse.Namespace, task_function: Callable[[DictConfig], None]) -> None:
    """Run `hydra.main` over a command line and call `task_function` with each config that it composes.

    words: as `put_flags_first` orders them. No job is started and no folder is created. Exceptions of Hydra, OmegaConf
    and dlrun pass through; those of Hydra's parser and of PyYAML become HydraException.
    """
    stderr = io.StringIO()
    try:
        # Hydra prints exceptions to stderr, besides raising them.
        with _set_argv(words), _compose_once(flags), _start_no_job(), contextlib.redirect_stderr(stderr):
            register()
            main = hydra.main(version_base="1.3", config_path=str(schema.CONFIG_DIR), config_name="config")
            try:
                main(task_function)()
            except SystemExit as exit_request:
                # --hydra-help exits once it is printed.
                if exit_request.code or not is_answered_by_hydra(flags):
                    raise

        if stderr.getvalue():
            write_error(stderr.getvalue().removesuffix("\n"))
    except Exception as error:
        # Whatever Hydra, its parser and PyYAML raise.
        if isinstance(error, HydraException | OmegaConfBaseException | DlrunError):
            raise
        if isinstance(error, OSError):
            raise RequestError(describe_os_error(error)) from error
        if _is_raised_here(error):
            raise
        raise HydraException(str(error)) from error


def _is_raised_here(error: Exception) -> bool:
    """Whether an exception is a fault in dlrun's own code, and not one of a library that parses the words."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(__file__).parent.parent in Path(last.filename).resolve().parents


@contextlib.contextmanager
def _set_argv(words: Sequence[str]) -> Iterator[None]:
    """Hand the words to Hydra in sys.argv and have it raise errors instead of exiting; restore its global state."""
    argv = sys.argv
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    global_hydra: Any = GlobalHydra.instance()
    hydra_config: Any = HydraConfig.instance()
    outer_hydra = global_hydra.hydra
    outer_config = hydra_config.cfg

    # --info adds a handler.
    handlers = list(logging.root.handlers)
    level = logging.root.level

    sys.argv = ["dlrun", *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    global_hydra.clear()
    try:
        yield
    finally:
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR")
        if full_error is not None:
            os.environ["HYDRA_FULL_ERROR"] = full_error
        global_hydra.hydra = outer_hydra
        hydra_config.cfg = outer_config
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)


def _compose_once(flags: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """Spare Hydra's first composition, which only looks for hydra.mode, where no config of the user could set it.

    With configs of the user's own, check the composed config before Hydra makes a callback or a sweeper from it.
    """
    if flags.config_dir or flags.config_path or flags.config_name:
        return hydra_internals.replace_methods(
            run=_check_before(Hydra.run, RunMode.RUN),
            multirun=_check_before(Hydra.multirun, RunMode.MULTIRUN),
        )

    # These may set hydra.mode, or choose a config of Hydra's that does.
    about_hydra = ("hydra.mode", "hydra.searchpath", "hydra/")
    if any(word.lstrip("+~").startswith(about_hydra) for word in flags.overrides):
        return contextlib.nullcontext()
    return hydra_internals.replace_methods(get_mode=lambda *_, **__: None)


def _check_before(run: Callable[..., Any], mode: RunMode) -> Callable[..., Any]:
    """Wrap Hydra's `run` or `multirun` to refuse what dlrun does not support, before anything is built from it."""

    def check_and_run(hydra_itself: Hydra, config_name: str, *arguments: Any, **keywords: Any) -> Any:
        overrides = keywords["overrides"]
        raw_config = hydra_itself.compose_config(config_name, overrides, mode, with_log_configuration=False)
        _refuse_partial(raw_config, config_name)

        files = ConfigFiles().look_up(hydra_itself.config_loader, raw_config.hydra, overrides)
        unheeded.refuse_hydra_in_files([file for file in files if file.is_own])
        return run(hydra_itself, config_name, *arguments, **keywords)

    return check_and_run


def _refuse_partial(raw_config: DictConfig, name: str) -> None:
    """RequestError for a config of the user's own that does not build on dlrun's."""
    if any(block.name not in raw_config for block in fields(schema.Config)):
        raise RequestError(
            f"--config-name {name} is not a complete config; begin that file with defaults: [config, _self_], so that "
            "it changes dlrun's own"
        )


def _start_no_job() -> contextlib.AbstractContextManager[None]:
    """Have Hydra hand over what it composed without a job folder or log of its own: a run makes both itself."""
    return hydra_internals.replace_run_job(_hand_over)


def _hand_over(task_function: Callable[[DictConfig], None], config: DictConfig, **_: Any) -> JobReturn:
    """Stand in for Hydra's run_job, which makes a folder, sets up logging, and copies all of the config four times."""
    run_dir = str(OmegaConf.select(config, "hydra.run.dir"))
    with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
        # As Hydra writes it.
        config.hydra.runtime.output_dir = os.path.abspath(run_dir)  # noqa: PTH100

    hydra_internals.set_hydra_config(config)
    # As Hydra's own run_job does: a job sees its config without Hydra's part.
    task_function(hydra_internals.copy_without_hydra(config))
    return JobReturn(status=JobStatus.COMPLETED)
