"""State that resume cannot see is said at the first checkpoint, and looking for it changes nothing."""

import functools
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from dlrun.experiment import run
from dlrun.experiment.hidden_state import comparison
from dlrun.experiment.hidden_state.comparison import NOT_SAVED

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
QUIET = ("data=blobs", "tracking.graph=false", "figures=false", "trainer.max_steps=6", "trainer.log_every_steps=100")
SOURCE = Path(__file__).parents[2] / "hidden_state_nets.py"


@pytest.fixture
def train(tmp_path: Path, dlrun: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """`train(net, *words)`: a short run with a net of the module beside the tests."""
    shutil.copy(SOURCE, tmp_path / "hidden_nets.py")
    sys.modules.pop("hidden_nets", None)
    yield lambda net, *words: dlrun(*QUIET, f"model._target_=hidden_nets.Net{net}", *words)
    sys.modules.pop("hidden_nets", None)


@pytest.mark.slow
def test_a_counter_is_said_once_everywhere(train: Callable[..., Any]) -> None:
    outcome = train("Count")
    sentence = (
        "gate (Count): attribute 'calls' is not in the checkpoint: resume will not end in the same weights; "
        "register it as a buffer, or return it from get_extra_state"
    )
    assert outcome.code == 0
    assert outcome.out.count(sentence) == 1
    assert (outcome.folder / "run.log").read_text().count(sentence) == 1
    assert outcome.result["warnings"].count(sentence) == 1


@pytest.mark.slow
def test_looking_changes_no_bit_of_the_training(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    looked = train("Everything")
    assert any(NOT_SAVED in text for text in looked.result["warnings"])
    sys.modules.pop("hidden_nets", None)
    monkeypatch.setattr(run, "make_reload_check", lambda *_: None)
    alone = train("Everything", "seed=0")
    assert not any(NOT_SAVED in text for text in alone.result["warnings"])
    assert looked.result["weights_sha256"] == alone.result["weights_sha256"]
    assert looked.rows == alone.rows


@pytest.mark.slow
def test_a_net_with_caches_and_its_own_extra_state_is_not_spoken_of(train: Callable[..., Any]) -> None:
    assert not any("resume" in text for text in train("Harmless").result["warnings"])


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["object_loss", "method_loss"])
def test_state_of_a_loss_is_said(loss: str, train: Callable[..., Any]) -> None:
    warnings = train("BN", f"task.loss=hidden_nets.{loss}").result["warnings"]
    assert [text for text in warnings if NOT_SAVED in text] == [
        f"task.loss=hidden_nets.{loss} (Loss): attribute 'calls' {NOT_SAVED}; "
        "make its class an nn.Module, and register it as a buffer"
    ]


@pytest.mark.slow
def test_a_tensor_in_a_module_that_is_the_loss_is_said(train: Callable[..., Any]) -> None:
    warnings = train("BN", "task.loss=hidden_nets.module_loss").result["warnings"]
    assert [text for text in warnings if NOT_SAVED in text] == [
        f"task.loss=hidden_nets.module_loss (Smoothed): attribute 'mean' {NOT_SAVED}; "
        "register it as a buffer, or return it from get_extra_state"
    ]


@pytest.mark.slow
def test_buffers_of_a_loss_are_saved_and_come_back(train: Callable[..., Any], dlrun: Callable[..., Any]) -> None:
    words = ("task.loss=hidden_nets.buffered_loss", "trainer.epochs=9")
    reference = train("BN", *words, "trainer.max_steps=12")
    assert not any("resume" in text for text in reference.result["warnings"])
    sys.modules.pop("hidden_nets", None)
    assert train("BN", *words, "hydra.run.dir=half").code == 0
    sys.modules.pop("hidden_nets", None)
    resumed = dlrun("resume", "half", "trainer.max_steps=12", "trusted_modules=[hidden_nets]")
    assert resumed.code == 0, resumed.err
    assert resumed.result["weights_sha256"] == reference.result["weights_sha256"]


@pytest.mark.parametrize(
    ("net", "words"),
    [
        ("EveryTenth", ()),
        pytest.param(
            "FromLater",
            ("data.batch_size=400", "trainer.max_steps=null", "trainer.epochs=70"),
            marks=pytest.mark.slow,
        ),
        ("Count", ("preflight=false", "data.loader=workers", "data.num_workers=0")),
        pytest.param("HalfCache", ("device.precision=bf16",), marks=pytest.mark.slow),
    ],
)
def test_what_acts_late_or_elsewhere_is_said(net: str, words: tuple[str, ...], train: Callable[..., Any]) -> None:
    outcome = train(net, *words)
    assert outcome.code == 0, outcome.err
    assert [text for text in outcome.result["warnings"] if "resume" in text] == [
        f"gate ({net}): attribute 'calls' {NOT_SAVED}; register it as a buffer, or return it from get_extra_state"
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("optimizer._target_=hidden_nets.CountingSGD",), "optimizer=CountingSGD (CountingSGD): attribute 'steps'"),
        (("scheduler._target_=hidden_nets.CountingSchedule", "scheduler.interval=step"),
         "scheduler=CountingSchedule (CountingSchedule): attribute 'seen'"),
        pytest.param(
            ("optimizer._target_=hidden_nets.SavingSGD", "scheduler=step", "scheduler.step_size=1"),
            "",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_state_of_an_optimizer_or_a_schedule_is_said(
    words: tuple[str, ...], message: str, train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = train("BN", *words)
    assert looked.code == 0, looked.err
    warnings = [text for text in looked.result["warnings"] if "resume" in text]
    assert warnings == ([f"{message} {NOT_SAVED}; return it from state_dict"] if message else [])
    monkeypatch.setattr(run, "make_reload_check", lambda *_: None)
    sys.modules.pop("hidden_nets", None)
    assert train("BN", *words).result["weights_sha256"] == looked.result["weights_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("own", ["true", "false"])
def test_a_data_set_with_a_generator_of_its_own_is_said(own: str, train: Callable[..., Any]) -> None:
    data = ("data._target_=hidden_nets.rows", f"+data.own={own}", "data.loader=workers", "data.num_workers=0")
    outcome = train("BN", *data, "data.val_fraction=0")
    assert outcome.code == 0, outcome.err
    assert [text for text in outcome.result["warnings"] if "resume" in text] == [
        "data=rows: a row that is read again with the same random numbers is another one: a resumed run will not end "
        "in the same weights; keep no count or generator in the data set"
    ] * (own == "true")


SCRIPT = """
import sys
import torch
import dlrun

CALLS = 0


class Net(torch.nn.Linear):
    def __init__(self, spec):
        super().__init__(spec.input_size, spec.output_size)
        self.calls = 0

    def forward(self, x):
        global CALLS
        CALLS += 1
        self.calls += 1
        return super().forward(x) * (1 + 0.1 * self.calls + 0.2 * CALLS)


for warning in dlrun.train(*sys.argv[1:], quiet=True).result["warnings"]:
    print(warning)
"""


@pytest.mark.slow
def test_a_net_of_a_script_is_looked_at_as_any_other(tmp_path: Path, python: Callable[..., Any]) -> None:
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)
    began = python("mine.py", "model._target_=__main__.Net", *QUIET, "trainer.epochs=9", "hydra.run.dir=run")
    assert began.code == 0, began.err
    assert [line for line in began.out.splitlines() if "resume" in line] == [
        f"the model (Net): attribute 'calls' {NOT_SAVED}; register it as a buffer, or return it from get_extra_state",
        f"the global CALLS of mine.py {NOT_SAVED}; keep it in a module, as a buffer",
    ]
    script.write_text(f"{SCRIPT}# changed\n")
    resumed = python("mine.py", "resume=run", "trainer.max_steps=12", "trusted_modules=[__main__]")
    assert resumed.code == 0, resumed.err
    assert "the source of __main__.Net (mine.py) changed since this checkpoint was saved" in resumed.out


def test_a_second_net_that_cannot_be_built_is_a_note(train: Callable[..., Any]) -> None:
    outcome = train("Twice")
    assert outcome.code == 0
    assert [text for text in outcome.result["warnings"] if "could not be checked" in text] == [
        "whether a resumed run ends in the same weights could not be checked: RequestError: model=NetTwice: "
        "RuntimeError: a second one (hidden_nets.py, line "
        f"{next(i for i, line in enumerate(SOURCE.read_text().splitlines(), 1) if 'a second one' in line)})"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "message"),
    [
        ("ClassDefault", "gate (ClassDefault): attribute 'calls'"),
        ("TrainCount", "gate (TrainCount): attribute 'calls'"),
        ("Running", "gate (Running): attribute 'mean'"),
        ("RunningGraph", "gate (RunningGraph): attribute 'last'"),
        ("NonPersistent", "gate (NonPersistent): buffer 'mean'"),
        ("Listed", "gate (Listed): attribute 'memory'"),
        ("Dicted", "gate (Dicted): attribute 'memory['n']'"),
        ("ListOfModules", "gate.gates[0] (Count): attribute 'calls'"),
        ("OwnGen", "gate (OwnGen): attribute 'generator'"),
        ("NpGen", "gate (NpGen): attribute 'rng'"),
        ("PyGen", "gate (PyGen): attribute 'rng'"),
        ("ObjectState", "gate (ObjectState): attribute 'memory.count'"),
        ("GradOnly", "gate (GradOnly): attribute 'calls'"),
        ("Global", "the global CALLS of hidden_nets.py"),
        ("ClassState", "the attribute total of the class ClassState"),
        ("Closure", "the variable n of closure.<locals>.f"),
        ("Frozen", "gate (Frozen): attribute 'calls'"),
        ("Iter", "gate (Iter): attribute 'n'"),
    ],
)
def test_each_kind_is_named(net: str, message: str, train: Callable[..., Any]) -> None:
    warnings = [text for text in train(net).result["warnings"] if NOT_SAVED in text]
    assert warnings
    assert warnings[0].startswith(message)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("device.precision=bf16",),
        ("device.precision=fp64", "trainer.accumulate_steps=2"),
        ("preflight=false",),
        ("checkpoint.every_steps=2", "data.loader=workers", "data.num_workers=0"),
        ("task.loss=hidden_nets.plain_loss",),
    ],
)
@pytest.mark.parametrize(
    "net",
    ["PosCache", "Noise", "BN", "Spec", "RandomInit", "Extra", "Recurrent", "Checkpointed", "Reseeded", "Hooked"],
)
def test_no_false_alarm(net: str, words: tuple[str, ...], train: Callable[..., Any]) -> None:
    outcome = train(net, *words)
    assert outcome.code == 0, outcome.err
    assert not any("resume" in text for text in outcome.result["warnings"])


def test_a_net_whose_copies_would_call_it_is_left_alone(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = train("Enclosed")
    assert any("lambda> holds a module" in text for text in looked.result["warnings"])
    sys.modules.pop("hidden_nets", None)
    monkeypatch.setattr(run, "make_reload_check", lambda *_: None)
    assert train("Enclosed").result["weights_sha256"] == looked.result["weights_sha256"]


@pytest.mark.slow
def test_a_compiled_net_is_named_as_any_other(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, no_stand_in: None
) -> None:
    # The graph is taken and run as it is: compiling it to C++ takes half a minute.
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="eager"))
    warnings = [text for text in train("Count", "device.compile=true").result["warnings"] if NOT_SAVED in text]
    assert len(warnings) == 1
    assert warnings[0].startswith("gate (Count): attribute 'calls'")


@pytest.mark.slow
@pytest.mark.parametrize("net", ["BN", "Extra", "Recurrent", "Spec"])
def test_no_false_alarm_beside_an_average_of_the_weights(net: str, train: Callable[..., Any]) -> None:
    outcome = train(net, "trainer.ema_decay=0.9")
    assert outcome.code == 0, outcome.err
    assert not any("resume" in text for text in outcome.result["warnings"])


@pytest.mark.slow
def test_a_constructor_that_waits_for_ever_is_a_note(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "_SECONDS", 0.5)
    outcome = train("Locking")
    assert outcome.code == 0
    assert any("took more than" in text for text in outcome.result["warnings"])


@pytest.mark.slow
def test_a_resumed_run_says_it_again_and_once(train: Callable[..., Any], dlrun: Callable[..., Any]) -> None:
    folder = train("Count", "hydra.run.dir=r", "trainer.epochs=9").folder
    resumed = dlrun("resume", str(folder), "trainer.max_steps=12", "trusted_modules=[hidden_nets]")
    assert resumed.code == 0, resumed.err
    assert len([text for text in resumed.result["warnings"] if NOT_SAVED in text]) == 1
