"""What every test shares: dlrun's real command line in process, in an empty working directory.

Which runner a test takes, the first that will do:

- `dlrun(*words)`: the command line in this process; no start at all. Nearly every test.
- `command(*words)`, `python(*words)`: a process forked from one that has torch imported, 0.1 s: for exit statuses, what
  is written to a stream that is no terminal, environment variables, the collection of memory, `__main__`.
- `warm.start(*words, cwd=)`: the same, and the test goes on at once: to send signals, to kill.
- `subprocess` with `sys.executable`: a new interpreter, 3 s: only where its start is the point, that is what is
  imported, how dlrun is launched (script, `python -m`, torchrun), or a program that imports no torch.

A finished run that several tests only read is made once, in a fixture of their module.
"""

import ast
import atexit
import functools
import gc
import importlib.util
import inspect
import json
import os
import signal
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import nn

    from dlrun.data.spec import Splits

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two-threaded torch beside another process is ten times slower

BYTECODE = pytest.StashKey[bool]()
# What the drivers of NVIDIA, of WSL and of AMD show.
GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
ON_BOTH_DEVICES = (
    "commands/test_autoencoder.py",
    "commands/test_batch_sizes.py",
    "commands/test_callbacks.py",
    "commands/test_fp16.py",
    "commands/test_interruptions.py",
    "commands/test_multilabel.py",
    "commands/test_multitask.py",
    "commands/test_own_losses.py",
    "commands/test_own_metrics.py",
    "commands/test_resume.py",
    "commands/test_resume_auto.py",
    "commands/test_texts.py",
    "commands/test_train.py",
    "commands/test_user_nets.py",
    "engine/",
    "experiment/",
    "inference/",
    "sweep/search/",
    "sweep/test_continuation.py",
    "sweep/test_jobs.py",
    "sweep/test_runner.py",
    "sweep/test_stacks.py",
)
OF_A_GPU = "test_gpu.py"
NO_STAND_IN = {"no_stand_in", "warm"}
TRAINING_FIXTURES = {"dlrun", "command", "python", "stacks"}
QUIET = ("tracking.graph=false", "figures=false")  # what costs time and is not what most tests look at


def pytest_configure(config: pytest.Config) -> None:
    """Keep the bytecode of what is collected: compiling tests and package anew takes each process 3 s.

    Not of what the tests write: a module that is written twice within a second would stay as it was.

    No garbage is looked for meanwhile: among the objects of all imported modules that takes seconds.
    """
    gc.disable()
    config.stash[BYTECODE] = sys.dont_write_bytecode
    sys.dont_write_bytecode = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest in one piece: at the end of all, the other workers would wait for it."""
    items.sort(key=lambda item: item.path.name != "test_torture.py")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Write bytecode again only where the environment wants it, and look for garbage in what the tests make.

    Rarely: modules that the tests import are looked through each time, which took a twelfth of the suite.
    """
    sys.dont_write_bytecode = session.config.stash[BYTECODE]
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    gc.enable()
    # Some libraries complain at exit about objects of theirs that are still alive.
    atexit.register(gc.unfreeze)


def pytest_report_header() -> str:
    """Name what is tested with: there are two environments, one of them with the newest versions."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    names = [need.split(">")[0] for need in project["dependencies"]]
    return "with " + ", ".join(f"{name} {version(name)}" for name in names)


@dataclass(frozen=True)
class CommandOutcome:
    """What a command line left behind."""

    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        """The run folder that the output names."""
        line = next(line for line in self.out.splitlines() if line.startswith("run folder"))
        return Path(line.removeprefix("run folder").strip())

    @property
    def result(self) -> dict[str, Any]:
        """result.json of that run."""
        return dict(json.loads((self.folder / "result.json").read_text()))

    @property
    def rows(self) -> list[dict[str, float]]:
        """metrics.jsonl of that run."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


def pytest_runtest_setup() -> None:
    """Read scikit-learn's digits once, as soon as a test has imported it."""
    remember_digits()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of what a device does run on the CPU, and once more on a GPU, where they have the mark `gpu`.

    They are those that ask for `device`, and those of the folders below that train with the command line. Tests of a
    GPU alone run on the stand-in too, where it is of help, so that they cannot fall by a wrong name on the day.
    """
    asks = "device" in inspect.signature(metafunc.function).parameters
    path = metafunc.definition.path.relative_to(Path(__file__).parent).as_posix()
    if path == OF_A_GPU and metafunc.definition.get_closest_marker("gpu") is None:
        devices = [pytest.param("stand-in", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
        metafunc.parametrize(
            "device", devices if NO_STAND_IN.isdisjoint(metafunc.fixturenames) else devices[1:], indirect=True
        )
        return
    trains = path.startswith(ON_BOTH_DEVICES) and not TRAINING_FIXTURES.isdisjoint(metafunc.fixturenames)
    if (asks or trains) and metafunc.definition.get_closest_marker("gpu") is None:
        devices = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
        metafunc.parametrize("device", devices, indirect=True)


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """`cpu` or `cuda`: where the test's trainings run by themselves, as `device=auto` takes a GPU that it sees.

    GPUs are hidden from every test without the mark `gpu`. Where there is none, a test of a GPU is skipped, or runs on
    the stand-in of tests/pretended_cuda.py if DLRUN_TEST_CUDA=pretended is set and the test starts no process.
    """
    if request.node.get_closest_marker("gpu") is None:
        if any(map(os.path.exists, GPU_FILES)):
            hide_gpus(monkeypatch)
        if getattr(request, "param", "cpu") == "stand-in":
            with module_of("pretended_cuda").pretend_cuda():
                yield "cuda"
        else:
            yield "cpu"
        return

    import torch

    if torch.cuda.is_available():
        yield "cuda"
    elif os.environ.get("DLRUN_TEST_CUDA") == "pretended" and NO_STAND_IN.isdisjoint(request.fixturenames):
        with module_of("pretended_cuda").pretend_cuda():
            yield "cuda"
    else:
        pytest.skip("there is no GPU here")


@pytest.fixture
def no_stand_in() -> None:
    """For tests that a stand-in for a GPU is no help to: they start processes, compile, or measure time."""


def hide_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave this process, and those that it starts, without GPUs for as long as a test lasts."""
    import torch

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a test run share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def composed(common_folder: Path) -> Iterator[Any]:
    """Config files of dlrun's own are read and merged once for each choice of groups: see tests/composed.py."""
    with module_of("composed").use_memory(common_folder / "composed") as memory:
        yield memory


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """SIGINT as a terminal's user knows it: a shell that starts the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def dlrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], device: str
) -> Callable[..., CommandOutcome]:
    """`dlrun(*words)`: run a command line in this process, from an empty working directory.

    On a GPU runs are deterministic, unless they say otherwise: two that are compared take the same kernels.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DLRUN_DATA_DIR", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*words: str) -> CommandOutcome:
        from dlrun.cli.main import main

        trains = words and (words[0] == "-m" or "=" in words[0])
        if device == "cuda" and trains and not any(word.startswith("device.deterministic") for word in words):
            words = (*words, "device.deterministic=true")
        monkeypatch.setattr(sys, "argv", ["dlrun", *words])
        capfd.readouterr()
        code = main()
        out, err = capfd.readouterr()
        return CommandOutcome(code, out, err)

    return run


@pytest.fixture(scope="session")
def warm(common_folder: Path) -> Iterator[Any]:
    """The waiting process of tests/warm.py; `warm.start(*words, cwd=)` starts `python *words`, for tests of signals."""
    server = module_of("warm").Server(common_folder)
    yield server
    server.close()


@pytest.fixture
def warm_check_resume(warm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainings of `dlrun check resume` are warm processes, where a user's are new interpreters."""
    from dlrun.experiment.checks import resume

    def start(words: list[str], **_: Any) -> Any:
        assert words[0] == sys.executable
        return warm.start(*words[1:], cwd=Path.cwd())

    monkeypatch.setattr(resume, "subprocess", SimpleNamespace(Popen=start, DEVNULL=None))


@pytest.fixture
def python(tmp_path: Path, warm: Any) -> Callable[..., CommandOutcome]:
    """`python(*words, input=, env=)`: run `python *words` as a warm process, from an empty working directory."""

    def run(*words: str, input: str = "", timeout: float = 300, **settings: Any) -> CommandOutcome:
        with tempfile.TemporaryFile() as stdin:
            stdin.write(input.encode())
            stdin.seek(0)
            process = warm.start(*words, cwd=tmp_path, stdin=stdin.fileno(), **settings)
        try:
            process.wait(timeout)
        finally:
            process.kill()
        return CommandOutcome(process.returncode, process.out, process.err)

    return run


@pytest.fixture
def command(python: Callable[..., CommandOutcome]) -> Callable[..., CommandOutcome]:
    """`command(*words)`: run `python -m dlrun *words` as a warm process, from an empty working directory."""
    return functools.partial(python, "-m", "dlrun")


KILLED = """
import os, signal, sys
from dlrun.cli.main import main
from dlrun.runs import checkpoint_manager

save, calls = checkpoint_manager.save_encoded, []


def save_or_die(*arguments):
    calls.append(1)
    if len(calls) == {nth}:
        os.kill(os.getpid(), signal.SIGKILL)
    save(*arguments)


checkpoint_manager.save_encoded = save_or_die
sys.exit(main())
"""


@pytest.fixture
def killed_at_save() -> Callable[[int], str]:
    """`killed_at_save(nth)`: the code of a command line whose process dies before its nth checkpoint file."""
    return lambda nth: KILLED.format(nth=nth)


@pytest.fixture
def kill_at_save(python: Callable[..., CommandOutcome], killed_at_save: Callable[[int], str]) -> Callable[..., None]:
    """`kill_at_save(nth, *words)`: a command line as a warm process that is killed before its nth checkpoint file."""

    def run(nth: int, *words: str) -> None:
        outcome = python("-c", killed_at_save(nth), *words)
        assert outcome.code == -signal.SIGKILL, outcome.out + outcome.err

    return run


WITHOUT_DLRUN = """
import sys

OURS = ("dlrun", "hydra", "omegaconf")


class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OURS:
            raise ImportError(f"{name} is imported")


for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
    del sys.modules[name]
sys.meta_path.insert(0, Refusing())
"""


@pytest.fixture
def plain(python: Callable[..., Any]) -> Callable[..., Any]:
    """`plain(code, *words)`: run code as a process in which neither dlrun nor Hydra can be imported."""

    def run(code: str, *words: str) -> Any:
        return python("-c", WITHOUT_DLRUN + code, *words, timeout=600)

    return run


def module_of(name: str, folder: str = "") -> ModuleType:
    """A module that lies among the tests."""
    path = Path(__file__).parent / folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lines() -> Callable[["Axes"], dict[str, list[list[float]]]]:
    """What axes show as lines with a label: x and y."""
    import numpy as np

    def read(axes: "Axes") -> dict[str, list[list[float]]]:
        labelled = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
        return {str(line.get_label()): np.asarray(line.get_xydata()).T.tolist() for line in labelled}

    return read


@pytest.fixture
def parts_of() -> Callable[["nn.Module", "Splits"], Any]:
    """As much of a run's parts as a picture looks at, with all training rows in one batch."""
    import torch

    from dlrun.data.batches import EpochOrder, MemoryBatches, Placement
    from dlrun.data.spec import Split
    from dlrun.engine.device import Runtime
    from dlrun.engine.objective import Objective

    def make(model: "nn.Module", splits: "Splits") -> Any:
        assert isinstance(splits.train, Split)
        device = torch.device("cpu")
        order = EpochOrder(len(splits.train), len(splits.train))
        batches = MemoryBatches(splits.train, order, Placement(device, torch.float32, splits.spec))
        state = SimpleNamespace(model=model, train=batches, val=None, progress=SimpleNamespace(epoch=0, step=0))
        return SimpleNamespace(
            splits=splits,
            objective=Objective(splits.spec),
            runtime=Runtime(device, "fp32", None, False, ""),
            state=state,
            batches=SimpleNamespace(test=None),
            start=SimpleNamespace(parameters={}),
        )

    return make


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nets of torchvision with layers of every kind that they have, but few: the others only repeat them."""
    from torchvision.models import convnext, densenet, maxvit, mobilenetv3, resnet, swin_transformer, vision_transformer

    blocks, _ = mobilenetv3._mobilenet_v3_conf("mobilenet_v3_small")
    cut(monkeypatch, resnet, "_resnet", layers=[1, 1, 1, 1])
    cut(monkeypatch, densenet, "_densenet", block_config=(2, 2))
    cut(
        monkeypatch,
        convnext,
        "_convnext",
        block_setting=[convnext.CNBlockConfig(24, 48, 1), convnext.CNBlockConfig(48, None, 1)],
    )
    cut(monkeypatch, swin_transformer, "_swin_transformer", embed_dim=24, depths=[2, 2], num_heads=[2, 4])
    cut(monkeypatch, maxvit, "_maxvit", stem_channels=8, block_channels=[8, 16], block_layers=[1, 1], head_dim=8)
    cut(monkeypatch, mobilenetv3, "_mobilenet_v3", inverted_residual_setting=blocks[:4])
    cut(
        monkeypatch,
        vision_transformer,
        "_vision_transformer",
        num_layers=2,
        num_heads=2,
        hidden_dim=24,
        mlp_dim=48,
    )


def cut(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, **settings: Any) -> None:
    """Let a function of a module take these settings, whatever it is called with."""
    function = getattr(module, name)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def make_smaller(*args: Any, **others: Any) -> Any:
        call = signature.bind(*args, **others)
        call.arguments.update(settings)
        return function(*call.args, **call.kwargs)

    monkeypatch.setattr(module, name, make_smaller)


@pytest.fixture
def comparison_without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps and comparisons draw nothing: their pictures take a second, and are looked at by tests of their own."""
    monkeypatch.setattr("dlrun.sweep.comparison.plots.draw_all", lambda comparison, folder, **_: [])


@pytest.fixture(scope="session")
def pretended() -> ModuleType:
    """tests/pretended_cuda.py, the stand-in for a GPU, not entered yet."""
    return module_of("pretended_cuda")


@pytest.fixture(scope="session")
def formats() -> ModuleType:
    """tests/data/published_formats.py, which writes small data sets in their published byte formats."""
    return module_of("published_formats", "data")


@dataclass(frozen=True)
class Source:
    """A file of the package; its name is the path below dlrun/."""

    name: str
    text: str
    tree: ast.Module


@pytest.fixture(scope="session")
def sources() -> list[Source]:
    """The files of the package, parsed once: for tests of how the code is written."""
    package = Path(__file__).parent.parent / "dlrun"
    files = [(path.relative_to(package).as_posix(), path.read_text()) for path in sorted(package.rglob("*.py"))]
    return [Source(name, text, ast.parse(text)) for name, text in files]


@pytest.fixture
def real_data(monkeypatch: pytest.MonkeyPatch, dlrun: Callable[..., CommandOutcome]) -> Path:
    """The folder of real data sets; the test is skipped where there is none."""
    if not REAL_DATA:
        pytest.skip("DLRUN_DATA_DIR is not set: no real data here")
    monkeypatch.setenv("DLRUN_DATA_DIR", REAL_DATA)
    return Path(REAL_DATA)


remember_digits = module_of("warm").remember_digits
REAL_DATA = str(Path(os.environ["DLRUN_DATA_DIR"]).resolve()) if os.environ.get("DLRUN_DATA_DIR") else ""
