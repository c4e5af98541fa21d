"""`import dlrun`: the command line's experiments from Python, without lasting changes to the process."""

import contextlib
import html
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from dlrun.config import compose, explain, request, unheeded
from dlrun.config.request import Request
from dlrun.core.errors import DlrunError, RequestError, RunError, explain_exit
from dlrun.core.files import DiskProblems
from dlrun.core.library_warnings import divert_warnings
from dlrun.core.own_code import find_own_modules
from dlrun.core.search_path import put_own_last
from dlrun.core.shell import advise_in_python, mark_terminal_commands, suggest_command
from dlrun.core.terminal import escape_line
from dlrun.data.batches import Placement
from dlrun.data.spec import DataSpec, Split, Splits
from dlrun.engine import device
from dlrun.experiment import requests, resume
from dlrun.experiment import run as experiment
from dlrun.inference import notebook
from dlrun.inference.predictions import Predictions, predict_rows
from dlrun.inference.saved_model import SavedModel, open_saved_model
from dlrun.runs.query import is_sweep_folder
from dlrun.runs.record import RunRecord, replace_none_with_nan
from dlrun.runs.reports.console import Console
from dlrun.runs.reports.plots.history import draw_history


class Run:
    """A saved run, read from its folder or checkpoint; `train` and `load` return one.

    The weights are the best ones, which test/* in `metrics` belongs to, unless a checkpoint file was named.
    """

    def __init__(self, saved_model: SavedModel) -> None:
        self._saved_model = saved_model
        self._record = RunRecord(saved_model.folder) if saved_model.folder else None

    def __repr__(self) -> str:
        parts = [str(self.folder or self.checkpoint)]
        for name, value in self._get_headline_metrics().items():
            parts.append(f"{name} {value:.4g}")
        return escape_line(f"<dlrun run {', '.join(parts)}>")

    def _repr_html_(self) -> str:
        """What a notebook shows: where the run lies, and its metrics."""
        place = html.escape(escape_line(str(self.folder or self.checkpoint)))
        return f"<p>dlrun run {place}</p>\n{notebook.render_metrics(self.metrics)}"

    def _get_headline_metrics(self) -> dict[str, float]:
        """The metrics of the test part; where the data have none, those of validation, or of training."""
        for split in ("test/", "val/", "train/"):
            metrics = {name: value for name, value in self.metrics.items() if name.startswith(split)}
            if metrics:
                return metrics
        return {}

    @property
    def folder(self) -> Path | None:
        """Run folder; None for a checkpoint file elsewhere."""
        return self._saved_model.folder

    @property
    def checkpoint(self) -> Path:
        """File that the weights were read from."""
        return self._saved_model.path

    @property
    def config(self) -> dict[str, Any]:
        """The composed config, as plain dictionaries."""
        return self._saved_model.settings.plain

    @property
    def spec(self) -> DataSpec:
        """Inputs and outputs of the model: shapes, class names, constants that standardized the inputs."""
        return self._saved_model.spec

    @cached_property
    def result(self) -> dict[str, Any]:
        """result.json; empty if there is none yet."""
        return {} if self._record is None else self._read_record("result")

    @property
    def metrics(self) -> dict[str, float]:
        """train/* and val/* of the last epoch, test/* of the best weights; of a lone checkpoint those of its epoch."""
        # result.json appears at the end of a run; until then a checkpoint has the metrics of its epoch.
        return dict(self.result.get("metrics") or self._saved_model.state.get("metrics") or {})

    @cached_property
    def history(self) -> notebook.History:
        """metrics.jsonl: one row per epoch, with `epoch` and `step`; NaN for values that were not finite.

        A list of dictionaries; `history["val/loss"]` is a column, `history.to_pandas()` a DataFrame.
        """
        return notebook.History([] if self._record is None else replace_none_with_nan(self._read_record("rows")))

    def plot(self) -> notebook.Picture:
        """The metrics over the epochs, as a picture that a notebook shows; RequestError before the first epoch."""
        if not self.history:
            raise RequestError(f"{self.folder or self.checkpoint} has no epochs to draw; see run.metrics")
        return notebook.Picture(draw_history(self.history))

    def _read_record(self, name: str) -> Any:
        """Read an attribute of the run record; RequestError if its file is damaged."""
        assert self._record is not None
        values = getattr(self._record, name)
        # The record notes damage while it reads.
        if self._record.damage:
            raise RequestError(self._record.damage[0])
        return values

    @property
    def model(self) -> nn.Module:
        """The model with its weights, on its device, in evaluation mode; called as `model(*inputs)`."""
        return self._saved_model.model

    @cached_property
    def splits(self) -> Splits:
        """The data of the run, as `model` and `predict` take them: `model(*splits.test.inputs)`.

        Floats are in the precision of training, tensors on the run's device. Read on first access.
        """
        # The data may come from a module in the working directory.
        with _restore_process(), self._open_session() as runtime:
            splits = self._saved_model.splits
            placement = Placement(runtime.device, runtime.dtype, splits.spec)
            parts = {name: _place_part(getattr(splits, name), placement) for name in ("train", "val", "test")}
            return replace(splits, **parts)

    def predict(self, x: Any) -> Predictions:
        """Predict rows in the form that the model was trained on, or one such row.

        x: floats (N, features) for vectors, (N, channels, height, width) for images, standardized with `spec.mean` and
        `spec.std`; (codes, lengths), int64 (N, length) and (N,), for sequences, or names as text. A tensor, an array or
        nested lists. RequestError for another shape. Mode and weights of the model stay as they are.
        """
        # Warnings of libraries stay off the notebook, as they stay off the terminal in `dlrun predict`.
        with divert_warnings(), self._open_session():
            return predict_rows(self._saved_model, x)

    def _open_session(self) -> contextlib.AbstractContextManager[device.Runtime]:
        """Set threads and backend flags of torch as the run's config has them."""
        settings = self._saved_model.settings
        return device.device_session(settings.device, settings.seed)


class _FolderConsole(Console):
    """A console that remembers the run folder."""

    folder = Path()

    def open_log(self, path: Path, disk_problems: DiskProblems | None = None) -> None:
        """Open the run's log file, which lies in the run folder."""
        # experiment.run returns an exit code alone, so the folder is read off the log file.
        self.folder = path.parent
        super().open_log(path, disk_problems)


def train(*overrides: str, quiet: bool = False, **keywords: Any) -> Run:
    """Train one experiment, given as words of the command line: `train("model=resnet", "data=digits")`.

    `resume=RUN` continues an interrupted run, or trains a longer one; a class of the notebook is named
    `model._target_=__main__.Net`. quiet: print nothing, as run.log has it all. RequestError, with nothing written, for
    what the command line refuses; RunError for a run that fails. Ctrl-C ends the step, saves, and raises
    KeyboardInterrupt. One at a time in a process, as seeds and generators belong to the whole process.
    """
    if keywords:
        raise RequestError(_explain_keywords(keywords))
    words = _check_words(overrides)
    console = _FolderConsole(quiet=quiet)
    code = 0
    with _restore_process("train"):
        try:
            # Everything that can be refused is refused before a folder exists.
            _refuse_sweep_folder(words)
            jobs = requests.read_requests(words)
            if len(jobs) > 1 or (jobs and jobs[0].sweep is not None):
                raise RequestError(
                    f"dlrun.train makes one run, and this names {len(jobs)}; call it for each of them, or type "
                    f"{shlex.join(['dlrun', *words])} in a terminal"
                )
            unheeded.refuse_sweep_settings(words)
            if jobs:
                code = experiment.run(jobs[0], console)
        except SystemExit as error:
            raise explain_exit(error) from error

    # `resume=RUN` of a finished run has nothing left to train.
    if not jobs:
        return _load_finished_run(words)
    # Exit code 1 is a missed expectation; any above is a signal.
    if code > 1:
        with advise_in_python("train"):
            call = suggest_command("resume", console.folder, modules=find_own_modules(jobs[0].config))
        raise KeyboardInterrupt(f"the run is saved: {call} resumes it")

    # Opened like any saved run, so that `train` and `load` return the same.
    run = _load_run(str(console.folder), [], jobs[0])
    if code:
        unmet = []
        for line in run.result["expected"]:
            if not line["ok"]:
                unmet.append(f"{line['expected']} (measured {line['measured']})")
        raise RunError(
            f"the run {console.folder} did not meet {', '.join(unmet)}; leave out strict=true to have the run"
        )

    return run


def load(place: str | Path, *overrides: str, trusted_modules: str | Sequence[str] = (), trust: bool = False) -> Run:
    """Load a saved run: its folder (the best weights), or one of its checkpoint files.

    overrides: changes to the saved config, as for `dlrun eval`: "device=cpu", "data.root=elsewhere". trusted_modules:
    modules of your own that the run's model or data may come from ("__main__" for a notebook); trust: open a pickled
    full model, which can run code. RequestError for a place without a run, a damaged file, and untrusted code.
    """
    words = _check_words(overrides)
    if trust:
        words.append("trust=true")
    if not str(place):
        raise RequestError("which run? type dlrun.load('outputs/<date>/<run>')")
    unheeded.refuse_unheeded(words, "dlrun.load")

    if isinstance(trusted_modules, str):
        trusted_modules = [trusted_modules]
    if trusted_modules:
        # The command line takes a list; a single module may be given as a string.
        words.append(f"trusted_modules=[{','.join(trusted_modules)}]")
    return _load_run(str(place), words)


def _load_run(place: str, words: list[str], request_of_training: Request | None = None) -> Run:
    """Open a saved run and build its model.

    request_of_training: of a run that this process has just trained, whose trusted modules are trusted again.
    """
    with _restore_process():
        try:
            with open_saved_model(place, words) as saved_model:
                if request_of_training is not None:
                    # Its modules have been imported and run by this process already.
                    saved_model.request = replace(
                        saved_model.request, trusted_modules=request_of_training.trusted_modules
                    )
                # Built here and not on first access, so that mistakes surface in this call.
                saved_model.model.eval()
        except explain.COMPOSITION_ERRORS as error:
            raise RequestError(explain.explain_error(error, words)) from error
        except SystemExit as error:
            raise explain_exit(error) from error

    return Run(saved_model)


def _refuse_sweep_folder(words: Sequence[str]) -> None:
    """Raise RequestError for `resume=SWEEP`, as a sweep is many runs."""
    command = requests.put_resume_first(words)[:2]
    if command[:1] != ["resume"]:
        return
    folder = command[1]
    if is_sweep_folder(Path(folder)):
        raise RequestError(
            f"{folder} is a sweep, and dlrun.train makes one run; type {shlex.join(['dlrun', 'resume', folder])} "
            "in a terminal"
        )


def _load_finished_run(words: Sequence[str]) -> Run:
    """Load the run that `resume=RUN` names, which has nothing left to train."""
    folders = [word.removeprefix("resume=") for word in words if word.startswith("resume=")]
    # `resume=auto` continues the newest run of the same config, which is finished here.
    if folders == ["auto"]:
        folder = resume.find_run_of_same_config(request.from_command_line(words)[0])
        folders = [] if folder is None else [str(folder)]
    if not folders:
        raise RequestError(f"{shlex.join(words)} trains nothing; type it behind dlrun in a terminal")
    trust_words = [word for word in words if word.startswith("trusted_modules=")]
    return _load_run(folders[0], trust_words)


def _check_words(words: Sequence[str]) -> list[str]:
    """Return the words as a list; RequestError for commands and flags."""
    for word in words:
        # ~key deletes a key and needs no =.
        if not isinstance(word, str) or word.startswith("-") or ("=" not in word and word[:1] != "~"):
            raise RequestError(
                f"{word!r} is not a key=value word; type dlrun.train('model=resnet', 'data=digits'): "
                "commands and flags are for the terminal"
            )

    return list(words)


def _explain_keywords(keywords: dict[str, Any]) -> str:
    """The error message for `dlrun.train(epochs=3)`, which names the words to pass instead."""
    words = []
    for name, value in keywords.items():
        # Groups are chosen by their name; other keywords are the last word of a key.
        keys = [name] if name in compose.GROUPS else explain.suggest_keys(name)
        if keys:
            words.append(f"{keys[0]}={json.dumps(value, default=str) if not isinstance(value, str) else value}")

    hint = f"type dlrun.train({', '.join(map(repr, words))})" if words else "dlrun --cfg job shows all keys"
    listed = ", ".join(f"{name}=..." for name in keywords)
    return f"dlrun.train takes key=value words, not {listed}; {hint}"


def _place_part(part: Any, placement: Placement) -> Any:
    """Move an in-memory part to where the model is; one that is read from files stays as it is."""
    # Files are read batch by batch, and the batches are moved.
    if not isinstance(part, Split):
        return part
    inputs = tuple(placement.move_inputs(part.inputs))
    return replace(part, inputs=inputs, targets=placement.move_targets(part.targets))


@contextlib.contextmanager
def _restore_process(function: str = "load") -> Iterator[None]:
    """Import modules of the working directory and divert library warnings, as the command line does, then undo both.

    function: the Python call that advice in messages names in place of a command.
    """
    search_path = put_own_last()
    try:
        with divert_warnings(), advise_in_python(function):
            try:
                yield
            except DlrunError as error:
                if error.args:
                    # What has no Python call is to be typed in a terminal, and says so.
                    error.args = (mark_terminal_commands(str(error.args[0])), *error.args[1:])
                raise
    finally:
        sys.path[:] = search_path
