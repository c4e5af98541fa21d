"""What only a real GPU can show: recorded steps, memory, precision, streams, several processes on one card."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("no_stand_in")]

QUIET = ("tracking.graph=false", "figures=false")
DIGITS = ("data=digits", "model=mlp", *QUIET)
FIXED = ("device=cuda", "device.deterministic=true")

# 21 batches of 64 rows, the last of 14.
GRAPHS = {
    "dropout": ("model=mlp", "model.dropout=0.3"),
    "clipped": ("model=mlp", "trainer.grad_clip_norm=0.5"),
    "accumulated": ("model=mlp", "trainer.accumulate_steps=2"),
    "a rate a step": ("model=mlp", "scheduler=one_cycle"),
    "a rate an epoch": ("model=mlp", "optimizer=sgd", "scheduler=step", "scheduler.interval=epoch"),
    "averaged": ("model=mlp", "trainer.ema_decay=0.9"),
    "momentum": ("model=cnn", "optimizer=momentum"),
    "bf16": ("model=cnn", "device.precision=bf16"),
    "residual": ("model=resnet", "model.channels=[4,8]"),
}


@pytest.mark.parametrize("words", GRAPHS.values(), ids=list(GRAPHS))
def test_recorded_steps_are_the_ordinary_ones_to_the_bit(words: tuple[str, ...], dlrun: Callable[..., Any]) -> None:
    words = ("data=digits", *words, *FIXED, *QUIET, "trainer.epochs=5", "trainer.log_every_steps=1")
    recorded, ordinary = (dlrun(*words, f"device.cuda_graph={how}") for how in ("auto", "off"))
    assert (recorded.code, ordinary.code) == (0, 0), recorded.err + ordinary.err
    assert "no CUDA graph" not in recorded.out
    assert recorded.rows == ordinary.rows
    assert recorded.result["weights_sha256"] == ordinary.result["weights_sha256"]


def test_a_run_of_the_gpu_is_of_use_on_a_cpu_and_back(dlrun: Callable[..., Any]) -> None:
    trained = dlrun(*DIGITS, *FIXED, "trainer.epochs=2", "hydra.run.dir=run")
    assert trained.code == 0, trained.err
    expected = trained.result["metrics"]["test/loss"]

    for device in ("cpu", "cuda"):
        done = dlrun("eval", "run", f"device={device}")
        assert done.code == 0, done.err
    assert dlrun("export", "run", "format=onnx", "device=cpu").code == 0

    on_cpu = dlrun("resume", "run", "trainer.epochs=3", "device=cpu")
    assert on_cpu.code == 0, on_cpu.err
    back = dlrun("resume", "run", "trainer.epochs=4", "device=cuda")
    assert back.code == 0, back.err
    assert back.result["epochs"] == 4
    assert back.result["metrics"]["test/loss"] < expected


def test_memory_of_a_run_is_flat_over_its_epochs(dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from dlrun.engine.trainer import Trainer

    allocated: list[int] = []
    train_epoch = Trainer.train_epoch

    def train_and_measure(trainer: Trainer) -> bool:
        completed = train_epoch(trainer)
        allocated.append(torch.cuda.memory_allocated())
        return completed

    monkeypatch.setattr(Trainer, "train_epoch", train_and_measure)
    done = dlrun("data=digits", "model=cnn", "device=cuda", *QUIET, "trainer.epochs=50")
    assert done.code == 0, done.err
    assert len(allocated) == 50
    # The first epochs record the step and hold the first best weights.
    assert max(allocated[10:]) - allocated[9] < 2**20


def test_memory_is_flat_over_the_jobs_of_a_sweep(dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from dlrun.experiment import run as experiment

    allocated: list[int] = []
    run = experiment.run

    def run_and_measure(*arguments: Any, **words: Any) -> int:
        code = run(*arguments, **words)
        allocated.append(torch.cuda.memory_allocated())
        return code

    monkeypatch.setattr(experiment, "run", run_and_measure)
    words = ("-m", *DIGITS, "device=cuda", "trainer.epochs=1", "seed=range(20)", "sweep.stack=off", "sweep.jobs=1")
    done = dlrun(*words)
    assert done.code == 0, done.err
    assert len(allocated) == 20
    assert max(allocated[3:]) - allocated[2] < 2**20


def test_out_of_memory_is_a_sentence_and_the_next_job_runs(dlrun: Callable[..., Any]) -> None:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2**30 / total)
    try:
        words = ("-m", *DIGITS, "device=cuda", "trainer.epochs=1", "sweep.stack=off", "sweep.jobs=1")
        done = dlrun(*words, "model.hidden_sizes=[30000,30000],[16]", "sweep.dir=sweep")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert done.code == 1
    assert "out of memory on cuda:0 with data.batch_size=64; try data.batch_size=32" in done.out + done.err
    assert "Traceback" not in done.out + done.err
    statuses = [json.loads(path.read_text())["status"] for path in sorted(Path("sweep").glob("*/result.json"))]
    assert statuses.count("completed") == 1


@pytest.mark.parametrize(
    ("word", "dtype", "products"),
    [
        ("device.precision=fp32", torch.float32, "ieee"),
        ("device.tf32=true", torch.float32, "tf32"),
        ("device.precision=bf16", torch.bfloat16, None),
        ("device.precision=fp16", torch.float16, None),
        ("device.precision=fp64", torch.float64, None),
    ],
)
def test_the_net_is_computed_in_the_precision_that_is_asked_for(
    word: str, dtype: torch.dtype, products: str | None, dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = set()
    forward = torch.nn.Linear.forward

    def compute_and_note(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        output = forward(layer, x)
        if output.is_cuda:
            outputs.add((output.dtype, torch.backends.cuda.matmul.fp32_precision))
        return output

    monkeypatch.setattr(torch.nn.Linear, "forward", compute_and_note)
    done = dlrun(*DIGITS, "device=cuda", "trainer.epochs=2", word)
    assert done.code == 0, done.err
    assert {seen for seen, _ in outputs} == {dtype}
    if products is not None:
        assert {seen for _, seen in outputs} == {products}


def trace(dlrun: Callable[..., Any], *words: str) -> tuple[int, list[Any]]:
    """Steps of a run, and what the GPU and its driver did meanwhile."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        done = dlrun(*words)
    assert done.code == 0, done.err
    return int(done.result["steps"]), list(profiler.events())


@pytest.mark.parametrize("graph", ["auto", "off"])
def test_no_step_waits_for_the_gpu(graph: str, dlrun: Callable[..., Any]) -> None:
    words = (*DIGITS, "device=cuda", "trainer.log_every_steps=1000", f"device.cuda_graph={graph}")
    waits = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"}
    counts = []
    for batch_size in (64, 8):
        steps, events = trace(dlrun, *words, "trainer.epochs=2", f"data.batch_size={batch_size}")
        counts.append((steps, sum(event.name in waits for event in events)))

    # Eight times as many steps wait no more often: what waits are the epochs' ends and the start.
    (few_steps, few_waits), (many_steps, many_waits) = counts
    assert many_steps > 7 * few_steps
    assert many_waits - few_waits < (many_steps - few_steps) / 20


def test_batches_of_workers_are_copied_beside_the_computation(dlrun: Callable[..., Any]) -> None:
    words = ("data=digits", "data.loader=workers", "data.num_workers=1", "model=cnn", "device=cuda", *QUIET)
    _, events = trace(dlrun, *words, "trainer.epochs=2", "device.cuda_graph=off")
    copies = {event.device_resource_id for event in events if event.name == "Memcpy HtoD (Pinned -> Device)"}
    kernels = {event.device_resource_id for event in events if "gemm" in event.name or "conv" in event.name.lower()}
    assert copies
    assert copies - kernels


def run_processes(folder: Path, count: int, *words: str) -> dict[str, Any]:
    """The result of a run of so many processes on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += ["-m", "dlrun", *words, f"hydra.run.dir={folder}/run"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads((folder / "run" / "result.json").read_text()))


def test_two_processes_share_a_card(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    words = (*DIGITS, "device=cuda", "optimizer=sgd", "trainer.epochs=2", "data.drop_last=true")
    alone = dlrun(*words, "data.batch_size=64", "hydra.run.dir=alone")
    assert alone.code == 0, alone.err
    result = run_processes(tmp_path, 2, *words, "data.batch_size=32")
    assert result["steps"] == alone.result["steps"]
    assert result["metrics"]["test/loss"] == pytest.approx(alone.result["metrics"]["test/loss"], rel=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs here")
def test_two_cards_train_one_run_over_nccl(tmp_path: Path) -> None:
    result = run_processes(tmp_path, 2, *DIGITS, "device=cuda", "trainer.epochs=2")
    assert result["status"] == "completed"
    assert result["metrics"]["test/accuracy"] > 0.8


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs here")
def test_jobs_of_a_sweep_take_a_card_each(dlrun: Callable[..., Any]) -> None:
    words = ("-m", *DIGITS, "trainer.epochs=1", "seed=range(4)", "sweep.stack=off", "sweep.jobs=auto")
    done = dlrun(*words, "sweep.dir=sweep")
    assert done.code == 0, done.err
    places = {json.loads(path.read_text())["device"] for path in Path("sweep").glob("*/environment.json")}
    assert len({place.split(" ")[0] for place in places}) >= 2


def test_a_stack_is_the_runs_alone_to_rounding(dlrun: Callable[..., Any]) -> None:
    words = ("-m", *DIGITS, "device=cuda", "trainer.epochs=2", "optimizer=sgd", "seed=range(4)")
    for how in ("on", "off"):
        done = dlrun(*words, f"sweep.stack={how}", f"sweep.dir={how}")
        assert done.code == 0, done.err
    for path in sorted(Path("on").glob("*/result.json")):
        metrics, expected = (json.loads(Path(how, path.parent.name, path.name).read_text()) for how in ("on", "off"))
        assert metrics["metrics"]["test/loss"] == pytest.approx(expected["metrics"]["test/loss"], rel=1e-3)
    shutil.rmtree("on")
