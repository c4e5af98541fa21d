"""The texts of `dlrun --help`, `dlrun COMMAND --help` and --version, without torch."""

import textwrap
from dataclasses import dataclass
from importlib import metadata

# Columns of the texts, whatever the terminal has.
_WIDTH = 80
# Words and options that several commands share.
_RUN = ("RUN", "a run folder, as `dlrun ls runs` lists them")
_RUN_OR_CHECKPOINT = ("RUN_OR_CHECKPOINT", "a run folder, for its best weights; or one of its .pt files")
_KEYS = ("key=value", "keys to train with (default: an mlp on the digits); `dlrun --help` and `dlrun ls` list them")
_FORMAT = ("format=table", "table, json or csv")
_TRUST = [
    ("trust=false", "true: open a pickled full model, which can run code"),
    ("trusted_modules=[]", "modules of your own that the run may use, as in '[mynet]'"),
]
_SAVED = [
    ("data=", "other data of the same kind, or data.path=FILE (default: the run's)"),
    ("device=", "cpu, cuda, mps or auto (default: the run's)"),
    *_TRUST,
]


@dataclass(frozen=True)
class CommandHelp:
    """The text of `dlrun COMMAND --help`, and the command's lines in `dlrun --help`."""

    # The words after `dlrun`.
    usage: str
    about: str
    # Positional words: name and meaning.
    words: list[tuple[str, str]]
    # "option=default" and its meaning.
    options: list[tuple[str, str]]
    examples: list[str]
    # Lines of `dlrun --help`: usage, and a few words on it.
    overview: list[tuple[str, str]]


# By command, in the order of `dlrun --help`. Tests run the examples and compare the options with the code.
COMMAND_HELP = {
    "resume": CommandHelp(
        usage="resume RUN|SWEEP [key=value ...]",
        about="Continue an interrupted run as if it had never been stopped, or train a finished one longer. "
        "Of a sweep, train what is not finished, and points that the words add.",
        words=[_RUN, ("SWEEP", "a sweep's folder, the one that holds sweep.jsonl")],
        options=[
            ("trainer.epochs=", "train until this epoch (default: as the run was begun)"),
            ("key=values", "more points of a sweep, as in seed=5,6"),
            *_TRUST,
        ],
        examples=["dlrun resume runs/mine", "dlrun resume runs/mine trainer.epochs=4"],
        overview=[
            ("resume RUN [key=value ...]", "continue, longer: trainer.epochs=40"),
            ("resume SWEEP [key=values ...]", "continue, or add points: seed=5,6"),
        ],
    ),
    "eval": CommandHelp(
        usage="eval RUN_OR_CHECKPOINT [key=value ...]",
        about="Evaluate saved weights: metrics beside those of the training and of the trivial answer, classes and "
        "calibration. Everything is written to RUN/eval/, with a row for each prediction.",
        words=[_RUN_OR_CHECKPOINT],
        options=[
            ("split=test", "train, val, test or all"),
            ("figures=true", "false: no pictures"),
            *_SAVED,
        ],
        examples=["dlrun eval runs/mine", "dlrun eval runs/mine split=val figures=false"],
        overview=[("eval RUN_OR_CHECKPOINT", "metrics, classes, calibration")],
    ),
    "predict": CommandHelp(
        usage="predict RUN_OR_CHECKPOINT INPUT ... [--format F] [--top K] [key=value ...]",
        about="Predict inputs, a row each: class and probability, or value. An input that cannot be read gets a row "
        "with its error.",
        words=[
            _RUN_OR_CHECKPOINT,
            ("INPUT", "a picture, a folder, a .csv, .txt or .npy file, a row of numbers, a name, or - for stdin"),
        ],
        options=[
            ("--format table", "table, csv or jsonl"),
            ("--top 1", "so many of the likeliest classes"),
            ("--", "what follows is an input, even if it begins with a dash"),
            *_SAVED[1:],
        ],
        examples=["dlrun predict runs/mine 0.5,-1.5", "dlrun predict runs/mine rows.csv --top 2 --format csv"],
        overview=[("predict RUN_OR_CHECKPOINT INPUT ...", "images, folders, names, CSV rows")],
    ),
    "export": CommandHelp(
        usage="export RUN_OR_CHECKPOINT [format=F] [key=value ...]",
        about="Write the model for use elsewhere, checked against torch, into RUN/export/; or the whole training as "
        "one plain PyTorch file.",
        words=[_RUN_OR_CHECKPOINT],
        options=[
            ("format=onnx", "onnx, safetensors or python"),
            ("weights=trained", "ema: the averaged weights of trainer.ema_decay"),
            *_TRUST,
        ],
        examples=["dlrun export runs/mine", "dlrun export runs/mine format=python"],
        overview=[("export RUN_OR_CHECKPOINT", "ONNX, or format=safetensors, python")],
    ),
    "compare": CommandHelp(
        usage="compare DIR ... [paths.outputs=DIR] [format=F]",
        about="Compare finished runs: a table with mean and spread over seeds beside the trivial answer, "
        "verdicts, pictures and a page. The comparison of a single sweep is written into the sweep's folder.",
        words=[("DIR", "a run, a sweep, or a folder of them")],
        options=[("paths.outputs=outputs", "where comparisons/ is created"), _FORMAT],
        examples=["dlrun compare outputs", "dlrun compare runs/mine runs/other"],
        overview=[("compare DIR ...", "table and pictures of finished runs")],
    ),
    "diff": CommandHelp(
        usage="diff RUN RUN [format=F]",
        about="Show how two runs differ: config, machine, versions, the epoch at which their weights part, results.",
        words=[_RUN],
        options=[_FORMAT],
        examples=["dlrun diff runs/mine runs/other", "dlrun diff runs/mine runs/other format=json"],
        overview=[("diff RUN RUN", "what differs, and where they part")],
    ),
    "show": CommandHelp(
        usage="show RUN [format=F]",
        about="Show one run: its name, tags and notes, status and times, the settings that are not the defaults and "
        "what set them, metrics of the best and the last epoch, files, warnings, and the commands that come next.",
        words=[_RUN],
        options=[_FORMAT],
        examples=["dlrun show runs/mine", "dlrun show runs/mine format=json"],
        overview=[("show RUN", "one run, and what can follow it")],
    ),
    "watch": CommandHelp(
        usage="watch RUN",
        about="Follow a run that trains in another process until it ends: its epochs as they come, then its result. "
        "Ctrl-C ends the watching and leaves the run alone. A run that does not train is printed as it is.",
        words=[_RUN],
        options=[],
        examples=["dlrun watch runs/mine", "dlrun watch runs/other"],
        overview=[("watch RUN", "follow a run that is training")],
    ),
    "rerun": CommandHelp(
        usage="rerun RUN [key=value ...]",
        about="Compose the choices and overrides of a run anew, with changes, and train that as a new run, which names "
        "its parent in environment.json and result.json. A folder of config files is typed again: --config-dir DIR.",
        words=[_RUN, ("key=value", "choices and keys to change, as in optimizer=sgd or seed=1")],
        options=_TRUST,
        examples=["dlrun rerun runs/mine", "dlrun rerun runs/mine optimizer.lr=0.01 seed=1"],
        overview=[("rerun RUN [key=value ...]", "the same choices anew, with changes")],
    ),
    "check": CommandHelp(
        usage="check [resume|lr|gradients] [key=value ...]",
        about="Report everything that is wrong with a choice, and the memory and disk it needs, without training; or "
        "measure something about it: see `dlrun check lr --help` and so on.",
        words=[
            ("resume", "kill it, resume it, compare"),
            ("lr", "a learning rate to begin with"),
            ("gradients", "hand-written gradients against autograd"),
            _KEYS,
        ],
        options=[("-m", "all runs of a sweep")],
        examples=["dlrun check model=cnn", "dlrun check -m optimizer=sgd,adam data=blobs"],
        overview=[("check [key=value ...]", "everything wrong, without training")],
    ),
    "check resume": CommandHelp(
        usage="check resume [key=value ...]",
        about="Train the choice twice for a few epochs, once undisturbed and once killed three times and resumed, and "
        "compare weights, metrics and events. No file is kept.",
        words=[_KEYS],
        options=[],
        examples=["dlrun check resume data=blobs", "dlrun check resume data=blobs optimizer=momentum"],
        overview=[("check resume [key=value ...]", "kill it, resume it, compare")],
    ),
    "check lr": CommandHelp(
        usage="check lr [key=value ...]",
        about="Raise the learning rate from step to step, look at the loss and suggest a rate. Only a picture of it "
        "is kept, in outputs/check_lr/.",
        words=[_KEYS],
        options=[("paths.outputs=outputs", "where check_lr/ is created")],
        examples=["dlrun check lr data=blobs", "dlrun check lr data=blobs optimizer=sgd"],
        overview=[("check lr [key=value ...]", "a learning rate to begin with")],
    ),
    "check gradients": CommandHelp(
        usage="check gradients [key=value ...]",
        about="Check hand-written backward passes against autograd and central differences, layer by layer, in fp64.",
        words=[_KEYS],
        options=[],
        examples=["dlrun check gradients model=scratch_mlp", "dlrun check gradients model=scratch_mlp data=blobs"],
        overview=[("check gradients model=scratch_mlp", "hand-written gradients")],
    ),
    "ls": CommandHelp(
        usage="ls [GROUP ...] | ls runs [FOLDER ...] [FILTER ...] [sort=KEY] [limit=N]",
        about="List what can be chosen, a line each; or what was run, newest first. A filter is a key, one of "
        "= != < <= > >=, and a value; in a shell it is quoted for the sake of < and >. A metric is that of the last "
        "epoch, on the test split that of the best checkpoint.",
        words=[
            ("GROUP", "data, model, optimizer, ... (default: all of them)"),
            ("FOLDER", "where the runs are (default: paths.outputs)"),
        ],
        options=[
            ("status=", "runs of this status: completed, early_stopped, interrupted, failed, running, empty"),
            ("tag=", "runs with this tag of run.tags"),
            ("name=", "runs of this name, run.name"),
            ("key=value", "runs with this value, as in model=resnet,cnn or 'val/accuracy>0.97'"),
            (
                "sort=",
                "a metric or key to sort by, descending with a minus: sort=-val/accuracy (default: newest first)",
            ),
            ("limit=", "the first N of the list (default: all)"),
            ("--last N", "only the newest N, before they are sorted (default: all)"),
            ("paths.outputs=outputs", "where the runs are, if no FOLDER is named"),
            _FORMAT,
        ],
        examples=[
            "dlrun ls model",
            "dlrun ls runs status=completed --last 5",
            "dlrun ls runs 'optimizer.lr<=0.1' sort=train/loss limit=3",
            "dlrun ls runs format=json",
        ],
        overview=[
            ("ls [GROUP]", "what can be chosen"),
            ("ls runs [status=failed ...]", "what was run, newest first"),
        ],
    ),
    "help": CommandHelp(
        usage="help [TOPIC]",
        about="Show a page of the documentation that belongs to this version, or list the pages.",
        words=[("TOPIC", "a page, such as quickstart, sweeps or configuration (default: the list)")],
        options=[],
        examples=["dlrun help", "dlrun help configuration"],
        overview=[("help [TOPIC]", "pages on a topic, or their list")],
    ),
    "clean": CommandHelp(
        usage="clean [FOLDER ...] [key=value ...] [--last N] [--yes]",
        about="Show the failed and empty runs, and remove them with --yes. Nothing outside of paths.outputs is "
        "removed, and no run under way.",
        words=[("FOLDER", "where to look (default: all of paths.outputs)")],
        options=[
            ("--yes", "remove what is shown (default: only show it)"),
            ("status=failed,empty", "runs of which status"),
            ("key=value", "runs with this value, as in model=resnet"),
            ("--last N", "the newest N (default: all)"),
            ("paths.outputs=outputs", "where the runs are"),
        ],
        examples=["dlrun clean", "dlrun clean status=failed --yes"],
        overview=[("clean [--yes]", "remove failed and empty runs")],
    ),
    "completion": CommandHelp(
        usage="completion bash|zsh",
        about="Print a script for the shell, so that its Tab key completes commands, options, keys and runs.",
        words=[("bash|zsh", "your shell")],
        options=[],
        examples=['eval "$(dlrun completion bash)"', "dlrun completion zsh"],
        overview=[],
    ),
}

# Lines of `dlrun --help` before and after the commands, and its flags.
_TRAINING = [
    ("dlrun", "an mlp on scikit-learn's digits"),
    ("dlrun model=resnet data=mnist device=cuda", "choose from the groups"),
    ("dlrun optimizer.lr=0.1 trainer.epochs=5", "change any key"),
    ("dlrun -m optimizer=sgd,momentum,adam", "a run for each choice"),
    ("dlrun -m 'seed=range(5)' sweep.jobs=2", "brackets are quoted for the shell"),
    ("dlrun lesson=gradient_descent", "a lesson of the course"),
    ("dlrun debug=one_batch", "one batch through everything"),
]
_BESIDES = [
    ("tensorboard --logdir outputs", "look at the runs"),
    ('eval "$(dlrun completion bash)"', "completion by the Tab key, or zsh"),
]
_FLAGS = [
    ("COMMAND --help", "a command's words, options and examples"),
    ("--version", "versions of dlrun, torch and Hydra"),
    ("--cfg job", "show the composed config"),
    ("--config-dir DIR", "add options of your own, in DIR/<group>/<option>.yaml"),
    ("-v", "show tracebacks"),
    ("--hydra-help", "Hydra's other flags"),
]


def format_overview(groups: list[str]) -> str:
    """The text of `dlrun --help`; groups: names of the config groups."""
    lines = ["dlrun: train a choice of data × model × optimizer × device, and record it", ""]
    lines += [_format_overview_line(usage, text) for usage, text in _TRAINING]
    lines.append("")
    for command in COMMAND_HELP.values():
        lines += [_format_overview_line(f"dlrun {usage}", text) for usage, text in command.overview]
    lines += [_format_overview_line(usage, text) for usage, text in _BESIDES]
    lines.append("")
    lines += [f"  {flag:<17}  {text}" for flag, text in _FLAGS]
    lines += ["", f"groups: {', '.join(groups)}"]
    return "\n".join(lines)


def _format_overview_line(usage: str, text: str) -> str:
    return f"  {usage:<41}  {text}"


def format_command_help(name: str) -> str:
    """The text of `dlrun NAME --help`; NAME is a key of COMMAND_HELP."""
    command = COMMAND_HELP[name]
    blocks = [f"dlrun {command.usage}", textwrap.fill(command.about, _WIDTH)]

    # Words and options are aligned with each other.
    width = max((len(word) for word, _ in [*command.words, *command.options]), default=0)
    if command.words:
        blocks.append(_format_list("words", command.words, width))
    if command.options:
        blocks.append(_format_list("options, with their defaults", command.options, width))

    blocks.append("\n".join(["examples", *(f"  {example}" for example in command.examples)]))
    return "\n\n".join(blocks)


def _format_list(title: str, rows: list[tuple[str, str]], width: int) -> str:
    """A title, and a line for each name with its meaning, wrapped beside the name."""
    lines = [title]
    for name, text in rows:
        indent = f"  {name:<{width}}  "
        entry = textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent))
        lines.append(entry)
    return "\n".join(lines)


def format_versions() -> str:
    """The text of `dlrun --version`, from the packages' metadata: importing torch would take seconds."""
    lines = []
    for name, package in (("dlrun", "dlrun"), ("torch", "torch"), ("Hydra", "hydra-core")):
        # A source tree on PYTHONPATH has no metadata.
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            version = "not installed as a package"
        lines.append(f"{name} {version}")
    return "\n".join(lines)
