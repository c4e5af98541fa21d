"""`import dlrun`: the command line's runs and sentences from Python, and a process that is left as it was."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import dlrun as package
from dlrun.cli.main import main

QUICK = ("tracking.graph=false", "figures=false", "trainer.epochs=2")
BLOBS = ("data=blobs", "model=mlp", "data.val_fraction=0.2", *QUICK)

OTHERS = ("PYTEST", "TORCHINDUCTOR_", "KMP_")  # variables that pytest, torch._inductor and scikit-learn set


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, which is not on sys.path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DLRUN_DATA_DIR", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def state_of_the_process() -> dict[str, Any]:
    """All of it that a training sets, or that Hydra does."""
    cudnn = torch.backends.cudnn
    globals_of_hydra: Any = (GlobalHydra.instance(), HydraConfig.instance())
    return {
        "argv": list(sys.argv),
        "path": list(sys.path),
        "directory": str(Path.cwd()),
        "environment": {key: value for key, value in os.environ.items() if not key.startswith(OTHERS)},
        "hydra": (globals_of_hydra[0].hydra, globals_of_hydra[1].cfg),
        "generators": (random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()),  # type: ignore[index]
        "threads": torch.get_num_threads(),
        "switches": (cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()),
        "signals": (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)),
        "logging": (list(logging.root.handlers), logging.root.level, logging.getLogger("hydra.utils").disabled),
        "streams": (sys.stdout, sys.stderr),
        "grad": torch.is_grad_enabled(),
    }


@pytest.fixture
def clean_process() -> Iterator[None]:
    """The process is afterwards as it was."""
    torch.set_num_threads(1)
    random.random(), np.random.rand(), torch.rand(1)
    before = state_of_the_process()
    yield
    after = state_of_the_process()
    assert {key: (before[key], after[key]) for key in before if before[key] != after[key]} == {}


def command_line(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    with monkeypatch.context() as changed:
        changed.setattr(sys, "argv", ["dlrun", *words])
        changed.setattr(sys, "path", list(sys.path))
        return main()


def test_the_import_is_quick_and_without_torch() -> None:
    code = (
        "import time; t = time.perf_counter(); import dlrun; t = time.perf_counter() - t; import sys; "
        "print(t, sorted({'torch', 'hydra', 'numpy', 'rich'} & set(sys.modules)), *dlrun.__all__); dlrun.RequestError; "
        "assert 'torch' not in sys.modules and 'train' in dir(dlrun)"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, rest = outcome.stdout.strip().split(" ", 1)
    assert float(seconds) < 0.1
    names = "Callback LoggedRun Logger Predictions RequestError Run RunError StackedLayer"
    assert rest == f"[] {names} load log register_stacked_layer runs train"


def test_every_public_name_is_there_and_documented() -> None:
    for name in package.__all__:
        assert getattr(package, name).__doc__
    with pytest.raises(AttributeError, match=r"dlrun has no fit; it has .* train"):
        _ = package.fit


@pytest.mark.slow
def test_a_run_is_that_of_the_command_line(
    working_directory: Path, clean_process: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line(monkeypatch, *BLOBS, "hydra.run.dir=typed", "device.deterministic=true") == 0
    output = capsys.readouterr().out
    run = package.train(*BLOBS, "hydra.run.dir=called", "device.deterministic=true")
    assert run.folder == working_directory / "called"
    assert len(capsys.readouterr().out.splitlines()) == len(output.splitlines())
    typed = json.loads((working_directory / "typed" / "result.json").read_text())
    for key in ("weights_sha256", "metrics", "baseline", "config_hash", "best"):
        assert run.result[key] == typed[key], key
    assert (working_directory / "called" / "metrics.jsonl").read_bytes() == (
        working_directory / "typed" / "metrics.jsonl"
    ).read_bytes()
    assert [row["epoch"] for row in run.history] == [1, 2]
    assert run.metrics == typed["metrics"]
    assert run.config["trainer"]["epochs"] == 2
    assert run.checkpoint == Path("called/checkpoints/best.pt") or run.checkpoint.name == "best.pt"
    assert "called" in repr(run)


def test_a_quiet_run_in_a_thread_prints_nothing(
    working_directory: Path, clean_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions: list[Any] = []
    thread = threading.Thread(target=lambda: predictions.append(package.train(*BLOBS, quiet=True)))
    thread.start()
    thread.join()
    assert predictions[0].metrics["val/accuracy"] > 0.3
    assert capsys.readouterr() == ("", "")
    assert "completed after 2 epochs" in (predictions[0].folder / "run.log").read_text()


@pytest.mark.slow
def test_hydra_of_the_users_own_goes_on(working_directory: Path) -> None:
    (working_directory / "config.yaml").write_text("a: 1\n")
    with hydra.initialize_config_dir(str(working_directory), version_base="1.3"):
        package.train(*BLOBS, quiet=True)
        assert hydra.compose("config", ["a=2"]).a == 2
    with pytest.raises(package.RequestError, match="no key b"):
        package.train("b=1")


@pytest.mark.parametrize(
    "words",
    [
        ("model=resnett",),
        ("optimizer=sgd,adam",),
        ("sweep.jobs=2",),
        pytest.param(("trainer.epochs=0", "modle=x"), marks=pytest.mark.slow),
        pytest.param(("data=csv",), marks=pytest.mark.slow),
    ],
)
def test_a_mistake_is_the_sentence_of_the_command_line(
    words: tuple[str, ...], working_directory: Path, clean_process: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert command_line(monkeypatch, *words) == 2
    output = capsys.readouterr().err
    with pytest.raises(package.RequestError) as raised:
        package.train(*words)
    # What Python has no call for is typed in a terminal, and a single run is no sweep.
    sentence = str(raised.value).replace(" in a terminal", "")
    assert f"dlrun: {sentence}\n" == output.replace(
        "is for a sweep; add -m, or", "is for a sweep, and this is one run;"
    )
    assert list(working_directory.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-m", "seed=1,2"), "'-m' is not a key=value word"),
        (("eval",), "'eval' is not a key=value word"),
        (("--cfg=job",), "'--cfg=job' is not a key=value word"),
        pytest.param(
            ("lesson=optimizer_race",), "makes one run, and this names 4; call it for each", marks=pytest.mark.slow
        ),
        (("resume=nowhere",), "nowhere is not a run folder"),
    ],
)
def test_what_is_not_one_training(
    words: tuple[str, ...], message: str, working_directory: Path, clean_process: None
) -> None:
    with pytest.raises(package.RequestError, match=message):
        package.train(*words)
    assert list(working_directory.iterdir()) == []


@pytest.mark.slow
def test_the_model_predicts_what_its_metrics_say(working_directory: Path, clean_process: None) -> None:
    run = package.train("data=digits", "model=cnn", *QUICK, "trainer.epochs=1", quiet=True)
    test = run.splits.test
    predictions = run.predict(test.inputs[0])
    assert len(predictions) == len(test.targets)
    assert float((predictions.values == test.targets).double().mean()) == pytest.approx(run.metrics["test/accuracy"])
    assert predictions.labels == [run.spec.class_names[n] for n in predictions.values.tolist()]
    assert predictions.probabilities is not None
    with torch.inference_mode():
        outputs = run.model(test.inputs[0][:3])
    assert torch.allclose(predictions.probabilities[:3], outputs.softmax(-1), atol=1e-6)
    one = run.predict(test.inputs[0][4].numpy())
    assert (one.labels, one.probabilities.shape) == (predictions.labels[4:5], (1, 10))
    assert run.predict(test.inputs[0][4].tolist()).labels == one.labels
    assert not run.model.training
    assert f"test/accuracy {run.metrics['test/accuracy']:.4g}" in repr(run)
    again = package.load(str(run.folder))
    assert again.metrics == run.metrics
    assert torch.equal(again.predict(test.inputs[0][:9]).probabilities, run.predict(test.inputs[0][:9]).probabilities)


@pytest.mark.slow
def test_binary_regression_and_tagging_answers(working_directory: Path) -> None:
    binary = package.train("data=flower", "model=mlp", "data.val_fraction=0.2", *QUICK, quiet=True)
    (x,), y = binary.splits.val.inputs, binary.splits.val.targets
    best = binary.history[binary.result["best"]["epoch"] - 1]
    predictions = binary.predict(x)
    assert predictions.probabilities.shape == (len(x), 2)
    assert torch.allclose(predictions.probabilities.sum(1), torch.ones(len(x)))
    assert torch.equal(predictions.values, (predictions.probabilities[:, 1] > 0.5).long())
    assert float((predictions.values == y).double().mean()) == pytest.approx(best["val/accuracy"])
    line = package.train("data=line", "model=linear", *QUICK, quiet=True)
    (x,), y = line.splits.train.inputs, line.splits.train.targets
    values = line.predict(x)
    assert (values.labels, values.probabilities) == ([], None)
    assert float((values.values - y).square().mean()) >= 0
    weights = [p.item() for p in line.model.parameters()]
    assert line.predict([4.0]).values.item() == pytest.approx(4 * weights[0] + sum(weights[1:]), rel=1e-5)
    words = package.train("data=hello", "model=rnn_cell", *QUICK, quiet=True)
    tags = words.predict(words.splits.train.inputs)
    assert len(tags.labels[0]) == 5
    assert set(tags.labels[0]) <= set("helo")
    assert tags.probabilities.shape == (1, 5, 4)


@pytest.mark.slow
def test_own_code_of_a_loaded_run_must_be_trusted(working_directory: Path, clean_process: None) -> None:
    (working_directory / "my_own_net.py").write_text(
        "import torch\n\nclass Net(torch.nn.Linear):\n"
        "    def __init__(self, spec):\n        super().__init__(spec.input_size, spec.output_size)\n"
    )
    run = package.train(*BLOBS, "model._target_=my_own_net.Net", "checkpoint.format=full", quiet=True)
    x = run.splits.train.inputs[0][:4]
    predictions = run.predict(x).values
    with pytest.raises(package.RequestError, match=r"trusted_modules=\['my_own_net'\]"):
        package.load(run.folder)
    assert torch.equal(package.load(run.folder, trusted_modules=["my_own_net"]).predict(x).values, predictions)
    full = run.folder / "checkpoints" / "model.pt"
    with pytest.raises(package.RequestError, match="trust=true"):
        package.load(full)
    assert torch.equal(package.load(full, trust=True).predict(x).values, predictions)
    del sys.modules["my_own_net"]


@pytest.mark.slow
def test_what_cannot_be_loaded(working_directory: Path, clean_process: None) -> None:
    run = package.train(*BLOBS, "hydra.run.dir=run", quiet=True)
    with pytest.raises(package.RequestError, match="there is no run or checkpoint nowhere"):
        package.load("nowhere")
    with pytest.raises(package.RequestError, match="there is no key devise; did you mean device"):
        package.load("run", "devise=cpu")
    step = sorted((working_directory / "run" / "checkpoints").glob("step_*.pt"))[0]
    alone = working_directory / "alone.pt"
    alone.write_bytes(step.read_bytes())
    loaded = package.load(alone)
    assert (loaded.folder, loaded.result, loaded.history) == (None, {}, [])
    assert loaded.metrics["val/loss"] == pytest.approx(run.history[0]["val/loss"])
    alone.write_bytes(step.read_bytes()[:-100])
    with pytest.raises(package.RequestError, match="cut short"):
        package.load(alone)


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_goes_on_to_the_same_weights(working_directory: Path) -> None:
    (working_directory / "stopping.py").write_text(
        "import pathlib, signal, torch\n\nclass Net(torch.nn.Linear):\n    calls = 0\n"
        "    def __init__(self, spec):\n        super().__init__(spec.input_size, spec.output_size)\n"
        "    def forward(self, x):\n        Net.calls += 1\n"
        "        if Net.calls == 8 and not pathlib.Path('sent').exists():\n"  # copies count anew
        "            pathlib.Path('sent').touch()\n            signal.raise_signal(signal.SIGINT)\n"
        "        return super().forward(x)\n"
    )
    words = (*BLOBS, "model._target_=stopping.Net")
    with pytest.raises(KeyboardInterrupt, match=r"dlrun\.train\('resume=.*'\) resumes it"):
        package.train(*words, "hydra.run.dir=run", quiet=True)
    assert json.loads((working_directory / "run" / "result.json").read_text())["status"] == "interrupted"
    ended = package.train("resume=run", "trusted_modules=[stopping]", quiet=True)
    reference = package.train(*words, quiet=True)
    assert ended.result["weights_sha256"] == reference.result["weights_sha256"]
    again = package.train("resume=run", "trusted_modules=[stopping]", quiet=True)
    assert again.result == ended.result
    del sys.modules["stopping"]


@pytest.mark.slow
def test_a_run_that_fails_or_misses_what_it_should_come_to(working_directory: Path, clean_process: None) -> None:
    with pytest.raises(package.RunError, match=r"the run .* failed: the loss is inf at step 2"):
        package.train("data=line", "model=linear", "optimizer=sgd", "optimizer.lr=1e30", *QUICK, quiet=True)
    with pytest.raises(package.RunError, match=r"did not meet .*train/loss < 0"):
        package.train(*BLOBS, 'expect=["train/loss < 0"]', "strict=true", quiet=True)


NOTEBOOK = """
import io, sys, torch, hydra, threading
from dlrun.data.spec import DataSpec, Split, Splits

hydra.initialize_config_dir(sys.argv[1], version_base="1.3")  # Hydra has looked for plugins before dlrun comes

class Net(torch.nn.Linear):
    def __init__(self, spec, scale: float = 1.0):
        super().__init__(spec.input_size, spec.output_size)

def rows() -> Splits:
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    part = Split((x,), (x.sum(1) > 0).long())
    return Splits(part, None, part, DataSpec("vector", (2,), "binary", 1))

class Cell(io.TextIOBase):  # what a notebook has for a terminal
    def __init__(self): self.parts = []
    def write(self, text): self.parts.append(text); return len(text)

terminal, sys.stdout = sys.stdout, Cell()
import dlrun
words = ("model._target_=__main__.Net", "data._target_=__main__.rows", "trainer.epochs=2", "tracking.graph=false")
runs = [dlrun.train(*words), dlrun.train(*words, "checkpoint.format=full", "figures=false")]
output, sys.stdout = "".join(sys.stdout.parts), terminal
assert runs[0].result["weights_sha256"] == runs[1].result["weights_sha256"]
x = runs[0].splits.test.inputs[0]
values = dlrun.load(runs[0].folder, trusted_modules=["__main__"]).predict(x).values
assert torch.equal(values, runs[0].predict(x).values)
try:
    dlrun.load(runs[0].folder)
except dlrun.RequestError as error:
    print(error)
print(hydra.compose("config").a, "epoch 2/2" in output)
"""


@pytest.mark.slow
def test_classes_of_a_notebook_behind_a_stdout_that_is_no_file(working_directory: Path, warm: Any) -> None:
    (working_directory / "config.yaml").write_text("a: 1\n")
    (working_directory / "notebook.py").write_text(NOTEBOOK)
    process = warm.start("notebook.py", str(working_directory), cwd=working_directory)
    assert process.wait(300) == 0, process.err
    refused, last = process.out.splitlines()
    assert "add trusted_modules=['__main__']" in refused
    assert last == "1 True"
