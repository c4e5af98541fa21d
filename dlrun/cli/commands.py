"""The commands of dlrun: what each does, its words and options, examples, and the function that it calls."""

import atexit
import contextlib
import gc
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dlrun.cli import completion
from dlrun.cli.command import Choice, Command, Count, Group, Rows, get_path
from dlrun.cli.pages import TOPICS
from dlrun.config.compose import GROUPS
from dlrun.core import output_format
from dlrun.core.errors import RequestError, RunError
from dlrun.core.terminal import write_out
from dlrun.engine import distributed
from dlrun.runs.query import is_sweep_folder

if TYPE_CHECKING:
    from dlrun.config.request import Request

# What commands call


def read_requests(words: Sequence[str]) -> list["Request"]:
    """Run a command that trains nothing, or compose the runs of one that does; the former returns [].

    RequestError for words that are wrong.
    """
    # In a list it is a filter.
    if words[:1] != ["ls"] and any(word.startswith("resume=") for word in words):
        from dlrun.experiment import requests

        words = requests.put_resume_first(words)

    # click's own main function would end the process and answer Ctrl-C.
    try:
        with DLRUN.make_context("dlrun", list(words)) as ctx:
            return DLRUN.invoke(ctx) or []
    except click.exceptions.Exit:
        # --help and --version.
        return []


@contextlib.contextmanager
def skip_garbage_collection() -> Iterator[None]:
    """Import modules inside without garbage collection, and exempt their objects from it for good.

    Training needs a million objects of imported modules: scanning them repeatedly took a fifth of the start-up time.
    """
    # A process that has torch already holds more than imported modules.
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return

    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        # Some libraries complain at exit about objects of theirs that are still alive.
        atexit.register(gc.unfreeze)


def _call_function(place: str, *, on_saved_run: bool = False, failure: str = "") -> Callable[..., None]:
    """Make the callback that imports the function "module:name" and calls it with the words and the options.

    on_saved_run: whether the words after the first are overrides of a saved config; failure: the message of the
    RunError for a result that is not 0.
    """

    def callback(words: tuple[str, ...], **options: Any) -> None:
        distributed.require_single_process(get_path(click.get_current_context()))

        from dlrun.config import explain

        module, _, name = place.partition(":")
        with skip_garbage_collection():
            function = getattr(importlib.import_module(module), name)
        try:
            result = function(list(words), **options)
        except explain.COMPOSITION_ERRORS as error:
            if on_saved_run:
                raise RequestError(explain.explain_error(error, list(words[1:]))) from error
            raise explain.explain_all_errors(error, list(words)) from error
        if failure and result:
            raise RunError(failure)

    return callback


def _compose_runs(*command: str) -> Callable[[tuple[str, ...]], list["Request"]]:
    """Make the callback that composes the runs of a command that trains."""

    def callback(words: tuple[str, ...]) -> list["Request"]:
        from dlrun.experiment import requests

        return requests.read_requests([*command, *words])

    return callback


def _resume_runs(words: tuple[str, ...]) -> list["Request"]:
    """Read the run or the sweep that is to be resumed."""
    if words and words[0] and is_sweep_folder(Path(words[0])):
        from dlrun.sweep import continuation

        return continuation.read_requests(words)

    return _compose_runs("resume")(words)


def _print_completion_script(words: tuple[str, ...]) -> None:
    """Print what a shell evaluates to complete the words of dlrun."""
    if len(words) != 1 or words[0] not in completion.SHELLS:
        raise RequestError(
            f'which shell? type eval "$(dlrun completion bash)", or one of {", ".join(completion.SHELLS)}'
        )
    write_out(completion.make_completion(words[0], DLRUN).source().strip())
    sys.stdout.flush()


# Words and options that several commands share


_RUN = ("RUN", "a run folder, as `dlrun ls runs` lists them")
_RUN_OR_CHECKPOINT = ("RUN_OR_CHECKPOINT", "a run folder, for its best weights; or one of its .pt files")
_KEYS = ("key=value", "keys to train with (default: an mlp on the digits); `dlrun --help` and `dlrun ls` list them")
_TRUST = [
    ("trust=false", "true: open a pickled full model, which can run code"),
    ("trusted_modules=[]", "modules of your own that the run may use, as in '[mynet]'"),
]
_DEVICE = ("device=", "cpu, cuda, mps or auto (default: the run's)")
_DATA = ("data=", "other data of the same kind, or data.path=FILE (default: the run's)")
_OUTPUTS = ("paths.outputs=outputs", "where the runs are, if no FOLDER is named")
_FILTERS = [
    ("status=", "runs of this status: completed, early_stopped, pruned, interrupted, failed, running, empty"),
    ("tag=", "runs with this tag of run.tags"),
    ("name=", "runs of this name, run.name"),
    ("key=value", "runs with this value, as in model=resnet,cnn or 'val/accuracy>0.97'"),
]


def _option(name: str, kind: click.ParamType[Any], text: str, default: Any = None) -> click.Option:
    return click.Option([f"--{name}", name], type=kind, default=default, show_default=True, help=text)


def _format(*choices: str, text: str = "how to print it") -> click.Option:
    return _option("format", Choice(choices), text, choices[0])


def _list_query_options() -> list[click.Option]:
    return [
        _option("sort", click.STRING, "a metric or key to sort by, descending with a minus (default: newest first)"),
        _option("limit", Count(), "the first N of the list (default: all)"),
        _option("last", Count(), "only the newest N, before they are sorted (default: all)"),
    ]


# The commands, in the order of `dlrun --help`. Tests run the examples, and look the keys up.


_TRAIN = Command(
    "train",
    _compose_runs(),
    usage="[COMMAND] [group=option ...] [key=value ...]",
    about="Train a choice of data × model × optimizer × device, and record it. A command's options are typed as "
    "--format json or as format=json.",
    words=[
        ("group=option", f"a choice, as `dlrun ls` lists them; the groups are {', '.join(GROUPS)}"),
        ("key=value", "any key of the config: `dlrun help configuration`"),
        ("-m", "a run for each of several values, key=a,b; also --multirun"),
        ("--cfg job", "show the composed config"),
        ("--config-dir DIR", "add options of your own, in DIR/<group>/<option>.yaml"),
        ("--hydra-help", "Hydra's other flags"),
        ("-v", "show tracebacks"),
        ("--version", "versions of dlrun, torch and Hydra"),
        ("COMMAND -h", "a command's words, options and examples"),
    ],
    examples=[
        "dlrun                                        an mlp on scikit-learn's digits",
        "dlrun model=resnet data=mnist device=cuda    choose from the groups",
        "dlrun optimizer.lr=0.1 trainer.epochs=5      change any key",
        "dlrun -m optimizer=sgd,momentum,adam         a run for each choice",
        "dlrun -m 'seed=range(5)' sweep.jobs=2        brackets are quoted for the shell",
        "dlrun lesson=gradient_descent                a lesson of the course",
        "dlrun debug=one_batch                        one batch through everything",
        "tensorboard --logdir outputs                 look at the runs",
        'eval "$(dlrun completion bash)"              completion by Tab; or zsh, fish',
    ],
    suggest=completion.suggest_settings,
)

_RESUME = Command(
    "resume",
    _resume_runs,
    usage="RUN|SWEEP [key=value ...]",
    about="Continue a run or a sweep, or train longer. An interrupted run goes on as if it had never been stopped. Of "
    "a sweep, what is not finished is trained, and points that the words add.",
    words=[
        _RUN,
        ("SWEEP", "a sweep's folder, the one that holds sweep.jsonl"),
        ("trainer.epochs=", "train until this epoch (default: as the run was begun)"),
        ("key=values", "more points of a sweep, as in seed=5,6"),
        *_TRUST,
    ],
    examples=["dlrun resume runs/mine", "dlrun resume runs/mine trainer.epochs=4"],
    suggest=completion.suggest_runs(with_sweeps=True),
)

_EVAL = Command(
    "eval",
    _call_function("dlrun.inference.evaluate:evaluate", on_saved_run=True),
    usage="RUN_OR_CHECKPOINT [key=value ...]",
    about="Evaluate saved weights. Prints metrics beside those of the training and of the trivial answer, classes and "
    "calibration. Everything is written to RUN/eval/, with a row for each prediction.",
    words=[_RUN_OR_CHECKPOINT, _DATA, _DEVICE, ("figures=true", "false: no pictures"), *_TRUST],
    options=[_option("split", Choice(("train", "val", "test", "all")), "the rows (default: test, or val without one)")],
    examples=["dlrun eval runs/mine", "dlrun eval runs/mine split=val figures=false"],
    suggest=completion.suggest_runs(),
)

_PREDICT = Command(
    "predict",
    _call_function("dlrun.inference.predict.command:predict", on_saved_run=True),
    usage="RUN_OR_CHECKPOINT INPUT ... [key=value ...]",
    about="Predict images, folders, names, CSV rows. Each has a row: class and probability, or value. An input that "
    "cannot be read gets a row with its error.",
    words=[
        _RUN_OR_CHECKPOINT,
        ("INPUT", "a picture, a folder, a .csv, .txt or .npy file, a row of numbers, a name, or - for stdin"),
        ("--", "what follows is an input, even if it begins with a dash"),
        _DEVICE,
        *_TRUST,
    ],
    options=[
        _format("table", "csv", "jsonl"),
        _option("top", Count(), "so many of the likeliest classes", 1),
    ],
    examples=["dlrun predict runs/mine 0.5,-1.5", "dlrun predict runs/mine rows.csv --top 2 --format csv"],
    suggest=completion.suggest_runs(),
)

_EXPORT = Command(
    "export",
    _call_function("dlrun.inference.export.command:export", on_saved_run=True),
    usage="RUN_OR_CHECKPOINT [key=value ...]",
    about="Write the model for use elsewhere. It is checked against torch, and lies in RUN/export/. format=python "
    "writes the whole training as one plain PyTorch file.",
    words=[_RUN_OR_CHECKPOINT, *_TRUST],
    options=[
        _format("onnx", "safetensors", "python", text="what to write"),
        _option("weights", Choice(("trained", "ema")), "ema: the averaged weights of trainer.ema_decay", "trained"),
    ],
    examples=["dlrun export runs/mine", "dlrun export runs/mine format=python"],
    suggest=completion.suggest_runs(),
)

_COMPARE = Command(
    "compare",
    _call_function("dlrun.sweep.comparison.report:compare_runs"),
    usage="DIR ...",
    about="Compare finished runs. Prints a table with mean and spread over seeds beside the trivial answer, and "
    "verdicts; writes pictures and a page. The comparison of a single sweep is written into the sweep's folder. As "
    "JSON or CSV it is printed only.",
    words=[
        ("DIR", "a run, a sweep, or a folder of them"),
        ("paths.outputs=outputs", "where comparisons/ is created"),
    ],
    options=[_format(*output_format.FORMATS)],
    examples=["dlrun compare outputs", "dlrun compare runs/mine runs/other"],
    suggest=completion.suggest_runs(with_sweeps=True, several=True),
)

_DIFF = Command(
    "diff",
    _call_function("dlrun.cli.diff:diff_runs"),
    usage="RUN RUN",
    about="Show how two runs differ. Compares config, machine, versions, the epoch at which their weights part, "
    "results.",
    words=[_RUN],
    options=[_format(*output_format.FORMATS)],
    examples=["dlrun diff runs/mine runs/other", "dlrun diff runs/mine runs/other format=json"],
    suggest=completion.suggest_runs(several=True),
)

_SHOW = Command(
    "show",
    _call_function("dlrun.cli.show:show_run"),
    usage="RUN",
    about="Show one run, and what can follow it. Prints name, tags and notes, status and times, the settings that are "
    "not the defaults and what set them, metrics of the best and the last epoch, files, warnings, and the commands "
    "that come next.",
    words=[_RUN],
    options=[_format(*output_format.FORMATS)],
    examples=["dlrun show runs/mine", "dlrun show runs/mine format=json"],
    suggest=completion.suggest_runs(settings=False),
)

_WATCH = Command(
    "watch",
    _call_function("dlrun.cli.watch:watch"),
    usage="RUN",
    about="Follow a run that is training. Prints its epochs as they come, then its result. Exits with 1 if it failed, "
    "with 130 if it was interrupted. Ctrl-C ends the watching and leaves the run alone. A run that does not train is "
    "printed as it is.",
    words=[_RUN],
    examples=["dlrun watch runs/mine", "dlrun watch runs/other"],
    suggest=completion.suggest_runs(settings=False),
)

_RERUN = Command(
    "rerun",
    _compose_runs("rerun"),
    usage="RUN [key=value ...]",
    about="Train a run's choices anew, with changes. Its overrides are composed into a new run, which names its "
    "parent in environment.json and result.json. A folder of config files is typed again: --config-dir DIR.",
    words=[_RUN, ("key=value", "choices and keys to change, as in optimizer=sgd or seed=1"), *_TRUST],
    examples=["dlrun rerun runs/mine", "dlrun rerun runs/mine optimizer.lr=0.01 seed=1"],
    suggest=completion.suggest_runs(),
)


def _check(name: str, function: str, about: str, example: str, failure: str = "", words: Rows = ()) -> Command:
    return Command(
        name,
        _call_function(f"dlrun.experiment.checks.{function}", failure=failure),
        usage="[key=value ...]",
        about=about,
        words=[_KEYS, *words],
        examples=[f"dlrun check {name} {example}", f"dlrun check {name} {example} optimizer=momentum"],
        suggest=completion.suggest_settings,
    )


_CHECK = Group(
    "check",
    Command(
        "all",
        _call_function("dlrun.cli.check:check"),
        usage="[COMMAND] [key=value ...]",
        about="Report all that is wrong, without training. Also the memory and disk that a choice needs; the commands "
        "measure something about it.",
        words=[_KEYS, ("-m", "all runs of a sweep")],
        examples=["dlrun check model=cnn", "dlrun check -m optimizer=sgd,adam data=blobs"],
        suggest=completion.suggest_settings,
    ),
    [
        _check(
            "resume",
            "resume:check_resume",
            "Kill a run, resume it, compare. Trains the choice twice for a few epochs, once undisturbed and once "
            "killed three times and resumed, and compares weights, metrics and events. No file is kept.",
            "data=blobs",
            "the resumed run is not the run that was left alone; the table says where they differ",
        ),
        _check(
            "lr",
            "lr_finder:check_lr",
            "Suggest a learning rate. Raises it from step to step and looks at the loss. Only a picture of it is kept, "
            "in outputs/check_lr/.",
            "data=blobs",
            words=[("paths.outputs=outputs", "where check_lr/ is created")],
        ),
        _check(
            "gradients",
            "gradients:check_gradients",
            "Check hand-written gradients. Compares them with autograd and central differences, layer by layer, in "
            "fp64.",
            "model=scratch_mlp",
            "the gradients written by hand do not agree; the table names the layers",
        ),
    ],
)

_LS = Group(
    "ls",
    Command(
        "groups",
        _call_function("dlrun.cli.list_groups:list_options"),
        usage="[GROUP ...] | runs",
        about="List what can be chosen, or what was run.",
        words=[("GROUP", "data, model, optimizer, ... (default: all of them)")],
        options=[_format(*output_format.FORMATS)],
        examples=["dlrun ls model", "dlrun ls runs format=json"],
        suggest=lambda before, current: iter(GROUPS),
    ),
    [
        Command(
            "runs",
            _call_function("dlrun.cli.list_runs:list_runs"),
            usage="[FOLDER ...] [FILTER ...]",
            about="List what was run, newest first. A filter is a key, one of = != < <= > >=, and a value; in a shell "
            "it is quoted for the sake of < and >. A metric is that of the last epoch, on the test split that of the "
            "best checkpoint.",
            words=[("FOLDER", "where the runs are (default: paths.outputs)"), *_FILTERS, _OUTPUTS],
            options=[*_list_query_options(), _format(*output_format.FORMATS)],
            examples=[
                "dlrun ls runs status=completed --last 5",
                "dlrun ls runs 'optimizer.lr<=0.1' sort=train/loss limit=3",
            ],
            suggest=completion.suggest_filters,
        )
    ],
)

_CLEAN = Command(
    "clean",
    _call_function("dlrun.cli.clean:clean"),
    usage="[FOLDER ...] [FILTER ...]",
    about="Remove failed and empty runs, after showing them. Nothing outside of paths.outputs is removed, and no run "
    "under way.",
    words=[
        ("FOLDER", "where to look (default: all of paths.outputs)"),
        ("status=failed,empty", "runs of which status"),
        ("key=value", "runs with this value, as in model=resnet"),
        _OUTPUTS,
    ],
    options=[
        click.Option(["--yes", "is_confirmed"], is_flag=True, help="remove what is shown (default: only show it)"),
        *_list_query_options(),
    ],
    examples=["dlrun clean", "dlrun clean status=failed --yes"],
    suggest=completion.suggest_filters,
)

_NEW = Command(
    "new",
    _call_function("dlrun.cli.new:create_project"),
    usage="DIR",
    about="Write a small project of your own. It has a model, data, a callback, experiments and tests, and trains at "
    "once: `dlrun experiment=first` in its folder.",
    words=[("DIR", "a folder that is new or empty; its name is that of the project's Python module")],
    examples=["dlrun new my_project", "dlrun new projects/spirals"],
)

_HELP = Command(
    "help",
    _call_function("dlrun.cli.pages:show_page"),
    usage="[TOPIC]",
    about="Show a page of the documentation, or list the pages.",
    words=[("TOPIC", "a page, such as quickstart, sweeps or configuration (default: the list)")],
    examples=["dlrun help", "dlrun help configuration"],
    suggest=lambda before, current: iter(() if before else TOPICS),
)

_COMPLETION = Command(
    "completion",
    _print_completion_script,
    usage="bash|zsh|fish",
    about="Print a script for completion by the Tab key. It completes commands, options, keys and runs.",
    words=[("bash|zsh|fish", "your shell")],
    examples=['eval "$(dlrun completion bash)"', "dlrun completion fish | source"],
    suggest=lambda before, current: iter(completion.SHELLS),
)

DLRUN = Group(
    "dlrun",
    _TRAIN,
    [
        _RESUME,
        _EVAL,
        _PREDICT,
        _EXPORT,
        _COMPARE,
        _DIFF,
        _SHOW,
        _WATCH,
        _RERUN,
        _CHECK,
        _LS,
        _CLEAN,
        _NEW,
        _HELP,
        _COMPLETION,
    ],
)
