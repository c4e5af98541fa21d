"""`dlrun predict RUN_OR_CHECKPOINT INPUT ... [--format csv|jsonl] [--top K] [key=value ...]`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from dlrun.config import schema, unheeded
from dlrun.core.errors import ListedError, RequestError, RunError, did_you_mean
from dlrun.core.shell import quote
from dlrun.core.terminal import escape_line, write_error
from dlrun.data.files.picture import EXTENSIONS
from dlrun.data.files.table import parse_numbers
from dlrun.inference.predict.answer import Answer
from dlrun.inference.predict.forward import refuse_several_inputs
from dlrun.inference.predict.predictor import make_reader, predict_inputs
from dlrun.inference.predict.reader import STDIN
from dlrun.inference.predict.writers import FORMATS, Writer
from dlrun.inference.saved_model import SavedModel, open_saved_model, read_run_name
from dlrun.runs.reports.console import Console, facts

_FLAGS = ("--format", "--top", "--")
_ENDINGS = (*sorted(EXTENSIONS), ".csv", ".csv.gz", ".tsv", ".txt", ".npy")
_MOST_HELD = 20  # answers that are all errors, before they are printed


@dataclass
class PredictRequest:
    """What the command line says."""

    run: str
    inputs: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    format: str = "table"
    top: int = 1


def predict(words: list[str]) -> None:
    """Print an answer an input; RunError where some have none, RequestError where all have none."""
    asked = parse_words(words)
    unheeded.refuse_unheeded(asked.overrides, "dlrun predict")
    with open_saved_model(asked.run, asked.overrides) as saved:
        refuse_several_inputs(saved)
        takes = make_reader(saved).takes
        if not asked.inputs:
            raise RequestError(f"what is to be predicted? type dlrun predict {quote(asked.run)} INPUT ...: {takes}")
        if asked.top > 1 and saved.spec.task in ("regression", "tagging"):
            raise RequestError(f"--top {asked.top} is for classes, and this model's task is {saved.spec.task}")
        console = Console()
        for remark in list_remarks(saved):
            write_error(escape_line(f"note: {remark}"))

        def writer() -> Writer:
            if asked.format == "table":
                console.say(facts([("checkpoint", str(saved.path))]))
                console.say()
            return FORMATS[asked.format](console, saved.spec, asked.top)

        _write(predict_inputs(saved, asked.inputs, asked.top), writer)


def _write(answers: Iterator[Answer], make: Callable[[], Writer]) -> None:
    """Print the answers as they come."""
    held: list[Answer] = []
    for answer in answers:
        held.append(answer)
        if not answer.error or len(held) > _MOST_HELD:
            break
    if not held:
        raise RequestError("the inputs hold nothing to predict")
    if len(held) <= _MOST_HELD and all(answer.error for answer in held):
        raise ListedError(_none_answered([f"{a.input}: {a.error}" for a in held]))
    out, answered, failed = make(), 0, 0
    for answer in chain(held, answers):
        out.add(answer)
        failed += bool(answer.error)
        answered += not answer.error
    out.close()
    if not answered:
        raise ListedError(_none_answered([f"{a.input}: {a.error}" for a in held], failed))
    if failed:
        raise RunError(f"{failed:,} of {answered + failed:,} inputs have no answer; their rows say why")


def _none_answered(said: list[str], count: int = 0) -> str:
    if len(said) == 1:
        return escape_line(said[0])
    count = count or len(said)
    lines = [f"  {i}. {escape_line(line)}" for i, line in enumerate(said[:3], 1)]
    more = [f"  and {count - 3:,} more"] if count > 3 else []
    return "\n".join([f"none of the {count:,} inputs could be read:", *lines, *more])


def parse_words(words: Sequence[str]) -> PredictRequest:
    """The words behind `predict`; RequestError for a flag that is none."""
    flags, rest = _without_flags(words)
    asked = PredictRequest(read_run_name(rest, "predict"))
    for i, word in enumerate(rest[1:], 1):
        if word == "--":
            asked.inputs += rest[i + 1 :]
            break
        (asked.overrides if is_override(word) else asked.inputs).append(word)
    asked.format = flags.get("--format", "table")
    if asked.format not in FORMATS:
        hint = did_you_mean(asked.format, FORMATS, "--format ")
        raise RequestError(f"--format {asked.format} is none; {hint}type one of {', '.join(FORMATS)}")
    top = flags.get("--top", "1")
    if not top.isdecimal() or int(top) < 1:
        raise RequestError(f"--top {top} must be a number from 1 on, as in --top 3")
    asked.top = int(top)
    return asked


def _without_flags(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The values of our flags (`--top 3` or `--top=3`), and the other words."""
    flags: dict[str, str] = {}
    rest: list[str] = []
    left = iter(words)
    for word in left:
        name, equals, value = word.partition("=")
        if word == "--":
            return flags, [*rest, word, *left]
        if name in _FLAGS:
            flags[name] = value if equals else next(left, "")
            if not flags[name]:
                raise RequestError(f"{name} has no value; type {name} {'csv' if name == '--format' else '3'}")
        elif word.startswith("-") and word != STDIN and parse_numbers(word.split(",")) is None:
            hint = did_you_mean(name, _FLAGS[:2])
            raise RequestError(f"there is no flag {word}; {hint}type -- before inputs that begin with a dash")
        else:
            rest.append(word)
    return flags, rest


def is_override(word: str) -> bool:
    """Whether a word is key=value: an = that is in a file's name, or behind a slash, makes none."""
    key, equals, _ = word.partition("=")
    if not equals or not key or "/" in key or Path(word).exists():
        return False
    known = {path.name for path in schema.CONFIG_DIR.iterdir() if path.is_dir()} | set(schema.KEYS) | _KEYS
    return key.lstrip("+~").split(".")[0] in known or not word.lower().endswith(_ENDINGS)


_KEYS = {"device", "paths", "task", "trainer", "checkpoint", "tracking", "trust", "trusted_modules", "seed"}


def list_remarks(saved: SavedModel) -> list[str]:
    """What is not known of the data of the user's own."""
    target = str(saved.settings.data.target)
    if target.startswith("dlrun."):
        return []
    constants = "spec.mean and spec.std" if saved.spec.mean else "nothing, as spec.mean is empty"
    return [f"the inputs are normalized by {constants}; what else {target} does to its data is not done to them"]
