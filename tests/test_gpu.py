"""What only a real GPU can show: recorded steps, memory, precision, streams, several processes on one card.

A test that does not ask for `no_stand_in` runs once more in the slow suite, on the stand-in of tests/pretended_cuda.py:
there it shows that its words, names and files are right, and nothing of a card.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

needs_a_card = pytest.mark.usefixtures("no_stand_in")

QUIET = ("tracking.graph=false", "figures=false")
DIGITS = ("data=digits", "model=mlp", *QUIET)
FIXED = ("device=cuda", "device.deterministic=true")

# 4 batches of 64 rows, the last of 8.
GRAPH_DATA = ("data=digits", "data.train_rows=200", "trainer.epochs=6", "trainer.log_every_steps=1")
GRAPHS = {
    "dropout": ("model=mlp", "model.dropout=0.3"),
    "clipped": ("model=mlp", "trainer.grad_clip_norm=0.5"),
    "accumulated": ("model=mlp", "trainer.accumulate_steps=2"),
    "a rate a step": ("model=mlp", "scheduler=one_cycle"),
    "a rate an epoch": ("model=mlp", "optimizer=sgd", "scheduler=step", "scheduler.interval=epoch"),
    "averaged": ("model=mlp", "trainer.ema_decay=0.9"),
    "momentum": ("model=cnn", "optimizer=momentum"),
    "bf16": ("model=mlp", "device.precision=bf16"),
    "residual": ("model=resnet", "model.channels=[4,8]"),
    "batch norm": (
        "model=sequential",
        "model.layers=[Flatten,{Linear:[in,16]},{BatchNorm1d:16},ReLU,{Linear:[16,out]}]",
    ),
}
KILLED = {
    "mlp": ("data=digits", "model=mlp", "model.dropout=0.3", "optimizer=momentum"),
    "cnn": ("data=digits", "model=cnn", "scheduler=one_cycle", "trainer.ema_decay=0.9"),
    "resnet": ("data=digits", "model=resnet", "model.channels=[4,8]", "device.precision=bf16"),
    "gru": ("data=text", "data.path=dlrun:reviews.csv", "model=gru", "model.hidden_size=16", "model.dropout=0.2"),
}


def is_on_card() -> bool:
    """Whether a test runs on a real GPU, where its numbers say something."""
    return bool(torch.version.cuda or torch.version.hip) and "pretended" not in torch.cuda.get_device_name(0)


@pytest.mark.parametrize("words", GRAPHS.values(), ids=list(GRAPHS))
def test_recorded_steps_are_the_ordinary_ones_to_the_bit(
    words: tuple[str, ...], dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlrun.engine.acceleration.cuda_graph import CudaGraphStep

    replays = []
    replay = CudaGraphStep._replay

    def replay_and_count(step: CudaGraphStep, state: Any, recorded: Any, group: Any, records: Any) -> None:
        replays.append(len(group[-1][1]))
        replay(step, state, recorded, group, records)

    monkeypatch.setattr(CudaGraphStep, "_replay", replay_and_count)
    words = (*GRAPH_DATA, *words, *FIXED, *QUIET)
    recorded, ordinary = (dlrun(*words, f"device.cuda_graph={how}") for how in ("auto", "off"))
    assert (recorded.code, ordinary.code) == (0, 0), recorded.err + ordinary.err
    assert "no CUDA graph" not in recorded.out
    # Full batches and the last one of an epoch.
    assert set(replays) == {64, 8}
    assert recorded.rows == ordinary.rows
    assert recorded.result["weights_sha256"] == ordinary.result["weights_sha256"]


@needs_a_card
@pytest.mark.parametrize("net", KILLED)
def test_a_run_that_is_killed_at_any_step_ends_as_the_run_itself(
    net: str, dlrun: Callable[..., Any], kill_at_save: Callable[..., None]
) -> None:
    words = (*KILLED[net], *FIXED, *QUIET, "trainer.epochs=3", "data.limit_batches=5", "checkpoint.every_steps=1")
    whole = dlrun(*words, "hydra.run.dir=whole")
    assert whole.code == 0, whole.err
    draw = random.Random(net)
    for number in range(2):
        kill_at_save(draw.randint(2, 14), *words, f"hydra.run.dir={number}")
        outcome = dlrun("resume", str(number))
        assert outcome.code == 0, outcome.err
        assert Path(str(number), "metrics.jsonl").read_bytes() == Path("whole", "metrics.jsonl").read_bytes()
        assert outcome.result["weights_sha256"] == whole.result["weights_sha256"]


def test_a_run_of_the_gpu_is_of_use_on_a_cpu_and_back(dlrun: Callable[..., Any]) -> None:
    trained = dlrun(*DIGITS, *FIXED, "trainer.epochs=2", "hydra.run.dir=run")
    assert trained.code == 0, trained.err
    expected = trained.result["metrics"]["test/loss"]

    for device in ("cpu", "cuda"):
        outcome = dlrun("eval", "run", f"device={device}")
        assert outcome.code == 0, outcome.err
        written = max(Path("run/eval").glob("*/metrics.json"), key=os.path.getmtime)
        assert json.loads(written.read_text())["metrics"]["test/loss"] == pytest.approx(expected, rel=1e-3)
    assert dlrun("export", "run", "format=safetensors").code == 0

    on_cpu = dlrun("resume", "run", "trainer.epochs=3", "device=cpu")
    assert on_cpu.code == 0, on_cpu.err
    back = dlrun("resume", "run", "trainer.epochs=4", "device=cuda")
    assert back.code == 0, back.err
    assert back.result["epochs"] == 4
    assert back.result["metrics"]["test/loss"] < expected


@needs_a_card
def test_a_run_of_the_gpu_is_exported_to_onnx(dlrun: Callable[..., Any]) -> None:
    pytest.importorskip("onnxruntime")
    assert dlrun(*DIGITS, *FIXED, "trainer.epochs=1", "hydra.run.dir=run").code == 0
    outcome = dlrun("export", "run", "format=onnx")
    assert outcome.code == 0, outcome.err


def test_memory_of_a_run_is_flat_over_its_epochs(dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from dlrun.engine.trainer import Trainer

    epochs = 50 if is_on_card() else 12
    allocated: list[int] = []
    train_epoch = Trainer.train_epoch

    def train_and_measure(trainer: Trainer) -> bool:
        completed = train_epoch(trainer)
        allocated.append(torch.cuda.memory_allocated())
        return completed

    monkeypatch.setattr(Trainer, "train_epoch", train_and_measure)
    outcome = dlrun(
        "data=digits", "data.train_rows=400", "model=cnn", "device=cuda", *QUIET, f"trainer.epochs={epochs}"
    )
    assert outcome.code == 0, outcome.err
    assert len(allocated) == epochs
    # The first epochs record the step and hold the first best weights.
    assert max(allocated[10:]) - allocated[9] < 2**20


def test_memory_is_flat_over_the_jobs_of_a_sweep(dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from dlrun.sweep import engines

    jobs = 20 if is_on_card() else 5
    allocated: list[int] = []
    run_request = engines.run_request

    def run_and_measure(*arguments: Any, **words: Any) -> Any:
        outcome = run_request(*arguments, **words)
        allocated.append(torch.cuda.memory_allocated())
        return outcome

    monkeypatch.setattr(engines, "run_request", run_and_measure)
    words = ("-m", *DIGITS, "device=cuda", "trainer.epochs=1", f"seed=range({jobs})", "sweep.stack=off", "sweep.jobs=1")
    outcome = dlrun(*words)
    assert outcome.code == 0, outcome.err
    assert len(allocated) == jobs
    assert max(allocated[3:]) - allocated[2] < 2**20


def test_out_of_memory_is_a_sentence_and_the_next_job_runs(
    dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlrun.models.mlp import MLP

    forward, calls = MLP.forward, []

    def compute_or_fill_memory(model: MLP, x: torch.Tensor) -> torch.Tensor:
        calls.append(model.training and torch.is_grad_enabled())
        # From the fourth step of the first job on it takes a petabyte, which no machine has.
        if sum(calls) > 3 and any(p.shape[0] == 9 for p in model.parameters()):
            x = x + torch.ones(2**48, device=x.device).sum()
        return forward(model, x)

    monkeypatch.setattr(MLP, "forward", compute_or_fill_memory)
    words = ("-m", *DIGITS, "device=cuda", "device.cuda_graph=off", "trainer.epochs=1", "sweep.jobs=1")
    outcome = dlrun(*words, "model.hidden_sizes=[9],[16]", "sweep.dir=sweep")
    assert outcome.code == 1, outcome.out + outcome.err
    assert "out of memory on cuda:0 with data.batch_size=64; try data.batch_size=32" in outcome.out + outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    results = [json.loads(path.read_text()) for path in sorted(Path("sweep").glob("*/result.json"))]
    assert [result["status"] for result in results] == ["failed", "completed"]


@pytest.mark.parametrize(
    ("word", "dtype", "products"),
    [
        ("device.tf32=false", torch.float32, "ieee"),
        ("device.tf32=true", torch.float32, "tf32"),
        ("device.precision=bf16", torch.bfloat16, None),
        ("device.precision=fp16", torch.float16, None),
        ("device.precision=fp64", torch.float64, None),
    ],
)
def test_the_net_is_computed_in_the_precision_that_is_asked_for(
    word: str, dtype: torch.dtype, products: str | None, dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    matmul: Any = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    outputs = set()
    forward = torch.nn.Linear.forward

    def compute_and_note(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        output = forward(layer, x)
        if layer.training and torch.is_grad_enabled() and output.is_cuda == is_on_card():
            outputs.add((output.dtype, matmul.fp32_precision))
        return output

    monkeypatch.setattr(torch.nn.Linear, "forward", compute_and_note)
    outcome = dlrun(*DIGITS, "device=cuda", "trainer.epochs=2", word)
    assert outcome.code == 0, outcome.err
    assert {seen for seen, _ in outputs} == {dtype}
    if products is not None:
        assert {seen for _, seen in outputs} == {products}
    assert matmul.fp32_precision == before


def trace(dlrun: Callable[..., Any], *words: str) -> tuple[int, list[Any]]:
    """Steps of a run, and what the host, the GPU and its driver did meanwhile."""
    from torch.profiler import profile, supported_activities

    with profile(activities=supported_activities()) as profiler:
        outcome = dlrun(*words)
    assert outcome.code == 0, outcome.err
    return int(outcome.result["steps"]), list(profiler.events())


@pytest.mark.parametrize("graph", ["auto", "off"])
def test_no_step_waits_for_the_gpu(graph: str, dlrun: Callable[..., Any]) -> None:
    words = (
        *DIGITS,
        "data.train_rows=640",
        "device=cuda",
        "trainer.log_every_steps=1000",
        f"device.cuda_graph={graph}",
    )
    # On a CPU Adam reads its own counts.
    words = (*words, "optimizer=adam" if is_on_card() else "optimizer=momentum")
    waits = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"}
    # A number that Python reads from a tensor: on the stand-in, where no tensor is the GPU's, all of them.
    waits |= set() if is_on_card() else {"aten::_local_scalar_dense"}
    launches = {"cudaLaunchKernel", "cudaGraphLaunch", "cuLaunchKernel", "cudaLaunchKernelExC"}
    counts = []
    for batch_size in (64, 8):
        steps, events = trace(dlrun, *words, "trainer.epochs=2", f"data.batch_size={batch_size}")
        counts.append((steps, sum(event.name in waits for event in events)))
        if is_on_card():
            assert any(event.name in launches for event in events)

    # Eight times as many steps wait no more often: what waits are the epochs' ends and the start.
    (few_steps, few_waits), (many_steps, many_waits) = counts
    assert many_steps > 7 * few_steps
    assert few_waits > 0
    assert many_waits - few_waits < (many_steps - few_steps) / 20


@needs_a_card
@pytest.mark.parametrize("colours", ["grey", "coloured"])
def test_batches_of_workers_are_copied_beside_the_computation(
    colours: str, dlrun: Callable[..., Any], formats: ModuleType
) -> None:
    from torch.autograd import DeviceType

    words: tuple[str, ...] = ("data=digits", "data.loader=workers")
    if colours == "coloured":
        formats.write_folder(Path("photos"), {"cat": 300, "dog": 300})
        words = ("data=image_folder", "data.path=photos", "data.image_size=16", "data.in_memory=false")
    words = (*words, "data.num_workers=1", "model=cnn", "model.kernel_size=3", "device=cuda", *QUIET)
    _, events = trace(dlrun, *words, "trainer.epochs=2", "device.cuda_graph=off")

    of_card = [event for event in events if event.device_type == DeviceType.CUDA]
    copies = {event.device_resource_id for event in of_card if event.name == "Memcpy HtoD (Pinned -> Device)"}
    kernels = {event.device_resource_id for event in of_card if not event.name.startswith("Mem")}
    assert copies - kernels


@needs_a_card
def test_a_net_is_compiled_for_the_card(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun(*DIGITS, "device=cuda", "device.compile=true", "trainer.epochs=3")
    assert outcome.code == 0, outcome.err
    assert "the model was compiled in" in outcome.out
    assert outcome.result["metrics"]["test/accuracy"] > 0.8


def run_processes(folder: Path, count: int, *words: str) -> dict[str, Any]:
    """The result of a run of so many processes on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += ["-m", "dlrun", *words, f"hydra.run.dir={folder}/run"]
    outcome = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=os.environ)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return dict(json.loads((folder / "run" / "result.json").read_text()))


@needs_a_card
def test_two_processes_share_a_card(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    words = (*DIGITS, "device=cuda", "optimizer=sgd", "trainer.epochs=2", "data.drop_last=true")
    alone = dlrun(*words, "data.batch_size=64", "hydra.run.dir=alone")
    assert alone.code == 0, alone.err
    # The size is that of a process.
    result = run_processes(tmp_path, 2, *words, "data.batch_size=32")
    assert result["steps"] == alone.result["steps"]
    assert result["metrics"]["test/loss"] == pytest.approx(alone.result["metrics"]["test/loss"], rel=1e-3)


@needs_a_card
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs here")
def test_two_cards_train_one_run_over_nccl(tmp_path: Path) -> None:
    result = run_processes(tmp_path, 2, *DIGITS, "device=cuda", "trainer.epochs=2")
    assert result["status"] == "completed"
    assert result["metrics"]["test/accuracy"] > 0.8


@needs_a_card
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs here")
def test_jobs_of_a_sweep_take_a_card_each(dlrun: Callable[..., Any]) -> None:
    words = ("-m", *DIGITS, "trainer.epochs=1", "seed=range(4)", "sweep.stack=off", "sweep.jobs=auto")
    outcome = dlrun(*words, "sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    places = {json.loads(path.read_text())["device"] for path in Path("sweep").glob("*/environment.json")}
    assert len({place.split(" ")[0] for place in places}) >= 2


def test_a_stack_is_the_runs_alone_to_rounding(dlrun: Callable[..., Any]) -> None:
    words = ("-m", *DIGITS, "device=cuda", "trainer.epochs=2", "optimizer=sgd", "seed=range(4)")
    for how in ("on", "off"):
        outcome = dlrun(*words, f"sweep.stack={how}", f"sweep.dir={how}")
        assert outcome.code == 0, outcome.err
    paths = sorted(Path("on").glob("*/result.json"))
    assert len(paths) == 4
    for path in paths:
        metrics, expected = (json.loads(Path(how, path.parent.name, path.name).read_text()) for how in ("on", "off"))
        assert metrics["metrics"]["test/loss"] == pytest.approx(expected["metrics"]["test/loss"], rel=1e-3)
    shutil.rmtree("on")
