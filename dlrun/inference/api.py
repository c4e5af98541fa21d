"""`import dlrun`: the command line's experiments from Python, with nothing of the process changed afterwards."""

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from dlrun.config import explain, request, unheeded
from dlrun.config.request import Request
from dlrun.core.errors import DlrunError, RequestError, RunError, explain_exit
from dlrun.core.files import DiskProblems
from dlrun.core.library_warnings import diverted
from dlrun.core.own_code import own_modules
from dlrun.core.search_path import put_own_last
from dlrun.core.shell import advice, mark_terminal_commands, python_calls
from dlrun.core.terminal import escape_line
from dlrun.data.batches import Placement
from dlrun.data.spec import DataSpec, Split, Splits
from dlrun.engine import device
from dlrun.experiment import requests
from dlrun.experiment import resume as saved
from dlrun.experiment import run as experiment
from dlrun.inference.predictions import Predictions, predict_rows
from dlrun.inference.saved_model import SavedModel, open_saved_model
from dlrun.runs.record import RunRecord, with_nan
from dlrun.runs.reports.console import Console


class Run:
    """A saved run, as its folder or checkpoint tells of it; `train` and `load` make one.

    The weights are the best ones, those of test/* in `metrics`, unless a checkpoint file was named.
    """

    def __init__(self, saved: SavedModel) -> None:
        self._saved = saved
        self._record = RunRecord(saved.folder) if saved.folder else None

    def __repr__(self) -> str:
        shown = [f"{name} {value:.4g}" for name, value in self.metrics.items() if name.startswith("test/")]
        return escape_line(f"<dlrun run {', '.join([str(self.folder or self.checkpoint), *shown])}>")

    @property
    def folder(self) -> Path | None:
        """The run folder; null for a checkpoint that lies elsewhere."""
        return self._saved.folder

    @property
    def checkpoint(self) -> Path:
        """The file that the weights are from."""
        return self._saved.path

    @property
    def config(self) -> dict[str, Any]:
        """The composed config, as plain dictionaries."""
        return self._saved.settings.plain

    @property
    def spec(self) -> DataSpec:
        """What goes in and what comes out: shapes, class names, what the inputs were standardized with."""
        return self._saved.spec

    @cached_property
    def result(self) -> dict[str, Any]:
        """result.json; empty while there is none."""
        return {} if self._record is None else self._read("result")

    @property
    def metrics(self) -> dict[str, float]:
        """train/* and val/* of the last epoch, test/* of the best weights; a lone checkpoint's those of its epoch."""
        return dict(self.result.get("metrics") or self._saved.state.get("metrics") or {})

    @cached_property
    def history(self) -> list[dict[str, float]]:
        """metrics.jsonl: a row an epoch, with `epoch` and `step`; NaN for what was not finite."""
        return [] if self._record is None else with_nan(self._read("rows"))

    def _read(self, name: str) -> Any:
        """A file of the run folder; RequestError where it is damaged."""
        assert self._record is not None
        values = getattr(self._record, name)
        if self._record.damage:
            raise RequestError(self._record.damage[0])
        return values

    @property
    def model(self) -> nn.Module:
        """The model with its weights, on its device, in evaluation mode; called as `model(*inputs)`."""
        return self._saved.model

    @cached_property
    def splits(self) -> Splits:
        """The data as the run had them, as `model` and `predict` take them: `model(*splits.test.inputs)`.

        Floats are in the precision of the training, and tensors on its device. Read when first asked for.
        """
        with _as_it_was(), self._session() as process:
            splits = self._saved.splits
            place = Placement(process.device, process.dtype, splits.spec)
            parts = {name: _placed(getattr(splits, name), place) for name in ("train", "val", "test")}
            return replace(splits, **parts)

    def predict(self, x: Any) -> Predictions:
        """The answers for rows in the form that the model was trained on, or for one such row.

        x: floats (N, features) for vectors, (N, channels, height, width) for images, standardized with `spec.mean` and
        `spec.std`; (codes, lengths), int64 (N, length) and (N,), for sequences, or names as text. A tensor, an array or
        nested lists. RequestError for another shape. Mode and weights of the model stay as they are.
        """
        with diverted(), self._session():
            return predict_rows(self._saved, x)

    def _session(self) -> contextlib.AbstractContextManager[device.Runtime]:
        """Threads and switches of torch as the run asks for them."""
        rest = self._saved.settings.rest
        return device.session(rest.device, rest.seed)


class _Noting(Console):
    """Remembers the run folder."""

    folder = Path()

    def open_log(self, path: Path, unsaved: DiskProblems | None = None) -> None:
        """See Console."""
        self.folder = path.parent
        super().open_log(path, unsaved)


def train(*overrides: str, quiet: bool = False) -> Run:
    """Train one experiment, named by the words of the command line: `train("model=resnet", "data=digits")`.

    `resume=RUN` goes on with an interrupted run, or trains a longer one; a class of the notebook is named
    `model._target_=__main__.Net`. quiet: nothing is printed; run.log has it. RequestError, with nothing written, for
    what the command line refuses; RunError for a run that fails. Ctrl-C ends the step, saves, and raises
    KeyboardInterrupt. One at a time in a process: seeds and generators are of the whole process.
    """
    words = _checked(overrides)
    console = _Noting(quiet=quiet)
    with _as_it_was("train"):
        try:
            refuse_sweep_folder(words)
            asked = requests.read_requests(words)
            if len(asked) > 1 or (asked and asked[0].sweep is not None):
                raise RequestError(
                    f"dlrun.train makes one run, and this names {len(asked)}; call it for each of them, or type "
                    f"{shlex.join(['dlrun', *words])} in a terminal"
                )
            unheeded.refuse_sweep_settings(words)
            code = experiment.run(asked[0], console) if asked else 0
        except SystemExit as error:
            raise explain_exit(error) from error
    if not asked:
        return _finished_already(words)
    if code > 1:
        with python_calls("train"):
            call = advice("resume", console.folder, modules=own_modules(asked[0].config))
        raise KeyboardInterrupt(f"the run is saved: {call} goes on with it")
    run = _load(str(console.folder), [], asked[0])
    if code:
        missed = [
            f"{line['expected']} (measured {line['measured']})" for line in run.result["expected"] if not line["ok"]
        ]
        raise RunError(
            f"the run {console.folder} did not come to {', '.join(missed)}; leave out strict=true to have it"
        )
    return run


def load(place: str | Path, *overrides: str, trusted_modules: str | Sequence[str] = (), trust: bool = False) -> Run:
    """A saved run: its folder (the best weights), or one of its checkpoint files.

    overrides: changes to the saved config, as for `dlrun eval`: "device=cpu", "data.root=elsewhere". trusted_modules:
    modules of your own that the run's model or data may come from ("__main__" for a notebook); trust: open a pickled
    full model, which can run code. RequestError for what is no run, a damaged file, and what is not trusted.
    """
    words = [*_checked(overrides), *(["trust=true"] if trust else [])]
    if not str(place):
        raise RequestError("which run? type dlrun.load('outputs/<date>/<run>')")
    unheeded.refuse_unheeded(words, "dlrun.load")
    if isinstance(trusted_modules, str):
        trusted_modules = [trusted_modules]
    if trusted_modules:
        words.append(f"trusted_modules=[{','.join(trusted_modules)}]")
    return _load(str(place), words)


def _load(place: str, words: list[str], made_by: Request | None = None) -> Run:
    """made_by: the request that this process has just run, which may use the modules that it has used already."""
    with _as_it_was():
        try:
            with open_saved_model(place, words) as saved:
                if made_by is not None:
                    saved.request = replace(saved.request, trusted_modules=made_by.trusted_modules)
                saved.model.eval()
        except explain.COMPOSITION_ERRORS as error:
            raise RequestError(explain.sentence(error, words)) from error
        except SystemExit as error:
            raise explain_exit(error) from error
    return Run(saved)


def refuse_sweep_folder(words: Sequence[str]) -> None:
    """RequestError for `resume=SWEEP`: that is many runs."""
    first, *folders = requests.put_resume_first(words)[:2] or [""]
    if first == "resume" and (Path(folders[0]) / "sweep.jsonl").exists():
        raise RequestError(
            f"{folders[0]} is a sweep, and dlrun.train makes one run; type {shlex.join(['dlrun', 'resume', *folders])} "
            "in a terminal"
        )


def _finished_already(words: Sequence[str]) -> Run:
    """The run that `resume=RUN` names, which has said that there is nothing left to do."""
    resumed = [word.removeprefix("resume=") for word in words if word.startswith("resume=")]
    if resumed == ["auto"]:
        found = saved.find_run_of_same_config(request.from_command_line(words)[0])
        resumed = [] if found is None else [str(found)]
    if not resumed:
        raise RequestError(f"{shlex.join(words)} trains nothing; type it behind dlrun in a terminal")
    trusted = [word for word in words if word.startswith("trusted_modules=")]
    return _load(resumed[0], trusted)


def _checked(words: Sequence[str]) -> list[str]:
    """The words; RequestError for one that is about no key."""
    for word in words:
        if not isinstance(word, str) or word.startswith("-") or ("=" not in word and word[:1] != "~"):
            raise RequestError(
                f"{word!r} is not a key=value word; type dlrun.train('model=resnet', 'data=digits'): "
                "commands and flags are for the terminal"
            )
    return list(words)


def _placed(part: Any, place: Placement) -> Any:
    """A part in memory where the model is; one that is read from files stays as it is."""
    if not isinstance(part, Split):
        return part
    return replace(part, inputs=tuple(place.move_inputs(part.inputs)), targets=place.move_targets(part.targets))


@contextlib.contextmanager
def _as_it_was(function: str = "load") -> Iterator[None]:
    """As on the command line, modules in the working directory can be imported, and libraries warn no terminal."""
    before = put_own_last()
    try:
        with diverted(), python_calls(function):
            try:
                yield
            except DlrunError as error:
                error.args = (mark_terminal_commands(str(error.args[0])), *error.args[1:]) if error.args else ()
                raise
    finally:
        sys.path[:] = before
