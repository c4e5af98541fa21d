"""`dlrun predict RUN_OR_CHECKPOINT INPUT ... [--format csv|jsonl] [--top K] [key=value ...]`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from dlrun.config import schema, unheeded
from dlrun.core.errors import ListedError, RequestError, RunError
from dlrun.core.shell import quote
from dlrun.core.suggest import did_you_mean
from dlrun.core.terminal import escape_line, write_error
from dlrun.data.files.picture import list_suffixes
from dlrun.data.files.table import parse_numbers
from dlrun.inference.predict.answer import Answer
from dlrun.inference.predict.forward import refuse_several_inputs
from dlrun.inference.predict.predictor import make_reader, predict_inputs
from dlrun.inference.predict.reader import STDIN
from dlrun.inference.predict.writers import FORMATS, Writer
from dlrun.inference.saved_model import SavedModel, open_saved_model, read_run_name
from dlrun.runs.reports.console import Console, format_facts

_FLAGS = ("--format", "--top")
_ENDINGS = (".csv", ".csv.gz", ".tsv", ".txt", ".npy")
# Answers held back while all of them are errors: one message then replaces the table.
_MAX_LEADING_ERRORS = 20


@dataclass
class PredictRequest:
    """The parsed command line."""

    run: str
    inputs: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)


def predict(words: list[str], format: str, top: int) -> None:
    """Print an answer for each input; RunError if some have none, RequestError if none has one."""
    request = parse_words(words)
    unheeded.refuse_unheeded(request.overrides, "dlrun predict")
    with open_saved_model(request.run, request.overrides) as saved_model:
        refuse_several_inputs(saved_model)
        # Only the model knows what may be named as an input.
        accepted = make_reader(saved_model).accepted_inputs
        if not request.inputs:
            raise RequestError(
                f"what is to be predicted? type dlrun predict {quote(request.run)} INPUT ...: {accepted}"
            )
        if top > 1 and saved_model.spec.task not in ("binary", "multiclass"):
            raise RequestError(f"--top {top} is for classes, and this model's task is {saved_model.spec.task}")

        console = Console()
        # To stderr, as stdout may be read by a program.
        for remark in _list_remarks(saved_model):
            write_error(escape_line(f"note: {remark}"))

        def start_writer() -> Writer:
            # CSV and JSON lines begin with data: they are for programs.
            if format == "table":
                console.say(format_facts([("checkpoint", str(saved_model.path))]))
                console.say()
            return FORMATS[format](console, saved_model.spec, top)

        _write_answers(predict_inputs(saved_model, request.inputs, top), start_writer)


def _write_answers(answers: Iterator[Answer], start_writer: Callable[[], Writer]) -> None:
    """Print the answers as they arrive, but no header before the first success: all may turn out to be errors."""
    leading: list[Answer] = []
    for answer in answers:
        leading.append(answer)
        if not answer.error or len(leading) > _MAX_LEADING_ERRORS:
            break

    if not leading:
        # Empty files, for example.
        raise RequestError("the inputs hold nothing to predict")
    if len(leading) <= _MAX_LEADING_ERRORS and all(answer.error for answer in leading):
        raise ListedError(_describe_failure(leading, len(leading)))

    writer = start_writer()
    success_count = 0
    failure_count = 0
    for answer in chain(leading, answers):
        writer.add(answer)
        if answer.error:
            failure_count += 1
        else:
            success_count += 1
    writer.close()

    if not success_count:
        # More errors than are held back, and no success after them.
        raise ListedError(_describe_failure(leading, failure_count))
    if failure_count:
        raise RunError(
            f"{failure_count:,} of {success_count + failure_count:,} inputs have no answer; their rows say why"
        )


def _describe_failure(leading: list[Answer], count: int) -> str:
    """Message for inputs of which none could be read: the first three errors, and how many there are."""
    messages = [escape_line(f"{answer.input}: {answer.error}") for answer in leading]
    if len(messages) == 1:
        return messages[0]

    lines = [f"none of the {count:,} inputs could be read:"]
    for number, message in enumerate(messages[:3], 1):
        lines.append(f"  {number}. {message}")
    if count > 3:
        lines.append(f"  and {count - 3:,} more")
    return "\n".join(lines)


def parse_words(words: Sequence[str]) -> PredictRequest:
    """Sort the words after `predict` into the run, inputs and overrides; RequestError for unknown flags."""
    request = PredictRequest(read_run_name(words, "predict"))
    for position, word in enumerate(words[1:], 1):
        if word == "--":
            # Everything after it is an input, whatever it looks like.
            request.inputs += words[position + 1 :]
            break

        # A row of numbers may begin with a minus.
        if word.startswith("-") and word != STDIN and parse_numbers(word.split(",")) is None:
            hint = did_you_mean(word.partition("=")[0], _FLAGS)
            raise RequestError(f"there is no flag {word}; {hint}type -- before inputs that begin with a dash")
        if is_override(word):
            request.overrides.append(word)
        else:
            request.inputs.append(word)
    return request


def is_override(word: str) -> bool:
    """Whether a word is key=value. An = within the name of an existing file, or after a slash, does not count."""
    key, equals, _ = word.partition("=")
    if not equals or not key or "/" in key or Path(word).exists():
        return False

    # A word that ends like a file may be a misspelled file, unless its key exists.
    groups = {path.name for path in schema.CONFIG_DIR.iterdir() if path.is_dir()}
    known_keys = groups | set(schema.KEYS) | _KEYS
    endings = (*list_suffixes(), *_ENDINGS)
    return key.lstrip("+~").split(".")[0] in known_keys or not word.lower().endswith(endings)


_KEYS = {"device", "paths", "task", "trainer", "checkpoint", "tracking", "trust", "trusted_modules", "seed"}


def _list_remarks(saved_model: SavedModel) -> list[str]:
    """Warn that preprocessing inside the user's own data code is not repeated for the inputs."""
    target = str(saved_model.settings.data.target)
    if target.startswith("dlrun."):
        return []
    constants = "spec.mean and spec.std" if saved_model.spec.mean else "nothing, as spec.mean is empty"
    return [f"the inputs are normalized by {constants}; what else {target} does to its data is not done to them"]
