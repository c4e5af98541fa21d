"""`format=python`: the training of a run as one plain file of PyTorch, which comes to the same weights."""

import re
from pathlib import Path

import torch

from dlrun.config import listing
from dlrun.config.schema import CONFIG_DIR
from dlrun.core.files import write_atomically
from dlrun.eject.plain import data, evaluation, losses, nets, refusal, training
from dlrun.eject.plain.source import Constant, docstring, filled, script
from dlrun.eject.plain.training_run import TrainingRun
from dlrun.inference.saved_model import SavedModel

FILE = "train.py"
_TITLE = """\
$what, in plain PyTorch.

What dlrun trained as $choices: with torch $torch it comes to
the same weights, bit for bit, on a CPU like the run's.  #? same
weights close to the run's, which was trained on $device.  #? !same
"""
_RESULT = """\
expected = "$known"  # sha256 of the run's weights at its end  #? known
digest = hashlib.sha256()
for name, tensor in sorted(net.state_dict().items()):
    digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode() + tensor.numpy().tobytes())
print("weights", digest.hexdigest(), "as in the run" if digest.hexdigest() == expected else "unlike the run")  #? known
print("weights", digest.hexdigest())  #? !known
"""
_TEST = """\
net.load_state_dict(best_weights)  #? test
for name, value in evaluate($part).items():
    print(f"$part {name} {value:.6g}")
"""


def write(saved: SavedModel, folder: Path) -> list[Path]:
    """Write train.py into `folder`. RequestError for a run that is not finished, or not to be written so."""
    refusal.refuse(saved)
    run = TrainingRun(saved, int(saved.state["rows"]), int(saved.state["threads"]))
    write_atomically(folder / FILE, source(run).encode())
    return [folder / FILE]


def source(run: TrainingRun) -> str:
    """The text of the file."""
    loss = losses.criterion(run)
    parts = {"Data": data.data(run), "Net": nets.net(run), "Training": training.training(run)}
    functions = evaluation.functions(run)
    sections = {
        "Data": parts["Data"].code,
        "Net": f"{parts['Net'].code}\n{loss.code}",
        "Evaluation": functions.code,
        "Training": parts["Training"].code,
        "Result": result(run),
    }
    constants = {
        "SEED": Constant(run.settings.seed),
        **parts["Training"].constants,
        **functions.constants,
        **parts["Data"].constants,
        "THREADS": Constant(run.threads, "sums are rounded by how many there are"),
    }
    return script(title(run), {name: code for name, code in sections.items() if code}, constants)


def result(run: TrainingRun) -> str:
    """Source that tells what the training came to."""
    sha256 = str(run.result.get("weights_sha256"))
    known = re.fullmatch(r"[0-9a-f]{64}", sha256) is not None and run.device == "cpu"
    ended = filled(_RESULT, {"known": known}, known=sha256)
    if run.simple:
        return f"{ended}\n{evaluation.at_once(run)}"
    part = "test" if run.has_test else "val" if run.has_val else "train"
    return f"{ended}\n{filled(_TEST, {'test': run.has_test}, part=part)}"


def title(run: TrainingRun) -> str:
    """What the file is, as its docstring."""
    choices = run.saved.request.choices
    lesson = dict(listing.list_options(CONFIG_DIR, "lesson")).get(choices.get("lesson", ""))
    what = lesson or f"{choices.get('model')} on {choices.get('data')}"
    return filled(
        _TITLE,
        {"same": run.device == "cpu"},
        what=docstring(what[:1].upper() + what[1:]),
        choices=docstring(" ".join(f"{group}={choices.get(group)}" for group in ("data", "model", "optimizer"))),
        torch=docstring(str(run.saved.state.get("torch", torch.__version__))),
        device=docstring(run.device),
    )
